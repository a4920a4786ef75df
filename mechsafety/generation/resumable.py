"""Responses of one model under one edit, kept batch by batch in a run folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.progress import Progress
from mechsafety.edits.interventions import Edit
from mechsafety.engines.tasks import Batch, Name, Task
from mechsafety.generation.answered import Completion, Completions
from mechsafety.generation.completions import Sampling, generate, generation_plan
from mechsafety.generation.served import Agreed
from mechsafety.generation.side_by_side import generate_under_each
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
    server: Agreed | None = None,
) -> pd.DataFrame:
    """A row a prompt, in the prompts' order; finished batches are parts of ``run`` and are not made again.

    The batches are planned once and kept in the run, so that a resumed run draws the same; they change only
    when memory runs out and one is halved, which ``say`` reports. Speed and the edit's coverage go into the part
    ``speed``; both are of the ``responses`` that the last session made.
    """

    def answer(batches: _Batches) -> Completions:
        return generate(
            model,
            prompts,
            edit=edit,
            max_new_tokens=max_new_tokens,
            seed=seed,
            sampling=sampling,
            plan=batches.todo(),
            on_batch=lambda answers: batches.keep([answers]),
            on_halving=batches.halve,
            label=" ".join(key),
            server=server,
        )

    return _resumed(run, model, prompts, key, batch_size, say, answer)


def resumable_under_each(
    run: RunFolder,
    model: TransformerBridge,
    prompts: PromptSet,
    *,
    key: tuple[str, ...],
    edits: Mapping[str, Edit],
    max_new_tokens: int,
    seed: int,
    batch_size: int,
    say: Progress,
) -> pd.DataFrame:
    """:func:`resumable_responses` under several edits, which share batches: a row an edit (``arm``) and prompt."""

    def answer(batches: _Batches) -> Completions:
        done = generate_under_each(
            model,
            prompts,
            list(edits.values()),
            max_new_tokens=max_new_tokens,
            seed=seed,
            plan=batches.todo(),
            on_batch=lambda groups: batches.keep(groups, arms=list(edits)),
            on_halving=batches.halve,
            label=" ".join(key),
        )
        return Completions(tuple(c for each in done for c in each), done[0].coverage)

    return _resumed(run, model, prompts, key, shared_size(batch_size, len(edits)), say, answer)


def shared_size(batch_size: int, n_edits: int) -> int:
    """How many prompts a batch has that answers under several edits share."""
    return max(1, batch_size // n_edits)


@dataclass(kw_only=True, eq=False)
class _Batches:
    """The plan of a run's batches, which is kept there with what is finished of it."""

    run: RunFolder
    prompts: PromptSet
    key: tuple[str, ...]
    plan: list[list[str]]
    say: Progress

    def todo(self) -> list[list[int]]:
        """Rows of the prompts in the batches that are missing."""
        rows = {p.id: row for row, p in enumerate(self.prompts)}
        return [[rows[i] for i in batch] for batch in self.plan if not self._there(batch)]

    def _there(self, batch: Sequence[str]) -> bool:
        return self.run.has_part("batches", *self.key, batch_name(batch))

    def keep(self, groups: Sequence[Sequence[Completion]], arms: Sequence[str] = ()) -> None:
        tables = [Completions(tuple(group)).to_frame() for group in groups]
        if arms:
            tables = [table.assign(arm=arm) for table, arm in zip(tables, arms, strict=True)]
        table = pd.concat(tables, ignore_index=True)
        self.run.write_part(table, "batches", *self.key, batch_name([c.id for c in groups[0]]))

    def halve(self, batch: list[int], halves: list[list[int]]) -> None:
        ids = [self.prompts[row].id for row in batch]
        at = self.plan.index(ids)
        self.plan[at : at + 1] = [[self.prompts[row].id for row in half] for half in halves]
        self.run.write_json_part(self.plan, "plans", *self.key)
        self.say(f"out of memory: batches of {len(ids)} halved; the plan of the run records it")

    def table(self) -> pd.DataFrame:
        """All finished batches, in the order of the prompts."""
        parts = [self.run.read_part("batches", *self.key, batch_name(batch)) for batch in self.plan]
        order = {p.id: row for row, p in enumerate(self.prompts)}
        return pd.concat(parts).sort_values(
            "id", key=lambda ids: ids.map(order), kind="stable", ignore_index=True
        )


def _resumed(
    run: RunFolder,
    model: TransformerBridge,
    prompts: PromptSet,
    key: tuple[str, ...],
    batch_size: int,
    say: Progress,
    answer: Callable[[_Batches], Completions],
) -> pd.DataFrame:
    plan = batch_plan(run, model, prompts, key, batch_size)
    batches = _Batches(run=run, prompts=prompts, key=key, plan=plan, say=say)
    if batches.todo():
        started = time.perf_counter()
        done = answer(batches)
        seconds = time.perf_counter() - started
        made = sum(c.n_tokens for c in done)
        speed = {
            "responses": len(done),
            "tokens": made,
            "thought_tokens": sum(c.n_thought_tokens for c in done),
            "seconds": round(seconds, 2),
            "tokens_per_s": _rate(made, seconds),
        }
        if done.coverage is not None:
            speed["coverage"] = done.coverage.summary()
        run.write_json_part(speed, "speed", *key)
    return batches.table()


def batch_plan(
    run: RunFolder, model: TransformerBridge, prompts: PromptSet, key: tuple[str, ...], batch_size: int
) -> list[list[str]]:
    """Batches of prompt ids, as the part ``plans``: made once, kept in the run, and changed only by halving."""
    if not run.has_part("plans", *key, suffix="json"):
        batches = generation_plan(model, prompts, batch_size=batch_size)
        run.write_json_part([[prompts[row].id for row in batch] for batch in batches], "plans", *key)
    return run.read_json_part("plans", *key)


def batch_name(ids: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(ids).encode()).hexdigest()[:16]


def batch_tasks(
    run: RunFolder,
    key: tuple[str, ...],
    *,
    needs: Sequence[Name] = (),
    model: str,
    ships: Sequence[Name] = (),
    system: str | None = None,
) -> list[Task]:
    """The making of a plan, then each of its batches, named ``(answers, *key, number)``.

    Batches are known when the plan is.
    """
    planned = run.has_part("plans", *key, suffix="json")
    making = Task(name=("plan", *key), done=planned, model=model, system=system)
    plan = run.read_json_part("plans", *key) if planned else []
    return [
        making,
        *(
            Task(
                name=("answers", *key, batch_name(ids)),
                done=run.has_part("batches", *key, batch_name(ids)),
                needs=(making.name, *needs),
                model=model,
                system=system,
                ships=tuple(ships),
                batch=Batch(key=key, ids=tuple(ids)),
            )
            for ids in plan
        ),
    ]


def batches_replaced(
    run: RunFolder, key: tuple[str, ...], batch: Sequence[str], halves: Sequence[Sequence[str]]
) -> None:
    """Put into a plan what a worker, to which memory ran out, made of one of its batches."""
    plan = run.read_json_part("plans", *key)
    at = plan.index(list(batch))
    run.write_json_part([*plan[:at], *map(list, halves), *plan[at + 1 :]], "plans", *key)


def added_speed(run: RunFolder, key: tuple[str, ...], speed: Mapping[str, Any]) -> None:
    """Add the answers of one batch to the part ``speed``; the seconds are those of all workers together."""
    if not run.has_part("speed", *key, suffix="json"):
        run.write_json_part(dict(speed), "speed", *key)
        return
    both = run.read_json_part("speed", *key)
    for name in ("responses", "tokens", "thought_tokens", "seconds"):
        both[name] = round(both[name] + speed[name], 2)
    both["tokens_per_s"] = _rate(both["tokens"], both["seconds"])
    if "coverage" in both and "coverage" in speed:
        both["coverage"] |= {
            name: both["coverage"][name] + speed["coverage"][name] for name in ("fired", "positions")
        }
    run.write_json_part(both, "speed", *key)


def _rate(tokens: int, seconds: float) -> float:
    return round(tokens / seconds, 1) if seconds else 0.0
