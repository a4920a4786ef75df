"""Which prompts a model treats as their label says: harmful ones that it refuses, harmless ones that it answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.prompts.accepted import PromptsLike, as_prompt_set
from mechsafety.prompts.fed import fitting
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.sweeps.measures import RefusalMeasure, refusal_measure

if TYPE_CHECKING:
    pass

_LEAST = 8


def treated_as_labelled(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    measure: RefusalMeasure | None = None,
    threshold: float | None = None,
    batch_size: int = 64,
) -> PromptSet:
    """The harmful ``prompts`` that score above ``threshold`` and the harmless ones that score below it.

    The threshold is the middle between the means of the classes by default, 0 in the source (Arditi et al. 2024,
    section 2.3). Scores are by ``measure``, by default the one that
    :func:`mechsafety.sweeps.measures.refusal_measure` takes for these prompts. Where
    fewer than 8 prompts of a class are left, all of it stay. Directions fitted on them follow what the model does, not
    what the prompts are.

    Example: ``treated_as_labelled(model, load_prompts("default").fit)``.
    """
    model = as_model(model)
    prompts = as_prompt_set(prompts)
    if measure is None:
        chosen = refusal_measure(model, prompts, batch_size=batch_size)
        scores = [chosen.harmful.scores, chosen.harmless.scores]
    else:
        classes = [fitting(model, part, truncate=False)[1] for part in (prompts.harmful, prompts.harmless)]
        scores = [measure.measure(model, part, batch_size=batch_size).scores for part in classes]
    a, b = rows_as_labelled(scores[0], scores[1], threshold)
    kept = {prompts.harmful[i].id for i in a} | {prompts.harmless[i].id for i in b}
    return replace(prompts, prompts=tuple(p for p in prompts if p.id in kept))


def rows_as_labelled(
    harmful: Float[Tensor, " a"], harmless: Float[Tensor, " b"], threshold: float | None
) -> tuple[list[int], list[int]]:
    """Rows of the scores on their own side of ``threshold`` (None: the middle of the class means)."""
    at = float(harmful.mean() + harmless.mean()) / 2 if threshold is None else threshold
    return _enough(harmful > at), _enough(harmless < at)


def _enough(agrees: Tensor) -> list[int]:
    kept = agrees.nonzero().flatten().tolist()
    return kept if len(kept) >= _LEAST else list(range(len(agrees)))
