"""Anatomy of a fine-tuning: what changed between a base and a tuned model."""

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
    other_versions_option,
    records,
    say,
    template_option,
)
from mechsafety.cli.options import checked
from mechsafety.core.errors import MechsafetyError

# Named here too, so that --help loads no torch; a test holds them together.
_PARTS = ["clusters", "weights", "sensitivity", "interpolation", "reversal", "links"]


@command(
    "anatomy",
    example="mechsafety anatomy smollm2-135m smollm2-135m+refusals --control smollm2-135m+benign --limit 16",
)
@click.argument("base")
@click.argument("tuned")
@click.option(
    "--control", default=None, metavar="M", help="BASE after a fine-tuning that taught no refusals."
)
@click.option("--prompts", default=None, metavar="SET", help="Fit, validation and report prompts.")
@click.option(
    "--attacks", default=None, metavar="SET", help="Harmful prompts; their category names the family."
)
@click.option("--judge", default=None, metavar="J", help="Who reads the answers [default: fluent:BASE].")
@click.option(
    "--parts", default=None, metavar="P,P,...", help=f"What to do, all by default: {', '.join(_PARTS)}."
)
@click.option(
    "--maps",
    type=click.Choice(["mlp", "all"]),
    default=None,
    help="Matrices whose change is taken apart: the MLPs' (default), or all of the blocks.",
)
@click.option(
    "--limit", type=int, default=None, metavar="N", help="At most N prompts of each label, split and family."
)
@click.option("--max-new-tokens", type=int, default=None)
@click.option("--seed", type=int, default=None)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder [default: runs/TUNED-anatomy]."
)
@template_option
@date_option
@dtype_option
@device_option
@other_versions_option
def _anatomy(parts: str | None, out: Path | None, allow_other_versions: bool, **given: Any) -> Shown:
    """Take apart what a fine-tuning that made TUNED of BASE did to its activations, its weights and its answers.

    Each look has its chance level, and, with --control, a fine-tuning that taught no refusals beside it. BASE and TUNED
    are of one architecture and shape. All default prompts take about a quarter of an hour on smollm2-135m and two
    cores, --limit 16 a few minutes. An interrupted run goes on when the same command runs again.
    """
    from mechsafety.experiments.anatomy.config import AnatomyConfig
    from mechsafety.plots.style import short_name

    fields = {name: value for name, value in given.items() if value is not None}
    if parts is not None:
        fields["parts"] = _known(parts)
    config = checked(AnatomyConfig, fields)
    name = short_name(config.tuned.rstrip("/")).replace("/", "-")
    folder = out or Path("runs") / f"{name}-anatomy"
    return _run(config, folder, allow_other_versions=allow_other_versions)


def _known(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(","))
    if unknown := [part for part in parts if part not in _PARTS]:
        raise MechsafetyError(f"--parts {text!r}: {unknown[0]!r} is not one of {', '.join(_PARTS)}")
    return parts


def _run(config: Any, folder: Path, *, allow_other_versions: bool) -> Shown:
    from mechsafety.experiments.anatomy.config import TABLES
    from mechsafety.experiments.anatomy.findings import anatomy_findings
    from mechsafety.experiments.anatomy.runs import run_anatomy
    from mechsafety.experiments.published import publish
    from mechsafety.plots.style import short_name
    from mechsafety.runs.folder import read_run

    result = run_anatomy(config, folder, say=say, allow_other_versions=allow_other_versions)
    made = read_run(result.path)
    say("figures and page")
    report = publish(made)
    names = {role: short_name(spec) for role, spec in config.models.items()}
    found = anatomy_findings(result.tables, names=names)
    facts = {
        "run": str(result.path),
        "report": str(report),
        "findings": found,
        # Those of a row a prompt or a singular direction are long: they stay in their files.
        "tables": {n: records(t) for n, t in result.tables.items() if TABLES[n].endswith(".csv")},
    }
    sentences = [f"- {said}" for several in found.values() for said in several]
    return facts, "\n".join([*sentences, "", f"tables: {result.path}", f"report: {report}"])
