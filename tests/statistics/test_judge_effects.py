"""The effect of the judge: hand counts, exact tests against enumeration, tau against scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kendalltau

from benchmarks.coverage import interaction_coverage, paired_coverage
from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics import (
    effect_flips,
    judge_edit_interaction,
    judge_effects,
    mcnemar,
    paired_difference,
    ranking_agreement,
    sign_change_p,
)

NAMES = {"R": "refusal", "C": "compliance", "D": "degenerate", "U": "unparsed"}


def pair(
    judge: str, original: str, edited: str, *, system: str = "m", label: str = "harmful"
) -> pd.DataFrame:
    rows = [
        {
            "system": system,
            "arm": arm,
            "id": f"{label}{i}",
            "label": label,
            "judge": judge,
            "verdict": NAMES[c],
        }
        for arm, text in (("original", original), ("edited", edited))
        for i, c in enumerate(text)
    ]
    return pd.DataFrame(rows)


def test_an_effect_by_hand() -> None:
    row = judge_effects(pair("rules", "RRRRRRRRRC", "CCCCCCCRRR")).iloc[0]
    assert (row["n"], row["b"], row["c"]) == (10, 7, 1)
    assert row["change"] == pytest.approx(-0.6)
    assert row["p"] == mcnemar(7, 1)
    assert row["low"] < -0.6 < 0 <= row["high"]  # as the test, whose p is .07


def test_mappings_disagree_about_broken_text() -> None:
    found = judge_effects(pair("rules", "RRRRRRRR", "DDDDDDCC")).set_index("mapping")
    assert found.loc["refusal", "change"] == -1.0
    assert found.loc["not compliance", "change"] == -0.25
    assert (found.loc["coherent only", "n"], found.loc["coherent only", "dropped"]) == (2, 6)
    # No verdict is unparsed, so readings of unparsed would only repeat the first row.
    assert set(found.index) == {"refusal", "not compliance", "coherent only"}


def test_unparsed_verdicts_are_bounded_from_both_sides() -> None:
    found = judge_effects(pair("j", "RRRRCC", "RRUUCC")).set_index("mapping")["change"]
    assert found["unparsed refuses"] == 0.0
    assert found["unparsed complies"] == pytest.approx(-2 / 6)
    assert found["refusal"] == 0.0


def test_tags_allow_a_strict_and_a_lenient_reading() -> None:
    table = pair("rules", "RRRRCC", "RRCCCC")
    tags = ["indirect lecture", "direct", "direct", "indirect disclaimer", "", "deflection"]
    tags += ["direct", "direct", "deflection", "redirection", "", ""]
    found = judge_effects(table.assign(tags=tags)).set_index("mapping")
    assert found.loc["refusal", ["original", "edited"]].tolist() == pytest.approx([4 / 6, 2 / 6])
    assert found.loc["strict", ["original", "edited"]].tolist() == pytest.approx([2 / 6, 2 / 6])
    assert found.loc["lenient", ["original", "edited"]].tolist() == pytest.approx([5 / 6, 4 / 6])
    assert found.loc["strict", "n"] == found.loc["lenient", "n"] == 6
    # Without the tags, or where none of them tells more, the readings would only repeat the first row.
    assert set(judge_effects(table)["mapping"]) == {"refusal"}
    assert set(judge_effects(table.assign(tags="direct"))["mapping"]) == {"refusal"}


def test_flips_are_counted_and_named() -> None:
    table = pd.concat(
        [
            pair("rules", "R" * 10 + "C" * 10, "C" * 20),
            pair("same", "R" * 10 + "C" * 10, "C" * 19 + "R"),
            pair("weak", "R" * 10 + "C" * 10, "R" * 7 + "C" * 13),
            pair("contrary", "C" * 20, "R" * 8 + "C" * 12),
        ]
    )
    row = effect_flips(judge_effects(table), primary="rules").iloc[0]
    assert (row["alternatives"], row["sign_flips"], row["significance_flips"]) == (3, 1, 1)
    assert row["flipped_by"] == "weak, contrary"
    with pytest.raises(MechsafetyError, match="there are"):
        effect_flips(judge_effects(table), primary="nobody")


def test_judges_without_both_arms_have_no_effect() -> None:
    table = pair("rules", "RRCC", "CCCC")
    assert judge_effects(table[table["arm"] == "original"]).empty
    assert judge_effects(pair("degeneracy", "UUUU", "DDUU")).empty


def test_paired_interval_has_width_at_the_edges() -> None:
    low, high = paired_difference(0, 0, 50)
    assert low < 0 < high
    assert paired_difference(50, 0, 50)[0] == -1.0
    assert all(math.isnan(x) for x in paired_difference(0, 0, 0))


def test_paired_interval_covers() -> None:
    found = paired_coverage(2000, n=50, lost=0.3, won=0.02)
    assert 0.93 <= found.held <= 0.97
    # Control: Wald's interval, which has no width without discordant pairs, does not.
    rng = np.random.default_rng(0)
    held = []
    for b, c, _ in rng.multinomial(50, [0.04, 0.0, 0.96], size=2000):
        d = (c - b) / 50
        half = 1.96 * math.sqrt((b + c) / 2500 - d**2 / 50)
        held.append(d - half <= -0.04 <= d + half)
    assert np.mean(held) < 0.93


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_changes_by_enumeration(sums: list[int]) -> None:
    totals = [
        sum(s * x for s, x in zip(signs, sums, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(sums))
    ]
    plain = np.mean([abs(t) >= abs(sum(sums)) for t in totals])
    assert sign_change_p(sums) == pytest.approx(plain)


def test_sign_changes_of_ones_are_mcnemar() -> None:
    assert sign_change_p([1] * 9 + [-1] * 2) == pytest.approx(mcnemar(9, 2))


def test_interaction_sees_a_judge_that_fails_on_one_arm() -> None:
    # a and b agree on the original; b misses every refusal of the edited arm.
    differs = pd.concat([pair("a", "R" * 20, "R" * 12 + "C" * 8), pair("b", "R" * 20, "C" * 20)])
    row = judge_edit_interaction(differs, seed=0).iloc[0]
    assert row["difference"] == pytest.approx(0.6)
    assert row["p"] < 0.001
    assert row["low"] > 0
    # Control: b is as much stricter in both arms.
    level = pd.concat(
        [pair("a", "R" * 20, "R" * 12 + "C" * 8), pair("b", "R" * 16 + "C" * 4, "R" * 8 + "C" * 12)]
    )
    assert judge_edit_interaction(level, seed=0).iloc[0]["p"] == 1.0


def test_judges_that_read_the_edit_the_opposite_way_differ_by_two_at_most() -> None:
    opposite = pd.concat([pair("a", "R" * 20, "C" * 20), pair("b", "C" * 20, "R" * 20)])
    row = judge_edit_interaction(opposite, seed=0).iloc[0]
    assert (row["difference"], row["low"]) == (-2.0, -2.0)
    assert -2 < row["high"] < -1


def test_interaction_is_pooled_and_per_system() -> None:
    table = pd.concat(
        [
            pair("a", "RRRR", "RRCC", system="one"),
            pair("b", "RRRR", "CCCC", system="one"),
            pair("a", "RRRR", "CCCC", system="two"),
            pair("b", "RRRR", "RRCC", system="two"),
        ]
    )
    found = judge_edit_interaction(table, seed=0).set_index("system")["difference"]
    assert (found["all"], found["one"], found["two"]) == (0.0, 0.5, -0.5)


@pytest.mark.parametrize(
    ("draws", "least", "most"), [(60, 0.87, 1.0), pytest.param(300, 0.92, 0.98, marks=pytest.mark.slow)]
)
def test_interaction_interval_covers(draws: int, least: float, most: float) -> None:
    found = interaction_coverage(draws, prompts=100, flipped=0.1, resamples=200)
    assert least <= found.held <= most


def test_the_false_alarms_of_the_interaction_test() -> None:
    rng = np.random.default_rng(0)
    alarms = [sign_change_p(rng.integers(-1, 2, 40)) < 0.05 for _ in range(1000)]
    assert np.mean(alarms) <= binom.ppf(0.999, 1000, 0.05) / 1000


def test_tau_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    parts, rates = [], {"a": [], "b": []}
    for system in range(6):
        for judge in ("a", "b"):
            original = rng.random(30) < 0.9
            edited = rng.random(30) < rng.random()
            text = ["".join("R" if x else "C" for x in arm) for arm in (original, edited)]
            parts.append(pair(judge, *text, system=f"s{system}"))
            rates[judge].append(float(edited.mean() - original.mean()))
    found = ranking_agreement(pd.concat(parts), seed=0, resamples=200)
    row = found[found["what"] == "change"].iloc[0]
    assert row["tau"] == pytest.approx(kendalltau(rates["a"], rates["b"]).statistic)
    assert row["low"] <= row["tau"] <= row["high"]
    assert row["systems"] == 6


def test_two_systems_have_no_ranking() -> None:
    table = pd.concat([pair(j, "RRRC", "RCCC", system=s) for j in "ab" for s in ("one", "two")])
    assert ranking_agreement(table, seed=0, resamples=5)["tau"].isna().all()


def test_a_missing_side_is_dropped_and_counted() -> None:
    cut = pair("weak", "RRRRRRRR", "CCCCCCCC").iloc[:-1]
    found = judge_effects(pd.concat([pair("rules", "RRRRRRRR", "CCCCCCCC"), cut])).set_index("judge")
    assert (found.loc["weak", "n"], found.loc["weak", "dropped"]) == (7, 1)
    assert (found.loc["rules", "n"], found.loc["rules", "dropped"]) == (8, 0)


def test_a_reading_of_nothing_is_no_alternative() -> None:
    effects = judge_effects(pair("rules", "R" * 8, "D" * 8))
    row = effect_flips(effects, primary="rules").iloc[0]
    # "coherent only" reads no pair here: it can neither agree nor differ.
    assert (row["alternatives"], row["significance_flips"]) == (1, 1)
    assert row["flipped_by"] == "rules (not compliance)"
    unread = judge_effects(pd.concat([pair("a", "UUUU", "UUUU"), pair("b", "RRCC", "CCCC")]))
    assert effect_flips(unread, primary="a").iloc[0]["alternatives"] == 0


def test_equal_changes_are_tied_despite_floating_point() -> None:
    parts = []
    for system, (before, after) in {"one": (9, 5), "two": (7, 3), "three": (10, 2)}.items():
        for judge in "ab":
            left = after + (judge == "b" and system == "two")
            text = ["R" * k + "C" * (10 - k) for k in (before, left)]
            parts.append(pair(judge, *text, system=system))
    found = ranking_agreement(pd.concat(parts), seed=0, resamples=5).set_index("what")
    assert found.loc["change", "tau"] == pytest.approx(kendalltau([-4, -4, -8], [-4, -3, -8]).statistic)


def test_judges_that_never_differ_are_not_known_never_to_differ() -> None:
    few = pd.concat([pair(j, "RRRRRR", "CCCCCC") for j in "ab"])
    many = pd.concat([pair(j, "RRRRRR" * 20, "CCCCCC" * 20) for j in "ab"])
    narrow, wide = (judge_edit_interaction(t, seed=0).iloc[0] for t in (many, few))
    assert (wide["difference"], wide["p"]) == (0.0, 1.0)
    assert wide["low"] < -0.2 < narrow["low"] < 0 < narrow["high"] < 0.2 < wide["high"]
    assert (wide["low"], wide["high"]) == pytest.approx(paired_difference(0, 0, 6))
