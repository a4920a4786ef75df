"""Judging responses that lie in a file."""

from __future__ import annotations

from pathlib import Path

import click

from mechsafety.cli.base import Shown, command
from mechsafety.errors import MechsafetyError


@command(
    "judge", example="mechsafety judge responses.csv --judge rules --judge phrases:arditi --out verdicts.csv"
)
@click.argument("responses", type=click.Path(path_type=Path), required=False)
@click.option(
    "--judge", "judges", multiple=True, default=("rules",), show_default=True, help="May be repeated."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="CSV, JSONL or Parquet file.")
@click.option("--list", "list_them", is_flag=True, help="List the judges, and stop.")
def _judge(responses: Path | None, judges: tuple[str, ...], out: Path | None, list_them: bool) -> Shown:
    """Judge the responses in a file with columns response and prompt (or question), id optional."""
    from mechsafety.judges.registry import describe_judges

    if list_them:
        about = describe_judges()
        return {"judges": about}, "\n".join(about.values())
    if responses is None:
        raise MechsafetyError("name a file of responses, or --list")
    from mechsafety.judge_files import judge_file

    counts, written = judge_file(responses, judges=judges, out=out)
    lines = [
        f"{judge:24} " + "  ".join(f"{k} {v}" for k, v in found.items()) for judge, found in counts.items()
    ]
    text = "\n".join([*lines, *([f"verdicts: {written}"] if written else [])])
    return {"counts": counts, "out": str(written) if written else None}, text
