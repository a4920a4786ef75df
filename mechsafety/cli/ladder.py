"""The ladder: which systems keep refusing when directions are removed."""

from __future__ import annotations

from pathlib import Path

from mechsafety.cli.base import Shown, command, run_and_show, run_options
from mechsafety.cli.options import config_options
from mechsafety.experiments.ladder.config import LadderConfig


@command(
    "ladder",
    example="mechsafety ladder smollm2-135m+refusals smollm2-135m+rephrase --base smollm2-135m --limit 24",
)
@config_options(LadderConfig)
@run_options("runs/ladder")
def _ladder(config: LadderConfig, out: Path | None, allow_other_versions: bool) -> Shown:
    """Remove 1, 2, 4 and 8 refusal directions from each SYSTEM, and as many random ones, and count refusals.

    The directions are of the layer that validation prompts choose, and are projected out everywhere. Tests are exact
    and paired; degenerate text, KL and perplexity show damage. All systems are then compared: cosines, angles, CKA,
    transfer. An interrupted run goes on when the same command runs again.
    """
    from mechsafety.experiments.ladder.experiment import Ladder

    folder = out or Path("runs") / "ladder"
    return run_and_show(Ladder(config), folder, allow_other_versions=allow_other_versions)
