"""Numbers of a ladder in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return "unknown" if share != share else f"{round(100 * share)}"


def told_p(p: float) -> str:
    """``p = 0.012``, ``p < 0.001``; NaN is a test that was not made."""
    if p != p:
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def counted(number: int, word: str) -> str:
    """``1 direction``, ``2 directions``."""
    return f"{number} {word}{'s' * (number != 1)}"


def span(values: Any, form: str) -> str:
    """``0.1 to 0.3``, or the one value where both ends read the same."""
    low, high = format(float(values.min()), form), format(float(values.max()), form)
    return low if low == high else f"{low} to {high}"


def spread(rows: pd.DataFrame, column: str, names: Mapping[str, str], form: str, text: str) -> str:
    """``text`` with the span of ``column`` over systems and whose the highest is; empty where nothing is known."""
    known = rows[rows[column].notna()]
    if known.empty:
        return ""
    found = span(known[column], form)
    highest = known.loc[known[column].idxmax(), "system"]
    return text.format(found) + (f" (most: {names.get(str(highest), highest)})" if " to " in found else "")
