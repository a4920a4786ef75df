"""How many labels a finished study needs before its rates can be corrected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechsafety.claims.sentences import counted, missing
from mechsafety.statistics.planning import labels_for_correction
from mechsafety.statistics.tables import ABSTAINING_JUDGES

WIDTH = 0.2
"""Of the interval for which a study says how many labels it takes."""
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
    """How many labels it takes to correct the harmful rate of each arm; nothing for a judge that needs none."""
    if judge in ABSTAINING_JUDGES or judge.startswith("key:"):
        return []
    plan = label_plan(rates, judge, width=WIDTH)
    rows = plan[((plan["label"] == "harmful") & (plan["responses"] > 0)).to_numpy()]
    return [_needed(row, judge) for row in rows.to_dict(orient="records")]


def _needed(row: Mapping[Any, Any], judge: str) -> str:
    subject = f"Labels to correct the rate of {judge} of harmful prompts, {row['arm']}"
    if pd.isna(row["labels"]):
        return missing(subject, f"no number of labels gives a 95 % interval {WIDTH:g} wide")
    what = f"responses for a 95 % interval {WIDTH:g} wide, at a sensitivity and specificity of {ASSUMED:g} of the judge"
    return counted(subject, int(row["labels"]), int(row["responses"]), what)
