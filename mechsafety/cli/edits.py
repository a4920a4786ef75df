"""Answers under an edit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import (
    Shown,
    command,
    date_option,
    device_option,
    dtype_option,
    escape_option,
    other_versions_option,
    say,
    template_option,
    truncate_option,
)
from mechsafety.cli.options import checked


@command("generate", example="mechsafety generate smollm2-135m --limit 5 --out runs/as-it-is")
@click.argument("model")
@click.option("--prompts", default="default", show_default=True, metavar="SET", help="Packaged, hub or file.")
@click.option(
    "--split",
    type=click.Choice(["fit", "validation", "report"]),
    default="report",
    show_default=True,
    help="Which of its prompts.",
)
@click.option("--limit", type=int, default=None, metavar="N", help="At most N prompts of each label.")
@click.option(
    "--edit",
    default=None,
    metavar="FILE|EXPR",
    help="A saved edit, or e.g. ablate(directions.safetensors, layer=22, alpha=0.5).",
)
@click.option("--baked", is_flag=True, help="Write the edit into the weights instead of hooking it on.")
@click.option("--max-new-tokens", type=int, default=64, show_default=True, metavar="N")
@click.option("--batch-size", type=int, default=None, metavar="N", help="Responses generated at once.")
@click.option("--temperature", type=float, default=None, help="Draw tokens; greedy without it.")
@click.option("--top-p", type=float, default=None, help="Nucleus to draw from [default: 1].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--save-edit", type=click.Path(path_type=Path), default=None, help="Also save the edit (.safetensors)."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder [default: runs/generate]."
)
@template_option
@date_option
@truncate_option
@escape_option
@dtype_option
@device_option
@other_versions_option
def _generate(
    model: str, save_edit: Path | None, out: Path | None, allow_other_versions: bool, **given: Any
) -> Shown:
    """Answer prompts with MODEL under an edit, or as it is without one.

    EXPR is a kind (ablate, affine, add, orthogonalise) of a directions file or of `random`, in quotes:
    "ablate(directions.safetensors, layer=22, alpha=0.5)", "ablate(random, seed=1)". An interrupted run goes on
    when the same command runs again.
    """
    from mechsafety.experiments.generation.config import GenerationConfig
    from mechsafety.experiments.generation.work import run_generation

    fields = {k: v for k, v in given.items() if v is not None} | {"model": model}
    folder = out or Path("runs") / "generate"
    result = run_generation(
        checked(GenerationConfig, fields),
        folder,
        save_edit_to=save_edit,
        say=say,
        allow_other_versions=allow_other_versions,
    )
    responses = result.path / "responses.parquet"
    following = f"mechsafety judge {shlex.quote(str(responses))} --judge rules"
    facts = {
        "run": str(result.path),
        "responses": str(responses),
        "n": len(result.responses),
        "edit": result.edit,
        "saved_edit": str(save_edit) if save_edit else None,
        "next": following,
    }
    first = result.responses.iloc[0]
    shown = " ".join(str(first["response"]).split())[:160]
    text = (
        f"{len(result.responses)} responses, {result.edit['description'] if result.edit else 'unedited'}\n"
        f"first: {shown}\n\nresponses: {responses} (and .csv)\n"
        + (f"edit:      {save_edit}\n" if save_edit else "")
        + f"next:      {following}"
    )
    return facts, text
