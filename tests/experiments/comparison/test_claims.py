"""What a comparison says of drawn cosines and transfers: nothing false, and every pair, control and count that there is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from mechsafety.experiments.comparison.findings import comparison_findings, transfer_findings
from mechsafety.geometry import transfer as measured
from tests.claims.drawn import VALUES, drawn_values, few, tally
from tests.claims.evaluator import refuted, unsaid
from tests.claims.facts import Facts, Family, Key, RealChange, RealControl, Value
from tests.claims.rules import beyond, decide

MEASURE = "mean refusal score of harmful prompts"
CONTROL = "random and harmless directions (lowest of each)"
Row = tuple[float, float, float, float, float]
CASES: dict[str, Row] = {  # drop, its p, the largest drop of the controls, p and side of the controls
    "falls beyond": (3.0, 0.001, 0.5, 0.002, -1),
    "falls as far": (3.0, 0.001, 2.9, 0.6, -1),
    "control does more": (3.0, 0.001, 5.0, 0.001, 1),
    "rises": (-3.0, 0.001, 0.2, 0.001, 1),
    "does nothing": (0.0, 1.0, 0.0, 1.0, 0),
    "not shown": (0.4, 0.4, 0.1, 0.5, -1),
    "nothing, control far": (0.0, 0.9, 4.0, 0.001, 1),
    "not tested": (2.0, math.nan, 1.0, math.nan, 0),
}


def _score(value: float, low: float | None = None, high: float | None = None) -> Value:
    return Value(value, low, high, plain=True)


def transfer(rows: dict[tuple[str, str], Row]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"source": source, "target": target, "base": 5.0, "ablated": 5.0 - drop, "drop": drop, "n": 40}
            | {"low": drop - 0.3, "high": drop + 0.3, "p": p, "random_max": most, "harmless_max": most - 1}
            | {"control_p": control_p, "control_side": side}
            for (source, target), (drop, p, most, control_p, side) in rows.items()
        ]
    )


def facts_of(rows: dict[tuple[str, str], Row]) -> tuple[Facts, dict[tuple[str, str], Key]]:
    changes, keys = {}, {}
    for (source, target), (drop, p, most, control_p, side) in rows.items():
        whose = "its own direction" if source == target else f"the direction of {source}"
        ends = (-drop - 0.3, -drop + 0.3)
        if p >= 0.05:
            ends = min(ends[0], 0.0), max(ends[1], 0.0)
        below = control_p if side else 1.0 if control_p == control_p else math.nan
        lowest = [_score(5.0 - most), _score(5.0 - (most - 1))]
        control = RealControl(lowest, None if below != below else below, side=side)
        keys[source, target] = (f"{target} without {whose}", MEASURE)
        changes[keys[source, target]] = RealChange(
            _score(5.0),
            _score(5.0 - drop),
            _score(-drop, *ends),
            "sign flips" if p == p else None,
            None if p != p else p,
            states=("unedited", "ablated"),
            draws={CONTROL: control},
        )
    return Facts(changes, [Family("ablations", list(changes))]), keys


def counts_of(facts: Facts, keys: dict[tuple[str, str], Key]) -> Facts:
    counts = {}
    for own, whose in ((True, "own"), (False, "foreign")):
        some = [[key] for (source, target), key in keys.items() if (source == target) == own]
        for word in ("fall", "rise"):
            what = f"ablations of the {whose} direction show a {word} in the mean refusal score"
            counts["Transfer", what] = tally(
                facts, some, lambda key, word=word: decide(key, facts).word == word
            )
        what = f"ablations of the {whose} direction show a fall beyond random and harmless directions"
        counts["Transfer", what] = tally(
            facts,
            [[] if beyond(key, CONTROL, facts).word == "not tested" else [key] for (key,) in some],
            lambda key: decide(key, facts).word == "fall" and beyond(key, CONTROL, facts).word == "beyond",
        )
    return Facts(counts=counts)


def check(rows: dict[tuple[str, str], Row]) -> list[str]:
    table, (facts, keys) = transfer(rows), facts_of(rows)
    said = comparison_findings({"transfer": table}, layer=0)
    assert refuted(said, facts) == []
    foreign = {key: facts.changes[key] for (source, target), key in keys.items() if source != target}
    assert unsaid(said, Facts(foreign)) == []
    counts = counts_of(facts, keys)
    told = list(transfer_findings(table, {}))
    assert refuted(told, counts) == []
    assert unsaid(told, counts) == []
    return said


@pytest.mark.parametrize("name", CASES)
def test_one_transfer(name: str) -> None:
    assert check({("a", "b"): CASES[name]})


def test_all_transfers_are_one_family() -> None:
    rows = {(f"s{i}", f"s{i + (i % 2)}"): row for i, row in enumerate(CASES.values())}
    said = " ".join(check(rows))
    alone = " ".join(s for row in CASES.values() for s in check({("a", "b"): row}))
    words = (
        "a fall in",
        "a rise in",
        "no change in",
        "goes beyond",
        "a larger change under",
        "a change beyond",
        "is not tested",
    )
    assert [w for w in words if w not in alone] == []
    assert "after Holm over" in said


# -- from scores by prompt ------------------------------------------------------------------------------

PROMPTS = 8
Scores = np.ndarray  # by prompt


def _p(x: Scores) -> float:
    """Of a mean, over all changes of signs."""
    found = permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False)
    return float(found.pvalue)


def row_of(base: Scores, after: Scores, beside: Sequence[Scores]) -> Row:
    """What the package measures of an ablation, as its tables hold it."""
    whole, edited, *others = (
        measured.Ablation(scores=torch.tensor(x), kl=0.1) for x in (base, after, *beside)
    )
    found = measured.tests_of(whole, edited, others, seed=0)
    fall, low, high = measured.drop(whole, edited, resamples=50, seed=0)
    assert low <= fall <= high
    most = max(measured.drop(whole, other, resamples=0, seed=0)[0] for other in others)
    return fall, found["p"], most, found["control_p"], int(found["control_side"])


def recomputed(base: Scores, after: Scores, beside: Sequence[Scores]) -> Row:
    """The same by scipy: a direction is beyond its controls where it differs from each, to one side."""
    apart = [after - other for other in beside]
    sides = {int(np.sign(x.mean())) for x in apart}
    p = max(map(_p, apart)) if len(sides) == 1 else 1.0
    most = max(float((base - other).mean()) for other in beside)
    return float((base - after).mean()), _p(after - base), most, p, sides.pop() if len(sides) == 1 else 0


@few(12)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, -3.0, 3.0]),
            st.sampled_from([0.0, -3.0, 3.0, 6.0]),
            st.sampled_from([0, 1.0]),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 99),
)
def test_transfers_from_drawn_scores(effects: list[tuple[float, float, float]], seed: int) -> None:
    """The direction lowers, raises or leaves the scores, and so do its controls: as much, more or to the other side."""
    each = np.random.default_rng(seed)
    made, checked = {}, {}
    for i, (own, control, noise) in enumerate(effects):
        base = 5 + each.standard_normal(PROMPTS)
        after = base + own + noise * each.standard_normal(PROMPTS)
        beside = [base + control * sign + noise * each.standard_normal(PROMPTS) for sign in (1, 0.9)]
        key = (f"s{i}", f"s{i + (i % 2)}")
        made[key], checked[key] = row_of(base, after, beside), recomputed(base, after, beside)
    for key, row in made.items():
        assert row == pytest.approx(checked[key])
    check(made)


@pytest.mark.parametrize("values", VALUES)
def test_cosines_stand_beside_their_floor(values: str) -> None:
    pairs = [(f"s{i}", f"s{j}") for i in range(3) for j in range(i)]
    v, floors = drawn_values(values, 3), drawn_values(values, 3, seed=1)
    table = pd.DataFrame(pairs, columns=["a", "b"]).assign(
        layer=2, cosine=v, low=[x - 0.1 for x in v], high=[x + 0.1 for x in v], harmless_floor=floors
    )
    levels = {}
    for (a, b), x, floor in zip(pairs, v, floors, strict=True):
        subject = f"{a} and {b}, layer 2"
        own = None if x != x else Value(x, x - 0.1, x + 0.1)
        levels[subject, "cosine of the refusal directions"] = own
        beside = None if floor != floor else Value(floor)
        levels[subject, "cosine of directions between halves of the harmless prompts"] = beside
    said = comparison_findings({"cosines": table}, layer=2)
    assert refuted(said, Facts(levels=levels)) == []
    assert len(said) == len(levels)
