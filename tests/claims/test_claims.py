"""One rule from contrasts to claims: exact tests decide, intervals never contradict them."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, boschloo_exact

from mechsafety.claims import (
    Estimate,
    corrected_over,
    decide,
    of_values,
    paired_binary,
    paired_control,
    paired_counts,
    unpaired_counts,
)
from mechsafety.claims.contrasts import Contrast, exact_difference
from mechsafety.claims.numbers import between, number, p_value
from mechsafety.claims.sentences import tallies
from mechsafety.core.wording import percent, percent_cell, points, two_digits
from tests.claims.recomputed import holm
from tests.claims.spelled import NUMBER, is_rounded

VERDICTS = st.sampled_from(["refusal", "compliance", "degenerate", "unparsed"])
ITEMS = st.lists(st.tuples(VERDICTS, VERDICTS), max_size=60)


def _of(items: list[tuple[str, str]], **more: float) -> Contrast:
    before, after = ({i: pair[side] for i, pair in enumerate(items)} for side in (0, 1))
    return paired_binary(before, after, subject="s", measure="refusals", margin=more.get("margin"))


@given(items=ITEMS)
def test_a_change_is_shown_exactly_where_mcnemar_over_the_items_read_twice_shows_it(
    items: list[tuple[str, str]],
) -> None:
    read = [(a == "refusal", b == "refusal") for a, b in items if "unparsed" not in (a, b)]
    lost, gained = read.count((True, False)), read.count((False, True))
    claim = decide(_of(items))
    if not read:
        assert claim.direction == "not tested"
        return
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    expected = "none shown" if p >= 0.05 else "down" if lost > gained else "up"
    assert claim.direction == expected
    assert claim.contrast.before.hits == sum(a for a, _ in read)
    assert claim.contrast.after.hits == sum(b for _, b in read)
    assert claim.powerless == (expected == "none shown" and 2 * 0.5 ** len(read) >= 0.05)


@given(lost=st.integers(0, 40), gained=st.integers(0, 40), kept=st.integers(0, 40))
def test_the_interval_of_a_paired_difference_never_leaves_out_zero_where_the_test_shows_nothing(
    lost: int, gained: int, kept: int
) -> None:
    n = lost + gained + kept
    if not n:
        return
    low, high = exact_difference(lost, gained, n)
    assert low <= (gained - lost) / n <= high
    if not lost + gained or binomtest(lost, lost + gained).pvalue >= 0.05:
        assert low <= 0 <= high


@pytest.mark.parametrize(("before", "after"), [((5, 5), (1, 5)), ((20, 40), (22, 44)), ((0, 3), (3, 3))])
def test_counts_of_different_items_are_tested_by_boschloo(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    (a, n), (b, m) = before, after
    claim = decide(unpaired_counts(subject="s", measure="refusals", before=before, after=after))
    p = boschloo_exact([[a, b], [n - a, m - b]]).pvalue
    assert claim.contrast.p == pytest.approx(min(1, p))
    assert claim.shown == (p < 0.05)
    assert claim.shown or claim.contrast.difference.low <= 0 <= claim.contrast.difference.high


def test_equal_needs_a_margin_that_was_stated_and_an_interval_within_it() -> None:
    many = [("refusal", "refusal")] * 200 + [("compliance", "compliance")] * 200
    assert decide(_of(many, margin=0.1)).direction == "equal"
    assert decide(_of(many)).direction == "none shown"
    assert decide(_of(many[:3], margin=0.1)).direction == "none shown"  # too few to exclude a change


@given(ps=st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=12))
def test_correction_is_holms_over_the_tests_that_were_made(ps: list[float]) -> None:
    value = Estimate(value=1.0)
    contrasts = [
        of_values(
            subject=str(i),
            measure="KL",
            unit="nats",
            before=value,
            after=value,
            difference=Estimate(value=0.5),
            p=p,
            why="" if p == p else "no test",
        )
        for i, p in enumerate(ps)
    ]
    found = corrected_over(contrasts, "systems")
    made = [p for p in ps if p == p]
    expected = iter(holm(made))
    for one, p in zip(found, ps, strict=True):
        assert one.family == len(made)
        if p == p:
            assert one.corrected == pytest.approx(next(expected))
        else:
            assert decide(one).direction == "not tested"


@pytest.mark.parametrize(
    ("after", "draw", "beyond"),
    [
        (0, 18, "yes"),  # the fall goes beyond
        (18, 0, "control does more"),  # the control takes more away
        (10, 10, "no"),
    ],
)
def test_a_control_can_be_weaker_stronger_or_as_strong(after: int, draw: int, beyond: str) -> None:
    def verdicts(refused: int) -> dict[object, str]:
        return {i: "refusal" if i < refused else "compliance" for i in range(40)}

    import dataclasses

    contrast = paired_binary(verdicts(40), verdicts(after), subject="s", measure="refusals")
    control = paired_control("2 random directions", verdicts(after), [verdicts(draw)] * 2)
    assert decide(dataclasses.replace(contrast, control=control)).beyond == beyond


def test_a_control_that_lies_to_no_one_side_is_not_gone_beyond() -> None:
    def verdicts(refused: range) -> dict[object, str]:
        return {i: "refusal" if i in refused else "compliance" for i in range(60)}

    control = paired_control("2 draws", verdicts(range(30)), [verdicts(range(0)), verdicts(range(60))])
    assert control.p == 1.0
    assert control.below is None


@given(p=st.floats(1e-4, 1))
def test_a_p_is_written_on_its_own_side_of_alpha(p: float) -> None:
    written = float(p_value(p).removeprefix("p = ").replace("p = .", "."))
    assert (written < 0.05) == (p < 0.05)


@given(share=st.floats(0, 1))
def test_zero_and_all_are_written_only_where_exact(share: float) -> None:
    assert (percent(share) == "0 %") == (share == 0)
    assert (percent(share) == "100 %") == (share == 1)
    if share == 0 or share > 1e-14:  # what lies between has no twelve digits
        assert (float(points(share)) == 0) == (share == 0)
    assert (points(share) == "+100") == (share == 1)
    assert points(0.99969473015544) == "+99.97"
    assert (percent_cell(share) == "0%") == (share == 0)
    assert (percent_cell(share) == "100%") == (share == 1)
    assert (two_digits(share) in ("0.00", "1.00")) == (min(share, 1 - share) < 5e-9)


@given(value=st.floats(-1, 1) | st.sampled_from([1 - 1e-5, 1e-6, -1 + 1e-4, 1 - 1e-12, 0.0, -0.0, 1.0]))
def test_areas_and_cosines_have_two_digits_and_0_and_1_only_where_exact(value: float) -> None:
    text = number(value, "AUROC")
    assert is_rounded(text, value, (0.0, 1.0, -1.0))
    assert "e" not in text
    ends = {float(t) for t in between(value, value, "AUROC").strip("[]").split(", ")}
    assert ends == {float(text)}


@given(value=st.floats(1e-3, 1e9))
def test_values_are_written_without_powers_of_ten(value: float) -> None:
    assert re.fullmatch(NUMBER, number(value, ""))
    assert is_rounded(number(value, ""), value)


def test_counts_are_those_of_the_items() -> None:
    with_moves = _of(
        [("refusal", "compliance")] * 7 + [("refusal", "degenerate")] * 2 + [("compliance", "unparsed")]
    )
    assert with_moves.moves == {
        ("refusal", "compliance"): 7,
        ("refusal", "degenerate"): 2,
        ("compliance", "unparsed"): 1,
    }
    by_counts = paired_counts(subject="s", measure="refusals", n=9, hits=9, lost=9, gained=0)
    assert (with_moves.p, with_moves.difference) == (by_counts.p, by_counts.difference)


def test_a_fall_without_a_tested_control_is_unknown_among_those_beyond_it() -> None:
    fall = paired_counts(subject="s", measure="refusals", n=50, hits=45, lost=40, gained=0)
    before, after = dict.fromkeys(range(50), "refusal"), dict.fromkeys(range(50), "compliance")
    beside = replace(fall, control=paired_control("random directions", after, [before]))
    as_much = replace(fall, control=paired_control("random directions", after, [after]))
    unread = replace(
        fall, control=paired_control("random directions", after, [dict.fromkeys(range(50), "unparsed")])
    )
    none = paired_counts(subject="s", measure="refusals", n=50, hits=45, lost=1, gained=1)
    things = [[[decide(c)]] for c in (fall, beside, as_much, unread, none)]
    said = tallies("S", things, of="systems", measure="refusals", control="random directions")
    assert "4 of 5 systems show a fall in refusals." in said[0]
    assert "1 of 3 systems show a fall in refusals beyond random directions; 2 unknown" in said[1]
    assert "0 of 5 systems show a rise" in said[2]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((3364516.0, "3364516"), (1e30, ">1000000000000000"), (math.inf, ">1000000000000000")),
        *((1.234e-7, "0.000000123"), (-2e-12, "-0.00000000000200"), (1e-13, "0"), (0.0, "0")),
    ],
)
def test_small_and_large_numbers_have_no_exponent_and_no_digit_that_a_float_lacks(
    value: float, text: str
) -> None:
    assert number(value, "times") == f"{text} times"
    assert re.fullmatch(NUMBER, text)
    assert is_rounded(text, value, two_digits=True)
