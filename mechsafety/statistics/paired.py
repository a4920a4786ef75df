"""Original against edited on the same prompts: exact McNemar, Holm over systems, and what n pairs can find."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binom, binomtest

from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics.tables import ARMS, deciding, groups, where

PAIRED_COLUMNS = ["system", "label", "judge", "b", "c", "p", "p_holm", "n", "dropped"]


def paired_tests(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Test original against edited on the same prompts: exact McNemar per system, label and judge.

    b counts prompts refused in the original only, c in the edited only; under no change b is binomial
    (b + c, 1/2), and p is its two-sided tail (McNemar 1947, exact form): b = 6, c = 0 gives 0.03125.
    ``p_holm`` is Holm's step-down adjustment over the systems within a (label, judge). A pair with an
    unparsed side is left out and counted in ``dropped``; ``n`` counts the pairs tested, and p is NaN where
    none is. Systems with one arm only are left out, and so are judges that abstain.

    Returns:
        One row per system, label and judge; columns PAIRED_COLUMNS.

    Example:
        >>> tests = ms.statistics.paired_tests(table)
        >>> tests.loc[tests["judge"] == "rules", ["system", "b", "c", "p", "p_holm"]]
          system  b  c         p    p_holm
        0      a  7  0  0.015625  0.046875
        2      b  7  0  0.015625  0.046875
        4      c  7  0  0.015625  0.046875
    """
    table = deciding(verdicts)
    rows: list[dict[str, object]] = []
    for key, group in groups(table, ["system", "label", "judge"]):
        original, edited = (_by_id(where(group, group["arm"] == arm)) for arm in ARMS)
        if not original or not edited:
            continue
        _refuse_unpaired(key, set(original), set(edited))
        pairs = [(original[i], edited[i]) for i in original]
        refused = [(one == "refusal", two == "refusal") for one, two in pairs if "unparsed" not in (one, two)]
        b, c, n = refused.count((True, False)), refused.count((False, True)), len(refused)
        p = mcnemar(b, c) if n else math.nan
        rows.append({**key, "b": b, "c": c, "p": p, "n": n, "dropped": len(pairs) - n})
    result = pd.DataFrame(rows, columns=PAIRED_COLUMNS).astype(
        dict.fromkeys(("b", "c", "n", "dropped"), int) | dict.fromkeys(("p", "p_holm"), float)
    )
    for _, part in groups(result, ["label", "judge"]):
        result.loc[part.index, "p_holm"] = holm(part["p"].to_numpy())
    return result


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) step-down p: the k-th smallest of m times m - k + 1, never below a smaller one's, at most 1.

    A NaN is no test: it stays NaN and is not one of the m. The same as statsmodels' ``multipletests`` of the others,
    which collects garbage at every call, some tenths of a second each.

    Arguments:
        p: p values; NaN is left out of m and stays NaN.

    Returns:
        The adjusted p values, in the order of those given.

    Example:
        >>> ms.statistics.holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p of McNemar's test for b and c discordant pairs; 1 where there are none.

    Arguments:
        b: Pairs that changed in one direction.
        c: Pairs that changed in the other.

    Example:
        >>> ms.statistics.mcnemar(6, 0)
        0.03125
    """
    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def sign_flip_p(differences: np.ndarray, *, seed: int = 0, flips: int = 9999) -> float:
    """Two-sided p of the mean of paired differences under random signs (Fisher's randomisation test); NaN of none.

    (1 + flips that lie as far from 0) / (1 + flips); over all signs where there are no more of them.
    """
    values = differences[np.isfinite(differences)]
    if not len(values):
        return math.nan
    every = 2 ** min(len(values), 40)
    if every <= flips:
        signs = 1.0 - 2.0 * ((np.arange(every)[:, None] >> np.arange(len(values))) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, len(values)))
    far = int((np.abs(signs @ values) >= abs(values.sum()) * (1 - 1e-12)).sum())
    return far / every if every <= flips else (1 + far) / (1 + flips)


def minimum_detectable_drop(
    n: int, *, baseline: float, gained: float = 0.0, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Return the smallest drop in refusal rate that exact McNemar on ``n`` pairs finds with ``power``.

    The drop is net: the edit loses ``drop + gained`` of the prompts and newly refuses ``gained`` of them. By default
    it only removes refusals, which makes the answer a lower bound. A test finds something when p is below alpha: at
    0.05 from 6 lost and none gained. NaN where even losing every refusal would not do.

    Raises :class:`MechsafetyError` for a number out of its range.

    Arguments:
        baseline: Rate before the edit, between 0 and 1.

    Example:
        >>> round(ms.statistics.minimum_detectable_drop(50, baseline=0.9), 3)
        0.154
    """
    if not (n > 0 and 0 < baseline <= 1 and 0 < alpha < 1 and 0 < power < 1):
        raise MechsafetyError(
            f"got n={n}, baseline={baseline}, alpha={alpha}, power={power}; "
            "n must be positive, baseline in (0, 1], alpha and power in (0, 1)"
        )
    check_gained(gained, baseline=baseline)

    def excess(drop: float) -> float:
        return mcnemar_power(n, lost=drop + gained, gained=gained, alpha=alpha) - power

    most = baseline - gained
    return cast(float, brentq(excess, 0.0, most)) if most > 0 and excess(most) >= 0 else math.nan


def mcnemar_power(n: int, *, lost: float, gained: float, alpha: float) -> float:
    """Chance that exact McNemar on ``n`` pairs finds the loss (p < ``alpha``) where these shares are lost and gained.

    The discordant pairs are binomial (n, lost + gained), and the gained among d of them binomial
    (d, gained / (lost + gained)); significant are the counts whose two-sided tail is below alpha. Numbers of discordant
    pairs with a tail of 1e-12 are left out.
    """
    apart = lost + gained
    if not apart:
        return 0.0
    d = np.arange(int(binom.ppf(1e-12, n, apart)), int(binom.isf(1e-12, n, apart)) + 1)
    most = (
        np.where(d > 0, binom.ppf(alpha / 2, d, 0.5), 0) - 1
    )  # the largest count with a tail below alpha / 2
    return float((binom.pmf(d, n, apart) * binom.cdf(most, d, gained / apart)).sum())


def check_gained(gained: float, *, baseline: float) -> None:
    if not 0 <= gained <= 1 - baseline + 1e-12:
        raise MechsafetyError(
            f"gained is {gained:g}; the edit can newly refuse 0 to {1 - baseline:g} of the prompts, as {baseline:g} "
            "are refused before it"
        )


def _by_id(side: pd.DataFrame) -> dict[object, str]:
    return dict(zip(side["id"], side["verdict"], strict=True))


def _refuse_unpaired(key: Mapping[str, str], original: set[object], edited: set[object]) -> None:
    if alone := original ^ edited:
        shown = ", ".join(sorted(map(str, alone))[:5])
        raise MechsafetyError(
            f"{' / '.join(key.values())}: {len(alone)} prompt ids are in one arm only ({shown}); "
            "a paired test needs the same prompts in both arms"
        )
