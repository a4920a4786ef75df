"""The page of a run of self-judgement: how well each model recognises its refusals, with and without the edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mechsafety.core.places import packaged_words
from mechsafety.experiments.result import Result
from mechsafety.experiments.selfjudgement.findings import controls_table, findings
from mechsafety.judges.selfjudgement import QUESTION, REVERSED
from mechsafety.pages.page import Page, page_blocks

if TYPE_CHECKING:
    import plotly.graph_objects as go


_WORDS = packaged_words("mechsafety.experiments.selfjudgement", "page.toml")


def page(result: Result, figures: Mapping[str, go.Figure]) -> Page:
    config = result.config
    tables = {**result.tables, "controls": controls_table(result.tables["cells"])}
    return Page(
        title="Recognition of own refusals",
        subtitle=f"Answers of study {config['study']}, outside judge {config['judge']}",
        findings=findings(result.tables["cells"]),
        blocks=page_blocks(_WORDS["blocks"], tables, figures, drawn=True),
        how=[
            f"Asked: {QUESTION}",
            f"Reversed: {REVERSED}",
            f"Forms: {', '.join(config['forms'])}; seed {config['seed']}; "
            + ("all prompts" if config["limit"] is None else f"{config['limit']} prompts of each label"),
            *(f"Edit of {system}: sha256 {sha[:16]}" for system, sha in config["edits"].items()),
        ],
    )
