"""How a model's own refusals begin, from answers that a judge has read."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from mechsafety.core.verdict import Response
from mechsafety.generation.completions import generate
from mechsafety.judges.registry import judge_responses
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.prompts.accepted import PromptsLike, as_prompt_set
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import RunFolder
from mechsafety.sweeps.refusal_scores import OwnRefusals

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ANSWER_TOKENS = 24
"""Enough for the judge to see a refusal."""
_OPENING_TOKENS = 6


def own_refusals(model: ModelLike, prompts: PromptsLike, *, seed: int = 0) -> OwnRefusals:
    """What the judge ``rules`` calls a refusal among the model's answers to the harmful ones of ``prompts``."""
    model = as_model(model)
    prompts = as_prompt_set(prompts)
    done = generate(model, prompts.harmful, max_new_tokens=ANSWER_TOKENS, seed=seed, label="openings")
    responses = [Response(id=c.id, prompt=c.prompt, text=c.text) for c in done]
    refused = {v.id for v in judge_responses(responses, ["rules"]) if v.label == "refusal"}
    return OwnRefusals(
        asked=tuple(c.id for c in done),
        refused=tuple(c.id for c in done if c.id in refused),
        openings=tuple(tuple(c.answer_tokens[:_OPENING_TOKENS]) for c in done if c.id in refused),
    )


def kept_own_refusals(
    run: RunFolder, *key: str, model: TransformerBridge, prompts: PromptSet, seed: int
) -> OwnRefusals:
    """:func:`own_refusals`, found once and kept in the part ``refusals`` of ``run``."""
    if not run.has_part("refusals", *key, suffix="json"):
        run.write_json_part(asdict(own_refusals(model, prompts, seed=seed)), "refusals", *key)
    stored = run.read_json_part("refusals", *key)
    return OwnRefusals(
        asked=tuple(stored["asked"]),
        refused=tuple(stored["refused"]),
        openings=tuple(map(tuple, stored["openings"])),
    )
