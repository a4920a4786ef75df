"""The nine claims: each is read from the right rows, met by a model that has it and not met by one that lacks it."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from mechsafety.experiments.lab.controls import CONTROL_COLUMNS
from mechsafety.experiments.lab.figures import lab_figures
from mechsafety.experiments.lab.findings import lab_findings
from mechsafety.experiments.lab.thresholds import (
    CLAIMS,
    THRESHOLD_COLUMNS,
    controls_over_seeds,
    held_over_seeds,
    threshold_table,
)
from mechsafety.plots.look import looking
from tests import lab_tables as made

TUNINGS = ("ssft", "dpo", "unlearn")
UNKNOWN = (math.nan, math.nan, math.nan)


def found(cases: pd.DataFrame | None = None, **looks: Any) -> pd.DataFrame:
    anatomies = {name: made.anatomy(**looks) for name in TUNINGS}
    return threshold_table(made.all_cases() if cases is None else cases, anatomies)


def states(table: pd.DataFrame, number: int, model: str | None = None, what: str = "") -> list[str]:
    rows = table[(table["number"] == number) & table["what"].str.contains(what, regex=False)]
    rows = rows if model is None else rows[rows["model"] == model]
    return [state for state in rows["state"] if state != "reported"]


def test_every_claim_holds_of_a_world_that_has_it() -> None:
    table = found()
    assert list(table.columns) == THRESHOLD_COLUMNS
    assert set(table["number"]) == set(CLAIMS)
    assert list(table["number"]) == sorted(table["number"])
    bounds = table[table["state"] != "reported"]
    assert set(bounds["state"]) == {"met"}
    assert set(bounds["number"]) == set(CLAIMS) - {7}


@pytest.mark.parametrize(
    ("looks", "number", "model"),
    [
        ({"auroc": 0.94}, 4, "ssft"),
        ({"d_prime": (3.0, -0.1, 6.0)}, 4, "ssft"),
        # The wrong way round: four times the base's -1 is farther from 0, and no separation.
        ({"d_prime": (-3.0, -3.6, -2.4)}, 4, "ssft"),
        ({"control_d_prime": (0.6, 0.4, 0.8)}, 4, "benign"),
        ({"control_d_prime": (0.0, -0.9, 0.9)}, 4, "benign"),
        ({"attack": (-0.1, -0.3, 0.1)}, 5, "dpo"),
        ({"attack": (0.1, -0.3, 0.5)}, 5, "dpo"),
        ({"ratio": 1.2}, 6, "unlearn"),
        ({"control_ratio": 1.1}, 6, "benign"),
        ({"sensitivity": (20.0, 10.1)}, 8, "dpo"),
        ({"sensitivity": (19.0, 5.0)}, 8, "unlearn"),
        ({"refused": (0.0, 0.6, 0.5, 1.0)}, 9, "dpo"),
        ({"refused": (0.0, 0.0, 0.0, 0.0)}, 9, "dpo"),
        ({"refused": (0.5, 0.5, 0.5, 1.0)}, 9, "dpo"),
        ({"through": (0.6, 0.5)}, 9, "ssft"),
    ],
)
def test_a_claim_fails_where_its_number_is_beyond_the_bound(
    looks: dict[str, Any], number: int, model: str
) -> None:
    table = found(**looks)
    assert "not met" in states(table, number, model)
    assert set(table.loc[table["state"] == "not met", "number"]) == {number}


def test_growth_is_a_rise_that_is_shown_and_not_never_falling() -> None:
    flat = found(refused=(0.0, 0.0, 0.0, 0.0))
    assert states(flat, 9, "dpo", "largest fall") == ["met"]
    assert states(flat, 9, "dpo", "alpha 1 less") == ["not met"]
    assert states(found(), 9, "dpo", "alpha 1 less") == ["met"]


def test_signed_numbers_are_told_apart_by_their_difference() -> None:
    """The base's d' is -.1 and the tuned model's 5: the ratio is -50, and the clusters are there."""
    assert states(found(d_prime=(5.1, 4.0, 6.2)), 4, "ssft", "d' of tau") == ["met"]


def test_the_answers_own_tokens_carry_no_bound() -> None:
    table = found()
    over = table[table["what"].str.contains("over the answer")]
    assert set(over["number"]) == {4, 5, 6}
    assert set(over["state"]) == {"reported"}


def test_what_is_only_reported_never_fails() -> None:
    table = found(ratio=0.1, sensitivity=(1.0, 90.0), aligned=0.1)
    assert states(table, 6, "dpo") == states(table, 8, "ssft") == []
    excess = table[(table["number"] == 7) & (table["model"] == "ssft")].set_index("what")["value"]
    assert list(excess.round(6)) == [-0.65, -0.65, -0.6]


def test_outcomes_are_those_of_the_worst_class() -> None:
    cases = made.all_cases()
    unsafe_b = (cases["kind"] == "unsafe") & (cases["text_class"] == "B") & (cases["model"] == "dpo")
    cases.loc[unsafe_b, ["correct", "refused"]] = [0.1, 0.9]
    table = found(cases)
    assert states(table, 2, "dpo") == ["met", "met", "not met"]
    assert states(table, 3, "dpo") == ["met", "not met"]
    assert states(table, 2, "ssft") == ["met", "met", "met"]


def test_one_family_that_gets_through_is_not_two() -> None:
    cases = made.all_cases()
    cases.loc[cases["kind"] == "co_text", "correct"] = 0.29
    assert states(found(cases), 3, "ssft") == ["not met", "met"]


def test_soft_tokens_that_break_the_pretrained_model_are_no_evidence_about_its_tasks() -> None:
    cases = made.all_cases()
    broken = (cases["model"] == "base") & cases["kind"].isin(["soft", "random_soft"])
    cases.loc[broken, "correct"] = 0.0
    assert states(found(cases), 1) == ["met"]
    cases.loc[(cases["model"] == "base") & (cases["kind"] == "misgen"), "correct"] = 0.9
    assert states(found(cases), 1) == ["not met"]


@pytest.mark.parametrize(
    ("looks", "number"),
    [({"attack": UNKNOWN}, 5), ({"d_prime": UNKNOWN}, 4), ({"d_prime": (3.0, math.nan, math.nan)}, 4)],
)
def test_a_number_that_is_not_known_is_not_measurable(looks: dict[str, Any], number: int) -> None:
    table = found(**looks)
    for model in TUNINGS:
        assert "not measurable" in states(table, number, model)
        assert "not met" not in states(table, number, model)


# -- over seeds -----------------------------------------------------------------------------------------------


def seeds(*looks: dict[str, Any]) -> pd.DataFrame:
    looks = looks or ({}, {"d_prime": (0.1, -0.5, 0.7)}, {"attack": (-1.0, -2.0, -0.5)})
    tables = [found(**some) for some in looks]
    return pd.concat([t.assign(seed=seed) for seed, t in enumerate(tables)], ignore_index=True)


D_PRIME = "d' of tau less the base's, last layer, last prompt token"
ATTACKS = "mean tau of successful attacks, last layer, last prompt token"


def test_seeds_are_counted() -> None:
    held = held_over_seeds(seeds()).set_index(["number", "model", "what"])
    row = held.loc[(4, "ssft", D_PRIME)]
    assert tuple(row[["seeds", "met", "not met", "not measurable"]]) == (3, 2, 1, 0)
    assert (row["lowest"], row["highest"]) == (0.1, 3.0)
    assert held.loc[(5, "dpo", ATTACKS)]["met"] == 2
    assert held.loc[7]["met"].isna().all()


def test_a_bound_that_is_met_once_and_not_measurable_twice_is_counted_as_that() -> None:
    table = held_over_seeds(seeds({}, {"attack": UNKNOWN}, {"attack": UNKNOWN}))
    row = table[(table["what"] == ATTACKS) & (table["model"] == "ssft")].iloc[0]
    assert tuple(row[["met", "not met", "not measurable"]]) == (1, 0, 2)
    (said,) = (s for s in findings(table)["claims"] if "Claim 5, supervised" in s)
    assert "met in 1, not measurable in 2 of 3 seeds" in said
    assert "not met" not in said


def test_a_bound_that_is_measurable_nowhere_is_counted_as_unknown() -> None:
    every = held_over_seeds(seeds({}, {}))
    nowhere = held_over_seeds(seeds({"attack": UNKNOWN}, {"attack": UNKNOWN}))
    n = int(every["met"].notna().sum())
    assert f"{n} of {n} bounds" in findings(every)["claims"][0]
    assert f"{n - 3} of {n - 3} bounds" in findings(nowhere)["claims"][0]
    assert "3 unknown" in findings(nowhere)["claims"][0]


def controls(**states: str) -> pd.DataFrame:
    """Two readings under two controls in two seeds; ``a_untrained="no"`` changes both seeds of one."""
    rows: list[dict[str, Any]] = [
        {
            **{"seed": seed, "number": 4, "model": "ssft", "what": what, "value": 1.0, "control": control},
            **{"draws": 20, "low": 0.4, "high": 0.7, "p": 0.047},
            "beyond": states.get(f"{what}_{control.split()[0]}", "yes"),
        }
        for seed in (0, 1)
        for what in ("a", "b")
        for control in ("untrained networks", "shuffled labels")
    ]
    return pd.DataFrame(rows)[["seed", *CONTROL_COLUMNS]]


def findings(held: pd.DataFrame, beyond: pd.DataFrame | None = None) -> dict[str, list[str]]:
    beyond = controls() if beyond is None else beyond
    return lab_findings(made.all_cases().assign(seed=0), held, controls_over_seeds(beyond))


def test_findings_name_what_was_not_met_and_only_that() -> None:
    told = findings(held_over_seeds(seeds()))
    first, *rest = told["claims"]
    assert "bounds are met in every seed" in first
    assert len(rest) == 6
    assert all("Claim 4" in said or "Claim 5" in said for said in rest)
    assert "0.1 to 3: met in 2, not met in 1 of 3 seeds" in rest[0]
    assert len(told["attacks"]) == 6
    assert "0 of 100 (0 %)" in told["attacks"][0]
    # Those that tie have no count of their own that could be named.
    assert "lowest 0 %" in told["attacks"][1]
    assert " tie)" in told["attacks"][1]
    assert "highest 30 of 50 (60 %) (mixed texts)" in told["attacks"][1]


def test_a_reading_that_a_control_has_as_well_is_named() -> None:
    fine = findings(held_over_seeds(seeds()))["controls"]
    assert len(fine) == 2
    assert all("2 of 2 readings" in said for said in fine)
    table = controls(a_untrained="no", b_shuffled="not measurable")
    first, named, second, unknown = findings(held_over_seeds(seeds()), table)["controls"]
    assert "1 of 2 readings before the answer go beyond untrained networks" in first
    assert "a, 1, beyond untrained networks: not met in 2 of 2 seeds; control: 0.4 to 0.7" in named
    assert "1 of 1 readings" in second
    assert "1 unknown" in second
    assert "not measurable in 2 of 2 seeds" in unknown


@pytest.mark.parametrize("width", [None, 700])
def test_every_row_of_the_claims_is_named_in_full(width: int | None) -> None:
    bounds = seeds({"attack": UNKNOWN}, {"auroc": 0.5})
    bounds["what"] = (
        "AUROC of tau, last layer, mean over every token of the answer, of unsafe inputs over safe ones"
    )
    with looking(width=width):
        axis = lab_figures(made.all_cases().assign(seed=0), bounds, controls())["lab-claims"].layout.yaxis
    shown = axis.ticktext or axis.categoryarray
    assert {name.count("<br>") for name in shown} & {2, 3, 4}
    assert [name for name in shown if "…" in name] == []


def test_figures_draw_every_number() -> None:
    thresholds, cases = seeds({"attack": UNKNOWN}, {"auroc": 0.5}), made.all_cases().assign(seed=0)
    figures = lab_figures(cases, thresholds, controls(a_untrained="no"))
    for name, table, column in (
        ("lab-claims", thresholds, "state"),
        ("lab-controls", controls(a_untrained="no"), "beyond"),
    ):
        marks: list[Any] = list(figures[name].data)
        assert sum(len(trace.x) for trace in marks) == len(table)
        for trace in marks:
            assert len(trace.x) == int((table[column] == trace.name).sum())
    dots: list[Any] = list(figures["lab-outcomes"].data)
    assert len(dots) == 2 * 5
    assert sum(len(trace.x) for trace in dots) == 2 * len(cases)
