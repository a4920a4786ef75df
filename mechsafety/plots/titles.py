"""Texts on figures that several have: titles of panels, marks of significance, texts of cells, names on axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechsafety.core.wording import span
from mechsafety.plots.style import system_names, wrapped


def count_title(rates: pd.DataFrame, label: str) -> str:
    n = rates[rates["label"] == label]["n"]
    return f"{label} prompts (n = {span(n, '.0f') if len(n) else 0} each)"


def stars(tests: pd.DataFrame, *, system: str, label: str, judge: str) -> str:
    row = tests[(tests["system"] == system) & (tests["label"] == label) & (tests["judge"] == judge)]
    if row.empty or row["p_holm"].isna().all():
        return ""
    p = float(row["p_holm"].iloc[0])
    return next((mark for bound, mark in ((0.001, "***"), (0.01, "**"), (0.05, "*")) if p < bound), "n.s.")


def cell(cell: Any) -> str:
    if cell is None or not cell.n:
        return "no answer<br>read by both"
    if cell.kappa != cell.kappa:
        return "undefined"
    return f"{cell.kappa:.2f}<br>[{cell.low:.2f}, {cell.high:.2f}]"


def arm_names(systems: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Each system's name and arm over several lines, for an axis: as many names as there are pairs."""
    names = system_names(systems)
    return [
        f"{wrapped(names[s].replace('+', ' +'), 18)}<br>{arm}" for s, arm in zip(systems, arms, strict=True)
    ]


def read_arm(row: Any, arm: str) -> str:
    """An arm's name, and how many of its answers were read where that is not all."""
    return arm if not row["unparsed"] else f"{arm}<br>{row['n'] - row['unparsed']:g} of {row['n']:g} read"
