"""Which weights a model's safety behaviour needs, and what removing them does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from mechsafety.cli.base import Shown, command, run_and_show, run_options
from mechsafety.cli.options import config_options
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.regions.config import RegionsConfig

_PLANNED_PROMPT = 208
"""Tokens of a long prompt, template and all; the packaged ones have up to 80."""


@command("regions", example="mechsafety regions smollm2-135m+refusals --out runs/regions")
@config_options(RegionsConfig)
@click.option(
    "--study", type=click.Path(path_type=Path), default=None, help="Put it into this study's report."
)
@click.option("--dry-run", is_flag=True, help="Show how much memory it needs, and load nothing.")
@run_options("runs/NAME-regions")
def _regions(
    config: RegionsConfig, study: Path | None, dry_run: bool, out: Path | None, allow_other_versions: bool
) -> Shown:
    """Score the weights that MODEL's refusals need, remove them, and measure what is left.

    Safety and utility are each scored in one pass over the model's own answers. Every removal is measured beside a
    random one that takes as many weights of every matrix. An interrupted run goes on when the same command runs again.
    """
    if dry_run:
        return _plan(config)
    from mechsafety.experiments.regions.experiment import Regions

    folder = _folder(config, study, out)
    found = run_and_show(Regions(config), folder, allow_other_versions=allow_other_versions)
    if study is not None:
        from mechsafety.experiments.registry import load_run

        load_run(study).report()
    return found


def _folder(config: RegionsConfig, study: Path | None, out: Path | None) -> Path:
    from mechsafety.plots.style import system_names
    from mechsafety.runs.folder import read_run

    if study is not None:
        if out is not None:
            raise MechsafetyError("--study puts the run into the study's folder: leave out --out")
        systems = read_run(study).manifest["config"].get("systems", [])
        name = system_names([*systems, config.model])[config.model].replace("/", "-")
        return study / "regions" / name
    name = system_names([config.model])[config.model].replace("/", "-")
    return out or Path("runs") / f"{name}-regions"


def _plan(config: RegionsConfig) -> Shown:
    from mechsafety.models.hardware import free_bytes, resolve_device
    from mechsafety.regions.memory_plan import memory_plan

    plan = memory_plan(
        config.model,
        dtype=config.dtype,
        device=config.device,
        batch_size=config.batch_size,
        tokens=_PLANNED_PROMPT + config.answer_tokens,
    )
    free = free_bytes(resolve_device(config.device))
    files = 2 * config.draws * (plan.scores + plan.grams)
    text = f"{plan.describe(free=free)}\n  files of scores in the run folder  {files / 1e9:,.2f} GB"
    return {**asdict(plan), "total": plan.total, "free": free, "files": files}, text
