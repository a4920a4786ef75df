"""The area under the ROC curve with an interval over clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics.mann_whitney import inflation, score_interval
from mechsafety.statistics.resampling import Estimate, cluster_codes, cluster_weights, flat


def auroc_interval(
    scores: Sequence[float] | np.ndarray | pd.Series,
    labels: Sequence[bool] | Sequence[int] | np.ndarray | pd.Series,
    *,
    clusters: Sequence[object] | np.ndarray | pd.Series | None = None,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Return the area under the ROC curve of ``scores`` for true ``labels``, with a score interval over clusters.

    The chance that a positive scores above a negative, ties counting half (Hanley and McNeil 1982). The interval is
    Newcombe's (:func:`score_interval`): it has a width where every pair agrees and where all
    scores are equal, and holds the truth with few items (docs/statistics.md), as a bootstrap of the value does not.

    Its variance is multiplied by how much more the value varies over ``resamples`` draws of whole clusters (prompts; by
    default each item is its own) than it gives for independent items: at least 1, and c / (c - 1) times the variance
    of the draws for c clusters. Where no draw differs from another it is that of clusters that move as one.

    NaN with one class only; no interval from a single cluster.

    Example:
        >>> found = ms.statistics.auroc_interval([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        >>> found.value
        0.75
    """
    truth, score = _checked(labels, scores)
    group, count = cluster_codes(
        range(len(score)) if clusters is None else clusters, sizes=(len(score), len(truth))
    )
    order = np.argsort(score, kind="stable")
    starts = (
        np.flatnonzero(np.diff(rankdata(score, method="dense")[order], prepend=0)) if len(order) else order
    )
    positive, group = truth[order].astype(bool), group[order]
    value = float(_aurocs(np.ones((1, len(order))), positive, starts)[0])
    low = high = math.nan
    if count > 1 and not math.isnan(value):
        rng = np.random.default_rng(seed)
        blocks = cluster_weights(rng, count, resamples, width=len(order))
        drawn = [_aurocs(weights[:, group], positive, starts) for weights in blocks]
        low, high = score_interval(
            value,
            positives=int(positive.sum()),
            negatives=int((~positive).sum()),
            inflation=_inflated(value, drawn, positive, group),
            confidence=confidence,
        )
    return Estimate(value=value, low=low, high=high, n=len(order), clusters=count)


def _inflated(value: float, drawn: Sequence[np.ndarray], positive: np.ndarray, group: np.ndarray) -> float:
    """How much more the area varies over draws of clusters than over as many independent items; at least 1."""
    if flat(drawn):
        return max(float(side.sum()) / len(np.unique(group[side])) for side in (positive, ~positive))
    count = len(np.unique(group))
    found = float(np.nanvar(np.concatenate(drawn))) * count / (count - 1)
    return inflation(value, found, positives=int(positive.sum()), negatives=int((~positive).sum()))


def _checked(labels: ArrayLike, *scores: ArrayLike) -> list[np.ndarray]:
    """Labels that are 0 or 1, and as many finite numbers of each score. Raises :class:`MechsafetyError` for others."""
    truth, *found = np.asarray(labels), *(np.asarray(score, dtype=float) for score in scores)
    if not np.isin(truth, (0, 1)).all() or not all(np.isfinite(score).all() for score in found):
        raise MechsafetyError(
            "an area under the ROC curve needs finite scores and labels that are 0 or 1; drop or mend the others"
        )
    if any(score.shape != truth.shape for score in found):
        raise MechsafetyError(f"{len(truth)} labels and {len(found[0])} scores: one a score is needed")
    return [truth, *found]


def _aurocs(weights: np.ndarray, positive: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the weighted AUROC per row of ``weights`` [resample, item]; items sorted by score.

    ``starts`` are the offsets of the groups of equal scores.
    """
    if not len(starts):
        return np.full(len(weights), np.nan)
    pos = np.add.reduceat(weights * positive, starts, axis=1)
    neg = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(neg, axis=1) - neg
    with np.errstate(invalid="ignore", divide="ignore"):
        return (pos * (below + neg / 2)).sum(axis=1) / (pos.sum(axis=1) * neg.sum(axis=1))


def paired_auroc_p(
    first: Sequence[float] | np.ndarray | pd.Series,
    second: Sequence[float] | np.ndarray | pd.Series,
    labels: Sequence[bool] | Sequence[int] | np.ndarray | pd.Series,
    *,
    clusters: Sequence[object] | np.ndarray | pd.Series,
    seed: int = 0,
    draws: int = 2000,
) -> float:
    """Return the two-sided p of equal areas of two scores of the same items: their ranks change places by cluster.

    The statistic is the absolute difference of the areas (Bandos, Rockette and Gur 2005), over all exchanges where
    there are no more than ``draws``, else over so many drawn ones and the one observed. NaN with one class only.

    Arguments:
        first: Scores of the first measure.
        second: Scores of the second measure, of the same items.
        labels: 1 or True for a positive item.

    Example:
        >>> ms.statistics.paired_auroc_p([0.1, 0.2, 0.3, 0.4], [0.3, 0.4, 0.1, 0.2], [0, 0, 1, 1], clusters=range(4))
        0.125
    """
    truth, a, b = _checked(labels, first, second)
    truth = truth.astype(bool)
    if truth.all() or not truth.any():
        return math.nan
    group, count = cluster_codes(clusters, sizes=(len(truth),))
    a, b = rankdata(a), rankdata(b)
    whole = 2**count <= draws
    if whole:
        exchanged = (np.arange(2**count)[:, None] >> np.arange(count)) % 2 == 1
    else:
        drawn = np.random.default_rng(seed).random((draws, count)) < 0.5
        exchanged = np.concatenate([np.zeros((1, count), dtype=bool), drawn])
    swap = exchanged[:, group]
    apart = np.abs(_rank_areas(np.where(swap, b, a), truth) - _rank_areas(np.where(swap, a, b), truth))
    return float((apart >= apart[0] - 1e-12).mean())


def shuffled_aurocs(
    scores: Sequence[float] | np.ndarray | pd.Series,
    labels: Sequence[bool] | Sequence[int] | np.ndarray | pd.Series,
    *,
    seed: int = 0,
    draws: int = 999,
) -> tuple[float, float, float]:
    """Return the middle 95 % of the areas under shuffled labels, and the two-sided p of the area among them.

    The items must be exchangeable: one per prompt. The p is (1 + draws as far from 1/2) / (1 + draws). NaN with one
    class only.

    Raises :class:`MechsafetyError` for fewer than one shuffle.

    Arguments:
        scores: One number per item.
        labels: 1 or True for a positive item.
        draws: Number of permutations.

    Example:
        >>> low, high, p = ms.statistics.shuffled_aurocs(np.arange(20.0), [0] * 10 + [1] * 10)
        >>> low < 0.5 < high, p < 0.01  # the classes are apart
        (True, True)
    """
    if draws < 1:
        raise MechsafetyError(f"draws is {draws}: at least 1 shuffle is needed")
    truth, score = _checked(labels, scores)
    truth = truth.astype(bool)
    if truth.all() or not truth.any():
        return math.nan, math.nan, math.nan
    rng, n = np.random.default_rng(seed), int(truth.sum())
    shuffled = rng.permuted(np.tile(truth, (draws, 1)), axis=1)
    sums = np.concatenate([truth[None], shuffled]) @ rankdata(score)
    areas = (sums - n * (n + 1) / 2) / (n * (len(truth) - n))
    low, high = np.quantile(areas[1:], [0.025, 0.975])
    p = float((np.abs(areas - 0.5) >= abs(areas[0] - 0.5) - 1e-12).mean())
    return float(low), float(high), p


def _rank_areas(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The area per row of ``scores`` [exchange, item], by the ranks of the positives."""
    ranks, n = rankdata(scores, axis=1), int(positive.sum())
    return (ranks[:, positive].sum(axis=1) - n * (n + 1) / 2) / (n * (len(positive) - n))
