"""Singular directions of a matrix, its ranks, and the left null space beside its range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError


@dataclass(frozen=True, kw_only=True, eq=False)
class Singular:
    """M = U S V^T: all singular values, largest first, and the first ``r`` vectors to each side, in float64."""

    left: Float[Tensor, "d_out r"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "r d_in"]


def singular(matrix: Float[Tensor, "d_out d_in"], *, top: int) -> Singular:
    """Singular values of ``matrix`` and its ``top`` singular directions (no more than its rank).

    Of the smaller Gram matrix in float64: values below 1e-8 of the largest are rounding, and so are their vectors,
    which are orthonormal all the same.
    """
    wide = matrix.double()
    tall = wide.shape[0] > wide.shape[1]
    squares, vectors = torch.linalg.eigh(wide.T @ wide if tall else wide @ wide.T)
    near = vectors.flip(1)[:, :top]
    # The vectors of the longer side come scaled by singular values; QR makes them unit whatever their size.
    far, triangle = torch.linalg.qr(wide @ near if tall else wide.T @ near)
    far = far * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    left, right = (far, near.T) if tall else (near, far.T)
    return Singular(left=left, values=squares.flip(0).clamp(min=0).sqrt(), right=right)


def effective_rank(values: Float[Tensor, " rank"]) -> float:
    """exp of the entropy of sigma^2 / sum sigma^2 (Roy and Vetterli 2007); NaN for a zero matrix."""
    energy = values.double().square()
    total = float(energy.sum())
    if not total > 0:
        return math.nan
    share = energy[energy > 0] / total
    return math.exp(-float((share * share.log()).sum()))


def stable_rank(values: Float[Tensor, " rank"]) -> float:
    """||M||_F^2 / sigma_1^2; NaN for a zero matrix."""
    first = float(values[0])
    return float(values.double().square().sum()) / first**2 if first > 0 else math.nan


@dataclass(frozen=True, kw_only=True, eq=False)
class NullSpace:
    """The left null space of a matrix: all outputs but the top k left singular vectors, which are ``range``."""

    range: Float[Tensor, "d_out k"]

    @property
    def rank(self) -> int:
        """Its dimension d_out - k."""
        return self.range.shape[0] - self.range.shape[1]

    @property
    def chance(self) -> float:
        """sqrt(1 - k / d_out): the root mean square of ||P u|| over unit vectors u of any direction."""
        return math.sqrt(self.rank / self.range.shape[0])

    def alignment(self, vectors: Float[Tensor, "d_out r"]) -> Float[Tensor, " r"]:
        """||P_null u|| of each unit column u: 1 inside the null space, 0 outside."""
        inside = vectors - self.range @ (self.range.T @ vectors)
        return inside.norm(dim=0).clamp(max=1.0)


def left_null_spaces(matrix: Float[Tensor, "d_out d_in"], *, energies: Sequence[int]) -> dict[int, NullSpace]:
    """By energy: the complement of the fewest left singular vectors that hold so many percent of ||W||_F^2.

    Raises :class:`MechsafetyError` for a matrix of zeros.
    """
    found = singular(matrix, top=min(matrix.shape))
    energy = found.values.square().cumsum(0)
    if not float(energy[-1]) > 0:
        raise MechsafetyError("a matrix of zeros has no range, so that there is no null space beside it")
    counts = {e: int((energy < e / 100 * energy[-1]).sum()) + 1 for e in energies}
    return {e: NullSpace(range=found.left[:, :count]) for e, count in counts.items()}
