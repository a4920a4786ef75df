"""What is missing counts nowhere: ratings in the agreement coefficients, tests in Holm's family, verdicts of people."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.multitest import multipletests

from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics import (
    Estimate,
    against_reference,
    auroc_interval,
    gwet_ac1,
    holm,
    kappa,
    krippendorff_alpha,
)

MISSING = [None, math.nan, np.float64("nan"), pd.NA, pd.NaT]
FIRST = ["refusal", "compliance", "refusal", "compliance", "refusal", "compliance"]
SECOND = ["refusal", "compliance", "compliance", "compliance", "refusal", "refusal"]


def coefficients(a: Sequence[object], b: Sequence[object]) -> dict[str, Estimate]:
    pairs = list(zip(a, b, strict=True))
    options = {"clusters": [f"p{i}" for i in range(len(pairs))], "seed": 0, "resamples": 50}
    menu = {"categories": ("refusal", "compliance")}
    return {
        "kappa": kappa(a, b, **options),
        "ac1": gwet_ac1(pairs, **menu, **options),
        "alpha": krippendorff_alpha(pairs, **menu, **options),
    }


@pytest.mark.parametrize("gap", MISSING, ids=repr)
def test_items_that_nobody_rated_change_no_coefficient(gap: object) -> None:
    without = coefficients(FIRST, SECOND)
    gaps = coefficients([*FIRST, gap, gap], [*SECOND, gap, gap])
    assert gaps == without
    assert {found.n for found in gaps.values()} == {6}
    assert without["kappa"].value == pytest.approx(cohen_kappa_score(FIRST, SECOND))
    # Control: as a class of their own two gaps would be two agreements.
    named = cohen_kappa_score([*FIRST, "nan", "nan"], [*SECOND, "nan", "nan"])
    assert named > without["kappa"].value + 0.1


@pytest.mark.parametrize("gap", MISSING, ids=repr)
def test_an_item_that_one_rater_left_is_not_compared(gap: object) -> None:
    gaps = kappa([*FIRST, "refusal", gap], [*SECOND, gap, "compliance"], clusters=range(8), seed=0)
    assert gaps == kappa(FIRST, SECOND, clusters=range(6), seed=0)
    assert (gaps.n, gaps.clusters) == (6, 6)
    assert (
        coefficients([*FIRST, "refusal", gap], [*SECOND, gap, "compliance"])["alpha"]
        == (coefficients(FIRST, SECOND)["alpha"])
    )


def test_a_series_that_a_gap_made_float_keeps_its_categories() -> None:
    whole, gappy = [1, 0, 1, 1, 0], pd.Series([1, 0, 1, 0, 0, None])
    assert gappy.dtype == float
    found = kappa([*whole, 1], gappy, clusters=range(6), seed=0)
    assert found.value == pytest.approx(cohen_kappa_score(whole, [1, 0, 1, 0, 0]))
    assert found.n == 5


def test_nothing_rated_has_no_kappa() -> None:
    found = kappa([None, None], ["refusal", None], clusters=range(2), seed=0)
    assert math.isnan(found.value)
    assert (found.n, found.clusters) == (0, 0)


def test_a_nan_is_no_test() -> None:
    p = np.array([0.01, math.nan, 0.04, 0.03, math.nan])
    found = holm(p)
    assert np.isnan(found).tolist() == [False, True, False, False, True]
    known = ~np.isnan(p)
    assert found[known] == pytest.approx(multipletests(p[known], method="holm")[1])
    assert np.isnan(holm(np.array([math.nan, math.nan]))).all()
    assert holm(np.array([])).shape == (0,)


@pytest.mark.parametrize("gap", [None, math.nan], ids=repr)
def test_an_item_without_a_cluster_is_refused(gap: object) -> None:
    with pytest.raises(MechsafetyError, match="2 of 4 cluster ids are missing"):
        auroc_interval([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1], clusters=["a", gap, "b", gap], seed=0)
    with pytest.raises(MechsafetyError, match="cluster ids are missing"):
        kappa(FIRST, SECOND, clusters=[*"abcde", gap], seed=0)


@pytest.mark.parametrize("gap", [None, math.nan, "unparsed"], ids=repr)
def test_a_verdict_that_people_did_not_give_is_no_truth(gap: object) -> None:
    keys = pd.DataFrame({"system": "m", "arm": "original", "id": [f"p{i}" for i in range(6)]})
    judged = keys.assign(label="harmful", judge="j", verdict=SECOND)
    people = keys.assign(verdict=[*FIRST[:5], gap])
    row = against_reference(judged, people, seed=0, resamples=20).iloc[0]
    assert (row["n"], row["labelled_refusals"]) == (5, 3)
    assert row["specificity"] == 1.0
    with pytest.raises(MechsafetyError, match="holds no; allowed"):
        against_reference(judged, people.assign(verdict="no"), seed=0)
