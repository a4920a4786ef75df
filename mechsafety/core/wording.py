"""How numbers and lists are spelt in sentences, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def counted(number: int, word: str) -> str:
    """``1 direction``, ``2 directions``, ``2 matrices``."""
    plural = f"{word[:-2]}ices" if word.endswith("ix") else f"{word}s"
    return f"{number} {word if number == 1 else plural}"


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def span(values: Iterable[Any], form: str) -> str:
    """``0.1 to 0.3``, or the one value where both ends read the same; ``undefined`` without values."""
    known = [float(value) for value in values if value == value]
    if not known:
        return "undefined"
    low, high = format(min(known), form), format(max(known), form)
    return low if low == high else f"{low} to {high}"


def percent_number(share: float) -> str:
    """``92``; 0 and 100 only where exact: ``0.4``, ``99.96`` and, below that, ``<0.01`` and ``>99.99``."""
    if share != share:
        return "unknown"
    for digits in (0, 1, 2):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0.0, 100.0) or float(text) == 100 * share:
            return text
    return "<0.01" if share < 0.5 else ">99.99"


def percent(share: float) -> str:
    """``92 %``, ``0.4 %``."""
    return f"{percent_number(share)} %"


def points(difference: float) -> str:
    """A difference of two shares: ``-80``; +0, +100 and -100 only where exact."""
    if difference != difference:
        return "unknown"
    exact = 100 * difference
    texts = [f"{exact:+.{digits}f}" for digits in (0, 1, 2, 4, 12)]
    return next((t for t in texts if abs(float(t)) not in (0.0, 100.0) or float(t) == exact), texts[-1])


def percent_cell(share: float, missing: str = "") -> str:
    """``92%``, ``0.4%``: a share where there is little room, on a figure or in a table."""
    return missing if share != share else f"{percent_number(share)}%"


def percent_between(share: float, low: float, high: float) -> str:
    """``92% [81%, 97%]``."""
    return f"{percent_cell(share)} [{percent_cell(low)}, {percent_cell(high)}]"


def two_digits(value: float) -> str:
    """``0.41``; 0.00, 1.00 and -1.00 only where exact, but for what arithmetic rounds."""
    texts = [f"{value:.{digits}f}" for digits in (2, 3, 4, 6, 8)]
    exact = texts[0] if float(texts[0]) else texts[0].removeprefix("-")
    return next((t for t in texts if abs(float(t)) not in (0.0, 1.0)), exact)
