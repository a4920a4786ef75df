"""How far safety and utility stand in the same weights and the same output subspaces, raw and against chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import track
from mechsafety.regions.maps import LinearMap
from mechsafety.regions.pruning import Group, Percent, require_scored, top_entries
from mechsafety.regions.score_files import Attribution, Method
from mechsafety.regions.subspaces import left_subspaces

if TYPE_CHECKING:
    import pandas as pd

STRUCTURE_COLUMNS = ("method", "layer", "kind", "q", "jaccard", "chance", "excess")
SUBSPACE_COLUMNS = ("layer", "kind", "rank", "phi", "chance", "chance_in_range", "excess")


def jaccard_table(
    maps: Sequence[LinearMap],
    safety: Attribution,
    utility: Attribution,
    *,
    method: Method,
    q: Percent = 5,
    group: Group = "matrix",
) -> pd.DataFrame:
    """Jaccard index |A n B| / |A u B| of the top-q% sets of safety and of utility, one row per map.

    Columns: method, layer, kind, ``q`` in percent, ``jaccard``, ``chance`` (what two independent random sets of
    that size share, :func:`chance_jaccard`) and ``excess`` = (jaccard - chance) / (1 - chance): 0 for unrelated
    sets, 1 for equal ones. Both attributions must be of these maps. Source: Wei et al. 2024, arXiv 2402.05162.

    Arguments:
        safety: Scores on safety examples.
        utility: Scores on utility examples.

    Returns:
        One row per map, with the columns above.

    Example:
        >>> table = ms.regions.jaccard_table(maps, safety, utility, method="snip", q=5)
        >>> list(table.columns)
        ['method', 'layer', 'kind', 'q', 'jaccard', 'chance', 'excess']
        >>> len(table) == len(maps)
        True
    """
    import pandas as pd

    _require_scored(maps, safety, utility)
    rows = []
    for linear in track(maps, f"Jaccard ({method})", total=len(maps), unit="map"):
        a, b = (top_entries(x.scores(linear, method), q, group) for x in (safety, utility))
        value, chance = jaccard_index(a, b), chance_jaccard(len(a), linear.d_out * linear.d_in)
        rows.append((method, linear.layer, linear.kind, q, value, chance, (value - chance) / (1 - chance)))
    return pd.DataFrame(rows, columns=list(STRUCTURE_COLUMNS))


def jaccard_index(a: Int[Tensor, " a"], b: Int[Tensor, " b"]) -> float:
    """|A n B| / |A u B| of two sets of distinct places; raises :class:`MechsafetyError` when both are empty."""
    common = int(torch.isin(a, b, assume_unique=True).sum())
    union = len(a) + len(b) - common
    if not union:
        raise MechsafetyError("two empty sets have no Jaccard index: take a larger share of the weights")
    return common / union


def chance_jaccard(k: int, n: int) -> float:
    """What two independent random sets of ``k`` of ``n`` weights share: m / (2 k - m), m = k^2 / n expected in both.

    About q / (2 - q) for a share q, .026 at 5 %. The ratio of the expected sizes, which differs from the expected
    ratio by about 1 / k of it. The same when the k weights are drawn row by row in equal parts.
    """
    if not 0 < k <= n:
        raise MechsafetyError(f"a set of {k} of {n} weights: it must hold 1 to {n}")
    common = k * k / n
    return common / (2 * k - common)


def subspace_table(
    maps: Sequence[LinearMap], safety: Attribution, utility: Attribution, *, rank: int
) -> pd.DataFrame:
    """Similarity phi of the top output subspaces of safety and of utility, one row per map; see :func:`similarity`.

    U are the leading left singular vectors of W X (ActSVD), X being the calibration tokens' inputs. ``rank`` is cut
    to what the data determine in a map; the column names what was compared. ``chance`` = rank / d_out is phi of
    random subspaces of the map's output space (for unequal ranks the larger over d_out). A map that widens
    (gate, up) writes into its range only, of rank R < d_out: ``chance_in_range`` = rank / R is phi of random
    subspaces of that, the fairer floor. ``excess`` = (phi - chance_in_range) / (1 - chance_in_range); NaN where the
    subspaces are the whole range and phi is 1 whatever the data. Source: Wei et al. 2024.

    Raises :class:`MechsafetyError` for a rank below 1, and for maps without scores.

    Arguments:
        safety: Scores on safety examples.
        utility: Scores on utility examples.

    Returns:
        One row per map.

    Example:
        >>> table = ms.regions.subspace_table(maps, safety, utility, rank=2)
        >>> len(table) == len(maps)
        True
    """
    import pandas as pd

    if rank < 1:
        raise MechsafetyError(f"rank is {rank}; subspaces have 1 dimension at least")
    _require_scored(maps, safety, utility)
    rows = []
    for linear in track(maps, "subspaces", total=len(maps), unit="map"):
        u, s = (_subspace(linear, x, rank) for x in (utility, safety))
        larger = max(u.shape[1], s.shape[1])
        phi, floor = similarity(u, s), larger / linear.rank
        excess = (phi - floor) / (1 - floor) if floor < 1 else float("nan")
        compared = min(u.shape[1], s.shape[1])
        rows.append((linear.layer, linear.kind, compared, phi, larger / linear.d_out, floor, excess))
    return pd.DataFrame(rows, columns=list(SUBSPACE_COLUMNS))


def similarity(u: Float[Tensor, "d_out r_u"], s: Float[Tensor, "d_out r_s"]) -> float:
    """phi = ||U_u^T U_s||_F^2 / min(r_u, r_s) of two orthonormal bases: 1 for nested subspaces, 0 for orthogonal ones.

    The mean squared cosine of the principal angles; r / d_out for random subspaces of rank r.
    """
    return float((u.double().T @ s.double()).square().sum() / min(u.shape[1], s.shape[1]))


def _subspace(linear: LinearMap, attribution: Attribution, rank: int) -> Float[Tensor, "d_out r"]:
    found = left_subspaces(linear, attribution)
    # Raising where there are fewer would stop the whole table for the narrow maps of grouped-query models.
    return found.top(min(rank, found.determined))


def _require_scored(maps: Sequence[LinearMap], *attributions: Attribution) -> None:
    if not maps:
        raise MechsafetyError("no linear maps to compare")
    for attribution in attributions:
        require_scored(maps, attribution)
