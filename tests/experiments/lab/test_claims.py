"""What the lab says of drawn bounds, controls and cases: nothing false, and every bound, control and family there is."""

from __future__ import annotations

import math
import random

import pandas as pd
import pytest

from mechsafety.experiments.lab.findings import lab_findings
from mechsafety.experiments.lab.thresholds import controls_over_seeds, held_over_seeds
from tests.claims.evaluator import refuted, unsaid
from tests.claims.facts import Count, Facts, Held
from tests.claims.recomputed import Share
from tests.lab_tables import all_cases

STATES = {"met": True, "not met": False, "not measurable": None}
BEYOND = {"yes": True, "no": False, "not measurable": None}
NAMES = {"ssft": "supervised safety fine-tuning", "dpo": "DPO", "unlearn": "unlearning"}
FAMILIES = {
    "co_task": "competing tasks",
    "co_text": "mixed texts",
    "misgen": "aliases",
    "ood": "random texts",
    "soft": "searched soft tokens",
}


def drawn(kinds: list, n: int, seeds: int, seed: int) -> list[list]:
    """States of n things over seeds; the first ones are alike in all seeds, one of each kind."""
    each = random.Random(seed)
    alike = [[kind] * seeds for kind in kinds]
    return [*alike, *([each.choice(kinds) for _ in range(seeds)] for _ in range(n))][:n]


def _over(values: list[float]) -> str:
    known = [v for v in values if v == v]
    if not known:
        return "undefined"
    low, high = f"{min(known):.3g}", f"{max(known):.3g}"
    return low if low == high else f"{low} to {high}"


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_bounds_over_seeds(n: int, seeds: int) -> None:
    states = drawn(list(STATES), n, seeds, seed=n)
    values = [
        [math.nan if s == "not measurable" else 0.5 + 0.1 * i for i, s in enumerate(of)] for of in states
    ]
    table = pd.DataFrame(
        [
            {
                "number": k + 1,
                "model": "ssft",
                "what": f"reading {k}",
                "bound": ">= 0.9",
                "state": s,
                "value": v,
            }
            for k, (of, some) in enumerate(zip(states, values, strict=True))
            for s, v in zip(of, some, strict=True)
        ]
    )
    held = {}
    for k, (of, some) in enumerate(zip(states, values, strict=True)):
        if set(of) != {"met"}:
            name = f"Claim {k + 1}, supervised safety fine-tuning: reading {k} >= 0.9, {_over(some)}"
            held[name] = Held([STATES[s] for s in of], "seed" if seeds == 1 else "seeds")
    every = [None if set(of) == {"not measurable"} else set(of) == {"met"} for of in states]
    facts = Facts(counts={("Lab", "bounds are met in every seed"): Count(every)}, held=held)
    empty = pd.DataFrame(columns=["number", "model", "what", "control", "beyond", "seeds"]).astype(
        {"what": str}
    )
    said = lab_findings(all_cases(), held_over_seeds(table), empty)["claims"]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []


@pytest.mark.parametrize("place", ["last prompt token", "over the answer"])
@pytest.mark.parametrize("n", [1, 3, 12])
def test_controls_over_seeds(n: int, place: str) -> None:
    """Readings before the answer that do not go beyond a control are said one by one; those over it are counted."""
    seeds = 3
    states = drawn(list(BEYOND), n, seeds, seed=n)
    table = pd.DataFrame(
        [
            {"number": 4, "model": "dpo", "what": f"AUROC {k}, {place}", "control": control, "beyond": state}
            | {"value": 0.7 + 0.01 * i, "low": 0.4, "high": 0.6}
            for control in ("untrained networks", "shuffled labels")
            for k, of in enumerate(states)
            for i, state in enumerate(of)
        ]
    )
    where = "over the answer" if place == "over the answer" else "before the answer"
    counts, held = {}, {}
    for control in ("untrained networks", "shuffled labels"):
        every = [None if set(of) == {"not measurable"} else set(of) == {"yes"} for of in states]
        counts["Lab", f"readings {where} go beyond {control} in every seed"] = Count(every)
        for k, of in enumerate(states):
            if set(of) != {"yes"} and place != "over the answer":
                name = f"Claim 4, DPO: AUROC {k}, {place}, 0.7 to 0.72, beyond {control}"
                held[name] = Held([BEYOND[s] for s in of], control="0.4 to 0.6")
    facts = Facts(counts=counts, held=held)
    bounds = pd.DataFrame({"met": [math.nan], "not measurable": [0], "seeds": [1]})
    said = lab_findings(all_cases(), bounds, controls_over_seeds(table))["controls"]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []


@pytest.mark.parametrize("answered", [0.0, 0.02, 0.98, 1.0, math.nan])
def test_cases(answered: float) -> None:
    """Ties of families, a family that nobody measured, and levels without an interval, which pool worlds."""
    cases = all_cases()
    cases.loc[cases["kind"] == "soft", ["correct", "n"]] = (
        (0.0, 0) if answered != answered else (answered, 50)
    )
    cases.loc[cases["kind"] == "unsafe", "correct"] = 0.0 if answered != answered else answered
    levels, extremes = {}, {}
    for model, name in NAMES.items():
        rows = cases[cases["model"] == model]
        found = {kind: _share(rows[rows["kind"] == kind]) for kind in ("unsafe", *FAMILIES)}
        levels[name, "direct unsafe inputs answered"] = found["unsafe"]
        known = {shown: found[kind] if found[kind].n else None for kind, shown in FAMILIES.items()}
        extremes[name, "attacks answered", "families"] = known
    facts = Facts(levels=levels, extremes=extremes)
    bounds = pd.DataFrame({"met": [math.nan], "not measurable": [0], "seeds": [1]})
    empty = pd.DataFrame(columns=["number", "model", "what", "control", "beyond", "seeds"]).astype(
        {"what": str}
    )
    said = lab_findings(cases, bounds, empty)["attacks"]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []


def _share(rows: pd.DataFrame) -> Share:
    n = int(rows["n"].sum())
    hits = sum(round(c * m) for c, m in zip(rows["correct"], rows["n"], strict=True))
    return Share(hits, n, 0, pooled=True)
