"""The page of a run of self-judgement: how well each model recognises its refusals, with and without the edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mechsafety.experiments.base import Result
from mechsafety.experiments.selfjudgement.findings import findings
from mechsafety.judges.selfjudgement import QUESTION, REVERSED
from mechsafety.pages.page import Block, Page

if TYPE_CHECKING:
    import plotly.graph_objects as go


def page(result: Result, figures: Mapping[str, go.Figure]) -> Page:
    table, config = result.tables["cells"], result.config
    blocks = [
        Block(
            name="two-by-two",
            title="Recognition of refusals, by arm",
            text="The model with and without the edit is asked about answers written with and without it. AUC needs no "
            "threshold; in words it is that of yes against no. Shortness alone and another prompt are controls: an AUC "
            "that does not exceed them shows no insight.",
            figures=[figures["two-by-two"]],
            table=table,
        ),
        Block(
            name="yes-or-no",
            title="Yes to the question and to its opposite",
            text="Asked the other way round, a model that recognises its refusals gives the other word. majority is "
            "the agreement of always giving the more frequent answer.",
            figures=[figures["yes-or-no"]],
        ),
    ]
    if "calibration" in figures:
        blocks.append(
            Block(
                name="calibration",
                title="Calibration of P(yes)",
                text="The expected calibration error is above 0 even for perfect probabilities; ece_floor is what "
                "those would show.",
                figures=[figures["calibration"]],
                table=result.tables["calibration"],
            )
        )
    return Page(
        title="Recognition of own refusals",
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
