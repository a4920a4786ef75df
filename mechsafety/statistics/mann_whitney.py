"""The interval of an area under the ROC curve, a Mann-Whitney statistic over its number of pairs."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.stats import norm

_EDGE = 1e-12
"""At areas of 0 and 1 themselves the variance is 0, so that an estimate there is moved just inside."""


def score_interval(
    value: float, *, positives: int, negatives: int, inflation: float = 1.0, confidence: float = 0.95
) -> tuple[float, float]:
    """Every area that lies within z of its own standard errors of ``value`` (Newcombe 2006, method 5).

    That is every A with ``|A - value| <= z sqrt(inflation V(A))``, V being :func:`variance`: like Wilson's interval of
    a rate it takes the variance at A and not at the estimate, and so has a width where every pair agrees and where
    all scores are equal. Source: Statistics in Medicine 25:559.
    """
    z = float(norm.ppf((1 + confidence) / 2))

    def beyond(area: float) -> float:
        return abs(area - value) - z * math.sqrt(inflation * variance(area, positives, negatives))

    inside = min(max(value, _EDGE), 1 - _EDGE)
    low = 0.0 if value <= _EDGE else float(brentq(beyond, 0.0, inside))
    high = 1.0 if value >= 1 - _EDGE else float(brentq(beyond, inside, 1.0))
    return low, high


def variance(area: float, positives: int, negatives: int) -> float:
    """Of the estimate of a true ``area`` A from m positives and n negatives, each an independent draw.

    ``A (1 - A) [1 + N ((1 - A) / (2 - A) + A / (1 + A))] / (m n)``: Hanley and McNeil's (1982) with
    ``N = (m + n) / 2 - 1`` in place of both m - 1 and n - 1 (Newcombe 2006).
    """
    terms = (1 - area) / (2 - area) + area / (1 + area)
    return area * (1 - area) * (1 + ((positives + negatives) / 2 - 1) * terms) / (positives * negatives)


def inflation(value: float, found: float, *, positives: int, negatives: int) -> float:
    """How much larger the variance ``found`` by resampling is than :func:`variance` at ``value``; at least 1."""
    expected = variance(value, positives, negatives)
    return max(1.0, found / expected) if expected > 0 else 1.0
