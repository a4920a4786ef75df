"""How many labels, or prompts, a study needs before it begins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from scipy.stats import norm
from scipy.stats import t as student

from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics.paired import check_gained, mcnemar_power
from mechsafety.statistics.prevalence import LEAST_LABELS, UNSEEN_ERRORS, powered_bounds
from mechsafety.statistics.rates import wilson

_MOST = 1_000_000
_RUN = 40
"""Numbers in a row that must all be enough."""


def labels_for_rate(*, rate: float, width: float, confidence: float = 0.95) -> int:
    """Return how many responses to label so that Wilson's interval of a rate near ``rate`` is at most ``width`` wide.

    ``width`` is the whole width, high - low. The smallest n whose interval, and that of every larger n, is no wider.

    Raises :class:`MechsafetyError` for a number out of its range, and where more than a million would be
    needed.

    Example:
        >>> ms.statistics.labels_for_rate(rate=0.5, width=0.1)
        381
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

    The smallest n at which :func:`powered_bounds` are no further apart, with the
    variance of the mean of (truth - verdict) that :func:`prediction_powered` would find: the
    judge's error rate less the square of its bias, over n, with the errors that it adds, times 1 - n / N. At least the
    LEAST_LABELS that it asks for. None where labelling all N would not do: more responses are needed, not more labels.

    Raises :class:`MechsafetyError` for a number out of its range.

    Arguments:
        rate: Expected rate, between 0 and 1.
        sensitivity: Of the judge, between 0 and 1.
        specificity: Likewise.

    Example:
        >>> judge = {"sensitivity": 0.9, "specificity": 0.95}
        >>> ms.statistics.labels_for_correction(rate=0.5, **judge, responses=1000, width=0.1)
        164
    """
    _check(rate=rate, width=width, confidence=confidence, sensitivity=sensitivity, specificity=specificity)
    if responses < 1:
        raise MechsafetyError(f"responses is {responses}; it must be at least 1")
    missed, false = rate * (1 - sensitivity), (1 - rate) * (1 - specificity)

    def enough(n: int) -> bool:
        seen = n + UNSEEN_ERRORS
        error = ((n * (missed + false) + UNSEEN_ERRORS) / seen - (n * (missed - false) / seen) ** 2) / seen
        low, high = powered_bounds(
            rate,
            over_prompts=1 / responses,
            of_errors=max(0.0, 1 - n / responses) * error,
            t=float(student.ppf((1 + confidence) / 2, n - 1)),
        )
        return high - low <= width

    if responses < LEAST_LABELS or not enough(responses):
        return None
    return max(LEAST_LABELS, _smallest(lambda n: n >= responses or (n > 1 and enough(n))))


def labels_for_kappa(*, kappa: float, rate: float, width: float, confidence: float = 0.95) -> int:
    """Return how many doubly labelled responses give an interval of ``width`` for Cohen's kappa of two raters.

    The larger of two numbers for equal marginals ``rate`` = p. One is of the large-sample variance (Bloch and Kraemer
    1989), ``(1 - k) [(1 - k)(1 - 2k) + k (2 - k) / (2 p (1 - p))] / n``. It goes to 0 as k nears 1, where a
    sample without a disagreement still has the width of Wilson's interval; the other is
    :func:`labels_for_rate` of the agreement ``k (1 - e) + e`` with chance agreement e, at the width that this gives
    kappa, ``width (1 - e)``.

    Raises :class:`MechsafetyError` for a number out of its range.

    Arguments:
        kappa: Expected kappa.

    Example:
        >>> ms.statistics.labels_for_kappa(kappa=0.6, rate=0.5, width=0.2)
        247
    """
    _check(rate=rate, width=width, confidence=confidence)
    if not -1 < kappa < 1:
        raise MechsafetyError(f"kappa is {kappa}; it must lie between -1 and 1")
    variance = (1 - kappa) * ((1 - kappa) * (1 - 2 * kappa) + kappa * (2 - kappa) / (2 * rate * (1 - rate)))
    large = math.ceil(variance * (2 * float(norm.ppf((1 + confidence) / 2)) / width) ** 2)
    chance = rate**2 + (1 - rate) ** 2
    agreed = kappa * (1 - chance) + chance
    if not 0 < agreed < 1:
        return large
    return max(large, labels_for_rate(rate=agreed, width=width * (1 - chance), confidence=confidence))


def pairs_for_drop(
    *, drop: float, baseline: float, gained: float = 0.0, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Return how many prompts an exact McNemar test needs to find a ``drop`` from ``baseline`` with ``power``.

    The drop is net: ``drop + gained`` of the prompts are lost, and ``gained`` newly refused. By default the edit makes
    no new refusals, which gives a lower bound: new ones hide as many lost ones. The inverse of
    :func:`~mechsafety.statistics.minimum_detectable_drop`; every larger number is enough too.

    Example:
        >>> ms.statistics.pairs_for_drop(drop=0.2, baseline=0.9)
        39
    """
    if not 0 < drop <= baseline:
        raise MechsafetyError(f"drop is {drop}; it must be above 0 and at most the baseline, {baseline}")
    check_gained(gained, baseline=baseline)
    if drop + gained > baseline + 1e-12:
        raise MechsafetyError(
            f"a drop of {drop:g} with {gained:g} newly refused loses {drop + gained:g}; only {baseline:g} are refused"
        )

    def enough(n: int) -> bool:
        return mcnemar_power(n, lost=drop + gained, gained=gained, alpha=alpha) >= power

    found = _smallest(enough)
    # An exact test's power may fall a little from one n to the next.
    while short := [n for n in range(found, found + _RUN) if not enough(n)]:
        found = short[-1] + 1
    return found


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
