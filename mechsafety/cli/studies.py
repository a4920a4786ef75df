"""Studies: run one, write its report and its figures again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import Shown, command, run_options, say, shown
from mechsafety.cli.options import config_options
from mechsafety.experiments.study.config import StudyConfig, commented_yaml, load_config


@command("study", example="mechsafety study --systems smollm2-135m+refusals --limit 10 --out runs/quick")
@click.argument("source", metavar="[CONFIG]", required=False)
@config_options(StudyConfig, leave_out=["sampling", "selfjudge", "nll"])
@click.option("--print-config", is_flag=True, help="Print the configuration with comments, and stop.")
@run_options("runs/NAME")
def _study(
    given: Mapping[str, Any],
    source: str | None,
    print_config: bool,
    out: Path | None,
    allow_other_versions: bool,
) -> Shown:
    """Measure refusal of every system, original and edited, and write a report.

    CONFIG is a preset's name or a YAML file. Without it the default study runs on the packaged model.
    An interrupted study goes on when the same command runs again. Systems that could not be measured are named, and
    the exit code is 1 then.
    """
    config = load_config(source, given, say=say)
    if print_config:
        return config.model_dump(mode="json"), commented_yaml(config).rstrip()
    from mechsafety.experiments.study.experiment import run_study
    from mechsafety.experiments.study.findings import failure_lines

    folder = out or Path("runs") / (Path(source).stem if source else "default")
    result = run_study(config, folder, say=say, allow_other_versions=allow_other_versions)
    if len(result.failed) < len(config.systems):
        return shown(result)
    failures = " ".join(failure_lines(result.failed))
    return {"run": str(result.path), "failed": result.failed}, f"No system could be measured. {failures}"


@command("report", example="mechsafety report runs/default")
@click.argument("run", type=click.Path(path_type=Path))
def _report(run: Path) -> Shown:
    """Write a finished run's report.html and HTML figures again."""
    from mechsafety.experiments.base import load_run

    report = load_run(run).publish()
    return {"report": str(report)}, f"report: {report}"


@command("figures", example="mechsafety figures runs/default --format png --out figures")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["html", "png", "pdf", "svg"]), default="html", show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder [default: RUN/figures].")
def _figures(run: Path, form: Any, out: Path | None) -> Shown:
    """Write every figure of a finished run as files."""
    from mechsafety.experiments.base import load_run

    paths = load_run(run).save_figures(form=form, out=out)
    return {"figures": [str(p) for p in paths]}, "\n".join(str(p) for p in paths)
