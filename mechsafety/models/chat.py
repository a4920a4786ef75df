"""From prompts to token batches: chat rendering, length-sorted batches, named positions.

The one place that knows how text becomes a model's tokens; :mod:`rendering` knows it of a tokenizer alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mechsafety.core.days import today
from mechsafety.core.errors import MechsafetyError, first_lines, way
from mechsafety.models import rendering
from mechsafety.models.chat_settings import TemplateInput, chat_of, template_input
from mechsafety.models.loading import embedding_rows
from mechsafety.models.rendering import SYSTEM_ROLES

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Message = Mapping[str, str]
Asked = str | Sequence[Message]
"""What a model is asked: the text of one turn, or a conversation that ends with the user's turn."""
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


# -- the tokenizer and the day ------------------------------------------------------------------------


def own_tokenizer(model: TransformerBridge) -> Any:
    """The checkpoint's own tokenizer, which renders and tokenizes everything that ``model`` is given.

    It is that of a model from :func:`load_model`; in one that the user booted, TransformerLens has changed the
    tokenizer, and what is known of its changes is undone. Raises :class:`MechsafetyError` where there is none.
    """
    source: Any = model.tokenizer
    if source is None:
        raise MechsafetyError(
            f"this {type(model).__name__} has no tokenizer, so that text cannot be turned into tokens: give it one, "
            f"{_how_to_give_one(model)}, or load the model with load_model()"
        )
    if source is model.__dict__.get("_mechsafety_tokenizer"):
        return source
    state = (id(source), str(source.chat_template), str(source.special_tokens_map))
    made = model.__dict__.get("_mechsafety_unaltered")
    if made is None or made[0] != state:
        made = model.__dict__["_mechsafety_unaltered"] = (state, rendering.unaltered(source))
    return made[1]


def _how_to_give_one(model: Any) -> str:
    # A bridge has no method for it.
    return (
        "model.set_tokenizer(tokenizer)" if hasattr(model, "set_tokenizer") else "model.tokenizer = tokenizer"
    )


def day_of(model: TransformerBridge) -> str:
    """The day that templates with a date are rendered for: the one the model was loaded with, else its first use's."""
    return model.__dict__.setdefault("_mechsafety_day", today())


def written_day(model: TransformerBridge) -> str | None:
    """The day that the chat template writes; None where it writes none."""
    return (
        day_of(model) if rendering.writes_the_day(_chat_tokenizer(model), given_to_template(model)) else None
    )


def render_chat(
    model: TransformerBridge,
    messages: Sequence[Message],
    *,
    answer_next: bool = True,
    last_turn_open: bool = False,
) -> str:
    """``messages`` in the model's own chat template, ready for its answer, or with the last turn left open.

    The model's chat settings apply (:func:`mechsafety.models.chat_settings.chat_of`): the answer prefix is the end of
    what is ready for the answer. Raises :class:`MechsafetyError` for a model that the user brings without a tokenizer
    or a chat template.
    """
    return rendering.rendered(
        _chat_tokenizer(model),
        messages,
        day=day_of(model),
        answer_next=answer_next,
        last_turn_open=last_turn_open,
        given=given_to_template(model),
    )


def answer_prefix(model: TransformerBridge) -> str:
    """The text that every answer in the model's chat template begins with, by its chat settings."""
    return chat_of(model).answer_prefix or ""


def without_prefix(model: TransformerBridge, answer: str) -> str:
    """What follows the answer prefix, which a rendered prompt ends with, in an answer."""
    return answer.removeprefix(answer_prefix(model))


def given_to_template(model: TransformerBridge) -> TemplateInput:
    """What the model's template gets beside the messages."""
    return template_input(chat_of(model), _chat_tokenizer(model), day=day_of(model))


def _chat_tokenizer(model: TransformerBridge) -> Any:
    tokenizer = own_tokenizer(model)
    if getattr(tokenizer, "chat_template", None) is None:
        raise MechsafetyError(
            f"the tokenizer of this {type(model).__name__} has no chat template (TransformerLens may have loaded it "
            "anew, without one): set model.tokenizer.chat_template to a Jinja template, "
            "mechsafety.models.rendering.PLAIN_TEMPLATE being a simple question-and-answer form"
        )
    return tokenizer


# -- text to tokens -----------------------------------------------------------------------------------


def tokenize_text(model: TransformerBridge, text: str) -> list[int]:
    """Token ids of a rendered chat; nothing is added to what the template writes, the plain one being bare text."""
    ids = rendering.chat_tokens(own_tokenizer(model), text)
    if not ids:
        raise MechsafetyError("a prompt gave no tokens at all: is the chat template empty?")
    return _embedded(model, ids)


def tokenize_piece(model: TransformerBridge, text: str) -> list[int]:
    """Token ids of text that stands behind or within other text: a word of an answer."""
    return _embedded(model, rendering.inner_tokens(own_tokenizer(model), text))


def tokenize_answer(model: TransformerBridge, text: str) -> list[int]:
    """Token ids of ``text`` as the model writes it at the beginning of its answer.

    Some tokenizers put a blank before every text (SentencePiece), and none where the text goes on from what the chat
    template writes: there the tokens are those behind it. A blank that the template itself writes before answers
    (``[/INST] Sure``) is taken where it makes one token with the first word.
    """
    tokenizer = own_tokenizer(model)
    if not text or getattr(tokenizer, "chat_template", None) is None:
        return tokenize_piece(model, text)
    before = render_chat(model, rendering.HELLO)
    blank = "" if text[0].isspace() else _blank_before_answers(model, before)
    puts_a_blank = rendering.puts_a_blank(tokenizer)
    if not blank and not puts_a_blank:
        return tokenize_piece(model, text)
    ids, first = tokenize_text(model, before + blank + text), tokenize_text(model, before)
    found = ids[len(first) :] if ids[: len(first)] == first else tokenize_piece(model, blank + text)
    alone = not puts_a_blank and str(tokenizer.decode(found[:1])).isspace()
    return tokenize_piece(model, text) if alone else found


def _blank_before_answers(model: TransformerBridge, before: str) -> str:
    """What blank space the chat template writes between the text that is ready for an answer and the answer."""
    said, template = "Sandstone", own_tokenizer(model).get_chat_template()
    known: dict[tuple[str, str], str] = model.__dict__.setdefault("_mechsafety_blanks", {})
    if (before, template) not in known:
        answer = {"role": "assistant", "content": said}
        try:
            whole = render_chat(model, [*rendering.HELLO, answer], answer_next=False)
        except Exception:  # templates raise errors of their own making
            whole = ""
        blank = whole.removeprefix(before).partition(said)[0]
        known[before, template] = blank if whole.startswith(before) and blank.isspace() else ""
    return known[before, template]


def _embedded(model: TransformerBridge, ids: list[int]) -> list[int]:
    """``ids``, each of which has a row in the embedding: placeholders of other modalities may have none."""
    rows = embedding_rows(model)
    without = next((i for i in ids if rows is not None and i >= rows), None)
    if without is None:
        return ids
    raise MechsafetyError(
        f"a text holds {own_tokenizer(model).convert_ids_to_tokens(without)!r}, a token for which the model's "
        f"embedding of {rows} rows has none: leave it out of the text"
    )


def tokenize_prompts(
    model: TransformerBridge, asked: Sequence[Asked], *, rendering: Rendering = "chat"
) -> list[list[int]]:
    """Each text as a user turn, or each conversation, in the model's own chat template, or as ``rendering`` asks.

    As bare text a conversation is its messages with an empty line between them. Inside :func:`after_thoughts` the
    model's thought about a prompt stands behind it.
    """
    if rendering == "text":
        return [_tokenized_bare(model, "\n\n".join(m["content"] for m in as_turns(one))) for one in asked]
    found = [tokenize_text(model, render_turn(model, one, rendering=rendering)) for one in asked]
    thoughts = model.__dict__.get("_mechsafety_thoughts")
    return [[*ids, *thoughts.get(tuple(ids), ())] for ids in found] if thoughts else found


@contextmanager
def after_thoughts(
    model: TransformerBridge, thoughts: Mapping[tuple[int, ...], Sequence[int]]
) -> Iterator[None]:
    """For as long as the block runs, prompts are read with the tokens of ``thoughts``, by theirs, behind them."""
    before = model.__dict__.get("_mechsafety_thoughts")
    read_behind(model, thoughts)
    try:
        yield
    finally:
        model.__dict__["_mechsafety_thoughts"] = before


def read_behind(model: TransformerBridge, thoughts: Mapping[tuple[int, ...], Sequence[int]]) -> None:
    """:func:`after_thoughts` for good, on a model that is loaded for that."""
    model.__dict__["_mechsafety_thoughts"] = dict(thoughts)


def as_turns(asked: Asked) -> list[Message]:
    """A text as a user's turn; a conversation as it is."""
    return [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)


def render_turn(
    model: TransformerBridge, asked: Asked, *, rendering: Literal["chat", "chat_no_system"]
) -> str:
    """One user turn, or a conversation, ready for the answer.

    Without the system prompt it is what the template makes of later turns, where it puts none: the rest of a
    rendered dialogue behind its first question and answer. Raises :class:`MechsafetyError` where a template renders
    the first turn otherwise when a second one follows, and for an order of roles that it refuses.
    """
    turns = as_turns(asked)
    if rendering == "chat":
        return _taken(model, turns)
    turns = [turn for turn in turns if turn["role"] not in SYSTEM_ROLES]
    earlier = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]
    before = render_chat(model, earlier, answer_next=False)
    whole = _taken(model, [*earlier, *turns])
    if not whole.startswith(before):
        raise MechsafetyError(
            "this model's chat template writes earlier turns in another way once a new one follows, so that its "
            "system prompt cannot be left out: use the rendering 'chat'"
        )
    start = own_tokenizer(model).bos_token or ""
    rest = whole[len(before) :]
    return rest if rest.startswith(start) or not whole.startswith(start) else start + rest


def _taken(model: TransformerBridge, turns: Sequence[Message]) -> str:
    try:
        return render_chat(model, turns)
    except MechsafetyError:
        raise
    except Exception as error:  # templates raise errors of their own making
        raise MechsafetyError(
            f"the model's chat template does not take this conversation ({', '.join(t['role'] for t in turns)}): "
            f"{first_lines(error)}"
        ) from None


def _tokenized_bare(model: TransformerBridge, text: str) -> list[int]:
    ids = rendering.bare_tokens(own_tokenizer(model), text)
    if not ids:
        raise MechsafetyError(f"the text {text[:40]!r} gave no tokens at all")
    return _embedded(model, ids)


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
    """The places of :func:`post_instruction_tokens` as offsets from the end: for example (-5, ..., -1)."""
    n = len(post_instruction_tokens(model))
    if not n:
        raise MechsafetyError(
            "this model's chat template puts no token after the user's text, so there is no post-instruction "
            f"position: take the last prompt token alone ({way('--positions last', 'positions=-1')}), or another "
            f"{way('--template')}"
        )
    return tuple(range(-n, 0))


POSITION_NAMES = ("last", "post_instruction")


def named_positions(model: TransformerBridge, positions: Sequence[int] | str) -> tuple[int, ...]:
    """Positions as offsets from the end of a rendered prompt; ``last`` and ``post_instruction`` are names of some.

    Raises :class:`MechsafetyError` for another name.
    """
    if not isinstance(positions, str):
        if twice := [place for place in positions if list(positions).count(place) > 1]:
            raise MechsafetyError(f"position {twice[0]} is named twice: each is read once")
        return tuple(positions)
    if positions not in POSITION_NAMES:
        raise MechsafetyError(
            f"position {positions!r} is not one of {', '.join(POSITION_NAMES)}, nor an offset from the end (-1)"
        )
    return (-1,) if positions == "last" else post_instruction_positions(model)


def plan_batches(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Row numbers in batches of like length, longest first (so that memory runs out at once or never)."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad_left(
    sequences: Sequence[Sequence[int]],
    *,
    pad: int,
    rows: Sequence[int] | None = None,
    width: int | None = None,
) -> TokenBatch:
    """Rows of one width, by default that of the longest, with ``pad`` before their tokens."""
    width = width or max(len(s) for s in sequences)
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
    """The token that fills rows; any will do where there is no tokenizer, because the mask leaves it out."""
    if model.tokenizer is None:
        return 0
    tokenizer = own_tokenizer(model)
    token: Any = tokenizer.pad_token_id
    if token is None:
        token = tokenizer.eos_token_id
    return 0 if token is None else int(token)


def device_of(model: TransformerBridge) -> torch.device:
    return next(model.parameters()).device


def last_columns(mask: Int[Tensor, "row token"]) -> Int[Tensor, " row"]:
    """The column of each row's last real token, on whichever side it is padded."""
    width = mask.shape[-1]
    return width - 1 - mask.flip(-1).argmax(-1)
