"""Scores per (position, layer): how far a direction separates, removes and induces refusal.

One row a candidate. ``bypass`` is the mean refusal score of harmful prompts while the direction is
projected out everywhere; ``induce`` that of harmless prompts with the direction added at its own layer;
``kl`` the divergence that the projection causes on harmless prompts (Arditi et al. 2024, section 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.activations import residual_stream
from mechsafety.directions import Direction, Directions
from mechsafety.errors import MechsafetyError
from mechsafety.forward import all_last_logits
from mechsafety.hooking import plain_twin
from mechsafety.interventions import Ablate, Add, Edit, edited
from mechsafety.models import body_of, load_record
from mechsafety.progress import bar
from mechsafety.prompts import Prompt, PromptSet
from mechsafety.refusal_scores import RefusalTokens, derive_refusal_tokens, kl_divergence, refusal_scores
from mechsafety.selection import Selection, select
from mechsafety.tokens import tokenize_prompts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from transformer_lens.model_bridge import TransformerBridge

SCORE_COLUMNS = ("position", "layer", "norm", "stability", "split_half", "auroc", "bypass", "induce", "kl")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The table of scores, and what it was measured against.

    ``base_harmful`` and ``base_harmless`` are the unedited model's mean refusal scores.
    """

    table: pd.DataFrame
    directions: Directions
    refusal_tokens: RefusalTokens
    base_harmful: float
    base_harmless: float
    n_harmful: int
    n_harmless: int
    n_layers: int

    def select(self, *, rule: str = "auto") -> Selection:
        """The selected candidate and what every filter dropped; see :func:`selection.select`."""
        return select(self.table, n_layers=self.n_layers, rule=rule)

    def best(self, *, rule: str = "auto") -> Direction:
        """The selected direction."""
        chosen = self.select(rule=rule)
        return self.directions.at(layer=chosen.layer, position=chosen.position)

    @property
    def model_name(self) -> str:
        return self.directions.model

    @property
    def selected_layer(self) -> int | None:
        """The layer that the ``auto`` rule selects; None when it leaves none."""
        try:
            return self.select().layer
        except MechsafetyError:
            return None

    def plot(self) -> go.Figure:
        """Scores by layer, as a plotly figure."""
        from mechsafety import figures

        return figures.layer_sweep(self)

    def _repr_html_(self) -> str:
        return self.table.round(3).to_html(index=False, border=0)


def sweep(
    model: TransformerBridge,
    directions: Directions,
    prompts: PromptSet,
    *,
    refusal_tokens: RefusalTokens | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Sweep:
    """Score every direction on ``prompts`` (the validation split: harmful and harmless).

    Prompts that the unedited model treats against their label (harmful with score <= 0, harmless with
    score >= 0) are left out where at least 8 of a label remain, as in the source. Zero vectors score NaN.
    Raises :class:`MechsafetyError` when the directions were found on another model.
    """
    import pandas as pd

    _check_same_model(model, directions)
    if not len(prompts.harmful) or not len(prompts.harmless):
        raise MechsafetyError("a sweep needs harmful and harmless prompts")
    harmful, base_harmful = _first_pass(model, prompts.harmful, batch_size)
    harmless, base_harmless = _first_pass(model, prompts.harmless, batch_size)
    tokens = refusal_tokens or derive_refusal_tokens(
        base_harmful, base_harmless, decode=lambda i: str(model.tokenizer.decode([i]))
    )
    keep_a = _as_labelled(refusal_scores(base_harmful, tokens.ids) > 0)
    keep_b = _as_labelled(refusal_scores(base_harmless, tokens.ids) < 0)
    scored = _Scored(
        model=model,
        harmful=[harmful[i] for i in keep_a],
        harmless=[harmless[i] for i in keep_b],
        base_harmless=base_harmless[keep_b],
        tokens=tokens.ids,
        batch_size=batch_size,
    )
    cache = residual_stream(model, prompts, positions=directions.positions, batch_size=batch_size)
    chosen = tuple(range(directions.n_layers)) if layers is None else tuple(layers)
    rows = []
    with bar("layer sweep", total=len(chosen) * len(directions.positions), unit="candidate") as progress:
        for row, position in enumerate(directions.positions):
            for layer in chosen:
                auroc = separation(
                    cache.select("harmful")[:, row, layer],
                    cache.select("harmless")[:, row, layer],
                    directions.vectors[row, layer],
                )
                rows.append(
                    {
                        "position": position,
                        "layer": layer,
                        "norm": float(directions.vectors[row, layer].norm()),
                        "stability": float(directions.stability[row, layer]),
                        "split_half": float(directions.split_half[row, layer]),
                        "auroc": auroc,
                        **scored.candidate(directions, row=row, layer=layer),
                    }
                )
                progress.update(1)
    return Sweep(
        table=pd.DataFrame(rows, columns=list(SCORE_COLUMNS)),
        directions=directions,
        refusal_tokens=tokens,
        base_harmful=float(refusal_scores(base_harmful, tokens.ids)[keep_a].mean()),
        base_harmless=float(refusal_scores(base_harmless, tokens.ids)[keep_b].mean()),
        n_harmful=len(keep_a),
        n_harmless=len(keep_b),
        n_layers=model.cfg.n_layers,
    )


def separation(
    harmful: Float[Tensor, "a d_model"],
    harmless: Float[Tensor, "b d_model"],
    vector: Float[Tensor, " d_model"],
) -> float:
    """AUROC of the projection on ``vector``, harmful as the positive class; NaN for a zero vector."""
    from sklearn.metrics import roc_auc_score

    if not float(vector.norm()):
        return float("nan")
    scores = torch.cat([harmful, harmless]) @ vector
    truth = [1] * len(harmful) + [0] * len(harmless)
    return float(roc_auc_score(truth, scores.numpy()))


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """The validation prompts, ready to be scored under one candidate after the other."""

    model: TransformerBridge
    harmful: list[list[int]]
    harmless: list[list[int]]
    base_harmless: Float[Tensor, "row vocabulary"]
    tokens: tuple[int, ...]
    batch_size: int

    def candidate(self, directions: Directions, *, row: int, layer: int) -> dict[str, float]:
        vector = directions.vectors[row, layer]
        if not float(vector.norm()):
            return {"bypass": float("nan"), "induce": float("nan"), "kl": float("nan")}
        # One pass serves bypass and KL: both are the same projection.
        both = self._logits(self.harmful + self.harmless, Ablate(vector))
        n = len(self.harmful)
        induce = float("nan")
        if layer < self.model.cfg.n_layers:
            added = self._logits(self.harmless, Add(_steering(directions, row, layer), layer=layer))
            induce = float(refusal_scores(added, self.tokens).mean())
        return {
            "bypass": float(refusal_scores(both[:n], self.tokens).mean()),
            "induce": induce,
            "kl": float(kl_divergence(self.base_harmless, both[n:]).mean()),
        }

    def _logits(self, sequences: list[list[int]], edit: Edit) -> Float[Tensor, "row vocabulary"]:
        twin = plain_twin(self.model, edit.targets(self.model.cfg.n_layers))
        module = twin if twin is not None else body_of(self.model)
        with edited(self.model, edit, twin=twin):
            return all_last_logits(self.model, module, sequences, batch_size=self.batch_size)


def _steering(directions: Directions, row: int, layer: int) -> Tensor:
    """The vector ``induce`` adds: the mean difference itself, or a component as long as the class gap."""
    vector = directions.vectors[row, layer]
    return vector if directions.method == "mean_difference" else vector * directions.gaps[row, layer]


def _first_pass(
    model: TransformerBridge, prompts: Sequence[Prompt], batch_size: int
) -> tuple[list[list[int]], Float[Tensor, "row vocabulary"]]:
    sequences = tokenize_prompts(model, [p.text for p in prompts])
    module = plain_twin(model) or body_of(model)
    return sequences, all_last_logits(model, module, sequences, batch_size=batch_size)


def _as_labelled(agrees: Tensor, *, least: int = 8) -> list[int]:
    """Rows the model treats as their label says; every row where too few do."""
    kept = agrees.nonzero().flatten().tolist()
    return kept if len(kept) >= least else list(range(len(agrees)))


def _check_same_model(model: TransformerBridge, directions: Directions) -> None:
    record = load_record(model)
    if directions.vectors.shape[-1] != model.cfg.d_model or directions.n_layers != model.cfg.n_layers + 1:
        raise MechsafetyError(
            f"directions of shape {list(directions.vectors.shape)} do not fit a model of {model.cfg.n_layers} "
            f"layers and d_model {model.cfg.d_model}"
        )
    if record and directions.fingerprint and record.fingerprint != directions.fingerprint:
        raise MechsafetyError(
            f"these directions were found on {directions.model!r}, whose weights differ from {record.spec!r}'s"
        )
