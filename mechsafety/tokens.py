"""From prompts to token batches: chat rendering, length-sorted batches, named positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor

from mechsafety.errors import MechsafetyError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Message = dict[str, str]
Rendering = Literal["chat", "chat_no_system", "text"]
"""How a request reaches the model: in its chat template; in it without the system prompt that many templates put
first; or as bare text, begun as the tokenizer begins any text."""


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Left-padded token ids; ``rows`` are the places of its members in the caller's list."""

    rows: tuple[int, ...]
    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]

    @property
    def positions(self) -> Int[Tensor, "row token"]:
        """Position ids that count real tokens only, so that padding moves nothing."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    def followed_by(self, more: TokenBatch) -> TokenBatch:
        """The same rows with the columns of ``more`` behind."""
        return TokenBatch(
            rows=self.rows,
            ids=torch.cat([self.ids, more.ids], dim=1),
            mask=torch.cat([self.mask, more.mask], dim=1),
        )

    def to(self, device: torch.device) -> TokenBatch:
        return TokenBatch(rows=self.rows, ids=self.ids.to(device), mask=self.mask.to(device))


def render_chat(model: TransformerBridge, messages: Sequence[Message], *, answer_next: bool = True) -> str:
    """``messages`` in the model's own chat template, ready for its answer.

    Raises :class:`MechsafetyError` for a model that the user brings without a tokenizer or a chat template.
    """
    rendered = _chat_tokenizer(model).apply_chat_template(
        list(messages), add_generation_prompt=answer_next, tokenize=False
    )
    return cast("str", rendered)


def _chat_tokenizer(model: TransformerBridge) -> Any:
    tokenizer: Any = model.tokenizer
    name = type(model).__name__
    if tokenizer is None:
        raise MechsafetyError(
            f"this {name} has no tokenizer, so that prompts cannot be rendered: give it one that has a chat "
            "template, model.set_tokenizer(tokenizer), or load the model with load_model()"
        )
    if getattr(tokenizer, "chat_template", None) is None:
        raise MechsafetyError(
            f"the tokenizer of this {name} has no chat template (set_tokenizer may have loaded it anew, without "
            "one): set model.tokenizer.chat_template to a Jinja template, mechsafety.models.PLAIN_TEMPLATE being "
            "a simple question-and-answer form"
        )
    return tokenizer


def tokenize_text(model: TransformerBridge, text: str) -> list[int]:
    """Token ids of rendered text; nothing is added, because the template has added it already."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise MechsafetyError("a prompt gave no tokens at all: is the chat template empty?")
    return list(ids)


def tokenize_prompts(
    model: TransformerBridge, texts: Sequence[str], *, rendering: Rendering = "chat"
) -> list[list[int]]:
    """Each text as a single user turn in the model's own chat template, or as ``rendering`` says."""
    if rendering == "text":
        return [_tokenized_bare(model, text) for text in texts]
    return [tokenize_text(model, render_turn(model, text, rendering=rendering)) for text in texts]


def render_turn(model: TransformerBridge, text: str, *, rendering: Literal["chat", "chat_no_system"]) -> str:
    """One user turn, ready for the answer.

    Without the system prompt it is what the template makes of a later turn, where it puts none: the rest of a
    rendered dialogue behind its first question and answer. Raises :class:`MechsafetyError` where a template renders
    the first turn otherwise when a second one follows.
    """
    turn = {"role": "user", "content": text}
    if rendering == "chat":
        return render_chat(model, [turn])
    earlier = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
    before = render_chat(model, earlier, answer_next=False)
    whole = render_chat(model, [*earlier, turn])
    if not whole.startswith(before):
        raise MechsafetyError(
            "this model's chat template writes earlier turns in another way once a new one follows, so that its "
            "system prompt cannot be left out: use the rendering 'chat'"
        )
    start = model.tokenizer.bos_token or ""
    rest = whole[len(before) :]
    return rest if rest.startswith(start) or not whole.startswith(start) else start + rest


def _tokenized_bare(model: TransformerBridge, text: str) -> list[int]:
    if model.tokenizer is None:
        raise MechsafetyError("this model has no tokenizer: set one, model.set_tokenizer(tokenizer)")
    ids = model.tokenizer(text)["input_ids"]
    if not ids:
        raise MechsafetyError(f"the text {text[:40]!r} gave no tokens at all")
    return list(ids)


def post_instruction_tokens(model: TransformerBridge) -> list[int]:
    """The template's tokens after the user's text: where refusal directions are looked for.

    Found by rendering two different texts and keeping the common end, never hard-coded.
    """
    first, second = tokenize_prompts(model, ["How do rivers form?", "List three colours"])
    common: list[int] = []
    for a, b in zip(reversed(first), reversed(second), strict=False):
        if a != b:
            break
        common.append(a)
    return common[::-1]


def post_instruction_positions(model: TransformerBridge) -> tuple[int, ...]:
    """The places of :func:`post_instruction_tokens` as offsets from the end: (-5, ..., -1), say."""
    n = len(post_instruction_tokens(model))
    if not n:
        raise MechsafetyError(
            "this model's chat template puts no token after the user's text, so there is no post-instruction "
            "position: take the last prompt token alone (--positions last), or another --template"
        )
    return tuple(range(-n, 0))


def plan_batches(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Row numbers in batches of like length, longest first (so that memory runs out at once or never)."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad_left(
    sequences: Sequence[Sequence[int]], *, pad: int, rows: Sequence[int] | None = None
) -> TokenBatch:
    width = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence, dtype=torch.long)
        mask[row, width - len(sequence) :] = 1
    return TokenBatch(rows=tuple(rows if rows is not None else range(len(sequences))), ids=ids, mask=mask)


def batches(
    model: TransformerBridge, sequences: Sequence[Sequence[int]], *, batch_size: int
) -> Iterator[TokenBatch]:
    """Length-sorted, left-padded batches on the model's device."""
    pad = pad_token(model)
    device = device_of(model)
    for rows in plan_batches([len(s) for s in sequences], batch_size=batch_size):
        yield pad_left([sequences[row] for row in rows], pad=pad, rows=rows).to(device)


def pad_token(model: TransformerBridge) -> int:
    token: Any = model.tokenizer.pad_token_id
    if token is None:
        token = model.tokenizer.eos_token_id
    return 0 if token is None else int(token)


def device_of(model: TransformerBridge) -> torch.device:
    return next(model.parameters()).device


def last_columns(mask: Int[Tensor, "row token"]) -> Int[Tensor, " row"]:
    """The column of each row's last real token, on whichever side it is padded."""
    width = mask.shape[-1]
    return width - 1 - mask.flip(-1).argmax(-1)
