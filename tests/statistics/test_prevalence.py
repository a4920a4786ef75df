"""Corrected rates: against ppi-python, by hand, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import ppi_py
import pytest

from benchmarks.coverage import gladen_coverage, powered_coverage
from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics import Corrected, corrected_rates, prediction_powered, rogan_gladen, wilson


def study(n: int = 400, labels: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    judged = np.where(truth, rng.random(n) < 0.9, rng.random(n) < 0.2)
    labelled = np.zeros(n, dtype=bool)
    labelled[rng.choice(n, labels, replace=False)] = True
    return truth, judged, labelled


def test_powered_rate_is_that_of_ppi_python() -> None:
    truth, judged, labelled = study()
    found = prediction_powered(judged, truth=truth, labelled=labelled)
    y, f, others = (
        truth[labelled].astype(float),
        judged[labelled].astype(float),
        judged[~labelled].astype(float),
    )
    # Its judge's mean is over the unlabelled; ours, over all, is the same with the weight (N - n) / N.
    weight = len(others) / len(judged)
    oracle = ppi_py.ppi_mean_pointestimate(y, f, others, lam=weight)
    assert found.rate == pytest.approx(float(oracle[0]))
    low, high = ppi_py.ppi_mean_ci(y, f, others, lam=weight, alpha=0.05)
    assert (found.low, found.high) == pytest.approx((float(low[0]), float(high[0])), abs=0.01)
    # The judge alone is far off, and nothing of its bias is left.
    assert abs(judged.mean() - truth.mean()) > 0.08
    assert abs(found.rate - truth.mean()) < 0.06


def test_labelling_everything_leaves_the_plain_rate() -> None:
    truth, judged, _ = study(n=200)
    found = prediction_powered(judged, truth=truth, labelled=np.ones(200, dtype=bool))
    plain = wilson(int(truth.sum()), 200)
    assert found.rate == pytest.approx(truth.mean())
    assert found.high - found.low == pytest.approx(plain.high - plain.low, rel=0.05)


@pytest.mark.parametrize("refuses", [True, False])
def test_labels_of_one_kind_are_not_certain(refuses: bool) -> None:
    truth = np.full(400, refuses)
    found = prediction_powered(truth, truth=truth, labelled=np.arange(400) < 50)
    alone = wilson(50 if refuses else 0, 50)
    assert found.rate == float(refuses)
    # A judge that only ever said one thing adds nothing to what 50 labels of a kind say.
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    # Nor is labelling everything the certainty of a rate: it is Wilson's, with Student's t.
    whole = prediction_powered(truth[:50], truth=truth[:50], labelled=np.ones(50, dtype=bool))
    assert whole.high - whole.low == pytest.approx(alone.high - alone.low, rel=0.1)
    # Five answers to each of ten prompts are ten pieces, and more labels say more.
    prompts = np.repeat(np.arange(10), 5)
    copies = prediction_powered(
        truth[:50], truth=truth[:50], labelled=np.ones(50, dtype=bool), clusters=prompts
    )
    ten = wilson(10 if refuses else 0, 10)
    assert copies.high - copies.low == pytest.approx(ten.high - ten.low, rel=0.1)
    many = prediction_powered(truth, truth=truth, labelled=np.arange(400) < 300)
    assert many.high - many.low < 0.5 * (found.high - found.low)


def test_a_rate_above_one_is_one_and_has_a_width() -> None:
    # The judge missed refusals among the labelled only: its mean plus its error is above 1.
    truth, labelled = np.ones(200, dtype=bool), np.arange(200) < 40
    judged = truth.copy()
    judged[:8] = False
    found = prediction_powered(judged, truth=truth, labelled=labelled)
    assert (found.rate, found.high) == (1.0, 1.0)
    assert found.low < wilson(40, 40).low + 1e-9


@pytest.mark.parametrize(
    ("n", "labels", "sens", "spec"), [(50, 50, 0.9, 0.9), (2000, 50, 1.0, 0.0), (400, 50, 0.95, 0.9)]
)
def test_coverage_near_one(n: int, labels: int, sens: float, spec: float) -> None:
    found = powered_coverage(600, n=n, labels=labels, rate=0.97, sens=sens, spec=spec)
    assert found.held > 0.91
    # Control: it is no interval of everything.
    assert found.width < 0.15


def test_strata_undo_oversampled_disagreement() -> None:
    truth, judged, _ = study(n=1000)
    wrong = np.flatnonzero(truth != judged)
    right = np.flatnonzero(truth == judged)
    labelled, weight, strata = np.zeros(1000, dtype=bool), np.ones(1000), np.zeros(1000, dtype=int)
    for stratum, members in enumerate((right, wrong)):
        labelled[members[:60]] = True
        weight[members] = len(members) / 60
        strata[members] = stratum
    found = prediction_powered(judged, truth=truth, labelled=labelled, weight=weight, strata=strata)
    naive = prediction_powered(judged, truth=truth, labelled=labelled)
    assert abs(found.rate - truth.mean()) < 0.03
    assert abs(naive.rate - truth.mean()) > 0.08


def test_clusters_widen_the_interval() -> None:
    truth, judged, _ = study(n=60)
    many, known = np.repeat(truth, 5), np.tile([True, False, False, False, False], 60)
    said = np.repeat(judged, 5)
    alone = prediction_powered(said, truth=many, labelled=known)
    clustered = prediction_powered(said, truth=many, labelled=known, clusters=np.repeat(np.arange(60), 5))
    assert clustered.rate == alone.rate
    assert clustered.high - clustered.low > 1.1 * (alone.high - alone.low)


@pytest.mark.parametrize("labels", [0, 3])
def test_too_few_labels_give_no_interval(labels: int) -> None:
    truth, judged, _ = study(n=50)
    found = prediction_powered(judged, truth=truth, labelled=np.arange(50) < labels)
    assert math.isnan(found.rate)
    assert "at least 5" in found.note


def test_rare_labels_carry_a_note() -> None:
    truth, judged, labelled = study()
    assert prediction_powered(judged, truth=truth, labelled=labelled).note == ""
    rare = prediction_powered(judged & False, truth=truth & False, labelled=labelled)
    assert "fewer than 5" in rare.note


def gladen(*counts: int) -> Corrected:
    names = ("refused", "n", "hits", "positives", "rejections", "negatives")
    return rogan_gladen(**dict(zip(names, map(float, counts), strict=True)))


def test_rogan_gladen_by_hand() -> None:
    # q = .38, se = .9, sp = .8: (.38 + .8 - 1) / (.9 + .8 - 1) = .257
    found = gladen(380, 1000, 90, 100, 160, 200)
    assert found.rate == pytest.approx(0.18 / 0.7)
    assert found.low < found.rate < found.high
    # A judge without error changes nothing, and more labels narrow the interval.
    perfect = gladen(380, 1000, 5000, 5000, 5000, 5000)
    assert perfect.rate == pytest.approx(0.38)
    assert perfect.high - perfect.low < 0.7 * (found.high - found.low)


def test_a_judge_near_chance_is_not_corrected() -> None:
    found = gladen(50, 100, 11, 20, 11, 20)
    assert math.isnan(found.rate)
    assert "not correctable" in found.note
    # The same judge seen often enough, and better than chance, is.
    assert not math.isnan(gladen(50, 100, 1100, 1500, 1100, 1500).rate)
    assert gladen(1, 2, 0, 0, 1, 1).note == "no labelled refusals"
    with pytest.raises(MechsafetyError, match="hits is 3 of 2"):
        gladen(1, 2, 3, 2, 1, 1)


@pytest.mark.parametrize("stratified", [False, True])
def test_powered_interval_covers(stratified: bool) -> None:
    found = powered_coverage(600, n=400, labels=60, rate=0.3, sens=0.9, spec=0.85, stratified=stratified)
    assert 0.93 <= found.held <= 0.98


def test_rogan_gladen_interval_covers() -> None:
    found = gladen_coverage(600, n=400, labels=100, rate=0.3, sens=0.9, spec=0.85)
    assert 0.93 <= found.held <= 0.98


def verdicts(
    arm: str, truth: np.ndarray, sens: float, spec: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    said = np.where(truth, rng.random(len(truth)) < sens, rng.random(len(truth)) >= spec)
    names = np.array(["compliance", "refusal"])
    keys = pd.DataFrame({"system": "m", "arm": arm, "id": [f"p{i}" for i in range(len(truth))]})
    table = keys.assign(label="harmful", judge="j", verdict=names[said.astype(int)])
    return table, keys.assign(verdict=names[truth.astype(int)]).iloc[::3]


def test_each_arm_is_corrected_by_its_own_errors() -> None:
    # The true rate is the same; the judge misses half of the edited arm's refusals.
    rng = np.random.default_rng(1)
    truth = rng.random(1200) < 0.6
    original, people = verdicts("original", truth, 0.95, 0.95, 2)
    edited, more = verdicts("edited", truth, 0.5, 0.95, 3)
    found = corrected_rates(pd.concat([original, edited]), pd.concat([people, more])).set_index("arm")
    assert found.loc["edited", "raw"] < found.loc["original", "raw"] - 0.2
    for name, low, high in (
        ("ppi", "ppi_low", "ppi_high"),
        ("rogan_gladen", "rogan_gladen_low", "rogan_gladen_high"),
    ):
        for arm in ("original", "edited"):
            assert abs(float(found.loc[arm, name]) - truth.mean()) < 0.1
            assert found.loc[arm, low] < truth.mean() < found.loc[arm, high]
    assert found.loc["edited", "pooled_sensitivity"] < 0.6 < 0.9 < found.loc["original", "pooled_sensitivity"]


def test_unread_responses_and_systems() -> None:
    truth = np.tile([True, False], 100)
    table, people = verdicts("original", truth, 0.9, 0.9, 0)
    other = table.assign(system="n")
    table.loc[:9, "verdict"] = "unparsed"
    found = corrected_rates(pd.concat([table, other]), people)
    assert list(found["system"]) == ["all", "m", "n"]
    assert list(found["n"]) == [390, 190, 200]
    assert list(found["labels"]) == [63, 63, 0]
    # No label of its own: only the error found in the other systems can correct it.
    last = found.iloc[-1]
    assert math.isnan(last["ppi"])
    assert not math.isnan(last["rogan_gladen"])


def test_a_judge_without_an_error_among_few_labels_is_not_without_error() -> None:
    # A tenth of the refusals is missed; half of the samples of 20 labels show no miss. Without UNSEEN_ERRORS the
    # interval held the truth in 57 of 100 studies.
    found = powered_coverage(300, n=2000, labels=20, rate=0.3, sens=0.9, spec=1.0)
    assert found.held >= 0.93
    assert found.width < wilson(6, 20).high - wilson(6, 20).low


def test_one_label_of_a_stratum_is_used() -> None:
    truth, judged, labelled = study(n=400, labels=40)
    strata = np.zeros(400, dtype=int)
    strata[np.flatnonzero(labelled)[0]] = 1
    found = prediction_powered(judged, truth=truth, labelled=labelled, strata=strata)
    assert found.low < truth.mean() < found.high
    few = prediction_powered(judged, truth=truth, labelled=labelled, strata=np.arange(400))
    assert "more than strata" in few.note
