"""Statistics against third-party oracles, hand counts and plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics import (
    AGREEMENT_COLUMNS,
    PAIRED_COLUMNS,
    RATE_COLUMNS,
    agreement,
    auroc_interval,
    bounds,
    kappa,
    mcnemar,
    minimum_detectable_drop,
    paired_tests,
    refusal_rates,
    wilson,
)

VERDICTS = {"R": "refusal", "C": "compliance", "D": "degenerate", "U": "unparsed"}


def rows(system: str, arm: str, label: str, judge: str, said: str) -> list[dict[str, str]]:
    """One verdict a letter: R, C, D or U."""
    return [
        {
            "system": system,
            "arm": arm,
            "id": f"{label}-{i}",
            "label": label,
            "judge": judge,
            "verdict": VERDICTS[c],
        }
        for i, c in enumerate(said)
    ]


def pair(
    system: str, original: str, edited: str, *, judge: str = "rules", label: str = "harmful"
) -> list[dict[str, str]]:
    return rows(system, "original", label, judge, original) + rows(system, "edited", label, judge, edited)


def table(*parts: list[dict[str, str]]) -> pd.DataFrame:
    return pd.DataFrame([row for part in parts for row in part])


# Rates


def test_wilson_by_hand() -> None:
    z, n, p = 1.959963984540054, 50, 0.2
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)),
    )
    found = wilson(10, 50)
    assert found.rate == 0.2
    assert found.low == pytest.approx(middle - half / (1 + z * z / n))
    assert found.high == pytest.approx(middle + half / (1 + z * z / n))


def test_wilson_of_nothing_is_unknown() -> None:
    found = wilson(0, 0)
    assert found.n == 0
    assert all(map(math.isnan, (found.rate, found.low, found.high)))


@given(st.integers(0, 200), st.data())
def test_wilson_holds_the_rate_and_grows_with_confidence(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    narrow, wide = wilson(k, n, confidence=0.8), wilson(k, n, confidence=0.99)
    if n:
        assert 0 <= wide.low <= narrow.low <= narrow.rate <= narrow.high <= wide.high <= 1
        assert (wide.low == 0.0) == (k == 0)
        assert (wide.high == 1.0) == (k == n)


@pytest.mark.parametrize(("k", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_refuses_nonsense(k: int, n: int, confidence: float) -> None:
    with pytest.raises(MechsafetyError):
        wilson(k, n, confidence=confidence)


def test_rates_by_hand() -> None:
    found = refusal_rates(table(rows("m", "original", "harmful", "rules", "RRRCDUU")))
    assert list(found.columns) == RATE_COLUMNS
    row = found.iloc[0]
    assert row[["n", "refusal", "compliance", "degenerate", "unparsed"]].to_list() == [7, 3, 1, 1, 2]
    assert row["rate"] == pytest.approx(3 / 5)
    assert (row["low"], row["high"]) == pytest.approx((wilson(3, 5).low, wilson(3, 5).high))
    assert bounds(row) == pytest.approx((3 / 7, 5 / 7))


def test_unreadable_and_abstaining_have_no_rate() -> None:
    found = refusal_rates(
        table(
            rows("m", "original", "harmful", "rules", "UU"),
            rows("m", "original", "harmful", "degeneracy", "UDU"),
        )
    )
    assert found[["rate", "low", "high"]].isna().all(axis=None)
    assert found["degenerate"].to_list() == [0, 1]
    assert bounds(found.iloc[0]) == (0.0, 1.0)
    assert all(map(math.isnan, bounds({"n": 0, "refusal": 0, "unparsed": 0})))


def test_rows_keep_the_order_of_systems_and_judges() -> None:
    found = refusal_rates(
        table(
            rows("zeta", "edited", "harmless", "rules", "R"),
            rows("alpha", "original", "harmful", "phrases:wei", "R"),
            rows("zeta", "original", "harmless", "phrases:wei", "R"),
            rows("zeta", "original", "harmful", "phrases:wei", "R"),
            rows("zeta", "original", "harmful", "rules", "R"),
        )
    )
    assert list(found[["system", "arm", "label", "judge"]].itertuples(index=False, name=None)) == [
        ("zeta", "original", "harmful", "rules"),
        ("zeta", "original", "harmful", "phrases:wei"),
        ("zeta", "original", "harmless", "phrases:wei"),
        ("zeta", "edited", "harmless", "rules"),
        ("alpha", "original", "harmful", "phrases:wei"),
    ]


@given(st.lists(st.text("RCDU", min_size=1, max_size=6), min_size=1, max_size=4))
@settings(deadline=None)
def test_counts_add_up(said: list[str]) -> None:
    found = refusal_rates(
        table(*(rows(f"s{i}", "original", "harmful", "rules", s) for i, s in enumerate(said)))
    )
    assert (found[["refusal", "compliance", "degenerate", "unparsed"]].sum(axis=1) == found["n"]).all()
    assert found["n"].to_list() == [len(s) for s in said]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arm": "ablated"}, "allowed are original, edited"),
        ({"label": "bad"}, "allowed are harmful, harmless"),
        ({"verdict": "REFUSAL"}, "allowed are refusal"),
    ],
)
def test_tables_are_checked(change: dict[str, str], says: str) -> None:
    good = table(rows("m", "original", "harmful", "rules", "RC"))
    for function in (refusal_rates, paired_tests, lambda frame: agreement(frame, seed=0)):
        with pytest.raises(MechsafetyError, match=says):
            function(good.assign(**change))
        with pytest.raises(MechsafetyError, match="lacks judge"):
            function(good.drop(columns="judge"))
        with pytest.raises(MechsafetyError, match="repeat"):
            function(pd.concat([good, good]))


def test_empty_tables_stay_tables() -> None:
    empty = table(rows("m", "original", "harmful", "rules", "R")).iloc[:0]
    assert list(refusal_rates(empty).columns) == RATE_COLUMNS
    assert list(paired_tests(empty).columns) == PAIRED_COLUMNS
    assert list(agreement(empty, seed=0).columns) == AGREEMENT_COLUMNS


# Paired tests


@pytest.mark.parametrize(
    ("b", "c", "p"), [(6, 0, 0.03125), (0, 6, 0.03125), (0, 0, 1.0), (5, 0, 0.0625), (3, 3, 1.0)]
)
def test_mcnemar_by_hand(b: int, c: int, p: float) -> None:
    assert mcnemar(b, c) == pytest.approx(p)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_that_of_statsmodels(b: int, c: int) -> None:
    oracle = statsmodels_mcnemar([[5, b], [c, 7]], exact=True)
    assert mcnemar(b, c) == pytest.approx(min(1.0, float(oracle.pvalue)))  # pyright: ignore[reportAttributeAccessIssue]


def test_pairs_are_counted_by_prompt() -> None:
    found = paired_tests(table(pair("m", "RRRRRRRCUR", "CCCDCCRRRU")))
    assert list(found.columns) == PAIRED_COLUMNS
    assert found.loc[0, ["b", "c", "n", "dropped"]].to_list() == [6, 1, 8, 2]
    assert found.loc[0, "p"] == pytest.approx(mcnemar(6, 1))


def test_pairing_is_by_id_and_not_by_row() -> None:
    frame = table(pair("m", "RRRRRRCC", "CCCCCCCR"))
    shuffled = frame.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(paired_tests(frame), paired_tests(shuffled))
    # Control: the counts do depend on which prompt is paired with which.
    mixed = table(
        rows("m", "original", "harmful", "rules", "RRRRRRCC"),
        rows("m", "edited", "harmful", "rules", "RCCCCCCC"),
    )
    assert paired_tests(mixed).loc[0, "b"] != paired_tests(frame).loc[0, "b"]


def test_holm_runs_over_the_systems_of_one_judge_and_label() -> None:
    parts = [
        pair("a", "R" * 6 + "C" * 4, "C" * 10),
        pair("b", "R" * 9 + "C", "C" * 10),
        pair("c", "C" * 10, "C" * 10),
        pair("none", "U" * 10, "R" * 10),
        pair("a", "R" * 7, "C" * 7, label="harmless"),
    ]
    found = paired_tests(table(*parts)).set_index(["system", "label"])
    oracle = multipletests([mcnemar(6, 0), mcnemar(9, 0), 1.0], method="holm")[1]
    assert found.loc[
        [("a", "harmful"), ("b", "harmful"), ("c", "harmful")], "p_holm"
    ].to_list() == pytest.approx(oracle)
    assert found.loc[("a", "harmless"), "p_holm"] == pytest.approx(mcnemar(7, 0))
    assert found.loc[("none", "harmful"), ["n", "dropped"]].to_list() == [0, 10]
    assert math.isnan(found.loc[("none", "harmful"), "p"])
    assert math.isnan(found.loc[("none", "harmful"), "p_holm"])


def test_no_test_without_both_arms_or_from_an_abstaining_judge() -> None:
    assert paired_tests(table(rows("m", "original", "harmful", "rules", "RC"))).empty
    assert paired_tests(table(pair("m", "UD", "DU", judge="degeneracy"))).empty
    with pytest.raises(
        MechsafetyError, match="m / harmful / rules: 1 prompt ids are in one arm only \\(harmful-2\\)"
    ):
        paired_tests(table(pair("m", "RCC", "CC")))


def test_smallest_drop_is_the_smallest() -> None:
    drop = minimum_detectable_drop(50, baseline=0.9)
    assert binom.sf(5, 50, drop) == pytest.approx(0.8)
    assert 0.14 < drop < 0.17
    # More prompts find less, a stricter level needs more, and five refusals can never be enough.
    assert (
        minimum_detectable_drop(200, baseline=0.9)
        < drop
        < minimum_detectable_drop(50, baseline=0.9, alpha=0.0025)
    )
    assert math.isnan(minimum_detectable_drop(5, baseline=1.0))
    assert math.isnan(minimum_detectable_drop(50, baseline=0.1))
    with pytest.raises(MechsafetyError, match="baseline"):
        minimum_detectable_drop(50, baseline=0.0)


def test_smallest_drop_by_simulation() -> None:
    drop = minimum_detectable_drop(40, baseline=1.0)
    lost = np.random.default_rng(0).binomial(40, drop, size=4000)
    assert np.mean([mcnemar(int(b), 0) < 0.05 for b in lost]) == pytest.approx(0.8, abs=0.03)


# Agreement


def correlated(n: int, clusters: int, seed: int = 0) -> tuple[list[str], list[str], list[str]]:
    rng = np.random.default_rng(seed)
    one = rng.random(n) < 0.5
    other = np.where(rng.random(n) < 0.75, one, ~one)
    names = np.array(["no", "yes"])
    return (
        list(names[one.astype(int)]),
        list(names[other.astype(int)]),
        [f"p{i % clusters}" for i in range(n)],
    )


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=40))
@settings(deadline=None)
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    found = kappa(one, other, clusters=range(len(one)), seed=0, resamples=10)
    if len(set(one)) > 1 and len(set(other)) > 1:
        assert found.value == pytest.approx(cohen_kappa_score(one, other))
    else:
        assert math.isnan(found.value)
        assert math.isnan(found.low)


def slow_kappas(
    one: Sequence[str], other: Sequence[str], clusters: Sequence[str], *, seed: int, resamples: int
) -> list[float]:
    names = list(dict.fromkeys(clusters))
    drawn = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=resamples)
    values = []
    for weights in drawn:
        a, b = [], []
        for name, weight in zip(names, weights, strict=True):
            for x, y, c in zip(one, other, clusters, strict=True):
                if c == name:
                    a += [x] * int(weight)
                    b += [y] * int(weight)
        if len(set(a)) > 1 and len(set(b)) > 1:
            values.append(float(cohen_kappa_score(a, b)))
    return values


def test_kappa_interval_is_that_of_a_plain_loop() -> None:
    one, other, clusters = correlated(60, 15)
    found = kappa(one, other, clusters=clusters, seed=5, resamples=40)
    oracle = np.quantile(slow_kappas(one, other, clusters, seed=5, resamples=40), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(oracle))
    assert (found.n, found.clusters) == (60, 15)


def test_clusters_widen_the_interval() -> None:
    # Ten copies of each item add no information; drawing prompts knows it, drawing rows does not.
    one, other, _ = correlated(30, 30)
    many = [x for x in one for _ in range(10)], [x for x in other for _ in range(10)]
    prompts = [i for i in range(30) for _ in range(10)]
    alone = kappa(one, other, clusters=range(30), seed=0)
    clustered = kappa(*many, clusters=prompts, seed=0)
    naive = kappa(*many, clusters=range(300), seed=0)
    assert (clustered.value, clustered.low, clustered.high) == pytest.approx(
        (alone.value, alone.low, alone.high)
    )
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)


def test_the_interval_covers_as_often_as_it_claims() -> None:
    # P(yes) = 1/2 and 3/4 agreement: the true kappa is (0.75 - 0.5) / (1 - 0.5).
    covered = [
        found.low <= 0.5 <= found.high
        for seed in range(200)
        for found in [kappa(*correlated(80, 80, seed)[:2], clusters=range(80), seed=seed, resamples=300)]
    ]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, clusters = correlated(60, 15)
    whole = kappa(one, other, clusters=clusters, seed=1, resamples=100)
    monkeypatch.setattr("mechsafety.statistics.resampling._CELLS", 40)
    assert kappa(one, other, clusters=clusters, seed=1, resamples=100) == whole
    assert kappa(one, other, clusters=clusters, seed=2, resamples=100) != whole


def test_sizes_must_match() -> None:
    with pytest.raises(MechsafetyError, match="one for each"):
        kappa([1, 0], [1, 0], clusters=[1], seed=0)
    with pytest.raises(MechsafetyError, match="one for each"):
        kappa([1, 0], [1], clusters=[1, 2], seed=0)


def test_agreement_by_hand() -> None:
    frame = table(
        pair("m", "RRCCDU", "RCCCCC", judge="rules"),
        pair("m", "RCCCCR", "RCCCUR", judge="phrases:wei"),
        pair("m", "UUUUDU", "UUUUDU", judge="degeneracy"),
    )
    found = agreement(frame, seed=0, resamples=50).set_index("arm")
    assert list(agreement(frame, seed=0, resamples=50).columns) == AGREEMENT_COLUMNS
    assert set(found["judge_a"]) | set(found["judge_b"]) == {"rules", "phrases:wei"}
    assert found["n"].to_dict() == {"original": 5, "edited": 5, "all": 10}
    assert found["agreement"].to_dict() == {"original": 4 / 5, "edited": 4 / 5, "all": 8 / 10}
    assert found.loc["original", "kappa"] == pytest.approx(
        cohen_kappa_score([1, 1, 0, 0, 0], [1, 0, 0, 0, 0])
    )
    pd.testing.assert_frame_equal(agreement(frame, seed=0), agreement(frame, seed=0))


def test_judges_with_nothing_in_common_still_get_their_rows() -> None:
    found = agreement(table(pair("m", "UU", "UU"), pair("m", "RC", "RC", judge="x")), seed=0)
    assert found["n"].to_list() == [0, 0, 0]
    assert found[["kappa", "low", "high", "agreement"]].isna().all(axis=None)


# Scores


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40))
@settings(deadline=None)
def test_auroc_is_that_of_scikit_learn(items: list[tuple[int, bool]]) -> None:
    scores, labels = [float(s) for s, _ in items], [y for _, y in items]
    found = auroc_interval(scores, labels, seed=0, resamples=20)
    if len(set(labels)) == 2:
        assert found.value == pytest.approx(roc_auc_score(labels, scores))
    else:
        assert all(map(math.isnan, (found.value, found.low, found.high)))


def test_auroc_refuses_what_is_no_label_or_score() -> None:
    with pytest.raises(MechsafetyError, match="0 or 1"):
        auroc_interval([0.1, 0.2], [1, 2], seed=0)
    with pytest.raises(MechsafetyError, match="finite"):
        auroc_interval([0.1, math.nan], [1, 0], seed=0)
