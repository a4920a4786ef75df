"""What a run of self-judgement found: how well refusals are recognised, against controls."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mechsafety.claims import Contrast, Estimate, corrected_over, decide, of_values, paired_counts
from mechsafety.claims.sentences import change, counted, level
from mechsafety.claims.tables import control_table
from mechsafety.judges.selfjudgement import NETWORKS
from mechsafety.plots.style import system_names

_SHUFFLED = "shuffled labels"
_CONTROLS = {
    "shuffled": "the same answer after another prompt",
    "length": "shortness of the answer alone",
    "untrained": f"the highest of {NETWORKS} untrained networks",
}


def findings(table: pd.DataFrame) -> list[str]:
    """Per cell the AUROC, whether it goes beyond each control, and whether its yes and no go beyond one same word."""
    controls, words = _contrasts(table)
    said = []
    for (subject, row), answered in zip(_cells(table), words, strict=True):
        said += _recognised(subject, row)
        said += [change(decide(c)) for c in controls if c.subject == subject]
        said.append(change(decide(answered)))
    return said


def controls_table(table: pd.DataFrame) -> pd.DataFrame:
    """Each cell's recognition of refusals beside each control, and whether it holds beyond that."""
    controls, words = _contrasts(table)
    return control_table([decide(contrast) for contrast in [*controls, *words]])


def _contrasts(table: pd.DataFrame) -> tuple[list[Contrast], list[Contrast]]:
    cells = _cells(table)
    controls = corrected_over([c for cell in cells for c in _against_controls(*cell)], "controls")
    return controls, corrected_over([_against_majority(*cell) for cell in cells], "kinds of question")


def _cells(table: pd.DataFrame) -> list[tuple[str, dict[Any, Any]]]:
    names = system_names(table["system"])
    return [(_subject(row, names[row["system"]]), row) for row in table.to_dict(orient="records")]


def _subject(row: dict[Any, Any], name: str) -> str:
    whose = "its own" if row["judge_arm"] == row["response_arm"] else f"the {row['response_arm']} model's"
    how = "by log-probability" if row["form"] == "logit" else "in words"
    return f"{name}, {row['judge_arm']}, about {whose} answers {how}"


def _recognised(subject: str, row: dict[Any, Any]) -> list[str]:
    """The AUROC; where there is none, how many answers are refusals."""
    said = [level(subject, "AUROC", _own(row), unit="AUROC")]
    if row["auc"] != row["auc"]:
        said.append(counted(subject, row["refusals"], row["readable"], "answers are refusals"))
    return said


def _own(row: dict[Any, Any]) -> Estimate:
    return Estimate(value=row["auc"], low=row["low"], high=row["high"], unread=row["unparsed"])


def _against_controls(subject: str, row: dict[Any, Any]) -> list[Contrast]:
    """The AUROC against that of shuffled labels, and of the controls that the form of the question has."""
    known = row["auc"] == row["auc"]
    shuffled = Estimate(
        value=0.5 if known else row["auc"], low=row["auc_labels_low"], high=row["auc_labels_high"]
    )
    beside = [(_SHUFFLED, shuffled, "label shuffles", row["p_labels"])]
    if row["form"] == "logit":
        beside += [
            (state, Estimate(value=row[f"auc_{name}"]), "exchange of ranks", row[f"p_{name}"])
            for name, state in _CONTROLS.items()
        ]
    return [
        of_values(
            subject=subject,
            measure="AUROC",
            unit="AUROC",
            states=(state, "the answer itself"),
            before=before,
            after=_own(row),
            difference=Estimate(value=row["auc"] - before.value),
            test=test,
            p=p,
        )
        for state, before, test, p in beside
    ]


def _against_majority(subject: str, row: dict[Any, Any]) -> Contrast:
    n, unread = row["readable"] - row["unparsed"], row["unparsed"]
    return paired_counts(
        subject=subject,
        measure="answers judged as by the outside judge",
        n=n,
        hits=round(row["majority"] * n) if n else 0,
        lost=row["majority_only"],
        gained=row["own_only"],
        unread=(0, unread),
        states=("always the commoner word", "its own word"),
    )
