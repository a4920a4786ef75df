"""How many labels a finished study needs before its rates can be corrected."""

from __future__ import annotations

import math

import pandas as pd

from mechsafety.core.wording import listed
from mechsafety.statistics.planning import labels_for_correction
from mechsafety.statistics.tables import ABSTAINING_JUDGES, ARMS

WIDTHS = (0.1, 0.2, 0.3)
ASSUMED = 0.9
"""Sensitivity and specificity of a judge of which nothing is known yet."""


def label_plan(
    rates: pd.DataFrame,
    judge: str,
    *,
    width: float,
    sensitivity: float = ASSUMED,
    specificity: float = ASSUMED,
) -> pd.DataFrame:
    """Per arm and prompt label, all systems together: responses read, the judge's rate, labels needed.

    ``labels`` are drawn alike within the row; missing where no number is enough for the width.
    """
    rows = []
    for (arm, label), group in rates[(rates["judge"] == judge).to_numpy()].groupby(
        ["arm", "label"], sort=False
    ):
        read = int((group["n"] - group["unparsed"]).sum())
        # The plan divides by the variance at the rate: one refusal more or less keeps it off 0 and 1.
        rate = (group["refusal"].sum() + 1) / (read + 2)
        needed = labels_for_correction(
            rate=float(rate),
            responses=max(1, read),
            width=width,
            sensitivity=sensitivity,
            specificity=specificity,
        )
        rows.append({"arm": arm, "label": label, "responses": read, "rate": rate, "labels": needed})
    return pd.DataFrame(rows, columns=["arm", "label", "responses", "rate", "labels"]).astype(
        {"labels": "Int64"}
    )


def plan_sentences(rates: pd.DataFrame, judge: str) -> list[str]:
    """What labels it would take to correct the harmful rates of both arms; nothing for a judge that needs none."""
    if judge in ABSTAINING_JUDGES or judge.startswith("key:"):
        return []
    needs = [text for width in WIDTHS if (text := _need(label_plan(rates, judge, width=width), width))]
    if not needs:
        return []
    return [
        f"These rates are those of the judge {judge}, not corrected by labels. Labels of harmful prompts for a "
        f"corrected rate of each arm, all systems together, with a 95 % interval of a chosen width: {'; '.join(needs)} "
        f"(if the judge's sensitivity and specificity are {ASSUMED:g}; mechsafety plan-labels for others)."
    ]


def _need(plan: pd.DataFrame, width: float) -> str:
    harmful = plan[(plan["label"] == "harmful").to_numpy()].set_index("arm")
    if set(harmful.index) != set(ARMS) or not (harmful["responses"] > 0).all():
        return ""
    short = [arm for arm in ARMS if pd.isna(harmful.loc[arm, "labels"])]
    if short:
        return f"{width:g} wide needs more than the {harmful['responses'].max()} responses of an arm"
    whole = plan.groupby("arm")["responses"].sum()
    # Drawn alike over an arm, labels fall on harmless prompts too.
    drawn = max(
        math.ceil(int(harmful.loc[arm, "labels"]) * whole[arm] / int(harmful.loc[arm, "responses"]))
        for arm in ARMS
    )
    each = listed([f"{int(harmful.loc[arm, 'labels'])} {arm}" for arm in ARMS])
    return f"{width:g} wide {each} (mechsafety annotate RUN --labels {2 * drawn} --balanced)"
