"""What a study found: one contrast per system and kind of prompt, and what its judges and labels show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mechsafety.claims import (
    Contrast,
    Estimate,
    corrected_over,
    decide,
    paired_binary,
    paired_control,
    sentences,
)
from mechsafety.claims.rows import named
from mechsafety.claims.sentences import change, counted, extremes, level
from mechsafety.claims.shared import once
from mechsafety.core import wording
from mechsafety.experiments.agreement.findings import (
    arm_error_sentences,
    by_judge_sentences,
    corrected_contrasts,
    disagreement_sentences,
)
from mechsafety.experiments.agreement.planning import plan_sentences
from mechsafety.experiments.served import served_sentences
from mechsafety.judges.label_order import order_sentences
from mechsafety.judges.panel import members_of
from mechsafety.plots.style import system_names
from mechsafety.statistics.tables import ABSTAINING_JUDGES, ARMS, PROMPT_LABELS

_COHERENT = {"refusal": "coherent", "compliance": "coherent"}
Verdicts = dict[object, str]


def measured_systems(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The systems of a study's manifest that have rows in its tables."""
    return {name: facts for name, facts in manifest.get("systems", {}).items() if "failed" not in facts}


def failed_systems(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Why the others have none."""
    return {name: facts["failed"] for name, facts in manifest.get("systems", {}).items() if "failed" in facts}


def failure_lines(failed: Mapping[str, str], names: Mapping[str, str] | None = None) -> list[str]:
    """A sentence for every system that could not be measured, under the names that are shown."""
    return [f"Not measured: {(names or {}).get(system, system)}: {why}" for system, why in failed.items()]


def headline(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> list[str]:
    """What the page begins with.

    Judges that are unusable by what they make of known answers come first, the primary one before others. Where there
    are labels, whether the primary judge errs alike in both arms and the corrected rates are next; else the last
    sentence is how many labels it would take. Then what each system refuses, and what depends on the judge.
    """
    if "verdicts" not in tables:
        return []
    judge = manifest["config"]["judges"][0]
    labelled = "arm_errors" in tables
    correctable = not labelled or judge in set(tables["judge_errors"]["judge"])
    corrected = corrected_contrasts(tables, primary=judge)
    return [
        *(_unusable(tables["judge_checks"], judge) if "judge_checks" in tables else []),
        *(arm_error_sentences(tables["arm_errors"], primary=judge) if labelled else []),
        *(change(decide(contrast)) for contrast in corrected),
        *study_findings(tables, manifest),
        *_of_servers(tables, manifest),
        *_of_judges(tables, judge),
        *(plan_sentences(tables["rates"], judge) if correctable and not corrected else []),
    ]


def study_findings(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> list[str]:
    """What the edit does to the answers of each system, by the primary judge."""
    systems = measured_systems(manifest)
    names = system_names(systems)
    harmful, harmless = (refusal_contrasts(tables, manifest, label=label) for label in PROMPT_LABELS)
    coherent = coherence_contrasts(tables, manifest)
    found: list[str] = []
    for system, facts in systems.items():
        if system in harmful:
            found += sentences(harmful[system])
            found += _of_draws(tables, system, names[system], manifest["config"]["judges"][0])
            found.append(change(decide(coherent[system])))
        if system in harmless:
            found += sentences(harmless[system])
        found += _of_selection(names[system], facts)
    return found


@once
def refusal_contrasts(
    tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any], *, label: str
) -> dict[str, Contrast]:
    """Per system refusals of the original and of the edited model, with the random arm, corrected over the systems."""
    found = {}
    for system, (subject, arms) in _read_arms(tables["verdicts"], manifest, label=label).items():
        contrast = paired_binary(*arms, subject=subject, measure="refusals")
        drawn = _random_arms(tables, system, manifest["config"]["judges"][0]) if label == "harmful" else []
        draws = wording.counted(len(drawn), "random direction")
        control = paired_control(draws, arms[1], drawn) if drawn else None
        found[system] = replace(contrast, control=control)
    return dict(zip(found, corrected_over([*found.values()], "systems"), strict=True))


@once
def coherence_contrasts(
    tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]
) -> dict[str, Contrast]:
    """Per system the answers to harmful prompts that are not degenerate, corrected over the systems."""
    found = {}
    for system, (subject, arms) in _read_arms(tables["verdicts"], manifest, label="harmful").items():
        both = [{i: _COHERENT.get(v, v) for i, v in arm.items()} for arm in arms]
        found[system] = paired_binary(*both, subject=subject, measure="coherent answers", is_hit="coherent")
    return dict(zip(found, corrected_over([*found.values()], "systems"), strict=True))


def _read_arms(
    verdicts: pd.DataFrame, manifest: Mapping[str, Any], *, label: str
) -> dict[str, tuple[str, tuple[Verdicts, Verdicts]]]:
    """By measured system what its contrasts are about, and the primary judge's verdicts of its two arms."""
    judge, systems = manifest["config"]["judges"][0], measured_systems(manifest)
    names, found = system_names(systems), {}
    mine = verdicts[((verdicts["judge"] == judge) & (verdicts["label"] == label)).to_numpy()]
    for system in systems:
        rows = mine[(mine["system"] == system).to_numpy()]
        original, edited = (_by_id(rows[(rows["arm"] == arm).to_numpy()], judge) for arm in ARMS)
        if len(rows):
            found[system] = (f"{names[system]}, {label} prompts", (original, edited))
    return found


def _random_arms(tables: Mapping[str, pd.DataFrame], system: str, judge: str) -> list[Verdicts]:
    if "random_verdicts" not in tables:
        return []
    table = tables["random_verdicts"]
    mine = table[((table["judge"] == judge) & (table["system"] == system)).to_numpy()]
    return [_by_id(rows, judge) for _, rows in mine.groupby("arm", sort=False, observed=True)]


def _by_id(rows: pd.DataFrame, judge: str) -> Verdicts:
    read = ["unparsed"] * len(rows) if judge in ABSTAINING_JUDGES else map(str, rows["verdict"])
    return dict(zip(rows["id"], read, strict=True))


def _of_draws(tables: Mapping[str, pd.DataFrame], system: str, name: str, judge: str) -> list[str]:
    """How much of the stream random directions take away, and, of many, the rank of the edit among them."""
    if "controls" not in tables:
        return []
    table = tables["controls"]
    drawn = table[((table["system"] == system) & (table["judge"] == judge)).to_numpy()]
    if drawn.empty:
        return []
    ratios = (drawn["energy"] / drawn["energy_direction"]).where(drawn["energy_direction"] > 0)
    energies = named(drawn.assign(ratio=ratios), lambda row: f"draw {row['draw']}", "ratio")
    measure = "energy over that of the direction"
    found = [extremes(name, measure, energies, unit="", of="random directions")]
    if (rank := float(drawn["p_rank"].iloc[0])) == rank:
        as_few = round(rank * (len(drawn) + 1)) - 1
        what = "random directions leave as few refusals or fewer"
        found.append(counted(f"{name}, harmful prompts", as_few, len(drawn), what))
    return found


def _of_selection(name: str, facts: Mapping[str, Any]) -> list[str]:
    """What the record says of a candidate that its scores did not show to be one."""
    if (why := facts.get("no_gap")) is not None:
        read = facts["selection"].get("confirmed") is not None
        taken = (
            "the candidate was taken by what the model writes"
            if read
            else "the nearest candidate was removed"
        )
        return [f"{name}: by its scores {why}; {taken}."]
    failed = facts["selection"].get("failed")
    return [f"{name}: the candidate that was removed fails {wording.listed(failed)}."] if failed else []


def _of_servers(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> list[str]:
    """Of each arm that a server was asked for, how it agrees with this process, and why it did not answer."""
    if "served" not in tables:
        return []
    names, found = system_names(measured_systems(manifest)), []
    for row in tables["served"].to_dict(orient="records"):
        compared = row["prompts"] == row["prompts"]  # empty where nothing was
        agreement = {name: int(row[name]) for name in ("equal", "prompts")} if compared else None
        made = {"used": row["used"], "reason": row["reason"], "agreement": agreement}
        found += served_sentences(f"vLLM server, {names[row['system']]}, {row['arm']}", made)
    return found


def _of_judges(tables: Mapping[str, pd.DataFrame], judge: str) -> list[str]:
    """What depends on who judges and on how judges are asked."""
    found = by_judge_sentences(tables["judge_effects"])
    if "agreement" in tables:
        found += disagreement_sentences(tables["verdicts"], tables["agreement"], primary=judge)
    if "label_order" in tables:
        found += order_sentences(tables["label_order"])
    if "judge_checks" in tables:
        found += _of_checks(tables["judge_checks"].to_dict(orient="records"))
    return found


def _unusable(checks: pd.DataFrame, primary: str) -> list[str]:
    """A sentence for every judge that failed on known answers; it may be a member of a panel."""
    failed = {str(row["judge"]): row.get("unusable") for _, row in checks.iterrows()}
    return [
        f"Unusable judge: {judge}: {why}."
        for judge, why in sorted(failed.items(), key=lambda one: one[0] not in members_of(primary))
        if isinstance(why, str) and why  # empty is NaN in a file
    ]


def _of_checks(rows: Sequence[Mapping[Any, Any]]) -> Iterator[str]:
    for row in rows:
        right = Estimate.of_counts(row["agreed"], row["n"] - row["unparsed"], unread=row["unparsed"])
        yield level(row["judge"], "verdicts that are right on answers with known labels", right)
