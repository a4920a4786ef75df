"""The claims of an anatomy beside their controls, one line each: what the control gives, and what holds beyond it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from mechsafety.claims import Claim, Contrast, decide
from mechsafety.claims.claims import Direction
from mechsafety.claims.numbers import number, p_value, significant
from mechsafety.claims.sentences import spelt
from mechsafety.claims.shared import filled
from mechsafety.claims.tables import CONTROL_COLUMNS, NOT_MEASURABLE, change_row, control_row
from mechsafety.experiments.anatomy.contrasts import (
    ablated,
    above,
    aligned,
    along_direction,
    apart,
    carried,
    grown,
    last_layer,
    positions_in,
    sensitive,
    sensitivities,
    separated,
    sides,
)
from mechsafety.experiments.anatomy.naming import UNSAFE, WHERE, Names, Tables, rows_of, state_name, who


def anatomy_controls(tables: Tables, *, names: Names) -> pd.DataFrame:
    """Columns: :data:`~mechsafety.claims.tables.CONTROL_COLUMNS`; rows by the tables."""
    return pd.DataFrame(_rows(filled(tables), names), columns=list(CONTROL_COLUMNS))


def _rows(tables: Tables, names: Names) -> Iterator[dict[str, Any]]:
    if "separation" in tables:
        yield from _separation(tables, names)
    if "attack_tau" in tables:
        for positions, contrast in sides(tables, names).items():
            yield _attacks(contrast, positions)
    if "sensitivity" in tables:
        yield _sensitivity(tables, names)
    if "verdicts" in tables and "interpolation" in tables:
        yield change_row("Refusals grow from base to tuned", decide(grown(tables, names)), way="up")
    if "action_ratios" in tables:
        for positions in ("last_prompt", "output"):
            hits = above(rows_of(tables["action_ratios"], positions=positions), "ratio", "tuned", "random")
            yield _signs(
                f"dW acts more on unsafe prompts, {WHERE[positions]}", hits, cannot_fail=positions == "output"
            )
    if "weight_changes" in tables:
        hits = above(aligned(tables["weight_changes"], 90), "excess", "tuned", "random")
        yield _signs("dW writes into the left null space of W (90 % energy)", hits)
    if "verdicts" in tables and "reversal" in tables:
        for contrast in carried(tables, names):
            if contrast.subject == state_name("mlp", 0.0):
                yield change_row("dW of the MLPs alone brings refusals", decide(contrast), way="up")
    if "links" in tables:
        hits, n = along_direction(tables["links"])
        p = float(binomtest(hits, n, 0.025, alternative="greater").pvalue) if n else math.nan
        beyond = _yes(p)
        result = f"{0.025 * n:.3g} of {n} by chance"
        reading = f"{hits} of {n} matrices, {p_value(p)}"
        yield control_row(
            "dW writes along the refusal direction", reading, "random directions", result, beyond
        )
    if "verdicts" in tables and "ablation" in tables:
        for contrast in ablated(tables, names):
            if contrast.subject == who("tuned", names):  # unsafe prompts; of others it names them
                yield change_row("Ablation of the direction removes refusals", decide(contrast), way="down")


def _yes(p: float) -> str:
    return NOT_MEASURABLE if p != p else "yes" if significant(p) else "no"


def _separation(tables: Tables, names: Names) -> Iterator[dict[str, Any]]:
    for positions in ("last_prompt", "output"):
        rows = rows_of(last_layer(tables["separation"], positions), model="tuned")
        if not len(rows):
            continue
        found, chance = (
            separated(tables, names)[positions, "tuned"].after,
            float(rows["auroc_chance"].iloc[0]),
        )
        beyond = (
            NOT_MEASURABLE if not found.known or chance != chance else "yes" if found.value > chance else "no"
        )
        if positions == "output":
            beyond = "cannot fail"
        result = f"below {number(chance, 'AUROC')} in 95 %"
        claim = f"tau separates safe and unsafe prompts {WHERE[positions]}"
        yield control_row(claim, f"AUROC {spelt(found, 'AUROC')}", "permuted labels", result, beyond)
    if "last_prompt" not in positions_in(tables["separation"]):
        return
    own, benign = (apart(tables, names)["last_prompt", against] for against in ("base", "control"))
    yield control_row(
        "The clusters are farther apart than the base's, at the last prompt token",
        f"d' {_change(own)}",
        "the benign fine-tuning",
        f"tuned less benign: d' {_change(benign)}",
        _both(decide(own), decide(benign), "up"),
    )


def _change(contrast: Contrast) -> str:
    return spelt(contrast.difference, contrast.unit)


def _both(own: Claim, less_control: Claim, way: Direction) -> str:
    """A change to this side that is shown, and shown against the control too."""
    found = {own.direction, less_control.direction}
    return NOT_MEASURABLE if "not tested" in found else "yes" if found == {way} else "no"


def _attacks(contrast: Contrast, positions: str) -> dict[str, Any]:
    claim = decide(contrast)
    beyond = NOT_MEASURABLE if claim.direction == "not tested" else "yes" if claim.direction == "up" else "no"
    return control_row(
        f"Successful attacks lie on the safe side, {WHERE[positions]}",
        spelt(contrast.after, contrast.unit),
        "failed attacks",
        spelt(contrast.before, contrast.unit),
        "cannot fail" if positions == "output" else beyond,
    )


def _sensitivity(tables: Tables, names: Names) -> dict[str, Any]:
    subject, benign = who("tuned", names), sensitive(tables, names, UNSAFE, "control", "tuned")
    own = next((c for c in sensitivities(tables, names) if c.subject == subject), benign)
    return control_row(
        "The first token becomes less sensitive to unsafe prompts",
        f"base {spelt(own.before, '')}, tuned {spelt(own.after, '')}",
        "the benign fine-tuning",
        spelt(benign.before, ""),
        _both(decide(own), decide(benign), "down"),
    )


def _signs(claim: str, found: tuple[int, int], *, cannot_fail: bool = False) -> dict[str, Any]:
    """In how many matrices dW's number lies above that of a random dW: a sign test."""
    hits, n = found
    p = float(binomtest(hits, n, 0.5, alternative="greater").pvalue) if n else math.nan
    result = f"{n / 2:.3g} of {n} by chance"
    beyond = "cannot fail" if cannot_fail else _yes(p)
    return control_row(claim, f"{hits} of {n} matrices above, {p_value(p)}", "a random dW", result, beyond)
