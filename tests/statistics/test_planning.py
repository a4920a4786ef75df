"""Plans: the smallest number that is enough, checked by trying it and one fewer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.coverage import powered_coverage
from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics import (
    kappa,
    labels_for_correction,
    labels_for_kappa,
    labels_for_rate,
    mcnemar,
    minimum_detectable_drop,
    pairs_for_drop,
    wilson,
)
from mechsafety.statistics.prevalence import LEAST_LABELS


@pytest.mark.parametrize(("rate", "width"), [(0.03, 0.08), (0.1, 0.05), (0.93, 0.1)])
def test_no_larger_number_of_labels_is_too_few(rate: float, width: float) -> None:
    n = labels_for_rate(rate=rate, width=width)
    for more in range(n, n + 100):
        for count in (math.floor(rate * more), math.ceil(rate * more)):
            found = wilson(count, more)
            assert found.high - found.low <= width


@pytest.mark.parametrize(("rate", "width"), [(0.3, 0.1), (0.05, 0.08), (0.9, 0.2)])
def test_labels_for_a_rate_are_enough_and_few(rate: float, width: float) -> None:
    n = labels_for_rate(rate=rate, width=width)
    reached = wilson(round(rate * n), n)
    assert reached.high - reached.low <= width
    less = int(0.85 * n)
    fewer = [wilson(k, less) for k in (math.floor(rate * less), math.ceil(rate * less))]
    assert max(interval.high - interval.low for interval in fewer) > width


def test_labels_for_a_correction_by_simulation() -> None:
    n = labels_for_correction(rate=0.3, sensitivity=0.9, specificity=0.9, responses=600, width=0.15)
    assert n is not None
    found = powered_coverage(200, n=600, labels=n, rate=0.3, sens=0.9, spec=0.9)
    assert found.width == pytest.approx(0.15, rel=0.06)
    # A better judge needs fewer labels, and people alone need more.
    better = labels_for_correction(rate=0.3, sensitivity=0.98, specificity=0.98, responses=600, width=0.15)
    assert better is not None
    assert better < n < labels_for_rate(rate=0.3, width=0.15)


def test_more_labels_cannot_replace_more_responses() -> None:
    assert labels_for_correction(rate=0.5, sensitivity=1.0, specificity=1.0, responses=50, width=0.1) is None
    enough = labels_for_correction(rate=0.5, sensitivity=1.0, specificity=1.0, responses=5000, width=0.1)
    assert enough is not None
    # Even of a judge without error: that it has none must be seen, and fewer than LEAST_LABELS are refused.
    assert LEAST_LABELS < enough < 50
    assert (
        labels_for_correction(rate=0.5, sensitivity=1.0, specificity=1.0, responses=5000, width=0.9)
        == LEAST_LABELS
    )
    assert labels_for_correction(rate=0.5, sensitivity=1.0, specificity=1.0, responses=4, width=0.9) is None


def test_labels_for_kappa_by_simulation() -> None:
    n = labels_for_kappa(kappa=0.6, rate=0.4, width=0.3)
    rng = np.random.default_rng(0)
    # Two raters with marginal .4 and kappa .6: they share a draw with chance .6.
    shared = rng.random((4000, n)) < 0.6
    a = rng.random((4000, n)) < 0.4
    b = np.where(shared, a, rng.random((4000, n)) < 0.4)
    observed = (a == b).mean(axis=1)
    chance = a.mean(axis=1) * b.mean(axis=1) + (1 - a.mean(axis=1)) * (1 - b.mean(axis=1))
    spread = ((observed - chance) / (1 - chance)).std()
    assert 2 * 1.96 * spread == pytest.approx(0.3, rel=0.08)


@pytest.mark.parametrize(("drop", "baseline"), [(0.2, 0.9), (0.1, 0.5), (0.5, 0.5)])
def test_pairs_for_a_drop_are_the_fewest(drop: float, baseline: float) -> None:
    n = pairs_for_drop(drop=drop, baseline=baseline)
    assert minimum_detectable_drop(n, baseline=baseline) <= drop
    assert not minimum_detectable_drop(n - 1, baseline=baseline) <= drop


@pytest.mark.parametrize("baseline", [0.9, pytest.param(0.5, marks=pytest.mark.slow)])
def test_pairs_for_a_drop_allow_for_new_refusals(baseline: float) -> None:
    drop, gained = 0.2, 0.05
    n = pairs_for_drop(drop=drop, baseline=baseline, gained=gained)
    assert n > 1.3 * pairs_for_drop(drop=drop, baseline=baseline)
    rng = np.random.default_rng(0)

    def power(pairs: int) -> float:
        drawn = rng.multinomial(pairs, [drop + gained, gained, 1 - drop - 2 * gained], size=4000)
        return float(np.mean([b > c and mcnemar(int(b), int(c)) < 0.05 for b, c, _ in drawn]))

    assert power(n) == pytest.approx(0.8, abs=0.03)
    # Control: the number for an edit that refuses nothing anew finds this one about every other time.
    assert power(pairs_for_drop(drop=drop, baseline=baseline)) < 0.6
    for more in range(n, n + 30):
        assert minimum_detectable_drop(more, baseline=baseline, gained=gained) <= drop + 1e-9
    assert not minimum_detectable_drop(n - 1, baseline=baseline, gained=gained) <= drop


@pytest.mark.parametrize("alpha", [2.0**-4, 2.0**-5])
def test_a_p_of_alpha_itself_finds_nothing(alpha: float) -> None:
    # k lost and none gained have p = 2^(1 - k), which here is alpha itself for one k: it takes one more.
    k = round(1 - math.log2(alpha))
    assert mcnemar(k, 0) == alpha
    assert math.isnan(minimum_detectable_drop(k, baseline=1.0, alpha=alpha))
    assert minimum_detectable_drop(k + 1, baseline=1.0, alpha=alpha) == pytest.approx(0.8 ** (1 / (k + 1)))
    assert minimum_detectable_drop(k, baseline=1.0, alpha=alpha * 1.01) == pytest.approx(0.8 ** (1 / k))


@pytest.mark.parametrize(("agreed", "rate"), [(0.99, 0.4), (0.95, 0.4), (0.9, 0.1)])
def test_labels_for_a_kappa_near_one_give_the_width(agreed: float, rate: float) -> None:
    n = labels_for_kappa(kappa=agreed, rate=rate, width=0.2)
    rng = np.random.default_rng(0)
    widths = []
    for seed in range(60):
        shared, a = rng.random(n) < agreed, rng.random(n) < rate
        b = np.where(shared, a, rng.random(n) < rate)
        found = kappa(a.tolist(), b.tolist(), clusters=range(n), seed=seed, resamples=100)
        widths.append(found.high - found.low)
    assert np.nanmean(widths) < 0.2
    # Control: not many times too many.
    assert np.nanmean(widths) > 0.1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pairs_for_drop(drop=0.2, baseline=0.9, gained=0.2), "0 to 0.1"),
        (lambda: pairs_for_drop(drop=0.2, baseline=0.2, gained=0.1), "only 0.2 are refused"),
        (lambda: minimum_detectable_drop(50, baseline=0.9, gained=-0.1), "gained is -0.1"),
        (lambda: labels_for_rate(rate=1.2, width=0.1), "rate is 1.2"),
        (lambda: labels_for_rate(rate=0.5, width=1e-5), "more than 1,000,000"),
        (lambda: labels_for_kappa(kappa=1.0, rate=0.5, width=0.1), "kappa is 1.0"),
        (lambda: pairs_for_drop(drop=0.6, baseline=0.5), "at most the baseline"),
        (
            lambda: labels_for_correction(rate=0.3, sensitivity=0.9, specificity=0.9, responses=0, width=0.1),
            "at least 1",
        ),
    ],
)
def test_plans_refuse_nonsense(call, says: str) -> None:
    with pytest.raises(MechsafetyError, match=says):
        call()
