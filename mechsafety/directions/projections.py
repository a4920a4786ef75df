"""Projections of cached activations on directions, and cosines between the directions of all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.values import Value
from mechsafety.models.projection import VectorLike, as_tensor
from mechsafety.plots.look import Look, drawn

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from mechsafety.directions.activations import ResidualCache
    from mechsafety.directions.direction import Directions


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Projections(Value):
    """Projection of each prompt on the unit direction of each layer, at one position; NaN where that is zero."""

    values: Float[Tensor, "prompt layer"]
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    position: int
    model: str

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt (its id as the index), one column per layer."""
        import pandas as pd

        return pd.DataFrame(
            self.values.numpy(),
            index=pd.Index(self.ids, name="id"),
            columns=pd.RangeIndex(self.values.shape[1]),
        ).rename_axis(columns="layer")

    @drawn
    def plot(self, **_look: Unpack[Look]) -> go.Figure:
        """Prompts by layer as a heat map, harmful ones first; each layer in units of its own spread.

        Norms grow from layer to layer, so that a common scale would show the last ones alone; hovering gives the
        projection itself.
        """
        from mechsafety.plots.by_layer import number_map

        order = sorted(range(len(self.ids)), key=lambda row: self.labels[row])
        values = self.values[order].double()
        centred = values - values.nanmean(0)
        spread = centred.square().nanmean(0).sqrt()
        labels = [
            f"{self.ids[row]} ({self.labels[row]})" if self.labels[row] else self.ids[row] for row in order
        ]
        return number_map(
            (centred / torch.where(spread > 0, spread, torch.nan)).tolist(),
            shown=values.tolist(),
            x=list(range(values.shape[1])),
            y=labels,
            titles=("layer (input of block)", "", "projection, in<br>layer's spread"),
            title=f"{self.model}: projection on the direction of each layer",
            subtitle=f"Position {self.position}. Each layer is centred and scaled by its spread over the prompts.",
        )

    def describe(self) -> str:
        n, layers = self.values.shape
        return f"Projections({n} prompts, {layers} layers, position {self.position} of {self.model!r})"

    def _repr_html_(self) -> str:
        return self.to_frame().round(2).to_html(border=0, max_rows=12, max_cols=14)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CosineMatrix(Value):
    """Cosines between the directions of two models' layers, at one position each; NaN where one is zero."""

    values: Float[Tensor, "layer other_layer"]
    models: tuple[str, str]
    positions: tuple[int, int]

    def to_frame(self) -> pd.DataFrame:
        """One row per layer of the first model, one column per layer of the second."""
        import pandas as pd

        rows, columns = (
            pd.RangeIndex(n, name=name) for n, name in zip(self.values.shape, ("layer", "other"), strict=True)
        )
        return pd.DataFrame(self.values.numpy(), index=rows, columns=columns)

    @drawn
    def plot(self, **_look: Unpack[Look]) -> go.Figure:
        """The matrix as a heat map from -1 to 1."""
        from mechsafety.plots.by_layer import number_map

        first, second = (
            f"layer of {name}, position {at}" for name, at in zip(self.models, self.positions, strict=True)
        )
        within = self.models[0] == self.models[1]
        return number_map(
            self.values.tolist(),
            x=list(range(self.values.shape[1])),
            y=[str(layer) for layer in range(self.values.shape[0])],
            titles=(second, first, "cosine"),
            title="Cosines between layers" if within else "Cosines between two models' layers",
            subtitle="Cosine between the directions; grey where one of them is zero.",
            width=720,
            height=660,
            bounds=(-1.0, 1.0),
        )

    def describe(self) -> str:
        rows, columns = self.values.shape
        return f"CosineMatrix({rows} layers of {self.models[0]!r} x {columns} layers of {self.models[1]!r})"

    def _repr_html_(self) -> str:
        return self.to_frame().round(2).to_html(border=0, max_rows=14, max_cols=14)


def projected(cache: ResidualCache, directions: Directions | VectorLike, position: int) -> Projections:
    """See :meth:`ResidualCache.project`."""
    x = cache.activations[:, cache.row_of(position)].double()
    units = unit_by_layer(directions, cache.n_layers, position)
    if units.shape != x.shape[1:]:
        raise MechsafetyError(
            f"directions of {units.shape[0]} layers and {units.shape[1]} dimensions do not fit a cache of "
            f"{x.shape[1]} layers and {x.shape[2]} dimensions: find them on the same model"
        )
    return Projections(
        values=torch.einsum("pld,ld->pl", x, units).float(),
        ids=cache.ids,
        labels=cache.labels,
        position=position,
        model=cache.model,
    )


def unit_by_layer(directions: Any, n_layers: int, position: int) -> Float[Tensor, "layer d_model"]:
    """A unit vector for each layer, in float64; NaN where the direction is zero."""
    several = getattr(directions, "vectors", None)
    if several is not None:
        vectors = several[directions.row_of(position)].double()
    else:
        vector = as_tensor(directions)
        if vector.ndim != 1:
            raise MechsafetyError(f"one vector [d_model] is expected, got shape {list(vector.shape)}")
        vectors = vector.detach().cpu().double().expand(n_layers, -1)
    norms = vectors.norm(dim=-1, keepdim=True)
    return vectors / torch.where(norms > 0, norms, torch.nan)


def cosine_matrix(
    first: Directions, second: Directions, position: int | None, other_position: int | None
) -> CosineMatrix:
    """See :meth:`Directions.cosine`."""
    widths = [found.vectors.shape[-1] for found in (first, second)]
    if widths[0] != widths[1]:
        raise MechsafetyError(
            f"directions of {widths[0]} and of {widths[1]} dimensions have no cosine: {first.model!r} and "
            f"{second.model!r} differ in width"
        )
    at = max(first.positions) if position is None else position
    other = (
        (max(second.positions) if second is not first else at) if other_position is None else other_position
    )
    a, b = (unit_by_layer(found, 0, place) for found, place in ((first, at), (second, other)))
    return CosineMatrix(values=(a @ b.T).float(), models=(first.model, second.model), positions=(at, other))
