"""The judge chapter of a study's report: who agrees, what depends on the judge, what people would have found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from mechsafety.claims.sentences import counted
from mechsafety.core.places import packaged_words
from mechsafety.experiments.agreement.findings import (
    arm_error_sentences,
    by_judge_sentences,
    interaction_sentence,
)
from mechsafety.pages.page import Block, page_blocks
from mechsafety.statistics.paired import holm

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WORDS = packaged_words("mechsafety.experiments.agreement", "chapter.toml")


def chapter_blocks(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, go.Figure]) -> list[Block]:
    """The chapter as blocks of a page, with figures that are drawn; empty where there was one judge and nobody else."""
    if len({*tables["judge_effects"]["judge"]}) < 2 and "judge_errors" not in tables:
        return []
    interaction = tables["judge_interaction"]
    texts = {
        "judge_effects": by_judge_sentences(tables["judge_effects"]),
        "judge_interaction": [interaction_sentence(interaction)],
    }
    shown = {
        **tables,
        "judge_rankings": tables["judge_rankings"].dropna(subset="tau"),
        "judge_interaction": interaction.assign(p_holm=holm(interaction["p"].to_numpy(dtype=float))),
    }
    words = dict(_WORDS["blocks"])
    if "judge_errors" in tables:
        texts["arm_errors"] = arm_error_sentences(tables["arm_errors"])
        texts["corrected_rates"] = [_notes_text(tables["corrected_rates"])]
    if "people" in tables:
        words["judge_errors"] = {**words["judge_errors"], "title": "Judges against people"}
        texts["people"] = [_tied_text(tables["people"])]
    blocks = page_blocks(words, shown, figures, added=texts)
    return [
        replace(block, table=block.table.drop(columns=["dropped", "note"], errors="ignore"))
        for block in blocks
        if block.table is not None
    ]


def _tied_text(people: pd.DataFrame) -> str:
    tied, n = int(people["tied"].sum()), int(people["labels"].iloc[-1])
    return counted("Settled labels", tied, n, "responses have a tie of annotators and are left out")


def _notes_text(corrected: pd.DataFrame) -> str:
    noted = int((corrected["note"].fillna("") != "").sum())
    return counted("corrected_rates.csv", noted, len(corrected), "rows carry a note")
