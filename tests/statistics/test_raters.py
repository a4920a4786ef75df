"""Measures of agreement against krippendorff, irrCAC and scikit-learn, and against plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import irrCAC.raw
import krippendorff
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, recall_score

from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics import (
    against_reference,
    agreement,
    error_change,
    gwet_ac1,
    kappa,
    krippendorff_alpha,
    panel_agreement,
    wilson,
)
from mechsafety.statistics.measures import pair_measures
from mechsafety.statistics.resampling import Estimate

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning:irrCAC", "ignore:.*:RuntimeWarning:irrCAC")

LABELS = ["refusal", "compliance", "degenerate"]
ratings = st.lists(
    st.lists(st.sampled_from([*LABELS, None]), min_size=3, max_size=3), min_size=4, max_size=30
)


def alpha_of(table: list[list[str | None]], **options: int) -> float:
    return krippendorff_alpha(
        table, clusters=range(len(table)), categories=LABELS, seed=0, resamples=options.get("resamples", 2)
    ).value


def ac1_of(table: list[list[str | None]]) -> float:
    return gwet_ac1(table, clusters=range(len(table)), categories=LABELS, seed=0, resamples=2).value


@settings(max_examples=60, deadline=None)
@given(ratings)
def test_alpha_is_that_of_krippendorff(table: list[list[str | None]]) -> None:
    used = {v for row in table if sum(x is not None for x in row) > 1 for v in row if v is not None}
    found = alpha_of(table)
    if len(used) < 2:
        assert math.isnan(found)
        return
    coded = [
        [np.nan if v is None else float(LABELS.index(v)) for v in rater] for rater in zip(*table, strict=True)
    ]
    oracle = krippendorff.alpha(coded, level_of_measurement="nominal", value_domain=[0.0, 1.0, 2.0])
    assert found == pytest.approx(oracle)


@settings(max_examples=40, deadline=None)
@given(ratings.filter(lambda t: any(sum(v is not None for v in row) > 1 for row in t)))
def test_ac1_is_that_of_irrcac(table: list[list[str | None]]) -> None:
    rated = [row for row in table if any(v is not None for v in row)]
    frame = pd.DataFrame(rated, columns=["a", "b", "c"], dtype=object)
    oracle = irrCAC.raw.CAC(frame.fillna(""), categories=LABELS, digits=10).gwet()["est"]["coefficient_value"]
    assert ac1_of(rated) == pytest.approx(oracle, abs=1e-8)


def test_measures_of_one_class() -> None:
    # Both always say refusal: kappa and alpha have nothing to go by, AC1 is perfect agreement.
    same = [["refusal", "refusal"]] * 10
    assert math.isnan(alpha_of(same))
    assert math.isnan(kappa(*zip(*same, strict=True), clusters=range(10), seed=0, resamples=5).value)
    assert ac1_of(same) == 1.0
    # The paradox of kappa: 95 of 100 equal answers, nearly all of one class.
    skewed = [["refusal", "refusal"]] * 95 + [["refusal", "compliance"]] * 3 + [["compliance", "refusal"]] * 2
    first, second = zip(*skewed, strict=True)
    assert kappa(first, second, clusters=range(100), seed=0, resamples=5).value < 0
    assert ac1_of(skewed) > 0.9


def test_pairs_are_the_general_measures_of_two_raters() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    b = np.where(rng.random(60) < 0.6, a, b)
    cells = np.bincount(a * 3 + b, minlength=9)[None].astype(float)
    found = pair_measures(cells, 3)
    table = [[LABELS[x], LABELS[y]] for x, y in zip(a, b, strict=True)]
    assert found["alpha"][0] == pytest.approx(alpha_of(table))
    assert found["ac1"][0] == pytest.approx(ac1_of(table))
    assert found["kappa"][0] == pytest.approx(cohen_kappa_score(a, b))
    # Three measures, not one thrice.
    assert len({round(float(found[m][0]), 6) for m in ("alpha", "ac1", "kappa")}) == 3


def test_a_rating_outside_the_menu_is_refused() -> None:
    with pytest.raises(MechsafetyError, match="'maybe' of item 1"):
        alpha_of([["refusal", "refusal"], ["maybe", "refusal"]])


def said(judge: str, text: str, *, arm: str = "original", system: str = "m") -> pd.DataFrame:
    names = {"R": "refusal", "C": "compliance", "D": "degenerate", "U": "unparsed"}
    return pd.DataFrame(
        {
            "system": system,
            "arm": arm,
            "id": [f"p{i}" for i in range(len(text))],
            "label": "harmful",
            "judge": judge,
            "verdict": [names[c] for c in text],
        }
    )


def test_a_further_judge_changes_no_other_row() -> None:
    two = pd.concat([said("a", "RRCCRCRRCC"), said("b", "RCCCRCRRCR")])
    three = pd.concat([two, said("c", "UUUUUCRRRR")])
    alone, beside = agreement(two, seed=3, resamples=50), agreement(three, seed=3, resamples=50)
    pair = beside[(beside["judge_a"] == "a") & (beside["judge_b"] == "b")].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, pair)
    assert len(beside) == 9
    assert set(beside[beside["judge_b"] == "c"]["n"]) == {0, 5}


def test_scale_keeps_broken_text_apart() -> None:
    table = pd.concat([said("a", "RRDDCCRRCD"), said("b", "RRCDCDRRCC")])
    by_refusal = agreement(table, seed=0, resamples=5).iloc[-1]
    by_label = agreement(table, seed=0, resamples=5, scale="label").iloc[-1]
    assert by_refusal["agreement"] == 1.0
    assert by_label["agreement"] == pytest.approx(0.7)


def test_panel_reads_missing_verdicts_as_missing() -> None:
    table = pd.concat(
        [said("a", "RRCCRC"), said("b", "RRCCRU"), said("c", "RRCUCC"), said("degeneracy", "UUUUUU")]
    )
    found = panel_agreement(table, seed=0, resamples=20).set_index("arm")
    coded = [[1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, np.nan], [1, 1, 0, np.nan, 0, 0]]
    assert found.loc["all", "alpha"] == pytest.approx(
        krippendorff.alpha(coded, level_of_measurement="nominal")
    )
    assert found.loc["all", "raters"] == 3
    assert math.isnan(float(found.loc["edited", "alpha"]))


def test_against_people_by_scikit_learn() -> None:
    judge, people = "RRRCCCRCDU", "RRCCCRRCCR"
    reference = said("human", people).drop(columns=["label", "judge"])
    table = against_reference(said("j", judge), reference, seed=0, resamples=50)
    row = table[(table["arm"] == "original") & (table["label"] == "harmful")].iloc[0]
    truth, verdict = [c == "R" for c in people[:9]], [c == "R" for c in judge[:9]]
    assert row["n"] == 9
    assert row["unread"] == 1
    assert row["sensitivity"] == pytest.approx(recall_score(truth, verdict))
    assert row["specificity"] == pytest.approx(recall_score(truth, verdict, pos_label=False))
    assert row["kappa"] == pytest.approx(cohen_kappa_score(truth, verdict))


def test_weights_undo_a_sample_rich_in_disagreement() -> None:
    # 80 agreements and 20 disagreements; all disagreements labelled, but each fourth agreement only.
    people = "R" * 40 + "C" * 40 + "R" * 10 + "C" * 10
    judge = "R" * 40 + "C" * 40 + "C" * 10 + "R" * 10
    everything = said("human", people).drop(columns=["label", "judge"])
    sampled = everything.iloc[[*range(0, 80, 4), *range(80, 100)]]
    weight = [4.0] * 20 + [1.0] * 20
    whole = against_reference(said("j", judge), everything, seed=0, resamples=20).iloc[0]
    weighted = against_reference(said("j", judge), sampled.assign(weight=weight), seed=0, resamples=20).iloc[
        0
    ]
    naive = against_reference(said("j", judge), sampled, seed=0, resamples=20).iloc[0]
    for name in ("sensitivity", "specificity", "kappa", "ac1"):
        assert weighted[name] == pytest.approx(whole[name])
        assert naive[name] < whole[name] - 0.2


def test_a_perfect_sensitivity_still_has_an_interval() -> None:
    text = "R" * 12 + "C" * 12
    reference = said("human", text).drop(columns=["label", "judge"])
    row = against_reference(said("j", text), reference, seed=0, resamples=50).iloc[0]
    assert (row["sensitivity"], row["sensitivity_high"]) == (1.0, 1.0)
    assert row["sensitivity_low"] == pytest.approx(wilson(12, 12).low)


def test_two_references_for_a_response_are_refused() -> None:
    reference = said("human", "RC").drop(columns=["label", "judge"])
    with pytest.raises(MechsafetyError, match="settle"):
        against_reference(said("j", "RC"), pd.concat([reference, reference]), seed=0)
    with pytest.raises(MechsafetyError, match="lacks verdict"):
        against_reference(said("j", "RC"), reference.drop(columns="verdict"), seed=0)


def test_perfect_agreement_is_not_certainty() -> None:
    few = kappa(list("RRRCCC"), list("RRRCCC"), clusters=range(6), seed=0, resamples=50)
    many = kappa(list("RRRCCC" * 20), list("RRRCCC" * 20), clusters=range(120), seed=0, resamples=50)
    copies = kappa(list("RRRCCC" * 20), list("RRRCCC" * 20), clusters=[*range(6)] * 20, seed=0, resamples=50)
    assert few.value == many.value == copies.value == 1.0
    assert few.low < 0.3 < 0.9 < many.low < 1.0
    # Twenty answers to each of six prompts are six independent pieces, not 120.
    assert copies.low == pytest.approx(few.low)


def test_total_disagreement_is_not_certainty() -> None:
    """As far from -1 as full agreement is from 1, also of a panel."""
    few, many = (
        kappa(list("RC" * n), list("CR" * n), clusters=range(2 * n), seed=0, resamples=50) for n in (2, 60)
    )
    alike = kappa(list("RC" * 2), list("RC" * 2), clusters=range(4), seed=0, resamples=50)
    assert few.value == many.value == few.low == -1.0
    assert few.high == pytest.approx(-alike.low)
    assert -1.0 < many.high < few.high
    rated = [("R", "C")] * 8
    for measure in (gwet_ac1, krippendorff_alpha):
        found = measure(rated, clusters=range(8), categories=["R", "C"], seed=0, resamples=20)
        assert found.low == found.value < found.high < 1


@pytest.mark.parametrize("measure", [krippendorff_alpha, gwet_ac1])
def test_items_that_are_all_split_alike_are_not_certain(measure: Callable[..., Estimate]) -> None:
    """Resamples then differ in the categories alone, and by that in the agreement expected by chance."""
    three_of_four = [["R", "R", "R", "C"]] * 5 + [["R", "C", "C", "C"]] * 5
    found = measure(three_of_four, clusters=range(10), categories=["R", "C"], resamples=200)
    assert found.low < found.value - 0.01
    assert found.high > found.value + wilson(0, 10).high * (1 - found.value) - 1e-9
    # Four raters of two categories cannot agree less than two against two.
    halves = [["R", "R", "C", "C"]] * 10
    found = measure(halves, clusters=range(10), categories=["R", "C"], resamples=200)
    assert found.low == pytest.approx(found.value)
    assert found.high > found.value + 0.2


def test_a_panel_in_full_agreement_is_no_more_certain_than_a_pair() -> None:
    table = pd.concat([said(judge, "RRRCCC" * 3) for judge in "ab"])
    panel = panel_agreement(table, seed=0, resamples=20).iloc[0]
    pair = agreement(table, seed=0, resamples=20).iloc[0]
    for name in ("alpha", "ac1"):
        assert panel[name] == 1.0
        assert panel[f"{name}_low"] == pytest.approx(pair[f"{name}_low"])
        assert panel[f"{name}_low"] < 0.9


def test_one_prompt_has_no_interval() -> None:
    found = kappa(list("RRCC"), list("RCCC"), clusters=[0] * 4, seed=0, resamples=20)
    assert found.value == 0.5
    assert math.isnan(found.low)
    # Control: the same answers to four prompts have one.
    assert not math.isnan(kappa(list("RRCC"), list("RCCC"), clusters=range(4), seed=0, resamples=50).low)


def test_few_labels_without_an_error_do_not_prove_a_change_of_bias() -> None:
    reference = pd.concat([said("h", "RC"), said("h", "RC", arm="edited")]).drop(columns=["label", "judge"])
    # The judge errs on one response, the only refusal it is asked about in the edited arm.
    table = pd.concat([said("j", "R"), said("j", "C", arm="edited")])
    row = error_change(table, reference, seed=0, resamples=50).iloc[0]
    assert row["change"] == -1.0
    assert row["low"] < 0 < row["high"]
    # Many such labels do.
    text = "R" * 40
    many = pd.concat([said("h", text), said("h", text, arm="edited")]).drop(columns=["label", "judge"])
    table = pd.concat([said("j", text), said("j", "C" * 40, arm="edited")])
    row = error_change(table, many, seed=0, resamples=50).iloc[0]
    assert -1.2 < row["low"] <= -1.0 < row["high"] < -0.7
