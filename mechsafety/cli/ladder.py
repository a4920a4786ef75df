"""The ladder: which systems keep refusing when directions are removed."""

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
from mechsafety.cli.options import checked, whole_numbers

_KINDS = {"unedited": "as it is", "refusal": "without its directions", "random": "without random ones"}


@command(
    "ladder",
    example="mechsafety ladder smollm2-135m+refusals smollm2-135m+rephrase --base smollm2-135m --limit 24",
)
@click.argument("systems", nargs=-1, metavar="SYSTEM SYSTEM...")
@click.option("--base", default=None, metavar="MODEL", help="What all were fine-tuned from: links to dW.")
@click.option("--prompts", default=None, metavar="SET", help="Fit, validation and report [default: default].")
@click.option("--judge", default=None, metavar="NAME", help="Who reads the answers [default: rules].")
@click.option("--counts", default=None, metavar="1,2,4,8", help="How many directions are removed.")
@click.option("--limit", type=int, default=None, metavar="N", help="At most N report prompts of each label.")
@click.option("--max-new-tokens", type=int, default=None, help="[default: 32]")
@click.option(
    "--compare-limit",
    type=int,
    default=None,
    metavar="N",
    help="Prompts of each label that systems are compared on [default: 32].",
)
@click.option(
    "--beside",
    multiple=True,
    metavar="RUN",
    help="Another finished ladder, told in the same report; may be repeated.",
)
@click.option("--regions", default=None, metavar="RUN", help="A regions run of one of the systems.")
@click.option("--seed", type=int, default=None)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder [default: runs/ladder]."
)
@template_option
@date_option
@dtype_option
@device_option
@other_versions_option
def _ladder(
    systems: tuple[str, ...],
    counts: str | None,
    out: Path | None,
    allow_other_versions: bool,
    **given: Any,
) -> Shown:
    """Remove 1, 2, 4 and 8 refusal directions from each SYSTEM, and as many random ones, and count refusals.

    The directions are of the layer that validation prompts choose, and are projected out everywhere. Tests are exact
    and paired; damage is told by degenerate text, KL and perplexity. All systems are then compared: cosines, angles,
    CKA, transfer. An interrupted run goes on when the same command runs again.
    """
    from mechsafety.experiments.ladder.config import LadderConfig

    fields = {name: value for name, value in given.items() if value not in (None, ())}
    if counts is not None:
        fields["counts"] = whole_numbers(counts, "--counts")
    config = checked(LadderConfig, {**fields, "systems": systems})
    return _run(config, out or Path("runs") / "ladder", allow_other_versions=allow_other_versions)


def _run(config: Any, folder: Path, *, allow_other_versions: bool) -> Shown:
    from mechsafety.experiments.ladder.findings import summary
    from mechsafety.experiments.ladder.runs import run_ladder
    from mechsafety.experiments.ladder.verdicts import ladder_verdicts
    from mechsafety.experiments.published import publish
    from mechsafety.runs.folder import read_run

    result = run_ladder(config, folder, say=say, allow_other_versions=allow_other_versions)
    made = read_run(result.path)
    say("figures and page")
    report = publish(made)
    findings = summary(ladder_verdicts(result.tables))
    facts = {
        "run": str(result.path),
        "report": str(report),
        "systems": made.manifest["ladder"]["systems"],
        "findings": findings,
        "notes": list(result.notes),
        "tables": {name: records(table) for name, table in result.tables.items() if name != "verdicts"},
    }
    lines = [_survival(result.tables["survival"]), "", *findings, *result.notes, ""]
    text = "\n".join([*lines, f"report: {report}", f"run:    {folder}"])
    return facts, text


def _survival(table: Any) -> str:
    """Shares of harmful prompts refused: a row a system and kind of directions, a column a number of them."""
    harmful = table[table["label"] == "harmful"]
    wide = harmful.pivot_table(index=["system", "kind"], columns="directions", values="refused", sort=False)
    wide = wide.rename(index=_KINDS, level="kind").sort_index(axis=1)
    return (
        f"harmful prompts refused, by directions removed\n{wide.to_string(na_rep='-', float_format='%.2f')}"
    )
