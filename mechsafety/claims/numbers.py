"""How numbers are spelt in claims: what is shown is never on the other side of 0, 1 or alpha than what was computed."""

from __future__ import annotations

import math

from mechsafety.core.wording import percent, percent_number, points, two_digits

ALPHA = 0.05
"""The level of every test: a change is shown where its p after correction is below it."""


def significant(p: float, alpha: float = ALPHA) -> bool:
    """Whether a test shows something; NaN is a test that was not made."""
    return p < alpha


def p_value(p: float, alpha: float = ALPHA) -> str:
    """``p = .012``, ``p < .0001``, with so many digits that it stands on its own side of ``alpha``."""
    if p != p:
        return "not tested"
    if p < 1e-4:
        return "p < .0001"
    digits = 2
    while digits < 12 and (float(f"{p:.{digits}g}") < alpha) != (p < alpha):
        digits += 1
    text = f"{p:.{digits}g}"
    return f"p = {text[1:] if text.startswith('0.') else text}"


def number(value: float, unit: str) -> str:
    """A value with its unit: shares as percent, AUROC and cosines with two digits, others with three that count."""
    if value != value:
        return "unknown"
    value += 0.0  # no -0
    if unit == "share":
        return percent(value)
    if unit in TWO_DIGITS:
        return two_digits(value)
    if unit == "points":
        return f"{_of_points(value)} points"
    return f"{_three_digits(value)}{f' {unit}' if unit else ''}"


def _three_digits(value: float) -> str:
    """Without an exponent: 0 for what arithmetic rounds, and a bound for what a float has no digits of."""
    if abs(value) >= _MOST:
        return f"{'>' if value > 0 else '<-'}{_MOST:.0f}"
    rounded = float(f"{value:.2e}")  # of which the size is that of the text
    size = abs(rounded)
    if size >= 1000:
        return f"{value:.0f}"
    if size >= 1e-4 or not size:
        return f"{rounded:.3g}"
    return "0" if size < 1e-12 else f"{rounded:.{2 - math.floor(math.log10(size))}f}"


_MOST = 1e15
"""From here on a float has no digit behind each place; what is infinite lies above it too."""
TWO_DIGITS = ("AUROC", "cosine", "kappa", "tau", "correlation", "Jaccard", "similarity")
"""Units between -1 and 1 that are written without their name."""


def _of_points(value: float) -> str:
    """100 and -100 only where exact."""
    texts = [f"{value:.{digits}g}" for digits in (3, 5, 12)]
    return next((t for t in texts if abs(float(t)) != 100.0 or float(t) == value), texts[-1])


def points_between(low: float, high: float) -> str:
    """``[-90, -63]`` of a difference of shares; empty where it is not known."""
    return "" if math.isnan(low) or math.isnan(high) else f"[{points(low)}, {points(high)}]"


def between(low: float, high: float, unit: str) -> str:
    """``[81, 97]`` of shares in percent, ``[8.5, 20]`` of points, ``[0.47, 0.72]``; empty where it is not known."""
    if math.isnan(low) or math.isnan(high):
        return ""
    if unit == "share":
        return f"[{percent_number(low)}, {percent_number(high)}]"
    if unit == "points":
        return f"[{_of_points(low)}, {_of_points(high)}]"
    return f"[{number(low, unit if unit in TWO_DIGITS else '')}, {number(high, unit if unit in TWO_DIGITS else '')}]"
