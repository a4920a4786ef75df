"""Other evaluation packages: lm-eval's tasks on an edited model, a study as inspect_ai's logs."""

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
    other_versions_option,
    records,
    say,
    template_option,
)
from mechsafety.cli.options import checked


@command("evaluate", example="mechsafety evaluate smollm2-135m --tasks arc_easy --limit 50 --out runs/arc")
@click.argument("model")
@click.option("--tasks", required=True, metavar="NAMES", help="lm-eval's tasks, with commas between them.")
@click.option("--task-folder", default=None, metavar="FOLDER", help="Where tasks of your own lie (YAML).")
@click.option("--edit", default=None, metavar="FILE|EXPR", help="As in `mechsafety generate`.")
@click.option("--limit", type=int, default=None, metavar="N", help="The first N documents of each task.")
@click.option("--num-fewshot", type=int, default=None, metavar="N", help="Examples shown before each.")
@click.option("--chat", is_flag=True, help="Ask in the model's chat template.")
@click.option("--system", default=None, metavar="TEXT", help="System message, with --chat.")
@click.option("--batch-size", type=int, default=None, metavar="N", help="Contexts run at once.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder [default: runs/evaluate]."
)
@template_option
@date_option
@dtype_option
@device_option
@other_versions_option
def _evaluate(model: str, tasks: str, out: Path | None, allow_other_versions: bool, **given: Any) -> Shown:
    """Run lm-eval's tasks on MODEL under an edit, or as it is without one.

    Most tasks fetch their data from the hub when they are first used.
    """
    from mechsafety.integrations.harness_runs import EvaluationConfig, run_evaluation

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    fields = {k: v for k, v in given.items() if v is not None} | {"model": model, "tasks": names}
    found = run_evaluation(
        checked(EvaluationConfig, fields),
        out or Path("runs") / "evaluate",
        say=say,
        allow_other_versions=allow_other_versions,
    )
    assert found.path is not None
    results = found.path / "results.csv"
    facts = {
        "run": str(found.path),
        "out": str(results),
        "results": records(found.table),
        "record": found.record,
    }
    shown = found.table.drop(columns=["model", "higher_is_better"]).round(4).to_string(index=False)
    name, edit = found.record["model_name"], found.record["edit"]
    return facts, f"{name}, {edit or 'unedited'}\n\n{shown}\n\nresults: {results}"


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
