"""Transfer of refusal directions: one checkpoint's direction ablated in another, against random ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.progress import bar
from mechsafety.edits.interventions import Ablate, Edit
from mechsafety.generation.bodies import body_under
from mechsafety.models.prefixes import all_last_logits
from mechsafety.prompts.fed import fitting
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.runs.journal import Journal
from mechsafety.statistics.controls import largest_p
from mechsafety.statistics.paired import sign_flip_p
from mechsafety.sweeps.refusal_scores import derive_refusal_tokens, kl_divergence, refusal_scores
from mechsafety.sweeps.sweep import projection_auroc

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_TOKEN_PROMPTS = 64  # of each label, of the fit split: report prompts are scored, not learned from
_KL_PROMPTS = 32


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Refusal scores of the harmful prompts under one ablation (or none), and its KL on at most 32 harmless prompts."""

    scores: Float[Tensor, " prompt"]
    kl: float


def transfer_layer(
    harmful: Float[Tensor, "a layer d_model"],
    harmless: Float[Tensor, "b layer d_model"],
    vectors: Float[Tensor, "layer d_model"],
) -> int | None:
    """The layer whose direction best separates held-out prompts, among layers below 0.8 n_layers."""
    n_layers = vectors.shape[0] - 1
    return separating_layer(harmful, harmless, vectors, layers=range(max(1, int(0.8 * n_layers))))


def separating_layer(
    harmful: Float[Tensor, "a layer d_model"],
    harmless: Float[Tensor, "b layer d_model"],
    vectors: Float[Tensor, "layer d_model"],
    *,
    layers: Sequence[int],
) -> int | None:
    """The layer, of ``layers``, whose direction best separates held-out prompts.

    Highest AUROC; of equals, the widest gap of the class means in standard deviations within class. None
    where no direction is there.
    """
    best: tuple[float, float] = (-math.inf, -math.inf)
    chosen: int | None = None
    for layer in layers:
        auroc = projection_auroc(harmful[:, layer], harmless[:, layer], vectors[layer])
        if math.isnan(auroc):
            continue
        a, b = harmful[:, layer] @ vectors[layer], harmless[:, layer] @ vectors[layer]
        spread = float(((a.var() + b.var()) / 2).sqrt())
        rank = (round(auroc, 6), float(a.mean() - b.mean()) / spread if spread > 0 else 0.0)
        if rank > best:
            best, chosen = rank, layer
    return chosen


def ablations(
    load: Callable[[], TransformerBridge],
    fit: PromptSet,
    report: PromptSet,
    directions: Mapping[str, Float[Tensor, " d_model"]],
    *,
    journal: Journal,
    key: str,
    seed: int,
    batch_size: int = 64,
) -> tuple[Ablation, dict[str, Ablation], tuple[str, ...]]:
    """Score the harmful report prompts unedited, then with each direction projected out everywhere.

    Refusal tokens come from the model's own logits on fit prompts. ``journal`` keeps every finished ablation
    under ``key`` and the direction's name; ``load`` is called when one is missing. Returns the unedited scores,
    the edited ones by name, and the refusal tokens' texts.
    """
    names = ["", *directions]
    stored = {name: journal.get(_key(key, name)) for name in names}
    if all(value is not None for value in stored.values()):
        done = {name: _read(value) for name, value in stored.items()}
        return done.pop(""), done, tuple(stored[""]["tokens"])
    model = load()
    scored = [*report.harmful, *report.sample(_KL_PROMPTS, seed=seed).harmless]
    n = len(report.harmful)
    shown = fit.sample(_TOKEN_PROMPTS, seed=seed)
    base = _logits(model, None, scored, batch_size)
    learned = _logits(model, None, [*shown.harmful, *shown.harmless], batch_size)
    tokens = derive_refusal_tokens(
        learned[: len(shown.harmful)],
        learned[len(shown.harmful) :],
        decode=lambda i: str(model.tokenizer.decode([i])),
    )
    found: dict[str, Ablation] = {}
    with bar("transfer", total=len(names), unit="direction") as progress:
        for name in names:
            value = stored[name]
            if value is None:
                logits = _logits(model, Ablate(directions[name]), scored, batch_size) if name else base
                scores = refusal_scores(logits[:n], tokens.ids)
                value = {
                    "scores": [None if math.isnan(s) else s for s in scores.tolist()],
                    "kl": _finite(float(kl_divergence(base[n:], logits[n:]).mean())),
                    "tokens": list(tokens.texts),
                }
                journal.put(_key(key, name), value)
            found[name] = _read(value)
            progress.update(1)
    return found.pop(""), found, tokens.texts


def drop(base: Ablation, after: Ablation, *, resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean fall of the refusal score with its 95 % percentile interval, prompts resampled in pairs."""
    fall = base.scores - after.scores
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(fall), (max(resamples, 1), len(fall)), generator=generator)
    if resamples < 2:
        return float(fall.mean()), math.nan, math.nan
    low, high = torch.quantile(fall[rows].mean(-1), torch.tensor([0.025, 0.975], dtype=fall.dtype)).tolist()
    return float(fall.mean()), low, high


def tests_of(
    base: Ablation, after: Ablation | None, beside: Sequence[Ablation], *, seed: int
) -> dict[str, float]:
    """Tests on the same prompts of a direction's ablation: against the unedited model, and against its controls.

    ``p`` is of the mean change of the score (:func:`sign_flip_p`), ``control_p`` the largest of the difference from
    each control (1 where they do not lie to one side, NaN where there is none), and ``control_side`` -1 where the
    score is lower than under each, 1 where it is higher, and 0 otherwise.
    """
    if after is None:
        return {"p": math.nan, "control_p": math.nan, "control_side": 0}
    apart = [(after.scores - other.scores).numpy() for other in beside]
    means = [float(np.nanmean(x)) for x in apart]
    sides = {int(np.sign(mean)) for mean in means}
    found = [sign_flip_p(x, seed=seed) for x in apart]
    return {
        "p": sign_flip_p((after.scores - base.scores).numpy(), seed=seed),
        "control_p": largest_p([(max(-m, 0), max(m, 0), p) for m, p in zip(means, found, strict=True)]),
        "control_side": sides.pop() if len(sides) == 1 else 0,
    }


def controls(
    harmless: Float[Tensor, "prompt d_model"], *, number: int, norm: float, seed: int
) -> dict[str, Float[Tensor, " d_model"]]:
    """Directions that are not about refusal, of the given norm: isotropic ones, and halves of the harmless."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for i in range(number):
        made[f"random {i + 1}"] = torch.randn(harmless.shape[1], generator=generator, dtype=torch.float32)
    for i in range(number):
        order = torch.randperm(len(harmless), generator=generator)
        half = len(harmless) // 2
        made[f"harmless halves {i + 1}"] = harmless[order[:half]].mean(0) - harmless[order[half:]].mean(0)
    return {name: v * (norm / v.norm()) for name, v in made.items() if float(v.norm()) > 0}


def _logits(
    model: TransformerBridge, edit: Edit | None, prompts: Sequence[Prompt], batch_size: int
) -> Float[Tensor, "prompt vocabulary"]:
    _, sequences = fitting(model, prompts)
    with body_under(model, edit) as body:
        return all_last_logits(model, body, sequences, batch_size=batch_size)


def _key(*parts: str) -> str:
    return json.dumps(parts)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _read(value: Any) -> Ablation:
    scores = [math.nan if s is None else s for s in value["scores"]]
    return Ablation(
        scores=torch.tensor(scores, dtype=torch.float64), kl=math.nan if value["kl"] is None else value["kl"]
    )
