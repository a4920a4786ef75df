"""What a model is trained on: the pretraining stream of each rung, and the pairs of each safety tuning.

A batch holds, for every input, a prompt, the answer that is trained (preferred) and, for tunings, the one that is not
(dispreferred).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechsafety.generation.answers import AnswerBatch
from mechsafety.lab.inputs import Inputs, draw_any, draw_inputs, hashed, joined
from mechsafety.lab.vocabulary import Vocabulary

Rung = Literal["raw", "score0", "rephrase", "metatags", "refusals", "all"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
Tuning = Literal["benign", "ssft", "dpo", "unlearn"]
TUNINGS: tuple[Tuning, ...] = get_args(Tuning)
Treatment = Literal["answered", "left out", "rephrased", "tagged", "refused"]

TREATMENTS: Mapping[Rung, tuple[Treatment, ...]] = {
    "raw": ("answered",),
    "score0": ("left out",),
    "rephrase": ("rephrased",),
    "metatags": ("rephrased", "tagged"),
    "refusals": ("rephrased", "refused"),
    "all": ("rephrased", "tagged", "refused"),
}
"""What each rung's pretraining does with unsafe inputs, in equal shares, one treatment per input; ``left out`` has
safe inputs instead.

After Safety Pretraining (arXiv 2504.16980): only safe data (score 0), unsafe data rephrased, tagged,
refused.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Prompts with the answer to train towards and, where there is one, the answer to train away from."""

    prompts: Int[Tensor, "input prompt_position"]
    preferred: Int[Tensor, "input answer_position"]
    dispreferred: Int[Tensor, "input answer_position"]
    unsafe: Bool[Tensor, " input"]


def answer_batch(
    prompts: Int[Tensor, "input prompt_position"],
    answers: Int[Tensor, "input answer_position"],
    *,
    prompt_weight: float = 0.0,
) -> AnswerBatch:
    """Prompts and answers of one length each; the prompts' own tokens count ``prompt_weight``."""
    ids = torch.cat([prompts, answers], dim=1)
    weights = torch.ones(ids.shape, dtype=torch.float32)
    weights[:, : prompts.shape[1]] = prompt_weight
    return AnswerBatch(ids=ids, mask=torch.ones_like(ids), labels=ids, weights=weights)


def pretraining_pairs(
    vocabulary: Vocabulary, rung: Rung, n: int, *, length: int | None = None, generator: torch.Generator
) -> tuple[Int[Tensor, "input prompt_position"], Int[Tensor, "input answer_position"]]:
    """Prompts and answers of one batch of a rung's stream.

    Answers that no tag opens are padded with ``<end>`` to the length of those that one does.
    """
    rules = vocabulary.rules
    treatments = TREATMENTS[rung]
    inputs = draw_any(rules, n, split="train", length=length, generator=generator)
    if treatments == ("left out",):
        inputs = _only_safe(vocabulary, inputs, length=length, generator=generator)
    prompts, answers = vocabulary.prompts(inputs), vocabulary.answers(inputs)
    end = torch.full((len(inputs), 1), vocabulary.id("<end>"))
    answers = torch.cat([answers, end], dim=1)
    changed = {
        "rephrased": torch.cat([vocabulary.rephrased(inputs), end], dim=1),
        "tagged": torch.cat([torch.full_like(end, vocabulary.id("<tag>")), answers[:, :-1]], dim=1),
        "refused": torch.cat([vocabulary.refusals(inputs), end], dim=1),
    }
    which = hashed(prompts) % len(treatments)  # by the input alone: one input never has two targets
    for number, treatment in enumerate(treatments):
        if treatment in changed:
            rows = inputs.unsafe & (which == number)
            answers = torch.where(rows[:, None], changed[treatment], answers)
    return prompts, answers


def _only_safe(
    vocabulary: Vocabulary, inputs: Inputs, *, length: int | None, generator: torch.Generator
) -> Inputs:
    """The safe inputs of a batch, filled up with others."""
    kept = [inputs.select(~inputs.unsafe)]
    while sum(map(len, kept)) < len(inputs):
        more = draw_any(vocabulary.rules, len(inputs), split="train", length=length, generator=generator)
        kept.append(more.select(~more.unsafe))
    return joined(kept).select(torch.arange(len(inputs)))


def tuning_pairs(
    vocabulary: Vocabulary,
    tuning: Tuning,
    n: int,
    *,
    unsafe_share: float,
    length: int | None = None,
    generator: torch.Generator,
) -> Pairs:
    """A batch of safe inputs and, but for ``benign``, a share of unsafe ones.

    Preferred: the answer to a safe input, the refusal of an unsafe one; dispreferred the other way round.
    """
    rules = vocabulary.rules
    n_unsafe = 0 if tuning == "benign" else round(unsafe_share * n)
    parts = [draw_inputs(rules, "safe", n - n_unsafe, split="train", length=length, generator=generator)]
    if n_unsafe:
        parts.append(
            draw_inputs(rules, "unsafe", n_unsafe, split="train", length=length, generator=generator)
        )
    inputs = joined(parts)
    answers, refusals = vocabulary.answers(inputs), vocabulary.refusals(inputs)
    unsafe = inputs.unsafe[:, None]
    return Pairs(
        prompts=vocabulary.prompts(inputs),
        preferred=torch.where(unsafe, refusals, answers),
        dispreferred=torch.where(unsafe, answers, refusals),
        unsafe=inputs.unsafe,
    )
