"""A run's manifest entry for each model that read its prompts, the same for every experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mechsafety.generation.completions import overridden_defaults
from mechsafety.models.chat_settings import ChatSettings
from mechsafety.models.prefixes import prefix_note
from mechsafety.models.templates import OWN
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


def template_lines(manifest: Mapping[str, Any]) -> list[str]:
    """Of a run's manifest, in sentences: which chat template each model was given, and the chat settings of all.

    Nothing of models that have their own templates and the default settings.
    """
    studied = {spec: one for spec, one in manifest.get("models", {}).items() if not one.get("judges")}
    given = {spec: one["template"] for spec, one in studied.items() if "template" in one}
    lines = []
    if set(given.values()) - {OWN}:
        lines.append(f"Chat templates: {'; '.join(f'{spec}: {name}' for spec, name in given.items())}.")
    asked = manifest.get("config", {}).get("chat") or {}
    if text := ChatSettings(**asked).as_text():
        lines.append(f"Chat settings: {text}.")
    return lines


def mixed_templates(manifest: Mapping[str, Any]) -> list[str]:
    """The same as a finding, where models that are compared were not given templates alike."""
    models = manifest.get("models", {}).values()
    kinds = {one["template"] for one in models if "template" in one and not one.get("judges")}
    if len(kinds) < 2:
        return []
    return [f"{template_lines(manifest)[0]} What differs between them may be the template's."]


def _recorded(run: RunFolder, spec: str) -> dict[str, Any]:
    return run.manifest.get(_SECTION, {}).get(spec, {})
