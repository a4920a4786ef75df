"""The lab: tiny models on a synthetic grammar, trained, tuned, attacked and taken apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import Shown, command, other_versions_option, records, say
from mechsafety.cli.options import checked, whole_numbers

_WHAT = ["run", "ladder", "presets"]


@command("lab", example="mechsafety lab run --preset tiny --out runs/lab")
@click.argument("what", type=click.Choice(_WHAT))
@click.option(
    "--preset", "name", default="tiny", show_default=True, metavar="NAME", help="See mechsafety lab presets."
)
@click.option("--seeds", default="0", show_default=True, metavar="N,N", help="A world and a model each.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    help="Run folder [default: runs/lab, runs/lab-ladder].",
)
@other_versions_option
def _lab(what: str, name: str, seeds: str, out: Path | None, allow_other_versions: bool) -> Shown:
    """Train models of a small synthetic world, tune them for safety, attack them and take the tuning apart.

    \b
    run      a pretrained model, three safety tunings and a benign one, attacks, anatomy, nine claims checked
    ladder   six pretraining mixtures, the same safety tuning for each, then directions removed from all
    presets  what sizes there are

    An interrupted run goes on when the same command runs again.
    """
    if what == "presets":
        return _presets()
    from mechsafety.experiments.lab.config import LabConfig

    config = checked(LabConfig, {"preset": name, "seeds": whole_numbers(seeds, "--seeds")})
    if what == "run":
        return _run(config, out or Path("runs/lab"), allow_other_versions=allow_other_versions)
    return _ladder(config, out or Path("runs/lab-ladder"), allow_other_versions=allow_other_versions)


def _presets() -> Shown:
    from mechsafety.lab.presets import PRESETS

    facts = {name: chosen.about for name, chosen in PRESETS.items()}
    return facts, "\n".join(f"{name:<7}{about}" for name, about in facts.items())


def _run(config: Any, out: Path, *, allow_other_versions: bool) -> Shown:
    from mechsafety.experiments.lab.config import SAFETY_TUNINGS
    from mechsafety.experiments.lab.findings import lab_findings
    from mechsafety.experiments.lab.work import run_lab

    made = run_lab(config, out, say=say, allow_other_versions=allow_other_versions)
    say("figures and pages")
    for seed in config.seeds:
        for tuning in SAFETY_TUNINGS:
            _written(made.anatomy(seed, tuning))
    report = _written(made.path)
    held = made.held()
    sentences = [said for several in lab_findings(made.cases, held).values() for said in several]
    facts = {
        "run": str(made.path),
        "report": str(report),
        "findings": sentences,
        "thresholds": records(held),
        "cases": records(made.cases),
    }
    shown = held.to_string(index=False, na_rep="-", float_format="%.3g")
    return facts, "\n".join([shown, "", *sentences, "", f"report: {report}"])


def _ladder(config: Any, out: Path, *, allow_other_versions: bool) -> Shown:
    from mechsafety.experiments.lab.ladder import run_lab_ladder

    made = run_lab_ladder(config, out, say=say, allow_other_versions=allow_other_versions)
    say("figures and pages")
    reports = {seed: str(_written(ladder.path)) for seed, ladder in made.ladders.items()}
    breaking = {seed: ladder.tables["breaking"] for seed, ladder in made.ladders.items()}
    facts = {
        "run": str(made.path),
        "reports": reports,
        "breaking": {seed: records(table) for seed, table in breaking.items()},
        "cases": records(made.cases),
    }
    lines = [f"seed {seed}\n{table.to_string(index=False, na_rep='-')}" for seed, table in breaking.items()]
    return facts, "\n\n".join([*lines, f"report: {reports[config.seeds[0]]}"])


def _written(folder: Path) -> Path:
    """Figures and page of a run."""
    from mechsafety.experiments.published import publish
    from mechsafety.runs.folder import read_run

    return publish(read_run(folder))
