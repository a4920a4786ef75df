"""The judge chapter of a study's report: who agrees, what depends on the judge, what people would have found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from mechsafety.core.places import packaged_words
from mechsafety.experiments.agreement.findings import arm_error_summary
from mechsafety.pages.page import Block, page_blocks
from mechsafety.plots.style import system_names
from mechsafety.statistics import holm

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WORDS = packaged_words("mechsafety.experiments.agreement", "chapter.toml")


def chapter_blocks(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, go.Figure]) -> list[Block]:
    """The chapter as blocks of a page, with figures that are drawn; empty where there was one judge and nobody else."""
    if len({*tables["judge_effects"]["judge"]}) < 2 and "judge_errors" not in tables:
        return []
    texts = {
        "judge_effects": _effects_text(tables["judge_flips"]),
        "judge_interaction": _interaction_text(tables["judge_interaction"]),
    }
    shown = {**tables, "judge_rankings": tables["judge_rankings"].dropna(subset="tau")}
    words = dict(_WORDS["blocks"])
    if "judge_errors" in tables:
        texts["arm_errors"] = arm_error_summary(tables["arm_errors"])
        texts["corrected_rates"] = _notes_text(tables["corrected_rates"])
    if "people" in tables:
        words["judge_errors"] = {**words["judge_errors"], "title": "Judges against people"}
        texts["people"] = _people_text(tables["people"])
    blocks = page_blocks(words, shown, figures, added={name: [text] for name, text in texts.items()})
    return [
        replace(block, table=block.table.drop(columns=["dropped", "note"], errors="ignore"))
        for block in blocks
        if block.table is not None
    ]


def _effects_text(flips: pd.DataFrame) -> str:
    harmful = flips[flips["label"] == "harmful"]
    sentences, names = [], system_names(flips["system"])
    for row in harmful.to_dict(orient="records"):
        sign, level, of = (int(row[k]) for k in ("sign_flips", "significance_flips", "alternatives"))
        name, primary = names[str(row["system"])], row["primary"]
        if not of:
            continue
        if not sign and not level:
            sentences.append(f"{name}: all {of} alternatives to {primary} agree.")
        else:
            sentences.append(
                f"{name}: {sign} of {of} alternatives to {primary} turn the sign and {level} the significance."
            )
    return " ".join(sentences) + (
        " An alternative is another judge or another reading of the labels; p values here are not corrected, since "
        "they are readings of one result. An interval and an exact test can part by a hair."
    )


def _interaction_text(interaction: pd.DataFrame) -> str:
    about = (
        "Difference: how much more the first judge's rate moves than the second's. The p value is exact, by sign "
        "changes of each prompt's sum."
    )
    tested = interaction[interaction["p"].notna().to_numpy()]
    if tested.empty:
        return "No two judges read the same pairs of answers. " + about
    corrected = holm(tested["p"].to_numpy())
    found = tested[corrected < 0.05]
    about += (
        f" The table's p values are not corrected; this sentence is, by Holm over its {len(tested)} tests."
    )
    if found.empty:
        return "No difference between two judges in how far the edit moves their rates was found. " + about
    names = system_names(interaction["system"])
    pairs = ", ".join(
        f"{r['judge_a']} and {r['judge_b']} ({names[str(r['system'])]}, {r['label']})"
        for r in found.to_dict(orient="records")
    )
    return f"The edit moves the rates of these judges differently: {pairs}. {about}"


def _people_text(people: pd.DataFrame) -> str:
    tied = int(people["tied"].sum())
    about = "Labels by annotator; settled is the majority."
    if not tied:
        return about
    return (
        f"{about} {tied} responses on which annotators tie are left out of every comparison with people. They are the "
        "hard ones: without them judges look better than they are."
    )


def _notes_text(corrected: pd.DataFrame) -> str:
    """How many rows carry a note; which one is in corrected_rates.csv."""
    noted = int((corrected["note"].fillna("") != "").sum())
    return f"{noted} of {len(corrected)} rows carry a note in corrected_rates.csv." if noted else ""
