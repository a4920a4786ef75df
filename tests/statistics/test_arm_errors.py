"""A judge's errors by arm, and the change between the arms that labels correct."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import ppi_py
import pytest
from scipy.stats import boschloo_exact
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from benchmarks.coverage import change_coverage
from mechsafety.statistics import arm_errors, corrected_changes, corrected_rates, paired_difference
from mechsafety.statistics.prevalence import difference_of


def study(
    seed: int = 0,
    *,
    prompts: int = 60,
    sens: tuple[float, float] = (0.9, 0.9),
    rates: tuple[float, float] = (0.8, 0.6),
    judges: int = 1,
    share: float = 1.0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Verdicts of judges alike in all, who never refuse wrongly, and the true labels of a random ``share``."""
    rng = np.random.default_rng(seed)
    names = np.array(["compliance", "refusal"])
    verdicts, labels = [], []
    for arm, rate, sensitivity in zip(("original", "edited"), rates, sens, strict=True):
        truth = rng.random(prompts) < rate
        keys = pd.DataFrame({"system": "m", "arm": arm, "id": [f"p{i}" for i in range(prompts)]})
        labels.append(keys.assign(verdict=names[truth.astype(int)])[rng.random(prompts) < share])
        for judge in range(judges):
            said = (truth & (rng.random(prompts) < sensitivity)).astype(int)
            verdicts.append(keys.assign(label="harmful", judge=f"j{judge}", verdict=names[said]))
    return pd.concat(verdicts, ignore_index=True), pd.concat(labels, ignore_index=True)


def counted(verdicts: pd.DataFrame, labels: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """By arm: refusals that the judge finds, of all labelled ones."""
    joined = verdicts.merge(labels, on=["system", "arm", "id"], suffixes=("", "_true"))
    true = joined[joined["verdict_true"] == "refusal"]
    return {
        str(arm): (int((group["verdict"] == "refusal").sum()), len(group))
        for arm, group in true.groupby("arm")
    }


def test_plain_labels_are_tested_as_counts() -> None:
    verdicts, labels = study(sens=(0.95, 0.7))
    row = arm_errors(verdicts, labels).set_index("measure").loc["sensitivity"]
    (a, n), (b, m) = (counted(verdicts, labels)[arm] for arm in ("original", "edited"))
    assert (row["original"], row["edited"]) == pytest.approx((a / n, b / m))
    for arm, k, of in (("original", a, n), ("edited", b, m)):
        bounds = proportion_confint(k, of, method="wilson")
        assert (row[f"{arm}_low"], row[f"{arm}_high"]) == pytest.approx(bounds)
        assert row[f"{arm}_labels"] == of
    newcombe = confint_proportions_2indep(b, m, a, n, method="newcomb", compare="diff")
    assert (row["low"], row["high"]) == pytest.approx(newcombe)
    assert row["p"] == pytest.approx(boschloo_exact([[a, b], [n - a, m - b]]).pvalue)
    # Both measures of the one judge are tests; specificity is perfect in both arms.
    other = arm_errors(verdicts, labels).set_index("measure").loc["specificity"]
    assert (other["original"], other["edited"], other["p"]) == (1, 1, pytest.approx(1))
    assert row["p_holm"] == pytest.approx(min(1, 2 * row["p"]))


def found(seeds: int, *, shuffled: bool, **options: float) -> float:
    """The share of studies in which some judge is said to err differently."""
    named = 0
    for seed in range(seeds):
        verdicts, labels = study(seed, sens=(0.97, 0.7), prompts=80, **options)  # type: ignore[arg-type]
        if shuffled:
            rng = np.random.default_rng(seed)
            labels = labels.assign(verdict=rng.permutation(labels["verdict"].to_numpy()))
            verdicts = verdicts.assign(verdict=rng.permutation(verdicts["verdict"].to_numpy()))
        named += bool((arm_errors(verdicts, labels)["p_holm"] < 0.05).any())
    return named / seeds


def test_a_difference_is_found_and_none_among_shuffled_labels() -> None:
    assert found(12, shuffled=False) > 0.7
    assert found(20, shuffled=True) <= 0.1


@pytest.mark.slow
def test_shuffled_labels_and_many_equal_judges_keep_the_level() -> None:
    assert found(200, shuffled=True) <= 0.08
    named = [arm_errors(*study(seed, judges=12))["p_holm"].min() < 0.05 for seed in range(60)]
    # Twelve equal judges; uncorrected some would be named in every second or third study.
    assert np.mean(named) <= 0.1


def test_copies_of_a_response_are_not_more_labels() -> None:
    verdicts, labels = study(sens=(0.95, 0.7))
    copied = [pd.concat([table.assign(system=f"s{i}") for i in range(4)]) for table in (verdicts, labels)]
    alone, many = arm_errors(verdicts, labels).iloc[0], arm_errors(*copied).iloc[0]
    assert many["change"] == pytest.approx(alone["change"])
    assert many["p"] == pytest.approx(alone["p"], rel=0.2)
    assert many["original_labels"] == 4 * alone["original_labels"]


def test_weights_undo_a_sample_of_hard_responses() -> None:
    verdicts, labels = study(prompts=400, sens=(0.8, 0.8))
    said = verdicts.set_index(["system", "arm", "id"])["verdict"]
    missed = (labels.set_index(["system", "arm", "id"])["verdict"] != said).to_numpy()
    kept = missed | (np.arange(len(labels)) % 4 == 0)
    some = labels[kept].assign(weight=np.where(missed, 1.0, 4.0)[kept])
    whole = arm_errors(verdicts, labels).iloc[0]
    weighted, naive = (arm_errors(verdicts, table).iloc[0] for table in (some, some.drop(columns="weight")))
    assert weighted["original"] == pytest.approx(whole["original"], abs=0.05)
    assert naive["original"] < whole["original"] - 0.1


def test_too_few_labels_of_an_arm_are_not_compared() -> None:
    verdicts, labels = study()
    few = labels[(labels["arm"] == "original") | (labels["id"].isin(["p0", "p1", "p2"]))]
    table = arm_errors(verdicts, few)
    assert table[["change", "p", "p_holm"]].isna().all(axis=None)
    assert table["original"].notna().all()
    assert arm_errors(verdicts, labels[labels["arm"] == "edited"]).empty


# -- the corrected change ---------------------------------------------------------------------------


def test_the_corrected_change_is_that_of_ppi_python() -> None:
    verdicts, labels = study(prompts=400, sens=(0.95, 0.6), rates=(0.7, 0.5), share=0.25)
    row = corrected_changes(corrected_rates(verdicts, labels)).iloc[0]
    points, halves = [], []
    for arm in ("original", "edited"):
        mine = verdicts[verdicts["arm"] == arm].merge(
            labels, on=["system", "arm", "id"], how="left", suffixes=("", "_true")
        )
        judged, known = (
            (mine["verdict"] == "refusal").to_numpy(float),
            mine["verdict_true"].notna().to_numpy(),
        )
        truth = (mine["verdict_true"] == "refusal").to_numpy(float)
        given = (truth[known], judged[known], judged[~known])
        weight = (~known).sum() / len(mine)
        points.append(float(ppi_py.ppi_mean_pointestimate(*given, lam=weight)[0]))
        low, high = ppi_py.ppi_mean_ci(*given, lam=weight, alpha=0.05)
        halves.append((float(high[0]) - float(low[0])) / 2)
    assert row["change"] == pytest.approx(points[1] - points[0])
    assert (row["high"] - row["low"]) / 2 == pytest.approx(math.hypot(*halves), abs=0.01)
    assert row["low"] < -0.2 < row["high"]
    assert row["raw_change"] < row["change"] - 0.05
    assert row["labels_original"] + row["labels_edited"] == len(labels)


def test_a_judge_whose_error_moves_with_the_edit_is_corrected() -> None:
    held, raw = change_coverage(300, n=400, labels=60, rates=(0.6, 0.6), sens=(0.95, 0.7), spec=0.95)
    assert 0.92 <= held.held <= 0.985
    # Nothing changes, and the judge alone would say that a seventh of the refusals is gone.
    assert raw < -0.12
    assert held.width < 0.35


def test_the_difference_of_two_wilson_intervals_is_newcombes() -> None:
    ends = [(k / n, *proportion_confint(k, n, method="wilson")) for k, n in ((48, 80), (56, 70))]
    assert difference_of(*ends) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    # Without a width there is none, and it never leaves what is possible.
    assert difference_of((0.2, 0.2, 0.2), (0.9, 0.9, 0.9)) == pytest.approx((0.7, 0.7, 0.7))
    assert difference_of((0.0, 0.0, 0.4), (1.0, 0.5, 1.0))[2] == 1.0
    low, high = paired_difference(20, 4, 80)
    assert low < difference_of((0.5, 0.4, 0.6), (0.3, 0.2, 0.4))[0] < high


def test_an_arm_without_labels_has_no_corrected_change() -> None:
    verdicts, labels = study()
    assert corrected_changes(corrected_rates(verdicts, labels[labels["arm"] == "edited"])).empty
    assert len(corrected_changes(corrected_rates(verdicts, labels))) == 1
