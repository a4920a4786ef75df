"""What a run of self-judgement found, in sentences."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mechsafety.core.wording import interval
from mechsafety.plots.style import system_names

_FEWEST = 5  # answers of the rarer class below which an AUC says next to nothing
_SHORTCUTS = ("auc_shuffled", "auc_length")


def findings(table: pd.DataFrame) -> list[str]:
    """One sentence per cell: how well refusals are recognised, against the controls."""
    names = system_names(table["system"])
    return [_finding(row, names[row["system"]]) for row in table.to_dict(orient="records")]


def _finding(row: dict[Any, Any], name: str) -> str:
    whose = "its own" if row["judge_arm"] == row["response_arm"] else f"the {row['response_arm']} model's"
    how = "by log-probability" if row["form"] == "logit" else "in words"
    text = f"{name}, {row['judge_arm']}, about {whose} answers {how}: "
    unreadable = f"{row['unparsed']} of {row['readable']} replies unreadable"
    if row["auc"] != row["auc"]:
        return f"{text}AUC undefined ({row['refusals']} of {row['readable']} answers are refusals, {unreadable})."
    text += f"AUC {row['auc']:.2f} {interval(row['low'], row['high'])}"
    fewest = min(row["refusals"], row["readable"] - row["refusals"])
    if fewest < _FEWEST:
        text += f", from {row['refusals']} refusals among {row['readable']} answers: too few to say"
    elif controls := [row[name] for name in _SHORTCUTS if row[name] == row[name]]:
        above = "above" if row["low"] > max(controls) else "not clearly above"
        text += f", {above} the best control ({max(controls):.2f})"
    text += (
        f"; agrees with the outside judge on {row['agreement']:.0%}, always saying the commoner would on "
        f"{row['majority']:.0%}"
    )
    return f"{text}; {unreadable}." if row["unparsed"] else f"{text}."
