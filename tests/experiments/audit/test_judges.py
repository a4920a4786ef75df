"""What an audit tells of the judges: broken ones, bounds against the primary one, correlations, names in two paths."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_score, recall_score

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.audit.experiment import run_audit
from mechsafety.experiments.audit.figures import audit_figures
from mechsafety.experiments.audit.tables import published_counts, read_evidence, system_of
from mechsafety.experiments.audit.work import TABLES
from tests.cli.test_base import call
from tests.experiments.audit.test_work import ROWS, audited, counts_file, record, table_file  # noqa: F401

ARM_HEAD = ["system", "arm", "label", "judge", "refused", "n"]


def arm_file(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    return table_file(path, ARM_HEAD, rows)


# -- the whole record -------------------------------------------------------------------------------


def test_the_whole_record_is_read_and_its_broken_judge_left_out(record: Any) -> None:  # noqa: F811
    assert len(record.comparisons) == 220
    assert record.broken[["judge", "models", "harmful", "comparisons"]].values.tolist() == [
        ["GLM-4", 20, 1000, 20]
    ]
    for name in set(TABLES) - {"broken"}:
        table = getattr(record, name)
        names = table[[column for column in ("judge", "judge_a", "judge_b") if column in table]]
        assert "GLM-4" not in set(names.to_numpy().ravel())
    survivors = record.comparisons.query("finding == 'survives'")
    assert set(zip(survivors["system"], survivors["judge"], strict=True)) == {
        ("Score 0 + Rephrase", "ChatGPT5"),
        ("SmolLM2", "ChatGPT5"),
        ("Score 0 + Rephrase + Refusals", "Score 0 + Rephrase"),
    }
    assert record.judges.groupby("label")["sign_flip"].sum().to_dict() == {"harmful": 10, "harmless": 9}
    assert not (record.judges["survive_down"] & record.judges["survive_up"]).any()
    said = "\n".join(record.sentences)
    assert "Comparisons: 3 of 220 differences are shown." in said
    assert (
        sum(
            bool(re.search(r": a (fall|rise) in refusals,.*over 220 comparisons", s))
            for s in record.sentences
        )
        == 3
    )
    assert re.search(r"GLM-4: .*left out.*, 0 of 1000 ", said)


def test_pairs_and_prompt_labels_are_those_of_the_plain_table(record: Any) -> None:  # noqa: F811
    table = pd.read_csv(published_counts())
    harmful = table[table["label"] == "harmful"].pivot_table(
        index=["system", "arm"], columns="judge", values="refused"
    )
    pairs = record.pairs.query("label == 'harmful'").set_index(["judge_a", "judge_b"])
    assert len(pairs) == 55
    for a, b in (("ChatGPT5", "regex"), ("GPT-oss", "Qwen3")):
        row = pairs.loc[(a, b)]
        assert row["models"] == 20
        assert row["pearson"] == pytest.approx(harmful[a].corr(harmful[b]))
        assert row["tau"] == pytest.approx(kendalltau(harmful[a], harmful[b]).statistic)
        moved = harmful.xs("edited", level="arm") - harmful.xs("original", level="arm")
        assert row["tau_change"] == pytest.approx(kendalltau(moved[a], moved[b]).statistic)
    assert math.isnan(record.pairs.query("label == 'harmless' and judge_a == 'SmolLM2'")["tau"].iloc[0])
    whole = record.prompt_labels.set_index(["judge", "arm"]).loc[("ChatGPT5", "all")]
    assert whole["accuracy"] == pytest.approx((861 + 973) / 2000)
    assert (whole["precision"], whole["recall"]) == pytest.approx((861 / 888, 0.861))


def test_the_record_of_many_judges_is_drawn_as_maps(record: Any) -> None:  # noqa: F811
    figures = audit_figures(
        {name: getattr(record, name) for name in TABLES}, primary=record.primary, alpha=0.05
    )
    assert set(figures) == {
        *(f"differences-{label}-chatgpt5" for label in ("harmful", "harmless")),
        *(f"{kind}-{label}" for kind in ("judges", "correlations") for label in ("harmful", "harmless")),
    }
    changes = 100 * record.comparisons.query("label == 'harmful'")["change"].to_numpy()
    drawn = np.array(figures["judges-harmful"].data[0].z)
    assert sorted(drawn.ravel()) == pytest.approx(sorted(changes))
    stars = [text for line in figures["judges-harmful"].data[0].text for text in line if "*" in text]
    assert len(stars) == 3
    square = np.array(figures["correlations-harmful"].data[0].z)[::-1]
    pairs = record.pairs.query("label == 'harmful'")
    assert sorted(square[np.triu_indices(11, 1)]) == pytest.approx(sorted(pairs["tau"]))
    assert sorted(square[np.tril_indices(11, -1)]) == pytest.approx(sorted(pairs["pearson"]))


# -- made-up records --------------------------------------------------------------------------------


def test_counts_allow_what_some_verdicts_could_have_been(tmp_path: Path) -> None:
    """The bounds are the least and the most of all ways in which the verdicts can lie on the answers."""
    n, a, b = 6, 4, 3
    rows = [("X", arm, "harmful", j, k, n) for arm in ("original", "edited") for j, k in (("p", b), ("q", a))]
    found = (
        audited(arm_file(tmp_path / "c.csv", rows), primary="p")
        .primary_judge.set_index("label")
        .loc["harmful"]
    )
    theirs = np.arange(n) < b
    every = [np.isin(np.arange(n), chosen) for chosen in itertools.combinations(range(n), a)]
    for name, score in (
        ("accuracy", accuracy_score),
        ("precision", precision_score),
        ("recall", recall_score),
    ):
        values = [score(theirs, mine) for mine in every]
        assert found[f"{name}_least"] == pytest.approx(min(values))
        assert found[f"{name}_most"] == pytest.approx(max(values))
        assert min(values) < max(values)


def test_verdicts_row_by_row_fix_every_measure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p = rng.random(60) < 0.6
    q = p ^ (rng.random(60) < 0.2)
    names = ["owner/X" if i < 30 else "models/X-abliterated" for i in range(60)]
    rows = [(f"q{i % 30}", "harmful", name, "text", int(p[i]), int(q[i])) for i, name in enumerate(names)]
    path = table_file(tmp_path / "v.csv", [*ROWS, "is_refusal_p", "is_refusal_q"], rows)
    found = audited(path)
    row = found.primary_judge.set_index("label").loc["harmful"]
    for name, score in (
        ("accuracy", accuracy_score),
        ("precision", precision_score),
        ("recall", recall_score),
    ):
        assert row[f"{name}_least"] == row[f"{name}_most"] == pytest.approx(score(p, q))
    pair = found.pairs.iloc[0]
    assert (pair["answers"], pair["phi"]) == (60, pytest.approx(matthews_corrcoef(p, q)))
    # The arms were paired across the two paths.
    assert set(found.comparisons["system"]) == {"owner/X"}
    assert (found.comparisons["pairs"] == 30).all()


def test_a_judge_that_errs_in_one_arm_is_named_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = []
    for arm, name in enumerate(("X", "models/X-abliterated")):
        for i in range(60):
            p = int(rng.random() < 0.7)
            good, bad = (int(p and rng.random() < share) for share in (0.95, (0.95, 0.5)[arm]))
            rows.append((f"q{i}", "harmful", name, "text", p, good, bad))
    head = [*ROWS, "is_refusal_people", "is_refusal_good", "is_refusal_bad"]
    found = audited(table_file(tmp_path / "v.csv", head, rows), primary="people")
    assert found.sentences[0].startswith("bad: a fall in sensitivity against the reference")
    assert not any(line.startswith("good: ") for line in found.sentences)
    swapped = [(*row[:4], row[4], row[5], row[5]) for row in rows]
    equal = audited(table_file(tmp_path / "w.csv", head, swapped), primary="people")
    assert ": 0 of 4 sensitivities and specificities" in equal.sentences[0]
    assert len(equal.arm_errors) == 4


def test_a_judge_is_broken_only_if_it_refuses_no_harmful_prompt_at_all(tmp_path: Path) -> None:
    rows = [
        (system, arm, label, judge, k, 20)
        for system, arm, label in itertools.product("XY", ("original", "edited"), ("harmful", "harmless"))
        for judge, k in (
            ("good", 9),
            ("never", 0),
            ("rare", int((system, arm, label) == ("X", "edited", "harmful"))),
        )
    ]
    found = audited(arm_file(tmp_path / "c.csv", rows))
    assert list(found.broken["judge"]) == ["never"]
    assert set(found.comparisons["judge"]) == {"good", "rare"}
    # On harmless prompts alone no refusal is what a judge should give.
    harmless = [row for row in rows if row[2] == "harmless"]
    assert audited(arm_file(tmp_path / "h.csv", harmless)).broken.empty


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("X", "baked", "harmful", "j", 1, 2), "arm 'baked' is not one of original, edited"),
        (("X", "edited", "harmful", "j", 3, 2), "3 refused of 2; at most all can be"),
        (("X", "edited", "harmful", "j", "one", 2), "refused is 'one'"),
        (("", "edited", "harmful", "j", 1, 2), "model is empty"),
        (("X", "edited", "bad", "j", 1, 2), "label 'bad' is not one of"),
        (("X", "original", "harmful", "j", 1, 2), "stands twice"),
    ],
)
def test_mistakes_in_counts_by_arm(tmp_path: Path, row: tuple[Any, ...], says: str) -> None:
    path = arm_file(tmp_path / "c.csv", [("X", "original", "harmful", "j", 1, 2), row])
    result = call("audit", path)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert says in result.stderr


def test_a_judge_that_there_is_not_and_files_of_broken_judges(tmp_path: Path) -> None:
    rows = [("X", arm, "harmful", "j", k, 9) for arm, k in (("original", 4), ("edited", 0))]
    path = arm_file(tmp_path / "c.csv", rows)
    with pytest.raises(MechsafetyError, match="primary judge 'k' is not one of j"):
        audited(path, primary="k")
    assert audited(path, primary="J").primary == "j"
    with pytest.raises(MechsafetyError, match="all are broken"):
        audited(arm_file(tmp_path / "b.csv", [(*row[:4], 0, 9) for row in rows]))


@pytest.mark.parametrize(
    ("models", "found"),
    [
        (["a/X", "models/X-abliterated"], {"models/X-abliterated": ("a/X", True)}),
        (["X", "b/x-ALB"], {"b/x-ALB": ("X", True)}),
        # A name that fits as it is comes first.
        (["a/X", "b/X", "a/X-ALB", "c/X_ALB"], {"a/X-ALB": ("a/X", True), "c/X_ALB": ("b/X", True)}),
        (["a/Y", "c/X-ALB"], {"c/X-ALB": ("c/X", True)}),
    ],
)
def test_an_edited_form_under_another_path(models: list[str], found: dict[str, tuple[str, bool]]) -> None:
    systems = system_of(models)
    assert {name: systems[name] for name in found} == found
    assert all(systems[name] == (name, False) for name in models if name not in found)


def test_an_edited_form_of_two_models_is_refused() -> None:
    with pytest.raises(MechsafetyError, match="could be the edited form of 'a/X' and of 'b/X'"):
        system_of(["a/X", "b/X", "models/X-abliterated"])


def test_a_finished_audit_is_opened_again(tmp_path: Path) -> None:
    from mechsafety.experiments.audit.config import AuditConfig
    from mechsafety.experiments.audit.experiment import found_in
    from mechsafety.experiments.registry import load_run

    rows = [
        (system, arm, "harmful", judge, k + 2 * (judge == "q"), 20)
        for judge in "pq"
        for system, one, two in (("X", 9, 2), ("Y", 8, 8), ("Z", 12, 3))
        for arm, k in (("original", one), ("edited", two))
    ]
    path = arm_file(tmp_path / "c.csv", rows)
    run_audit(AuditConfig(files=(str(path),), primary="q"), tmp_path / "o")
    found = found_in(load_run(tmp_path / "o"))
    assert found.primary == "q"
    assert found.sentences == audited(path, primary="q", family="all").sentences
    assert read_evidence([path]).judges == ["p", "q"]
