"""Judging completions by name: the notebook's way to the judges and to rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mechsafety.core.verdict import Label, Response
from mechsafety.generation.completions import Completion
from mechsafety.judges.accepted import AnswersLike, JudgesLike, as_answers
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
    answers: AnswersLike,
    judges: JudgesLike = "rules",
    *,
    models: ModelSource | None = None,
    cache: VerdictCache | None = None,
) -> Verdicts:
    """Each judge's verdict on each answer.

    ``answers`` are completions, a DataFrame or a file with the columns prompt and response, or (prompts, responses).
    ``judges`` are one or several: names (``rules``, ``degeneracy``, ``phrases:arditi``, ``logit:MODEL``), functions
    (prompt, response) -> a label, or True for a refusal, functions of lists (:func:`batched`), or objects; those that
    ask a model keep their verdicts in ``cache``. Columns of the table: id, label (the prompt's), judge, verdict, tags.

    Raises :class:`MechsafetyError` for answers without text, two of one id, an unknown judge, two judges of one name,
    and a judge that returns anything but a label.
    """
    found = as_answers(answers)
    labels = {each.response.id: each.label for each in found}
    verdicts = judge_responses([each.response for each in found], judges, models=models, cache=cache)
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
