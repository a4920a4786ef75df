"""How many labels, or prompts, a study needs before it begins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from scipy.stats import norm
from scipy.stats import t as student

from mechsafety.errors import MechsafetyError
from mechsafety.statistics.paired import minimum_detectable_drop
from mechsafety.statistics.prevalence import LEAST_LABELS, UNSEEN_ERRORS
from mechsafety.statistics.rates import wilson

_MOST = 1_000_000


def labels_for_rate(*, rate: float, width: float, confidence: float = 0.95) -> int:
    """Return how many responses to label so that Wilson's interval of a rate near ``rate`` is at most ``width`` wide.

    ``width`` is the whole width, high - low. The smallest n whose interval, and that of every larger n, is no wider.
    """
    _check(rate=rate, width=width, confidence=confidence)
    found = _smallest(lambda n: _wilson_width(rate, n, confidence) <= width)
    # A count next to the rate jumps about once in 1 / rate steps, and the width with it.
    period = math.ceil(1 / min(rate, 1 - rate))
    while wide := [n for n in range(found, found + period + 1) if _wilson_width(rate, n, confidence) > width]:
        found = wide[-1] + 1
    return found


def labels_for_correction(
    *,
    rate: float,
    sensitivity: float,
    specificity: float,
    responses: int,
    width: float,
    confidence: float = 0.95,
) -> int | None:
    """Return how many of ``responses`` judged responses to label for a prediction-powered interval of ``width``.

    Solves ``2 t sqrt(p (1 - p) / N + (1 - n / N) v) <= width`` for n, with v the variance of the mean of
    (truth - verdict) that :func:`~mechsafety.statistics.prediction_powered` would find: the judge's error rate less the
    square of its bias, over n, with the errors that it adds. At least the LEAST_LABELS that it asks for. None where
    labelling all N would not do: more responses are needed, not more labels.
    """
    _check(rate=rate, width=width, confidence=confidence, sensitivity=sensitivity, specificity=specificity)
    if responses < 1:
        raise MechsafetyError(f"responses is {responses}; it must be at least 1")
    missed, false = rate * (1 - sensitivity), (1 - rate) * (1 - specificity)

    def enough(n: int) -> bool:
        seen = n + UNSEEN_ERRORS
        error = ((n * (missed + false) + UNSEEN_ERRORS) / seen - (n * (missed - false) / seen) ** 2) / seen
        variance = rate * (1 - rate) / responses + max(0.0, 1 - n / responses) * error
        return 2 * float(student.ppf((1 + confidence) / 2, n - 1)) * math.sqrt(variance) <= width

    if responses < LEAST_LABELS or not enough(responses):
        return None
    return max(LEAST_LABELS, _smallest(lambda n: n >= responses or (n > 1 and enough(n))))


def labels_for_kappa(*, kappa: float, rate: float, width: float, confidence: float = 0.95) -> int:
    """Return how many doubly labelled responses give an interval of ``width`` for Cohen's kappa of two raters.

    Large-sample variance for equal marginals ``rate`` (Bloch and Kraemer 1989):
    ``(1 - k) [(1 - k)(1 - 2k) + k (2 - k) / (2 p (1 - p))] / n``.
    """
    _check(rate=rate, width=width, confidence=confidence)
    if not -1 < kappa < 1:
        raise MechsafetyError(f"kappa is {kappa}; it must lie between -1 and 1")
    variance = (1 - kappa) * ((1 - kappa) * (1 - 2 * kappa) + kappa * (2 - kappa) / (2 * rate * (1 - rate)))
    return math.ceil(variance * (2 * float(norm.ppf((1 + confidence) / 2)) / width) ** 2)


def pairs_for_drop(*, drop: float, baseline: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return how many prompts an exact McNemar test needs to find a ``drop`` from ``baseline`` with ``power``.

    The inverse of :func:`~mechsafety.statistics.minimum_detectable_drop`, with its assumption that the edit makes no
    new refusals: a lower bound.
    """
    if not 0 < drop <= baseline:
        raise MechsafetyError(f"drop is {drop}; it must be above 0 and at most the baseline, {baseline}")

    def enough(n: int) -> bool:
        found = minimum_detectable_drop(n, baseline=baseline, alpha=alpha, power=power)
        return found <= drop

    return _smallest(enough)


def _wilson_width(rate: float, n: int, confidence: float) -> float:
    # The two counts next to the rate: the interval of a sample is never of a fractional count.
    counts = {math.floor(rate * n), math.ceil(rate * n)}
    found = [wilson(k, n, confidence=confidence) for k in counts]
    return max(interval.high - interval.low for interval in found)


def _smallest(enough: Callable[[int], bool]) -> int:
    """The smallest n from which on ``enough`` holds, if it never ceases to; found by doubling and then halving."""
    high = next((2**i for i in itertools.count() if 2**i > _MOST or enough(2**i)), _MOST)
    if high > _MOST:
        raise MechsafetyError(f"more than {_MOST:,} would be needed; ask for less")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _check(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 < value < 1 and not (name in ("sensitivity", "specificity") and value == 1):
            raise MechsafetyError(f"{name} is {value}; it must lie between 0 and 1")
