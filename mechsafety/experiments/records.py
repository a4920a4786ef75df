"""A run's manifest entry for each model that read its prompts, the same for every experiment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mechsafety.generation.completions import overridden_defaults
from mechsafety.models.prefixes import prefix_note
from mechsafety.prompts.fed import fed, fed_record
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_SECTION = "fed"
_SHARED = "shared_tokens"


def record_fed(run: RunFolder, spec: str, model: TransformerBridge, prompts: Iterable[Prompt]) -> None:
    """Before the work, under the model's name: the first prompt of each label as it is read, how many prompts hold
    control tokens, and the checkpoint's generation defaults that no answer follows."""
    entered = fed(model, PromptSet(tuple(prompts)), new_tokens=0)
    facts = fed_record(model, [entered], escaped=False)
    facts["overridden_generation_defaults"] = overridden_defaults(model)
    run.record_item(_SECTION, spec, _recorded(run, spec) | facts)


def record_shared_tokens(run: RunFolder, spec: str, model: TransformerBridge) -> None:
    """After the work: how tokens that prompts begin with were run.

    A session that ran nothing leaves what an earlier one recorded.
    """
    known = _recorded(run, spec)
    if _SHARED not in known or prefix_note(model) != "none were shared":
        run.record_item(_SECTION, spec, known | {_SHARED: prefix_note(model)})


def _recorded(run: RunFolder, spec: str) -> dict[str, Any]:
    return run.manifest.get(_SECTION, {}).get(spec, {})
