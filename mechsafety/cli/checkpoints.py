"""Checkpoints: is it the same refusal?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import Shown, command, run_and_show, run_options
from mechsafety.cli.options import config_options
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.comparison.config import ComparisonConfig


@command(
    "compare", example="mechsafety compare smollm2-135m smollm2-135m+refusals --limit 64 --out runs/rungs"
)
@config_options(ComparisonConfig)
@click.option(
    "--format", "form", default="html", show_default=True, metavar="html|png|pdf|svg", help="Of figures."
)
@run_options("runs/compare")
def _compare(config: ComparisonConfig, form: Any, out: Path | None, allow_other_versions: bool) -> Shown:
    """Compare refusal across checkpoints: cosines, principal angles, CKA, and transfer of directions.

    A MODEL may be a base, BASE+ADAPTER, REPO@REVISION, or a .safetensors file of saved directions (cosines
    only). Models of separate origin share no residual basis; for them only CKA is given. An interrupted
    comparison goes on when the same command runs again.
    """
    from mechsafety.experiments.comparison.experiment import CheckpointComparison
    from mechsafety.experiments.registry import load_run
    from mechsafety.pages.page import FORMATS
    from mechsafety.prompts.prompt_set import load_prompts

    if form not in FORMATS:
        raise MechsafetyError(f"figure format {form!r} is not one of {', '.join(FORMATS)}")
    folder = out or Path("runs") / "compare"
    experiment = CheckpointComparison(config, load_prompts(config.prompts))
    facts, text = run_and_show(experiment, folder, allow_other_versions=allow_other_versions)
    if form != "html":
        facts["figures"] = [str(path) for path in load_run(folder).save_figures(form=form)]
    return facts, text
