"""Original against edited on the same prompts: exact McNemar, Holm over systems, and what n pairs can find."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binom, binomtest

from mechsafety.errors import MechsafetyError
from mechsafety.statistics.tables import ARMS, deciding, groups, where

PAIRED_COLUMNS = ["system", "label", "judge", "b", "c", "p", "p_holm", "n", "dropped"]


def paired_tests(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Test original against edited on the same prompts: exact McNemar per system, label and judge.

    b counts prompts refused in the original only, c in the edited only; under no change b is binomial
    (b + c, 1/2), and p is its two-sided tail (McNemar 1947, exact form): b = 6, c = 0 gives 0.03125.
    ``p_holm`` is Holm's step-down adjustment over the systems within a (label, judge). A pair with an
    unparsed side is left out and counted in ``dropped``; ``n`` counts the pairs tested, and p is NaN where
    none is. Systems with one arm only are left out, and so are judges that abstain.
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
    for _, part in groups(where(result, result["p"].notna()), ["label", "judge"]):
        result.loc[part.index, "p_holm"] = holm(part["p"].to_numpy())
    return result


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) step-down p: the k-th smallest of m times m - k + 1, never below a smaller one's, at most 1.

    The same as statsmodels' ``multipletests``, which collects garbage at every call, some tenths of a second each.
    """
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p of McNemar's test for b and c discordant pairs; 1 where there are none."""
    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def minimum_detectable_drop(n: int, *, baseline: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest drop in refusal rate that exact McNemar on ``n`` pairs finds with ``power``.

    Assumes that the edit only removes refusals (c = 0), so that b is binomial (n, drop); the test is then
    significant from the smallest b with ``2 ** (1 - b) <= alpha`` (6 at 0.05). New refusals in the edited
    arm would raise the answer, so it is a lower bound. NaN where even losing every refusal
    (drop = baseline) would not do.
    """
    if not (n > 0 and 0 < baseline <= 1 and 0 < alpha < 1 and 0 < power < 1):
        raise MechsafetyError(
            f"got n={n}, baseline={baseline}, alpha={alpha}, power={power}; "
            "n must be positive, baseline in (0, 1], alpha and power in (0, 1)"
        )
    least = next(b for b in itertools.count(1) if mcnemar(b, 0) <= alpha)

    def excess(drop: float) -> float:
        return float(binom.sf(least - 1, n, drop)) - power

    return cast(float, brentq(excess, 0.0, baseline)) if excess(baseline) >= 0 else math.nan


def _by_id(side: pd.DataFrame) -> dict[object, str]:
    return dict(zip(side["id"], side["verdict"], strict=True))


def _refuse_unpaired(key: Mapping[str, str], original: set[object], edited: set[object]) -> None:
    if alone := original ^ edited:
        shown = ", ".join(sorted(map(str, alone))[:5])
        raise MechsafetyError(
            f"{' / '.join(key.values())}: {len(alone)} prompt ids are in one arm only ({shown}); "
            "a paired test needs the same prompts in both arms"
        )
