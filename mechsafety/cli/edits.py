"""Answers under an edit."""

from __future__ import annotations

from pathlib import Path

import click

from mechsafety.cli.base import Shown, command, run_and_show, run_options, say
from mechsafety.cli.options import config_options
from mechsafety.experiments.config import ENGINE_FIELDS, EditedConfig
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
    when the same command runs again. With --backend vllm a server generates that runs the edited checkpoint
    (mechsafety export), for as long as a sample of its answers agrees with those of this process.
    """
    from mechsafety.experiments.generation.experiment import Generation

    folder = out or Path("runs") / "generate"
    experiment = Generation(config, save_edit_to=save_edit)
    facts, text = run_and_show(experiment, folder, allow_other_versions=allow_other_versions)
    return facts | {"saved_edit": str(save_edit) if save_edit else None}, text


@command("export", example="mechsafety export smollm2-135m+refusals --out exported/as-it-is")
@config_options(EditedConfig, leave_out=[*ENGINE_FIELDS, "seed"])
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the checkpoint.")
def _export(config: EditedConfig, out: Path) -> Shown:
    """Write MODEL under an edit as a checkpoint that transformers and vLLM read, and print how vLLM serves it.

    The edit must have a weight form: orthogonalise, or ablate with alpha 1 everywhere. vLLM pins its own torch: install
    it in an environment of its own. Distributing the folder distributes the edit.
    """
    import shlex

    from mechsafety.edits.expressions import read_expression
    from mechsafety.models.loading import load_model
    from mechsafety.regions.saved_models import save_model
    from mechsafety.serving.server import serve_command

    expression = read_expression(config.edit) if config.edit is not None else None
    say(f"loading {config.model}")
    model = load_model(config.model, **config.loading, date=config.date)
    edit = expression.for_model(model) if expression is not None else None
    folder = save_model(model, edit, out)
    serve = serve_command(model, edit, folder)
    given = ["--edit", config.edit] if config.edit is not None else []
    following = shlex.join(["mechsafety", "generate", config.model, *given, "--backend", "vllm"])
    following += " --server http://127.0.0.1:8000/v1"
    facts = {"folder": str(folder), "serve": serve, "next": following}
    return facts, f"checkpoint: {folder}\nserve:      {serve}\nnext:       {following}"
