"""By layer, on held-out prompts: separation by the direction, its stability, and the tokens it raises or lowers.

Made from cached activations; the picture is in :mod:`mechsafety.sweeps.profile_figure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.values import Value
from mechsafety.directions.activations import ResidualCache
from mechsafety.directions.direction import Directions, cosine
from mechsafety.models import hooked_transformers
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import device_of
from mechsafety.models.forward import evaluating
from mechsafety.models.handles import attached
from mechsafety.models.loading import body_of, is_hooked_transformer
from mechsafety.models.projection import VectorLike, as_tensor
from mechsafety.plots.look import Look, drawn
from mechsafety.statistics.mann_whitney import inflation, score_interval

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from transformer_lens.model_bridge import TransformerBridge

COMPONENTS = 5


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LayerProfile(Value):
    """What :func:`profile_layers` measured, by layer."""

    frame: pd.DataFrame
    position: int
    selected: int | None
    model: str

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, with the columns that :func:`profile_layers` names."""
        return self.frame.copy()

    @drawn
    def plot(self, selected: int | None = None, **_look: Unpack[Look]) -> go.Figure:
        """Length, separation, cosines and explained variance by layer.

        ``selected`` is the layer that the profile was made with, which it is by default.
        """
        from mechsafety.plots.style import short_name
        from mechsafety.sweeps.profile_figure import profile_figure

        chosen = self.selected if selected is None else selected
        return profile_figure(self.frame, name=short_name(self.model), selected=chosen)

    def describe(self) -> str:
        known = self.frame.dropna(subset=["auroc"]).sort_values("auroc")
        best = (
            "undefined"
            if known.empty
            else f"{known['auroc'].iloc[-1]:.2f} at layer {known['layer'].iloc[-1]:.0f}"
        )
        return (
            f"LayerProfile({len(self.frame)} layers of {self.model!r}, position {self.position}; "
            f"highest AUROC {best})"
        )

    def _repr_html_(self) -> str:
        return self.frame.round(3).to_html(index=False, border=0)


def profile_layers(
    directions: Directions,
    held_out: ResidualCache,
    *,
    position: int = -1,
    selected: int | None = None,
    seed: int = 0,
    resamples: int = 500,
) -> LayerProfile:
    """How the directions of one position do on prompts they were not found on, one row per layer.

    Columns: layer; ``norm`` of the direction and ``relative_norm``, its share of the mean length of the stream;
    ``auroc`` of the projection with its 95 % score interval over prompts (``auroc_low``, ``auroc_high``);
    ``fisher``, (m1 - m0)^2 / (s1^2 + s0^2) of the projection; ``cosine_previous`` with the layer before;
    ``cosine_selected`` with the direction of layer ``selected``; ``explained_1`` ... ``explained_5``, shares of
    the held-out variance along the first principal components. A covector, where there is one, is what projects.

    Raises :class:`MechsafetyError` when the cache is of another model or lacks the position.

    Arguments:
        directions: Of fit prompts.
        held_out: Activations of other prompts, at the same positions.

    Returns:
        One row per layer, with the columns above.

    Example:
        >>> profile = ms.profile_layers(directions, held_out, selected=2, resamples=20).to_frame()
        >>> len(profile) == model.cfg.n_layers + 1
        True
        >>> round(float(profile["cosine_selected"][2]), 6)
        1.0
    """
    import pandas as pd

    _check(directions, held_out, position)
    if selected is not None and not 0 <= selected < directions.n_layers:
        raise MechsafetyError(
            f"selected is {selected}: the directions' layers are 0 to {directions.n_layers - 1}"
        )
    row = directions.positions.index(position)
    vectors = directions.vectors[row]
    read = vectors if directions.covectors is None else directions.covectors[row]
    at = held_out.positions.index(position)
    harmful, harmless = held_out.select("harmful")[:, at], held_out.select("harmless")[:, at]
    generator = np.random.default_rng(seed)
    rows: list[dict[str, float]] = []
    for layer in range(directions.n_layers):
        a, b = (x[:, layer].double() @ read[layer].double() for x in (harmful, harmless))
        auroc, low, high = _auroc(a.numpy(), b.numpy(), generator, resamples)
        spread = a.var() + b.var()
        zero = float(vectors[layer].norm()) == 0.0
        stream = torch.cat([harmful[:, layer], harmless[:, layer]])
        rows.append(
            {
                "layer": layer,
                "norm": float(vectors[layer].norm()),
                "relative_norm": float(vectors[layer].norm() / stream.norm(dim=-1).mean()),
                "auroc": float("nan") if zero else auroc,
                "auroc_low": float("nan") if zero else low,
                "auroc_high": float("nan") if zero else high,
                "fisher": float("nan") if zero else float((a.mean() - b.mean()).square() / spread),
                "cosine_previous": _cosine(vectors, layer, layer - 1 if layer else None),
                "cosine_selected": _cosine(vectors, layer, selected),
                **_explained(stream),
            }
        )
    return LayerProfile(
        frame=pd.DataFrame(rows), position=position, selected=selected, model=directions.model
    )


def _check(directions: Directions, held_out: ResidualCache, position: int) -> None:
    if directions.fingerprint != held_out.fingerprint or directions.n_layers != held_out.n_layers:
        raise MechsafetyError(
            f"the directions are of {directions.model!r}, the held-out cache of {held_out.model!r}: both must be "
            "of one model"
        )
    if position not in directions.positions or position not in held_out.positions:
        raise MechsafetyError(
            f"position {position}: the directions have {list(directions.positions)}, the cache "
            f"{list(held_out.positions)}"
        )


def _auroc(
    a: Float[np.ndarray, " harmful"],
    b: Float[np.ndarray, " harmless"],
    generator: np.random.Generator,
    resamples: int,
) -> tuple[float, float, float]:
    """The share of pairs in which the harmful one projects higher, ties half, with Newcombe's score interval.

    Where it varies more over draws of prompts than that gives, the interval is as much wider.
    """
    wins = (a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])
    # Drawing prompts again only counts them differently, so every resample is one product.
    first = generator.multinomial(len(a), np.full(len(a), 1 / len(a)), size=resamples) / len(a)
    second = generator.multinomial(len(b), np.full(len(b), 1 / len(b)), size=resamples) / len(b)
    drawn = ((first @ wins) * second).sum(1)
    value, sizes = float(wins.mean()), {"positives": len(a), "negatives": len(b)}
    wider = inflation(value, float(drawn.var()), **sizes)
    return value, *score_interval(value, inflation=wider, **sizes)


def _cosine(vectors: Float[Tensor, "layer d_model"], layer: int, other: int | None) -> float:
    if other is None or not float(vectors[layer].norm()) or not float(vectors[other].norm()):
        return float("nan")
    return float(cosine(vectors[layer], vectors[other]))


def _explained(x: Float[Tensor, "prompt d_model"]) -> dict[str, float]:
    variance = torch.linalg.svdvals((x - x.mean(0)).double()).square()
    total = float(variance.sum())
    shares = [float(v) / total if total else float("nan") for v in variance[:COMPONENTS]]
    shares += [float("nan")] * (COMPONENTS - len(shares))
    return {f"explained_{k}": share for k, share in enumerate(shares, start=1)}


def logit_lens(model: ModelLike, direction: VectorLike, *, k: int = 10) -> pd.DataFrame:
    """The tokens that the direction promotes and suppresses when read by the final norm and the model's own head.

    Head(norm(u)) - Head(norm(0)) for the unit direction u, with whatever scale or cap the model puts on its logits:
    without a cap exact up to a positive factor for RMS and layer norms, since what is subtracted is their bias. Columns
    rank, side (promoted, suppressed), token, logit (in units of the spread of all tokens' logits).

    Raises :class:`MechsafetyError` for a direction of another width, and for k below 1.

    Arguments:
        direction: A direction, or a vector [d_model].
        k: Tokens of each side.

    Returns:
        One row per side and rank.

    Example:
        >>> tokens = ms.logit_lens(model, direction, k=3)
        >>> list(tokens.columns)
        ['rank', 'side', 'token', 'logit']
        >>> tokens["side"].value_counts().to_dict()
        {'promoted': 3, 'suppressed': 3}
    """
    model = as_model(model)
    import pandas as pd

    if k < 1:
        raise MechsafetyError(f"k is {k}: 1 token of each side at least")
    vector = as_tensor(direction)
    if vector.shape != (model.cfg.d_model,):
        raise MechsafetyError(
            f"the direction has shape {list(vector.shape)}, the model's residual stream {model.cfg.d_model} entries: "
            "it was made for another model"
        )
    if not float(vector.norm()):
        raise MechsafetyError("the direction is zero")
    unit = vector.float() / vector.float().norm()
    read = _read_out(model, torch.stack([unit, torch.zeros_like(unit)]))
    logits = (read[0] - read[1]) / (read[0] - read[1]).std()
    found = []
    for side, sign in (("promoted", 1), ("suppressed", -1)):
        top = (sign * logits).topk(min(k, len(logits)))
        for rank, token in enumerate(top.indices.tolist(), start=1):
            found.append(
                {
                    "rank": rank,
                    "side": side,
                    "token": str(model.tokenizer.decode([token])),
                    "logit": float(logits[token]),
                }
            )
    return pd.DataFrame(found)


def _read_out(
    model: TransformerBridge, streams: Float[Tensor, "stream d_model"]
) -> Float[Tensor, "stream vocabulary"]:
    """Logits of residual streams behind the last block, in float32 on the CPU."""
    rows = streams[None].to(device_of(model), next(model.parameters()).dtype)
    with torch.inference_mode(), evaluating(body_of(model)):
        if is_hooked_transformer(model):
            return hooked_transformers.read_out(body_of(model), rows)[0].float().cpu()
        # The model's own forward, on any tokens: what its final norm would read of them is replaced.
        lens: Any = model
        handle = lens.ln_final.register_forward_pre_hook(lambda _, inputs: (rows, *inputs[1:]))
        with attached([handle]):
            ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)
            return body_of(model)(input_ids=ids, use_cache=False).logits[0].float().cpu()
