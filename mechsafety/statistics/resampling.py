"""Bootstrap over clusters: answers to one prompt are not independent, so whole prompts are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError

_LEAST_DEFINED = 0.5
"""Below this share of resamples with a defined statistic there is no interval."""
_CELLS = 4_000_000
"""Numbers held at once by a bootstrap, which goes in blocks of resamples."""


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its interval over clusters; ``n`` items in ``clusters`` clusters, NaN where undefined.

    Arguments:
        value: The statistic.
        low: Lower end of its interval.
        high: Upper end.

    Example:
        >>> found = ms.statistics.kappa(list("RRCC"), list("RRCC"), clusters=range(4), resamples=200)
        >>> found.value, found.clusters
        (1.0, 4)
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int


def cluster_codes(
    clusters: Sequence[object] | np.ndarray | pd.Series, *, sizes: tuple[int, ...]
) -> tuple[np.ndarray, int]:
    if len({len(clusters), *sizes}) != 1:
        raise MechsafetyError(
            f"got {len(clusters)} cluster ids for {' and '.join(map(str, sizes))} values; one for each"
        )
    # First appearance, not sorted: the draw must not depend on how ids happen to be spelt.
    codes, names = pd.factorize(pd.Series(list(clusters), dtype=object))
    if missing := int((codes < 0).sum()):
        raise MechsafetyError(
            f"{missing} of {len(codes)} cluster ids are missing: name each item's prompt, or leave the item out"
        )
    return codes, len(names)


def joint_codes(parts: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """The cluster numbers of several lists of cluster ids, numbered together, and how many clusters there are."""
    sizes = [len(part) for part in parts]
    codes, count = cluster_codes(np.concatenate([*parts, np.array([], dtype=object)]), sizes=(sum(sizes),))
    return np.split(codes, np.cumsum(sizes)[:-1]) if sizes else [], count


def cluster_weights(rng: np.random.Generator, count: int, resamples: int, *, width: int) -> list[np.ndarray]:
    """Return blocks of [resample, cluster]: how often each cluster was drawn; none of a single cluster.

    One cluster can only be drawn as it is: its interval would have no width, and claim to be certain.
    """
    if count < 2:
        return []
    block = max(1, _CELLS // max(1, width))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return [rng.multinomial(count, np.full(count, 1 / count), size=size).astype(float) for size in sizes]


def flat(drawn: Sequence[np.ndarray]) -> bool:
    """Whether no resample differs from another, or there is none."""
    values = np.concatenate([*drawn, np.array([])])
    return len(np.unique(values[~np.isnan(values)])) < 2


def steady_bounds(value: float, clusters: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a mean that is the same in every one of ``clusters`` clusters, where a bootstrap has no width.

    Wald's after one cluster a unit above 0 and one a unit below are added: of a paired difference this is the
    interval of Bonett and Price (2012).
    """
    if math.isnan(value) or not clusters:
        return math.nan, math.nan
    whole = clusters + 2
    middle = value * clusters / whole
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(
        ((clusters * value**2 + 2) / whole - middle**2) / whole
    )
    return min(value, middle - half), max(value, middle + half)


def percentiles(value: float, drawn: Sequence[np.ndarray], confidence: float) -> tuple[float, float]:
    values = np.concatenate(drawn) if drawn else np.array([])
    defined = values[~np.isnan(values)]
    if math.isnan(value) or not len(defined) or len(defined) < _LEAST_DEFINED * len(values):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def mean_interval(values: np.ndarray, *, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of a mean, its items drawn again; :func:`steady_bounds` where all are the same."""
    count = len(values)
    if not count:
        return math.nan, math.nan
    drawn = [
        w @ values / count
        for w in cluster_weights(np.random.default_rng(seed), count, resamples, width=count)
    ]
    value = float(np.mean(values))
    return steady_bounds(value, count) if flat(drawn) else percentiles(value, drawn, 0.95)
