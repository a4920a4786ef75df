"""Which prompts a model treats as their label says: harmful ones that it refuses, harmless ones that it answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from mechsafety.generation.bodies import body_under
from mechsafety.models.prefixes import all_last_logits
from mechsafety.prompts.fed import fitting
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.sweeps.refusal_scores import RefusalTokens, derive_refusal_tokens, refusal_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformer_lens.model_bridge import TransformerBridge

_LEAST = 8


def treated_as_labelled(
    model: TransformerBridge,
    prompts: PromptSet,
    *,
    refusal_tokens: RefusalTokens | None = None,
    threshold: float | None = None,
    batch_size: int = 64,
) -> PromptSet:
    """The harmful ``prompts`` that score above ``threshold`` and the harmless ones that score below it.

    The threshold is the middle between the means of the classes by default, 0 in the source (Arditi et al. 2024,
    section 2.3); the refusal tokens, where none are given, those of the model's logits. Where fewer than 8 prompts of a
    class are left, all of it stay. Directions fitted on them follow what the model does, not what the prompts are.

    Example: ``treated_as_labelled(model, load_prompts("default").fit)``.
    """
    _, harmful = last_logits(model, prompts.harmful, batch_size)
    _, harmless = last_logits(model, prompts.harmless, batch_size)
    tokens = refusal_tokens or derive_refusal_tokens(
        harmful, harmless, decode=lambda i: str(model.tokenizer.decode([i]))
    )
    scores = [refusal_scores(logits, tokens.ids) for logits in (harmful, harmless)]
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


def last_logits(
    model: TransformerBridge, prompts: Sequence[Prompt], batch_size: int
) -> tuple[list[list[int]], Float[Tensor, "row vocabulary"]]:
    """The prompts as tokens, and the unedited model's logits behind each."""
    _, sequences = fitting(model, prompts, truncate=False)
    with body_under(model, None) as body:
        return sequences, all_last_logits(model, body, sequences, batch_size=batch_size)
