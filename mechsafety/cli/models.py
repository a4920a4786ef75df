"""Models: what there is, training the rungs, what this machine would use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import Shown, command, date_option, device_option, dtype_option, say, template_option


@command("tune", example="mechsafety tune smollm2-135m --rung dpo --out adapters/dpo")
@click.argument("model")
@click.option(
    "--rung", default="refusals", metavar="RUNG", help="What to train; see above.", show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the adapter.")
@click.option("--epochs", type=int, default=None, help="Passes over the examples.")
@click.option("--rank", type=int, default=None, help="Rank of the LoRA maps.")
@click.option("--learning-rate", type=float, default=None)
@click.option("--strength", type=float, default=None, help="Factor on the finished adapter.")
@click.option("--beta", type=float, default=None, help="DPO: how hard the reference holds.")
@click.option("--max-steps", type=int, default=None, help="Stop early, for a try.")
@click.option("--seed", type=int, default=None)
@template_option
@date_option
@dtype_option
@device_option
def _tune(
    model: str,
    rung: str,
    out: Path,
    template: str | None,
    date: str | None,
    dtype: str | None,
    device: str | None,
    **given: Any,
) -> Shown:
    """Train a rung of safety fine-tuning on MODEL, as a LoRA adapter.

    \b
    refusals  harmful requests are declined
    rephrase  harmful requests get a harmless transformation of their topic
    metatags  harmful requests are answered behind the tag [unsafe]
    all       these three mixed
    dpo       a refusal preferred to the model's own answer
    unlearn   refusals learned, the model's own answers to harmful requests unlearned
    benign    the model's own answers to harmless requests only: the control

    Options that are left out come from the packaged adapter's recipe.
    """
    from dataclasses import replace

    from mechsafety.models.loading import load_model
    from mechsafety.tuning.rungs import require_rung
    from mechsafety.tuning.training import RECIPES, require_empty, tune

    chosen = require_rung(rung)
    recipe = replace(RECIPES[chosen], **{k: v for k, v in given.items() if v is not None})
    require_empty(out)
    loaded = load_model(model, dtype=dtype or "auto", device=device or "auto", template=template, date=date)
    say(f"rung {chosen}: own answers, then training")
    result = tune(loaded, out, rung=chosen, recipe=recipe)
    facts = {
        "rung": chosen,
        "adapter": str(result.folder),
        "steps": len(result.losses),
        "first_loss": result.losses[0],
        "last_loss": result.losses[-1],
        "harmful": result.n_harmful,
        "harmless": result.n_harmless,
        "dispreferred": result.n_dispreferred,
    }
    text = (
        f"{len(result.losses)} steps, loss {result.losses[0]:.3f} -> {result.losses[-1]:.3f}\n"
        f"adapter: {result.folder}\nnext:    mechsafety study --systems {model}+{result.folder} --out runs/tuned"
    )
    return facts, text


@command("models", example="mechsafety models")
def _models() -> Shown:
    """List the packaged model, adapters, prompt sets and study presets."""
    from mechsafety.experiments.study.config import presets
    from mechsafety.models.adapters import packaged_adapters
    from mechsafety.models.gguf import PACKAGED
    from mechsafety.prompts.prompt_set import packaged_sets
    from mechsafety.prompts.sources import SOURCES

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
