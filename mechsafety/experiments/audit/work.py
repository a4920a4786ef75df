"""Which published differences in refusal survive intervals, correction for many comparisons, and another judge.

A comparison is one system before and after an edit, on prompts of one label, by one judge. Where single verdicts are
given it is tested on pairs; where only counts are, on the two counts, with the range that a paired test could have had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import pandas as pd
from scipy.stats import false_discovery_control

from mechsafety.claims.numbers import ALPHA
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.values import Value
from mechsafety.experiments.audit.findings import audit_sentences
from mechsafety.experiments.audit.judges import (
    against_primary,
    against_prompt_labels,
    answer_agreement,
    broken_judges,
    cells_of,
    errors_by_arm,
    judge_pairs,
    judge_table,
    primary_judge,
)
from mechsafety.experiments.audit.tables import EDITED_ENDINGS, Counts, Evidence, Side, paired_forms
from mechsafety.statistics.counts import counts_test, difference_interval, paired_bounds
from mechsafety.statistics.judge_effects import exact_difference
from mechsafety.statistics.paired import holm, mcnemar, minimum_detectable_drop
from mechsafety.statistics.rates import wilson
from mechsafety.statistics.tables import ARMS

Family = Literal["all", "judge"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Finding = Literal["survives", "lost in correction", "not shown", "no test"]
COMPARISON_COLUMNS = [
    *("system", "label", "judge", "data"),
    *("refused_original", "n_original", "original", "original_low", "original_high"),
    *("refused_edited", "n_edited", "edited", "edited_low", "edited_high"),
    *("change", "low", "high", "test", "p", "p_holm", "q_bh", "comparisons"),
    *("b", "c", "pairs", "dropped", "unread_original", "unread_edited"),
    *("paired_p_best", "paired_p_worst", "paired_holm_best", "paired_holm_worst"),
    *("detectable", "detectable_corrected", "finding"),
]
TABLES = (
    *("comparisons", "judges", "broken", "prompt_labels", "primary_judge", "arm_errors", "pairs"),
    "agreement",
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Audit(Value):
    """What the records show.

    ``comparisons`` has one row per system, label and judge; ``judges`` per system and label under several judges;
    ``broken`` per judge that refuses nothing, which is in no other table; ``prompt_labels`` and ``primary_judge`` have
    the judges' accuracy, precision and recall against the prompts' labels and against ``primary``, ``arm_errors`` by
    arm; ``pairs`` one row per two judges and label; ``agreement`` the same where answers are given one by one.
    ``unpaired`` are (model, label, judge) without their other form. ``sentences`` is the result in words.
    """

    comparisons: pd.DataFrame
    judges: pd.DataFrame
    broken: pd.DataFrame
    prompt_labels: pd.DataFrame
    primary_judge: pd.DataFrame
    arm_errors: pd.DataFrame
    pairs: pd.DataFrame
    agreement: pd.DataFrame
    primary: str
    unpaired: tuple[str, ...]
    files: tuple[str, ...]
    alpha: float
    family: Family

    def to_frame(self) -> pd.DataFrame:
        """One row per comparison."""
        return self.comparisons.copy()

    def describe(self) -> str:
        n, files = len(self.comparisons), len(self.files)
        return f"Audit({n} comparisons from {files} files, primary judge {self.primary!r})"

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(audit_sentences(self))

    def _repr_html_(self) -> str:
        shown = self.comparisons[["system", "label", "judge", "change", "low", "high", "p_holm", "finding"]]
        return f"<b>Audit</b>{shown.round(3).to_html(index=False, border=0)}"


def audit(
    evidence: Evidence,
    *,
    seed: int,
    alpha: float = 0.05,
    family: Family = "all",
    primary: str | None = None,
) -> Audit:
    """Test every system that comes with its edited form, and compare the judges.

    A judge without a refusal on any harmful prompt is broken, and left out. ``family`` names the comparisons over
    which p is corrected: all in the files, or the systems under one judge and label. ``alpha`` is the error rate of
    the verdicts. ``primary`` is the judge that the others are compared with, by default the first. ``seed`` draws the
    bootstrap of kappa. Raises :class:`MechsafetyError` where nothing is paired, or an edited form stands twice, and
    where every judge is broken.
    """
    if not 0 < alpha < 1:
        raise MechsafetyError(f"alpha is {alpha}; it must lie between 0 and 1, for example 0.05")
    if family not in FAMILIES:
        raise MechsafetyError(f"family {family!r} is not one of {', '.join(FAMILIES)}")
    pairs, unpaired = paired_forms(evidence)
    if not pairs:
        names = ", ".join(dict.fromkeys(text.partition(" / ")[0] for text in unpaired))
        endings = " or ".join(f"X-{ending}" for ending in EDITED_ENDINGS)
        raise MechsafetyError(
            f"no model comes with its edited form (X and {endings}); the models are {names}"
        )
    broken = broken_judges(cells_of(evidence), [judge for (_, _, judge), _, _ in pairs])
    out = set(broken["judge"])
    evidence = evidence.without(out)
    first = primary_judge(primary, evidence.judges)
    rows = [_comparison(key, before, after) for key, before, after in pairs if key[2] not in out]
    table = pd.DataFrame(rows, columns=COMPARISON_COLUMNS)
    table = table.astype(dict.fromkeys(_REAL, float) | dict.fromkeys(_COUNTED, "Int64"))
    families = [part.index for _, part in table.groupby(["label", "judge"], sort=False)]
    for rows_of_one in families if family == "judge" else [table.index]:
        _correct(table, rows_of_one)
    for row in table.index:
        at = table.loc[row]
        table.loc[row, "detectable"] = _detectable(at, alpha)
        table.loc[row, "detectable_corrected"] = _detectable(at, alpha / max(1, int(at["comparisons"])))
    table["finding"] = [
        _finding(p, adjusted, alpha) for p, adjusted in zip(table["p"], table["p_holm"], strict=True)
    ]
    cells = cells_of(evidence)
    return Audit(
        comparisons=table,
        judges=judge_table(table),
        broken=broken,
        prompt_labels=against_prompt_labels(cells, evidence.models),
        primary_judge=against_primary(evidence, cells, first),
        arm_errors=errors_by_arm(evidence, first),
        pairs=judge_pairs(evidence, cells),
        agreement=answer_agreement(evidence.answers, seed=seed),
        primary=first,
        unpaired=tuple(unpaired),
        files=evidence.files,
        alpha=alpha,
        family=family,
    )


_REAL = [
    *("original", "original_low", "original_high", "edited", "edited_low", "edited_high"),
    *("change", "low", "high", "p", "p_holm", "q_bh"),
    *("paired_p_best", "paired_p_worst", "paired_holm_best", "paired_holm_worst"),
    *("detectable", "detectable_corrected"),
]
_COUNTED = ["b", "c", "pairs", "dropped", "unread_original", "unread_edited", "comparisons"]


# -- tests ------------------------------------------------------------------------------------------


def _comparison(system: tuple[str, str, str], before: Side, after: Side) -> dict[str, Any]:
    name, label, judge = system
    row: dict[str, Any] = {"system": name, "label": label, "judge": judge}
    if isinstance(before, Counts) and isinstance(after, Counts):
        return row | {"data": "counts"} | _of_counts(before, after)
    if isinstance(before, dict) and isinstance(after, dict):
        return row | {"data": "verdicts"} | _of_verdicts(before, after)
    raise MechsafetyError(
        f"{' / '.join(system)}: one form is given as counts and the other row by row; give both in one way"
    )


def _of_counts(before: Counts, after: Counts) -> dict[str, Any]:
    sides = (before.refused, before.total, after.refused, after.total)
    p, test = counts_test(*sides)
    low, high = difference_interval(*sides)
    if p >= ALPHA:  # Newcombe's interval is not that of the test
        low, high = min(low, 0.0), max(high, 0.0)
    best, worst = math.nan, math.nan
    if before.total == after.total:
        best, worst = paired_bounds(before.refused, after.refused, before.total)
    return {
        **_rates(*sides),
        **{"low": low, "high": high, "test": test, "p": p},
        **{"paired_p_best": best, "paired_p_worst": worst},
    }


def _of_verdicts(before: Mapping[str, bool | None], after: Mapping[str, bool | None]) -> dict[str, Any]:
    """Exact McNemar on the questions that have a verdict in both arms; the others are counted as dropped."""
    both = [
        (one, two)
        for question, one in before.items()
        if one is not None and (two := after.get(question)) is not None
    ]
    b, c, n = both.count((True, False)), both.count((False, True)), len(both)
    low, high = exact_difference(b, c, n)
    p = mcnemar(b, c) if n else math.nan
    asked = {*before, *after}
    return {
        **_rates(sum(one for one, _ in both), n, sum(two for _, two in both), n),
        **{"low": low, "high": high, "test": "McNemar" if n else "none", "p": p},
        **{"b": b, "c": c, "pairs": n, "dropped": len(asked) - n},
        **{
            f"unread_{arm}": sum(side.get(q) is None for q in asked)
            for arm, side in zip(ARMS, (before, after), strict=True)
        },
        **{"paired_p_best": p, "paired_p_worst": p},
    }


def _rates(refused_a: int, n_a: int, refused_b: int, n_b: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for arm, refused, n in (("original", refused_a, n_a), ("edited", refused_b, n_b)):
        rate = wilson(refused, n)
        row |= {f"refused_{arm}": refused, f"n_{arm}": n, arm: rate.rate}
        row |= {f"{arm}_low": rate.low, f"{arm}_high": rate.high}
    return row | {"change": row["edited"] - row["original"]}


def _correct(table: pd.DataFrame, rows: pd.Index) -> None:
    """Holm (1979) and Benjamini and Hochberg (1995) over ``rows``; what has no p is no comparison.

    Holm is monotone in every p, so that the adjusted bounds bound the adjusted p.
    """
    for column, adjusted, method in (
        ("p", "p_holm", holm),
        ("p", "q_bh", false_discovery_control),
        ("paired_p_best", "paired_holm_best", holm),
        ("paired_p_worst", "paired_holm_worst", holm),
    ):
        known = [row for row in rows if not math.isnan(table.loc[row, column])]
        whole = len(known) == int(table.loc[rows, "p"].notna().sum())
        # A bound over part of the family would be corrected for too few comparisons.
        if known and whole:
            table.loc[known, adjusted] = method(table.loc[known, column].to_numpy())
    table.loc[rows, "comparisons"] = int(table.loc[rows, "p"].notna().sum())


def _detectable(row: pd.Series, alpha: float) -> float:
    n, baseline = int(min(row["n_original"], row["n_edited"])), float(row["original"])
    return _least_drop(n, baseline, alpha) if n and baseline > 0 else math.nan


@cache
def _least_drop(n: int, baseline: float, alpha: float) -> float:
    return minimum_detectable_drop(n, baseline=baseline, alpha=alpha)


def _finding(p: float, adjusted: float, alpha: float) -> Finding:
    if math.isnan(p):
        return "no test"
    if adjusted < alpha:
        return "survives"
    return "lost in correction" if p < alpha else "not shown"
