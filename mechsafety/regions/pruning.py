"""Which single weights to set to zero: top sets, plain pruning, set difference, and random sets of the same size.

Scores are importances, never negated: SNIP |W * grad| or Wanda |W| * ||x||, larger meaning needed more. Shares p
and q are percentages as in Wei et al. 2024 (arXiv 2402.05162, sections 2.2 and 2.3).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import track
from mechsafety.regions.maps import LinearMap
from mechsafety.regions.removal import Pruning, Shapes, require_made_for
from mechsafety.regions.score_files import Attribution, Method

STRATA = 20
"""Of |w| in a matrix: within one of them a matched weight may be smaller or larger than the removed one."""
Group = Literal["row", "matrix"]
"""What a share is taken of: every row of W by itself (one output), or the whole matrix."""

Percent = int | float
Scores = Float[Tensor, "d_out d_in"]
Places = Int[Tensor, " entry"]


def top_entries(scores: Scores, percent: Percent, group: Group) -> Places:
    """Flat places i * d_in + j of the largest scores, ascending.

    Exactly n * percent / 100 of each group's n entries, to the nearest whole number (halves up; it may be 0). Among
    equal scores the earlier places are taken, so that the result is the same on every machine. O(n), no sort.

    Raises :class:`MechsafetyError` for a share outside 0 < percent <= 100 and for scores that are not finite.
    """
    require_percent("share", percent)
    if not bool(torch.isfinite(scores).all()):
        raise MechsafetyError("the scores hold NaN or infinite entries, so that there is no order among them")
    grouped = scores if group == "row" else scores.reshape(1, -1)
    count = count_of(grouped.shape[1], percent)
    if count == 0:
        return _places(torch.zeros_like(grouped, dtype=torch.bool))
    least = grouped.kthvalue(grouped.shape[1] - count + 1, dim=1, keepdim=True).values
    chosen = grouped > least
    tied = grouped == least
    wanted = count - chosen.sum(1, keepdim=True, dtype=torch.int32)
    if bool((tied.sum(1, keepdim=True, dtype=torch.int32) > wanted).any()):
        tied &= tied.cumsum(1, dtype=torch.int32) <= wanted
    return _places(chosen | tied)


def count_of(n: int, percent: Percent) -> int:
    """``percent`` of ``n`` to the nearest whole number, halves up."""
    return min(n, int(n * percent / 100 + 0.5))


def prune(
    maps: Sequence[LinearMap],
    attribution: Attribution,
    *,
    method: Method,
    percent: Percent,
    group: Group = "row",
    layers: Collection[int] | None = None,
    kinds: Collection[str] | None = None,
) -> Pruning:
    """Plain pruning: the ``percent`` of weights with the LOWEST scores. On utility scores this is the baseline.

    ``layers`` and ``kinds`` restrict it to some maps. Raises as :func:`set_difference` does.

    Arguments:
        attribution: Scores, of score_weights.
        percent: Share of the weights of each ``group``, 0 < x <= 100.

    Returns:
        The weights that are removed.

    Example:
        >>> low = ms.regions.prune(maps, utility, method="wanda", percent=25, group="matrix")
        >>> round(low.sparsity, 2)
        0.25
    """
    require_percent("percent", percent)
    return _pruning(
        f"lowest {percent:g} % by {method} per {group}",
        maps,
        lambda m: lowest_places(m, attribution, method=method, percent=percent, group=group),
        scored=[attribution],
        layers=layers,
        kinds=kinds,
    )


def top_pruning(
    maps: Sequence[LinearMap],
    safety: Attribution,
    *,
    method: Method,
    q: Percent,
    group: Group = "matrix",
    layers: Collection[int] | None = None,
    kinds: Collection[str] | None = None,
) -> Pruning:
    """The top ``q`` % by safety alone, which the paper shows to break the model: utility needs them too.

    Arguments:
        safety: Scores on safety examples.

    Returns:
        The weights that are removed.

    Example:
        >>> top = ms.regions.top_pruning(maps, safety, method="snip", q=5)
        >>> round(top.sparsity, 3)
        0.05
    """
    require_percent("q", q)
    return _pruning(
        f"top {q:g} % of safety by {method} per {group}",
        maps,
        lambda m: top_entries(safety.scores(m, method), q, group),
        scored=[safety],
        layers=layers,
        kinds=kinds,
    )


def set_difference(
    maps: Sequence[LinearMap],
    safety: Attribution,
    utility: Attribution,
    *,
    method: Method,
    p: Percent,
    q: Percent,
    group: Group = "matrix",
    layers: Collection[int] | None = None,
    kinds: Collection[str] | None = None,
) -> Pruning:
    """S(p, q): the top ``q`` % by safety that are not among the top ``p`` % by utility (the paper's equation 3).

    At p = q the sparsity is q (1 - 2 J / (1 + J)), J being the Jaccard index of the two top sets. ``layers`` and
    ``kinds`` restrict it to some maps.

    Raises :class:`MechsafetyError` for p or q outside 0 < x <= 100, an empty difference, scores of other maps, and
    a layer or kind that the model lacks.

    Arguments:
        safety: Scores on safety examples.
        utility: Scores on utility examples.

    Returns:
        The weights that are removed.

    Example:
        >>> region = ms.regions.set_difference(maps, safety, utility, method="snip", p=20, q=5)
        >>> region.n_removed < ms.regions.top_pruning(maps, safety, method="snip", q=5).n_removed
        True
    """
    require_percent("p", p)
    require_percent("q", q)
    return _pruning(
        f"set difference p={p:g} q={q:g} by {method} per {group}",
        maps,
        lambda m: difference_places(m, safety, utility, method=method, p=p, q=q, group=group),
        scored=[safety, utility],
        layers=layers,
        kinds=kinds,
    )


def random_pruning(like: Pruning, *, seed: int = 0, group: Group = "matrix") -> Pruning:
    """The matched control: as many weights of each map as ``like`` removes, drawn uniformly without replacement.

    With ``group="row"`` as many of each row, which is stricter: it also keeps how ``like`` spreads over outputs.
    What it removes has no more to do with scores than chance; magnitudes are not matched (:func:`matched_pruning`).

    Returns:
        The weights that are removed.

    Example:
        >>> top = ms.regions.top_pruning(maps, safety, method="snip", q=5)
        >>> ms.regions.random_pruning(top, seed=0).n_removed == top.n_removed
        True
    """
    generator = np.random.default_rng(seed)
    drawn = {}
    for name in sorted(like.entries):
        places, (d_out, d_in) = like.entries[name], like.shapes[name]
        if group == "matrix":
            taken = generator.choice(d_out * d_in, len(places), replace=False, shuffle=False)
        else:
            counts = np.bincount(places.cpu().numpy() // d_in, minlength=d_out)
            order = generator.random((d_out, d_in), dtype=np.float32).argsort(axis=1)
            row, rank = np.nonzero(np.arange(d_in) < counts[:, None])
            taken = row * d_in + order[row, rank]
        drawn[name] = torch.from_numpy(np.sort(taken)).to(places.dtype)
    return Pruning(label=f"random, matched to: {like.label}", entries=drawn, shapes=like.shapes)


def matched_pruning(
    like: Pruning, maps: Sequence[LinearMap], *, seed: int = 0, strata: int = STRATA
) -> Pruning:
    """The stricter control: as many weights of each map, and of each stratum of |w| in it, as ``like`` removes.

    Within a stratum (:func:`magnitude_strata`) weights are drawn uniformly without replacement, those that ``like``
    removes among them: a removal of the largest weights has no control but itself. ``maps`` are those of the whole
    model, from which nothing is removed.

    Arguments:
        strata: Number of strata of magnitude.

    Returns:
        The weights that are removed.

    Example:
        >>> top = ms.regions.top_pruning(maps, safety, method="snip", q=5)
        >>> ms.regions.matched_pruning(top, maps, seed=0).n_removed == top.n_removed
        True
    """
    require_made_for(like, maps, "these maps")
    generator = np.random.default_rng(seed)
    by_name = {m.name: m for m in maps}
    drawn = {}
    for name in track(sorted(like.entries), "matching weights", total=len(like.entries), unit="map"):
        places = like.entries[name]
        sizes = by_name[name].weight().float().abs().reshape(-1).cpu().numpy()
        removed = places.cpu().numpy()
        stratum = magnitude_strata(sizes, removed, strata)
        taken = [
            generator.choice(np.flatnonzero(stratum == one), count, replace=False, shuffle=False)
            for one, count in enumerate(np.bincount(stratum[removed]))
        ]
        found = np.concatenate([np.zeros(0, dtype=np.int64), *taken])
        drawn[name] = torch.from_numpy(np.sort(found)).to(places.dtype)
    return Pruning(label=f"random, matched in size to: {like.label}", entries=drawn, shapes=like.shapes)


def magnitude_strata(sizes: np.ndarray, removed: np.ndarray, strata: int = STRATA) -> np.ndarray:
    """For each weight of a matrix the number of its stratum, -1 for one smaller or larger than all ``removed``.

    ``sizes`` are |w|, ``removed`` places. The strata are cut at the quantiles of the removed weights' own sizes, so
    that each holds 1 / ``strata`` of them (two at least) wherever they lie, and no scale matters. Quantiles of all
    sizes would put a removal of the largest 1 % into one stratum with four times as many smaller weights. Equal
    sizes are of one stratum.
    """
    if not len(removed):
        return np.full(len(sizes), -1, dtype=np.int16)
    own = np.sort(sizes[removed])
    number = max(1, min(strata, len(own) // 2))
    edges = own[np.arange(1, number) * len(own) // number]
    found = np.zeros(len(sizes), dtype=np.int16)
    for edge in edges:  # faster than a search for each weight
        found += sizes >= edge
    found[(sizes < own[0]) | (sizes > own[-1])] = -1
    return found


def lowest_places(
    m: LinearMap, scores: Attribution, *, method: Method, percent: Percent, group: Group
) -> Places:
    """Places of the ``percent`` of one map's weights with the lowest scores."""
    return top_entries(-scores.scores(m, method), percent, group)


def difference_places(
    m: LinearMap,
    safety: Attribution,
    utility: Attribution,
    *,
    method: Method,
    p: Percent,
    q: Percent,
    group: Group,
) -> Places:
    """Places of one map in the top ``q`` % by safety and not in the top ``p`` % by utility; there may be none."""
    safe = top_entries(safety.scores(m, method), q, group)
    return without(safe, top_entries(utility.scores(m, method), p, group), size=m.d_out * m.d_in)


def without(
    places: Int[Tensor, " place"], others: Int[Tensor, " other"], *, size: int
) -> Int[Tensor, " left"]:
    """``places`` that are not among ``others``, of a matrix with ``size`` entries, ascending."""
    chosen = torch.zeros(size, dtype=torch.bool)
    chosen[places.long()] = True
    chosen[others.long()] = False
    return _places(chosen)


def select_maps(
    maps: Sequence[LinearMap], *, layers: Collection[int] | None = None, kinds: Collection[str] | None = None
) -> list[LinearMap]:
    """The maps of these layers and kinds (None: of all). Raises for a layer or kind that no map has."""
    wishes = (("layer", layers, {m.layer for m in maps}), ("kind", kinds, {m.kind for m in maps}))
    for word, wanted, present in wishes:
        if wanted is not None and (not wanted or not set(wanted) <= present):
            unknown = sorted(set(wanted) - present)
            raise MechsafetyError(
                f"no {word} {', '.join(map(repr, unknown)) or 'was named'}: the model's linear maps have "
                f"{', '.join(map(str, sorted(present)))}"
            )
    return [m for m in maps if (layers is None or m.layer in layers) and (kinds is None or m.kind in kinds)]


def shapes_of(maps: Sequence[LinearMap]) -> Shapes:
    return {m.name: (m.d_out, m.d_in) for m in maps}


def require_scored(maps: Sequence[LinearMap], attribution: Attribution) -> None:
    """Raise unless ``attribution`` is of these very maps."""
    for m in maps:
        found = attribution.shapes.get(m.name)
        if found is None or tuple(found) != (m.d_out, m.d_in):
            state = "has no scores" if found is None else f"has scores of shape {list(found)}"
            raise MechsafetyError(
                f"{m.name} [{m.d_out}, {m.d_in}] {state}: the attribution was made for another model, or for some "
                "of its maps only"
            )


def _pruning(
    label: str,
    maps: Sequence[LinearMap],
    choose: Callable[[LinearMap], Places],
    *,
    scored: Sequence[Attribution],
    layers: Collection[int] | None,
    kinds: Collection[str] | None,
) -> Pruning:
    chosen = select_maps(maps, layers=layers, kinds=kinds)
    for attribution in scored:
        require_scored(chosen, attribution)
    entries = {m.name: choose(m) for m in track(chosen, "ranking weights", total=len(chosen), unit="map")}
    return Pruning(label=label, entries=entries, shapes=shapes_of(maps))


def _places(chosen: Tensor) -> Places:
    """Flat places of the true entries, ascending, on the CPU; 32 bits hold any matrix below 2**31 entries."""
    places = chosen.reshape(-1).nonzero().flatten().cpu()
    return places.to(torch.int32) if chosen.numel() < 2**31 else places


def require_percent(name: str, value: Percent) -> None:
    """Raise unless 0 < ``value`` <= 100."""
    if not 0 < value <= 100:
        raise MechsafetyError(
            f"{name} is {value:g}; it is a percentage, above 0 and at most 100 (1 is one percent)"
        )
