"""Candidates ranked by their scores, and the filters that they pass.

Nothing here knows an absolute score: a constant added to all scores, or a positive factor, changes no order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import SELECTION_RULES
from mechsafety.sweeps.selected import Place

if TYPE_CHECKING:
    import pandas as pd

SHORTLISTED = 5
_SHORTLISTED_A_LAYER = 2
_LEAST_SHARE = 0.5
_NEEDED = ("position", "layer", "bypass", "induce", "kl")
UNEDITED = ("harmful", "harmless")
_OTHERS = (
    *("gap_low", "gap_high", "n_harmful", "n_harmless"),
    *("n_answers", "refused", "complied", "degenerate", "nll"),
)
# Shares that differ by rounding only are equal: a constant added to all scores changes the last digits.
_DIGITS = 9


def first_late_layer(n_layers: int) -> int:
    """Where the last fifth of the layers begins, in which nothing is selected."""
    return int(0.8 * n_layers)


def with_shares(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``removed`` and ``caused``, where it holds the unedited means ``harmful`` and ``harmless``.

    removed = (harmful - bypass) / (harmful - harmless); caused = (induce - harmless) / (harmful - harmless). Where
    harmful prompts do not score higher, the gap's absolute value divides, so that lower bypass is still more removed.
    """
    scores = score_arrays(table)
    return table.assign(**{name: scores[name] for name in ("removed", "caused") if name in scores})


Scores = dict[str, np.ndarray]
"""Columns of a table of scores as arrays of floats, with the shares."""


def score_arrays(table: pd.DataFrame) -> Scores:
    missing = [c for c in _NEEDED if c not in table.columns]
    if missing or table.empty:
        raise MechsafetyError(
            f"a table of scores needs rows and the columns {', '.join(_NEEDED)}; "
            f"missing: {', '.join(missing) or 'rows'}"
        )
    known = [c for c in (*_NEEDED, *UNEDITED, *_OTHERS) if c in table.columns]
    scores = {name: table[name].to_numpy(dtype=float, na_value=math.nan) for name in known}
    if all(c in scores for c in UNEDITED):
        gap = np.abs(scores["harmful"] - scores["harmless"])
        gap[gap == 0] = math.nan
        scores["removed"] = ((scores["harmful"] - scores["bypass"]) / gap).round(_DIGITS)
        scores["caused"] = ((scores["induce"] - scores["harmless"]) / gap).round(_DIGITS)
    return scores


def shortlist(
    table: pd.DataFrame, *, n_layers: int, size: int = SHORTLISTED, a_layer: int = _SHORTLISTED_A_LAYER
) -> list[Place]:
    """The first ``size`` candidates of the ranking, at most ``a_layer`` of one layer.

    Where few pass all filters, the nearest ones follow, those that fail this or that filter in turns: KL at the next
    token is no sure sign of damage, and adding a direction need not cause what removing it ends.
    """
    scores = score_arrays(table)
    order = ranked_rows(scores, n_layers=n_layers)
    if not len(order):
        return []
    first = [nearest_row(scores, order)] if failed_filters(scores, int(order[0]), n_layers) else []
    if "removed" in scores:
        shares = (scores[name][order] for name in ("removed", "caused", "kl"))
        order = order[in_turns(range(len(order)), *failures(*shares))]
    order = np.array([*first, *(i for i in order if i not in first)])
    places = [(int(scores["position"][i]), int(scores["layer"][i])) for i in order]
    return spread(places, size=size, a_layer=a_layer)


def failures(
    removed: Float[np.ndarray, "*draw candidate"],
    caused: Float[np.ndarray, "*draw candidate"],
    kl: Float[np.ndarray, "*draw candidate"],
) -> tuple[Shaped[np.ndarray, "*draw candidate"], Shaped[np.ndarray, "*draw candidate"]]:
    """How far candidates are from passing all filters (as :func:`rank_keys` begins), and which filters they fail."""
    fails, little, *_ = rank_keys(removed, caused, kl)
    which = little + 2 * (caused < _LEAST_SHARE) + 4 * (kl > SELECTION_RULES["auto"][-1])
    return 2 * fails + little, which


def in_turns(
    order: Sequence[int], level: Shaped[np.ndarray, " candidate"], kind: Shaped[np.ndarray, " candidate"]
) -> list[int]:
    """``order`` with the kinds of each level in turns: which filter is the wrong one is for the answers to tell."""
    seen: Counter[tuple[int, int]] = Counter()
    turns: dict[int, tuple[int, int]] = {}
    for i in order:
        group = (int(level[i]), int(kind[i]))
        turns[i] = (group[0], seen[group])
        seen[group] += 1
    return sorted(order, key=turns.__getitem__)


def spread(
    places: Sequence[Place], *, size: int = SHORTLISTED, a_layer: int = _SHORTLISTED_A_LAYER
) -> list[Place]:
    """The first ``size`` places, at most ``a_layer`` of one layer."""
    taken: list[Place] = []
    for place in places:
        if len(taken) < size and sum(layer == place[1] for _, layer in taken) < a_layer:
            taken.append(place)
    return taken


def nearest_row(scores: Scores, order: Int[np.ndarray, " usable"]) -> int:
    """The first in order, or what removes more within the same KL bound."""
    best, removed = int(order[0]), _removed(scores)
    rivals = [i for i in order if scores["kl"][i] <= bound_of(scores, best) and removed[i] > removed[best]]
    return int(max(rivals, key=lambda i: removed[i])) if rivals else best


def rank_keys(
    removed: Float[np.ndarray, "*draw candidate"],
    caused: Float[np.ndarray, "*draw candidate"],
    kl: Float[np.ndarray, "*draw candidate"],
) -> list[Shaped[np.ndarray, "*draw candidate"]]:
    """What the ranking sorts by, the first key first; where all filters pass it is the order of ``auto``.

    Filters failed, whether less than half of the gap is removed, the KL bound, min(removed, 1) downwards, KL.
    """
    least, widest = _LEAST_SHARE, SELECTION_RULES["auto"][-1]
    fails = (removed < least).astype(int) + (caused < least) + (kl > widest)
    return [fails, removed < least, _bounds_of(kl), -np.minimum(removed, 1.0), kl]


def ranked_rows(scores: Scores, *, n_layers: int) -> Int[np.ndarray, " usable"]:
    """Candidates with finite scores by :func:`rank_keys`; those of the last layers where there are no others."""
    usable = _finite(scores) & scored_on_all(scores)
    early = usable & (scores["layer"] < first_late_layer(n_layers))
    rows = np.flatnonzero(early if early.any() else usable)
    if "removed" in scores:
        keys = rank_keys(*(scores[name][rows] for name in ("removed", "caused", "kl")))
    else:
        keys = [_bounds_of(scores["kl"][rows]), scores["bypass"][rows], scores["kl"][rows]]
    return rows[np.lexsort([*(scores[name][rows] for name in ("position", "layer")), *keys[::-1]])]


def _removed(scores: Scores) -> Float[np.ndarray, " candidate"]:
    return np.minimum(scores["removed"], 1.0) if "removed" in scores else -scores["bypass"]


def _bounds_of(kl: Float[np.ndarray, "*draw candidate"]) -> Float[np.ndarray, "*draw candidate"]:
    bounds = np.array([*SELECTION_RULES["auto"], *(2.0**k for k in range(12))])
    return np.append(bounds, math.inf)[np.searchsorted(bounds, kl)]


def bound_of(scores: Scores, at: int) -> float:
    return float(_bounds_of(scores["kl"][at : at + 1])[0])


Filters = dict[str, Bool[np.ndarray, " candidate"]]
"""By name, which candidates pass."""


def passing_rows(scores: Scores, *, n_layers: int) -> tuple[Int[np.ndarray, " kept"], float, dict[str, int]]:
    """Ranked candidates that pass the filters of ``auto``, the KL bound, and how many each filter dropped."""
    kept, bound, dropped = np.array([], dtype=int), math.nan, {}
    for bound in SELECTION_RULES["auto"] if "removed" in scores else ():
        kept, dropped = dropping(_filters(scores, n_layers, bound))
        if len(kept):
            passing = frozenset(kept.tolist())
            kept = np.array([i for i in ranked_rows(scores, n_layers=n_layers) if i in passing])
            break
    return kept, bound, dropped


def _filters(scores: Scores, n_layers: int, kl_bound: float) -> Filters:
    last = first_late_layer(n_layers)
    with np.errstate(invalid="ignore"):
        return {
            f"layer >= {last}": scores["layer"] < last,
            "racing": scored_on_all(scores),
            "NaN": _finite(scores),
            f"bypass (removed < {_LEAST_SHARE:g})": scores["removed"] >= _LEAST_SHARE,
            f"induce (caused < {_LEAST_SHARE:g})": scores["caused"] >= _LEAST_SHARE,
            f"KL > {kl_bound:g}": scores["kl"] <= kl_bound,
        }


def published_filters(scores: Scores, n_layers: int, kl_bound: float) -> Filters:
    last = first_late_layer(n_layers)
    # Racing takes part only where candidates were scored on different prompts.
    whole = scored_on_all(scores)
    return ({} if whole.all() else {"racing": whole}) | {
        "NaN": ~np.stack([np.isnan(scores[name]) for name in ("bypass", "induce", "kl")]).any(0),
        f"layer >= {last}": scores["layer"] < last,
        f"KL > {kl_bound:g}": scores["kl"] <= kl_bound,
        "induce below 0": scores["induce"] >= 0,
    }


def dropping(filters: Filters) -> tuple[Int[np.ndarray, " kept"], dict[str, int]]:
    """What passes every filter, and how many each dropped of those that passed the ones before."""
    dropped: dict[str, int] = {}
    left = np.ones_like(next(iter(filters.values())))
    for name, passes in filters.items():
        dropped[name] = int((left & ~passes).sum())
        left = left & passes
    return np.flatnonzero(left), dropped


def failed_filters(scores: Scores, at: int, n_layers: int) -> tuple[str, ...]:
    """The filters of ``auto``, at its widest bound, that one candidate does not pass."""
    if "removed" not in scores:
        return ()
    filters = _filters(scores, n_layers, SELECTION_RULES["auto"][-1])
    return tuple(name for name, passes in filters.items() if not passes[at])


def _finite(scores: Scores) -> Bool[np.ndarray, " candidate"]:
    names = ("bypass", "induce", "kl", "removed", "caused")
    finite: Any = np.isfinite([scores[name] for name in names if name in scores])
    return finite.all(0)


def scored_on_all(scores: Scores) -> Bool[np.ndarray, " candidate"]:
    """Candidates that were scored on every prompt; racing drops the others on the way."""
    found = np.ones(len(scores["layer"]), dtype=bool)
    for name in ("n_harmful", "n_harmless"):
        if name in scores:
            found &= scores[name] == np.nanmax(scores[name])
    return found
