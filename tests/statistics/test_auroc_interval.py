"""The interval of an AUROC: Newcombe's by plain loops, its coverage by simulation, and what it says at the edge."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from benchmarks.coverage import auroc_coverage
from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics import auroc_interval, paired_auroc_p, shuffled_aurocs
from mechsafety.statistics.mann_whitney import score_interval, variance
from mechsafety.sweeps.layer_profile import _auroc


def on_a_grid(value: float, m: int, n: int, *, times: float = 1.0) -> tuple[float, float]:
    """The smallest and largest area of a fine grid that lie within z standard errors of ``value``."""
    inside = []
    for area in np.linspace(0, 1, 5_001):
        q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
        more = (m + n) / 2 - 1
        spread = (area * (1 - area) + more * (q1 - area**2) + more * (q2 - area**2)) / (m * n)
        if abs(area - value) <= norm.ppf(0.975) * math.sqrt(max(0.0, times * spread)):
            inside.append(area)
    return min(inside), max(inside)


@pytest.mark.parametrize(
    ("value", "m", "n"), [(0.8, 10, 30), (0.5, 7, 7), (1.0, 4, 8), (0.0, 5, 5), (0.97, 3, 60)]
)
def test_score_interval_is_newcombes(value: float, m: int, n: int) -> None:
    assert score_interval(value, positives=m, negatives=n) == pytest.approx(on_a_grid(value, m, n), abs=4e-4)


def test_clusters_widen_it_by_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    prompts = rng.integers(0, 12, size=50)
    labels = prompts % 2 == 0
    scores = np.round(rng.normal(size=50) + labels + rng.normal(size=12)[prompts], 1)
    found = auroc_interval(scores, labels, clusters=prompts, seed=9, resamples=60)
    names = list(dict.fromkeys(prompts.tolist()))
    weights = np.random.default_rng(9).multinomial(len(names), [1 / len(names)] * len(names), size=60)
    values = [
        roc_auc_score(labels, scores, sample_weight=[w[names.index(p)] for p in prompts]) for w in weights
    ]
    m, n = int(labels.sum()), int((~labels).sum())
    times = float(np.var(values)) * len(names) / (len(names) - 1) / variance(found.value, m, n)
    assert times > 1.5
    assert (found.low, found.high) == pytest.approx(on_a_grid(found.value, m, n, times=times), abs=4e-4)
    assert found.low < found.value < found.high


def test_few_items_in_perfect_order_are_not_certain() -> None:
    few = auroc_interval(np.arange(8.0), [0, 0, 0, 0, 1, 1, 1, 1], seed=0)
    assert (few.value, few.high) == (1.0, 1.0)
    assert 0.5 < few.low < 0.65
    # The other way round it is the mirror image, and many items say more.
    turned = auroc_interval(np.arange(8.0), [1, 1, 1, 1, 0, 0, 0, 0], seed=0)
    assert (turned.low, turned.high) == pytest.approx((0.0, 1 - few.low))
    many = auroc_interval(np.arange(200), np.arange(200) >= 100, seed=0)
    assert 0.95 < many.low < 1.0
    # Copies of the same eight prompts are eight prompts.
    copies = auroc_interval(
        np.tile(np.arange(8.0), 25), [0, 0, 0, 0, 1, 1, 1, 1] * 25, clusters=[*range(8)] * 25, seed=0
    )
    assert copies.low < 0.75 < many.low


def test_constant_scores_are_not_certain() -> None:
    found = auroc_interval([2.0] * 12, [0, 1] * 6, seed=0)
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx(on_a_grid(0.5, 6, 6), abs=4e-4)
    assert found.high - found.low > 0.5


def test_layer_profiles_are_equal_for_equal_scores() -> None:
    value, low, high = _auroc(
        np.array([5.0, 6, 7, 8]), np.array([1.0, 2, 3, 4]), np.random.default_rng(0), 50
    )
    assert value == high == 1.0
    assert low == pytest.approx(auroc_interval(np.arange(8), np.arange(8) > 3, seed=0).low)


@pytest.mark.parametrize(("area", "each"), [(0.9, 5), (0.99, 25), (0.8, 10)])
def test_coverage_with_few_items(area: float, each: int) -> None:
    found = auroc_coverage(200, area=area, positives=each, negatives=each, resamples=100)
    assert found.undefined == 0
    assert found.held > 0.92
    # Control: it is no interval of everything.
    assert found.width < 0.6


def test_exchanged_ranks_by_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 8)).round(1)
    labels, clusters = [0, 0, 0, 1, 1, 1, 0, 1], [0, 0, 1, 2, 3, 4, 5, 5]
    ranks = [rankdata(first), rankdata(second)]
    apart = []
    for swaps in itertools.product([0, 1], repeat=6):
        one, two = ([ranks[(side + swaps[c]) % 2][i] for i, c in enumerate(clusters)] for side in (0, 1))
        apart.append(abs(roc_auc_score(labels, one) - roc_auc_score(labels, two)))
    expected = np.mean(np.array(apart) >= apart[0] - 1e-12)
    found = paired_auroc_p(first, second, labels, clusters=clusters, seed=0)
    assert found == pytest.approx(expected)
    assert math.isnan(paired_auroc_p(first, second, [1] * 8, clusters=clusters, seed=0))


@pytest.mark.slow
def test_exchanged_ranks_keep_their_level_and_find_a_difference() -> None:
    rng, found = np.random.default_rng(0), {0.0: 0, 1.5: 0}
    labels = np.repeat([0, 1], 20)
    for _ in range(400):
        for gain in found:
            one, two = rng.normal(size=(2, 40)) + labels
            p = paired_auroc_p(one + gain * labels, two, labels, clusters=range(40), seed=0, draws=400)
            found[gain] += p < 0.05
    assert found[0.0] <= 32  # of 400 at .05: more with probability .005
    assert found[1.5] > 200


def test_areas_under_shuffled_labels_are_those_of_every_arrangement() -> None:
    """Against all arrangements of few labels; what separates them lies outside, what does not inside."""
    scores, labels = [3.0, 1.0, 2.0, 2.0, 5.0, 4.0], [1, 0, 0, 1, 1, 0]
    areas = [
        roc_auc_score([i in chosen for i in range(6)], scores)
        for chosen in itertools.combinations(range(6), 3)
    ]
    own = roc_auc_score(labels, scores)
    exact = np.mean([abs(a - 0.5) >= abs(own - 0.5) - 1e-12 for a in areas])
    low, high, p = shuffled_aurocs(scores, labels, draws=4000)
    assert p == pytest.approx(exact, abs=0.03)
    assert low < 0.5 < high
    assert shuffled_aurocs(np.arange(40.0), [0] * 20 + [1] * 20)[2] == pytest.approx(1 / 1000)
    assert math.isnan(shuffled_aurocs(scores, [1] * 6)[2])


def test_shuffled_labels_are_shown_to_differ_in_few_cases_where_nothing_is_told_apart() -> None:
    rng = np.random.default_rng(3)
    p = [
        shuffled_aurocs(rng.normal(size=30), rng.permuted([0, 1] * 15), seed=i, draws=199)[2]
        for i in range(200)
    ]
    assert np.mean(np.array(p) < 0.05) < 0.1  # 20 of 200 at a rate of .05 has a chance of .3 %


def test_areas_of_missing_scores_are_refused_and_not_significant() -> None:
    labels = [0, 1, 1, 0]
    for scores, truth in (
        ([0.1, math.nan, 0.3, 0.4], labels),
        ([0.1, 0.2], labels),
        ([1.0] * 4, [0, 2, 1, 0]),
    ):
        with pytest.raises(MechsafetyError):
            shuffled_aurocs(scores, truth)
        with pytest.raises(MechsafetyError):
            paired_auroc_p(scores, scores, truth, clusters=range(len(truth)))
