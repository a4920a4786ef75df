"""A candidate taken by what the model writes: coherent compliance, then the likelihood of its own answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Int

from mechsafety.sweeps.ranking import Scores, failed_filters
from mechsafety.sweeps.selected import Confirmation

_SHOWN = 1.645
"""Standard errors that a difference has to exceed to be shown at 5 %, one-sided."""


def answered_rows(scores: Scores) -> Int[np.ndarray, " read"]:
    return np.flatnonzero(~np.isnan(scores["complied"])) if "complied" in scores else np.array([], dtype=int)


def by_answers(scores: Scores, read: Int[np.ndarray, " read"], *, n_layers: int) -> tuple[int, Confirmation]:
    """The highest coherent compliance, then the lowest nll, and the margin to the next.

    Of those that pass every filter of the scores, unless one that fails some is shown to do better than all of them (at
    5 %, one-sided). Among those that pass the highest is taken, shown to be so or not: a candidate that costs less is
    as a rule one that removes less.
    """
    n = int(scores["n_answers"][read[0]])
    complied, nll = scores["complied"], scores["nll"]
    places = [scores[name][read] for name in ("position", "layer")]
    order = read[np.lexsort([*places, nll[read], -complied[read]])]
    answered = {int(i): round(float(complied[i]) * n) for i in order}
    highest = int(order[0])
    best = next((i for i in answered if not failed_filters(scores, i, n_layers)), highest)
    p = (answered[highest] + 1) / (n + 2)  # never a standard error of 0
    if complied[highest] - complied[best] > _SHOWN * math.sqrt(2 * p * (1 - p) / n):
        best = highest
    others = [i for i in answered if i != best]
    margin, low, high = math.nan, math.nan, math.nan
    if others:
        margin, low, high = _difference(answered[best], answered[others[0]], n)
    return best, Confirmation(
        n=n,
        refused=float(scores["refused"][best]),
        complied=float(complied[best]),
        degenerate=float(scores["degenerate"][best]),
        nll=float(nll[best]),
        candidates=len(read),
        runner_up=(int(scores["position"][others[0]]), int(scores["layer"][others[0]])) if others else None,
        margin=margin,
        margin_low=low,
        margin_high=high,
    )


def _difference(a: int, b: int, n: int) -> tuple[float, float, float]:
    """(a - b) / n with Newcombe's 95 % interval."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    bounds: Any = confint_proportions_2indep(a, n, b, n, method="newcomb", compare="diff")
    return (a - b) / n, float(bounds[0]), float(bounds[1])
