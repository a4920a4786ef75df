"""How a model's own refusals begin: the refusal tokens of a sweep, from answers that a judge has read."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from mechsafety.core.verdict import Response
from mechsafety.generation.completions import generate
from mechsafety.judges.registry import judge_responses
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import RunFolder
from mechsafety.sweeps.refusal_scores import RefusalTokens, openings_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ANSWER_TOKENS = 24
"""Enough for the judge to see a refusal."""


def own_refusal_tokens(model: TransformerBridge, prompts: PromptSet, *, seed: int) -> RefusalTokens | None:
    """First tokens of what the judge ``rules`` calls a refusal among the model's answers to harmful prompts.

    None when the model hardly refuses; :func:`mechsafety.sweeps.sweep.sweep` then goes by its logits.
    """
    done = generate(model, prompts.harmful, max_new_tokens=ANSWER_TOKENS, seed=seed, label="openings")
    responses = [Response(id=c.id, prompt=c.prompt, text=c.text) for c in done]
    refused = {v.id for v in judge_responses(responses, ["rules"]) if v.label == "refusal"}
    return openings_of(
        [c.tokens for c in done if c.id in refused], decode=lambda token: str(model.tokenizer.decode([token]))
    )


def kept_refusal_tokens(
    run: RunFolder, *key: str, model: TransformerBridge, prompts: PromptSet, seed: int
) -> RefusalTokens | None:
    """:func:`own_refusal_tokens`, found once and kept in the part ``tokens`` of ``run``."""
    if not run.has_part("tokens", *key, suffix="json"):
        tokens = own_refusal_tokens(model, prompts, seed=seed)
        run.write_json_part(asdict(tokens) if tokens is not None else None, "tokens", *key)
    stored = run.read_json_part("tokens", *key)
    if stored is None:
        return None
    lists = {name: tuple(stored[name]) for name in ("ids", "texts", "weight")}
    return RefusalTokens(**lists, source=stored["source"])
