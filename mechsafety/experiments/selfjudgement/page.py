"""The page of a run of self-judgement: can each model see its own refusals, and does the edit blind it?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.experiments.selfjudgement.figures import selfjudge_figures
from mechsafety.judges.selfjudgement import QUESTION, REVERSED
from mechsafety.pages.page import Block, Page
from mechsafety.plots.style import system_names
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FEWEST = 5  # answers of the rarer class below which an AUC says next to nothing
_SHORTCUTS = ("auc_shuffled", "auc_length")


def figures_of(run: RunFolder) -> dict[str, go.Figure]:
    """Every figure of a finished run of self-judgement, by file name."""
    return selfjudge_figures(*_tables(run))


def page_of(run: RunFolder) -> Page:
    table, curves = _tables(run)
    figures, config = selfjudge_figures(table, curves), run.manifest["config"]
    blocks = [
        Block(
            name="two-by-two",
            title="Who tells whose refusals?",
            text="The model with and without the edit is asked about answers written with and without it. AUC needs no "
            "threshold; in words it is that of yes against no. Shortness alone and another prompt are controls: an AUC "
            "that does not exceed them shows no insight.",
            figures=[figures["two-by-two"]],
            table=table,
        ),
        Block(
            name="yes-or-no",
            title="Insight, or a habit of saying yes?",
            text="Asked the other way round, a model that knows says the other word. majority is the agreement of "
            "always saying what is more frequent.",
            figures=[figures["yes-or-no"]],
        ),
    ]
    if "calibration" in figures:
        blocks.append(
            Block(
                name="calibration",
                title="Is P(yes) a probability?",
                text="The expected calibration error is above 0 even for perfect probabilities; ece_floor is what "
                "those would show.",
                figures=[figures["calibration"]],
                table=curves,
            )
        )
    return Page(
        title="Can a model see its own refusals?",
        subtitle=f"Answers of study {config['study']}, outside judge {config['judge']}",
        findings=findings(table),
        blocks=blocks,
        how=[
            f"Asked: {QUESTION}",
            f"Reversed: {REVERSED}",
            f"Forms: {', '.join(config['forms'])}; seed {config['seed']}; "
            + ("all prompts" if config["limit"] is None else f"{config['limit']} prompts of each label"),
            *(f"Edit of {system}: sha256 {sha[:16]}" for system, sha in config["edits"].items()),
        ],
    )


def findings(table: pd.DataFrame) -> list[str]:
    """One sentence a cell: how well refusals are told, against the controls."""
    names = system_names(table["system"])
    return [_finding(row, names[row["system"]]) for row in table.to_dict(orient="records")]


def _finding(row: dict[Any, Any], name: str) -> str:
    whose = "its own" if row["judge_arm"] == row["response_arm"] else f"the {row['response_arm']} model's"
    how = "by log-probability" if row["form"] == "logit" else "in words"
    said = f"{name}, {row['judge_arm']}, about {whose} answers {how}: "
    unreadable = f"{row['unparsed']} of {row['readable']} replies unreadable"
    if row["auc"] != row["auc"]:
        return f"{said}AUC undefined ({row['refusals']} of {row['readable']} answers are refusals, {unreadable})."
    said += f"AUC {row['auc']:.2f} {_interval(row['low'], row['high'])}"
    fewest = min(row["refusals"], row["readable"] - row["refusals"])
    if fewest < _FEWEST:
        said += f", from {row['refusals']} refusals among {row['readable']} answers: too few to say"
    elif controls := [row[name] for name in _SHORTCUTS if row[name] == row[name]]:
        above = "above" if row["low"] > max(controls) else "not clearly above"
        said += f", {above} the best control ({max(controls):.2f})"
    said += (
        f"; agrees with the outside judge on {row['agreement']:.0%}, always saying the commoner would on "
        f"{row['majority']:.0%}"
    )
    return f"{said}; {unreadable}." if row["unparsed"] else f"{said}."


def _interval(low: float, high: float) -> str:
    return "(no interval)" if low != low else f"[{low:.2f}, {high:.2f}]"


def _tables(run: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame]:
    return run.read_table("selfjudge_2x2.csv"), run.read_table("calibration.csv")
