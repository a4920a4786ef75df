"""A model's own thoughts in a run: made once, kept there, and read behind its prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mechsafety.experiments.session import Session
from mechsafety.generation.thought_ends import own_thoughts
from mechsafety.models.chat import tokenize_prompts
from mechsafety.prompts.prompt_set import Prompt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def kept_thoughts(
    session: Session, model: TransformerBridge, prompts: Iterable[Prompt], *key: str
) -> dict[tuple[int, ...], Sequence[int]]:
    """:func:`own_thoughts` about ``prompts``, kept in the run's part ``thoughts`` under ``key``."""
    asked = list(prompts)
    tokens = list(map(tuple, tokenize_prompts(model, [p.asked for p in asked])))

    def made() -> dict[str, Sequence[int]]:
        session.say(f"the model's thoughts about {len(asked)} prompts")
        thoughts = own_thoughts(model, asked)
        return {p.id: thoughts[ids] for p, ids in zip(asked, tokens, strict=True)}

    stored = session.json_part("thoughts", *key, make=made)
    return {ids: stored[p.id] for p, ids in zip(asked, tokens, strict=True)}
