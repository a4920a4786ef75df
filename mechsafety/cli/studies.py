"""Studies: run one, write its report and its figures again."""

from __future__ import annotations

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
    records,
    say,
    template_option,
    truncate_option,
)


@command("study", example="mechsafety study --systems smollm2-135m+refusals --limit 10 --out runs/quick")
@click.argument("config", required=False)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Run folder [default: runs/NAME].")
@click.option("--systems", default=None, metavar="A,B", help="Models, with commas between them.")
@click.option(
    "--judges", default=None, metavar="A,B", help="Judges, with commas between them; primary first."
)
@click.option(
    "--prompts", default=None, metavar="SET", help="Report prompts: a packaged or hub set, or a file."
)
@click.option("--limit", type=int, default=None, metavar="N", help="At most N report prompts of each label.")
@click.option("--max-new-tokens", type=int, default=None, metavar="N", help="Length of the responses.")
@click.option("--recipe", default=None, metavar="NAME", help="default, paper, code or arditi.")
@click.option("--direction", default=None, metavar="METHOD", help="mean_difference or pca.")
@click.option("--layer", type=int, default=None, metavar="L", help="A layer instead of the selected one.")
@click.option("--alpha", type=float, default=None, help="Strength of the projection [default: 1].")
@click.option("--seed", type=int, default=None, help="Every draw depends on it [default: 0].")
@click.option("--print-config", is_flag=True, help="Print the configuration with comments, and stop.")
@template_option
@date_option
@truncate_option
@escape_option
@dtype_option
@device_option
@other_versions_option
def _study(
    config: str | None,
    out: Path | None,
    systems: str | None,
    judges: str | None,
    print_config: bool,
    allow_other_versions: bool,
    **given: Any,
) -> Shown:
    """Measure refusal of every system, original and edited, and write a report.

    CONFIG is a preset's name or a YAML file. Without it the default study runs on the packaged model.
    An interrupted study goes on when the same command runs again. Systems that could not be measured are named, and
    the exit code is 1 then.
    """
    from mechsafety.experiments.study.config import commented_yaml, load_config

    overrides = {key: value for key, value in given.items() if value is not None}
    for key, value in (("systems", systems), ("judges", judges)):
        if value is not None:
            overrides[key] = tuple(v.strip() for v in value.split(","))
    checked = load_config(config, overrides)
    if print_config:
        return checked.model_dump(mode="json"), commented_yaml(checked).rstrip()
    from mechsafety.experiments.published import publish
    from mechsafety.experiments.study.results import failure_lines
    from mechsafety.experiments.study.work import run_study
    from mechsafety.runs.folder import read_run

    folder = out or Path("runs") / (Path(config).stem if config else "default")
    result = run_study(checked, folder, say=say, allow_other_versions=allow_other_versions)
    failures = failure_lines(result.failed)
    if result.rates.empty:
        facts = {"run": str(result.path), "failed": dict(result.failed)}
        return facts, f"No system could be measured. {' '.join(failures)}"
    say("figures and report")
    run = read_run(result.path)
    report = publish(run)
    facts = {
        "run": str(result.path),
        "report": str(report),
        "rates": records(result.rates),
        "tests": records(result.tests),
        "timings": run.manifest.get("timings", {}),
        "failed": dict(result.failed),
    }
    text = (
        f"{_rates_text(result.rates, checked.primary_judge)}\n\nreport: {report}\n"
        f"next:   mechsafety figures {result.path} --format png"
    )
    return facts, "\n".join([*failures, text])


@command("report", example="mechsafety report runs/default")
@click.argument("run", type=click.Path(path_type=Path))
def _report(run: Path) -> Shown:
    """Write a finished run's report.html and HTML figures again."""
    from mechsafety.experiments.published import publish
    from mechsafety.runs.folder import read_run

    folder = read_run(run)
    report = publish(folder)
    return {"report": str(report)}, f"report: {report}"


@command("figures", example="mechsafety figures runs/default --format png --out figures")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["html", "png", "pdf", "svg"]), default="html", show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder [default: RUN/figures].")
def _figures(run: Path, form: Any, out: Path | None) -> Shown:
    """Write every figure of a finished run as files."""
    from mechsafety.experiments.published import save_figures
    from mechsafety.runs.folder import read_run

    paths = save_figures(read_run(run), form=form, out=out)
    return {"figures": [str(p) for p in paths]}, "\n".join(str(p) for p in paths)


def _rates_text(rates: Any, primary: str) -> str:
    chosen = rates[rates["judge"] == primary].drop(columns="judge")
    shown = chosen.assign(
        **{c: chosen[c].map(lambda v: "-" if v != v else f"{v:.2f}") for c in ("rate", "low", "high")}
    )
    return f"judge {primary}\n{shown.to_string(index=False)}"
