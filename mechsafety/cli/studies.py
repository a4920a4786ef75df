"""Studies: run one, write its report and its figures again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from mechsafety.cli.base import SectionedOption, Shown, command, run_options, say, shown
from mechsafety.cli.options import config_options
from mechsafety.experiments.study.config import StudyConfig, commented_yaml, load_config

_F = TypeVar("_F", bound=Callable[..., Any])
_DRY_RUN = "Dry run"
_GPU: dict[str, tuple[str, str]] = {
    "memory_gb": ("--gpu-memory", "Memory of a GPU in GB  [default: 80]"),
    "tflops": ("--gpu-tflops", "Its peak in TFLOP/s, in the number format  [default: 312]"),
    "bandwidth_tb": ("--gpu-bandwidth", "Its memory bandwidth in TB/s  [default: 2]"),
    "share": ("--gpu-share", "The share of both that is reached  [default: 0.3]"),
}


def _gpu_options(function: _F) -> _F:
    """Options of a dry run's GPU; the function receives ``gpu``, those that were given."""

    @functools.wraps(function)
    def call(**options: Any) -> Any:
        given = {name: options.pop(name) for name in _GPU}
        return function(**options, gpu={name: value for name, value in given.items() if value is not None})

    wrapped: Any = call
    for name, (flag, about) in reversed(_GPU.items()):
        most = 1.0 if name == "share" else None
        kind = click.FloatRange(min=0, min_open=True, max=most)
        takes: dict[str, Any] = {"type": kind, "default": None, "metavar": "X", "help": about}
        wrapped = click.option(flag, name, cls=SectionedOption, section=_DRY_RUN, **takes)(wrapped)
    return wrapped


def _planned(config: StudyConfig, gpu: Mapping[str, float]) -> Shown:
    from mechsafety.experiments.study.costs import Gpu
    from mechsafety.experiments.study.plan import plan_facts, plan_study, plan_text

    plan = plan_study(config, Gpu(**gpu))
    return plan_facts(plan), plan_text(plan)


@command("study", example="mechsafety study --systems smollm2-135m+refusals --limit 10 --out runs/quick")
@click.argument("source", metavar="[CONFIG]", required=False)
@config_options(StudyConfig, leave_out=["sampling", "selfjudge", "nll"])
@click.option("--print-config", is_flag=True, help="Print the configuration with comments, and stop.")
@click.option(
    "--dry-run",
    cls=SectionedOption,
    section=_DRY_RUN,
    is_flag=True,
    help="Print what each system is and would take, loading none, and stop.",
)
@_gpu_options
@run_options("runs/NAME")
def _study(
    given: Mapping[str, Any],
    source: str | None,
    print_config: bool,
    dry_run: bool,
    gpu: Mapping[str, float],
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
    if dry_run:
        return _planned(config, gpu)
    from mechsafety.experiments.study.experiment import run_study
    from mechsafety.experiments.study.findings import failure_lines

    folder = out or Path("runs") / (Path(source).stem if source else "default")
    result = run_study(config, folder, say=say, allow_other_versions=allow_other_versions)
    if len(result.failed) < len(config.systems):
        return shown(result, published=True)
    failures = " ".join(failure_lines(result.failed))
    return {"run": str(result.path), "failed": result.failed}, f"No system could be measured. {failures}"


@command("report", example="mechsafety report runs/default")
@click.argument("run", type=click.Path(path_type=Path))
def _report(run: Path) -> Shown:
    """Write a finished run's report.html and HTML figures again."""
    from mechsafety.experiments.registry import load_run

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
    from mechsafety.experiments.registry import load_run

    paths = load_run(run).save_figures(form=form, out=out)
    return {"figures": [str(p) for p in paths]}, "\n".join(str(p) for p in paths)
