"""The refusal subspace of each system of a ladder: which layer it is of, and how its directions do on their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechsafety.activations import ResidualCache, residual_stream
from mechsafety.anatomy.links import freeing_layer
from mechsafety.anatomy.readings import UNSAFE, outcome_rows
from mechsafety.directions import Directions, find_directions
from mechsafety.errors import MechsafetyError
from mechsafety.estimators import refusal_subspace
from mechsafety.judges.verdict import Judge
from mechsafety.ladder_tables import rank_table
from mechsafety.models import model_name
from mechsafety.prompts import PromptSet
from mechsafety.runs import Journal
from mechsafety.transfer import separating_layer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LEAST_REFUSED = 0.1
"""A system that refuses a smaller share of harmful prompts has too few refusals to choose a layer by."""
_LAYERS = 8
"""Layers that are tried, at most: each costs the answers to all chosen prompts."""


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """Orthonormal rows, the mean difference first; ``ranks`` tells how each separates held-out prompts alone.

    ``by_refusals`` says whether the layer was chosen by what its direction does to refusals, ``explanation`` how.
    """

    layer: int
    basis: Float[Tensor, "k d_model"]
    ranks: pd.DataFrame
    by_refusals: bool
    explanation: str


def find_subspace(
    model: TransformerBridge,
    fit: PromptSet,
    validation: PromptSet,
    *,
    choice: PromptSet,
    k: int,
    judge: Judge,
    max_new_tokens: int,
    seed: int,
    journal: Journal,
) -> Subspace:
    """The subspace of :func:`estimators.refusal_subspace` on ``fit``, at the last prompt token of one layer.

    The layer is the one whose mean difference, projected out everywhere, sets most of the harmful prompts ``choice``
    free (:func:`anatomy.links.freeing_layer`). A system that refuses fewer than :data:`LEAST_REFUSED` of them gets the
    layer whose direction separates ``validation`` best. At most 8 layers are tried, evenly spread.

    Raises :class:`MechsafetyError` for ``k`` above d_model, and where harmful and harmless prompts differ nowhere.
    """
    if k > model.cfg.d_model:
        raise MechsafetyError(
            f"{k} directions of {model_name(model)!r}, whose residual stream has {model.cfg.d_model} dimensions"
        )
    cache, held_out = residual_stream(model, fit), residual_stream(model, validation)
    found = find_directions(cache, method="mean_difference", seed=seed)
    layers = candidate_layers(found.n_layers)
    (row,) = outcome_rows(
        model, {UNSAFE: list(choice)}, judge=judge, max_new_tokens=max_new_tokens, seed=seed
    )
    refused = float(row["refused"])
    before = f"the system refuses {refused:.0%} of {len(choice)} harmful validation prompts"
    if by_refusals := refused >= LEAST_REFUSED:
        layer = freeing_layer(
            model,
            found,
            choice,
            judge=judge,
            max_new_tokens=max_new_tokens,
            seed=seed,
            layers=layers,
            journal=journal,
        )
        explanation = (
            f"Layer {layer}: of {len(layers)} layers tried, the one without whose direction most harmful validation "
            f"prompts are answered ({before})"
        )
    else:
        layer = _separating(found, held_out, layers)
        explanation = (
            f"Layer {layer}: the one whose direction separates held-out prompts best ({before}, too few to choose a "
            "layer by)"
        )
    basis = refusal_subspace(
        *(cache.select(label)[:, 0, layer] for label in ("harmful", "harmless")), k=k
    ).float()
    ranks = rank_table(
        (held_out.activations[:, 0, layer].float() @ basis.T).numpy(),
        [label == "harmful" for label in held_out.labels],
        system=model_name(model),
        layer=layer,
        seed=seed,
    )
    return Subspace(layer=layer, basis=basis, ranks=ranks, by_refusals=by_refusals, explanation=explanation)


def candidate_layers(n_layers: int) -> list[int]:
    """At most 8 of the residual stream's layers, evenly spread, the last one among them and the embedding not.

    At the last token of a chat template the embedding is the same for all prompts.
    """
    last = n_layers - 1
    number = min(_LAYERS, last)
    return [round(last * (i + 1) / number) for i in range(number)]


def _separating(found: Directions, held_out: ResidualCache, layers: Sequence[int]) -> int:
    harmful, harmless = (held_out.select(label)[:, 0] for label in ("harmful", "harmless"))
    layer = separating_layer(harmful, harmless, found.vectors[0], layers=layers)
    if layer is None:
        raise MechsafetyError(
            f"harmful and harmless prompts differ at no layer of {found.model!r}: there is no direction"
        )
    return layer
