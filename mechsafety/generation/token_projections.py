"""Projections on a direction token by token, along a prompt and the answer to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.values import Value
from mechsafety.directions.direction import Directions
from mechsafety.directions.projections import unit_by_layer
from mechsafety.edits.interventions import Edit, edited
from mechsafety.edits.sums import EditLike, as_edit
from mechsafety.generation.answered import Completion
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import device_of, own_tokenizer, pad_left, pad_token, tokenize_prompts
from mechsafety.models.forward import forward
from mechsafety.models.hooking import observed, residual_hooks
from mechsafety.models.loading import body_of, model_name
from mechsafety.models.projection import VectorLike
from mechsafety.plots.look import Look, drawn
from mechsafety.prompts.accepted import PromptsLike, one_prompt

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TokenProjections(Value):
    """Projection of every token at every layer on unit directions; NaN where a layer's direction is zero.

    ``positions`` count from the end of the prompt: -1 is its last token, 0 the first token of the answer. ``layer`` is
    the one that the text and the curve show.
    """

    values: Float[Tensor, "token layer"]
    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    layer: int
    model: str

    def to_frame(self) -> pd.DataFrame:
        """One row per token and layer: token, position, part (``prompt`` or ``answer``), layer, projection."""
        import pandas as pd

        n, layers = self.values.shape
        rows = [
            (
                self.tokens[at],
                place,
                "answer" if place >= 0 else "prompt",
                layer,
                float(self.values[at, layer]),
            )
            for at, place in zip(range(n), self.positions, strict=True)
            for layer in range(layers)
        ]
        return pd.DataFrame(rows, columns=pd.Index(("token", "position", "part", "layer", "projection")))

    def at(self, layer: int) -> TokenProjections:
        """The same, with another ``layer`` shown. Raises :class:`MechsafetyError` for one that there is not."""
        if not 0 <= layer < self.values.shape[1]:
            raise MechsafetyError(f"layer {layer}: there are layers 0 to {self.values.shape[1] - 1}")
        return replace(self, layer=layer)

    @drawn
    def plot(self, layers: int | Sequence[int] | None = None, **_look: Unpack[Look]) -> go.Figure:
        """The projection along the tokens, one curve per layer, by default of the layer that is shown."""
        from mechsafety.plots.by_token import token_curves

        shown = [self.layer] if layers is None else [layers] if isinstance(layers, int) else list(layers)
        return token_curves(
            {f"layer {layer}": self.at(layer).values[:, layer].tolist() for layer in shown},
            tokens=self.tokens,
            positions=self.positions,
            title=f"{self.model}: projection on the direction, token by token",
        )

    def describe(self) -> str:
        n = sum(place >= 0 for place in self.positions)
        return (
            f"TokenProjections({len(self.tokens) - n} tokens of the prompt, {n} of the answer, "
            f"{self.values.shape[1]} layers; layer {self.layer} shown)"
        )

    def _repr_html_(self) -> str:
        values = self.values[:, self.layer]
        widest = max((abs(float(v)) for v in values if v == v), default=0.0) or 1.0
        shown = "".join(
            f'<span title="{place}: {float(value):.2f}" style="background:{_shade(float(value) / widest)};'
            f'{"border-left:2px solid #222;" if place == 0 else ""}">{_visible(token)}</span>'
            for token, place, value in zip(self.tokens, self.positions, values, strict=True)
        )
        scale = f"layer {self.layer}; red: up to {widest:.2f}, blue: down to {-widest:.2f}; bar: the answer begins"
        return f'<div style="font-family:monospace">{shown}</div><small>{scale}</small>'


def _shade(share: float) -> str:
    """Red for positive and blue for negative shares of the widest projection."""
    if share != share:
        return "none"
    return f"rgba({'178,24,43' if share > 0 else '33,102,172'},{0.75 * min(abs(share), 1):.2f})"


def _visible(token: str) -> str:
    return escape(token).replace("\n", "⏎<br>").replace(" ", "&nbsp;") or "∅"


def project_tokens(
    model: ModelLike,
    prompt: PromptsLike | Completion,
    direction: VectorLike | Directions,
    *,
    position: int = -1,
    layer: int | None = None,
    edit: EditLike | None = None,
) -> TokenProjections:
    """Projection of every token of a prompt, or of a prompt and its answer, on a direction, at every layer.

    ``direction`` is one direction (or vector [d_model]) for all layers, or directions, of which each layer takes its
    own of ``position``. ``layer`` is the one that is shown, by default the direction's own or the middle one. A
    completion is run as it was generated, under ``edit`` if one is given; then the projections are those behind it.

    Raises :class:`MechsafetyError` for a direction of another width, and a layer that does not exist.

    Arguments:
        prompt: A prompt, a text, a conversation, or a completion.

    Returns:
        The projections [token, layer].

    Example:
        >>> along = ms.project_tokens(model, answers[0], direction).to_frame()
        >>> along["part"].unique().tolist()
        ['prompt', 'answer']
        >>> sorted(along["layer"].unique()) == list(range(model.cfg.n_layers + 1))
        True
    """
    model = as_model(model)
    edit = None if edit is None else as_edit(edit, model)
    ids, n_prompt = _tokens_of(model, prompt if isinstance(prompt, Completion) else one_prompt(prompt))
    n_layers = model.cfg.n_layers + 1
    units = unit_by_layer(direction, n_layers, position)
    if tuple(units.shape) != (n_layers, model.cfg.d_model):
        raise MechsafetyError(
            f"directions of {units.shape[0]} layers and {units.shape[1]} dimensions do not fit a model of {n_layers} "
            f"layers (the last block's output among them) and {model.cfg.d_model} dimensions"
        )
    own = getattr(direction, "layer", None)
    tokenizer = own_tokenizer(model)
    found = TokenProjections(
        values=torch.einsum("tld,ld->tl", _stream_of(model, ids, n_prompt, edit).double(), units).float(),
        tokens=tuple(str(tokenizer.decode([one])) for one in ids),
        positions=tuple(range(-n_prompt, len(ids) - n_prompt)),
        layer=own if own is not None else n_layers // 2,
        model=model_name(model),
    )
    return found if layer is None else found.at(layer)


def _tokens_of(model: TransformerBridge, prompt: Any) -> tuple[list[int], int]:
    """The tokens of the prompt with those of its answer, and how many are the prompt's."""
    (ids,) = tokenize_prompts(model, [prompt.asked])
    answer = prompt.tokens if isinstance(prompt, Completion) else ()
    return [*ids, *answer], len(ids)


def _stream_of(
    model: TransformerBridge, ids: Sequence[int], n_prompt: int, edit: Edit | None
) -> Float[Tensor, "token layer d_model"]:
    seen: dict[int, Tensor] = {}

    def reader(layer: int) -> Callable[[Tensor], None]:
        return lambda x: seen.__setitem__(layer, x[0].float())

    hooks = [
        (name, reader(layer))
        for layer, name in enumerate(residual_hooks(model.cfg.n_layers, final_norm=False))
    ]
    batch = pad_left([ids], pad=pad_token(model)).to(device_of(model))
    on = edited(model, edit, prompt_length=n_prompt) if edit is not None else nullcontext()
    with on, observed(model, hooks, twin=None):
        forward(body_of(model), batch, logits=None)
    # On one device, and from there to the host at once.
    return torch.stack([seen[layer].to(seen[0].device) for layer in sorted(seen)], dim=1).cpu()
