"""An edit is beyond random draws only where it differs from every one of them to the same side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as oracle
from statsmodels.stats.multitest import multipletests

from mechsafety.statistics import CONTROL_TEST_COLUMNS, control_tests, largest_p, rank_p

VERDICTS = ("refusal", "compliance", "degenerate", "unparsed")


def tables(systems: Mapping[str, Sequence[Sequence[str]]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of each system the verdicts under the edit, then those under every draw, prompt by prompt."""
    rows = [
        {"system": system, "draw": draw, "id": f"p{i}", "verdict": verdict}
        for system, arms in systems.items()
        for draw, arm in enumerate(arms)
        for i, verdict in enumerate(arm)
    ]
    table = pd.DataFrame(rows)
    return table[table["draw"] == 0], table[table["draw"] > 0]


def refusing(k: int, n: int = 20) -> list[str]:
    return ["refusal"] * k + ["compliance"] * (n - k)


arms = st.lists(st.lists(st.sampled_from(VERDICTS), min_size=12, max_size=12), min_size=2, max_size=5)


@settings(max_examples=12, deadline=None)
@given(st.lists(arms, min_size=1, max_size=3))
def test_tests_equal_statsmodels(several: list[list[list[str]]]) -> None:
    systems = {f"s{number}": one for number, one in enumerate(several)}
    table = control_tests(*tables(systems))
    assert tuple(table.columns) == CONTROL_TEST_COLUMNS
    assert len(table) == sum(len(one) - 1 for one in several)
    largest = []
    for system, (edit, *draws) in systems.items():
        rows = table[table["system"] == system]
        for row, draw in zip(rows.to_dict(orient="records"), draws, strict=True):
            pairs = [
                (a == "refusal", b == "refusal")
                for a, b in zip(draw, edit, strict=True)
                if "unparsed" not in (a, b)
            ]
            grid = [[sum(pair == (a, b) for pair in pairs) for b in (True, False)] for a in (True, False)]
            assert (row["fell"], row["rose"]) == (grid[0][1], grid[1][0])
            expected = oracle(grid, exact=True).pvalue if pairs else math.nan
            assert row["p"] == pytest.approx(expected, nan_ok=True)
            read = [v for v in draw if v != "unparsed"]
            assert (row["n"], row["unparsed"]) == (len(read), 12 - len(read))
            if read:
                shares = [read.count(v) / len(read) for v in VERDICTS[:3]]
                assert [row[c] for c in ("refused", "complied", "degenerate")] == pytest.approx(shares)
        largest.append(largest_p(list(rows[["fell", "rose", "p"]].itertuples(index=False, name=None))))
        assert len({str(p) for p in rows["p_beyond"]}) == 1
        assert (rows["p_beyond"].isna() == rows["p"].isna().any()).all()
        assert rows["p_rank"].isna().all()  # too few draws
    known = np.array([p for p in largest if p == p])
    adjusted = [float(rows["p_beyond"].iloc[0]) for _, rows in table.groupby("system", sort=False)]
    if len(known):
        assert [p for p in adjusted if p == p] == pytest.approx(list(multipletests(known, method="holm")[1]))


def test_every_draw_counts() -> None:
    """An edit that takes all refusals away is beyond draws that leave them, and beyond none where one draw does too."""
    far, near = refusing(20), refusing(0)
    beyond = control_tests(*tables({"m": [near, far, far, far]}))
    assert beyond["p_beyond"].iloc[0] == pytest.approx(2 * 0.5**20)
    one = control_tests(*tables({"m": [near, far, near, far]}))
    assert one["p_beyond"].iloc[0] == 1.0
    assert one["p"].min() < 1e-5
    # To both sides: it differs from each draw, and goes beyond none.
    between = control_tests(*tables({"m": [refusing(10), far, near]}))
    assert between["p"].max() < 0.01
    assert between["p_beyond"].iloc[0] == 1.0


def test_under_exchangeable_draws_the_rank_test_keeps_its_level() -> None:
    rng = np.random.default_rng(0)
    shares = rng.binomial(30, 0.5, size=(4000, 20)) / 30
    found = np.array([rank_p(float(one[0]), one[1:].tolist()) for one in shares])
    for level in (0.05, 0.1, 0.3):
        assert (found <= level).mean() <= level + 0.012
    # Without ties the level is met: the test is exact.
    exact = np.array([rank_p(float(one[0]), one[1:].tolist()) for one in rng.random((4000, 20))])
    assert (exact <= 0.05).mean() == pytest.approx(0.05, abs=0.012)


def test_ranks_are_of_many_draws_that_are_known() -> None:
    assert rank_p(0.1, [0.5] * 19) == pytest.approx(0.05)
    assert rank_p(0.5, [0.5] * 19) == 1.0
    assert rank_p(0.2, [0.1, 0.2, *[0.5] * 37]) == pytest.approx(3 / 40)
    for share, draws in ((0.1, [0.5] * 18), (math.nan, [0.5] * 19), (0.1, [math.nan, *[0.5] * 18])):
        assert math.isnan(rank_p(share, draws))
    table = control_tests(*tables({"m": [refusing(1), *[refusing(9)] * 19]}))
    assert set(table["p_rank"]) == {0.05}


def test_what_was_not_read_is_not_tested() -> None:
    unread = ["unparsed"] * 20
    table = control_tests(
        *tables({"a": [refusing(0), refusing(20), unread], "b": [refusing(0), refusing(20)]})
    )
    of = table.set_index(["system", "draw"])
    assert math.isnan(of.loc[("a", 2), "p"])
    assert math.isnan(of.loc[("a", 2), "refused"])
    assert of.loc["a"]["p_beyond"].isna().all()
    # The other system's p is corrected for the tests that were made: its own.
    assert of.loc[("b", 1), "p_beyond"] == of.loc[("b", 1), "p"]
    assert math.isnan(largest_p([]))
