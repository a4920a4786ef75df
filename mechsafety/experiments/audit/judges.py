"""What published records show of their judges: broken ones, agreement with the primary one, correlations, rankings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.audit.tables import Answer, Evidence, system_of
from mechsafety.statistics.arm_errors import arm_errors
from mechsafety.statistics.paired import holm
from mechsafety.statistics.raters import kappa
from mechsafety.statistics.tables import ARMS, PROMPT_LABELS, VERDICT_COLUMNS

JUDGE_COLUMNS = [
    *("system", "label", "judges", "least", "most", "survives", "surviving_judges", "sign_flip"),
    *("significance_flip", "survive_down", "survive_up"),
]
AGREEMENT_COLUMNS = ["judge_a", "judge_b", "n", "unread", "equal", "agreement", "kappa", "low", "high"]
BROKEN_COLUMNS = ["judge", "models", "harmful", "harmless", "harmless_refused", "comparisons"]
PROMPT_COLUMNS = [
    *("judge", "arm", "harmful", "harmful_refused", "harmless", "harmless_refused"),
    *("accuracy", "precision", "recall"),
]
PRIMARY_COLUMNS = [
    *("judge", "primary", "label", "models", "n", "refused", "primary_refused"),
    *("accuracy_least", "accuracy_most", "precision_least", "precision_most", "recall_least", "recall_most"),
]
PAIR_COLUMNS = [
    *("judge_a", "judge_b", "label", "models", "pearson", "tau", "p", "p_holm"),
    *("systems", "tau_change", "answers", "phi"),
]
_LEAST_RANKED = 3
"""Models below which two judges' orders can only agree or not."""
Cells = Mapping[tuple[str, str, str], tuple[int, int]]
"""By (model, label, judge): how many answers were called refusals, and of how many."""


def cells_of(evidence: Evidence) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Refused and read answers of every model, prompt label and judge; answers without a verdict are not counted."""
    found = {(c.model, c.label, c.judge): (c.refused, c.total) for c in evidence.counts}
    for answer in evidence.answers:
        if answer.refused is not None:
            key = (answer.model, answer.label, answer.judge)
            refused, read = found.get(key, (0, 0))
            found[key] = (refused + answer.refused, read + 1)
    return found


def broken_judges(cells: Cells, compared: Sequence[str]) -> pd.DataFrame:
    """Judges with no refusal among all harmful prompts of all models, and with what they gave on harmless ones.

    ``compared`` names the judge of every comparison that could be made.
    """
    rows = []
    for judge in dict.fromkeys(judge for _, _, judge in cells):
        mine = {(m, label): cell for (m, label, j), cell in cells.items() if j == judge}
        refused, n = _summed(mine, "harmful")
        if n and not refused:
            benign, benign_n = _summed(mine, "harmless")
            row = {"judge": judge, "models": len({m for m, _ in mine}), "harmful": n}
            row |= {"harmless": benign_n, "harmless_refused": benign}
            rows.append(row | {"comparisons": list(compared).count(judge)})
    return pd.DataFrame(rows, columns=BROKEN_COLUMNS)


def against_prompt_labels(cells: Cells, models: Sequence[str]) -> pd.DataFrame:
    """Accuracy, precision and recall with "harmful prompts are to be refused" for the truth, by judge and arm.

    All models together that a judge read on prompts of both labels. An edited model that answers counts as an error
    here, whoever judges: the measure is the model's and the judge's at once.
    """
    arms, rows = system_of(models), []
    for judge in dict.fromkeys(judge for _, _, judge in cells):
        for arm in ("all", *ARMS):
            mine = {
                (m, label): cell
                for (m, label, j), cell in cells.items()
                if j == judge and arm in ("all", ARMS[arms[m][1]])
            }
            whole = {m for m, _ in mine if all((m, label) in mine for label in PROMPT_LABELS)}
            mine = {key: cell for key, cell in mine.items() if key[0] in whole}
            if not mine:
                continue
            (hits, positives), (alarms, negatives) = (_summed(mine, label) for label in PROMPT_LABELS)
            rows.append(
                {
                    **{"judge": judge, "arm": arm, "harmful": positives, "harmful_refused": hits},
                    **{"harmless": negatives, "harmless_refused": alarms},
                    "accuracy": _share(hits + negatives - alarms, positives + negatives),
                    "precision": _share(hits, hits + alarms),
                    "recall": _share(hits, positives),
                }
            )
    return pd.DataFrame(rows, columns=PROMPT_COLUMNS)


def against_primary(evidence: Evidence, cells: Cells, primary: str) -> pd.DataFrame:
    """Accuracy, precision and recall of every other judge against ``primary``, by prompt label and over all.

    Counts of two judges on the same n answers fix how often both give refusal only within bounds, from
    ``max(0, a + b - n)`` to ``min(a, b)`` (Frechet): ``least`` and ``most`` are what these make of each measure, summed
    over models. Verdicts row by row give one number, so that both are the same.
    """
    joint = _joint_refusals(evidence.answers, primary)
    rows = []
    for judge in evidence.judges:
        for label in (*PROMPT_LABELS, "all"):
            bounds = [
                bound
                for (model, kind, j), cell in cells.items()
                if j == judge != primary and label in ("all", kind)
                if (
                    bound := _bounds(cell, cells.get((model, kind, primary)), joint.get((model, kind, judge)))
                )
            ]
            if bounds:
                row = {"judge": judge, "primary": primary, "label": label, "models": len(bounds)}
                rows.append(row | _measures(np.array(bounds).sum(axis=0)))
    return pd.DataFrame(rows, columns=PRIMARY_COLUMNS)


def _bounds(
    mine: tuple[int, int], theirs: tuple[int, int] | None, joint: tuple[int, int, int, int] | None
) -> tuple[int, int, int, int, int] | None:
    """n, the judge's refusals, the primary's, and the least and the most that both give; None without a common n."""
    if joint is not None:
        n, a, b, both = joint
        return (n, a, b, both, both) if n else None
    if theirs is None or mine[1] != theirs[1]:
        return None
    (a, n), (b, _) = mine, theirs
    return n, a, b, max(0, a + b - n), min(a, b)


def _measures(sums: np.ndarray) -> dict[str, Any]:
    n, a, b, *both = map(int, sums)
    row: dict[str, Any] = {"n": n, "refused": a, "primary_refused": b}
    for end, k in zip(("least", "most"), both, strict=True):
        row |= {f"accuracy_{end}": _share(n - a - b + 2 * k, n)}
        row |= {f"precision_{end}": _share(k, a), f"recall_{end}": _share(k, b)}
    return row


def errors_by_arm(evidence: Evidence, primary: str) -> pd.DataFrame:
    """Sensitivity and specificity of every judge against ``primary`` in both arms (:func:`arm_errors`).

    Of verdicts row by row; counts do not tell on which answers two judges agree. Empty without any.
    """
    systems = system_of(evidence.models)
    rows = []
    for a in evidence.answers:
        system, edited = systems[a.model]
        verdict = "unparsed" if a.refused is None else "refusal" if a.refused else "compliance"
        rows.append((system, ARMS[edited], f"{a.label}: {a.question}", a.label, a.judge, verdict))
    table = pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))
    mine = table["judge"] == primary
    return arm_errors(table[~mine], table[mine][["system", "arm", "id", "verdict"]])


def judge_pairs(evidence: Evidence, cells: Cells) -> pd.DataFrame:
    """Every two judges by prompt label: correlations and orders of the models.

    ``pearson`` and ``tau`` (Kendall's tau-b, with its p and Holm's over the pairs of a label) are of the refusal rates
    of the models, edited ones for themselves; ``tau_change`` of the changes of the systems; ``phi`` is the correlation
    of the verdicts on single ``answers``, where these are given. NaN where a judge finds all equal.
    """
    systems = system_of(evidence.models)
    rows = []
    for label in PROMPT_LABELS:
        rates = pd.DataFrame(
            {
                judge: {
                    m: k / n for (m, kind, j), (k, n) in cells.items() if (kind, j) == (label, judge) and n
                }
                for judge in evidence.judges
            }
        )
        rates.index = pd.MultiIndex.from_tuples([systems[m] for m in rates.index], names=["system", "edited"])
        changes = _changes(rates)
        verdicts = _verdicts(evidence.answers, label)
        found = []
        for a, b in combinations(evidence.judges, 2):
            both, moved = rates[[a, b]].dropna(), changes.reindex(columns=[a, b]).dropna()
            if both.empty:
                continue
            tau, p = _tau(both[a], both[b])
            row = {"judge_a": a, "judge_b": b, "label": label, "models": len(both)}
            row |= {"pearson": _pearson(both[a], both[b]), "tau": tau, "p": p}
            row |= {"systems": len(moved), "tau_change": _tau(moved[a], moved[b])[0]}
            found.append(row | _phi(verdicts, a, b))
        adjusted = holm(np.array([row["p"] for row in found], dtype=float))
        rows += [row | {"p_holm": q} for row, q in zip(found, adjusted, strict=True)]
    return pd.DataFrame(rows, columns=PAIR_COLUMNS).astype({"answers": "Int64"})


def judge_table(comparisons: pd.DataFrame) -> pd.DataFrame:
    """What a change of judge does to each system's result; only systems that several judges tested."""
    rows = []
    tested = comparisons[comparisons["p"].notna()]
    for (system, label), part in tested.groupby(["system", "label"], sort=False):
        if len(part) < 2:
            continue
        surviving = list(part["judge"][part["finding"] == "survives"])
        row = {
            "system": system,
            "label": label,
            "judges": len(part),
            "least": float(part["change"].min()),
            "most": float(part["change"].max()),
            "survives": len(surviving),
            "surviving_judges": ", ".join(surviving),
            "sign_flip": bool((part["change"] < 0).any() and (part["change"] > 0).any()),
            "significance_flip": 0 < len(surviving) < len(part),
            "survive_down": bool(((part["finding"] == "survives") & (part["change"] < 0)).any()),
            "survive_up": bool(((part["finding"] == "survives") & (part["change"] > 0)).any()),
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=JUDGE_COLUMNS)


def answer_agreement(answers: Sequence[Answer], *, seed: int) -> pd.DataFrame:
    """Every two judges on the answers that both gave a verdict on; kappa's interval is clustered by question.

    ``unread`` of the answers that both were to read have no verdict of one of them.
    """
    given: dict[str, dict[tuple[str, str, str], bool | None]] = {}
    for answer in answers:
        given.setdefault(answer.judge, {})[answer.model, answer.label, answer.question] = answer.refused
    rows = []
    for first, second in combinations(
        [judge for judge, said in given.items() if {*said.values()} - {None}], 2
    ):
        asked = [item for item in given[first] if item in given[second]]
        items = [item for item in asked if None not in (given[first][item], given[second][item])]
        one, two = ([given[judge][item] for item in items] for judge in (first, second))
        found = kappa(one, two, clusters=[item[2] for item in items], seed=seed)
        equal = sum(a == b for a, b in zip(one, two, strict=True))
        row = {"judge_a": first, "judge_b": second, "n": len(items), "unread": len(asked) - len(items)}
        row |= {"equal": equal}
        row |= {"agreement": _share(equal, len(items)), "kappa": found.value}
        rows.append(row | {"low": found.low, "high": found.high})
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


def primary_judge(asked: str | None, judges: Sequence[str]) -> str:
    """The judge that the others are compared with: ``asked``, or the first of the files.

    Raises :class:`MechsafetyError` for a judge that there is not, and where there is none.
    """
    if not judges:
        raise MechsafetyError(
            "no judge of these files gives a refusal on any harmful prompt: all are broken, there is nothing to audit"
        )
    if asked is None:
        return judges[0]
    known = {judge.casefold(): judge for judge in judges}
    if asked.casefold() not in known:
        raise MechsafetyError(f"primary judge {asked!r} is not one of {', '.join(judges)}")
    return known[asked.casefold()]


# -- parts ------------------------------------------------------------------------------------------


def _summed(cells: Mapping[tuple[str, str], tuple[int, int]], label: str) -> tuple[int, int]:
    mine = [cell for (_, kind), cell in cells.items() if kind == label]
    return sum(refused for refused, _ in mine), sum(n for _, n in mine)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _joint_refusals(
    answers: Sequence[Answer], primary: str
) -> dict[tuple[str, str, str], tuple[int, int, int, int]]:
    """By (model, label, judge): answers that the judge and ``primary`` read, refusals of each, and of both."""
    theirs = {
        (a.model, a.label, a.question): a.refused
        for a in answers
        if a.judge == primary and a.refused is not None
    }
    found: dict[tuple[str, str, str], np.ndarray] = {}
    for a in answers:
        b = theirs.get((a.model, a.label, a.question))
        if a.judge != primary and a.refused is not None and b is not None:
            cell = found.setdefault((a.model, a.label, a.judge), np.zeros(4, dtype=int))
            cell += np.array([1, a.refused, b, a.refused and b], dtype=int)
    return {key: (int(c[0]), int(c[1]), int(c[2]), int(c[3])) for key, c in found.items()}


def _changes(rates: pd.DataFrame) -> pd.DataFrame:
    """Edited less original, one row per system that has both."""
    plain, edited = (rates[rates.index.get_level_values("edited") == arm] for arm in (False, True))
    return (edited.droplevel("edited") - plain.droplevel("edited")).dropna(how="all")


def _pearson(a: pd.Series, b: pd.Series) -> float:
    known = len(a) >= _LEAST_RANKED and np.ptp(a) > 0 and np.ptp(b) > 0
    return float(np.corrcoef(a, b)[0, 1]) if known else math.nan


def _tau(a: pd.Series, b: pd.Series) -> tuple[float, float]:
    # Rounded: 0.3 - 0.7 and 0.5 - 0.9 are a tie that floating point breaks.
    a, b = a.round(9), b.round(9)
    if len(a) < _LEAST_RANKED or not (np.ptp(a) and np.ptp(b)):
        return math.nan, math.nan
    found: Any = kendalltau(a, b)
    return float(found.statistic), float(found.pvalue)


def _verdicts(answers: Sequence[Answer], label: str) -> pd.DataFrame:
    """1, 0 or NaN: one row per answer, one column per judge."""

    def rows() -> Iterator[tuple[str, str, str, float]]:
        for a in answers:
            if a.label == label and a.refused is not None:
                yield a.model, a.question, a.judge, float(a.refused)

    table = pd.DataFrame(rows(), columns=["model", "question", "judge", "refused"])
    return table.pivot_table(index=["model", "question"], columns="judge", values="refused")


def _phi(verdicts: pd.DataFrame, a: str, b: str) -> dict[str, Any]:
    both = verdicts.reindex(columns=[a, b]).dropna()
    return {"answers": len(both), "phi": _pearson(both[a], both[b])} if len(both) else {"answers": pd.NA}
