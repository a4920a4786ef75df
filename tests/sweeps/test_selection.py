"""The selection rule on tables made by hand, and on one that was recorded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import SELECTION_RULES
from mechsafety.sweeps.selection import candidate, nearest, select

COLUMNS = ["position", "layer", "bypass", "induce", "kl"]

# The refusal-tuned SmolLM2-135M (30 layers), last prompt token, 32 + 32 validation prompts.
RECORDED = pd.DataFrame(
    {
        "position": -1,
        "layer": [8, 12, 16, 18, 20, 22, 24, 26, 28],
        "bypass": [0.65, 4.34, -0.02, -3.90, -4.30, -5.21, -5.38, -3.78, -2.37],
        "induce": [-3.97, -3.50, 2.80, 2.68, 2.70, 2.31, 1.79, 1.67, 1.10],
        "kl": [0.54, 1.04, 0.39, 0.23, 0.28, 0.20, 1.03, 0.17, 0.37],
    }
)


def table(*rows: tuple[float, ...]) -> pd.DataFrame:
    """Rows of (layer, bypass, induce, kl) at position -1."""
    return pd.DataFrame([(-1, *row) for row in rows], columns=COLUMNS)


def error_of(scores: pd.DataFrame, *, n_layers: int = 10, rule: str = "auto") -> str:
    with pytest.raises(MechsafetyError) as caught:
        select(scores, n_layers=n_layers, rule=rule)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lowest_bypass_among_those_that_pass() -> None:
    scores = table(
        (1, -1.0, 0.5, 0.05),
        (2, -2.0, 0.5, 0.10),  # the bound itself passes
        (3, -3.0, 0.5, 0.11),
        (4, -4.0, -0.1, 0.01),
        (8, -5.0, 0.5, 0.01),
        (5, -6.0, math.nan, 0.01),
    )
    for rule in SELECTION_RULES:
        chosen = select(scores, n_layers=10, rule=rule)
        assert (chosen.layer, chosen.bypass, chosen.rule, chosen.kl_bound) == (2, -2.0, rule, 0.1)
        assert (chosen.kept, chosen.total) == (2, 6)
        drops = {"NaN": 1, "layer >= 8": 1, "KL > 0.1": 1, "induce below 0": 1}
        assert {name: n for name, n in chosen.dropped.items() if n} == drops
        assert sum(chosen.dropped.values()) + chosen.kept == chosen.total


def test_filters_count_in_order() -> None:
    everything_wrong = (9, 3.0, -1.0, 9.0)
    chosen = select(table((1, -1.0, 1.0, 0.0), everything_wrong, (9, math.nan, -1.0, 9.0)), n_layers=10)
    assert {name: n for name, n in chosen.dropped.items() if n} == {"NaN": 1, "layer >= 8": 1}


def test_recorded_table_arditi_leaves_none_and_counts() -> None:
    message = error_of(RECORDED, n_layers=30, rule="arditi")
    assert "rule 'arditi' leaves none of 9 candidates (3 by layer >= 24, 6 by KL > 0.1)" in message
    assert "nearest is layer 22, position -1 with bypass -5.21, induce 2.31, KL 0.20" in message


def test_recorded_table_auto_widens_to_layer_22() -> None:
    chosen = select(RECORDED, n_layers=30, rule="auto")
    assert (chosen.layer, chosen.kl_bound, chosen.kept, chosen.total) == (22, 0.2, 1, 9)
    said = chosen.explain()
    assert "Layer 22, position -1: the lowest bypass (-5.21) of 1 candidates out of 9" in said
    assert "3 by layer >= 24, 5 by KL > 0.2" in said
    assert said.endswith("rule auto, KL bound 0.2")
    # The control: without layer 22 the next bound is needed.
    rest = select(RECORDED[RECORDED["layer"] != 22], n_layers=30)
    assert (rest.layer, rest.kl_bound) == (20, 0.3)


def test_auto_asks_for_bypass_below_and_induce_above_zero() -> None:
    at_nought = table((1, 0.5, 1.0, 0.05), (2, -1.0, 0.0, 0.05))
    assert select(at_nought, n_layers=10, rule="arditi").layer == 2
    assert "1 by induce not above 0, 1 by bypass not below 0" in error_of(at_nought, rule="auto")


def test_auto_takes_the_smallest_bound_not_the_lowest_bypass() -> None:
    scores = table((1, -0.1, 0.1, 0.29), (2, -9.0, 9.0, 0.31))
    chosen = select(scores, n_layers=10)
    assert (chosen.layer, chosen.kl_bound) == (1, 0.3)
    assert "KL > 0.5" in error_of(table((1, -1.0, 1.0, 0.51)))


@pytest.mark.parametrize("column", ["bypass", "induce", "kl"])
def test_nan_is_never_chosen(column: str) -> None:
    scores = table((1, -9.0, 1.0, 0.0), (2, -1.0, 1.0, 0.05))
    assert select(scores, n_layers=10).layer == 1
    scores.loc[0, column] = math.nan
    chosen = select(scores, n_layers=10)
    assert (chosen.layer, chosen.dropped["NaN"]) == (2, 1)
    assert nearest(scores, n_layers=10).layer == 2


@pytest.mark.parametrize("n_layers", [2, 4, 5, 12, 18, 24, 30, 32, 80])
def test_layers_from_int_four_fifths_on_are_left_out(n_layers: int) -> None:
    first_out = (4 * n_layers) // 5
    scores = table(*((layer, -1.0 - layer, 1.0, 0.0) for layer in range(n_layers + 1)))
    assert select(scores, n_layers=n_layers).layer == first_out - 1
    only_late = scores[scores["layer"] >= first_out]
    message = error_of(only_late, n_layers=n_layers)
    assert f"{len(only_late)} by layer >= {first_out}" in message
    assert "none of" in message.partition(";")[2]


def test_nothing_but_nan_is_one_line() -> None:
    scores = table((1, math.nan, math.nan, math.nan))
    assert "rule 'auto' leaves none of 1 candidates (1 by NaN); none of 1 candidates" in error_of(scores)


@pytest.mark.parametrize("column", COLUMNS)
def test_missing_columns_and_rows_are_reported(column: str) -> None:
    assert f"missing: {column}" in error_of(RECORDED.drop(columns=column))
    assert "missing: rows" in error_of(RECORDED.iloc[:0])


def test_unknown_rule() -> None:
    assert error_of(RECORDED, rule="best") == "rule 'best' is not one of auto, arditi"


def test_the_named_candidate_is_taken_unfiltered() -> None:
    chosen = candidate(RECORDED, layer=28, position=-1)
    assert (chosen.layer, chosen.bypass, chosen.rule) == (28, -2.37, "fixed")
    assert "lowest" not in chosen.explain()
    assert chosen.explain().startswith("Layer 28, position -1 (fixed, one of 9, no filter): bypass -2.37")
    for layer, position in ((9, -1), (28, -2)):
        with pytest.raises(MechsafetyError, match=f"layer {layer}, position {position} is not in the table"):
            candidate(RECORDED, layer=layer, position=position)


def test_nearest_prefers_candidates_that_induce() -> None:
    scores = table((1, -1.0, -1.0, 0.01), (2, 5.0, 0.1, 3.0), (3, -1.0, 1.0, 4.0), (9, -1.0, 1.0, 0.0))
    assert nearest(scores, n_layers=10).layer == 2
    assert nearest(scores[scores["layer"] == 1], n_layers=10).layer == 1
    with pytest.raises(MechsafetyError, match="none of 1 candidates"):
        nearest(scores[scores["layer"] == 9], n_layers=10)


ROWS = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.sampled_from([-2.0, -1.0, 0.5, math.nan]),
        st.sampled_from([-1.0, 0.0, 1.0]),
        st.sampled_from([0.05, 0.15, 0.4, 0.9]),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[0],
)


def outcome(function: Any, scores: pd.DataFrame, **options: Any) -> Any:
    try:
        return function(scores, n_layers=10, **options)
    except MechsafetyError as error:
        return str(error)


@given(rows=ROWS, rule=st.sampled_from(list(SELECTION_RULES)), seed=st.integers(0, 99))
def test_row_order_and_index_do_not_matter(rows: list[tuple[float, ...]], rule: str, seed: int) -> None:
    scores = table(*rows)
    shuffled = scores.iloc[np.random.default_rng(seed).permutation(len(scores))]
    pieces = shuffled.set_axis([0] * len(shuffled), axis="index")  # as concatenated tables have it
    for other in (shuffled, pieces):
        assert outcome(select, scores, rule=rule) == outcome(select, other, rule=rule)
        assert outcome(nearest, scores) == outcome(nearest, other)


@given(rows=ROWS)
def test_what_is_chosen_passes_and_nothing_that_passes_is_lower(rows: list[tuple[float, ...]]) -> None:
    passing = [
        r for r in rows if r[0] < 8 and not math.isnan(r[1]) and r[2] >= 0 and r[3] <= 0.1
    ]  # a plain reading of the published rule
    found = outcome(select, table(*rows), rule="arditi")
    if not passing:
        assert "leaves none of" in found
    else:
        assert (found.bypass, found.kept) == (min(r[1] for r in passing), len(passing))
        assert any(r[0] == found.layer and r[1] == found.bypass for r in passing)
