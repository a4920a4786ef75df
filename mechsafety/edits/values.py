"""Edits as values: which map acts on which sites of the residual stream, in which layers, at which positions.

Every edit is frozen, describes itself and has a hash; two are equal when they describe and do the same.
:mod:`mechsafety.edits.interventions` puts one on a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.arguments import Name, names, number, several, shown, whole_numbers
from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.models.hooking import Target
from mechsafety.models.projection import VectorLike, as_tensor, oblique, orthonormal, project_out, read_vector

Site = Literal["resid_pre", "attn_out", "mlp_out", "resid_post"]
Position = Literal["all", "prompt", "last_prompt", "generated"]
Layers: TypeAlias = "int | Sequence[int] | None"
"""One block, several (a tuple, a list, a range), or all of them."""
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
    """SHA-256 of the edit's description, which holds every number in full, and of its tensors in float32."""
    hasher = hashlib.sha256(edit.describe().encode())
    for tensor in edit.tensors():
        hasher.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return hasher.hexdigest()


class _Value:
    """Equality and hash by what an edit does; shown by its description, not by its tensors' entries."""

    def targets(self, n_layers: int) -> list[Target]:
        """What is put on a model of ``n_layers`` blocks: a map, a block and a site of each hook.

        Raises :class:`MechsafetyError` for a layer that there is not, and for an edit that no hooks can do.
        """
        raise NotImplementedError

    def describe(self) -> str:
        """One line that says in full what the edit does, but for the entries of its tensors."""
        raise NotImplementedError

    def tensors(self) -> tuple[Tensor, ...]:
        """All numbers that the edit is made of beside those in its description."""
        raise NotImplementedError

    def __add__(self, other: object) -> Edit:
        """Both edits, this one first."""
        from mechsafety.edits.sums import added

        return added(self, other)  # type: ignore[arg-type]

    def __radd__(self, other: object) -> Edit:
        """``sum()`` of edits begins with 0."""
        from mechsafety.edits.sums import added

        nothing = isinstance(other, int) and other == 0
        return added(self) if nothing else added(other, self)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and digest(self) == digest(other)  # type: ignore[arg-type]

    def __hash__(self) -> int:
        return hash(digest(self))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return self.describe()  # type: ignore[attr-defined]

    def _repr_html_(self) -> str:
        return f"<code>{escape(repr(self))}</code>"


@checked_construction
@dataclass(frozen=True, eq=False, repr=False)
class Ablate(_Value):
    """Project a direction out of the residual stream: h <- h - alpha B^T B h.

    ``direction`` is a vector or the rows [k, d_model] of a subspace; it is orthonormalised. A direction with a
    ``covector`` w (LEACE) is taken out obliquely: h <- h - alpha u (r . h), r = w / (w . u), which is idempotent
    for alpha = 1 and leaves nothing that w can read (Belrose et al. 2023).

    By default the projection acts at every block's input, attention output and MLP output, at every position:
    with alpha = 1 nothing in the residual stream keeps any of the direction (Arditi et al. 2024, arXiv
    2406.11717, section 2.4). ``layers`` restricts the blocks, ``sites`` the places in them.

    Arguments:
        alpha: Share of the component that is taken out: 1 all of it, 2 reflects it.
        positions: Tokens that are edited: all, prompt, last_prompt or generated.

    Example:
        >>> stream = ms.residual_stream(model, prompts.report, progress=False)
        >>> with ms.edited(model, ms.Ablate(direction)):
        ...     edited = ms.residual_stream(model, prompts.report, progress=False)
        >>> bool(direction.project(edited.activations[:, 0]).abs().max() < 1e-3)
        True
        >>> bool(direction.project(stream.activations[:, 0]).abs().max() < 1e-3)
        False
    """

    direction: VectorLike
    alpha: float = field(default=1.0, kw_only=True)
    layers: Layers = field(default=None, kw_only=True)
    sites: Site | Sequence[Site] = field(default=EVERYWHERE, kw_only=True)
    positions: Position = field(default="all", kw_only=True)
    basis: Float[Tensor, "k d_model"] = field(init=False, repr=False, compare=False)
    read: Float[Tensor, " d_model"] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _settle(self, sites=_names(self.sites, SITES, "site"), layers=_layers(self.layers))
        _require_position(self.positions)
        _settle(self, alpha=number(self.alpha, "alpha"))
        object.__setattr__(self, "basis", orthonormal(self.direction))
        object.__setattr__(self, "read", _read_of(self.direction, self.basis))

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
            f"Ablate({kind}k={self.basis.shape[0]}, alpha={_number(self.alpha)}, layers={_span(self.layers)}, "
            f"sites={'+'.join(self.sites)}, positions={self.positions})"
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.basis,) if self.read is None else (self.basis, self.read)


STREAM_SITES: tuple[Site, ...] = ("resid_pre", "resid_post")


@checked_construction
@dataclass(frozen=True, eq=False, repr=False)
class AffineAblate(_Value):
    """Project to a reference point: h <- h - alpha B^T B (h - r), so that every prompt looks like r along B.

    With the harmless class mean as r the edited stream keeps what harmless prompts have of the direction,
    where :class:`Ablate` moves all of them to zero, a place that no prompt was at (the affine part of LEACE,
    Belrose et al. 2023; Marshall et al. 2024, arXiv 2411.09003). r is left where it is, and at alpha = 1 the map
    is idempotent. A direction with a covector is moved obliquely: h <- h - alpha u (w . (h - r)), w . u = 1; with r
    the mean of all prompts that is LEACE itself (equation 1 there).

    ``reference`` is one point [d_model] for every layer, one row per layer [layer, d_model] (layer L at block L's
    input, one more row for the last block's output), or, for a single direction, a number t in place of the
    point t u: the coordinate u . r on the unit direction (w . r where there is a covector). Only what r has along
    the directions matters, so both mean the same. The stream's mean differs from layer to layer: give one row per
    layer, or restrict ``layers`` to where the reference was measured. The sites are those at which the stream
    itself stands; what attention and MLP write are increments, which have no such mean.

    Arguments:
        direction: A vector or the rows [k, d_model] of a subspace; it is orthonormalised.
        alpha: Share of the way to the reference that is gone.
        sites: resid_pre, resid_post or both.
        positions: Tokens that are edited: all, prompt, last_prompt or generated.

    Example:
        >>> with ms.edited(model, ms.AffineAblate(direction, reference=0.5)):
        ...     stream = ms.residual_stream(model, prompts.report, progress=False).activations[:, 0, 2]
        >>> torch.allclose(direction.project(stream), torch.tensor(0.5), atol=1e-3)
        True
    """

    direction: VectorLike
    reference: VectorLike | float = field(kw_only=True)
    alpha: float = field(default=1.0, kw_only=True)
    layers: Layers = field(default=None, kw_only=True)
    sites: Site | Sequence[Site] = field(default=("resid_pre",), kw_only=True)
    positions: Position = field(default="all", kw_only=True)
    basis: Float[Tensor, "k d_model"] = field(init=False, repr=False, compare=False)
    read: Float[Tensor, " d_model"] | None = field(init=False, repr=False, compare=False)
    target: Float[Tensor, "layer k"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sites = _names(self.sites, STREAM_SITES, "site of an affine edit")
        _settle(self, sites=sites, layers=_layers(self.layers), alpha=number(self.alpha, "alpha"))
        _require_position(self.positions)
        object.__setattr__(self, "basis", orthonormal(self.direction))
        object.__setattr__(self, "read", _read_of(self.direction, self.basis))
        object.__setattr__(self, "target", _coordinates(self.reference, self._reader()))

    def _reader(self) -> Float[Tensor, "k d_model"]:
        return self.basis if self.read is None else self.read[None]

    def targets(self, n_layers: int) -> list[Target]:
        # The last row of a reference a layer is the last block's output.
        if len(self.target) not in (1, n_layers, n_layers + 1):
            raise MechsafetyError(
                f"the reference has {len(self.target)} rows; one, or one per layer of this model ({n_layers}, or "
                f"{n_layers + 1} with the last block's output)"
            )
        k = len(self.basis)

        def apply(x: Tensor, constant: Tensor) -> Tensor:
            write, read, point = constant[:k], constant[k:-1], constant[-1]
            wide = x.float()
            return (wide - self.alpha * ((wide - point) @ read.T) @ write).to(x.dtype)

        found = []
        for layer in layers_of(self.layers, n_layers):
            for site in self.sites:
                row = 0 if len(self.target) == 1 else layer + (site == "resid_post")
                if row >= len(self.target):
                    raise MechsafetyError("the reference has no row for the last block's output (resid_post)")
                point = self.target[row] @ self.basis
                constant = torch.cat([self.basis, self._reader(), point[None]])
                found.append(Target(layer=layer, site=site, apply=apply, constant=constant))
        return found

    def describe(self) -> str:
        kind = "" if self.read is None else "oblique, "
        return (
            f"AffineAblate({kind}k={self.basis.shape[0]}, alpha={_number(self.alpha)}, "
            f"references={len(self.target)}, "
            f"layers={_span(self.layers)}, sites={'+'.join(self.sites)}, positions={self.positions})"
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.basis, self.target) if self.read is None else (self.basis, self.read, self.target)


@checked_construction
@dataclass(frozen=True, eq=False, repr=False)
class Add(_Value):
    """Add a multiple of a direction in one block or several: h <- h + coefficient * v, v not normalised.

    With the harmful-minus-harmless mean difference and coefficient +1 this induces refusal (Arditi et
    al. 2024, equation 3). ``direction`` is one vector [d_model] for every block of ``layer`` (a number, or several), or
    one row for each of them [layer, d_model]. ``site`` is where in the block: its input, as there, or what attention or
    MLP write, which is the same to all that comes after.

    Arguments:
        coefficient: What the vector is multiplied by.
        positions: Tokens that are edited: all, prompt, last_prompt or generated.

    Example:
        >>> edit = ms.Add(np.ones(model.cfg.d_model), layer=range(1, 3), coefficient=0.5)
        >>> with ms.edited(model, edit) as receipt:
        ...     _ = ms.logits(model, prompts.report)
        >>> list(receipt.to_frame()["hook"])
        ['blocks.1.hook_resid_pre', 'blocks.2.hook_resid_pre']
    """

    direction: VectorLike
    layer: int | Sequence[int] = field(kw_only=True)
    coefficient: float = field(default=1.0, kw_only=True)
    site: Site = field(default="resid_pre", kw_only=True)
    positions: Position = field(default="all", kw_only=True)
    vector: Float[Tensor, "*layer d_model"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _names((self.site,), SITES, "site")
        _require_position(self.positions)
        layers = whole_numbers(self.layer, "layer")
        vector = as_tensor(self.direction)
        if vector.ndim != 1 and (vector.ndim != 2 or len(vector) != len(layers)):
            raise MechsafetyError(
                f"Add takes one vector [d_model], or one for each of its {len(layers)} layers, got shape "
                f"{list(vector.shape)}"
            )
        _settle(
            self,
            layer=layers[0] if len(layers) == 1 else layers,
            coefficient=number(self.coefficient, "coefficient"),
            vector=(vector[0] if vector.shape[0] == 1 and vector.ndim == 2 else vector)
            .detach()
            .cpu()
            .float(),
        )

    def targets(self, n_layers: int) -> list[Target]:
        def apply(x: Tensor, vector: Tensor) -> Tensor:
            return (x.float() + self.coefficient * vector).to(x.dtype)

        layers = layers_of(self.layer, n_layers)
        rows = self.vector.expand(len(layers), -1)
        return [
            Target(layer=layer, site=self.site, apply=apply, constant=row)
            for layer, row in zip(layers, rows, strict=True)
        ]

    def describe(self) -> str:
        site = "" if self.site == "resid_pre" else f"site={self.site}, "
        layers = _span(_layers(self.layer))
        return (
            f"Add(coefficient={_number(self.coefficient)}, layer={layers}, {site}positions={self.positions})"
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.vector,)


Writer = Literal["embed", "attn_out", "mlp_out"]
WRITERS: tuple[Writer, ...] = get_args(Writer)


@checked_construction
@dataclass(frozen=True, eq=False, repr=False)
class Orthogonalise(_Value):
    """Take a direction out of every map that writes to the residual stream: W <- W - alpha B^T B W.

    ``writers`` are the embedding and the output maps of attention and MLP (biases too). As hooks it is
    the same projection at what they write. The granular study's released code edits ``attn_out`` and
    ``mlp_out`` of every block but the first and leaves the embedding.

    ``norm_preserving`` gives what each single input of a map writes (a column w of W, a row of the embedding, a
    bias; d_model long) its length back afterwards: w <- |w| w' / |w'|, w' = w - alpha B^T B w. Only its angle to
    the direction has changed; with alpha = 1 it is still orthogonal to it. A column that lay in the direction
    (|w'| below a thousandth of |w|) is not stretched. The stretch depends on the weights, so it exists only as
    weights (:func:`mechsafety.edits.interventions.baked`).

    The projection is orthogonal: a direction's ``covector`` (LEACE) plays no part here, see :class:`Ablate`.

    Arguments:
        direction: A vector or the rows [k, d_model] of a subspace; it is orthonormalised.
        alpha: Share of the component that is taken out, 1 for all of it.

    Example:
        >>> edit = ms.Orthogonalise(direction, alpha=1.0)
        >>> with ms.baked(model, edit):
        ...     written = model.blocks[2].mlp.out(torch.randn(1, model.cfg.d_mlp)) @ direction.unit
        >>> bool(written.abs().max() < 1e-4)
        True
    """

    direction: VectorLike
    alpha: float = field(default=1.0, kw_only=True)
    layers: Layers = field(default=None, kw_only=True)
    writers: Writer | Sequence[Writer] = field(default=WRITERS, kw_only=True)
    norm_preserving: bool = field(default=False, kw_only=True)
    basis: Float[Tensor, "k d_model"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        writers = _names(self.writers, WRITERS, "writer")
        _settle(self, writers=writers, layers=_layers(self.layers), alpha=number(self.alpha, "alpha"))
        object.__setattr__(self, "basis", orthonormal(self.direction))

    @property
    def positions(self) -> Position:
        """All tokens: weights know no other."""
        return "all"

    def targets(self, n_layers: int) -> list[Target]:
        if self.norm_preserving:
            raise MechsafetyError(
                f"{self.describe()} exists only as weights: use {way('--baked', 'baked()')}"
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
            f"Orthogonalise(k={self.basis.shape[0]}, alpha={_number(self.alpha)}, layers={_span(self.layers)}, "
            f"writers={'+'.join(self.writers)}{', norm_preserving' if self.norm_preserving else ''})"
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.basis,)


def writers_of(edit: Orthogonalise) -> tuple[Writer, ...]:
    """The maps that the edit is written into."""
    return _names(edit.writers, WRITERS, "writer")


def _read_of(direction: VectorLike, basis: Float[Tensor, "k d_model"]) -> Float[Tensor, " d_model"] | None:
    """What an oblique direction reads, scaled to read the unit direction as 1; None for an ordinary one."""
    covector = getattr(direction, "covector", None)
    if covector is None:
        return None
    if len(basis) != 1 or covector.shape != basis.shape[1:]:
        raise MechsafetyError(
            f"a covector reads one direction of its own length: got {list(covector.shape)} for a basis of "
            f"{list(basis.shape)}"
        )
    return read_vector(basis[0], covector)


def _coordinates(
    reference: VectorLike | float, reader: Float[Tensor, "k d_model"]
) -> Float[Tensor, "layer k"]:
    """Where the reference lies along the directions: one row for all layers, or one per layer."""
    if isinstance(reference, int | float):
        if len(reader) != 1:
            raise MechsafetyError("a number is a reference for one direction; give a subspace a vector")
        return torch.tensor([[number(reference, "reference")]], dtype=torch.float32)
    rows = as_tensor(reference).detach().cpu().float()
    shape, rows = list(rows.shape), rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != reader.shape[1]:
        raise MechsafetyError(
            f"a reference is a number, [d_model] or [layer, d_model] with d_model {reader.shape[1]}, got shape "
            f"{shape}"
        )
    return rows @ reader.T


def as_hooks() -> str:
    """What an error proposes for an edit that the weights cannot hold."""
    return way("hooks do it, without --baked", "use edited()")


def layers_of(layers: Layers, n_layers: int) -> tuple[int, ...]:
    """The layers meant, all of them for None; raises for none, for one twice and for one there is not."""
    chosen = tuple(range(n_layers)) if layers is None else whole_numbers(layers, "layers")
    wrong = [layer for layer in chosen if not 0 <= layer < n_layers]
    if wrong or not chosen:
        raise MechsafetyError(f"layers {wrong or 'none'} of a model with layers 0 to {n_layers - 1}")
    if len(set(chosen)) < len(chosen):
        raise MechsafetyError(f"layers {', '.join(map(str, chosen))}: one is named twice")
    return chosen


def _span(layers: Layers) -> str:
    return "all" if layers is None else ",".join(map(str, several(layers)))


def _number(value: float) -> str:
    """As short as it can be without losing any of it: the hash of an edit is made from it."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _layers(layers: Layers) -> tuple[int, ...] | None:
    return None if layers is None else whole_numbers(layers, "layers")


def _settle(edit: object, **values: object) -> None:
    """Set fields of a frozen edit to what they were understood as."""
    for name, value in values.items():
        object.__setattr__(edit, name, value)


def _require_position(position: object) -> None:
    if position not in POSITIONS:
        raise MechsafetyError(
            f"positions is {shown(position)}: an edit's are one of {', '.join(POSITIONS)}; the last prompt token, -1 "
            "where activations are read, is last_prompt"
        )


def _names(got: object, allowed: Sequence[Name], what: str) -> tuple[Name, ...]:
    found = names(got, what, allowed)
    if len(set(found)) < len(found):
        raise MechsafetyError(f"{what} {', '.join(found)}: one is named twice, and would be edited twice")
    return found
