"""Does a judge err alike on original and on edited responses? If not, the edit's effect is partly the judge's."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import norm

from mechsafety.statistics.counts import counts_test
from mechsafety.statistics.paired import holm
from mechsafety.statistics.prevalence import difference_of, inflation, powered_bounds
from mechsafety.statistics.rates import effective_number
from mechsafety.statistics.reference import reference_weights
from mechsafety.statistics.tables import ABSTAINING_JUDGES, ARMS, checked

LEAST_OF_AN_ARM = 5
"""Labelled responses of a kind that each arm needs before its errors are compared."""
ARM_ERROR_COLUMNS = [
    *("judge", "measure"),
    *(f"{arm}{name}" for arm in ARMS for name in ("", "_low", "_high", "_labels")),
    *("change", "low", "high", "p", "p_holm"),
]


def arm_errors(verdicts: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Sensitivity and specificity of every judge by arm, and a test of their difference.

    ``reference`` as for :func:`~mechsafety.statistics.against_reference`. Rates are weighted by ``weight``. Their
    numbers are effective ones: Kish's for the weights, less the inflation of the variance by prompts that several
    responses answer. Intervals: Wilson's for the effective number; of the change (edited minus original) Newcombe's
    (1998, method 10). ``p``: Boschloo's exact test of the effective counts, two-sided, ``p_holm`` Holm's over all
    judges and both measures. The arms are taken for independent samples: where the same prompts are hard in both, the
    test is conservative. NaN with fewer than LEAST_OF_AN_ARM labelled responses of the kind in an arm.

    Returns:
        One row per judge, label and arm; columns ARM_ERROR_COLUMNS.

    Example:
        >>> found = ms.statistics.arm_errors(table, people)
        >>> found[["judge", "measure", "original", "edited"]].round(3)
                    judge      measure  original  edited
        0           rules  sensitivity     1.000   1.000
        1           rules  specificity     1.000   0.889
        2  phrases:arditi  sensitivity     0.889   1.000
        3  phrases:arditi  specificity     1.000   0.667
    """
    table = checked(verdicts)
    joined = table.merge(reference_weights(reference), on=["system", "arm", "id"], how="inner")
    joined = joined[(joined["verdict"] != "unparsed").to_numpy()]
    rows = []
    for judge in dict.fromkeys(table["judge"]):
        part = joined[(joined["judge"] == judge).to_numpy()]
        if judge not in ABSTAINING_JUDGES and set(part["arm"]) == set(ARMS):
            rows += [
                {
                    "judge": str(judge),
                    "measure": measure,
                    **_compared(part[part["truth"].eq(refused).to_numpy()]),
                }
                for measure, refused in (("sensitivity", True), ("specificity", False))
            ]
    found = pd.DataFrame(rows, columns=ARM_ERROR_COLUMNS)
    return found.assign(p_holm=holm(found["p"].to_numpy(dtype=float)))


def _compared(part: pd.DataFrame) -> dict[str, float]:
    """Both arms' shares of responses that the judge reads as the reference does, and their difference."""
    row: dict[str, float] = {}
    counts: list[int] = []
    ends = []
    for arm in ARMS:
        mine = part[(part["arm"] == arm).to_numpy()]
        right = ((mine["verdict"] == "refusal") == mine["truth"].astype(bool)).to_numpy()
        rate, n = _effective(right, mine["weight"].to_numpy(), mine["id"].to_numpy())
        low, high = _wilson(rate, n)
        row |= {arm: rate, f"{arm}_low": low, f"{arm}_high": high, f"{arm}_labels": len(mine)}
        ends.append((rate, low, high))
        counts += [round(rate * max(1, int(n))) if n else 0, max(1, int(n))]
    tested = min(row[f"{arm}_labels"] for arm in ARMS) >= LEAST_OF_AN_ARM
    change, low, high = difference_of(*ends) if tested else (math.nan,) * 3
    p = counts_test(*counts)[0] if tested else math.nan
    return row | {"change": change, "low": low, "high": high, "p": p}


def _effective(right: np.ndarray, weight: np.ndarray, prompts: np.ndarray) -> tuple[float, float]:
    """The weighted share, and the number of independent responses that would fix it as well."""
    if not len(right):
        return math.nan, 0.0
    rate = float((weight * right).sum() / weight.sum())
    # A little added: 40 equal weights are 40 responses, not 39.
    return rate, effective_number(weight) / inflation(right.astype(float), prompts) + 1e-9


def _wilson(rate: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share of ``n`` responses, which need not be a whole number."""
    if not n:
        return math.nan, math.nan
    low, high = powered_bounds(rate, over_prompts=1 / n, of_errors=0.0, t=float(norm.ppf(0.975)))
    return max(0.0, min(low, rate)), min(1.0, max(high, rate))  # 0 and 1 are ends, whatever is rounded
