"""What labels and other judges show about a run's judges and its rates: contrasts, and their sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from mechsafety.claims import Claim, Contrast, Estimate, corrected_over, decide, of_values, paired_counts
from mechsafety.claims.numbers import ALPHA
from mechsafety.claims.rows import counts_in
from mechsafety.claims.sentences import by_judge, change, counted, disagreement
from mechsafety.core.wording import listed
from mechsafety.plots.style import system_names
from mechsafety.statistics.paired import holm

_MEASURES = {
    "sensitivity": "sensitivity against the reference",
    "specificity": "specificity against the reference",
}
_PRIMARY = "refusal"  # the reading of labels that has no name of its own


def reference_name(tables: Mapping[str, pd.DataFrame]) -> str:
    """What the rates are corrected by."""
    if "people" not in tables:
        return "the reference judge"
    names = [name for name in tables["people"]["annotator"] if name != "settled"]
    return f"people's labels ({listed(names)})" if len(names) < 4 else f"the labels of {len(names)} people"


def arm_error_contrasts(table: pd.DataFrame) -> list[Contrast]:
    """Each judge's sensitivity and specificity in both arms, corrected over all of them."""
    found = []
    for row in table.to_dict(orient="records"):
        p = float(row["p"])
        contrast = of_values(
            subject=str(row["judge"]),
            measure=_MEASURES[row["measure"]],
            unit="share",
            states=("original", "edited"),
            before=_of_arm(row, "original"),
            after=_of_arm(row, "edited"),
            difference=Estimate.of_row(row, "change", "low", "high"),
            test="Boschloo's exact test",
            p=p,
        )
        found.append(contrast if p == p else replace(contrast, why="too few labels in an arm"))
    return corrected_over(found, "judges and kinds of error")


def arm_error_sentences(table: pd.DataFrame, *, primary: str = "") -> list[str]:
    """Those of the primary judge, those of others that are shown to err differently in the arms, and how many do."""
    claims = [decide(contrast) for contrast in arm_error_contrasts(table)]
    named = [change(c) for c in claims if c.contrast.subject == primary or c.shown]
    untested = sum(c.direction == "not tested" for c in claims)
    what = "sensitivities and specificities are shown to change between the arms"
    shown = sum(c.shown for c in claims)
    return [*named, counted("All judges", shown, len(claims) - untested, what, unknown=untested)]


def corrected_contrasts(tables: Mapping[str, pd.DataFrame], *, primary: str) -> list[Contrast]:
    """Prediction-powered rates of both arms: by system where each arm of it has enough labels, and of all together."""
    if "corrected_changes" not in tables:
        return []
    table = tables["corrected_changes"]
    mine = table[(table["judge"] == primary).to_numpy()]
    names = {"all": "all systems", **system_names([s for s in mine["system"] if s != "all"])}
    return [
        of_values(
            subject=f"{names[row['system']]}, {row['label']} prompts",
            measure=f"refusals corrected by {reference_name(tables)}",
            unit="share",
            states=("original", "edited"),
            before=_of_arm(row, "original"),
            after=_of_arm(row, "edited"),
            difference=Estimate.of_row(row, "change", "low", "high"),
        )
        for row in mine.to_dict(orient="records")
    ]


def _of_arm(row: Mapping[Any, Any], arm: str) -> Estimate:
    return Estimate.of_row(row, arm, f"{arm}_low", f"{arm}_high")


def reading_claims(effects: pd.DataFrame, *, label: str) -> dict[str, dict[str, Claim]]:
    """By system, and by judge and reading of its labels: the change in refusals, corrected over the systems."""
    names, found = system_names(effects["system"]), {}
    of_label = effects[(effects["label"] == label).to_numpy()]
    for (judge, mapping), rows in of_label.groupby(["judge", "mapping"], sort=False):
        contrasts = corrected_over(
            [_of_effect(row, names) for row in rows.to_dict(orient="records")], "systems"
        )
        name = str(judge) if mapping == _PRIMARY else f"{judge} · {mapping}"
        for contrast in contrasts:
            found.setdefault(contrast.subject, {})[name] = decide(contrast)
    return found


def _of_effect(row: Mapping[Any, Any], names: Mapping[str, str]) -> Contrast:
    return paired_counts(
        subject=f"{names[str(row['system'])]}, {row['label']} prompts",
        measure="refusals",
        n=row["n"],
        hits=counts_in(row, "original", "n").hits or 0,
        lost=row["b"],
        gained=row["c"],
        unread=(row["dropped"], row["dropped"]),
    )


def by_judge_sentences(effects: pd.DataFrame) -> list[str]:
    """Under which judges and readings refusals fall, rise or are not shown to change; none where there is one alone."""
    return [
        by_judge(system, "refusals", claims, of="judges and readings")
        for label in dict.fromkeys(map(str, effects["label"]))
        for system, claims in reading_claims(effects, label=label).items()
        if len(claims) > 1
    ]


def disagreement_sentences(verdicts: pd.DataFrame, agreement: pd.DataFrame, *, primary: str) -> list[str]:
    """How often each other judge and the primary one differ on refusal or not, over both arms."""
    rows = agreement[(agreement["arm"] == "all").to_numpy()].to_dict(orient="records")
    table = verdicts.astype({"judge": str, "arm": str, "system": str})
    said = table.set_index(["judge", "system", "arm", "id"])["verdict"]
    measure, found = "answers that one calls a refusal and the other does not", []
    for a, b, kappa in ((row["judge_a"], row["judge_b"], row["kappa"]) for row in rows):
        if primary in (a, b):
            both = pd.concat([said.loc[a], said.loc[b]], axis=1, join="inner").to_numpy()
            read = [(x == "refusal", y == "refusal") for x, y in both if "unparsed" not in (x, y)]
            unread = len(both) - len(read)
            found.append(disagreement(a, b, read, kappa=kappa, measure=measure, unread=unread))
    return found


def interaction_sentence(interaction: pd.DataFrame) -> str:
    """How many pairs of judges whose rates the edit is shown to move differently."""
    adjusted = holm(interaction["p"].to_numpy(dtype=float))
    tested = int((adjusted == adjusted).sum())
    what = "differences between two judges in how far the edit moves their rates are shown (Holm over all of them)"
    return counted(
        "Pairs of judges", int((adjusted < ALPHA).sum()), tested, what, unknown=len(adjusted) - tested
    )
