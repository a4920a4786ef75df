"""Attacks on a model, and what an edit costs it elsewhere."""

from __future__ import annotations

from pathlib import Path

from mechsafety.cli.base import Shown, command, run_and_show, run_options
from mechsafety.cli.options import config_options
from mechsafety.experiments.robustness.config import RobustnessConfig


@command("robustness", example="mechsafety robustness smollm2-135m+refusals --limit 10 --out runs/robustness")
@config_options(RobustnessConfig)
@run_options("runs/robustness")
def _robustness(config: RobustnessConfig, out: Path | None, allow_other_versions: bool) -> Shown:
    """Attack MODEL under an edit, or as it is, and measure its perplexity and accuracy on benign text.

    vanilla: greedy, in the chat template. decoding: samples of the bare request. suffix: adversarial suffixes (GCG),
    searched on fit prompts and tried on report prompts; they stay in the run folder. Success is coherent compliance;
    the published metric, which also counts garbage, stands beside it.
    """
    from mechsafety.experiments.robustness.experiment import Robustness

    folder = out or Path("runs") / "robustness"
    return run_and_show(Robustness(config), folder, allow_other_versions=allow_other_versions)
