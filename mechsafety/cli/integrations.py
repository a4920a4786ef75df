"""Other evaluation packages: lm-eval's tasks on an edited model, a study as inspect_ai's logs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import Shown, command, run_and_show, run_options
from mechsafety.cli.options import config_options
from mechsafety.experiments.evaluation.config import EvaluationConfig


@command("evaluate", example="mechsafety evaluate smollm2-135m --tasks arc_easy --limit 50 --out runs/arc")
@config_options(EvaluationConfig)
@run_options("runs/evaluate")
def _evaluate(config: EvaluationConfig, out: Path | None, allow_other_versions: bool) -> Shown:
    """Run lm-eval's tasks on MODEL under an edit, or as it is without one.

    Most tasks fetch their data from the hub when they are first used.
    """
    from mechsafety.integrations.harness_runs import LmEvaluation

    folder = out or Path("runs") / "evaluate"
    return run_and_show(LmEvaluation(config), folder, allow_other_versions=allow_other_versions)


@command("export-inspect", example="mechsafety export-inspect runs/first --out logs")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("logs"), show_default=True, help="Folder of logs."
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(["eval", "json"]),
    multiple=True,
    default=("eval",),
    show_default=True,
    help="May be repeated.",
)
def _export(run: Path, out: Path, formats: tuple[Any, ...]) -> Shown:
    """Write a finished study as inspect_ai logs, one for each system and arm."""
    from mechsafety.integrations.inspect_logs import export_inspect_log

    written = export_inspect_log(run, out, formats=formats)
    following = f"inspect view start --log-dir {shlex.quote(str(out))}"
    facts = {"out": str(out), "logs": [str(path) for path in written], "next": following}
    return facts, f"{len(written)} logs in {out}\nnext: {following}"
