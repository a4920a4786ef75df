"""The sentences on figures: titles that say what is seen, marks of significance, texts of cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechsafety.plots.style import system_names, wrapped


def count_title(rates: pd.DataFrame, label: str) -> str:
    n = rates[rates["label"] == label]["n"]
    return f"{label} prompts (n = {int(n.max()) if len(n) else 0} each)"


def stars(tests: pd.DataFrame, *, system: str, label: str, judge: str) -> str:
    row = tests[(tests["system"] == system) & (tests["label"] == label) & (tests["judge"] == judge)]
    if row.empty or row["p_holm"].isna().all():
        return ""
    p = float(row["p_holm"].iloc[0])
    return next((mark for bound, mark in ((0.001, "***"), (0.01, "**"), (0.05, "*")) if p < bound), "n.s.")


def change_title(rates: pd.DataFrame, systems: Sequence[str]) -> str:
    """The widest change in refusals of harmful prompts, in words."""
    harmful = rates[rates["label"] == "harmful"].set_index(["system", "arm"])["rate"]
    changes = [
        (abs(harmful[(s, "original")] - harmful[(s, "edited")]), s)
        for s in systems
        if (s, "original") in harmful.index and (s, "edited") in harmful.index
    ]
    changes = [c for c in changes if c[0] == c[0]]
    if not changes:
        return "What each system answers"
    _, system = max(changes)
    before, after = harmful[(system, "original")], harmful[(system, "edited")]
    return (
        f"{system_names(systems)[system]} refuses {before:.0%} of harmful prompts, {after:.0%} after the edit"
    )


def spread_title(rates: pd.DataFrame, judges: Sequence[str]) -> str:
    spread = rates.groupby(["system", "arm", "label"])["rate"].agg(lambda r: r.max() - r.min())
    if len(judges) < 2 or spread.empty:
        return "Refusal rates by judge"
    return f"Judges differ by up to {100 * spread.max():.0f} points on the same responses"


def sweep_title(rows: pd.DataFrame, shown: str, selected: int | None, *, among: pd.DataFrame) -> str:
    """What is selected, where in the prompt if ``among`` knows several places, and the widest separation of all."""
    several = len(set(among["position"])) > 1
    at = f"position {int(rows['position'].iloc[0])}, " if several else ""
    known = among[among["auroc"].notna()]
    if selected is None or known.empty:
        return f"{shown}: where the direction lives" + (f" ({at[:-2]})" if several else "")
    best = known.iloc[int(known["auroc"].argmax())]
    there = rows[rows["layer"] == selected]["auroc"]
    where = f"layer {int(best['layer'])}" + (f", position {int(best['position'])}" if several else "")
    return (
        f"{shown}: {at}layer {selected} selected, AUROC {float(there.iloc[0]):.2f} there "
        f"(highest {float(best['auroc']):.2f} at {where})"
    )


def agreement_title(rows: pd.DataFrame) -> str:
    defined = rows[rows["kappa"].notna()]
    if defined.empty:
        return "Agreement of the judges is undefined: some say one class only"
    low, high = defined["kappa"].min(), defined["kappa"].max()
    span = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
    return f"Agreement between judges: kappa {span}"


def cell(cell: Any) -> str:
    if cell is None or cell.kappa != cell.kappa:
        return "undefined"
    return f"{cell.kappa:.2f}<br>[{cell.low:.2f}, {cell.high:.2f}]"


def selfjudge_title(summary: pd.DataFrame) -> str:
    """How well models tell their own refusals, against the best control."""
    own = summary["auc"].dropna()
    if own.empty:
        return "Whether models see their own refusals is undefined: one class only"
    controls = summary[["auc_shuffled", "auc_length"]].max(axis=None)
    span = f"{own.min():.2f} to {own.max():.2f}"
    return f"Models tell their own refusals with AUC {span}; a control reaches {controls:.2f}"


def arm_names(systems: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Each system's name and arm over several lines, for an axis: as many names as there are pairs."""
    names = system_names(systems)
    return [
        f"{wrapped(names[s].replace('+', ' +'), 18)}<br>{arm}" for s, arm in zip(systems, arms, strict=True)
    ]


def read_arm(row: Any, arm: str) -> str:
    """An arm's name, and how many of its answers were read where that is not all."""
    return arm if not row["unparsed"] else f"{arm}<br>{row['n'] - row['unparsed']} of {row['n']} read"
