"""Answers under several edits, which share batches: a batch of many rows costs far less than many batches of few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Edit, SideBySide
from mechsafety.generation.answered import Completion, Completions
from mechsafety.generation.completions import DEFAULT_BATCH, Batch, generate, generation_plan, out_of_memory
from mechsafety.prompts.prompt_set import Prompt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OnBatches = Callable[[list[list[Completion]]], None]
"""Receives the answers of a finished batch under each edit."""


def generate_under_each(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    edits: Sequence[Edit],
    *,
    batch_size: int = DEFAULT_BATCH,
    plan: Sequence[Batch] | None = None,
    on_batch: OnBatches | None = None,
    on_halving: Callable[[Batch, list[Batch]], None] | None = None,
    **settings: Any,
) -> list[Completions]:
    """Greedy answers to each prompt under each of ``edits``; in float32 the tokens of :func:`generate` under one alone.

    ``plan`` holds rows of ``prompts``; by default a batch has ``batch_size`` answers, under all edits together. Where
    memory runs out for one prompt under all edits, the rest is answered one by one. Other settings and errors are those
    of :func:`generate`; raises :class:`MechsafetyError` too where two prompts have one id.
    """
    n, k = len(prompts), len(edits)
    if len(numbers := {prompt.id: row for row, prompt in enumerate(prompts)}) < n:
        raise MechsafetyError("prompts that are answered under several edits need distinct ids")
    if plan is None:
        plan = generation_plan(model, prompts, batch_size=max(1, batch_size // k))
    left = [list(batch) for batch in plan]
    done: dict[int, tuple[Completion, ...]] = {}

    def keep(groups: list[list[Completion]]) -> None:
        rows = [numbers[answer.id] for answer in groups[0]]
        done.update(zip(rows, zip(*groups, strict=True), strict=True))
        left.remove(rows)
        if on_batch is not None:
            on_batch(groups)

    def halve(rows: Batch, halves: list[Batch]) -> None:
        batch, parts = rows[: len(rows) // k], [half[: len(half) // k] for half in halves]
        at = left.index(batch)
        left[at : at + 1] = parts
        if on_halving is not None:
            on_halving(batch, parts)

    coverage = None
    try:
        coverage = generate(
            model,
            [*prompts] * k,
            edit=SideBySide(tuple(edits)),
            plan=[[group * n + row for group in range(k) for row in batch] for batch in plan],
            on_batch=lambda answers: keep(_in_groups(answers, k)),
            on_halving=halve,
            **settings,
        ).coverage
    except (MemoryError, RuntimeError) as error:
        if k == 1 or not out_of_memory(error):
            raise
        for batch in [*left]:
            some = [prompts[row] for row in batch]
            keep([list(generate(model, some, edit=edit, batch_size=1, **settings)) for edit in edits])
    return [Completions(tuple(done[row][group] for row in sorted(done)), coverage) for group in range(k)]


def _in_groups(answers: Sequence[Completion], k: int) -> list[list[Completion]]:
    size = len(answers) // k
    return [list(answers[group * size : (group + 1) * size]) for group in range(k)]
