"""The selection rules on tables made by hand, and on recorded ones."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import SELECTION_RULES
from mechsafety.sweeps.ranking import shortlist
from mechsafety.sweeps.selected import Selection
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


def shares(*rows: tuple[float, ...], harmful: float = 10.0, harmless: float = 0.0) -> pd.DataFrame:
    """Rows of (layer, removed, caused, kl): with these unedited means, shares of a gap of 10."""
    gap = harmful - harmless
    scored = [(layer, harmful - r * gap, harmless + c * gap, kl) for layer, r, c, kl in rows]
    return table(*scored).assign(harmful=harmful, harmless=harmless)


def error_of(scores: pd.DataFrame, *, n_layers: int = 10, rule: str = "auto") -> str:
    with pytest.raises(MechsafetyError) as caught:
        select(scores, n_layers=n_layers, rule=rule)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arditi_takes_the_lowest_bypass_among_those_that_pass() -> None:
    scores = table(
        (1, -1.0, 0.5, 0.05),
        (2, -2.0, 0.5, 0.10),  # the bound itself passes
        (3, -3.0, 0.5, 0.11),
        (4, -4.0, -0.1, 0.01),
        (8, -5.0, 0.5, 0.01),
        (5, -6.0, math.nan, 0.01),
    )
    chosen = select(scores, n_layers=10, rule="arditi")
    assert (chosen.layer, chosen.bypass, chosen.rule, chosen.kl_bound) == (2, -2.0, "arditi", 0.1)
    assert (chosen.kept, chosen.total) == (2, 6)
    drops = {"NaN": 1, "layer >= 8": 1, "KL > 0.1": 1, "induce below 0": 1}
    assert {name: n for name, n in chosen.dropped.items() if n} == drops
    assert sum(chosen.dropped.values()) + chosen.kept == chosen.total


def test_arditi_counts_filters_in_order() -> None:
    everything_wrong = (9, 3.0, -1.0, 9.0)
    scores = table((1, -1.0, 1.0, 0.0), everything_wrong, (9, math.nan, -1.0, 9.0))
    chosen = select(scores, n_layers=10, rule="arditi")
    assert {name: n for name, n in chosen.dropped.items() if n} == {"NaN": 1, "layer >= 8": 1}


def test_recorded_table_arditi_leaves_none_and_counts() -> None:
    message = error_of(RECORDED, n_layers=30, rule="arditi")
    assert "rule 'arditi' leaves none of 9 candidates (3 by layer >= 24, 6 by KL > 0.1)" in message
    assert "nearest is layer 22, position -1 with bypass -5.21, induce 2.31, KL 0.20" in message


def test_recorded_table_auto_takes_layer_22() -> None:
    """Unedited means as recorded with the table: 5.05 and -4.90."""
    scores = RECORDED.assign(harmful=5.05, harmless=-4.90)
    chosen = select(scores, n_layers=30)
    assert (chosen.layer, chosen.kl_bound, chosen.kept, chosen.total) == (22, 0.2, 1, 9)
    assert chosen.removed == pytest.approx((5.05 + 5.21) / 9.95)
    assert chosen.caused == pytest.approx((2.31 + 4.90) / 9.95)
    # The control: without layer 22 the next bound is needed.
    rest = select(scores[scores["layer"] != 22], n_layers=30)
    assert (rest.layer, rest.kl_bound) == (20, 0.3)


# A natively safety-trained chat model of 24 blocks, last prompt token, 32 + 32 validation prompts. By what it wrote
# afterwards (50 harmful report prompts, 29 refused unedited): layer 6 leaves 18 refusals, 12: 21, 13: 4, 14: 2, 15 to
# 18: 1, 20: 7, 22: 4. The published filters on absolute scores leave none, and once named layer 6.
FOREIGN = pd.DataFrame(
    [
        (1, -2.8852, -2.9665, 1.2237),
        (6, -2.0422, -2.8898, 0.0330),
        (9, -2.4774, -2.7565, 0.0790),
        (10, -2.7928, -2.7323, 0.1870),
        (12, -0.8172, -2.5505, 0.6740),
        (13, -2.3444, -2.1141, 0.0540),
        (14, -3.3988, -2.1262, 0.1250),
        (15, -3.3261, -1.7868, 0.0500),
        (16, -3.2776, -1.8231, 0.0650),
        (17, -3.2898, -1.8473, 0.0730),
        (18, -2.9867, -1.8596, 0.0400),
        (20, -2.6838, -1.8959, 0.0390),
        (22, -2.7080, -1.7141, 0.0390),
    ],
    columns=COLUMNS[1:],
).assign(position=-1, harmful=-1.7626, harmless=-2.9747)


def test_a_foreign_model_whose_scores_are_all_below_zero() -> None:
    chosen = select(FOREIGN, n_layers=24)
    assert 14 <= chosen.layer <= 18
    assert chosen.rule == "auto"
    assert {layer for _, layer in shortlist(FOREIGN, n_layers=24)} == {14, 15, 16, 17, 18}
    # The control: the same scores under the published rule, which holds them against 0.
    assert "by induce below 0" in error_of(FOREIGN, n_layers=24, rule="arditi")
    # So does the nearest where the filters on shares leave none.
    weak = FOREIGN.assign(induce=FOREIGN["harmless"])
    assert nearest(weak, n_layers=24).layer in (15, 16, 17, 18)


def test_auto_ranks_by_what_is_removed_up_to_all_and_then_by_kl() -> None:
    scores = shares((1, 0.9, 1.0, 0.01), (2, 1.0, 1.0, 0.08), (3, 3.0, 1.0, 0.05), (4, 1.5, 1.0, 0.11))
    assert select(scores, n_layers=10).layer == 3
    assert select(scores[scores["layer"] != 3], n_layers=10).layer == 2
    assert [layer for _, layer in shortlist(scores, n_layers=10)] == [3, 2, 1, 4]


def test_auto_takes_the_smallest_bound_that_leaves_one() -> None:
    scores = shares((1, 0.6, 0.6, 0.29), (2, 2.0, 2.0, 0.31))
    chosen = select(scores, n_layers=10)
    assert (chosen.layer, chosen.kl_bound, chosen.kept) == (1, 0.3, 1)
    assert "KL > 0.5" in error_of(shares((1, 0.9, 0.9, 0.51)))


def test_every_filter_that_dropped_something_is_named_with_its_count() -> None:
    scores = shares(
        (1, 1.0, 0.5, 0.05),  # the bounds themselves pass
        *((2, 0.49, 1.0, 0.05), (3, 1.0, 0.49, 0.05), (4, 1.0, 1.0, 0.2)),
        *((8, 1.0, 1.0, 0.05), (5, math.nan, 1.0, 0.05), (6, math.inf, 1.0, 0.05)),
    )
    chosen = select(scores, n_layers=10)
    assert (chosen.layer, chosen.kept) == (1, 1)
    dropped = {name: n for name, n in chosen.dropped.items() if n}
    assert list(dropped.values()) == [1, 2, 1, 1, 1]
    assert all(name in chosen.explain() for name in dropped)
    assert any("induce" in name for name in dropped)


ROUNDED = st.floats(-3, 3).map(lambda x: round(x, 3))
SHARES = st.lists(
    st.tuples(st.integers(0, 11), ROUNDED, ROUNDED, st.sampled_from([0.02, 0.05, 0.15, 0.25, 0.4, 0.9, 3.0])),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[0],
)


@given(
    rows=SHARES,
    harmful=st.floats(-5, 5),
    gap=st.floats(-3, 10),
    constant=st.floats(-50, 50),
    factor=st.floats(0.01, 100),
)
def test_no_choice_depends_on_the_zero_or_the_unit_of_the_scores(
    rows: list[tuple[float, ...]], harmful: float, gap: float, constant: float, factor: float
) -> None:
    gap = gap if abs(gap) > 1e-3 else 1.0
    scores = shares(*rows, harmful=harmful, harmless=harmful - gap)
    scores = scores.assign(gap_low=gap - 1.0, gap_high=gap + 1.0)
    other = scores.copy()
    for column in ("bypass", "induce", "harmful", "harmless"):
        other[column] = factor * scores[column] + constant
    for column in ("gap_low", "gap_high"):
        other[column] = factor * scores[column]
    for function in (select, nearest, shortlist):
        found, again = (outcome(function, one) for one in (scores, other))
        assert place_of(found) == place_of(again)


def place_of(found: Any) -> Any:
    """Where an outcome stands, and what it was dropped for; of an error that it is one."""
    if isinstance(found, Selection):
        return found.position, found.layer, found.failed, found.kept, found.dropped
    return "error" if isinstance(found, str) else found


def test_the_published_rule_does_depend_on_the_zero() -> None:
    """The control of the theorem above."""
    scores = shares((1, 1.0, 1.0, 0.05), (2, 0.9, 0.4, 0.05), harmful=5.0, harmless=-5.0)
    picks = {
        outcome(select, scores.assign(induce=scores["induce"] + c), rule="arditi").layer for c in (0.0, 2.0)
    }
    assert picks == {1}
    assert "induce below 0" in error_of(scores.assign(induce=scores["induce"] - 6), rule="arditi")


@given(rows=SHARES)
def test_auto_is_a_plain_reading_of_its_rule(rows: list[tuple[float, ...]]) -> None:
    early = [r for r in rows if r[0] < 8 and r[1] >= 0.5 and r[2] >= 0.5]
    bounds = [b for b in (0.1, 0.2, 0.3, 0.5) if any(r[3] <= b for r in early)]
    found = outcome(select, shares(*rows))
    if not bounds:
        assert "leaves none of" in found
        return
    passing = [r for r in early if r[3] <= bounds[0]]
    first = min(passing, key=lambda r: (-min(r[1], 1.0), r[3], r[0]))
    assert (found.layer, found.kl_bound, found.kept) == (first[0], bounds[0], len(passing))


@given(rows=SHARES)
def test_nearest_never_prefers_what_removes_less_at_no_more_kl(rows: list[tuple[float, ...]]) -> None:
    found = outcome(nearest, shares(*rows))
    assert isinstance(found, Selection)
    usable = [r for r in rows if r[0] < 8] or rows
    assert not [r for r in usable if min(r[1], 1.0) > min(found.removed, 1.0) + 1e-9 and r[3] <= found.kl]


def test_nearest_drops_the_fewest_filters_and_names_them() -> None:
    by_induce = (3, 0.9, 0.1, 0.05)
    by_two = (4, 0.9, 0.1, 2.0)
    found = nearest(shares(by_induce, by_two), n_layers=10)
    assert found.layer == 3
    assert len(found.failed) == 1
    assert "induce" in found.failed[0]
    assert len(nearest(shares(by_two), n_layers=10).failed) == 2
    assert nearest(shares((3, 0.9, 0.9, 0.05)), n_layers=10).failed == ()


@pytest.mark.parametrize(("low", "shown"), [(-0.1, False), (0.0, False), (0.1, True)])
def test_without_a_gap_there_is_no_refusal_to_remove(low: float, shown: bool) -> None:
    scores = shares((1, 1.0, 1.0, 0.05)).assign(gap_low=low, gap_high=20.0)
    if shown:
        assert select(scores, n_layers=10).layer == 1
    else:
        assert "no refusal to remove" in error_of(scores)
    reversed_gap = shares((1, 1.0, 1.0, 0.05), harmful=0.0, harmless=3.0)
    assert "no refusal to remove" in error_of(reversed_gap)
    assert nearest(reversed_gap, n_layers=10).layer == 1


def answers(scores: pd.DataFrame, found: dict[int, tuple[float, float]], n: int = 32) -> pd.DataFrame:
    """Of some layers the share of coherent compliance and the nll."""
    complied = scores["layer"].map({layer: c for layer, (c, _) in found.items()})
    nll = scores["layer"].map({layer: v for layer, (_, v) in found.items()})
    return scores.assign(
        complied=complied, refused=1 - complied, degenerate=0.0 * complied, nll=nll, n_answers=n
    )


def test_answers_decide_among_the_candidates_that_were_read() -> None:
    scores = shares((1, 1.0, 1.0, 0.05), (2, 0.9, 1.0, 0.05), (3, 0.8, 1.0, 0.05), (4, 0.7, 1.0, 0.05))
    read = answers(scores, {1: (0.5, 0.1), 2: (0.9375, 0.5), 3: (0.90625, 0.2)})
    chosen = select(read, n_layers=10)
    # Layer 3 costs less; layer 4 was not read.
    assert chosen.layer == 2
    assert chosen.confirmed is not None
    assert (chosen.confirmed.candidates, chosen.confirmed.runner_up) == (3, (-1, 3))
    assert chosen.confirmed.margin == pytest.approx(1 / 32)
    assert chosen.confirmed.margin_low < chosen.confirmed.margin < chosen.confirmed.margin_high
    # Without the columns, or with no cell filled, the scores decide; the published rule never asks.
    for unread in (scores, read.assign(complied=math.nan)):
        assert select(unread, n_layers=10).layer == 1
        assert select(unread, n_layers=10).confirmed is None
    published = read.assign(bypass=read["bypass"] - 10)
    assert select(published, n_layers=10, rule="arditi").layer == 1
    # The control: where both write alike, the one that costs less.
    assert select(answers(scores, {2: (0.9375, 0.5), 3: (0.9375, 0.2)}), n_layers=10).layer == 3


def test_what_fails_a_filter_must_be_shown_to_do_better() -> None:
    scores = shares((1, 1.0, 1.0, 0.9), (2, 0.9, 1.0, 0.2), (3, 0.8, 1.0, 0.2))
    for better, chosen in ((0.9375, 2), (1.0, 1)):
        read = answers(scores, {1: (better, 0.1), 2: (0.84375, 0.5), 3: (0.75, 0.2)})
        assert select(read, n_layers=10).layer == chosen
    # The control: where it passes, one answer is enough.
    passing = answers(scores.assign(kl=0.2), {1: (0.9375, 0.1), 2: (0.90625, 0.5)})
    assert select(passing, n_layers=10).layer == 1


def test_a_record_is_read_back_as_it_was() -> None:
    scores = shares((1, 1.0, 1.0, 0.05), (2, 0.9, 0.1, 0.05))
    read = answers(scores, {1: (0.5, 0.1), 2: (0.9, 0.5)})
    for chosen in (select(scores, n_layers=10), select(read, n_layers=10), nearest(read, n_layers=10)):
        assert Selection.from_record(json.loads(json.dumps(asdict(chosen)))) == chosen


def test_candidates_that_racing_dropped_are_not_chosen() -> None:
    scores = shares((1, 1.0, 1.0, 0.01), (2, 0.8, 0.8, 0.05)).assign(n_harmful=[6, 32], n_harmless=[6, 32])
    chosen = select(scores, n_layers=10)
    assert (chosen.layer, chosen.dropped["racing"]) == (2, 1)
    assert nearest(scores, n_layers=10).layer == 2
    assert select(scores.assign(n_harmful=32, n_harmless=32), n_layers=10).layer == 1


def test_where_none_passes_each_filter_is_tried_as_the_wrong_one() -> None:
    low_cause = [(layer, 0.6, 0.1, 0.01 * layer) for layer in (1, 2, 3, 4)]
    high_kl = [(layer, 0.6, 0.9, 0.1 * layer) for layer in (6, 7)]
    scores = shares(*low_cause, *high_kl, (5, 0.2, 0.2, 0.2))
    assert [layer for _, layer in shortlist(scores, n_layers=10)] == [1, 6, 2, 7, 3]
    # The control: what passes all filters stands before what fails one.
    passing = shares(*low_cause, *high_kl, (5, 0.6, 0.6, 0.4))
    assert [layer for _, layer in shortlist(passing, n_layers=10)] == [5, 1, 6, 2, 7]


def test_the_shortlist_has_at_most_two_candidates_a_layer() -> None:
    scores = pd.concat(
        [
            shares((5, 1.0, 1.0, 0.01 * (1 - p)), (6, 0.9, 1.0, 0.05)).assign(position=p)
            for p in (-1, -2, -3, -4)
        ]
    )
    assert shortlist(scores, n_layers=10) == [(-1, 5), (-2, 5), (-4, 6), (-3, 6)]


@pytest.mark.parametrize("column", ["bypass", "induce", "kl"])
def test_nan_is_never_chosen(column: str) -> None:
    scores = shares((1, 1.0, 1.0, 0.0), (2, 0.9, 1.0, 0.05))
    assert select(scores, n_layers=10).layer == 1
    scores.loc[0, column] = math.nan
    chosen = select(scores, n_layers=10)
    assert (chosen.layer, chosen.dropped["NaN"]) == (2, 1)
    assert nearest(scores, n_layers=10).layer == 2


@pytest.mark.parametrize("n_layers", [2, 4, 5, 12, 18, 24, 30, 32, 80])
def test_layers_from_int_four_fifths_on_are_left_out(n_layers: int) -> None:
    first_out = (4 * n_layers) // 5
    scores = shares(*((layer, 0.6 + layer / 1000, 1.0, 0.0) for layer in range(n_layers + 1)))
    for rule in SELECTION_RULES:
        assert select(scores.assign(induce=1.0 + scores["induce"]), n_layers=n_layers, rule=rule).layer == (
            first_out - 1
        )
    only_late = scores[scores["layer"] >= first_out]
    message = error_of(only_late, n_layers=n_layers)
    assert f"{len(only_late)} by layer >= {first_out}" in message
    assert nearest(only_late, n_layers=n_layers).failed == (f"layer >= {first_out}",)


def test_nothing_but_nan_is_one_line() -> None:
    scores = shares((1, math.nan, math.nan, math.nan))
    assert "rule 'auto' leaves none of 1 candidates (1 by NaN); none of 1 candidates" in error_of(scores)


@pytest.mark.parametrize("column", COLUMNS)
def test_missing_columns_and_rows_are_reported(column: str) -> None:
    assert f"missing: {column}" in error_of(RECORDED.drop(columns=column))
    assert "missing: rows" in error_of(RECORDED.iloc[:0])


def test_auto_without_the_unedited_means_says_what_is_missing() -> None:
    assert "missing: harmful, harmless" in error_of(RECORDED)
    assert nearest(RECORDED, n_layers=30).layer == 22


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
    scores = table(*rows).assign(harmful=2.0, harmless=-1.0)
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


def test_a_lower_bypass_that_a_filter_dropped_is_not_denied() -> None:
    """Case W1: bypass -9 fails a filter, -1 is taken: it is the lowest of those that pass, and the filter is named."""
    rows = [
        {"position": p, "layer": layer, "bypass": 1.0, "induce": 1.0, "kl": 0.05}
        for p in (-3, -2, -1)
        for layer in range(6)
    ]
    rows[2] |= {"bypass": -9.0, "induce": -0.1}
    rows[3] |= {"bypass": -1.0}
    chosen = select(pd.DataFrame(rows), n_layers=8, rule="arditi")
    assert (chosen.layer, chosen.bypass) == (3, -1.0)
    assert "lowest bypass of those that pass, -1.00" in chosen.explain()
    assert "1 by induce below 0" in chosen.explain()
