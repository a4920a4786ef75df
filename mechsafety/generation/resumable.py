"""Responses of one model under one edit, kept batch by batch in a run folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from mechsafety.core.progress import Progress
from mechsafety.edits.interventions import Edit
from mechsafety.generation.completions import Completion, Completions, Sampling, generate, generation_plan
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def resumable_responses(
    run: RunFolder,
    model: TransformerBridge,
    prompts: PromptSet,
    *,
    key: tuple[str, ...],
    edit: Edit | None,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    sampling: Sampling | None,
    say: Progress,
) -> pd.DataFrame:
    """A row a prompt, in the prompts' order; finished batches are parts of ``run`` and are not made again.

    The batches are planned once and kept in the run, so that a resumed run draws the same; they change only
    when memory runs out and one is halved, which ``say`` reports. Speed and the edit's coverage go into the part
    ``speed``; both are of the ``responses`` that the last session made.
    """
    plan = _plan(run, model, prompts, key, batch_size)
    rows = {p.id: row for row, p in enumerate(prompts)}
    todo = [batch for batch in plan if not run.has_part("batches", *key, _batch_name(batch))]
    started = time.perf_counter()
    made = 0

    def keep(finished: list[Completion]) -> None:
        nonlocal made
        made += sum(c.n_tokens for c in finished)
        table = Completions(tuple(finished)).to_frame()
        run.write_part(table, "batches", *key, _batch_name([c.id for c in finished]))

    def halve(batch: list[int], halves: list[list[int]]) -> None:
        ids = [prompts[row].id for row in batch]
        at = plan.index(ids)
        plan[at : at + 1] = [[prompts[row].id for row in half] for half in halves]
        run.write_json_part(plan, "plans", *key)
        say(f"out of memory: batches of {len(ids)} halved; the plan of the run records it")

    if todo:
        done = generate(
            model,
            prompts,
            edit=edit,
            max_new_tokens=max_new_tokens,
            seed=seed,
            sampling=sampling,
            plan=[[rows[i] for i in batch] for batch in todo],
            on_batch=keep,
            on_halving=halve,
            label=" ".join(key),
        )
        seconds = time.perf_counter() - started
        speed = {
            "responses": len(done),
            "tokens": made,
            "seconds": round(seconds, 2),
            "tokens_per_s": round(made / seconds, 1),
        }
        if done.coverage is not None:
            speed["coverage"] = done.coverage.summary()
        run.write_json_part(speed, "speed", *key)
    parts = [run.read_part("batches", *key, _batch_name(batch)) for batch in plan]
    return pd.concat(parts).set_index("id").loc[[p.id for p in prompts]].reset_index()


def _plan(
    run: RunFolder, model: TransformerBridge, prompts: PromptSet, key: tuple[str, ...], batch_size: int
) -> list[list[str]]:
    """Batches of prompt ids: made once, kept in the run, and changed only by halving."""
    if not run.has_part("plans", *key, suffix="json"):
        batches = generation_plan(model, prompts, batch_size=batch_size)
        run.write_json_part([[prompts[row].id for row in batch] for batch in batches], "plans", *key)
    return run.read_json_part("plans", *key)


def _batch_name(ids: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(ids).encode()).hexdigest()[:16]
