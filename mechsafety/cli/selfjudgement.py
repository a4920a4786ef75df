"""Asking models about their own refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mechsafety.cli.base import (
    Shown,
    command,
    device_option,
    dtype_option,
    other_versions_option,
    records,
    say,
)
from mechsafety.cli.options import checked

_COLUMNS = [
    *("system", "judge_arm", "response_arm", "form", "n", "readable", "refusals", "unparsed", "agreement"),
    *("majority", "auc", "low", "high", "auc_shuffled", "auc_length", "both_yes", "ece"),
]


@command(
    "selfjudge", example="mechsafety selfjudge runs/default --limit 10 --form logit --out runs/selfjudge"
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--system", "systems", multiple=True, metavar="S", help="One of the study's; may be repeated.")
@click.option("--limit", type=int, default=None, metavar="N", help="At most N prompts of each label.")
@click.option(
    "--form",
    "forms",
    type=click.Choice(["logit", "text"]),
    multiple=True,
    default=("logit", "text"),
    show_default=True,
    help="By log-probability, or in words; may be repeated.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder [default: runs/NAME-selfjudge]."
)
@dtype_option
@device_option
@other_versions_option
def _selfjudge(
    run: Path,
    systems: tuple[str, ...],
    limit: int | None,
    forms: Any,
    out: Path | None,
    dtype: str | None,
    device: str | None,
    allow_other_versions: bool,
) -> Shown:
    """Ask each system of a finished study, with and without the edit, whether its answers were refusals.

    RUN is the study's folder. Each arm is asked about both arms' answers, with controls: another prompt, length alone,
    the question reversed, the answer N/A. An interrupted run goes on when the same command runs again.
    """
    from mechsafety.experiments.published import publish
    from mechsafety.experiments.selfjudgement.config import SelfJudgeConfig
    from mechsafety.experiments.selfjudgement.page import findings
    from mechsafety.experiments.selfjudgement.work import run_selfjudge
    from mechsafety.runs.folder import read_run

    fields = {
        "study": run,
        "systems": systems,
        "limit": limit,
        "forms": forms,
        "dtype": dtype,
        "device": device,
    }
    result = run_selfjudge(
        checked(SelfJudgeConfig, fields),
        out or Path("runs") / f"{run.resolve().name}-selfjudge",
        say=say,
        allow_other_versions=allow_other_versions,
    )
    made = read_run(result.path)
    say("figures and page")
    report = publish(made)
    sentences = findings(result.table)
    facts = {
        "run": str(result.path),
        "report": str(report),
        "cells": records(result.table),
        "calibration": records(result.calibration),
        "findings": sentences,
    }
    shown = result.table[_COLUMNS].to_string(index=False, na_rep="-", float_format="%.2f")
    return facts, "\n".join([shown, "", *sentences, "", f"report: {report}"])
