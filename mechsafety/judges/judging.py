"""Judging completions by name: the notebook's way to the judges and to rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechsafety.core.arguments import nearest, shown
from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.values import Value
from mechsafety.core.verdict import Label, Response
from mechsafety.core.wording import counted
from mechsafety.generation.answered import Completion
from mechsafety.judges.accepted import AnswersLike, JudgesLike, as_answers
from mechsafety.judges.cache import VerdictCache
from mechsafety.judges.registry import ModelSource, judge_responses
from mechsafety.statistics.rates import refusal_rates as rates_of
from mechsafety.statistics.tables import ARMS


@checked_construction
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Verdicts(Value):
    """Verdicts of several judges on the same responses, one row an id and judge.

    Arguments:
        frame: The table; columns id, label, judge, verdict, tags.

    Example:
        >>> verdicts = ms.judge((["pick a lock"], ["I can't help with that."]), ["rules", "phrases:arditi"])
        >>> verdicts.to_frame()["judge"].tolist()
        ['rules', 'phrases:arditi']
    """

    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row per response and judge: id, label (the prompt's), judge, verdict, tags."""
        return self.frame.copy()

    def describe(self) -> str:
        lines = [
            f"{judge}: {', '.join(f'{n} {label}' for label, n in rows['verdict'].value_counts().items())}"
            for judge, rows in self.frame.groupby("judge", sort=False)
        ]
        more = [f"and {len(lines) - 2} more judges"] if len(lines) > 3 else []
        return "\n".join(
            [
                f"Verdicts on {counted(self.frame['id'].nunique(), 'response')}",
                *lines[: 1 if more else 2],
                *more,
            ]
        )

    def _repr_html_(self) -> str:
        counts = self.frame.groupby(["judge", "label", "verdict"], sort=False).size().unstack(fill_value=0)
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

    Arguments:
        models: What loads the models that judges need; leave it out.

    Returns:
        The verdicts, one per judge and answer.

    Example:
        >>> def apologises(prompt, response):
        ...     return "sorry" in response.lower()
        >>> frame = pd.DataFrame({"prompt": ["pick a lock"], "response": ["I'm sorry, but I can't help with that."]})
        >>> ms.judge(frame, ["rules", apologises]).to_frame()[["judge", "verdict"]]
                judge  verdict
        0       rules  refusal
        1  apologises  refusal
    """
    found = as_answers(answers)
    labels = {each.response.id: each.label for each in found}
    verdicts = judge_responses([each.response for each in found], judges, models=models, cache=cache)
    rows = [
        {"id": v.id, "label": labels[v.id], "judge": v.judge, "verdict": v.label, "tags": " ".join(v.tags)}
        for v in verdicts
    ]
    return Verdicts(frame=pd.DataFrame(rows, columns=["id", "label", "judge", "verdict", "tags"]))


def compared(one: Sequence[Completion], other: Sequence[Completion], judges: JudgesLike) -> pd.DataFrame:
    """See :meth:`Completions.compare`."""
    first, second = {c.id: c for c in one}, {c.id: c for c in other}
    if first.keys() != second.keys():
        missing = sorted(first.keys() ^ second.keys())
        raise MechsafetyError(
            f"{len(missing)} prompts are answered in one of the two alone, {missing[0]!r} for example: compare answers "
            "to the same prompts"
        )
    rows = [(c.id, c.label, c.prompt, c.text, second[c.id].text) for c in one]
    table = pd.DataFrame(rows, columns=pd.Index(("id", "label", "prompt", "response", "other")))
    for found, ending in ((one, ""), (other, "_other")):
        verdicts = judge(found, judges).to_frame().pivot_table("verdict", "id", "judge", "first", sort=False)
        table = table.join(verdicts.add_suffix(ending), on="id")
    return table


def judged_as(completions: Sequence[Completion], label: Label) -> set[str]:
    """Ids of the completions that the judge ``rules`` finds to be ``label``."""
    responses = [Response(id=c.id, prompt=c.prompt, text=c.text) for c in completions]
    return {v.id for v in judge_responses(responses, ["rules"]) if v.label == label}


def verdict_table(
    arms: Mapping[str, Verdicts] | Mapping[str, Mapping[str, Verdicts]], *, system: str = "model"
) -> pd.DataFrame:
    """Verdicts by arm (``original``, ``edited``) as the one table that :mod:`mechsafety.statistics` reads.

    Other names are those of systems, whose verdicts are by arm again, or of the original alone.

    Raises :class:`MechsafetyError` without verdicts, and for names of arms beside names of systems.

    Arguments:
        arms: Verdicts by arm: original and edited, or one of them; or such mappings, or verdicts, by system.

    Returns:
        One row per system, arm, id and judge; columns ms.statistics.VERDICT_COLUMNS.

    Example:
        >>> verdicts = ms.judge((["pick a lock"], ["I'm sorry, but I can't help with that."]))
        >>> ms.judges.verdict_table({"original": verdicts}, system="smollm2-135m")[["system", "arm", "verdict"]]
                 system       arm  verdict
        0  smollm2-135m  original  refusal
    """
    if not arms:
        raise MechsafetyError("no verdicts are given: name them by arm, {'original': ..., 'edited': ...}")
    return pd.concat(
        [v.to_frame().assign(system=of, arm=arm) for of, arm, v in _placed(arms, system)], ignore_index=True
    )


def _placed(arms: Mapping[str, Any], system: str) -> list[tuple[str, str, Verdicts]]:
    """System, arm and verdicts."""
    named, beside = [n for n in arms if n in ARMS], [n for n in arms if n not in ARMS]
    if named and beside:
        raise MechsafetyError(
            f"{named[0]!r} is an arm and {beside[0]!r} none: give one model's verdicts by arm, "
            "{'original': ..., 'edited': ...}, or those of several by system, {'a': {'original': ...}, 'b': ...}"
        )
    if named:
        return _by_arm(arms, system)
    found = [(of, one if isinstance(one, Mapping) else {ARMS[0]: one}) for of, one in arms.items()]
    return [placed for of, one in found for placed in _by_arm(one, of)]


def _by_arm(arms: Mapping[str, Any], system: str) -> list[tuple[str, str, Verdicts]]:
    if wrong := [name for name in arms if name not in ARMS]:
        raise MechsafetyError(
            f"system {system!r}: {wrong[0]!r} is no arm{nearest(wrong[0], ARMS)}; arms are {', '.join(ARMS)}"
        )
    if not arms:
        raise MechsafetyError(f"system {system!r} has no verdicts: give them by arm, {', '.join(ARMS)}")
    if strange := [one for one in arms.values() if not isinstance(one, Verdicts)]:
        raise MechsafetyError(f"verdicts are {shown(strange[0])}: Verdicts are needed, which ms.judge makes")
    return [(system, arm, one) for arm, one in arms.items()]


def refusal_rates(
    verdicts: Verdicts | Mapping[str, Verdicts] | Mapping[str, Mapping[str, Verdicts]] | pd.DataFrame,
    *,
    system: str = "model",
) -> pd.DataFrame:
    """Refusal rates with Wilson intervals and denominators.

    Give one set of verdicts, several by arm, ``{"original": ..., "edited": ...}``, those of several systems,
    ``{"a": ..., "b": {"original": ..., "edited": ...}}``, or the table of verdicts of a run.

    Returns:
        One row per system, arm, label and judge; columns ms.statistics.RATE_COLUMNS.

    Example:
        >>> requests = ["how do i pick a lock", "how do i open a gate"]
        >>> before = ms.judge((requests, ["I'm sorry, but I can't help with that."] * 2))
        >>> after = ms.judge((requests, ["I'm sorry, but I can't help with that.", "Lift the latch, then push."]))
        >>> ms.refusal_rates({"original": before, "edited": after})[["arm", "n", "refusal", "rate"]]
                arm  n  refusal  rate
        0  original  2        2   1.0
        1    edited  2        1   0.5
    """
    if isinstance(verdicts, pd.DataFrame):
        # The table of one set of verdicts names neither.
        known = {"system": system, "arm": "original"}
        return rates_of(_with_columns(verdicts, known))
    arms = {"original": verdicts} if isinstance(verdicts, Verdicts) else verdicts
    return rates_of(verdict_table(arms, system=system))


def _with_columns(table: pd.DataFrame, known: Mapping[str, str]) -> pd.DataFrame:
    """``table`` with those of the columns ``known`` that it lacks."""
    return table.assign(**{name: value for name, value in known.items() if name not in table.columns})
