"""Measures of agreement as functions of sums over items, so that a bootstrap over prompts is one matrix product.

Draws [resample, cluster] times sums [cluster, cell] give the sums of every resample. A measure that is undefined is
NaN, never 0 or 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics.rates import wilson
from mechsafety.statistics.resampling import Estimate, cluster_codes, cluster_weights, percentiles


def pair_measures(cells: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Kappa, AC1, alpha and raw agreement of flattened k x k tables [table, k * k]; NaN where undefined."""
    tables = cells.reshape(len(cells), k, k)
    rows, columns, total = tables.sum(axis=2), tables.sum(axis=1), tables.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = np.trace(tables, axis1=1, axis2=2) / total
        expected = (rows * columns).sum(axis=1) / total**2
        cohen = (observed - expected) / (1 - expected)
        share = (rows + columns) / (2 * total[:, None])
        chance = (share * (1 - share)).sum(axis=1) / (k - 1) if k > 1 else np.full(len(cells), np.nan)
        gwet = (observed - chance) / (1 - chance)
    several = ((rows > 0).sum(axis=1) > 1) & ((columns > 0).sum(axis=1) > 1)
    return {
        "kappa": np.where(several, cohen, np.nan),
        "ac1": gwet,
        "alpha": alpha((tables + tables.transpose(0, 2, 1)).reshape(len(cells), k * k), k),
        "agreement": observed,
    }


def pair_intervals(
    cells: Sequence[np.ndarray], k: int, *, seed: int = 0, resamples: int, confidence: float = 0.95
) -> list[dict[str, tuple[float, float, float]]]:
    """Value and bounds of every measure for tables [cluster, k * k] that share their clusters: one set of draws."""
    if not cells:
        return []
    stacked = np.concatenate(cells, axis=1)
    values = [_all_measures(c.sum(axis=0, keepdims=True), k) for c in cells]
    drawn: list[list[dict[str, np.ndarray]]] = [[] for _ in cells]
    rng = np.random.default_rng(seed)
    for weights in cluster_weights(rng, len(stacked), resamples, width=len(stacked)):
        for kept, sums in zip(drawn, np.split(weights @ stacked, len(cells), axis=1), strict=True):
            kept.append(_all_measures(sums, k))
    found = [
        {
            name: (
                float(value[name][0]),
                *percentiles(float(value[name][0]), [d[name] for d in kept], confidence),
            )
            for name in value
        }
        for value, kept in zip(values, drawn, strict=True)
    ]
    return [bounds | _certain(bounds, c, k, confidence) for bounds, c in zip(found, cells, strict=True)]


def _certain(
    bounds: Mapping[str, tuple[float, float, float]], cells: np.ndarray, k: int, confidence: float
) -> dict[str, tuple[float, float, float]]:
    """Bounds where all items agree or none does, so that no resample differs and the bootstrap would be certain."""
    agreement = bounds["agreement"][0]
    if agreement >= 1 - 1e-12:
        return _perfect(cells, k, confidence=confidence)
    if agreement != 0:
        return {}
    clusters = int((cells.sum(axis=1) > 0).sum())
    measures = ("agreement", *(m for m in ("kappa", "alpha", "ac1") if m in bounds))
    return {
        m: (
            bounds[m][0],
            float(np.fmin(*bounds[m][:2])),
            _most(bounds[m][0], clusters, confidence=confidence),
        )
        for m in measures
        if bounds[m][0] == bounds[m][0]
    }


def _most(value: float, clusters: int, *, confidence: float) -> float:
    """Upper bound of a measure where no item agrees: it grows as the agreement does, whose bound is Wilson's."""
    return value + wilson(0, clusters, confidence=confidence).high * (1 - value)


def _perfect(cells: np.ndarray, k: int, *, confidence: float) -> dict[str, tuple[float, float, float]]:
    """Bounds where every item agrees: no resample disagrees, so the bootstrap would claim to be certain.

    The lower bound of agreement is Wilson's over clusters, and the measures' are what they make of it at the same
    chance agreement.
    """
    clusters = int((cells.sum(axis=1) > 0).sum())
    share = np.diagonal(cells.sum(axis=0).reshape(k, k)) / cells.sum()
    return {m: (1.0, low, 1.0) for m, low in _least(share, clusters, confidence=confidence).items()}


def _least(share: np.ndarray, clusters: int, *, confidence: float) -> dict[str, float]:
    """Lower bounds where all items of ``clusters`` clusters agree, the categories having these shares."""
    least = wilson(clusters, clusters, confidence=confidence).low
    chance = {"kappa": float((share**2).sum())}
    chance |= {"alpha": chance["kappa"], "ac1": (1 - chance["kappa"]) / max(1, len(share) - 1)}
    return {"agreement": least, **{m: (least - e) / (1 - e) for m, e in chance.items() if e < 1}}


def _all_measures(cells: np.ndarray, k: int) -> dict[str, np.ndarray]:
    found = pair_measures(cells, k)
    if k == 2:
        with np.errstate(invalid="ignore", divide="ignore"):
            found["specificity"] = cells[:, 0] / (cells[:, 0] + cells[:, 1])
            found["sensitivity"] = cells[:, 3] / (cells[:, 2] + cells[:, 3])
    return found


def bootstrap(
    cells: np.ndarray,
    measure: Callable[[np.ndarray], np.ndarray],
    *,
    n: int,
    seed: int = 0,
    resamples: int,
    confidence: float,
) -> Estimate:
    value = float(measure(cells.sum(axis=0, keepdims=True))[0])
    rng = np.random.default_rng(seed)
    count = len(cells)
    drawn = [measure(weights @ cells) for weights in cluster_weights(rng, count, resamples, width=count)]
    low, high = percentiles(value, drawn, confidence)
    return Estimate(value=value, low=low, high=high, n=n, clusters=count)


def panel_bootstrap(
    name: Literal["ac1", "alpha"],
    counts: np.ndarray,
    clusters: Sequence[object] | np.ndarray | pd.Series,
    *,
    seed: int = 0,
    resamples: int,
    confidence: float,
) -> Estimate:
    """A measure of ``counts`` (:func:`rating_counts`) with its bounds; where every item agrees see :func:`_perfect`,
    where each agrees as much as any other :func:`_alike`.

    Clusters none of whose items count are not drawn: alpha counts items with two ratings, AC1 those with one as well.
    """
    cluster_codes(clusters, sizes=(len(counts),))
    counted = counts.sum(axis=1) > (1 if name == "alpha" else 0)
    counts = counts[counted]
    group, count = cluster_codes(list(itertools.compress(clusters, counted)), sizes=(len(counts),))
    k, paired = counts.shape[1], counts.sum(axis=1) > 1
    sums, measure = {"ac1": (ac1_sums, ac1), "alpha": (coincidences, alpha)}[name]
    found = bootstrap(
        clustered(sums(counts), group, count),
        lambda drawn: measure(drawn, k),
        n=int(paired.sum()),
        seed=seed,
        resamples=resamples,
        confidence=confidence,
    )
    if math.isnan(found.value):
        return found
    clusters_paired = len(set(group[paired]))
    if found.value >= 1 - 1e-12:
        share = counts[paired].sum(axis=0) / counts[paired].sum()
        return replace(found, low=_least(share, clusters_paired, confidence=confidence)[name], high=1.0)
    agreements = ac1_sums(counts[paired])[:, 0]
    return _alike(found, counts[paired], clusters_paired, confidence) if np.ptp(agreements) < 1e-12 else found


def _alike(found: Estimate, counts: np.ndarray, clusters: int, confidence: float) -> Estimate:
    """Bounds where all items agree equally and none fully, so that resamples differ in chance agreement alone.

    Agreement may then lie by Wilson's bound of none in ``clusters`` nearer to 1, and to the least that as many raters
    can have.
    """
    agreement, m, k = float(ac1_sums(counts)[0, 0]), counts.sum(axis=1), counts.shape[1]
    whole, rest = np.divmod(m, k)
    least = ((rest * (whole + 1) * whole + (k - rest) * whole * (whole - 1)) / (m * (m - 1))).mean()
    share = wilson(0, clusters, confidence=confidence).high
    fall = share * max(0.0, agreement - float(least)) * (1 - found.value) / (1 - agreement)
    return replace(
        found,
        low=min(found.low, found.value - fall),
        high=max(found.high, _most(found.value, clusters, confidence=confidence)),
    )


def pair_cells(
    a: np.ndarray, b: np.ndarray, group: np.ndarray, count: int, k: int, weight: np.ndarray
) -> np.ndarray:
    flat = np.bincount((group * k + a) * k + b, weights=weight, minlength=count * k * k)
    return flat.reshape(count, k * k)


def clustered(sums: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    cells = np.zeros((count, sums.shape[1]))
    np.add.at(cells, group, sums)
    return cells


def rating_counts(
    ratings: Sequence[Sequence[object]] | np.ndarray, categories: Sequence[object]
) -> np.ndarray:
    """[item, category]: how many raters gave it; missing ratings (:func:`is_missing`) are nobody's."""
    place = {category: i for i, category in enumerate(categories)}
    counts = np.zeros((len(ratings), len(place)))
    for item, row in enumerate(ratings):
        for value in row:
            if is_missing(value):
                continue
            if value not in place:
                raise MechsafetyError(
                    f"rating {value!r} of item {item} is not one of {', '.join(map(str, categories))}"
                )
            counts[item, place[value]] += 1
    return counts


def is_missing(rating: object) -> bool:
    """The one rule of all agreement coefficients: None, NaN and pandas' NA and NaT are no ratings."""
    return rating is None or rating is pd.NA or bool(rating != rating)


def ac1_sums(counts: np.ndarray) -> np.ndarray:
    """Per item: its agreement, whether it has two ratings, its shares of categories, whether it has one."""
    m = counts.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        agree = np.where(m > 1, (counts * (counts - 1)).sum(axis=1) / (m * (m - 1)), 0.0)
        share = np.where(m[:, None] > 0, counts / m[:, None], 0.0)
    return np.column_stack([agree, m > 1, share, m > 0])


def ac1(sums: np.ndarray, k: int) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = sums[:, 0] / sums[:, 1]
        share = sums[:, 2 : 2 + k] / sums[:, 2 + k : 3 + k]
        chance = (share * (1 - share)).sum(axis=1) / (k - 1)
        return np.where(sums[:, 1] > 0, (observed - chance) / (1 - chance), np.nan)


def coincidences(counts: np.ndarray) -> np.ndarray:
    m = counts.sum(axis=1)
    k = counts.shape[1]
    outer = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(k)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(m[:, None, None] > 1, outer / (m - 1)[:, None, None], 0.0)
    return share.reshape(len(counts), k * k)


def alpha(sums: np.ndarray, k: int) -> np.ndarray:
    table = sums.reshape(len(sums), k, k)
    totals = table.sum(axis=2)
    n = totals.sum(axis=1)
    apart = n - np.trace(table, axis1=1, axis2=2)
    chance = n**2 - (totals**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(chance > 0, 1 - (n - 1) * apart / chance, np.nan)


def spread(name: str, found: tuple[float, float, float]) -> dict[str, float]:
    return {name: found[0], f"{name}_low": found[1], f"{name}_high": found[2]}
