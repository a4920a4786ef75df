"""One measure over several draws or controls: the mean, with the span from the lowest to the highest interval's end.

The draws share their prompts, so that more draws make no narrower interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """The mean of one measure over draws, with the span of their intervals; NaN where nothing was measured."""

    value: float
    low: float
    high: float
    draws: int


def pooled(rows: pd.DataFrame, measure: str) -> Pooled:
    """One measure of the rows of one state: one row per draw."""
    known = rows[rows[measure].notna()] if measure in rows else rows.iloc[:0]
    if known.empty:
        return Pooled(value=math.nan, low=math.nan, high=math.nan, draws=0)
    ends = [
        known[f"{measure}_{end}"] if f"{measure}_{end}" in known else known[measure]
        for end in ("low", "high")
    ]
    return Pooled(
        value=float(known[measure].mean()),
        low=float(ends[0].min()),
        high=float(ends[1].max()),
        draws=len(known),
    )
