"""What a fine-tuning did to every weight matrix of the blocks: dW = W_tuned - W_base, never W_tuned itself.

Size and rank of dW; whether its left singular vectors lie in the left null space of W_base, against chance and a
random dW; and how strongly it acts on what the map reads. After Jain et al., NeurIPS 2024, arXiv 2407.10264, section
5, whose released code analyses W_tuned for one of these, takes rows of U for singular vectors, and has no chance
level. Everything goes matrix by matrix; decompositions are of the smaller Gram matrix, in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.anatomy.decompositions import (
    Singular,
    effective_rank,
    left_null_spaces,
    singular,
    stable_rank,
)
from mechsafety.anatomy.readings import SAFE, UNSAFE
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.progress import track
from mechsafety.models.loading import model_name
from mechsafety.regions.maps import LinearMap, linear_maps

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

MLP_KINDS = ("gate", "up", "down")
"""The input and output matrices of an MLP, which are what the paper means."""
TOP = 16
"""How many singular directions of a dW are measured one by one."""
ENERGIES = (90, 99)
"""Shares of ||W_base||_F^2, in percent, that the top left singular vectors hold; the rest is its left null space."""
CHANGE_COLUMNS = (
    *(
        "model",
        "layer",
        "kind",
        "d_out",
        "d_in",
        "relative_norm",
        "effective_rank",
        "stable_rank",
        "directions",
    ),
    *("null_rank_90", "alignment_90", "chance_90", "null_rank_99", "alignment_99", "chance_99"),
)
SPECTRUM_COLUMNS = (
    *("model", "layer", "kind", "index", "sigma", "alignment_90", "alignment_99"),
    *("projection_safe", "projection_unsafe"),
)

Changed = Literal["tuned", "control", "random"]
"""The fine-tuning under study, a benign one to compare it with, and a random dW of the former's norm."""
Inputs = Mapping[str, Float[Tensor, "prompt _"]]
"""What the maps of a model read, by site: :func:`mechsafety.anatomy.outputs.map_inputs`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightChange:
    """One matrix before and after; dW is made anew each time, so that no more than one is held."""

    base: LinearMap
    tuned: LinearMap

    def __post_init__(self) -> None:
        if (self.base.d_out, self.base.d_in) != (self.tuned.d_out, self.tuned.d_in):
            raise MechsafetyError(
                f"{self.name} has {_shape(self.base)} weights before and {_shape(self.tuned)} after"
            )

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def layer(self) -> int:
        return self.base.layer

    @property
    def kind(self) -> str:
        return self.base.kind

    @property
    def site(self) -> str:
        """The name of what the map reads."""
        return self.base.site

    @property
    def rank(self) -> int:
        """The largest rank that dW can have."""
        return self.base.rank

    def matrix(self) -> Float[Tensor, "d_out d_in"]:
        """dW = W_tuned - W_base in float32, on the base's device."""
        before = self.base.weight()
        return self.tuned.weight().to(before.device, torch.float32) - before.float()

    def random(self, *, seed: int) -> Float[Tensor, "d_out d_in"]:
        """A Gaussian matrix of dW's Frobenius norm; the same for the same seed and map."""
        digest = hashlib.sha256(f"{seed}\x1f{self.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn = torch.randn(self.base.d_out, self.base.d_in, generator=generator, dtype=torch.float32)
        change = self.matrix()
        return drawn.to(change.device) * (change.norm() / drawn.norm())

    def drawn(self, model: Changed, *, seed: int) -> Float[Tensor, "d_out d_in"]:
        """dW, or in its place the random one."""
        return self.random(seed=seed) if model == "random" else self.matrix()

    def rounding(self) -> float:
        """About the spectral norm of what rounding both weights to the model's number format puts into dW.

        A singular value of dW below it carries no information: merging a rank-8 adapter in bfloat16 changes all
        ranks. For independent errors of up to half a unit in the last place, eps |w| / sqrt(12) at most in the root
        mean square, by the edge of a random matrix's spectrum; and half as much again, since merging rounds on its
        way too.
        """
        weights = [m.weight() for m in (self.base, self.tuned)]
        mean_square = sum(float(w.float().square().mean()) for w in weights)
        edge = self.base.d_out**0.5 + self.base.d_in**0.5
        return 1.5 * torch.finfo(weights[0].dtype).eps * (mean_square / 12) ** 0.5 * edge


def weight_changes(
    base: TransformerBridge, tuned: TransformerBridge, *, mlp_only: bool = False
) -> list[WeightChange]:
    """dW of every linear map of the blocks (``mlp_only``: of their MLPs), in running order.

    Raises :class:`MechsafetyError` for models whose maps differ in name or shape, and where no matrix differs.

    Returns:
        One change per matrix, with its map and dW.

    Example:
        >>> changes = ms.anatomy.weight_changes(model, other, mlp_only=True)  # of two checkpoints
        >>> sorted({change.kind for change in changes})
        ['down', 'gate', 'up']
    """
    return paired_maps(linear_maps(base), linear_maps(tuned), mlp_only=mlp_only, names=_names(base, tuned))


def paired_maps(
    base: Sequence[LinearMap],
    tuned: Sequence[LinearMap],
    *,
    mlp_only: bool = False,
    names: tuple[str, str] = ("base", "tuned"),
) -> list[WeightChange]:
    """:func:`weight_changes` of maps that are found already; ``names`` are the models', for messages."""
    before, after = ([(m.name, m.d_out, m.d_in) for m in maps] for maps in (base, tuned))
    if before != after:
        raise _unlike(base, tuned, names)
    pairs = [WeightChange(base=a, tuned=b) for a, b in zip(base, tuned, strict=True)]
    pairs = [pair for pair in pairs if not mlp_only or pair.kind in MLP_KINDS]
    if all(torch.equal(p.base.weight(), p.tuned.weight().to(p.base.weight())) for p in pairs):
        what = "MLP matrix" if mlp_only else "matrix of the blocks"
        raise MechsafetyError(
            f"{names[0]} and {names[1]} are the same in every {what}: name the model before and the one after "
            "fine-tuning"
        )
    return pairs


def require_pair(base: TransformerBridge, tuned: TransformerBridge) -> None:
    """Raise :class:`MechsafetyError` unless the two models differ in the values of their parameters alone."""
    names = _names(base, tuned)
    if base is tuned:
        raise MechsafetyError(
            f"{names[0]} was given as base and as tuned: load the model after fine-tuning as well"
        )
    for what, a, b in (
        ("parameters", dict(base.named_parameters()), dict(tuned.named_parameters())),
        ("buffers", dict(base.named_buffers()), dict(tuned.named_buffers())),
    ):
        shapes = [{name: (tuple(x.shape), x.dtype) for name, x in named.items()} for named in (a, b)]
        if shapes[0] != shapes[1]:
            unlike = sorted(set(shapes[0].items()) ^ set(shapes[1].items()), key=str)[0]
            raise MechsafetyError(
                f"{names[0]} and {names[1]} have other {what}, {unlike[0]} for one: both must be of one architecture, "
                f"shape and number format ({way('--dtype', 'dtype')})"
            )
        if what == "buffers" and any(not torch.equal(x, b[name].to(x.device)) for name, x in a.items()):
            raise MechsafetyError(
                f"{names[0]} and {names[1]} differ in more than their weights (in masks or rotary frequencies): their "
                "configurations must be the same"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class ChangeTables:
    """``changes``: one row per model and matrix (:data:`CHANGE_COLUMNS`); ``spectrum``: also per singular direction."""

    changes: pd.DataFrame
    spectrum: pd.DataFrame


def change_tables(
    changes: Sequence[WeightChange],
    *,
    control: Sequence[WeightChange] | None = None,
    inputs: Mapping[str, Inputs] | None = None,
    groups: Sequence[str] = (),
    seed: int,
) -> ChangeTables:
    """Size, ranks and null-space alignment of each dW, of the control's, and of a random one, ``seed`` drawing it.

    ``relative_norm`` = ||dW||_F / ||W_base||_F. ``alignment_90`` is the root mean square of ||P_null u_j|| over the top
    ``directions`` left singular vectors: at most :data:`TOP`, and only those with sigma_j above the rounding of W
    (:meth:`WeightChange.rounding`); NaN without any. ``chance_90`` = sqrt(null_rank_90 / d_out) is what unit vectors of
    any direction have, and what a random dW has up to sampling.

    With ``inputs`` (by model, ``random`` takes ``tuned``'s) and the group of each of their prompts, the spectrum has
    ``projection_safe`` and ``projection_unsafe``: the mean of sigma_j |<a, v_j>| / ||a|| over a group's prompts; else
    NaN. Raises :class:`MechsafetyError` for a control of other maps.
    """
    import pandas as pd

    rows: list[dict[str, object]] = []
    lines: list[dict[str, object]] = []
    for change, models in by_comparison(changes, control, "weight changes"):
        spaces = left_null_spaces(change.base.weight(), energies=ENERGIES)
        norm = float(change.base.weight().float().norm())
        for model, pair in models.items():
            matrix = pair.drawn(model, seed=seed)
            found = singular(matrix, top=min(TOP, pair.rank))
            kept = int((found.values[: found.left.shape[1]] > pair.rounding()).sum())
            key = {"model": model, "layer": change.layer, "kind": change.kind}
            aligned = {e: space.alignment(found.left[:, :kept]) for e, space in spaces.items()}
            rows.append(
                {
                    **key,
                    "d_out": pair.base.d_out,
                    "d_in": pair.base.d_in,
                    "relative_norm": float(matrix.norm()) / norm,
                    "effective_rank": effective_rank(found.values),
                    "stable_rank": stable_rank(found.values),
                    "directions": kept,
                    **{f"null_rank_{e}": space.rank for e, space in spaces.items()},
                    **{f"alignment_{e}": float(a.square().mean().sqrt()) for e, a in aligned.items()},
                    **{f"chance_{e}": space.chance for e, space in spaces.items()},
                }
            )
            read = (inputs or {}).get("tuned" if model == "random" else model)
            columns = {
                "sigma": found.values[:kept],
                **{f"alignment_{e}": a for e, a in aligned.items()},
                **{
                    f"projection_{group}": _projections(found, kept, read, change.site, groups, group)
                    for group in (SAFE, UNSAFE)
                },
            }
            lines.extend(
                {**key, "index": index, **{name: float(x[index]) for name, x in columns.items()}}
                for index in range(kept)
            )
    return ChangeTables(
        changes=pd.DataFrame(rows, columns=list(CHANGE_COLUMNS)),
        spectrum=pd.DataFrame(lines, columns=list(SPECTRUM_COLUMNS)),
    )


def by_comparison(
    changes: Sequence[WeightChange], control: Sequence[WeightChange] | None, label: str
) -> Iterator[tuple[WeightChange, dict[Changed, WeightChange]]]:
    """Each change with those of the same map to measure: its own, the control's, and its own again for ``random``.

    Raises :class:`MechsafetyError` for a control of other maps.
    """
    if control is not None and [c.name for c in control] != [c.name for c in changes]:
        raise MechsafetyError(
            "the control's weight changes are of other maps than those that it is compared with"
        )
    for place, change in enumerate(track(changes, label, total=len(changes), unit="map")):
        models: dict[Changed, WeightChange] = {"tuned": change}
        if control is not None:
            models["control"] = control[place]
        yield change, {**models, "random": change}


def _projections(
    found: Singular, kept: int, read: Inputs | None, site: str, groups: Sequence[str], group: str
) -> Float[Tensor, " kept"]:
    """Mean of sigma_j |<a, v_j>| / ||a|| over the prompts of ``group``; NaN where nothing was read of any."""
    chosen = [name == group for name in groups]
    if read is None or not any(chosen):
        return torch.full((kept,), torch.nan, dtype=torch.float32)
    a = read[site][chosen].to(found.right)
    return ((a @ found.right[:kept].T).abs() * found.values[:kept] / a.norm(dim=-1, keepdim=True)).mean(0)


def _unlike(base: Sequence[LinearMap], tuned: Sequence[LinearMap], names: tuple[str, str]) -> MechsafetyError:
    before, after = ({m.name: _shape(m) for m in maps} for maps in (base, tuned))
    name = next((n for n in (*before, *after) if before.get(n) != after.get(n)), base[0].name)
    return MechsafetyError(
        f"{names[0]} and {names[1]} are no pair: {name} is {before.get(name, 'missing')} in the one and "
        f"{after.get(name, 'missing')} in the other. Base and tuned must be of one architecture and shape"
    )


def _shape(linear: LinearMap) -> str:
    return f"{linear.d_out} x {linear.d_in}"


def _names(base: TransformerBridge, tuned: TransformerBridge) -> tuple[str, str]:
    return model_name(base), model_name(tuned)
