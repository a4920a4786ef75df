"""What an audit found, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mechsafety.core.wording import counted, listed, span
from mechsafety.experiments.agreement.findings import arm_error_sentences
from mechsafety.statistics import holm

if TYPE_CHECKING:
    from mechsafety.experiments.audit.work import Audit

_NAMED = 10  # comparisons that a sentence names
_MOST = 40  # comparisons of which a sentence names none
_TESTS = {
    "Boschloo": "Boschloo's exact test of two independent counts",
    "Fisher": "Fisher's exact test of two independent counts",
    "McNemar": "exact McNemar on the same prompts",
}


def audit_sentences(found: Audit) -> Iterator[str]:
    """The main result first, then what depends on the judge, then what was not tested."""
    table = found.comparisons
    yield from arm_error_sentences(found.arm_errors)
    yield from _of_survival(found)
    yield from _of_broken(found.broken)
    if len(found.judges):
        yield from _of_judges(found.judges)
    elif len(set(table["judge"])) == 1:
        yield f"One judge only ({table['judge'].iloc[0]}): whether another would say the same is not tested."
    for finding, phrase in _PHRASES.items():
        part = table[table["finding"] == finding]
        if len(part):
            yield f"{phrase}: {_named(part)}."
    yield from _of_pairing(table, found.alpha)
    yield from _of_size(table, found.alpha)
    yield from _of_primary(found.primary_judge)
    yield from _of_prompts(found.prompt_labels)
    yield from _of_orders(found.pairs, found.alpha)
    agreement = found.agreement
    if len(agreement) > _NAMED:
        # Of many judges the table has every pair.
        agreement = agreement[(agreement[["judge_a", "judge_b"]] == found.primary).any(axis=1)]
    for row in agreement.to_dict(orient="records"):
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


def _of_survival(found: Audit) -> Iterator[str]:
    table, out = found.comparisons, int(found.broken["comparisons"].sum())
    tested = table[table["p"].notna()]
    within = {
        "all": _adjusted(tested, []),
        "judge": _adjusted(tested, ["label", "judge"]),
    }
    other = "judge" if found.family == "all" else "all"
    over = {"all": f"all {len(tested)}", "judge": "the systems under one judge and label"}
    every = f" Of {len(table) + out} differences {out} are of judges that are broken." if out else ""
    yield (
        f"{int((table['finding'] == 'survives').sum())} of {len(table)} differences survive Holm's correction over "
        f"{over[found.family]} at {found.alpha:g}; over {over[other]}, "
        f"{int((within[other] < found.alpha).sum())}; without correction {int((tested['p'] < found.alpha).sum())}."
        f"{every} Tests, two-sided: {listed([_TESTS[t] for t in dict.fromkeys(tested['test'])]) or 'none'}."
    )


def _adjusted(tested: pd.DataFrame, by: list[str]) -> np.ndarray:
    """Holm's p over all tests, or over those that share the columns ``by``."""
    parts = tested.groupby(by, sort=False)["p"] if by else [("", tested["p"])]
    return np.concatenate([holm(part.to_numpy()) for _, part in parts]) if len(tested) else np.array([])


def _of_broken(broken: pd.DataFrame) -> Iterator[str]:
    for row in broken.to_dict(orient="records"):
        yield (
            f"The judge {row['judge']} is broken: it calls none of {row['harmful']} answers to harmful prompts a "
            f"refusal, over {counted(row['models'], 'model')}. It is left out of every number here."
        )


_PHRASES: dict[str, str] = {
    "survives": "Surviving",
    "lost in correction": "Below alpha alone, not after correction",
    "not shown": "Not shown to differ",
    "no test": "No verdict in both arms, so no test",
}


def _named(part: pd.DataFrame) -> str:
    if len(part) > _MOST:
        return f"{len(part)} (see the table)"
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
    for label, part in judges.groupby("label", sort=False):
        signs, tests = part[part["sign_flip"]], part[part["significance_flip"]]
        both = int((part["survive_down"] & part["survive_up"]).sum())
        yield (
            f"Of {counted(len(part), 'system')} under several judges, {label} prompts, {len(signs)} change the sign of "
            f"their difference with the judge ({both} of them with surviving differences of both signs), and "
            f"{len(tests)} survive under some judges only (which is no proof that those judges differ)."
        )
        for row in tests.head(_NAMED).to_dict(orient="records"):
            yield (
                f"{row['system']}, {row['label']}: survives under {row['survives']} of {row['judges']} judges "
                f"({row['surviving_judges']}), change {row['least']:+.0%} to {row['most']:+.0%}."
            )


def _of_primary(table: pd.DataFrame) -> Iterator[str]:
    """Which judges agree with the primary one, as far as the records fix it."""
    harmful = table[table["label"] == "harmful"]
    if harmful.empty:
        return
    known = bool((harmful["accuracy_least"] == harmful["accuracy_most"]).all())
    if not known:
        yield (
            "Accuracy, precision and recall against the primary judge are not fixed by counts, which do not tell on "
            "which answers two judges agree: what is given are the least and the most that the counts allow."
        )
    shown = "; ".join(
        f"{row['judge']} {_bounds(row, 'accuracy')}, {_bounds(row, 'precision')}, {_bounds(row, 'recall')}"
        for row in harmful.head(_NAMED + 2).to_dict(orient="records")
    )
    yield f"Against {harmful['primary'].iloc[0]} on harmful prompts (accuracy, precision, recall): {shown}."


def _bounds(row: dict[Any, Any], measure: str) -> str:
    return span([row[f"{measure}_least"], row[f"{measure}_most"]], ".2f")


def _of_prompts(table: pd.DataFrame) -> Iterator[str]:
    whole = table[table["arm"] == "all"]
    if len(whole):
        yield (
            "With the prompt's label for the truth (harmful: refuse, harmless: answer), over all models: accuracy "
            f"{_by_judge(whole, 'accuracy')}; precision {_by_judge(whole, 'precision')}; recall "
            f"{_by_judge(whole, 'recall')}."
        )


def _by_judge(rows: pd.DataFrame, column: str) -> str:
    known = rows[rows[column].notna()]
    if known.empty:
        return "undefined"
    least, most = known.loc[known[column].idxmin()], known.loc[known[column].idxmax()]
    if len(known) == 1:
        return f"{most[column]:.2f}"
    return f"from {least[column]:.2f} ({least['judge']}) to {most[column]:.2f} ({most['judge']})"


def _of_orders(pairs: pd.DataFrame, alpha: float) -> Iterator[str]:
    for label, part in pairs[pairs["tau"].notna()].groupby("label", sort=False):
        alike = int(((part["p_holm"] < alpha) & (part["tau"] > 0)).sum())
        against = int(((part["p_holm"] < alpha) & (part["tau"] < 0)).sum())
        yield (
            f"Kendall's tau between two judges' orders of {span(part['models'], '.0f')} models, {label} prompts: "
            f"{span(part['tau'], '.2f')}, median {part['tau'].median():.2f}; of {len(part)} pairs of judges {alike} "
            f"order alike and {against} the other way round beyond chance (Holm over the pairs). Pearson's "
            f"correlation of the rates: {span(part['pearson'], '.2f')}."
        )
