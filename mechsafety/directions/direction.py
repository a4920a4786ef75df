"""Refusal directions from residual-stream caches, with what shows how far to trust them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.arguments import shown
from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import CENTRINGS, METHODS, Centring, Method
from mechsafety.core.values import Value, as_array
from mechsafety.directions.activations import ResidualCache
from mechsafety.directions.estimators import DirectionEstimate, estimate
from mechsafety.directions.projections import CosineMatrix, cosine_matrix
from mechsafety.plots.look import Look, drawn

if TYPE_CHECKING:
    from typing import TypeAlias

    import pandas as pd
    import plotly.graph_objects as go

    ActivationsLike: TypeAlias = Tensor | np.ndarray | Sequence[float]
else:
    ActivationsLike = object

TENSORS = ("vectors", "thresholds", "gaps", "stability", "split_half")
"""Fields of :class:`Directions` that hold a number or a vector for each position and layer."""


@checked_construction
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Direction(Value):
    """One direction in the residual stream, with the place it was found.

    ``vector`` has the length it was found with (the mean difference's own norm), ``unit`` length 1. It
    points from harmless to harmful. ``threshold`` is the middle of the two class means on ``unit``.
    ``covector`` is what an oblique eraser (LEACE) reads in place of the vector; None elsewhere. ``model`` and
    ``fingerprint`` (of its weights) say where it was found; empty where that is not known.

    Arguments:
        layer: Where it was found: the input of this block.
        position: At which token of the prompt, counted from its end.
        method: By which method, such as mean_difference.

    Example:
        >>> direction = directions.at(layer=2, position=-1)
        >>> round(float(direction.unit.norm()), 6)
        1.0
        >>> direction.project(cache.activations[:, 0, 2]).shape == (len(cache.ids),)
        True
    """

    vector: Float[Tensor, " d_model"]
    layer: int
    position: int
    method: Method
    threshold: float = 0.0
    covector: Float[Tensor, " d_model"] | None = None
    model: str = ""
    fingerprint: str = ""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """``vector`` for numpy, [d_model]."""
        return as_array(self.vector, dtype, copy)

    @property
    def norm(self) -> float:
        """Length of the vector, in the activations' own units."""
        return float(self.vector.norm())

    @property
    def unit(self) -> Float[Tensor, " d_model"]:
        """The vector at length 1."""
        return self.vector / self.vector.norm()

    def project(self, x: ActivationsLike) -> Float[Tensor, "*batch"]:
        """Coordinates of the activations ``x`` [..., d_model] along ``unit``, in their own units.

        Raises :class:`MechsafetyError` for activations of another width.
        """
        rows = _activations(x)
        if rows is None or rows.ndim < 1 or rows.shape[-1] != len(self.vector):
            raise MechsafetyError(
                f"activations are {shown(x)}: a tensor or an array [..., {len(self.vector)}] is needed, as "
                "cache.activations is; a whole cache has cache.project(direction)"
            )
        return rows.float() @ self.unit.float().to(rows.device)

    def describe(self) -> str:
        return (
            f"Direction({self.method}, layer {self.layer}, position {self.position}: "
            f"norm {self.norm:.2f}, {self.vector.shape[0]} dimensions)"
        )


def _activations(x: Any) -> Tensor | None:
    """Numbers as a tensor, from wherever numpy reads them; None where there are none."""
    if isinstance(x, Tensor):
        return x
    if not hasattr(x, "__array__") and not isinstance(x, list | tuple):
        return None
    try:
        return torch.as_tensor(np.array(x, dtype=np.float32))
    except (TypeError, ValueError):
        return None


@checked_construction
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Directions(Value):
    """A direction for every (position, layer), found by one method on one model.

    ``vectors`` is [position, layer, d_model] in float32; a zero vector means that harmful and harmless
    prompts do not differ there. ``thresholds`` and ``gaps`` are the middle of, and the distance between, the
    class means on the unit direction. ``stability`` is the mean cosine between each direction and those of
    bootstrap resamples, ``split_half`` the cosine between the two random halves' directions; both are
    about ``covectors`` where the method has them (LEACE, whose vectors are the mean difference). ``chat`` are the
    settings under which the prompts were read, as JSON; empty for the default ones. ``final_norm``: those of the last
    layer were found after the model's final norm.

    Arguments:
        positions: Tokens of the prompt, counted from its end, one row of ``vectors`` each.
        method: By which method they were found.
        centring: Of principal components; None for the other methods.
        model: Name of the model.
        fingerprint: Hash of its weights.
        n_harmful: How many harmful prompts there were.
        n_harmless: How many harmless ones.
        seed: Seed of the resamples.

    Example:
        >>> cosines = directions.cosine().to_frame()  # [layer, layer]
        >>> round(float(cosines.loc[2, 2]), 6)
        1.0
        >>> directions.at(layer=2).layer
        2
    """

    vectors: Float[Tensor, "position layer d_model"]
    thresholds: Float[Tensor, "position layer"]
    gaps: Float[Tensor, "position layer"]
    stability: Float[Tensor, "position layer"]
    split_half: Float[Tensor, "position layer"]
    positions: tuple[int, ...]
    method: Method
    centring: Centring | None
    model: str
    fingerprint: str
    n_harmful: int
    n_harmless: int
    seed: int
    covectors: Float[Tensor, "position layer d_model"] | None = None
    chat: str = ""
    final_norm: bool = False

    @property
    def n_layers(self) -> int:
        """Layers with a direction: the model's blocks and one more for the last block's output."""
        return self.vectors.shape[1]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """``vectors`` for numpy, [position, layer, d_model]."""
        return as_array(self.vectors, dtype, copy)

    def at(self, layer: int, position: int = -1) -> Direction:
        """The direction of one ``layer`` (the input of this block) and position.

        Raises :class:`MechsafetyError` where none was found, and where it is zero.
        """
        if position not in self.positions or not 0 <= layer < self.n_layers:
            raise MechsafetyError(
                f"no direction at position {position}, layer {layer}: positions are "
                f"{', '.join(map(str, self.positions))}, layers 0 to {self.n_layers - 1}"
            )
        row = self.positions.index(position)
        vector = self.vectors[row, layer]
        if float(vector.norm()) == 0.0:
            raise MechsafetyError(f"the direction at position {position}, layer {layer} is zero")
        return Direction(
            vector=vector,
            layer=layer,
            position=position,
            method=self.method,
            threshold=float(self.thresholds[row, layer]),
            covector=None if self.covectors is None else self.covectors[row, layer],
            model=self.model,
            fingerprint=self.fingerprint,
        )

    def row_of(self, position: int) -> int:
        """The row of ``position``. Raises :class:`MechsafetyError` where none were found there."""
        if position not in self.positions:
            raise MechsafetyError(
                f"no directions at position {position}: positions are {', '.join(map(str, self.positions))}"
            )
        return self.positions.index(position)

    def only(self, position: int) -> Directions:
        """Those of one position. Raises :class:`MechsafetyError` where none were found there."""
        row = [self.row_of(position)]
        tensors = {name: getattr(self, name)[row] for name in TENSORS}
        covectors = None if self.covectors is None else self.covectors[row]
        return replace(self, positions=(position,), covectors=covectors, **tensors)

    def steering(self, *, layer: int, position: int = -1) -> Float[Tensor, " d_model"]:
        """What induces refusal when added at ``layer``: the vector, as long as the class gap where it has unit norm.

        Raises :class:`MechsafetyError` for a layer or a position that there is not.
        """
        row = self.row_of(position)
        if not 0 <= layer < self.n_layers:
            raise MechsafetyError(f"layer {layer}: the directions' layers are 0 to {self.n_layers - 1}")
        vector = self.vectors[row, layer]
        return vector if self.method in ("mean_difference", "leace") else vector * self.gaps[row, layer]

    def sha256(self) -> str:
        """A hash of the vectors, of how long steering makes them, and of the covectors."""
        digest = hashlib.sha256(f"{self.method} {self.positions} {tuple(self.vectors.shape)}".encode())
        for tensor in (self.vectors, self.gaps, self.covectors):
            digest.update(b"" if tensor is None else tensor.cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, which :func:`load_directions` reads; the record travels in its metadata.

        Raises :class:`MechsafetyError` for a name that does not end in .safetensors, and where it cannot be written.
        """
        from mechsafety.directions.files import save_one  # which reads Directions

        save_one(self, path)

    def to_frame(self) -> pd.DataFrame:
        """One row per position and layer: position, layer, norm, gap, threshold, stability, split_half."""
        import pandas as pd

        norms = self.vectors.norm(dim=-1)
        columns = (norms, self.gaps, self.thresholds, self.stability, self.split_half)
        rows = [
            (position, layer, *(float(values[row, layer]) for values in columns))
            for row, position in enumerate(self.positions)
            for layer in range(self.n_layers)
        ]
        names = ("position", "layer", "norm", "gap", "threshold", "stability", "split_half")
        return pd.DataFrame(rows, columns=pd.Index(names))

    def cosine(
        self,
        other: Directions | None = None,
        *,
        position: int | None = None,
        other_position: int | None = None,
    ) -> CosineMatrix:
        """Cosines between these directions' layers and those of ``other``, by default the same ones.

        ``position`` and ``other_position`` are by default the last that was found. Raises :class:`MechsafetyError` for
        a position that was not found, and for models of different width.
        """
        return cosine_matrix(self, other or self, position, other_position)

    @drawn
    def plot(self, **_look: Unpack[Look]) -> go.Figure:
        """Norm, stability and split-half cosine by layer, one line per position."""
        from mechsafety.plots.by_layer import layer_lines

        measures = {"norm": "norm", "stability": "stability", "split_half": "split-half cosine"}
        about = (
            f"{self.n_harmful} harmful and {self.n_harmless} harmless prompts. Stability: mean cosine with the "
            "directions of bootstrap resamples; split-half: between those of two random halves."
        )
        heading = f"{self.model}: {self.method} directions by layer"
        return layer_lines(self.to_frame(), measures, title=heading, subtitle=about, width=860, height=620)

    def describe(self) -> str:
        longest = int(self.vectors.norm(dim=-1).max(dim=0).values.argmax())
        return (
            f"Directions({self.method} of {self.model!r}, {self.vectors.shape[-1]} dimensions)\n"
            f"positions {', '.join(map(str, self.positions))}; layers 0 to {self.n_layers - 1}, longest at {longest}; "
            f"{self.n_harmful} harmful and {self.n_harmless} harmless prompts"
        )


def find_directions(
    cache: ResidualCache,
    *,
    method: Method = "mean_difference",
    centring: Centring = "pooled",
    seed: int = 0,
    resamples: int = 50,
) -> Directions:
    """A harmful-minus-harmless direction at every cached (position, layer); :func:`estimate`
    describes what each method computes.

    ``resamples`` bootstrap resamples of the prompts give the stability (5 at the most for methods that solve
    or fit something at every layer; NaN without any). Raises :class:`MechsafetyError` for an unknown method, fewer
    than two prompts of a class, and one class only.

    Arguments:
        cache: Activations of harmful and harmless fit prompts, of ms.residual_stream.
        centring: Of principal components: pooled centres both classes on one mean, per_class each on its own.

    Returns:
        The directions [position, layer, d_model], with their stability.

    Example:
        >>> directions = ms.find_directions(cache, method="mean_difference")
        >>> at_layer_2 = cache.select("harmful")[:, 0, 2].mean(0) - cache.select("harmless")[:, 0, 2].mean(0)
        >>> torch.allclose(directions.at(layer=2).vector, at_layer_2, atol=1e-5)
        True
    """
    if method not in METHODS:
        raise MechsafetyError(f"method {method!r} is not one of {', '.join(METHODS)}")
    if centring not in CENTRINGS:
        raise MechsafetyError(f"centring {centring!r} is not one of {', '.join(CENTRINGS)}")
    if resamples < 0:
        raise MechsafetyError(f"resamples is {resamples}: 0 at least")
    harmful, harmless = cache.select("harmful").double(), cache.select("harmless").double()
    if min(len(harmful), len(harmless)) < 2:
        raise MechsafetyError(
            f"{len(harmful)} harmful and {len(harmless)} harmless prompts are too few: 2 of each at least"
        )

    def find(a: Tensor, b: Tensor) -> DirectionEstimate:
        return estimate(method, a, b, centring=centring)

    found = find(harmful, harmless)
    vectors = _nothing_to_zero(found.vectors, harmful, harmless)
    generator = torch.Generator().manual_seed(seed)
    rounds = resamples if method == "mean_difference" else min(resamples, 5)
    stability = torch.zeros(vectors.shape[:2], dtype=torch.float64)
    for _ in range(rounds):
        drawn = [_resample(x, generator) for x in (harmful, harmless)]
        if method == "mean_difference":  # a mean of drawn rows is a product, which copies none of them
            again = _mean_of(harmful, drawn[0]) - _mean_of(harmless, drawn[1])
        else:
            again = find(harmful[drawn[0]], harmless[drawn[1]]).read
        stability += cosine(again, found.read)
    (a1, a2), (b1, b2) = _halves(harmful, generator), _halves(harmless, generator)
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    middle = (harmful.mean(0) + harmless.mean(0)) / 2
    return Directions(
        vectors=vectors.float(),
        thresholds=(middle * unit).sum(-1).float(),
        gaps=((harmful.mean(0) - harmless.mean(0)) * unit).sum(-1).float(),
        stability=(stability / rounds).float() if rounds else torch.full(vectors.shape[:2], torch.nan),
        split_half=cosine(find(a1, b1).read, find(a2, b2).read).float(),
        positions=cache.positions,
        method=method,
        centring=centring if method == "pca" else None,
        model=cache.model,
        fingerprint=cache.fingerprint,
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        seed=seed,
        chat=cache.chat,
        covectors=None if found.covectors is None else _like(found.covectors, vectors).float(),
        final_norm=cache.final_norm,
    )


def _like(covectors: Tensor, vectors: Tensor) -> Tensor:
    """Scaled so that each reads its own vector as 1; zero where the vector is."""
    read = (covectors * vectors).sum(-1, keepdim=True)
    return torch.where(read.abs() > 0, covectors / torch.where(read == 0, 1.0, read), 0.0)


def _nothing_to_zero(vectors: Tensor, harmful: Tensor, harmless: Tensor) -> Tensor:
    """Where the classes differ by rounding only (the template's own tokens at layer 0) there is no direction."""
    scale = torch.cat([harmful, harmless]).norm(dim=-1).mean(0)
    gap = (harmful.mean(0) - harmless.mean(0)).norm(dim=-1)
    return torch.where((gap > 1e-6 * scale)[..., None], vectors, torch.zeros_like(vectors))


def cosine(a: Float[Tensor, "*batch d"], b: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
    """Cosine along the last axis; 0 where either vector is zero."""
    return torch.nn.functional.cosine_similarity(a, b, dim=-1, eps=1e-12)


def _resample(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rows drawn with replacement."""
    return torch.randint(len(x), (len(x),), generator=generator)


def _mean_of(x: Tensor, rows: Tensor) -> Tensor:
    weights = torch.bincount(rows, minlength=len(x)).to(x.dtype) / len(rows)
    return (weights @ x.flatten(1)).reshape(x.shape[1:])


def _halves(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(x), generator=generator)
    middle = len(x) // 2
    return x[order[:middle]], x[order[middle:]]


def principal_plane(cache: ResidualCache, direction: Direction) -> pd.DataFrame:
    """The cached prompts in the first two principal components at the direction's place.

    Columns id, label, pc1, pc2, projection (on the direction), explained1, explained2 (shares of variance).
    """
    import pandas as pd
    from sklearn.decomposition import PCA

    points = cache.activations[:, cache.positions.index(direction.position), direction.layer]
    plane = PCA(n_components=2, random_state=0).fit(points.numpy())
    x, y = plane.transform(points.numpy()).T
    return pd.DataFrame(
        {
            "id": cache.ids,
            "label": cache.labels,
            "pc1": x,
            "pc2": y,
            "projection": direction.project(points).numpy(),
            "explained1": plane.explained_variance_ratio_[0],
            "explained2": plane.explained_variance_ratio_[1],
        }
    )
