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
from mechsafety.experiments.anatomy.findings import (
    ablated,
    above,
    aligned,
    along_direction,
    apart,
    carried,
    grown,
    last_layer,
    sensitive,
    separated,
    sides,
)
from mechsafety.experiments.anatomy.naming import UNSAFE, WHERE, Names, Tables, rows_of, state_name

CONTROL_COLUMNS = ["claim", "reading", "control", "result of the control", "holds beyond it"]
_UNKNOWN = "not measurable"


def anatomy_controls(tables: Tables, *, names: Names) -> pd.DataFrame:
    """Columns: :data:`CONTROL_COLUMNS`; the last is yes, no, cannot fail, or not measurable. Rows by the tables."""
    there = {name: table for name, table in tables.items() if len(table)}
    return pd.DataFrame(_rows(there, names), columns=CONTROL_COLUMNS)


def _rows(tables: Tables, names: Names) -> Iterator[dict[str, Any]]:
    if "separation" in tables:
        yield from _separation(tables, names)
    if "attack_tau" in tables:
        for positions in ("last_prompt", "output"):
            yield _attacks(sides(tables, names, positions), positions)
    if "sensitivity" in tables:
        yield _sensitivity(tables, names)
    if "verdicts" in tables and "interpolation" in tables:
        yield _answers("Refusals grow from base to tuned", grown(tables, names))
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
                yield _answers("dW of the MLPs alone brings refusals", contrast)
    if "links" in tables:
        hits, n = along_direction(tables["links"])
        p = float(binomtest(hits, n, 0.025, alternative="greater").pvalue) if n else math.nan
        beyond = _yes(p)
        result = f"{0.025 * n:.3g} of {n} by chance"
        reading = f"{hits} of {n} matrices, {p_value(p)}"
        yield _row("dW writes along the refusal direction", reading, "random directions", result, beyond)
    if "verdicts" in tables and "ablation" in tables:
        for contrast in ablated(tables, names)[:1]:
            yield _answers("Ablation of the direction removes refusals", contrast)


def _row(claim: str, reading: str, control: str, result: str, beyond: str) -> dict[str, Any]:
    return dict(zip(CONTROL_COLUMNS, (claim, reading, control, result, beyond), strict=True))


def _yes(p: float) -> str:
    return _UNKNOWN if p != p else "yes" if significant(p) else "no"


def _separation(tables: Tables, names: Names) -> Iterator[dict[str, Any]]:
    for positions in ("last_prompt", "output"):
        rows = rows_of(last_layer(tables["separation"], positions), model="tuned")
        if not len(rows):
            continue
        found, chance = (
            separated(tables, names, "tuned", positions).after,
            float(rows["auroc_chance"].iloc[0]),
        )
        beyond = _UNKNOWN if not found.known or chance != chance else "yes" if found.value > chance else "no"
        if positions == "output":
            beyond = "cannot fail"
        result = f"below {number(chance, 'AUROC')} in 95 %"
        claim = f"tau separates safe and unsafe prompts {WHERE[positions]}"
        yield _row(claim, f"AUROC {spelt(found, 'AUROC')}", "permuted labels", result, beyond)
    own, benign = (apart(tables, names, "tuned", against, "last_prompt") for against in ("base", "control"))
    yield _row(
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
    return _UNKNOWN if "not tested" in found else "yes" if found == {way} else "no"


def _attacks(contrast: Contrast, positions: str) -> dict[str, Any]:
    claim = decide(contrast)
    beyond = _UNKNOWN if claim.direction == "not tested" else "yes" if claim.direction == "up" else "no"
    return _row(
        f"Successful attacks lie on the safe side, {WHERE[positions]}",
        spelt(contrast.after, contrast.unit),
        "failed attacks",
        spelt(contrast.before, contrast.unit),
        "cannot fail" if positions == "output" else beyond,
    )


def _sensitivity(tables: Tables, names: Names) -> dict[str, Any]:
    own, benign = (sensitive(tables, names, UNSAFE, before, "tuned") for before in ("base", "control"))
    return _row(
        "The first token becomes less sensitive to unsafe prompts",
        f"base {spelt(own.before, '')}, tuned {spelt(own.after, '')}",
        "the benign fine-tuning",
        spelt(benign.before, ""),
        _both(decide(own), decide(benign), "down"),
    )


def _answers(claim: str, contrast: Contrast) -> dict[str, Any]:
    decided, control = decide(contrast), contrast.control
    drawn = control.draws[0].estimate if control is not None and control.draws else None
    beyond = {"yes": "yes", "not tested": _UNKNOWN, "no control": _UNKNOWN}.get(decided.beyond, "no")
    reading = f"{spelt(contrast.before, contrast.unit)} to {spelt(contrast.after, contrast.unit)}"
    result = spelt(drawn, contrast.unit) if drawn is not None else "not measured"
    return _row(claim, reading, control.name if control is not None else "none", result, beyond)


def _signs(claim: str, found: tuple[int, int], *, cannot_fail: bool = False) -> dict[str, Any]:
    """In how many matrices dW's number lies above that of a random dW: a sign test."""
    hits, n = found
    p = float(binomtest(hits, n, 0.5, alternative="greater").pvalue) if n else math.nan
    result = f"{n / 2:.3g} of {n} by chance"
    beyond = "cannot fail" if cannot_fail else _yes(p)
    return _row(claim, f"{hits} of {n} matrices above, {p_value(p)}", "a random dW", result, beyond)
