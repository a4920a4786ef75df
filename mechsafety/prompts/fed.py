"""What a model is fed of a prompt set: prompts that fit in its window, as it reads them.

A prompt that is too long is an error, unless it is asked for that prompts are cut; control tokens in a prompt are
counted, and broken where that is asked for. Both change the prompts before they enter an experiment, so that all that
follows sees the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.models.chat import Rendering, own_tokenizer, render_turn, tokenize_prompts
from mechsafety.models.chat_settings import ChatSettings
from mechsafety.models.loading import load_reader, window
from mechsafety.models.rendering import broken, control_tokens, exact_tokens, holding_control_tokens
from mechsafety.models.room import MORE_ROOM, require_room
from mechsafety.models.thought_reading import thought_budget
from mechsafety.prompts.prompt_set import Prompt, PromptSet

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Prompts = TypeVar("Prompts", bound=Sequence[Prompt])


@dataclass(frozen=True, kw_only=True)
class Fed:
    """Prompts as they enter an experiment. ``cut`` and ``control`` are the ids of those that were cut to fit in the
    window, and of those whose text holds control tokens of the model."""

    prompts: PromptSet
    cut: tuple[str, ...]
    control: tuple[str, ...]


def fed(
    model: TransformerBridge,
    prompts: PromptSet,
    *,
    new_tokens: int,
    truncate: bool | None = None,
    escape: bool = False,
) -> Fed:
    """``prompts`` with control tokens broken and long texts cut, where that is asked for.

    Raises :class:`MechsafetyError` where a prompt and ``new_tokens`` more do not fit in the model's window.
    """
    tokenizer = own_tokenizer(model)
    control = tuple(p.id for p in prompts if any(holding_control_tokens(tokenizer, p.contents)))
    if escape:
        marks = control_tokens(tokenizer)
        unmarked = {
            p.id: p.with_contents([broken(c, marks) for c in p.contents]) for p in prompts if p.id in control
        }
        prompts = _with_changed(prompts, unmarked)
    cut: tuple[str, ...] = ()
    if truncate:
        prompts, cut = truncated(model, prompts, new_tokens=new_tokens)
    fitting(model, prompts, new_tokens=new_tokens, truncate=None if truncate is None else False)
    return Fed(prompts=prompts, cut=cut, control=control)


def require_all_fit(
    specs: Iterable[str],
    parts: Iterable[tuple[PromptSet, int]],
    *,
    template: str | None,
    date: str,
    chat: ChatSettings | None = None,
    truncate: bool | None = None,
    escape: bool = False,
) -> None:
    """Before any weights are loaded: all prompts, with so many new tokens, fit in the window of every system.

    Raises :class:`MechsafetyError` that names the first system that a prompt is too long for.
    """
    parts = list(parts)
    for spec in specs:
        reader = load_reader(spec, template=template, date=date, chat=chat)
        try:
            for prompts, new_tokens in parts:
                fed(reader, prompts, new_tokens=new_tokens, truncate=truncate, escape=escape)
        except MechsafetyError as error:
            raise MechsafetyError(f"{spec}: {error}") from None


def fed_record(model: TransformerBridge, parts: Iterable[Fed], *, escaped: bool) -> dict[str, Any]:
    """For a run's manifest: the first prompt of each label as the model reads it, and what was done to prompts."""
    parts = list(parts)
    cut = [i for part in parts for i in part.cut]
    control = [i for part in parts for i in part.control]
    return {
        "rendered": rendered_examples(model, [p for part in parts for p in part.prompts]),
        "truncated_prompts": {"n": len(cut), "ids": cut},
        "control_tokens": {
            "n_prompts": len(control),
            "first": control[0] if control else None,
            "escaped": escaped,
        },
    }


def rendered_examples(model: TransformerBridge, prompts: Iterable[Prompt]) -> dict[str, str]:
    """The first prompt of each label, as the model reads it: in its chat template."""
    first: dict[str, str] = {}
    for prompt in prompts:
        if prompt.label not in first:
            first[prompt.label] = render_turn(model, prompt.asked, rendering="chat")
    return first


def fitting(
    model: TransformerBridge,
    prompts: Prompts,
    *,
    new_tokens: int = 0,
    truncate: bool | None = None,
    rendering: Rendering = "chat",
) -> tuple[Prompts, list[list[int]]]:
    """Prompts and their tokens, which with ``new_tokens`` more fit in the model's window, and what is thought before.

    Raises :class:`MechsafetyError` where one does not, unless ``truncate`` asks that it be cut; None where the
    caller has no such option, which the error then does not offer.
    """
    if truncate:
        prompts, _ = truncated(model, prompts, new_tokens=new_tokens, rendering=rendering)
    sequences = _tokenized(model, prompts, rendering)
    mend = (
        MORE_ROOM
        if truncate is None
        else f"cut them with {way('--truncate-prompts', 'truncate_prompts=True')}"
    )
    room = _with_thought(model, new_tokens)
    require_room(model, sequences, [p.id for p in prompts], new_tokens=room, mend=mend)
    return prompts, sequences


def _tokenized(model: TransformerBridge, prompts: Iterable[Prompt], rendering: Rendering) -> list[list[int]]:
    found: list[list[int]] = []
    for prompt in prompts:
        try:
            found += tokenize_prompts(model, [prompt.asked], rendering=rendering)
        except MechsafetyError as error:
            raise MechsafetyError(f"prompt {prompt.id!r}: {error}") if prompt.messages else error from None
    return found


def truncated(
    model: TransformerBridge, prompts: Prompts, *, new_tokens: int, rendering: Rendering = "chat"
) -> tuple[Prompts, tuple[str, ...]]:
    """Prompts whose texts end early enough that they and ``new_tokens`` more fit, and the ids of those that were cut.

    A text loses whole tokens at its end, of a conversation the longest ones first; the template stays whole.
    """
    most, new_tokens = window(model), _with_thought(model, new_tokens)
    if most is None:
        return prompts, ()
    sequences = _tokenized(model, prompts, rendering)
    long = {
        p.id: _cut(model, p, most - new_tokens, rendering)
        for p, tokens in zip(prompts, sequences, strict=True)
        if len(tokens) + new_tokens > most
    }
    return _with_changed(prompts, long), tuple(long)


def _with_thought(model: TransformerBridge, new_tokens: int) -> int:
    """So many tokens of answer, and those of a thought before it."""
    return new_tokens + thought_budget(model) if new_tokens else 0


def _cut(model: TransformerBridge, prompt: Prompt, room: int, rendering: Rendering) -> Prompt:
    """The prompt with the longest beginnings of its texts, of as many whole tokens each, that take at most ``room``."""
    texts = [_beginnings(own_tokenizer(model), text) for text in prompt.contents]

    def begin(n: int) -> Prompt:
        return prompt.with_contents(
            [first(min(n, n_tokens)) if n_tokens else "" for first, n_tokens in texts]
        )

    def fits(n: int) -> bool:
        return len(tokenize_prompts(model, [begin(n).asked], rendering=rendering)[0]) <= room

    low, high = 0, max(n_tokens for _, n_tokens in texts)  # so many tokens fit, so many do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if not low:
        raise MechsafetyError(
            f"prompt {prompt.id!r} cannot be cut to fit: the template alone takes more than the {room} tokens that the "
            "model's window leaves it; ask for fewer new tokens"
        )
    return begin(low)


def _beginnings(tokenizer: Any, text: str) -> tuple[Callable[[int], str], int]:
    """A function that gives the first n tokens of ``text`` as text, and how many tokens there are."""
    if not tokenizer.is_fast:
        ids = exact_tokens(tokenizer, text)
        return lambda n: str(tokenizer.decode(ids[:n])), len(ids)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return lambda n: text[: spans[n - 1][1]], len(spans)


def _with_changed(prompts: Prompts, changed: Mapping[str, Prompt]) -> Prompts:
    found = tuple(changed.get(p.id, p) for p in prompts)
    if isinstance(prompts, PromptSet):
        return cast("Prompts", PromptSet(found, prompts.name))
    return cast("Prompts", list(found))
