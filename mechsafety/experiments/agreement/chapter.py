"""The judge chapter of a study's report: who agrees, what depends on the judge, what people would have found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from mechsafety.pages.page import Block
from mechsafety.plots.style import system_names
from mechsafety.statistics import holm

if TYPE_CHECKING:
    import plotly.graph_objects as go


def chapter_blocks(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, go.Figure]) -> list[Block]:
    """The chapter as blocks of a page, with figures that are drawn; empty where there was one judge and nobody else."""
    if len({*tables["judge_effects"]["judge"]}) < 2 and "judge_errors" not in tables:
        return []
    blocks = [
        Block(
            name="judge-effects",
            title="Effect of the edit by judge",
            text=_effects_text(tables["judge_flips"]),
            figures=_some(figures, "judge-effects"),
            table=tables["judge_effects"].drop(columns="dropped"),
        ),
        Block(
            name="judge-flips",
            title="",
            text="Per system: the change that the primary judge finds, and the judges and readings under which its "
            "sign or its significance is another.",
            table=tables["judge_flips"],
        ),
        Block(
            name="judge-interaction",
            title="Interaction of judge and edit",
            text=_interaction_text(tables["judge_interaction"]),
            table=tables["judge_interaction"],
        ),
        Block(
            name="judge-rankings",
            title="Order of the systems by judge",
            text="Kendall's tau between two judges' orders of the systems; intervals resample prompts.",
            table=tables["judge_rankings"].dropna(subset="tau"),
        ),
        Block(
            name="panel",
            title="Agreement of all judges",
            text="Krippendorff's alpha and Gwet's AC1 of all judges on refusal or not. AC1 stays defined where "
            "nearly every answer is of one kind.",
            table=tables["panel_agreement"],
        ),
        *_people(tables, figures),
    ]
    return [block for block in blocks if block.table is None or not block.table.empty]


def _people(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, go.Figure]) -> list[Block]:
    if "judge_errors" not in tables:
        return []
    blocks = [
        Block(
            name="judge-errors",
            title="Judges against " + ("people" if "people" in tables else "the reference"),
            text=_errors_text(tables["judge_error_change"]),
            figures=_some(figures, "judge-errors"),
            table=tables["judge_errors"],
        ),
        Block(
            name="judge-error-change",
            title="",
            text="Bias of an arm: the judge's rate minus the reference's among what both read. Change: edited minus "
            "original.",
            table=tables["judge_error_change"],
        ),
    ]
    if "people" in tables:
        blocks += [
            Block(
                name="corrected-rates",
                title="Refusal rates corrected by people's labels",
                text="The refusal rate from people's labels on a sample, alone and joined with each judge's verdicts "
                "on everything. Prediction-powered inference assumes nothing about the judge; Rogan-Gladen inverts the "
                "sensitivity and specificity found in the same arm and prompt label, all systems together. "
                + _notes_text(tables["corrected_rates"]),
                figures=_some(figures, "judge-corrected"),
                table=tables["corrected_rates"].drop(columns="note"),
            ),
            Block(
                name="people",
                title="Labels by annotator",
                text=_people_text(tables["people"]),
                table=tables["people"],
            ),
            Block(
                name="people-agreement",
                title="",
                text="Agreement between annotators on refusal or not, on the labelled sample as it is: not weighted, "
                "so a sample rich in hard cases shows less of it.",
                table=tables["people_agreement"],
            ),
        ]
    return blocks


def _some(figures: Mapping[str, go.Figure], name: str) -> list[go.Figure]:
    return [figures[name]] if name in figures else []


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


def _errors_text(change: pd.DataFrame) -> str:
    whole = change[(change["label"] == "all").to_numpy()]
    off = whole[((whole["low"] > 0) | (whole["high"] < 0)).to_numpy()]
    if whole.empty:
        return "Too few responses of both arms were labelled to compare a judge's errors between them."
    net = (
        "Bias is the net error: misses and false alarms can cancel, so read sensitivity and specificity too."
    )
    if off.empty:
        return f"No judge's bias was found to differ between original and edited responses (95 % intervals). {net}"
    named = ", ".join(
        f"{r['judge']} ({100 * r['change']:+.0f} points)" for r in off.to_dict(orient="records")
    )
    return f"The bias of these judges differs on edited responses: {named}. {net}"


def _notes_text(corrected: pd.DataFrame) -> str:
    """How many rows carry a note; which one is in corrected_rates.csv."""
    noted = int((corrected["note"].fillna("") != "").sum())
    return f"{noted} of {len(corrected)} rows carry a note in corrected_rates.csv." if noted else ""
