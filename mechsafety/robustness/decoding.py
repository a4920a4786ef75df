"""Adversarial decoding: no system prompt, no chat template, several samples at temperature 1.

Huang et al., ICLR 2024, arXiv 2310.06987, as used by Wei et al., arXiv 2402.05162.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Judge
from mechsafety.edits.interventions import Edit
from mechsafety.generation.completions import DEFAULT_BATCH, Sampling, generate
from mechsafety.judges.outcomes import Keep, judgements
from mechsafety.models.chat import Rendering
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.robustness.attempts import Attempts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def decoding(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    *,
    k: int = 5,
    temperature: float = 1.0,
    max_new_tokens: int,
    seed: int,
    edit: Edit | None = None,
    rendering: Rendering = "text",
    judge: str | Judge = "rules",
    batch_size: int = DEFAULT_BATCH,
    keep: Keep | None = None,
) -> Attempts:
    """``k`` samples for each prompt, begun from its bare text, judged. All are drawn from ``seed``.

    Raises :class:`MechsafetyError` without prompts, for k below 1 and for a temperature that is not above 0.
    """
    if k < 1:
        raise MechsafetyError(f"k is {k} samples for each prompt; 1 at least")
    # The copies of one prompt are rows of their own, so that each draws for itself.
    copies = [replace(p, id=f"{p.id}#{i}") for p in prompts for i in range(k)]
    answers = generate(
        model,
        copies,
        edit=edit,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        sampling=Sampling(temperature=temperature),
        rendering=rendering,
        label="sampling",
    )
    judged = judgements(answers, judge=judge, keep=keep)
    return Attempts(judged=tuple(tuple(judged[i : i + k]) for i in range(0, len(judged), k)))
