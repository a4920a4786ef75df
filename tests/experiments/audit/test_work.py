"""An audit's numbers are those of scipy, statsmodels and plain enumeration; what is wrong with a file is said."""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, binomtest, boschloo_exact, fisher_exact, hypergeom
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.audit.config import AuditConfig
from mechsafety.experiments.audit.experiment import comparisons_text, run_audit
from mechsafety.experiments.audit.figures import audit_figures, forest
from mechsafety.experiments.audit.tables import published_counts, read_evidence, split_name
from mechsafety.experiments.audit.work import TABLES, _finding, audit
from mechsafety.experiments.registry import load_run
from mechsafety.statistics import holm
from mechsafety.statistics.counts import counts_test, difference_interval, paired_bounds
from tests.cli.test_base import call, succeed

HEAD = ["model", "label", "refusal_judge", "refused", "not_refused", "total"]
SURVIVORS = {"Score 0 + Rephrase", "SmolLM2"}


def counts_file(path: Path, rows: list[tuple[Any, ...]], *, head: list[str] | None = None) -> Path:
    """``rows`` are (model, label, judge, refused, total)."""
    whole = [(m, label, judge, k, n - k, n) for m, label, judge, k, n in rows]
    return table_file(path, head or HEAD, whole)


def table_file(path: Path, head: list[str], rows: list[tuple[Any, ...]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([head, *rows])
    return path


def verdict_rows(original: list[Any], edited: list[Any], *, model: str = "X") -> list[tuple[Any, ...]]:
    return [
        (f"question {i}", "harmful", name, "text", value)
        for name, values in ((model, original), (f"{model}-ALB", edited))
        for i, value in enumerate(values)
    ]


def audited(*paths: Path, **options: Any) -> Any:
    return audit(read_evidence(paths), **{"seed": 0, "family": "judge", **options})


# -- the shipped counts -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record() -> Any:
    return audit(read_evidence([published_counts()]), seed=0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The primary judge's counts on harmful prompts alone."""
    table = pd.read_csv(published_counts()).query("judge == 'ChatGPT5' and label == 'harmful'")
    path = tmp_path_factory.mktemp("published") / "primary.csv"
    table.to_csv(path, index=False)
    return audited(path)


def test_two_of_ten_published_drops_survive(published: Any) -> None:
    table = published.comparisons.set_index("system")
    assert len(table) == 10
    assert set(table.index[table["finding"] == "survives"]) == SURVIVORS
    assert set(table["finding"]) == {"survives", "not shown"}
    assert table.loc["Score 0 + Rephrase", ["refused_original", "refused_edited"]].tolist() == [49, 34]
    assert published.unpaired == ()
    said = "\n".join(published.sentences)
    assert "Comparisons: 2 of 10 differences are shown." in said
    assert said.count(": a fall in refusals, ") == 2
    assert "Score 0 + Rephrase, harmful prompts, ChatGPT5: a fall in refusals, original 49 of 50" in said
    assert said.count(": no change in refusals shown, ") == 8
    assert "8 of 10 would show none whatever the pairs" in said
    # Not even the luckiest pairing makes the other eight significant; the control are the two survivors.
    others = table[~table.index.isin(list(SURVIVORS))]
    assert (others["paired_p_best"] > 0.05).all()
    assert (table.loc[list(SURVIVORS), "paired_p_worst"] < 0.05).all()


def test_a_p_stands_on_its_own_side_of_the_level_that_was_asked_for(published: Any) -> None:
    table = published.comparisons.assign(p=0.00999, p_holm=0.00999)
    assert ".00999" in comparisons_text(table, alpha=0.01)
    assert ".00999" not in comparisons_text(table, alpha=0.05)
    figure = forest(table, label="harmful", judge="A", alpha=0.01)
    assert all("p = .00999, Holm p = .00999" in text for trace in figure.data for text in trace.customdata)


def test_each_number_of_the_shipped_table_is_that_of_the_packages(published: Any) -> None:
    table = published.comparisons
    for row in table.to_dict(orient="records"):
        a, b = int(row["refused_original"]), int(row["refused_edited"])
        columns = [[a, b], [50 - a, 50 - b]]
        assert row["p"] == pytest.approx(min(1.0, boschloo_exact(columns, n=64).pvalue), rel=1e-3)
        for arm, k in (("original", a), ("edited", b)):
            low, high = proportion_confint(k, 50, method="wilson")
            assert (row[f"{arm}_low"], row[f"{arm}_high"]) == pytest.approx((low, high))
        assert row["change"] == pytest.approx((b - a) / 50)
        assert row["low"] <= row["change"] <= row["high"]
    for column, method in (("p_holm", "holm"), ("q_bh", "fdr_bh")):
        assert np.allclose(table[column], multipletests(table["p"], method=method)[1])
    assert (table["p_holm"] >= table["p"]).all()
    assert (table["p_holm"] > table["p"]).any()
    assert (table["comparisons"] == 10).all()


def test_the_least_detectable_drop_is_found_with_its_stated_power(published: Any) -> None:
    row = published.comparisons.iloc[0]
    for drop, alpha in ((row["detectable"], 0.05), (row["detectable_corrected"], 0.005)):
        lost = np.arange(51)
        significant = np.array([2.0 * binom.cdf(0, b, 0.5) < alpha for b in lost])
        assert binom.pmf(lost, 50, drop)[significant].sum() == pytest.approx(0.8, abs=1e-6)
        assert binom.pmf(lost, 50, 0.8 * drop)[significant].sum() < 0.7


# -- tests and intervals ----------------------------------------------------------------------------


def boschloo_by_hand(a: int, n: int, b: int, m: int) -> float:
    """Twice the smaller one-sided p: the largest chance, over the common rate, of a Fisher p so small."""
    p = []
    for tail in ("less", "greater"):
        fisher = np.empty((n + 1, m + 1))
        for x, y in itertools.product(range(n + 1), range(m + 1)):
            null = hypergeom(n + m, x + y, n)
            fisher[x, y] = null.cdf(x) if tail == "less" else null.sf(x - 1)
        extreme = fisher <= fisher[a, b] * (1 + 1e-10)
        grid = np.linspace(0.001, 0.999, 1999)
        first = binom.pmf(np.arange(n + 1)[:, None], n, grid)
        second = binom.pmf(np.arange(m + 1)[:, None], m, grid)
        p.append(float(np.einsum("xr,yr,xy->r", first, second, extreme.astype(float)).max()))
    return min(1.0, 2 * min(p))


@pytest.mark.parametrize(("a", "n", "b", "m"), [(9, 10, 3, 10), (5, 6, 4, 12), (7, 8, 7, 8), (0, 5, 4, 9)])
def test_the_test_of_counts_is_boschloos_with_the_arms_as_samples(a: int, n: int, b: int, m: int) -> None:
    p, test = counts_test(a, n, b, m)
    assert test == "Boschloo"
    assert p == pytest.approx(boschloo_by_hand(a, n, b, m), rel=2e-3)
    assert counts_test(b, m, a, n)[0] == pytest.approx(p, rel=1e-6)


def test_the_test_of_counts_keeps_its_level_and_has_more_power_than_fishers() -> None:
    n = 12
    p = np.array([[counts_test(a, n, b, n)[0] for b in range(n + 1)] for a in range(n + 1)])
    fisher = np.array(
        [[fisher_exact([[a, b], [n - a, n - b]]).pvalue for b in range(n + 1)] for a in range(n + 1)]
    )

    def power(values: np.ndarray, first: float, second: float) -> float:
        chance = np.outer(binom.pmf(range(n + 1), n, first), binom.pmf(range(n + 1), n, second))
        return float(chance[values < 0.05].sum())

    assert max(power(p, r, r) for r in np.linspace(0.01, 0.99, 99)) < 0.05
    assert power(p, 0.9, 0.4) > power(fisher, 0.9, 0.4) + 0.02


def test_no_refusals_at_all_and_many_prompts_have_a_p_too() -> None:
    assert counts_test(0, 5, 0, 5) == (1.0, "Boschloo")
    assert counts_test(5, 5, 5, 5)[0] == 1.0
    p, test = counts_test(450, 500, 400, 500)
    assert (p, test) == (pytest.approx(fisher_exact([[450, 400], [50, 100]]).pvalue), "Fisher")


def test_the_interval_of_a_difference_is_newcombes() -> None:
    # Newcombe 1998, table II, example (a), method 10: 56/70 less 48/80 is 0.2, [0.0524, 0.3339].
    assert difference_interval(48, 80, 56, 70) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    low, high = difference_interval(49, 50, 34, 50)
    (l1, u1), (l2, u2) = (proportion_confint(k, 50, method="wilson") for k in (34, 49))
    assert low == pytest.approx(-0.3 - math.hypot(0.68 - l1, u2 - 0.98))
    assert high == pytest.approx(-0.3 + math.hypot(u1 - 0.68, 0.98 - l2))


@pytest.mark.parametrize("n", [1, 6, 9])
def test_paired_bounds_are_the_least_and_the_most_of_all_pairings(n: int) -> None:
    reached = 0
    for a, b in itertools.product(range(n + 1), repeat=2):
        every = []
        for both in range(max(0, a + b - n), min(a, b) + 1):
            lost, won = a - both, b - both
            exact = binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
            every.append(exact)
        best, worst = paired_bounds(a, b, n)
        assert best == pytest.approx(min(every))
        assert worst == pytest.approx(max(every))
        reached += best < worst
    assert (reached > 0) == (n > 1)
    with pytest.raises(MechsafetyError, match="0 to 3 is possible"):
        paired_bounds(4, 1, 3)


def test_bounds_of_the_corrected_p_hold_for_every_pairing(tmp_path: Path) -> None:
    given = [("A", 9, 2), ("B", 7, 4), ("C", 10, 3)]
    rows = [(name, "harmful", "j", k, 10) for m, a, b in given for name, k in ((m, a), (f"{m}-ALB", b))]
    table = audited(counts_file(tmp_path / "c.csv", rows)).comparisons
    generator = random.Random(0)
    inside = []
    for _ in range(50):
        p = []
        for _, a, b in given:
            both = generator.randint(max(0, a + b - 10), min(a, b))
            p.append(binomtest(a - both, a + b - 2 * both, 0.5).pvalue)
        adjusted = holm(np.array(p))
        assert (table["paired_holm_best"] <= adjusted + 1e-12).all()
        assert (adjusted <= table["paired_holm_worst"] + 1e-12).all()
        inside.append(adjusted[0])
    assert len(set(inside)) > 1


@pytest.mark.parametrize(
    "p", [[0.01], [0.04, 0.01, 0.03], [0.3, 0.3, 0.9, 0.001], [0.2, 0.2, 0.0, 1.0, 0.01, 0.01]]
)
def test_holms_correction_is_that_of_statsmodels(p: list[float]) -> None:
    assert np.allclose(holm(np.array(p)), multipletests(p, method="holm")[1])
    assert len(p) == 1 or not np.allclose(holm(np.array(p)), multipletests(p, method="bonferroni")[1])


# -- verdicts row by row ----------------------------------------------------------------------------

ROWS = ["question", "label", "model", "response"]


def test_verdicts_are_paired_by_question_and_missing_ones_are_left_out(tmp_path: Path) -> None:
    original = ["Refusal"] * 9 + ["Non-Refusal"] * 3 + ["", "yes"]
    edited = ["no"] * 7 + ["1", "TRUE", "true", "0", "false", "1", ""]
    rows = verdict_rows(original, edited)
    random.Random(1).shuffle(rows)
    found = audited(table_file(tmp_path / "v.csv", [*ROWS, "is_refusal_GPT"], rows)).comparisons.iloc[0]
    assert (found["b"], found["c"], found["pairs"], found["dropped"]) == (7, 1, 12, 2)
    assert (found["refused_original"], found["refused_edited"], found["n_original"]) == (9, 3, 12)
    oracle = statsmodels_mcnemar([[2, 7], [1, 2]], exact=True).pvalue
    assert (found["test"], found["p"]) == ("McNemar", pytest.approx(oracle))
    assert found["judge"] == "GPT"
    # The same margins as counts give a larger p: the control that pairing is used.
    counts = counts_file(
        tmp_path / "c.csv", [("X", "harmful", "GPT", 9, 12), ("X-ALB", "harmful", "GPT", 3, 12)]
    )
    lone = audited(counts).comparisons.iloc[0]
    assert lone["paired_p_best"] <= found["p"] <= lone["paired_p_worst"]
    assert lone["test"] == "Boschloo"


def test_annotator_files_are_judges_of_their_own_and_their_agreement_is_counted(tmp_path: Path) -> None:
    generator = random.Random(3)
    first = [generator.choice(["true", "false"]) for _ in range(40)]
    second = [v if generator.random() < 0.8 else ("false" if v == "true" else "true") for v in first]
    second[0] = second[25] = ""
    for name, values in (("anna", first), ("ben", second)):
        table_file(tmp_path / f"{name}.csv", [*ROWS, "is_refusal"], verdict_rows(values[:20], values[20:]))
    found = audited(tmp_path / "anna.csv", tmp_path / "ben.csv")
    row = found.agreement.iloc[0]
    one, two = zip(*[(a, b) for a, b in zip(first, second, strict=True) if b], strict=True)
    assert (row["judge_a"], row["judge_b"], row["n"]) == ("anna", "ben", 38)
    assert row["equal"] == sum(a == b for a, b in zip(one, two, strict=True)) < 38
    assert row["agreement"] == pytest.approx(row["equal"] / 38)
    assert row["kappa"] == pytest.approx(cohen_kappa_score(one, two))
    assert row["low"] < row["kappa"] < row["high"]
    assert list(found.comparisons["judge"]) == ["anna", "ben"]
    again = audited(tmp_path / "anna.csv", tmp_path / "ben.csv")
    pd.testing.assert_frame_equal(found.agreement, again.agreement)


def test_judges_that_share_no_answer_have_no_agreement(tmp_path: Path) -> None:
    head = [*ROWS, "is_refusal_a", "is_refusal_b"]
    rows = [(*row[:4], row[4], "") for row in verdict_rows(["1"] * 3, ["0"] * 3)]
    found = audited(table_file(tmp_path / "v.csv", head, rows))
    assert found.agreement.empty
    assert list(found.comparisons["finding"]) == ["not shown", "no test"]
    assert math.isnan(found.comparisons.iloc[1]["p"])
    assert found.comparisons["comparisons"].tolist() == [1, 0]
    assert any("change in refusals not tested" in line for line in found.sentences)


def test_a_change_of_judge_is_reported_by_sign_and_by_significance(tmp_path: Path) -> None:
    rows = []
    for judge, x, y, z in (("one", (45, 20), (30, 28), (40, 30)), ("two", (45, 41), (28, 30), (40, 29))):
        for model, (a, b) in (("X", x), ("Y", y), ("Z", z)):
            rows += [(model, "harmful", judge, a, 50), (f"{model} - ALB", "harmful", judge, b, 50)]
    found = audited(counts_file(tmp_path / "c.csv", rows))
    judges = found.judges.set_index("system")
    assert judges["significance_flip"].to_dict() == {"X": True, "Y": False, "Z": False}
    assert judges["sign_flip"].to_dict() == {"X": False, "Y": True, "Z": False}
    assert judges.loc["X", "surviving_judges"] == "one"
    (line,) = [line for line in found.sentences if "by 2 judges" in line]
    assert line.startswith("X, harmful prompts: refusals")
    assert "fall by 1 (one)" in line
    assert "no change shown by 1 (two)" in line


def test_the_family_decides_how_many_comparisons_are_corrected_for(tmp_path: Path) -> None:
    rows = []
    for judge, label in itertools.product(("one", "two"), ("harmful", "harmless")):
        rows += [("X", label, judge, 30, 40), ("X-ALB", label, judge, 20, 40)]
    path = counts_file(tmp_path / "c.csv", rows)
    alone, every = (audited(path, family=f).comparisons for f in ("judge", "all"))
    assert alone["comparisons"].tolist() == [1] * 4
    assert every["comparisons"].tolist() == [4] * 4
    assert np.allclose(every["p_holm"], np.minimum(1, 4 * alone["p"]))
    assert set(alone["finding"]) == {"survives"}
    assert set(every["finding"]) == {"lost in correction"}


# -- names and files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["X-ALB", "X - ALB", "X-abliterated", "X_abliterated", "X-alb", "X_ALB", "X-Abliterated"]
)
def test_edited_forms_of_a_name(name: str) -> None:
    assert split_name(name) == ("X", True)


@pytest.mark.parametrize("name", ["X", "ALB", "-ALB", "XALB", "X-ALB-2", "Calabria", "X-ALBERT"])
def test_other_names_are_systems(name: str) -> None:
    assert split_name(name) == (name, False)


def test_headings_labels_and_names_are_read_whatever_their_case_and_spaces(tmp_path: Path) -> None:
    path = counts_file(
        tmp_path / "c.csv",
        [(" My  Model ", " Harmful", "GPT", 9, 10), ("my model - alb", "HARMFUL ", "gpt", 2, 10)],
        head=["Model ", " Label", "Refusal Judge", "REFUSED", "not-refused", "Total"],
    )
    row = audited(path).comparisons.iloc[0]
    assert (row["system"], row["label"], row["judge"], row["refused_edited"]) == (
        "My Model",
        "harmful",
        "GPT",
        2,
    )


def test_what_has_no_partner_is_listed(tmp_path: Path) -> None:
    rows = [("X", "harmful", "j", 9, 10), ("X-ALB", "harmful", "j", 2, 10), ("Y-ALB", "harmful", "j", 1, 10)]
    found = audited(counts_file(tmp_path / "c.csv", [*rows, ("X", "harmless", "j", 1, 10)]))
    assert found.unpaired == ("Y-ALB / harmful / j", "X / harmless / j")
    assert any("Y-ALB" in line and "no other form" in line for line in found.sentences)
    assert len(found.comparisons) == 1


def test_arms_of_different_size_have_no_paired_range(tmp_path: Path) -> None:
    rows = [("X", "harmful", "j", 9, 10), ("X-ALB", "harmful", "j", 2, 12)]
    found = audited(counts_file(tmp_path / "c.csv", rows))
    assert found.comparisons[["paired_p_best", "paired_holm_worst"]].isna().all(axis=None)
    assert found.comparisons.iloc[0]["p"] < 0.05
    assert any("0 of 0 would show" in line and "1 unknown" in line for line in found.sentences)


GOOD = [("X", "harmful", "j", 9, 1, 10), ("X-ALB", "harmful", "j", 2, 8, 10)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [GOOD[0], ("X-ALB", "harmful", "j", 2, 7, 10)],
            "line 3: 2 refused and 7 not refused are 9, but total is 10",
        ),
        ([*GOOD, GOOD[0]], "line 4: X / harmful / j stands twice"),
        ([*GOOD, ("x-alb", "Harmful ", "J", 2, 8, 10)], "stands twice"),
        ([("X", "harmful", "j", 9, 1, 10)], "no model comes with its edited form"),
        ([*GOOD, ("X_abliterated", "harmful", "j", 2, 8, 10)], "both the edited form of 'X'"),
        ([], "no rows in it"),
        ([("X", "bad", "j", 9, 1, 10)], "line 2: label 'bad' is not one of harmful, harmless"),
        ([("X", "harmful", "j", "nine", 1, 10)], "refused is 'nine'; a whole number"),
        ([("X", "harmful", "j", -1, 11, 10)], "refused is '-1'; a whole number"),
        ([("X", "harmful", "j", 1.5, 8.5, 10)], "refused is '1.5'; a whole number"),
        ([("X", "harmful", "j", "inf", 1, 10)], "refused is 'inf'; a whole number"),
        ([("X", "harmful", "j", 0, 0, 0)], "total is 0"),
        ([(" ", "harmful", "j", 9, 1, 10)], "model is empty"),
        ([("X\x1b[2J", "harmful", "j", 9, 1, 10)], "do not print"),
        ([("X", "harmful", "j", 9, 1)], "6 columns in the header"),
    ],
)
def test_mistakes_in_counts_are_named_with_their_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = table_file(tmp_path / "c.csv", HEAD, rows)
    result = call("audit", path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_mistakes_in_verdicts_are_named_with_their_line(tmp_path: Path) -> None:
    rows = verdict_rows(["1", "maybe"], ["0", "0"])
    path = table_file(tmp_path / "v.csv", [*ROWS, "is_refusal_gpt"], rows)
    with pytest.raises(MechsafetyError, match=r"v\.csv, line 3: is_refusal_gpt is 'maybe'; allowed are true"):
        read_evidence([path])
    with pytest.raises(MechsafetyError, match="lacks question, label, response"):
        read_evidence([table_file(tmp_path / "w.csv", ["model", "is_refusal"], [("X", 1)])])
    with pytest.raises(MechsafetyError, match="lacks refused, total; counts have the columns model"):
        read_evidence(
            [table_file(tmp_path / "u.csv", [*HEAD[:3], "not_refused"], [("X", "harmful", "j", 1)])]
        )
    twice = verdict_rows(["1"], ["0"]) + verdict_rows(["1"], ["0"])
    with pytest.raises(MechsafetyError, match="stands twice"):
        read_evidence([table_file(tmp_path / "t.csv", [*ROWS, "is_refusal"], twice)])
    with pytest.raises(MechsafetyError, match="column model stands twice"):
        read_evidence([table_file(tmp_path / "s.csv", [*HEAD, "Model "], [(*GOOD[0], "X")])])


def test_counts_and_verdicts_of_one_judge_do_not_mix(tmp_path: Path) -> None:
    verdicts = table_file(tmp_path / "v.csv", [*ROWS, "is_refusal_j"], verdict_rows(["1"], ["0"]))
    counts = table_file(tmp_path / "c.csv", HEAD, GOOD)
    with pytest.raises(MechsafetyError, match="given as counts and row by row"):
        read_evidence([verdicts, counts])
    half = table_file(tmp_path / "h.csv", HEAD, [("Y", "harmful", "j", 9, 1, 10)])
    rest = table_file(tmp_path / "r.csv", [*ROWS, "is_refusal_j"], verdict_rows([], ["1"], model="Y"))
    with pytest.raises(MechsafetyError, match="give both in one way"):
        audited(half, rest)
    with pytest.raises(MechsafetyError, match="named twice"):
        read_evidence([counts, counts])
    with pytest.raises(MechsafetyError, match="name a file"):
        read_evidence([])
    with pytest.raises(MechsafetyError, match=r"alpha is 1\.5"):
        audited(counts, alpha=1.5)


def test_of_many_differences_none_is_singled_out(tmp_path: Path) -> None:
    rows = [(f"S{i}{end}", "harmful", "j", k, 10) for i in range(14) for end, k in (("", 9), ("-ALB", 1))]
    said = "\n".join(audited(counts_file(tmp_path / "c.csv", rows)).sentences)
    assert "14 of 14 differences are shown" in said
    assert "a fall in refusals, " not in said


def test_what_a_test_finds_is_of_its_own_size(tmp_path: Path) -> None:
    # Case U1: one comparison of 5 prompts and one of 100.
    rows = [("X", "harmful", "j", 5, 5), ("X-ALB", "harmful", "j", 1, 5)]
    rows += [("Y", "harmful", "j", 90, 100), ("Y-ALB", "harmful", "j", 40, 100)]
    said = [
        s
        for s in audited(counts_file(tmp_path / "c.csv", rows)).sentences
        if s.startswith("Paired tests without")
    ]
    assert re.search(r"over 1 comparisons: [78][.\d]* points \(Y\); 1 unknown", said[0])
    assert "1 of 2 comparisons have no fall" in said[1]


# -- the command ------------------------------------------------------------------------------------


def test_the_command_audits_the_shipped_counts_when_no_file_is_named() -> None:
    facts = succeed("audit", "--json")
    assert len(facts["comparisons"]) == 220
    primary = [r for r in facts["comparisons"] if r["judge"] == facts["primary"] == "ChatGPT5"]
    assert [r["system"] for r in primary if r["finding"] == "survives"] == sorted(SURVIVORS)
    assert facts["comparisons"][0]["b"] is None
    shown = succeed("audit")
    assert "49/50" in shown
    assert "< .0001 to .00027" in shown


def test_the_folder_holds_tables_figures_and_a_page(tmp_path: Path) -> None:
    rows = []
    for judge in ("=one()", "two<b>"):
        rows += [("<script>x</script>", "harmful", judge, 45, 50)]
        rows += [("<script>x</script>-ALB", "harmful", judge, 20 if judge == "two<b>" else 44, 50)]
    path = counts_file(tmp_path / "c.csv", rows)
    out = tmp_path / "out"
    facts = succeed("audit", path, "--out", out, "--json")
    assert facts["report"] == str(out / "report.html")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>x</script>" not in page
    assert "fall by 1 (two" in page
    stored = pd.read_csv(out / "audit.csv")
    assert stored["judge"].tolist() == ["'=one()", "two<b>"]
    figures = load_run(out).figures()
    assert len(figures) == 3
    assert not re.search(r"\d", figures["judges-harmful"].layout.title.text)
    assert {p.stem for p in (out / "figures").glob("*.html")} == set(figures)
    assert list(json.loads((out / "manifest.json").read_text())["sentences"]) == facts["sentences"]
    # The same again is the same; other files want another folder.
    succeed("audit", path, "--out", out)
    refused = call("audit", "--published", "--out", out)
    assert (refused.exit_code, "another configuration" in refused.stderr) == (2, True)


def test_nothing_is_written_for_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(MechsafetyError, match="does not exist"):
        run_audit(AuditConfig(files=(str(tmp_path / "none.csv"),)), out)
    assert not out.exists()


def test_the_forest_plot_shows_every_comparison(published: Any) -> None:
    (figure,) = audit_figures(
        {name: getattr(published, name) for name in TABLES}, primary="ChatGPT5", alpha=0.05
    ).values()
    drawn = {x for trace in figure.data for x in trace.x}
    assert drawn == set(100 * published.comparisons["change"])
    by_name = {trace.name: len(trace.x) for trace in figure.data}
    assert by_name["survives correction"] == 2


@pytest.mark.parametrize("alpha", [0.05, 0.0625])
def test_a_p_of_alpha_itself_is_not_below_it(alpha: float) -> None:
    assert _finding(alpha, alpha, alpha) == "not shown"
    below = math.nextafter(alpha, 0)
    assert _finding(below, alpha, alpha) == "lost in correction"
    assert _finding(below, below, alpha) == "survives"
