"""The data that scores are computed on: a model's own refusals of harmful prompts, its own answers to harmless ones."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answered import Completion
from mechsafety.generation.answers import Example
from mechsafety.generation.completions import DEFAULT_BATCH, generate
from mechsafety.models.thought_reading import require_no_thoughts
from mechsafety.prompts.columns import PromptLabel
from mechsafety.prompts.prompt_set import Prompt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Kind = Literal["safety", "utility"]
Response = Literal["full", "short"]
Keep = Callable[[Sequence[Completion]], set[str]]
"""Which completions count, by id: refusals for ``safety``, real answers for ``utility``."""

_LABELS: dict[str, PromptLabel] = {"safety": "harmful", "utility": "harmless"}
_LEAST_DRAW = 8


def attribution_examples(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    *,
    kind: Kind,
    response: Response,
    n: int,
    max_new_tokens: int,
    seed: int,
    keep: Keep,
    batch_size: int = DEFAULT_BATCH,
) -> list[Example]:
    """``n`` prompts with the model's own greedy answers, of those that ``keep`` accepts.

    ``safety`` takes harmful prompts and wants refusals kept, ``utility`` harmless ones and answers. ``seed`` orders
    the prompts; they are answered in turn until ``n`` are kept. ``full`` keeps the whole answer, ``short`` the first
    sentence of a refusal, the judgement alone (Wei et al. 2024, section 4.1). Only a whole answer ends its turn.

    Raises :class:`MechsafetyError` for fewer than ``n`` that are kept (with the counts), and for ``short`` answers
    to harmless prompts, whose first sentence is no answer.
    """
    for what, value, allowed in (("kind", kind, Kind), ("response", response, Response)):
        if value not in get_args(allowed):
            raise MechsafetyError(f"{what} {value!r} is not one of {', '.join(get_args(allowed))}")
    if kind == "utility" and response == "short":
        raise MechsafetyError(
            "short is the judgement of a refusal; answers to harmless prompts are taken full"
        )
    if n < 1:
        raise MechsafetyError(f"n is {n}; 1 example at least")
    pool = [p for p in prompts if p.label == _LABELS[kind]]
    if len(pool) < n:
        raise MechsafetyError(
            f"{n} {kind} examples need as many {_LABELS[kind]} prompts; there are {len(pool)}"
        )
    require_no_thoughts(model, "attribution by the model's own answers")
    random.Random(seed).shuffle(pool)
    kept: list[Completion] = []
    asked = 0
    while len(kept) < n and asked < len(pool):
        draw = pool[asked : asked + max(n - len(kept), _LEAST_DRAW)]
        asked += len(draw)
        done = generate(
            model,
            draw,
            max_new_tokens=max_new_tokens,
            seed=seed,
            batch_size=batch_size,
            label=f"{kind} examples",
        )
        accepted = keep(done)
        kept += [c for c in done if c.id in accepted and c.text.strip()]
    if len(kept) < n:
        wanted = "refused" if kind == "safety" else "answered"
        raise MechsafetyError(
            f"only {len(kept)} of {asked} {_LABELS[kind]} prompts were {wanted}, and {n} {kind} examples are wanted: "
            "ask for fewer, or give more prompts"
        )
    return [example_of(completion, response=response) for completion in kept[:n]]


def example_of(completion: Completion, *, response: Response) -> Example:
    """A completion as a pair of prompt and answer."""
    ended = completion.finish == "stop"
    if response == "full":
        return Example(prompt=completion.asked, answer=completion.text, whole=ended)
    short = first_sentence(completion.text)
    return Example(prompt=completion.asked, answer=short, whole=ended and short == completion.text.strip())


# Words whose full stop ends no sentence. "no." and "etc." do end sentences.
_ABBREVIATIONS = frozenset(
    (
        *(
            "mr",
            "mrs",
            "ms",
            "dr",
            "prof",
            "sr",
            "jr",
            "st",
            "vs",
            "e.g",
            "i.e",
            "cf",
            "fig",
            "approx",
            "dept",
        ),
        *("est", "inc", "ltd", "co", "corp", "u.s", "u.k", "u.n", "a.m", "p.m"),
    )
)
# Marks, then closing quotes and brackets, then a blank or the end; the East Asian marks need no blank.
_END = re.compile(r"[.!?]+[\"'”’)\]*]*(?=\s|\Z)|[。！？]+[」』”）]*|(?=\n)")
_INITIAL = re.compile(r"(?:[^\W\d_]\.)*[A-HJ-Z]")


def first_sentence(text: str) -> str:
    """``text`` up to the end of its first sentence or line, without blanks around it.

    Abbreviations, initials, list numbers, decimals and dots of omission end no sentence.
    """
    text = text.strip()
    for match in _END.finditer(text):
        if _ends(text[: match.start()], match.group()):
            return text[: match.end()].rstrip()
    return text


def _ends(before: str, mark: str) -> bool:
    if mark.startswith(".."):
        return False
    if not mark.startswith("."):
        return True
    line = before.rpartition("\n")[2].split()
    word = line[-1].lstrip("(\"'“‘[*") if line else ""
    if len(line) == 1 and word.isdigit():
        return False
    return word.lower() not in _ABBREVIATIONS and not _INITIAL.fullmatch(word)
