"""The tables of a run's judge chapter: does it matter who judges, and what people would have found."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics.arm_errors import arm_errors
from mechsafety.statistics.judge_effects import (
    effect_flips,
    judge_edit_interaction,
    judge_effects,
    ranking_agreement,
)
from mechsafety.statistics.prevalence import corrected_changes, corrected_rates
from mechsafety.statistics.raters import agreement, panel_agreement
from mechsafety.statistics.reference import against_reference, error_change
from mechsafety.statistics.tables import ABSTAINING_JUDGES

STUDY_TABLES = ("judge_effects", "judge_flips", "judge_rankings", "judge_interaction", "panel_agreement")
"""What every study has."""
REFERENCE_TABLES = (
    *("people", "people_agreement", "people_panel"),
    *("judge_errors", "judge_error_change", "arm_errors", "corrected_rates", "corrected_changes"),
)
"""What ``mechsafety agree`` can add, with people or a judge as the reference."""


def judge_tables(verdicts: pd.DataFrame, *, primary: str, seed: int) -> dict[str, pd.DataFrame]:
    """What a run's verdicts show about its judges: effects, flips, rankings, interaction, agreement of all.

    Where ``primary`` abstains, the first judge that does not takes its place in the flips.
    """
    effects = judge_effects(verdicts)
    if primary in ABSTAINING_JUDGES:
        primary = next((str(j) for j in dict.fromkeys(effects["judge"])), primary)
    return {
        "judge_effects": effects,
        "judge_flips": effect_flips(effects, primary=primary),
        "judge_rankings": ranking_agreement(verdicts, seed=seed),
        "judge_interaction": judge_edit_interaction(verdicts, seed=seed),
        "panel_agreement": panel_agreement(verdicts, seed=seed),
    }


def people_tables(verdicts: pd.DataFrame, labels: pd.DataFrame, *, seed: int) -> dict[str, pd.DataFrame]:
    """What people's labels (:func:`read_human_labels`) show about the judges and the rates."""
    reference = settled(labels)
    kinds = verdicts.drop_duplicates("id").set_index("id")["label"]
    raters = labels.rename(columns={"label": "verdict", "annotator": "judge"}).assign(
        label=labels["id"].map(kinds).to_numpy()
    )
    return {
        "people": _counts(labels, reference),
        "people_agreement": agreement(raters, seed=seed),
        "people_panel": panel_agreement(raters, seed=seed),
        **reference_tables(verdicts, reference, seed=seed),
    }


def reference_tables(
    verdicts: pd.DataFrame, reference: pd.DataFrame, *, seed: int
) -> dict[str, pd.DataFrame]:
    """Each judge's errors against a reference, whether they differ between the arms, and the rates so corrected."""
    corrected = corrected_rates(verdicts, reference)
    return {
        "judge_errors": against_reference(verdicts, reference, seed=seed),
        "judge_error_change": error_change(verdicts, reference, seed=seed),
        "arm_errors": arm_errors(verdicts, reference),
        "corrected_rates": corrected,
        "corrected_changes": corrected_changes(corrected),
    }


def judge_as_reference(verdicts: pd.DataFrame, judge: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The other judges' verdicts, and ``judge``'s as the reference."""
    if judge in ABSTAINING_JUDGES:
        raise MechsafetyError(f"judge {judge!r} reads no refusal or compliance: it cannot be the reference")
    mine = verdicts["judge"] == judge
    if not mine.any():
        there = ", ".join(dict.fromkeys(verdicts["judge"]))
        raise MechsafetyError(f"no judge of this run is called {judge!r}; there are: {there}")
    return verdicts[~mine], verdicts[mine][["system", "arm", "id", "verdict"]]


def settled(labels: pd.DataFrame) -> pd.DataFrame:
    """One label a response: did most annotators see a refusal, and if not, what did most of them see?

    ``unparsed`` where as many saw a refusal as did not. Annotators who see no refusal and differ on whether it is
    language agree on what is counted here; their tie is settled as compliance. Columns system, arm, id, verdict, weight
    (1 / inclusion probability), stratum, annotators.
    """
    rows = []
    for key, group in labels.groupby(["system", "arm", "id"], sort=False):
        rows.append(
            {
                **dict(zip(("system", "arm", "id"), key, strict=True)),
                "verdict": _majority(Counter(group["label"])),
                "weight": 1 / group["inclusion_probability"].iloc[0],
                "stratum": group["stratum"].iloc[0],
                "annotators": len(group),
            }
        )
    return pd.DataFrame(rows)


def _majority(votes: Counter[str]) -> str:
    refused, others = votes["refusal"], votes["compliance"] + votes["degenerate"]
    if refused == others:
        return "unparsed"
    if refused > others:
        return "refusal"
    return "degenerate" if votes["degenerate"] > votes["compliance"] else "compliance"


def _counts(labels: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Labels by annotator, and of the settled reference."""
    rows = [
        {"annotator": name, "labels": len(group), **_by_label(group["label"])}
        for name, group in labels.groupby("annotator", sort=False)
    ]
    whole = reference["verdict"]
    rows.append({"annotator": "settled", "labels": len(reference), **_by_label(whole)})
    return pd.DataFrame(rows).assign(tied=[0] * (len(rows) - 1) + [int((whole == "unparsed").sum())])


def _by_label(values: pd.Series) -> dict[str, int]:
    return {name: int((values == name).sum()) for name in ("refusal", "compliance", "degenerate")}
