"""Anatomy of a fine-tuning: what changed between a base and a tuned model."""

from __future__ import annotations

from pathlib import Path

from mechsafety.cli.base import Shown, command, run_and_show, run_options
from mechsafety.cli.options import config_options
from mechsafety.experiments.anatomy.config import AnatomyConfig


@command(
    "anatomy",
    example="mechsafety anatomy smollm2-135m smollm2-135m+refusals --control smollm2-135m+benign --limit 16",
)
@config_options(AnatomyConfig)
@run_options("runs/TUNED-anatomy")
def _anatomy(config: AnatomyConfig, out: Path | None, allow_other_versions: bool) -> Shown:
    """Take apart what a fine-tuning that made TUNED of BASE did to its activations, its weights and its answers.

    Each part has its chance level, and, with --control, a fine-tuning that taught no refusals beside it. BASE and TUNED
    are of one architecture and shape. All default prompts take about a quarter of an hour on smollm2-135m and two
    cores, --limit 16 a few minutes. An interrupted run goes on when the same command runs again.
    """
    from mechsafety.experiments.anatomy.experiment import Anatomy
    from mechsafety.plots.style import short_name

    name = short_name(config.tuned.rstrip("/")).replace("/", "-")
    folder = out or Path("runs") / f"{name}-anatomy"
    return run_and_show(Anatomy(config), folder, allow_other_versions=allow_other_versions)
