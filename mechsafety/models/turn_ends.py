"""The tokens that end a turn: what generation stops at, and the one with which an answer is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.chat import render_chat, tokenize_piece
from mechsafety.models.loading import is_hooked_transformer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ANSWER, _NEXT = "They carry water to the sea.", "How do storms form?"


def stop_tokens(model: TransformerBridge) -> frozenset[int]:
    """Every token that ends a turn: those of the generation config (a HookedTransformer has none), the tokenizer's
    end of text, and the control token with which the chat template closes an answer."""
    tokens: set[int] = set()
    if not is_hooked_transformer(model):
        named: Any = getattr(model.original_model.generation_config, "eos_token_id", None)
        tokens = {named} if isinstance(named, int) else set(named or ())
    if model.tokenizer.eos_token_id is not None:
        tokens.add(model.tokenizer.eos_token_id)
    return frozenset(tokens | _closing(model))


def end_of_turn(model: TransformerBridge) -> int:
    """The token with which the model ends its answers: the first of its :func:`stop_tokens` in what the chat template
    writes after an answer, where it is the last turn, or else before the next question.

    A template that writes none (plain text) leaves it to the tokenizer's end of text, or, without one, to the smallest
    stop token. Raises :class:`MechsafetyError` for a model that has no stop token at all.
    """
    stops = stop_tokens(model)
    if not stops:
        raise MechsafetyError(
            "this model has no token that ends a turn: set model.tokenizer.eos_token to the one that it writes"
        )
    written = [*_after_answer(model, "last"), *_after_answer(model, "followed")]
    otherwise = model.tokenizer.eos_token_id
    return next((t for t in written if t in stops), min(stops) if otherwise is None else otherwise)


def _after_answer(model: TransformerBridge, place: Literal["last", "followed"]) -> list[int]:
    """The tokens that the chat template writes after an answer, up to the next question where one follows.

    None for a model without a template, or with one that shows no answers.
    """
    if getattr(model.tokenizer, "chat_template", None) is None:
        return []
    turns = [{"role": "user", "content": "How do rivers form?"}, {"role": "assistant", "content": _ANSWER}]
    if place == "followed":
        turns.append({"role": "user", "content": _NEXT})
    try:
        rendered = render_chat(model, turns, answer_next=False)
    except Exception:  # templates raise errors of their own making
        return []
    rest = rendered.partition(_ANSWER)[2].partition(_NEXT)[0]
    return tokenize_piece(model, rest)


def _closing(model: TransformerBridge) -> set[int]:
    """The first special token that the template writes after an answer, or an added one right behind it."""
    tokenizer: Any = model.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    special -= {tokenizer.unk_token_id}
    written = _after_answer(model, "last")
    # Some tokenizers have runs of blanks among their added tokens.
    if written and written[0] in added and added[written[0]].content.strip() and written[0] not in special:
        return {written[0]}
    return set(next(([token] for token in written if token in special), []))
