"""Answers under an edit."""

from __future__ import annotations

from pathlib import Path

import click

from mechsafety.cli.base import Shown, command, run_and_show, run_options
from mechsafety.cli.options import config_options
from mechsafety.experiments.generation.config import GenerationConfig


@command("generate", example="mechsafety generate smollm2-135m --limit 5 --out runs/as-it-is")
@config_options(GenerationConfig)
@click.option(
    "--save-edit", type=click.Path(path_type=Path), default=None, help="Also save the edit (.safetensors)."
)
@run_options("runs/generate")
def _generate(
    config: GenerationConfig, save_edit: Path | None, out: Path | None, allow_other_versions: bool
) -> Shown:
    """Answer prompts with MODEL under an edit, or as it is without one.

    EXPR is a kind (ablate, affine, add, orthogonalise) of a directions file or of `random`, in quotes:
    "ablate(directions.safetensors, layer=22, alpha=0.5)", "ablate(random, seed=1)". An interrupted run goes on
    when the same command runs again.
    """
    from mechsafety.experiments.generation.experiment import Generation

    folder = out or Path("runs") / "generate"
    experiment = Generation(config, save_edit_to=save_edit)
    facts, text = run_and_show(experiment, folder, allow_other_versions=allow_other_versions)
    return facts | {"saved_edit": str(save_edit) if save_edit else None}, text
