"""The contrasts of a regions run: the model without some weights against the whole one, beside random removals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from mechsafety.claims import Claim, Contrast, Control, corrected_over, decide, paired_binary, paired_control
from mechsafety.claims.draws import control_of_draws, least_sure, least_sure_control, paired_draws
from mechsafety.claims.rows import verdicts_by
from mechsafety.claims.shared import Tables, once

REMOVAL_NAMES = {
    "set_difference": "set difference",
    "orthogonal_projection": "orthogonal projection",
    "top_safety": "top safety weights alone",
    "pruning": "plain pruning",
    "heads": "best heads",
}
LOW_RANK = frozenset({"orthogonal_projection"})
"""Removals of ranks, not of single weights."""
_CONTROLS = {
    "random": "random removals of the same number",
    "matched": "random removals of the same number and size",
}
_LOW_RANK_CONTROLS = {
    "random": "random removals of the same rank",
    "matched": "random removals of the same energy",
}
MODE_NAMES = {"freeze": "frozen", "rewind": "rewound"}
Verdicts = dict[object, str]


def controls_of(removal: str) -> Mapping[str, str]:
    """What a removal is compared with, by the name in tables."""
    return _LOW_RANK_CONTROLS if removal in LOW_RANK else _CONTROLS


def removals_of(tradeoff: pd.DataFrame) -> list[str]:
    """What was removed, in the order of the table."""
    return [name for name in dict.fromkeys(tradeoff["removal"]) if name != "none"]


def mode_name(mode: str, frozen: str) -> str:
    """``safety frozen``: what was kept in the fine-tuning, and how."""
    return "nothing kept" if mode == "none" else f"{frozen} {MODE_NAMES.get(mode, mode)}"


_LINK_CONTROLS = {"random": "its random removal", "matched": "its random removal of the same size"}
_LOW_RANK_LINK_CONTROLS = {"random": "its random removal", "matched": "its random removal of the same energy"}
_KEPT_CONTROLS = {"random": "random weights kept", "matched": "random weights of the same size kept"}
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
            control_of_draws(
                controls_of(key[0])[control], drawn[key].get("removed", []), drawn[key].get(control, [])
            )
            for key in changes
        ]
        for control in _CONTROLS
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
def link_claims(tables: Tables) -> list[list[Claim]]:
    """Removal, ablation and both against the whole model; of removals a claim for each of its random removals."""
    found = _states(tables, "links", "harmful", ["removal", "control"])
    states = {state: verdicts for (_, state), verdicts in found.items()}
    low_rank = any(removal in LOW_RANK for removal, _ in found)
    before = states.pop("model", {})
    changes = {
        state: paired_binary(
            before,
            after,
            subject=f"{_LINKED.get(state, state)}, harmful prompts",
            measure="refusals",
            states=("whole", state),
        )
        for state, after in states.items()
        if not state.startswith(tuple(_LINK_CONTROLS))
    }
    controls = {
        control: [
            control_of_draws(name, [states[state]], [random])
            if (random := states.get(f"{control} {state}"))
            else None
            for state in changes
        ]
        for control, name in (_LOW_RANK_LINK_CONTROLS if low_rank else _LINK_CONTROLS).items()
    }
    return [*_with_controls(changes, controls, "states").values()]


@once
def freezing_claims(tables: Tables) -> list[list[Claim]]:
    """Compliance after the most fine-tuning with weights kept, against nothing kept; by random set kept."""
    if "freezing" not in tables:
        return []
    table = tables["freezing"]
    n = int(table["n_examples"].max())
    by_set: dict[str, dict[object, Verdicts]] = {}
    for (setting, seed), found in _states(tables, "freezing", "harmful", ["setting", "draw"]).items():
        by_set.setdefault(setting, {})[seed] = found
    free = by_set.get(f"none none n={n}", {})
    changes: dict[tuple[str, str], Contrast] = {}
    controls: dict[str, list[Control | None]] = {name: [] for name in _KEPT_CONTROLS}
    for mode, frozen in dict.fromkeys(
        zip(table["mode"].astype(str), table["frozen"].astype(str), strict=True)
    ):
        kept = {seed: v for seed, v in by_set.get(f"{frozen} {mode} n={n}", {}).items() if seed in free}
        if mode == "none" or frozen.startswith(tuple(_KEPT_CONTROLS)) or not kept:
            continue
        changes[mode, frozen] = least_sure(
            [
                paired_binary(
                    free[seed],
                    after,
                    subject=f"{mode_name(mode, frozen)}, {n} benign examples",
                    measure="compliance with harmful prompts",
                    is_hit="compliance",
                    states=("nothing kept", "kept"),
                )
                for seed, after in kept.items()
            ]
        )
        for control, name in _KEPT_CONTROLS.items():
            random = by_set.get(f"{_kept_control(control, frozen)} {mode} n={n}", {})
            beside = [
                paired_control(name, after, [random[seed]], is_hit="compliance")
                for seed, after in kept.items()
                if seed in random
            ]
            controls[control].append(least_sure_control(beside) if beside else None)
    return [*_with_controls(changes, controls, "sets").values()]


def _kept_control(control: str, frozen: str) -> str:
    """The name of a set's random control (:func:`mechsafety.experiments.regions.followups.freezing`)."""
    if frozen.startswith("top "):
        return frozen.replace("top ", f"{control} ")
    return {"random": "random of that size", "matched": "matched to that"}[control]


def _states(tables: Tables, part: str, label: str, keys: list[str]) -> dict[Any, Verdicts]:
    """The verdict on each prompt of a label by its id, by the state of the model; empty without such a table."""
    return verdicts_by(tables.get("verdicts"), keys, part=part, label=label)
