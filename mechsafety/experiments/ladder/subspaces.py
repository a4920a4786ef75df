"""The refusal subspace of each system of a ladder: which layer it is of, and how its directions do on their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Unpack

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mechsafety.anatomy.links import layer_outcomes
from mechsafety.anatomy.readings import UNSAFE, outcome_rows
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import SELECTION_RULES, FitOn
from mechsafety.core.wording import percent
from mechsafety.directions.activations import ResidualCache, residual_stream
from mechsafety.directions.controls import ControlBasis, control_bases
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.directions.estimators import refusal_subspace
from mechsafety.edits.interventions import Ablate
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.ladder.tables import rank_table
from mechsafety.geometry.transfer import separating_layer
from mechsafety.judges.outcomes import Asking, KeepState
from mechsafety.models.loading import model_name
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.behaviour import treated_as_labelled
from mechsafety.sweeps.edit_costs import EditCosts
from mechsafety.sweeps.measures import refusal_measure
from mechsafety.sweeps.openings import own_refusals

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LEAST_REFUSED = 0.1
"""A system that refuses a smaller share of harmful prompts has too few refusals to choose a layer by."""
_LAYERS = 8
"""Layers that are tried, at most: each costs the answers to all chosen prompts."""
_KL_PROMPTS = 32
"""Harmless validation prompts on which the damage of each layer's direction is measured."""

FIT = 128
"""Prompts of each label that directions are found on, at most."""
_VALIDATION = 64
"""Prompts of each label that a layer is chosen on, at most."""
_CHOICE = 16
"""Harmful validation prompts that are answered to choose a layer, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """The prompts of a ladder: what directions, their layer, and its outcomes are found on."""

    fit: PromptSet
    validation: PromptSet
    choice: PromptSet
    """The harmful validation prompts that a layer is chosen by."""
    report: PromptSet

    @classmethod
    def of(cls, prompts: PromptSet, config: LadderConfig) -> Splits:
        seed, limit, report = config.seed, config.limit, prompts.to_judge
        validation = prompts.to_choose.sample(_VALIDATION, seed=seed)
        fewer = _CHOICE if limit is None else min(_CHOICE, limit)
        return cls(
            fit=prompts.to_estimate.sample(FIT, seed=seed),
            validation=validation,
            choice=validation.harmful.sample(fewer, seed=seed),
            report=report if limit is None else report.sample(limit, seed=seed),
        )


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One layer's direction projected out everywhere: harmful validation prompts complied with and refused, and KL.

    ``kl`` is that of the next token after harmless validation prompts, in nats.
    """

    layer: int
    complied: float
    refused: float
    kl: float


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """Orthonormal rows, the mean difference first; ``ranks``: how each alone separates the report prompts.

    ``fit`` are the prompts that they are found on, ``controls`` random bases of as many rows (:func:`control_bases`).
    ``by_refusals`` records whether the layer was
    chosen by what its direction does to refusals, ``explanation`` how, and ``tried`` what was tried for it.
    """

    layer: int
    fit: PromptSet
    basis: Float[Tensor, "k d_model"]
    controls: tuple[ControlBasis, ...]
    ranks: pd.DataFrame
    by_refusals: bool
    explanation: str
    tried: tuple[Tried, ...]


def find_subspace(
    model: TransformerBridge,
    prompts: Splits,
    *,
    k: int,
    fit_on: FitOn,
    controls: int,
    system: str,
    journal: Journal,
    keep_state: KeepState = lambda *_: None,
    **asking: Unpack[Asking],
) -> Subspace:
    """The subspace of :func:`refusal_subspace` on the fit prompts, at the last prompt token of one layer.

    Under ``fit_on`` behaviour these are the fit prompts that the model treats as their label says
    (:func:`treated_as_labelled`), or all of them where ``k`` directions need more.

    The layer is chosen by what its mean difference, projected out everywhere, does to the answers to the harmful
    prompts ``choice`` (:func:`choose_layer`); at most 8 layers are tried, evenly spread. A system that refuses fewer
    than :data:`LEAST_REFUSED` of them gets the layer whose direction separates the validation prompts best. On the
    report prompts, by which nothing is chosen, ``ranks`` are read. ``keep_state`` receives the answers of the model
    ``unedited`` and without the direction of each ``layer N``. ``controls`` random bases are drawn at the same place,
    by the name of the ``system``.

    Raises :class:`MechsafetyError` for ``k`` above d_model, where harmful and harmless prompts differ nowhere, and for
    fewer fit prompts than random bases can be drawn from.
    """
    if k > model.cfg.d_model:
        raise MechsafetyError(
            f"{k} directions of {model_name(model)!r}, whose residual stream has {model.cfg.d_model} dimensions"
        )
    seed, choice = asking["seed"], prompts.choice
    fit = _as_labelled(model, prompts, least=k, seed=seed) if fit_on == "behaviour" else prompts.fit
    cache, held_out = residual_stream(model, fit), residual_stream(model, prompts.validation)
    found = find_directions(cache, method="mean_difference", seed=seed)
    layers = candidate_layers(found.n_layers)
    asking["keep"] = partial(keep_state, "unedited")
    (row,) = outcome_rows(model, {UNSAFE: list(choice)}, **asking)
    refused = float(row["refused"])
    before = f"the system refuses {percent(refused)} of {len(choice)} harmful validation prompts"
    tried: tuple[Tried, ...] = ()
    if by_refusals := refused >= LEAST_REFUSED:
        shares = layer_outcomes(
            model, found, choice, layers=layers, journal=journal, keep_state=keep_state, **asking
        )
        costs = EditCosts(model=model, prompts=prompts.validation.harmless[:_KL_PROMPTS])
        tried = tuple(
            Tried(layer=at, complied=c, refused=r, kl=costs.kl(Ablate(found.at(layer=at))))
            for at, (c, r) in shares.items()
        )
        chosen, why = choose_layer(tried, refused=refused)
        layer, explanation = chosen.layer, f"Layer {chosen.layer} of {len(tried)} tried: {why} ({before})"
    else:
        layer = _separating(found, held_out, layers)
        explanation = (
            f"Layer {layer}: the one whose direction separates held-out prompts best ({before}, too few to choose a "
            "layer by)"
        )
    explanation += f"; found on {len(fit.harmful)} harmful and {len(fit.harmless)} harmless fit prompts"
    harmful, harmless = (cache.select(label)[:, 0, layer] for label in ("harmful", "harmless"))
    basis = refusal_subspace(harmful, harmless, k=k).float()
    random = control_bases(harmful, harmless, basis, n=controls, seed=seed, system=system)
    judged = residual_stream(model, prompts.report)
    ranks = rank_table(
        (judged.activations[:, 0, layer].float() @ basis.T).numpy(),
        [label == "harmful" for label in judged.labels],
        system=model_name(model),
        layer=layer,
        seed=seed,
    )
    return Subspace(
        **{"layer": layer, "fit": fit, "basis": basis, "controls": tuple(random), "ranks": ranks},
        **{"by_refusals": by_refusals, "explanation": explanation, "tried": tried},
    )


def _as_labelled(model: TransformerBridge, prompts: Splits, *, least: int, seed: int) -> PromptSet:
    """The fit prompts that the model treats as labelled; all where fewer than ``least`` of them are harmful."""
    asked = (*prompts.choice, *prompts.validation.harmless[: len(prompts.choice)])
    measured = replace(prompts.validation, prompts=asked)
    measure = refusal_measure(model, measured, refusals=own_refusals(model, measured, seed=seed))
    kept = treated_as_labelled(model, prompts.fit, measure=measure.taken)
    return kept if len(kept.harmful) >= least else prompts.fit


def choose_layer(tried: Sequence[Tried], *, refused: float) -> tuple[Tried, str]:
    """The layer to go on with, and why; ``refused`` is the unedited system's share.

    Of the layers without whose direction refusals fall to half or less, those at or below the smallest KL bound that
    any of them meets (:data:`SELECTION_RULES`, ``auto``): a model that is damaged enough refuses nothing. Of these the
    one with most compliance, then with the lowest KL; where none meets a bound, the one with the lowest KL. Where no
    layer halves refusals, the one with most compliance, then the lowest KL.
    """
    halving = [one for one in tried if one.refused <= refused / 2]
    for bound in SELECTION_RULES["auto"]:
        if within := [one for one in halving if one.kl <= bound]:
            best = max(within, key=lambda one: (one.complied, -one.kl, -one.layer))
            return best, f"{_without(best)}, bound {bound:g}"
    if halving:
        best = min(halving, key=lambda one: (one.kl if one.kl == one.kl else math.inf, one.layer))
        return best, f"{_without(best)} on harmless prompts, the lowest of the layers that halve refusals"
    best = max(
        tried, key=lambda one: (one.complied if one.complied == one.complied else -1.0, -one.kl, -one.layer)
    )
    return best, f"no layer halves refusals; {_without(best)}"


def _without(one: Tried) -> str:
    """What was measured there; whether that is a fall, its answers decide and not this."""
    return f"{percent(one.refused)} are refused without its direction, at a KL of {one.kl:.2g}"


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
