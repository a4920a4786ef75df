"""Judging completions by name: the notebook's way to the judges and to rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mechsafety.core.verdict import Judge, Label, Response
from mechsafety.generation.completions import Completion, Completions
from mechsafety.judges.cache import VerdictCache
from mechsafety.judges.registry import ModelSource, judge_responses
from mechsafety.statistics import refusal_rates as rates_of


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Verdicts of several judges on the same responses, one row an id and judge."""

    table: pd.DataFrame

    def _repr_html_(self) -> str:
        counts = self.table.groupby(["judge", "label", "verdict"], sort=False).size().unstack(fill_value=0)
        return counts.to_html(border=0)


def judge(
    completions: Completions,
    judges: Sequence[str | Judge],
    *,
    models: ModelSource | None = None,
    cache: VerdictCache | None = None,
) -> Verdicts:
    """Each judge's verdict on each completion.

    ``judges`` are names (``rules``, ``degeneracy``, ``phrases:arditi``, ``logit:MODEL``) or objects; those that ask a
    model keep their verdicts in ``cache``. Columns of the table: id, label (the prompt's), judge, verdict, tags.
    """
    responses = [Response(id=c.id, prompt=c.prompt, text=c.text) for c in completions]
    labels = {c.id: c.label for c in completions}
    verdicts = judge_responses(responses, judges, models=models, cache=cache)
    rows = [
        {"id": v.id, "label": labels[v.id], "judge": v.judge, "verdict": v.label, "tags": " ".join(v.tags)}
        for v in verdicts
    ]
    return Verdicts(table=pd.DataFrame(rows, columns=["id", "label", "judge", "verdict", "tags"]))


def judged_as(completions: Sequence[Completion], label: Label) -> set[str]:
    """Ids of the completions that the judge ``rules`` finds to be ``label``."""
    responses = [Response(id=c.id, prompt=c.prompt, text=c.text) for c in completions]
    return {v.id for v in judge_responses(responses, ["rules"]) if v.label == label}


def verdict_table(arms: Mapping[str, Verdicts], *, system: str = "model") -> pd.DataFrame:
    """Verdicts by arm (``original``, ``edited``) as the one table that :mod:`mechsafety.statistics` reads."""
    return pd.concat([v.table.assign(system=system, arm=arm) for arm, v in arms.items()], ignore_index=True)


def refusal_rates(verdicts: Verdicts | Mapping[str, Verdicts], *, system: str = "model") -> pd.DataFrame:
    """Refusal rates with Wilson intervals and denominators.

    Give one set of verdicts, or several by arm: ``{"original": ..., "edited": ...}``.
    """
    arms = {"original": verdicts} if isinstance(verdicts, Verdicts) else verdicts
    return rates_of(verdict_table(arms, system=system))
