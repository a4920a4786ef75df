"""Models: what there is, training the rungs, what this machine would use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
from pydantic import Field

from mechsafety.cli.base import Shown, command, say
from mechsafety.cli.options import config_options
from mechsafety.experiments.config import LoadingConfig, Option


class TuneConfig(LoadingConfig):
    """What ``mechsafety tune`` trains; what is None comes from the packaged adapter's recipe."""

    model: Annotated[str, Option(argument=True)]
    rung: Annotated[str, Option(metavar="RUNG")] = Field(
        default="refusals", description="what to train; see above"
    )
    epochs: int | None = Field(default=None, description="passes over the examples")
    rank: int | None = Field(default=None, description="rank of the LoRA maps")
    learning_rate: float | None = Field(default=None, description="step size of the training")
    strength: float | None = Field(default=None, description="factor on the finished adapter")
    beta: float | None = Field(default=None, description="DPO: how hard the reference holds")
    max_steps: int | None = Field(default=None, description="stop early, for a try")
    seed: int | None = Field(default=None, description="every random draw depends on it")  # type: ignore[assignment]

    def recipe(self) -> dict[str, int | float]:
        """The parts of the recipe that are given."""
        names = ("epochs", "rank", "learning_rate", "strength", "beta", "max_steps", "seed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@command("tune", example="mechsafety tune smollm2-135m --rung dpo --out adapters/dpo")
@config_options(TuneConfig)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the adapter.")
def _tune(config: TuneConfig, out: Path) -> Shown:
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

    chosen = require_rung(config.rung)
    recipe = replace(RECIPES[chosen], **config.recipe())
    require_empty(out)
    loaded = load_model(config.model, **config.loading, date=config.date)
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
        f"adapter: {result.folder}\nnext:    mechsafety study --systems {config.model}+{result.folder} --out runs/tuned"
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


class DoctorConfig(LoadingConfig):
    """What ``mechsafety doctor`` looks at: the machine, and models as the options would have them."""

    models: Annotated[tuple[str, ...], Option(argument=True, metavar="[MODEL]...")] = ()


@command("doctor", example="mechsafety doctor smollm2-135m --thinking model")
@config_options(DoctorConfig, leave_out=["seed"])
def _doctor(config: DoctorConfig) -> Shown:
    """Report what would be used here, how each MODEL would be loaded and asked, and how to mend what is missing."""
    from mechsafety.doctor import as_json, examine

    checks = examine(config.models, **config.loading, date=config.date)
    lines = []
    for check in checks:
        lines.append(f"{'ok ' if check.ok else '!! '} {check.name:28} {check.value}")
        if not check.ok:
            lines.append(f"    fix: {check.fix}")
    return as_json(checks), "\n".join(lines)
