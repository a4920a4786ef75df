"""Edits as values: which map acts on which sites of the residual stream, in which layers, at which positions.

Every edit is frozen, describes itself and has a hash. :mod:`interventions` puts one on a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.errors import MechsafetyError
from mechsafety.hooking import Target
from mechsafety.projection import VectorLike, as_tensor, oblique, orthonormal, project_out, read_vector

Site = Literal["resid_pre", "attn_out", "mlp_out", "resid_post"]
Position = Literal["all", "prompt", "last_prompt", "generated"]
SITES: tuple[Site, ...] = get_args(Site)
POSITIONS: tuple[Position, ...] = get_args(Position)
EVERYWHERE: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out")


@runtime_checkable
class Edit(Protocol):
    """What every edit offers. ``targets`` gives the maps; the rest describes it."""

    @property
    def positions(self) -> Position: ...

    def targets(self, n_layers: int) -> list[Target]: ...

    def describe(self) -> str: ...

    def tensors(self) -> tuple[Tensor, ...]: ...


def digest(edit: Edit) -> str:
    """SHA-256 of the edit's description and of its tensors in float32."""
    hasher = hashlib.sha256(edit.describe().encode())
    for tensor in edit.tensors():
        hasher.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return hasher.hexdigest()


@dataclass(frozen=True)
class Ablate:
    """Project a direction out of the residual stream: h <- h - alpha B^T B h.

    ``direction`` is a vector or the rows [k, d_model] of a subspace; it is orthonormalised. A direction with a
    ``covector`` w (LEACE) is taken out obliquely: h <- h - alpha u (r . h), r = w / (w . u), which is idempotent
    for alpha = 1 and leaves nothing that w can read (Belrose et al. 2023).

    By default the projection acts at every block's input, attention output and MLP output, at every position:
    with alpha = 1 nothing in the residual stream keeps any of the direction (Arditi et al. 2024, arXiv
    2406.11717, section 2.4). ``layers`` restricts the blocks, ``sites`` the places in them.
    """

    direction: VectorLike
    alpha: float = field(default=1.0, kw_only=True)
    layers: tuple[int, ...] | None = field(default=None, kw_only=True)
    sites: tuple[Site, ...] = field(default=EVERYWHERE, kw_only=True)
    positions: Position = field(default="all", kw_only=True)
    basis: Float[Tensor, "k d_model"] = field(init=False, repr=False, compare=False)
    read: Float[Tensor, " d_model"] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.sites, SITES, "site")
        _check((self.positions,), POSITIONS, "position")
        basis = orthonormal(self.direction)
        covector = getattr(self.direction, "covector", None)
        object.__setattr__(self, "basis", basis)
        object.__setattr__(self, "read", None if covector is None else read_vector(basis[0], covector))

    def targets(self, n_layers: int) -> list[Target]:
        if self.read is None:

            def apply(x: Tensor, constant: Tensor) -> Tensor:
                return project_out(x, constant, self.alpha)

            constant = self.basis
        else:

            def apply(x: Tensor, constant: Tensor) -> Tensor:
                return oblique(x, constant[0], constant[1], self.alpha)

            constant = torch.stack([self.basis[0], self.read])
        return [
            Target(layer=layer, site=site, apply=apply, constant=constant)
            for layer in layers_of(self.layers, n_layers)
            for site in self.sites
        ]

    def describe(self) -> str:
        kind = "" if self.read is None else "oblique, "
        return (
            f"Ablate({kind}k={self.basis.shape[0]}, alpha={self.alpha:g}, layers={_span(self.layers)}, "
            f"sites={'+'.join(self.sites)}, positions={self.positions})"
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.basis,) if self.read is None else (self.basis, self.read)


STREAM_SITES: tuple[Site, ...] = ("resid_pre", "resid_post")


@dataclass(frozen=True)
class AffineAblate:
    """Project to a reference point: h <- h - alpha B^T B (h - r), so that every prompt looks like r along B.

    With the harmless class mean as r the edited stream keeps what harmless prompts have of the direction,
    where :class:`Ablate` moves all of them to nought, a place that no prompt was at (the affine part of LEACE,
    Belrose et al. 2023; Marshall et al. 2024, arXiv 2411.09003).

    ``reference`` is one point [d_model] for every layer, a row a layer [layer, d_model], or, for a single
    direction, a number: the coordinate along the unit direction. The stream's mean differs from layer to
    layer: give a row a layer, or restrict ``layers`` to where the reference was measured. The sites are those
    at which the stream itself stands; what attention and MLP write are increments, which have no such mean.
    """

    direction: VectorLike
    reference: Tensor | float = field(kw_only=True)
    alpha: float = field(default=1.0, kw_only=True)
    layers: tuple[int, ...] | None = field(default=None, kw_only=True)
    sites: tuple[Site, ...] = field(default=("resid_pre",), kw_only=True)
    positions: Position = field(default="all", kw_only=True)
    basis: Float[Tensor, "k d_model"] = field(init=False, repr=False, compare=False)
    target: Float[Tensor, "layer k"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.sites, STREAM_SITES, "site of an affine edit")
        _check((self.positions,), POSITIONS, "position")
        basis = orthonormal(self.direction)
        object.__setattr__(self, "basis", basis)
        object.__setattr__(self, "target", _coordinates(self.reference, basis))

    def targets(self, n_layers: int) -> list[Target]:
        # The last row of a reference a layer is the last block's output.
        if len(self.target) not in (1, n_layers, n_layers + 1):
            raise MechsafetyError(
                f"the reference has {len(self.target)} rows; one, or one a layer of this model ({n_layers}, or "
                f"{n_layers + 1} with the last block's output)"
            )
        found = []
        for layer in layers_of(self.layers, n_layers):
            for site in self.sites:
                row = 0 if len(self.target) == 1 else layer + (site == "resid_post")
                if row >= len(self.target):
                    raise MechsafetyError("the reference has no row for the last block's output (resid_post)")
                point = self.target[row] @ self.basis

                def apply(x: Tensor, constant: Tensor) -> Tensor:
                    moved = x.float() - constant[-1]
                    return (x.float() - self.alpha * (moved @ constant[:-1].T) @ constant[:-1]).to(x.dtype)

                constant = torch.cat([self.basis, point[None]])
                found.append(Target(layer=layer, site=site, apply=apply, constant=constant))
        return found

    def describe(self) -> str:
        return (
            f"AffineAblate(k={self.basis.shape[0]}, alpha={self.alpha:g}, references={len(self.target)}, "
            f"layers={_span(self.layers)}, sites={'+'.join(self.sites)}, positions={self.positions})"
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.basis, self.target)


@dataclass(frozen=True)
class Add:
    """Add a multiple of a direction at one block's input: h <- h + coefficient * v, v not normalised.

    With the harmful-minus-harmless mean difference and coefficient +1 this induces refusal (Arditi et
    al. 2024, equation 3).
    """

    direction: VectorLike
    layer: int = field(kw_only=True)
    coefficient: float = field(default=1.0, kw_only=True)
    positions: Position = field(default="all", kw_only=True)
    vector: Float[Tensor, " d_model"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check((self.positions,), POSITIONS, "position")
        vector = as_tensor(self.direction)
        if vector.ndim != 1:
            raise MechsafetyError(f"Add takes one vector [d_model], got shape {list(vector.shape)}")
        object.__setattr__(self, "vector", vector.detach().cpu().float())

    def targets(self, n_layers: int) -> list[Target]:
        layers_of((self.layer,), n_layers)

        def apply(x: Tensor, vector: Tensor) -> Tensor:
            return (x.float() + self.coefficient * vector).to(x.dtype)

        return [Target(layer=self.layer, site="resid_pre", apply=apply, constant=self.vector)]

    def describe(self) -> str:
        return f"Add(coefficient={self.coefficient:g}, layer={self.layer}, positions={self.positions})"

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.vector,)


Writer = Literal["embed", "attn_out", "mlp_out"]
WRITERS: tuple[Writer, ...] = get_args(Writer)


@dataclass(frozen=True)
class Orthogonalise:
    """Take a direction out of every map that writes to the residual stream: W <- W - alpha B^T B W.

    ``writers`` are the embedding and the output maps of attention and MLP (biases too). As hooks it is
    the same projection at what they write. The granular study's released code edits ``attn_out`` and
    ``mlp_out`` of every block but the first and leaves the embedding.

    ``norm_preserving`` gives what each single input of a map writes (a column of W, d_model long) its length
    back afterwards, so that only its angle to the direction has changed; a column that lay in the direction
    stays zero. That depends on the weights, so it exists only as weights (:func:`interventions.baked`).
    """

    direction: VectorLike
    alpha: float = field(default=1.0, kw_only=True)
    layers: tuple[int, ...] | None = field(default=None, kw_only=True)
    writers: tuple[Writer, ...] = field(default=WRITERS, kw_only=True)
    norm_preserving: bool = field(default=False, kw_only=True)
    basis: Float[Tensor, "k d_model"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.writers, WRITERS, "writer")
        object.__setattr__(self, "basis", orthonormal(self.direction))

    @property
    def positions(self) -> Position:
        return "all"

    def targets(self, n_layers: int) -> list[Target]:
        if self.norm_preserving:
            raise MechsafetyError(
                f"{self.describe()} exists only as weights: use baked(), or --baked on the command line"
            )

        def apply(x: Tensor, basis: Tensor) -> Tensor:
            return project_out(x, basis, self.alpha)

        blocks = [
            Target(layer=layer, site=site, apply=apply, constant=self.basis)
            for layer in layers_of(self.layers, n_layers)
            for site in ("attn_out", "mlp_out")
            if site in self.writers
        ]
        # What the embeddings write, positions included, is the first block's input.
        embed = [Target(layer=0, site="resid_pre", apply=apply, constant=self.basis)]
        return (embed if "embed" in self.writers else []) + blocks

    def describe(self) -> str:
        return (
            f"Orthogonalise(k={self.basis.shape[0]}, alpha={self.alpha:g}, layers={_span(self.layers)}, "
            f"writers={'+'.join(self.writers)}{', norm_preserving' if self.norm_preserving else ''})"
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.basis,)


def _coordinates(reference: Tensor | float, basis: Float[Tensor, "k d_model"]) -> Float[Tensor, "layer k"]:
    """Where the reference lies along the basis: a row for all layers, or a row a layer."""
    if not isinstance(reference, Tensor):
        if len(basis) != 1:
            raise MechsafetyError("a number is a reference for one direction; give a subspace a vector")
        return as_tensor(torch.tensor([[float(reference)]]))
    rows = as_tensor(reference).detach().cpu().float()
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != basis.shape[1]:
        raise MechsafetyError(
            f"a reference is a number, [d_model] or [layer, d_model] with d_model {basis.shape[1]}, got shape "
            f"{list(reference.shape)}"
        )
    return rows @ basis.T


def layers_of(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    chosen = tuple(range(n_layers)) if layers is None else tuple(layers)
    wrong = [layer for layer in chosen if not 0 <= layer < n_layers]
    if wrong or not chosen:
        raise MechsafetyError(f"layers {wrong or 'none'} of a model with layers 0 to {n_layers - 1}")
    return chosen


def _span(layers: tuple[int, ...] | None) -> str:
    return "all" if layers is None else ",".join(map(str, layers))


def _check(got: tuple[str, ...], allowed: tuple[str, ...], what: str) -> None:
    wrong = [value for value in got if value not in allowed]
    if wrong or not got:
        raise MechsafetyError(f"{what} {', '.join(wrong) or 'none'} is not one of {', '.join(allowed)}")
