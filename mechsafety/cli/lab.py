"""The lab: tiny models on a synthetic grammar, trained, tuned, attacked and taken apart."""

from __future__ import annotations

from pathlib import Path

import click

from mechsafety.cli.base import Shown, command, run_and_show, run_options
from mechsafety.cli.options import config_options
from mechsafety.experiments.lab.config import LabConfig


@command("lab", example="mechsafety lab run --preset tiny --out runs/lab")
@click.argument("what", type=click.Choice(["run", "ladder", "presets"]))
@config_options(LabConfig)
@run_options("runs/lab, runs/lab-ladder")
def _lab(what: str, config: LabConfig, out: Path | None, allow_other_versions: bool) -> Shown:
    """Train models of a small synthetic world, tune them for safety, attack them and take the tuning apart.

    \b
    run      a pretrained model, three safety tunings and a benign one, attacks, anatomy, nine claims checked
    ladder   six pretraining mixtures, the same safety tuning for each, then directions removed from all
    presets  what sizes there are

    An interrupted run goes on when the same command runs again.
    """
    if what == "presets":
        return _presets()
    if what == "run":
        from mechsafety.experiments.lab.experiment import Lab

        return run_and_show(Lab(config), out or Path("runs/lab"), allow_other_versions=allow_other_versions)
    from mechsafety.experiments.lab.ladder import LabLadder

    folder = out or Path("runs/lab-ladder")
    return run_and_show(LabLadder(config), folder, allow_other_versions=allow_other_versions)


def _presets() -> Shown:
    from mechsafety.lab.presets import PRESETS

    facts = {name: chosen.about for name, chosen in PRESETS.items()}
    return facts, "\n".join(f"{name:<7}{about}" for name, about in facts.items())
