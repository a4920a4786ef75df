"""The contrasts of a regions run: the model without some weights against the whole one, beside random removals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from mechsafety.claims import Claim, Contrast, Control, corrected_over, decide, paired_binary, paired_control
from mechsafety.claims.draws import control_of_draws, least_sure, least_sure_control, paired_draws
from mechsafety.claims.shared import Tables, once

REMOVAL_NAMES = {
    "set_difference": "set difference",
    "orthogonal_projection": "orthogonal projection",
    "top_safety": "top safety weights alone",
    "pruning": "plain pruning",
    "heads": "best heads",
}
CONTROLS: Mapping[str, str] = {
    "random": "random removals of the same number",
    "matched": "random removals of the same number and size",
}
"""What a removal is compared with, by the name in tables."""
MODE_NAMES = {"freeze": "frozen", "rewind": "rewound"}
Verdicts = dict[object, str]


def removals_of(tradeoff: pd.DataFrame) -> list[str]:
    """What was removed, in the order of the table."""
    return [name for name in dict.fromkeys(tradeoff["removal"]) if name != "none"]


def mode_name(mode: str, frozen: str) -> str:
    """``safety frozen``: what was kept in the fine-tuning, and how."""
    return "nothing kept" if mode == "none" else f"{frozen} {MODE_NAMES.get(mode, mode)}"


_LINKED = {
    "ablated": "direction ablated",
    "removed": "region removed",
    "removed then ablated": "region removed, then direction ablated",
}


@once
def removal_claims(tables: Tables, label: str) -> dict[tuple[str, str], list[Claim]]:
    """Refusals of a label's prompts without what each setting removes, by removal and setting.

    A claim for each control that was measured (one without where there is none): the change is the same in all, of the
    calibration draw with the largest p. Corrected over all settings. Empty where the run holds no verdicts by prompt.
    """
    states = _states(tables, "outcomes", label, ["removal", "setting", "control", "draw"])
    before = next((v for (_, _, control, _), v in states.items() if control == "model"), {})
    drawn: dict[tuple[str, str], dict[str, list[Verdicts]]] = {}
    for (removal, setting, control, _), found in states.items():
        if control != "model":
            drawn.setdefault((removal, setting), {}).setdefault(control, []).append(found)
    changes = {
        (removal, setting): paired_draws(
            before,
            found.get("removed", []),
            subject=f"{REMOVAL_NAMES.get(removal, removal)} {setting}, {label} prompts",
            measure="refusals",
            states=("whole", "removed"),
        )
        for (removal, setting), found in drawn.items()
    }
    controls = {
        control: [
            control_of_draws(name, drawn[key].get("removed", []), drawn[key].get(control, []))
            for key in changes
        ]
        for control, name in CONTROLS.items()
    }
    return _with_controls(changes, controls, "settings")


def _with_controls(
    changes: Mapping[Any, Contrast], controls: Mapping[str, list[Control | None]], family_of: str
) -> dict[Any, list[Claim]]:
    """Every change with each of its controls; corrected over all changes, and over those of one control."""
    found: dict[Any, list[Claim]] = {key: [] for key in changes}
    alone = corrected_over(list(changes.values()), family_of)
    for several in controls.values():
        beside = [replace(c, control=control) for c, control in zip(changes.values(), several, strict=True)]
        for key, contrast in zip(changes, corrected_over(beside, family_of), strict=True):
            if contrast.control is not None:
                found[key].append(decide(contrast))
    return {key: found[key] or [decide(c)] for key, c in zip(changes, alone, strict=True)}


@once
def link_claims(tables: Tables) -> list[Claim]:
    """Removal, ablation and both against the whole model, removals beside their random removal."""
    states = {state: v for (state,), v in _states(tables, "links", "harmful", ["control"]).items()}
    before = states.pop("model", {})
    contrasts = []
    for state, after in states.items():
        if state.startswith("random"):
            continue
        subject = f"{_LINKED.get(state, state)}, harmful prompts"
        contrast = paired_binary(before, after, subject=subject, measure="refusals", states=("whole", state))
        random = [states[f"random {state}"]] if f"random {state}" in states else []
        control = paired_control("its random removal", after, random) if random else None
        contrasts.append(replace(contrast, control=control))
    return [decide(contrast) for contrast in corrected_over(contrasts, "states")]


@once
def freezing_claims(tables: Tables) -> list[Claim]:
    """Compliance after the most fine-tuning with weights kept, against nothing kept, beside random weights kept."""
    if "freezing" not in tables:
        return []
    table = tables["freezing"]
    n = int(table["n_examples"].max())
    states = _states(tables, "freezing", "harmful", ["setting", "draw"])
    by_set: dict[str, dict[object, Verdicts]] = {}
    for (setting, seed), found in states.items():
        by_set.setdefault(setting, {})[seed] = found
    free = by_set.get(f"none none n={n}", {})
    contrasts = []
    for (mode, frozen), _ in table[table["mode"] != "none"].groupby(["mode", "frozen"], sort=False):
        kept = by_set.get(f"{frozen} {mode} n={n}", {})
        seeds = [seed for seed in kept if seed in free]
        if str(frozen).startswith("random") or not seeds:
            continue
        contrast = least_sure(
            [
                paired_binary(
                    free[seed],
                    kept[seed],
                    subject=f"{mode_name(str(mode), str(frozen))}, {n} benign examples",
                    measure="compliance with harmful prompts",
                    is_hit="compliance",
                    states=("nothing kept", "kept"),
                )
                for seed in seeds
            ]
        )
        random = by_set.get(f"{_random_of(str(frozen))} {mode} n={n}", {})
        beside = [
            paired_control("random weights kept", kept[seed], [random[seed]], is_hit="compliance")
            for seed in seeds
            if seed in random
        ]
        contrasts.append(replace(contrast, control=least_sure_control(beside) if beside else None))
    return [decide(contrast) for contrast in corrected_over(contrasts, "sets")]


def _random_of(frozen: str) -> str:
    """The name of a set's random control (:func:`mechsafety.experiments.regions.followups.freezing`)."""
    return frozen.replace("top ", "random ") if frozen.startswith("top ") else "random of that size"


def _states(tables: Tables, part: str, label: str, keys: list[str]) -> dict[tuple[Any, ...], Verdicts]:
    """The verdict on each prompt of a label by its id, by the state of the model; empty without such a table."""
    table = tables.get("verdicts")
    if table is None:
        return {}
    rows = table[(table["part"] == part) & (table["label"] == label)]
    return {
        key: dict(zip(found["id"], found["verdict"], strict=True))
        for key, found in rows.groupby(keys, sort=False)
    }
