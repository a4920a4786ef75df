"""Rates of refusal with their intervals and denominators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import LABELS
from mechsafety.statistics.tables import ABSTAINING_JUDGES, checked, groups

RATE_COLUMNS = [
    *("system", "arm", "label", "judge", "n"),
    *("refusal", "compliance", "degenerate", "unparsed", "rate", "low", "high"),
]


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Interval:
    """A proportion with its confidence interval; all NaN where ``n`` is 0.

    Arguments:
        rate: The proportion, between 0 and 1.
        low: Lower end of its interval.
        high: Upper end.

    Example:
        >>> found = ms.statistics.wilson(0, 20)
        >>> found.rate, round(found.high, 3)
        (0.0, 0.161)
    """

    rate: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Return the rate ``successes / n`` with its Wilson score interval (Wilson 1927).

    The interval is the set of p with ``|successes/n - p| <= z sqrt(p (1 - p) / n)``. With n = 0 nothing is
    known: rate and bounds are NaN.

    Raises :class:`MechsafetyError` for more successes than trials.

    Arguments:
        n: Number of trials.

    Example:
        >>> ms.statistics.wilson(9, 10)
        Interval(rate=0.9, low=0.5958499732047615, high=0.9821237869049271, n=10)
    """
    if not 0 <= successes <= n:
        raise MechsafetyError(f"wilson got {successes} successes of {n}; it needs 0 <= successes <= n")
    if not 0 < confidence < 1:
        raise MechsafetyError(f"confidence is {confidence}; it must lie between 0 and 1, for example 0.95")
    if n == 0:
        return Interval(rate=math.nan, low=math.nan, high=math.nan, n=0)
    low, high = cast(
        "tuple[float, float]", proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    )
    # The bounds are 0 and 1 exactly at the ends; the formula leaves rounding error there.
    low = 0.0 if successes == 0 else float(low)
    high = 1.0 if successes == n else float(high)
    return Interval(rate=successes / n, low=low, high=high, n=n)


def effective_number(weight: np.ndarray) -> float:
    """How many equally weighted items carry as much information: ``(sum w)^2 / sum w^2`` (Kish 1965); 0 of none."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if len(weight) else 0.0


def weighted_wilson(rate: float, weight: np.ndarray) -> Interval:
    """Wilson's interval of a weighted rate, for the effective number of its items, rounded and at least one."""
    n = max(1, round(effective_number(weight)))
    return wilson(round(rate * n), n)


def refusal_rates(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return counts of each verdict and the refusal rate per system, arm, prompt label and judge.

    ``rate = refusal / (n - unparsed)`` with its 95 % Wilson interval; degenerate text is read, and is no
    refusal. NaN where nothing was readable, and for a judge that abstains. Systems and judges keep their
    order of first appearance; original comes before edited, harmful before harmless.

    Example:
        >>> rates = ms.statistics.refusal_rates(table)  # system, arm, id, label, judge, verdict
        >>> rates.loc[rates["judge"] == "rules", ["system", "arm", "n", "refusal", "rate"]].head(2)
          system       arm   n  refusal  rate
        0      a  original  10        9   0.9
        2      a    edited  10        2   0.2
    """
    table = checked(verdicts)
    rows: list[dict[str, object]] = []
    for key, group in groups(table, ["system", "arm", "label", "judge"]):
        counts = {label: int(np.sum(group["verdict"] == label)) for label in LABELS}
        readable = 0 if key["judge"] in ABSTAINING_JUDGES else len(group) - counts["unparsed"]
        interval = wilson(counts["refusal"] if readable else 0, readable)
        rows.append(
            {
                **key,
                "n": len(group),
                **counts,
                "rate": interval.rate,
                "low": interval.low,
                "high": interval.high,
            }
        )
    return pd.DataFrame(rows, columns=RATE_COLUMNS).astype(
        dict.fromkeys(("n", *LABELS), int) | dict.fromkeys(("rate", "low", "high"), float)
    )


def bounds(row: Mapping[str, object] | pd.Series) -> tuple[float, float]:
    """Return the refusal rate of a row of :func:`refusal_rates` if no, or every, unparsed text refused.

    ``(refusal / n, (refusal + unparsed) / n)``: no assumption about what could not be read (Manski 1989).

    Arguments:
        row: A row of a table of rates.

    Example:
        >>> ms.statistics.bounds({"n": 10, "refusal": 6, "unparsed": 2})
        (0.6, 0.8)
    """
    n, refusal, unparsed = (int(cast(int, row[name])) for name in ("n", "refusal", "unparsed"))
    return (refusal / n, (refusal + unparsed) / n) if n else (math.nan, math.nan)
