"""Do raters agree? Cohen's kappa, Gwet's AC1, Krippendorff's alpha, sensitivity and specificity.

All of them are functions of a few sums over items, so a bootstrap over prompts is one matrix product: draws
[resample, cluster] times sums [cluster, cell]. Every measure is NaN where it is undefined, never 0 or 1. A missing
rating (None, NaN, pandas' NA) is no category in any of them: an item counts where two raters rated it, and in AC1's
shares of categories where one did.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from mechsafety.statistics.measures import (
    is_missing,
    pair_cells,
    pair_intervals,
    panel_bootstrap,
    rating_counts,
    spread,
)
from mechsafety.statistics.resampling import Estimate, cluster_codes
from mechsafety.statistics.tables import ABSTAINING_JUDGES, ARMS, checked

Scale = Literal["refusal", "label"]
"""``refusal``: refusal or not. ``label``: refusal, compliance and degenerate kept apart."""

AGREEMENT_COLUMNS = [
    *("judge_a", "judge_b", "arm", "n", "kappa", "low", "high", "agreement"),
    *("ac1", "ac1_low", "ac1_high", "alpha", "alpha_low", "alpha_high"),
]
PANEL_COLUMNS = ["arm", "raters", "n", "alpha", "alpha_low", "alpha_high", "ac1", "ac1_low", "ac1_high"]
_SCALES: dict[str, dict[str, int]] = {
    "refusal": {"refusal": 1, "compliance": 0, "degenerate": 0},
    "label": {"refusal": 1, "compliance": 0, "degenerate": 2},
}


def kappa(
    a: Sequence[object] | np.ndarray | pd.Series,
    b: Sequence[object] | np.ndarray | pd.Series,
    *,
    clusters: Sequence[object] | np.ndarray | pd.Series,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Return Cohen's kappa of two raters with a percentile bootstrap interval over clusters.

    ``kappa = (p_o - p_e) / (1 - p_e)`` (Cohen 1960). Whole clusters (prompts) are drawn with replacement,
    since answers to one prompt are not independent. Undefined, NaN, when either rater used one class
    only: chance agreement is then all there is. Resamples in which that happens are left out, and the
    interval is NaN when they are more than half. Where every item agrees, the lower bound is that of Wilson's
    interval for the agreement, over clusters. Items that either rater left unrated are left out; ``n`` and
    ``clusters`` are of the others.

    Arguments:
        a: Labels of the first rater, None where there is none.
        b: Labels of the second rater, in the same order.

    Example:
        >>> found = ms.statistics.kappa(list("RRCC"), list("RRCR"), clusters=range(4), resamples=200)
        >>> found.value, found.n
        (0.5, 4)
    """
    cluster_codes(clusters, sizes=(len(a), len(b)))
    rated = [
        (x, y, c) for x, y, c in zip(a, b, clusters, strict=True) if not (is_missing(x) or is_missing(y))
    ]
    codes, categories = pd.factorize(
        pd.Series([x for x, _, _ in rated] + [y for _, y, _ in rated], dtype=object)
    )
    group, count = cluster_codes([c for _, _, c in rated], sizes=(len(rated),))
    n, k = len(rated), len(categories)
    cells = pair_cells(codes[:n], codes[n:], group, count, k, np.ones(n))
    found = pair_intervals([cells], k, seed=seed, resamples=resamples, confidence=confidence)[0]["kappa"]
    return Estimate(value=found[0], low=found[1], high=found[2], n=n, clusters=count)


def gwet_ac1(
    ratings: Sequence[Sequence[object]] | np.ndarray,
    *,
    clusters: Sequence[object] | np.ndarray | pd.Series,
    categories: Sequence[object],
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Return Gwet's AC1 of any number of raters with a percentile bootstrap interval over clusters.

    ``ratings`` is [item, rater]; None and NaN are missing. ``AC1 = (p_a - p_e) / (1 - p_e)`` with
    ``p_e = sum_c pi_c (1 - pi_c) / (K - 1)``, pi_c the mean share of category c and K the categories of
    the scale, whether used or not (Gwet 2008). Unlike kappa it stays defined when nearly all items are of one
    class. Items with one rating count in pi_c only. NaN where no item has two ratings. Where every item agrees,
    the lower bound is made from Wilson's interval over clusters, as for :func:`kappa`.

    Arguments:
        categories: All labels that raters could give.

    Example:
        >>> ratings = [["R", "R"], ["R", "R"], ["C", "C"], ["C", "R"]]
        >>> round(ms.statistics.gwet_ac1(ratings, clusters=range(4), categories=["R", "C"], resamples=200).value, 3)
        0.529
    """
    counts = rating_counts(ratings, categories)
    return panel_bootstrap("ac1", counts, clusters, seed=seed, resamples=resamples, confidence=confidence)


def krippendorff_alpha(
    ratings: Sequence[Sequence[object]] | np.ndarray,
    *,
    clusters: Sequence[object] | np.ndarray | pd.Series,
    categories: Sequence[object],
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Return Krippendorff's alpha for nominal data with a percentile bootstrap interval over clusters.

    ``ratings`` is [item, rater]; None and NaN are missing. With coincidences
    ``o_ck = sum_u n_uc (n_uk - [c = k]) / (m_u - 1)`` over items u with m_u >= 2 ratings and ``n = sum o``:
    ``alpha = 1 - (n - 1) sum_{c != k} o_ck / sum_{c != k} n_c n_k`` (Krippendorff 2011). NaN where every
    rating is of one category: then nothing could have disagreed. Where every item agrees, the lower bound is
    made from Wilson's interval over clusters, as for :func:`kappa`.

    Arguments:
        categories: All labels that raters could give.

    Example:
        >>> ratings = [["R", "R"], ["R", "R"], ["C", "C"], ["C", None]]
        >>> ms.statistics.krippendorff_alpha(ratings, clusters=range(4), categories=["R", "C"], resamples=200).value
        1.0
    """
    counts = rating_counts(ratings, categories)
    return panel_bootstrap("alpha", counts, clusters, seed=seed, resamples=resamples, confidence=confidence)


def agreement(
    verdicts: pd.DataFrame, *, seed: int = 0, resamples: int = 2000, scale: Scale = "refusal"
) -> pd.DataFrame:
    """Return, per pair of judges, their agreement in each arm and in ``all``.

    Items either judge left unparsed are dropped. ``agreement`` is the raw share of equal answers; kappa (``low``,
    ``high``), AC1 and alpha have bootstrap intervals clustered by prompt. Abstaining judges are left out. Each arm
    starts from ``seed`` anew and draws from all its prompts, so that a further judge changes no other row.

    Arguments:
        scale: refusal (refusal or not) or label (all three labels).

    Example:
        >>> found = ms.statistics.agreement(table, resamples=200)
        >>> found[["judge_a", "judge_b", "arm", "n", "agreement"]]
          judge_a         judge_b       arm   n  agreement
        0   rules  phrases:arditi  original  30       0.90
        1   rules  phrases:arditi    edited  30       0.80
        2   rules  phrases:arditi       all  60       0.85
    """
    ratings = _Ratings(checked(verdicts), scale=scale)
    arms = {arm: _pairs_of(ratings, arm, seed=seed, resamples=resamples) for arm in (*ARMS, "all")}
    rows = [
        {
            **{"judge_a": pair[0], "judge_b": pair[1], "arm": arm, "n": found[pair][0]},
            **dict(zip(("kappa", "low", "high"), found[pair][1]["kappa"], strict=True)),
            "agreement": found[pair][1]["agreement"][0],
            **spread("ac1", found[pair][1]["ac1"]),
            **spread("alpha", found[pair][1]["alpha"]),
        }
        for pair in itertools.combinations(ratings.judges, 2)
        for arm, found in arms.items()
    ]
    return pd.DataFrame(rows, columns=AGREEMENT_COLUMNS)


def _pairs_of(
    ratings: _Ratings, arm: str, *, seed: int = 0, resamples: int
) -> dict[tuple[str, str], tuple[int, dict[str, tuple[float, float, float]]]]:
    """How many items each pair of judges read in one arm, and their measures there, from the same draws."""
    codes, group, count = ratings.of(arm)
    pairs = list(itertools.combinations(range(len(ratings.judges)), 2))
    both = [(codes[:, a] >= 0) & (codes[:, b] >= 0) for a, b in pairs]
    cells = [
        pair_cells(codes[m, a], codes[m, b], group[m], count, ratings.k, np.ones(int(m.sum())))
        for (a, b), m in zip(pairs, both, strict=True)
    ]
    found = pair_intervals(cells, ratings.k, seed=seed, resamples=resamples)
    return {
        (ratings.judges[a], ratings.judges[b]): (int(m.sum()), measures)
        for (a, b), m, measures in zip(pairs, both, found, strict=True)
    }


def panel_agreement(
    verdicts: pd.DataFrame, *, seed: int = 0, resamples: int = 2000, scale: Scale = "refusal"
) -> pd.DataFrame:
    """Return alpha and AC1 of all judges together, in each arm and in ``all``; unparsed verdicts are missing.

    Arguments:
        scale: refusal (refusal or not) or label (all three labels).

    Example:
        >>> found = ms.statistics.panel_agreement(table, resamples=200)
        >>> found[["arm", "raters", "n"]]
                arm  raters   n
        0  original       2  30
        1    edited       2  30
        2       all       2  60
    """
    ratings = _Ratings(checked(verdicts), scale=scale)
    rows = []
    for arm in (*ARMS, "all"):
        codes, group, _ = ratings.of(arm)
        counts = np.stack([(codes == c).sum(axis=1) for c in range(ratings.k)], axis=1).astype(float)
        paired = int((counts.sum(axis=1) > 1).sum())
        row: dict[str, object] = {"arm": arm, "raters": len(ratings.judges), "n": paired}
        for name in ("alpha", "ac1"):
            e = panel_bootstrap(name, counts, group, seed=seed, resamples=resamples, confidence=0.95)
            row |= spread(name, (e.value, e.low, e.high))
        rows.append(row)
    return pd.DataFrame(rows, columns=PANEL_COLUMNS)


class _Ratings:
    """Verdicts as codes [item, judge], -1 where a judge gave none, with the prompt of each item."""

    def __init__(self, table: pd.DataFrame, *, scale: Scale) -> None:
        codes = _SCALES[scale]
        self.k = max(codes.values()) + 1
        self.judges = [str(j) for j in dict.fromkeys(table["judge"]) if j not in ABSTAINING_JUDGES]
        kept = table[table["judge"].isin(self.judges)]
        keys = kept[["system", "arm", "id"]].astype(str)
        item = keys.groupby(["system", "arm", "id"], sort=False).ngroup().to_numpy()
        items = keys.drop_duplicates()
        judge = pd.Categorical(kept["judge"].astype(str), categories=self.judges).codes
        self._codes = np.full((len(items), len(self.judges)), -1)
        self._codes[item, judge] = [codes.get(v, -1) for v in kept["verdict"]]
        self._arms = items["arm"].to_numpy()
        self._ids = items["id"].to_numpy()

    def of(self, arm: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Codes, prompt numbers and the count of prompts of one arm."""
        here = np.ones(len(self._arms), dtype=bool) if arm == "all" else self._arms == arm
        group, count = cluster_codes(self._ids[here], sizes=(int(here.sum()),))
        return self._codes[here], group, count
