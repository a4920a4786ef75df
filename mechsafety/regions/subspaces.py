"""ActSVD: the output directions of a linear map that its data excites most, and taking ranks out of W along them.

For the inputs X [d_in, token] of a map, W X = U S V^T (Wei et al. 2024, arXiv 2402.05162, section 2.2). Only the
Gram matrix C = X X^T is needed, since W C W^T = U S^2 U^T. Where d_out <= d_in that matrix is decomposed; else, with
C = F F^T, the smaller F^T W^T W F = V S^2 V^T, and U comes from W F V = U S. All in float64.

Directions beyond the data are arbitrary: with n tokens W X has at most n of them. Keeping more is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import track
from mechsafety.regions.maps import LinearMap
from mechsafety.regions.pruning import require_scored, select_maps, shapes_of
from mechsafety.regions.removal import LowRank, product_energy
from mechsafety.regions.score_files import Attribution

Rank = int | float
"""A number of ranks, or a fraction (between 0 and 1) of each matrix's R = min(d_out, d_in)."""

Factors = tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]
_NOISE = torch.finfo(torch.float32).eps ** 0.5  # Grams are float32 sums, and eigenvalues are squares


@dataclass(frozen=True, kw_only=True, eq=False)
class LeftSubspaces:
    """Left singular vectors U [d_out, R] of W X and its singular values [R], largest first, in float64.

    ``n_tokens`` columns were seen, so that vectors from there on are arbitrary. ``inputs`` [d_in, R] = F V has
    W F V = U S; it is kept where d_out > d_in, when U does not span all of the outputs.
    """

    name: str
    weight: Float[Tensor, "d_out d_in"]
    vectors: Float[Tensor, "d_out rank"]
    values: Float[Tensor, " rank"]
    inputs: Float[Tensor, "d_in rank"] | None
    n_tokens: int
    routed: bool = False

    @property
    def determined(self) -> int:
        """How many vectors the data determine: singular values above the rounding of a float32 Gram matrix."""
        return min(self.n_tokens, int((self.values > _NOISE * self.values[0]).sum()))

    def top(self, rank: int) -> Float[Tensor, "d_out r"]:
        """The ``rank`` strongest directions; of an expert no more than the tokens that were routed to it determine.

        Raises :class:`MechsafetyError` for more than tokens were seen.
        """
        if rank > self.n_tokens:
            raise MechsafetyError(
                f"rank above tokens seen: {self.name} would keep or remove its top {rank} directions, but "
                f"{self.n_tokens} calibration tokens determine no more than {self.n_tokens}: give more examples, "
                "or a smaller rank"
            )
        return self.vectors[:, : min(rank, self.determined) if self.routed else rank]

    def rest(self, rank: int) -> Float[Tensor, "d_out r"]:
        """A basis V of what the ``rank`` strongest leave of W: W - U U^T W = V V^T W, with R - rank columns."""
        top = self.vectors[:, :rank] if self.routed else self.top(rank)
        if self.inputs is None:
            return self.vectors[:, rank:]  # U is square here: its other columns are the whole complement
        # W maps these inputs into the top directions, and their complement onto the rest of its range. The other
        # columns of U would do as well, were they not arbitrary within that range where tokens are few.
        others = torch.linalg.qr(self.inputs[:, :rank], mode="complete").Q[:, rank:]
        rest = self.weight @ others
        return torch.linalg.qr(rest - top @ (top.T @ rest)).Q


def left_subspaces(linear: LinearMap, attribution: Attribution) -> LeftSubspaces:
    """Left singular vectors and values of W X, from the Gram matrix of the map's inputs."""
    weight = linear.weight().double()
    gram = attribution.gram(linear.name).to(weight.device, torch.float64)
    vectors, values, inputs = _decomposed(weight, gram)
    return LeftSubspaces(
        name=linear.name,
        weight=weight,
        vectors=vectors,
        values=values,
        inputs=inputs,
        n_tokens=attribution.n_tokens,
        routed=linear.expert is not None,
    )


def rank_count(rank: Rank, *, full: int, what: str) -> int:
    """A fraction of ``full`` to the nearest whole number, halves up, or the number itself.

    Raises :class:`MechsafetyError` for a fraction outside 0 < x < 1 and a number outside 1 to ``full``.
    """
    if isinstance(rank, float):
        if not 0 < rank < 1:
            raise MechsafetyError(
                f"{what} is {rank:g}; a fraction of each matrix's rank lies between 0 and 1, and a number of ranks is "
                "written without a point (100)"
            )
        return int(rank * full + 0.5)
    if rank < 1:
        raise MechsafetyError(f"{what} is {rank}; a number of ranks is at least 1")
    if rank > full:
        raise MechsafetyError(
            f"{what} is {rank}, but this matrix has rank {full} at most; matrices differ (keys and values of "
            f"grouped-query attention are smaller), so give a fraction of each one's rank, such as 0.9"
        )
    return rank


def remove_top_ranks(
    maps: Sequence[LinearMap],
    attribution: Attribution,
    *,
    rank: Rank,
    layers: Collection[int] | None = None,
    kinds: Collection[str] | None = None,
) -> LowRank:
    """W <- W - U U^T W with the top ``rank`` directions: what the data needs most.

    Raises :class:`MechsafetyError` for a rank that a matrix does not have or that is above the tokens seen, naming
    the map, and for scores of other maps.

    Arguments:
        attribution: Scores, of score_weights.

    Returns:
        The factors of what is removed, by map.

    Example:
        >>> removal = ms.regions.remove_top_ranks(maps, safety, rank=2, layers=(1, 2))
        >>> set(removal.ranks().values())
        {0, 2}
    """
    chosen = _chosen(maps, [attribution], layers, kinds)
    factors = {}
    for m in _tracked(chosen):
        count = _count(rank, m, "rank")
        basis = left_subspaces(m, attribution).top(count)
        factors[m.name] = _projected(basis, m)
    return LowRank(label=f"top ranks {rank}", factors=factors, shapes=shapes_of(maps))


def remove_bottom_ranks(
    maps: Sequence[LinearMap],
    attribution: Attribution,
    *,
    rank: Rank,
    layers: Collection[int] | None = None,
    kinds: Collection[str] | None = None,
) -> LowRank:
    """W <- U U^T W with the top R - ``rank`` directions: the ``rank`` that the data needs least go.

    Raises as :func:`remove_top_ranks` does; here it is R - ``rank`` that may not be above the tokens seen, nor above
    the rank of the inputs: which of the directions beyond it the data needs least is undefined.

    Arguments:
        attribution: Scores, of score_weights.

    Returns:
        The factors of what is removed, by map.

    Example:
        >>> removal = ms.regions.remove_bottom_ranks(maps, safety, rank=0.9, layers=(1,))
        >>> removal.ranks()[maps[0].name]  # of layer 0
        0
    """
    chosen = _chosen(maps, [attribution], layers, kinds)
    factors = {}
    for m in _tracked(chosen):
        keep = m.rank - _count(rank, m, "rank")
        found = left_subspaces(m, attribution)
        if found.determined < keep <= found.n_tokens and not found.routed:
            raise MechsafetyError(
                f"bottom ranks of {m.name} are undefined: {keep} directions would be kept, but its inputs determine no "
                f"more than {found.determined} of {m.rank}: remove at least {m.rank - found.determined}, or give more "
                "varied examples"
            )
        factors[m.name] = _projected(found.rest(keep), m)
    return LowRank(label=f"bottom ranks {rank}", factors=factors, shapes=shapes_of(maps))


def orthogonal_projection(
    maps: Sequence[LinearMap],
    safety: Attribution,
    utility: Attribution,
    *,
    r_u: Rank,
    r_s: Rank,
    layers: Collection[int] | None = None,
    kinds: Collection[str] | None = None,
) -> LowRank:
    """W <- W - (I - P_u) P_s W: what safety needs and utility does not (the paper's section 2.3).

    P_u projects on the top R - ``r_u`` utility directions and P_s on the top R - ``r_s`` safety directions, so that
    large ranks (the paper's 4000 of 4096) mean small subspaces: R - r_s ranks of each map are removed. Factors are
    B = (I - U_u U_u^T) U_s and A = U_s^T W. With r_s = R of some map nothing of it is removed.

    Raises :class:`MechsafetyError` for ranks that a matrix does not have, R - r above the tokens seen, and for
    scores of other maps.

    Arguments:
        safety: Scores on safety examples.
        utility: Scores on utility examples.

    Returns:
        The factors of what is removed, by map.

    Example:
        >>> removal = ms.regions.orthogonal_projection(maps, safety, utility, r_u=0.5, r_s=0.7)
        >>> max(removal.ranks().values()) <= model.cfg.d_model
        True
    """
    return orthogonal_projections(maps, safety, utility, ranks=[(r_u, r_s)], layers=layers, kinds=kinds)[0]


def orthogonal_projections(
    maps: Sequence[LinearMap],
    safety: Attribution,
    utility: Attribution,
    *,
    ranks: Sequence[tuple[Rank, Rank]],
    layers: Collection[int] | None = None,
    kinds: Collection[str] | None = None,
) -> list[LowRank]:
    """:func:`orthogonal_projection` for several (r_u, r_s), with each map decomposed once: for sweeps."""
    chosen = _chosen(maps, [safety, utility], layers, kinds)
    keeps = {
        m.name: [(m.rank - _count(r_u, m, "r_u"), m.rank - _count(r_s, m, "r_s")) for r_u, r_s in ranks]
        for m in chosen
    }
    found: list[dict[str, Factors]] = [{} for _ in ranks]
    for m in _tracked(chosen):
        needed, safe = left_subspaces(m, utility), left_subspaces(m, safety)
        for factors, (keep_u, keep_s) in zip(found, keeps[m.name], strict=True):
            u_u, u_s = needed.top(keep_u), safe.top(keep_s)
            factors[m.name] = _as_factors(u_s - u_u @ (u_u.T @ u_s), u_s.T @ safe.weight)
    shapes = shapes_of(maps)
    return [
        LowRank(label=f"orthogonal projection r_u={r_u} r_s={r_s}", factors=factors, shapes=shapes)
        for (r_u, r_s), factors in zip(ranks, found, strict=True)
    ]


def random_low_rank(
    maps: Sequence[LinearMap], like: LowRank, *, seed: int = 0, match: Literal["rank", "energy"] = "rank"
) -> LowRank:
    """The matched control: W <- W - Q Q^T W with Q [d_out, r] uniform (Haar) among subspaces of the outputs.

    ``match="rank"`` takes the rank r that ``like`` takes from each map. That is the smaller removal: a top subspace
    holds more than its share r / d_out of W. ``match="energy"`` takes the rank whose expected share of ||W||_F^2,
    r / d_out, is nearest to that of what ``like`` removes, ||B A||_F^2 / ||W||_F^2 (at least 1).

    Returns:
        The factors of what is removed, by map.

    Example:
        >>> removal = ms.regions.remove_top_ranks(maps, safety, rank=2)
        >>> ms.regions.random_low_rank(maps, removal, seed=0).ranks() == removal.ranks()
        True
    """
    generator = torch.Generator().manual_seed(seed)
    by_name = {m.name: m for m in maps}
    factors = {}
    for name in sorted(like.factors):
        b, a = like.factors[name]
        if not a.shape[0]:
            continue
        m = by_name[name]
        rank = a.shape[0] if match == "rank" else _rank_of_energy(m, b, a)
        normal = torch.randn(m.d_out, rank, generator=generator, dtype=torch.float64)
        factors[name] = _projected(torch.linalg.qr(normal).Q, m)
    return LowRank(label=f"random, {match} matched to: {like.label}", factors=factors, shapes=like.shapes)


def _rank_of_energy(m: LinearMap, b: Tensor, a: Tensor) -> int:
    share = product_energy(b, a) / float(m.weight().float().square().sum())
    return min(m.d_out, max(1, round(share * m.d_out)))


def _decomposed(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """U [d_out, R], singular values [R] and, where d_out > d_in, F V [d_in, R] of float64 W and C."""
    gram = (gram + gram.T) / 2
    if weight.shape[0] <= weight.shape[1]:
        squares, vectors = torch.linalg.eigh(weight @ gram @ weight.T)
        return vectors.flip(1), squares.flip(0).clamp(min=0).sqrt(), None
    own, basis = torch.linalg.eigh(gram)
    factor = basis * own.clamp(min=0).sqrt()
    reached = weight @ factor
    squares, vectors = torch.linalg.eigh(reached.T @ reached)
    vectors = vectors.flip(1)
    # Columns are U times singular values. QR makes them unit and orthogonal, strongest first, whatever their size.
    outputs = torch.linalg.qr(reached @ vectors).Q
    return outputs, squares.flip(0).clamp(min=0).sqrt(), factor @ vectors


def _projected(basis: Tensor, m: LinearMap) -> Factors:
    return _as_factors(basis, basis.T @ m.weight().to(basis))


def _as_factors(b: Tensor, a: Tensor) -> Factors:
    return b.float().contiguous().cpu(), a.float().contiguous().cpu()


def _count(rank: Rank, m: LinearMap, what: str) -> int:
    return rank_count(rank, full=m.rank, what=f"{what} of {m.name}")


def _tracked(chosen: list[LinearMap]) -> Iterator[LinearMap]:
    return track(chosen, "decomposing maps", total=len(chosen), unit="map")


def _chosen(
    maps: Sequence[LinearMap],
    scored: Sequence[Attribution],
    layers: Collection[int] | None,
    kinds: Collection[str] | None,
) -> list[LinearMap]:
    chosen = select_maps(maps, layers=layers, kinds=kinds)
    for attribution in scored:
        require_scored(chosen, attribution)
    return chosen
