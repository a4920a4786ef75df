"""Linear algebra of directions: orthonormal bases and projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.arguments import shown
from mechsafety.core.errors import MechsafetyError

if TYPE_CHECKING:
    import numpy as np


@runtime_checkable
class HasVector(Protocol):
    """Anything that carries a direction in the residual stream, such as ``directions.Direction``."""

    @property
    def vector(self) -> Float[Tensor, " d_model"]: ...


if TYPE_CHECKING:
    VectorLike: TypeAlias = Tensor | HasVector | np.ndarray | Sequence[float] | Sequence[Sequence[float]]
else:
    VectorLike = Any
"""A direction as people have it: of torch or numpy, a list of numbers or of rows, or a Direction."""
_AS_IT_IS = 5e-7  # the rounding of float32: what is orthonormal up to it is left alone


def project_out(
    x: Float[Tensor, "*batch d_model"], basis: Float[Tensor, "k d_model"], alpha: float
) -> Float[Tensor, "*batch d_model"]:
    """x - alpha B^T B x for an orthonormal basis B, computed in float32 and returned in x's dtype.

    In bfloat16 the projection itself would leave a residue of about 2^-8 of the component.
    """
    wide = x.float()
    return (wide - alpha * (wide @ basis.T) @ basis).to(x.dtype)


def oblique(
    x: Float[Tensor, "*batch d_model"],
    write: Float[Tensor, " d_model"],
    read: Float[Tensor, " d_model"],
    alpha: float,
) -> Float[Tensor, "*batch d_model"]:
    """x - alpha u (r . x) for r . u = 1: what r reads of x is taken away along u; in float32, like the above."""
    wide = x.float()
    return (wide - alpha * (wide @ read)[..., None] * write).to(x.dtype)


def read_vector(write: Float[Tensor, " d_model"], covector: Tensor) -> Float[Tensor, " d_model"]:
    """``covector`` scaled so that it reads ``write`` as 1; raises where it does not read it at all."""
    wide = covector.detach().cpu().double()
    along = float(wide @ write.double())
    if abs(along - 1) < _AS_IT_IS:
        return covector.detach().cpu().float()
    if not abs(along) > 1e-9 * float(wide.norm()):
        raise MechsafetyError("the covector does not read the direction: their product is zero")
    return (wide / along).float()


def orthonormal(direction: VectorLike) -> Float[Tensor, "k d_model"]:
    """Orthonormal rows spanning ``direction`` (a vector or [k, d_model]), in float32 on the CPU.

    The first row points the way the first given row does. Raises :class:`MechsafetyError` for a zero,
    non-finite or linearly dependent direction.
    """
    rows = as_tensor(direction).detach().cpu().double()
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.numel():
        raise MechsafetyError(f"a direction is [d_model] or [k, d_model], got shape {list(rows.shape)}")
    if len(rows) > rows.shape[1]:
        turned = ": give a column as a row, vector.T" if rows.shape[1] == 1 else ""
        raise MechsafetyError(
            f"{len(rows)} directions in a stream of {rows.shape[1]} are linearly dependent{turned}"
        )
    if float((rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)).abs().max()) < _AS_IT_IS:
        return rows.float().contiguous()  # so that a stored basis comes back bit for bit
    q, r = torch.linalg.qr(rows.T)
    diagonal = r.diagonal()
    if bool((diagonal.abs() <= 1e-9 * rows.norm(dim=-1).max()).any()):
        raise MechsafetyError("the direction is zero, or its rows are linearly dependent")
    return (q * diagonal.sign()).T.float().contiguous()  # QR flips signs; give back those that came in


_ONE_OF = {
    "vectors": ", of several directions one: directions.at(layer=...)",
    "nearest": ", of a sweep the one that it selects, sweep.best(), or sweep.directions.at(layer=..., position=...)",
    "kl_bound": ", of a selection sweep.directions.at(layer=selection.layer, position=selection.position)",
}
"""Where a direction is found in what holds some, by an attribute of that."""


def as_tensor(direction: VectorLike) -> Tensor:
    """The direction's entries, all finite, as a tensor of torch.

    Raises :class:`MechsafetyError` for what holds no real numbers, and for NaN and infinity.
    """
    vector = _entries(direction)
    if vector is None or vector.dtype in (torch.bool, torch.complex64, torch.complex128) or not vector.ndim:
        how = next((text for has, text in _ONE_OF.items() if hasattr(direction, has)), "")
        raise MechsafetyError(
            f"a direction is {shown(direction)}: a Direction, a tensor, an array or a list of numbers is needed, "
            f"[d_model] or [k, d_model]{how}"
        )
    vector = vector if vector.is_floating_point() else vector.float()
    if not bool(torch.isfinite(vector).all()):
        raise MechsafetyError("the direction holds NaN or infinite entries")
    return vector


def _entries(direction: Any) -> Tensor | None:
    """The numbers in their order, whatever a table's index says; None where there are none."""
    given: Any = direction.vector if isinstance(direction, HasVector) else direction
    if _hold_vectors(given):
        given = torch.stack([one.vector for one in given])
    if hasattr(given, "to_numpy"):  # of pandas
        given = given.to_numpy(copy=True)
    if getattr(getattr(given, "dtype", None), "kind", "") == "O":  # numpy's objects
        given = given.tolist()
    if hasattr(
        given, "flags"
    ):  # torch warns of what it cannot write to, and takes no other machine's byte order
        given = given.astype(given.dtype.newbyteorder("="), order="C", copy=True)
    try:
        return given if isinstance(given, Tensor) else torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        return None


def _hold_vectors(given: object) -> bool:
    return (
        isinstance(given, list | tuple) and bool(given) and all(isinstance(one, HasVector) for one in given)
    )
