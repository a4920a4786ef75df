"""Tests and intervals for published counts: two rates, and no word on which prompts they share."""

from __future__ import annotations

from functools import cache

from scipy.stats import boschloo_exact, fisher_exact
from statsmodels.stats.proportion import confint_proportions_2indep

from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics.paired import mcnemar

_MOST_TABLES = 60_000
"""Possible outcomes of two counts up to which Boschloo's test, which goes through all of them, takes under a second."""


@cache  # a record of many judges gives the same two counts again and again
def counts_test(refused_a: int, n_a: int, refused_b: int, n_b: int) -> tuple[float, str]:
    """Exact two-sided p of equal rates in two independent samples, and the name of the test.

    Boschloo's (1970) test, chosen for its power before any data: with 50 prompts an arm, at level 0.05, it finds a fall
    from 0.9 to 0.7 with power 0.70, Barnard's with 0.70, Fisher's with 0.64 (summed over all outcomes). The two-sided p
    is twice the smaller one-sided one, as scipy has it. Above 60 000 possible outcomes Fisher's is taken for its speed.
    """
    table = [[refused_a, refused_b], [n_a - refused_a, n_b - refused_b]]  # scipy: a column is a sample
    if (n_a + 1) * (n_b + 1) > _MOST_TABLES:
        return float(fisher_exact(table).pvalue), "Fisher"
    return min(1.0, float(boschloo_exact(table).pvalue)), "Boschloo"


def paired_bounds(refused_a: int, refused_b: int, n: int) -> tuple[float, float]:
    """The smallest and the largest p of exact McNemar that two counts on the same ``n`` prompts allow.

    The counts fix b - c, and a pairing with k prompts refused twice has b = refused_a - k and c = refused_b - k. p
    grows with the smaller of b and c, so it is smallest where every refusal that can be shared is (c = 0 or b = 0) and
    largest where as few as possible are.
    """
    if not (0 <= refused_a <= n and 0 <= refused_b <= n):
        raise MechsafetyError(f"{refused_a} and {refused_b} refused of {n}: 0 to {n} is possible")
    shared = (min(refused_a, refused_b), max(0, refused_a + refused_b - n))
    best, worst = (mcnemar(refused_a - both, refused_b - both) for both in shared)
    return best, worst


def difference_interval(refused_a: int, n_a: int, refused_b: int, n_b: int) -> tuple[float, float]:
    """95 % interval of refused_b / n_b - refused_a / n_a for independent samples: Newcombe (1998), method 10."""
    low, high = confint_proportions_2indep(refused_b, n_b, refused_a, n_a, method="newcomb", compare="diff")
    return float(low), float(high)
