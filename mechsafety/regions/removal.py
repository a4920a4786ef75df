"""What is taken out of a model's weights, as a value; taking it out, and putting it back bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.wording import percent
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.loading import model_name
from mechsafety.models.one_thread import in_one_thread
from mechsafety.regions.maps import LinearMap, linear_maps

if TYPE_CHECKING:
    pass

Shapes = Mapping[str, tuple[int, int]]
"""(d_out, d_in) of every linear map of the model, by name: what sparsities are shares of."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pruning:
    """Weights that are set to zero: for each map the flat places i * d_in + j of its W [d_out, d_in], ascending.

    ``shapes`` holds every map of the model, those that lose nothing too. Raises :class:`MechsafetyError` when
    nothing at all is removed, for a place outside its matrix, and for places that do not ascend.
    """

    label: str
    entries: Mapping[str, Int[Tensor, " entry"]]
    shapes: Shapes

    def __post_init__(self) -> None:
        _require_known(self.label, self.entries, self.shapes)
        if not self.n_removed:
            raise MechsafetyError(f"{self.label}: the set is empty, so that nothing would be removed")
        for name, places in self.entries.items():
            d_out, d_in = self.shapes[name]
            if len(places) and not (int(places[0]) >= 0 and int(places[-1]) < d_out * d_in):
                raise MechsafetyError(
                    f"{self.label}: {name} has entries outside its {d_out} x {d_in} weights"
                )
            if not bool((places[1:] > places[:-1]).all()):
                raise MechsafetyError(f"{self.label}: the places of {name} must be ascending, each once")

    @property
    def n_removed(self) -> int:
        return sum(len(places) for places in self.entries.values())

    @property
    def sparsity(self) -> float:
        """Removed weights as a share of all weights of all maps."""
        return self.n_removed / sum(d_out * d_in for d_out, d_in in self.shapes.values())

    def counts(self) -> dict[str, int]:
        """Removed weights of each map."""
        return {name: len(self.entries.get(name, ())) for name in self.shapes}

    def describe(self) -> str:
        return f"{self.label}: {self.n_removed:,} weights ({percent(self.sparsity)}) set to zero"

    __repr__ = describe


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LowRank:
    """W <- W - B A for the maps named: ``factors`` are B [d_out, r] and A [r, d_in], in float32.

    Raises :class:`MechsafetyError` when no map has a factor, and for shapes that do not fit.
    """

    label: str
    factors: Mapping[str, tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]]
    shapes: Shapes

    def __post_init__(self) -> None:
        _require_known(self.label, self.factors, self.shapes)
        if not any(a.shape[0] for _, a in self.factors.values()):
            raise MechsafetyError(f"{self.label}: every rank is 0, so that nothing would be removed")
        for name, (b, a) in self.factors.items():
            if (b.shape[0], a.shape[1]) != self.shapes[name] or b.shape[1] != a.shape[0]:
                raise MechsafetyError(
                    f"{self.label}: factors {list(b.shape)} and {list(a.shape)} do not make {name}, "
                    f"{list(self.shapes[name])}"
                )

    def ranks(self) -> dict[str, int]:
        """The rank taken from each map."""
        return {name: len(self.factors[name][1]) if name in self.factors else 0 for name in self.shapes}

    def describe(self) -> str:
        ranks = [rank for rank in self.ranks().values() if rank]
        return f"{self.label}: {len(ranks)} maps lose ranks {min(ranks)} to {max(ranks)}"

    __repr__ = describe


Removal = Pruning | LowRank


def product_energy(b: Float[Tensor, "d_out r"], a: Float[Tensor, "r d_in"]) -> float:
    """||B A||_F^2, without the d_out x d_in matrix."""
    return float(((b.T @ b) * (a @ a.T)).sum())


def removed_sizes(removal: Removal, maps: Sequence[LinearMap]) -> dict[str, float]:
    """How large what is removed is, read off the whole model's ``maps``.

    ``mean_weight`` is the mean |w| of the removed weights (NaN where ranks are removed), ``energy`` the sum of squares
    of what is taken out over that of all weights.
    """
    whole = sum(float(m.weight().float().square().sum()) for m in maps)
    if isinstance(removal, LowRank):
        energy = sum(product_energy(b, a) for b, a in removal.factors.values())
        return {"mean_weight": math.nan, "energy": energy / whole}
    taken = torch.cat(
        [
            m.weight().reshape(-1)[removal.entries[m.name].to(m.weight().device, torch.long)].double().cpu()
            for m in maps
            if m.name in removal.entries
        ]
    )
    return {"mean_weight": float(taken.abs().mean()), "energy": float(taken.square().sum()) / whole}


@contextmanager
def removed(model: ModelLike, removal: Removal, *, maps: Sequence[LinearMap] | None = None) -> Iterator[None]:
    """``model`` without what ``removal`` takes out; its weights are as they were, bit for bit, when the block ends.

    The weights themselves change, so that everything feels it: the bridge, its plain twin, generation with and
    without edits on top. A pruning keeps only what it sets to zero; a low-rank removal keeps a copy of every map
    that it changes, since rounding cannot be undone. Blocks may be nested.

    Raises :class:`MechsafetyError` when the removal was made for other maps than the model's.

    Returns:
        A context manager: within its block the weights are out.

    Example:
        >>> before = ms.logits(model, prompts.report)
        >>> with ms.regions.removed(model, ms.regions.top_pruning(maps, safety, method="snip", q=5)):
        ...     without = ms.logits(model, prompts.report)
        >>> bool((without == before).all()), bool((ms.logits(model, prompts.report) == before).all())
        (False, True)
    """
    model = as_model(model, by_name=False)
    maps = maps if maps is not None else linear_maps(model)
    require_made_for(removal, maps, model_name(model))
    found = {m.name: m for m in maps}
    undo: list[tuple[LinearMap, Tensor]] = []
    with in_one_thread(model, weights=True):
        try:
            if isinstance(removal, Pruning):
                for name, places in removal.entries.items():
                    if len(places):
                        undo.append((found[name], replace_entries(found[name], places, None)))
            else:
                for name, (b, a) in removal.factors.items():
                    if a.shape[0]:
                        undo.append((found[name], _subtracted(found[name], b, a)))
            yield
        finally:
            for linear, kept in reversed(undo):
                if isinstance(removal, Pruning):
                    replace_entries(linear, removal.entries[linear.name], kept)
                else:
                    linear.write(kept)


def require_made_for(removal: Removal, maps: Sequence[LinearMap], model: str) -> None:
    """Raise unless ``removal`` was made for linear maps of these names and shapes, those of ``model``."""
    if {m.name: (m.d_out, m.d_in) for m in maps} != dict(removal.shapes):
        raise MechsafetyError(
            f"{removal.label} was made for other linear maps than those of {model}: "
            f"{len(removal.shapes)} maps against {len(maps)}, or other shapes"
        )


def replace_entries(linear: LinearMap, places: Int[Tensor, " entry"], values: Tensor | None) -> Tensor:
    """Put ``values`` (None: zeros) at the flat ``places`` of W, and return what stood there."""
    weight = linear.weight().clone(memory_format=torch.contiguous_format)
    flat, where = weight.view(-1), places.to(weight.device, torch.long)
    before = flat[where]
    flat[where] = torch.zeros_like(before) if values is None else values
    linear.write(weight)
    return before


def _subtracted(linear: LinearMap, b: Tensor, a: Tensor) -> Float[Tensor, "d_out d_in"]:
    before = linear.weight().clone(memory_format=torch.contiguous_format)
    product = b.to(before.device, torch.float32) @ a.to(before.device, torch.float32)
    linear.write((before.float() - product).to(before.dtype))
    return before


def _require_known(label: str, named: Mapping[str, object], shapes: Shapes) -> None:
    unknown = sorted(set(named) - set(shapes))
    if unknown:
        raise MechsafetyError(
            f"{label}: no linear map {unknown[0]!r}; there are {', '.join(sorted(shapes)[:4])}, ..."
        )
