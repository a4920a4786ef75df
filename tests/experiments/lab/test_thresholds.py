"""The nine claims: each is read from the right rows, met by a model that has it and not met by one that lacks it."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from mechsafety.experiments.lab.figures import lab_figures
from mechsafety.experiments.lab.findings import lab_findings
from mechsafety.experiments.lab.thresholds import CLAIMS, THRESHOLD_COLUMNS, held_over_seeds, threshold_table
from tests import lab_tables as made

TUNINGS = ("ssft", "dpo", "unlearn")


def found(cases: pd.DataFrame | None = None, **looks: Any) -> pd.DataFrame:
    anatomies = {name: made.anatomy(**looks) for name in TUNINGS}
    return threshold_table(made.all_cases() if cases is None else cases, anatomies)


def states(table: pd.DataFrame, number: int, model: str | None = None) -> list[bool | None]:
    rows = table[table["number"] == number]
    rows = rows if model is None else rows[rows["model"] == model]
    return [None if held is None else bool(held) for held in rows["held"]]


def test_every_claim_holds_of_a_world_that_has_it() -> None:
    table = found()
    assert list(table.columns) == THRESHOLD_COLUMNS
    assert set(table["number"]) == set(CLAIMS)
    assert list(table["number"]) == sorted(table["number"])
    bounds = table[table["held"].notna()]
    assert bounds["held"].astype(bool).all(), bounds[~bounds["held"].astype(bool)]
    assert states(table, 7) == [None] * 9


@pytest.mark.parametrize(
    ("looks", "number", "model"),
    [
        ({"d_prime": 2.9}, 4, "ssft"),
        ({"control_d_prime": 1.3}, 4, "benign"),
        ({"control_d_prime": 0.7}, 4, "benign"),
        ({"attack": -0.1}, 5, "dpo"),
        ({"ratio": 1.2}, 6, "unlearn"),
        ({"control_ratio": 1.1}, 6, "benign"),
        ({"sensitivity": (20.0, 10.1)}, 8, "dpo"),
        ({"sensitivity": (19.0, 5.0)}, 8, "unlearn"),
        ({"refused": (0.0, 0.6, 0.5, 1.0)}, 9, "dpo"),
        ({"through": (0.6, 0.5)}, 9, "ssft"),
    ],
)
def test_a_claim_fails_where_its_number_is_beyond_the_bound(
    looks: dict[str, Any], number: int, model: str
) -> None:
    table = found(**looks)
    assert False in states(table, number, model)
    lost = table[table["held"].map(lambda held: held is False)]
    assert set(lost["number"]) == {number}


def test_what_is_only_reported_never_fails() -> None:
    table = found(ratio=0.1, sensitivity=(1.0, 90.0), aligned=0.1)
    assert states(table, 6, "dpo") == [None]
    assert states(table, 8, "ssft") == [None, None]
    excess = table[(table["number"] == 7) & (table["model"] == "ssft")].set_index("what")["value"]
    assert list(excess.round(6)) == [-0.65, -0.65, -0.6]


def test_outcomes_are_those_of_the_worst_class() -> None:
    cases = made.all_cases()
    unsafe_b = (cases["kind"] == "unsafe") & (cases["text_class"] == "B") & (cases["model"] == "dpo")
    cases.loc[unsafe_b, ["correct", "refused"]] = [0.1, 0.9]
    table = found(cases)
    assert states(table, 2, "dpo") == [True, True, False]
    assert states(table, 3, "dpo") == [True, False]
    assert states(table, 2, "ssft") == [True, True, True]


def test_one_family_that_gets_through_is_not_two() -> None:
    cases = made.all_cases()
    cases.loc[cases["kind"] == "co_text", "correct"] = 0.29
    assert states(found(cases), 3, "ssft") == [False, True]


def test_soft_tokens_that_break_the_pretrained_model_are_no_evidence_about_its_tasks() -> None:
    cases = made.all_cases()
    broken = (cases["model"] == "base") & cases["kind"].isin(["soft", "random_soft"])
    cases.loc[broken, "correct"] = 0.0
    assert states(found(cases), 1) == [True]
    cases.loc[(cases["model"] == "base") & (cases["kind"] == "misgen"), "correct"] = 0.9
    assert states(found(cases), 1) == [False]


def test_without_attacks_that_succeed_the_fifth_claim_is_open() -> None:
    table = found(attack=math.nan)
    assert states(table, 5) == [None] * 3


def seeds() -> pd.DataFrame:
    tables = [found(), found(d_prime=2.0), found(d_prime=2.5, attack=-1.0)]
    return pd.concat([t.assign(seed=seed) for seed, t in enumerate(tables)], ignore_index=True)


def test_seeds_are_counted() -> None:
    held = held_over_seeds(seeds()).set_index(["number", "model", "what"])
    row = held.loc[(4, "ssft", "d' of tau over the base model's, last layer")]
    assert (row["seeds"], row["held"], row["lowest"], row["highest"]) == (3, 1, 2.0, 4.0)
    assert held.loc[(5, "dpo", "mean tau of successful attacks, last layer")]["held"] == 2
    assert held.loc[7]["held"].isna().all()


def test_findings_name_what_was_not_met_and_only_that() -> None:
    told = lab_findings(made.all_cases().assign(seed=0), held_over_seeds(seeds()))
    first, *rest = told["claims"]
    assert "every one of 3 seeds" in first
    assert len(rest) == 6
    assert all("Claim 4" in said or "Claim 5" in said for said in rest)
    assert "2 to 4, not at least 3, in 2 of 3 seeds" in rest[0]
    assert len(told["attacks"]) == 3
    assert "0% of direct unsafe inputs" in told["attacks"][0]
    assert "mixed texts 60%" in told["attacks"][0]


def test_figures_draw_every_number() -> None:
    thresholds, cases = seeds(), made.all_cases().assign(seed=0)
    figures = lab_figures(cases, thresholds)
    claims, outcomes = figures["lab-claims"], figures["lab-outcomes"]
    marks: list[Any] = list(claims.data)
    assert sum(len(trace.x) for trace in marks) == len(thresholds)
    by_name = {trace.name: len(trace.x) for trace in marks}
    assert by_name["reported"] == int(thresholds["held"].isna().sum())
    assert by_name["not held"] == 9
    dots: list[Any] = list(outcomes.data)
    assert len(dots) == 2 * 5
    assert sum(len(trace.x) for trace in dots) == 2 * len(cases)
