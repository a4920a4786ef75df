"""Which published differences in refusal survive intervals, correction for many comparisons, and another judge.

A comparison is one system before and after an edit, on prompts of one label, by one judge. Where single verdicts are
given it is tested on pairs; where only counts are, on the two counts, with the range that a paired test could have had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

import pandas as pd
from scipy.stats import false_discovery_control

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.audit.tables import EDITED_ENDINGS, Answer, Counts, Evidence, Side, paired_forms
from mechsafety.statistics import holm, kappa, mcnemar, minimum_detectable_drop, paired_difference, wilson
from mechsafety.statistics.counts import counts_test, difference_interval, paired_bounds

Family = Literal["judge", "all"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Finding = Literal["survives", "lost in correction", "not shown", "no test"]
COMPARISON_COLUMNS = [
    *("system", "label", "judge", "data"),
    *("refused_original", "n_original", "original", "original_low", "original_high"),
    *("refused_edited", "n_edited", "edited", "edited_low", "edited_high"),
    *("change", "low", "high", "test", "p", "p_holm", "q_bh", "comparisons"),
    *("b", "c", "pairs", "dropped"),
    *("paired_p_best", "paired_p_worst", "paired_holm_best", "paired_holm_worst"),
    *("detectable", "detectable_corrected", "finding"),
]
JUDGE_COLUMNS = [
    *("system", "label", "judges", "least", "most", "survives", "surviving_judges", "sign_flip"),
    "significance_flip",
]
_NAMED = 10  # comparisons that a sentence names
AGREEMENT_COLUMNS = ["judge_a", "judge_b", "n", "equal", "agreement", "kappa", "low", "high"]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What the records show: one row per comparison, per system under several judges, and per pair of judges.

    ``unpaired`` are (model, label, judge) without their other form. ``sentences`` is the result in words.
    """

    comparisons: pd.DataFrame
    judges: pd.DataFrame
    agreement: pd.DataFrame
    unpaired: tuple[str, ...]
    files: tuple[str, ...]
    alpha: float
    family: Family

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(_sentences(self))

    def _repr_html_(self) -> str:
        shown = self.comparisons[["system", "label", "judge", "change", "low", "high", "p_holm", "finding"]]
        return f"<b>Audit</b>{shown.round(3).to_html(index=False, border=0)}"


def audit(evidence: Evidence, *, seed: int, alpha: float = 0.05, family: Family = "judge") -> Audit:
    """Test every system that comes with its edited form.

    ``family`` names the comparisons over which p is corrected: the systems under one judge and label, or all in the
    files. ``alpha`` is the error rate of the verdicts. ``seed`` draws the bootstrap of kappa. Raises
    :class:`MechsafetyError` where nothing is paired, or an edited form stands twice.
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
    rows = [_comparison(system, before, after) for system, before, after in pairs]
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
    return Audit(
        comparisons=table,
        judges=_judge_table(table),
        agreement=_agreement(evidence.answers, seed=seed),
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
_COUNTED = ["b", "c", "pairs", "dropped", "comparisons"]


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
    low, high = paired_difference(b, c, n)
    p = mcnemar(b, c) if n else math.nan
    return {
        **_rates(sum(one for one, _ in both), n, sum(two for _, two in both), n),
        **{"low": low, "high": high, "test": "McNemar" if n else "none", "p": p},
        **{"b": b, "c": c, "pairs": n, "dropped": len({*before, *after}) - n},
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
    return minimum_detectable_drop(n, baseline=baseline, alpha=alpha) if n and baseline > 0 else math.nan


def _finding(p: float, adjusted: float, alpha: float) -> Finding:
    if math.isnan(p):
        return "no test"
    if adjusted < alpha:
        return "survives"
    return "lost in correction" if p < alpha else "not shown"


# -- judges -----------------------------------------------------------------------------------------


def _judge_table(table: pd.DataFrame) -> pd.DataFrame:
    """What a change of judge does to each system's result; only systems that several judges tested."""
    rows = []
    for (system, label), part in table[table["p"].notna()].groupby(["system", "label"], sort=False):
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
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=JUDGE_COLUMNS)


def _agreement(answers: Sequence[Answer], *, seed: int) -> pd.DataFrame:
    """Every two judges on the answers that both gave a verdict on; kappa's interval is clustered by question."""
    given: dict[str, dict[tuple[str, str, str], bool]] = {}
    for answer in answers:
        if answer.refused is not None:
            given.setdefault(answer.judge, {})[answer.model, answer.label, answer.question] = answer.refused
    rows = []
    for first, second in combinations(given, 2):
        items = [item for item in given[first] if item in given[second]]
        one, two = ([given[judge][item] for item in items] for judge in (first, second))
        found = kappa(one, two, clusters=[item[2] for item in items], seed=seed)
        equal = sum(a == b for a, b in zip(one, two, strict=True))
        row = {"judge_a": first, "judge_b": second, "n": len(items), "equal": equal}
        row |= {"agreement": equal / len(items) if items else math.nan, "kappa": found.value}
        rows.append(row | {"low": found.low, "high": found.high})
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


# -- words ------------------------------------------------------------------------------------------


def _sentences(found: Audit) -> Iterator[str]:
    table = found.comparisons
    over = "under one judge and label" if found.family == "judge" else "in all files"
    m = sorted(set(table["comparisons"].dropna().astype(int)))
    many = f"{m[0]}" if len(m) == 1 else f"{m[0]} to {m[-1]}" if m else "0"
    yield (
        f"Of {len(table)} comparisons {int((table['finding'] == 'survives').sum())} survive Holm's correction at "
        f"{found.alpha:g} ({many} comparisons {over})."
    )
    for finding, phrase in _PHRASES.items():
        part = table[table["finding"] == finding]
        if len(part):
            yield f"{phrase}: {_named(part)}."
    yield from _of_pairing(table, found.alpha)
    yield from _of_size(table, found.alpha)
    if len(found.judges):
        yield from _of_judges(found.judges)
    elif len(set(table["judge"])) == 1:
        yield f"One judge only ({table['judge'].iloc[0]}): whether another would say the same is not tested."
    for row in found.agreement.to_dict(orient="records"):
        if not row["n"]:
            yield f"{row['judge_a']} and {row['judge_b']} have no answer in common."
            continue
        chance = "undefined" if row["kappa"] != row["kappa"] else f"{row['kappa']:.2f}"
        yield (
            f"{row['judge_a']} and {row['judge_b']} agree on {row['equal']} of {row['n']} answers "
            f"({row['agreement']:.1%}), kappa {chance}."
        )
    if found.unpaired:
        yield f"Without a partner, so not tested: {'; '.join(found.unpaired)}."


_PHRASES: dict[str, str] = {
    "survives": "Surviving",
    "lost in correction": "Below alpha alone, not after correction",
    "not shown": "Not shown to differ",
    "no test": "No verdict in both arms, so no test",
}


def _named(part: pd.DataFrame) -> str:
    several = len(set(part["judge"])) > 1 or len(set(part["label"])) > 1
    shown = "; ".join(
        f"{row['system']}{' (' + row['label'] + ', ' + row['judge'] + ')' if several else ''} "
        f"{row['refused_original']}/{row['n_original']} to {row['refused_edited']}/{row['n_edited']}"
        for row in part.head(_NAMED).to_dict(orient="records")
    )
    return shown if len(part) <= _NAMED else f"{shown}; and {len(part) - _NAMED} more (see the table)"


def _of_pairing(table: pd.DataFrame, alpha: float) -> Iterator[str]:
    counts = table[table["data"] == "counts"]
    if counts.empty:
        return
    yield (
        f"{len(counts)} comparisons are tested on counts alone, as if the two arms had answered different prompts. "
        "Paired tests on the same prompts would mostly be stronger; counts fix only b - c, so their p is known as a "
        "range."
    )
    known = counts[counts["paired_holm_worst"].notna()]
    if len(known) < len(counts):
        yield "Where the two arms have different totals there is no such range."
    for phrase, chosen in _PAIRED.items():
        part = known[chosen(known, alpha)]
        if len(part):
            yield f"{phrase}: {_named(part)}."


_PAIRED: dict[str, Callable[[pd.DataFrame, float], pd.Series]] = {
    "Whatever the pairs, a paired test would survive correction": lambda t, a: t["paired_holm_worst"] < a,
    "A paired test would survive in some pairings and not in others": lambda t, a: (
        (t["paired_holm_best"] < a) & (t["paired_holm_worst"] >= a)
    ),
    "Below alpha in some pairing, but in none after correction": lambda t, a: (
        (t["paired_p_best"] < a) & (t["paired_holm_best"] >= a)
    ),
    "No pairing could reach alpha, even without correction": lambda t, a: t["paired_p_best"] >= a,
}


def _of_size(table: pd.DataFrame, alpha: float) -> Iterator[str]:
    for column, phrase in (("detectable", f"at {alpha:g}"), ("detectable_corrected", "after correction")):
        known = table[column].dropna()
        if len(known):
            span = " to ".join(dict.fromkeys(f"{100 * v:.0f}" for v in (known.min(), known.max())))
            yield (
                f"The smallest drop that a paired test of this size finds {phrase} with power 0.8 is {span} points, "
                "where the edit wins no refusals; tests on counts need more."
            )


def _of_judges(judges: pd.DataFrame) -> Iterator[str]:
    signs, tests = judges[judges["sign_flip"]], judges[judges["significance_flip"]]
    yield (
        f"Of {len(judges)} results under several judges {len(signs)} change their sign with the judge and {len(tests)} "
        "survive under some judges only (which is no proof that those judges differ)."
    )
    for row in tests.to_dict(orient="records"):
        yield (
            f"{row['system']}, {row['label']}: survives under {row['survives']} of {row['judges']} judges "
            f"({row['surviving_judges']}), change {row['least']:+.0%} to {row['most']:+.0%}."
        )
