"""Several draws of one change: what is said holds of every draw. Two changes: their difference is tested itself."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from mechsafety.claims import decide
from mechsafety.claims.draws import control_of_draws, differing_changes, paired_draws
from mechsafety.claims.tables import COLUMNS, claim_table
from mechsafety.statistics import mcnemar
from mechsafety.statistics.paired import sign_flip_p
from mechsafety.statistics.resampling import mean_interval


def verdicts(refused: int, n: int = 50, *, first: int = 0) -> dict[object, str]:
    """``refused`` of ``n`` items from the item ``first`` on, the rest answered."""
    return {i: "refusal" if first <= i < first + refused else "compliance" for i in range(n)}


def test_of_several_draws_the_least_sure_is_told_and_decides() -> None:
    before, draws = verdicts(40), [verdicts(0), verdicts(30), verdicts(20)]
    found = paired_draws(before, draws, subject="s", measure="refusals")
    assert found.p == pytest.approx(mcnemar(10, 0))
    assert found.after.hits == 30
    assert "draw 2 of 3" in found.subject
    # One draw that shows nothing, and one to the other side: no change is shown, and the interval holds 0.
    assert decide(paired_draws(before, [*draws, before], subject="s", measure="m")).direction == "none shown"
    opposite = decide(paired_draws(before, [verdicts(0), verdicts(50)], subject="s", measure="m"))
    assert opposite.direction == "none shown"
    assert opposite.contrast.difference.low < 0 < opposite.contrast.difference.high
    assert decide(paired_draws(before, [], subject="s", measure="m")).direction == "not tested"


def test_a_control_is_beaten_only_by_every_draw_of_the_change() -> None:
    random = [verdicts(40), verdicts(38)]
    sure = control_of_draws("r", [verdicts(0), verdicts(5)], random)
    assert sure is not None
    assert sure.below is True
    assert sure.p == pytest.approx(mcnemar(33, 0))
    one_is_not = control_of_draws("r", [verdicts(0), verdicts(39)], random)
    assert one_is_not is not None
    assert one_is_not.p == 1.0
    assert control_of_draws("r", [verdicts(0)], []) is None


def test_the_table_of_claims_has_each_beside_its_control() -> None:
    contrast = paired_draws(verdicts(40), [verdicts(5)], subject="s", measure="refusals")
    table = claim_table([decide(contrast)])
    assert tuple(table.columns) == COLUMNS
    assert table.iloc[0][["claim", "beyond"]].tolist() == ["fall", "no control"]


def test_two_changes_differ_by_the_test_of_their_difference() -> None:
    whole, few, none = verdicts(40), verdicts(30), verdicts(0)

    def told(one: tuple, other: tuple) -> str:
        return decide(differing_changes(one, other, subject="s", measure="m", states=("a", "b"))).direction

    assert told((whole, few), (whole, none)) == "up"
    assert told((whole, none), (whole, few)) == "down"
    assert told((whole, few), (whole, few)) == "none shown"
    # Each falls on its own, the second not shown to fall by more.
    assert told((whole, verdicts(20)), (whole, verdicts(19))) == "none shown"
    unread = dict.fromkeys(whole, "unparsed")
    assert told((whole, unread), (whole, none)) == "not tested"


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_sign_flips_are_those_of_all_signs(values: list[int]) -> None:
    x = np.array(values, dtype=float)
    totals = [abs(np.dot(s, x)) for s in itertools.product((-1, 1), repeat=len(x))]
    assert sign_flip_p(x) == pytest.approx(np.mean([t >= abs(x.sum()) for t in totals]))


def test_sign_flips_of_many_agree_with_scipy_and_nothing_has_no_p() -> None:
    x = np.random.default_rng(0).normal(0.35, 1, size=40)
    expected = permutation_test(
        (x,),
        lambda v, axis: v.mean(axis),
        permutation_type="samples",
        n_resamples=9999,
        rng=1,
        vectorized=True,
    )
    assert sign_flip_p(x) == pytest.approx(expected.pvalue, abs=0.01)
    assert math.isnan(sign_flip_p(np.array([math.nan])))


def test_the_interval_of_a_mean_has_a_width_where_all_are_the_same() -> None:
    low, high = mean_interval(np.ones(10))
    assert low < 1 <= high
    assert all(math.isnan(end) for end in mean_interval(np.array([])))
    low, high = mean_interval(np.arange(100.0))
    assert low < 49.5 < high
