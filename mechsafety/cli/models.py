"""Models: what there is, training the refusing rung, what this machine would use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import Shown, command, device_option, dtype_option, say, template_option


@command("tune", example="mechsafety tune smollm2-135m --out adapters/refusals")
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the adapter.")
@click.option("--epochs", type=int, default=None, help="Passes over the examples.")
@click.option("--rank", type=int, default=None, help="Rank of the LoRA maps.")
@click.option("--learning-rate", type=float, default=None)
@click.option("--max-steps", type=int, default=None, help="Stop early, for a try.")
@click.option("--seed", type=int, default=None)
@template_option
@dtype_option
@device_option
def _tune(
    model: str, out: Path, template: str | None, dtype: str | None, device: str | None, **given: Any
) -> Shown:
    """Train the rung `refusals`: a LoRA adapter that makes MODEL decline harmful requests."""
    from mechsafety.models import load_model
    from mechsafety.tuning import TuningRecipe, require_empty, tune_refusals

    recipe = TuningRecipe(**{k: v for k, v in given.items() if v is not None})
    require_empty(out)
    loaded = load_model(model, dtype=dtype or "auto", device=device or "auto", template=template)
    say("own answers, then training")
    result = tune_refusals(loaded, out, recipe=recipe)
    facts = {
        "adapter": str(result.folder),
        "steps": len(result.losses),
        "first_loss": result.losses[0],
        "last_loss": result.losses[-1],
        "refusals": result.n_refusals,
        "answers": result.n_answers,
    }
    text = (
        f"{len(result.losses)} steps, loss {result.losses[0]:.3f} -> {result.losses[-1]:.3f}\n"
        f"adapter: {result.folder}\nnext:    mechsafety study --systems {model}+{result.folder} --out runs/tuned"
    )
    return facts, text


@command("models", example="mechsafety models")
def _models() -> Shown:
    """List the packaged model, adapters, prompt sets and study presets."""
    from mechsafety.adapters import packaged_adapters
    from mechsafety.gguf_models import PACKAGED
    from mechsafety.prompts import packaged_sets
    from mechsafety.sources import SOURCES
    from mechsafety.study_config import presets

    adapters = [f"{PACKAGED}+{name}" for name in packaged_adapters()]
    facts = {
        "models": [PACKAGED, *adapters],
        "prompts": packaged_sets(),
        "hub_prompts": list(SOURCES),
        "presets": presets(),
    }
    text = "\n".join(f"{key.replace('_', ' '):12} {', '.join(values)}" for key, values in facts.items())
    return facts, text + "\nand any hub id, folder or .gguf file, with +ADAPTER after it"


@command("doctor", example="mechsafety doctor")
def _doctor() -> Shown:
    """Say what would be used here, and how to mend what is missing."""
    from mechsafety.doctor import as_json, examine

    checks = examine()
    lines = []
    for check in checks:
        lines.append(f"{'ok ' if check.ok else '!! '} {check.name:28} {check.value}")
        if not check.ok:
            lines.append(f"    fix: {check.fix}")
    return as_json(checks), "\n".join(lines)
