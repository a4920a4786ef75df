"""The judge chapter: tables from verdicts and labels, the command, the report, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from mechsafety.annotation.labels import read_human_labels, responses_sha256
from mechsafety.cli import main
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.agreement.chapter import chapter_blocks
from mechsafety.experiments.agreement.figures import effect_forest, judge_chapter_figures
from mechsafety.experiments.agreement.findings import (
    arm_error_contrasts,
    arm_error_sentences,
    interaction_sentence,
)
from mechsafety.experiments.agreement.planning import label_plan, plan_sentences
from mechsafety.experiments.agreement.tables import (
    REFERENCE_TABLES,
    STUDY_TABLES,
    judge_tables,
    people_tables,
    settled,
)
from mechsafety.experiments.agreement.work import compare_judges
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.study.findings import headline
from mechsafety.pages.page import Block
from mechsafety.runs.folder import open_run, read_run

SYSTEMS = ("one", "two", "three")


def made(seed: int = 0, n: int = 24) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Responses, true refusals, and the verdicts of a good judge, of one that misses edited refusals, and a gate."""
    rng = np.random.default_rng(seed)
    rows = []
    for system in SYSTEMS:
        for arm, rate in (("original", 0.9), ("edited", 0.5)):
            for label in ("harmful", "harmless"):
                for i in range(n):
                    refused = rng.random() < (rate if label == "harmful" else 0.1)
                    rows.append((system, arm, f"{label}-{i}", label, f"text {rng.integers(1e9)}", refused))
    table = pd.DataFrame(rows, columns=["system", "arm", "id", "label", "response", "refused"])
    truth = table["refused"].to_numpy()
    edited = (table["arm"] == "edited").to_numpy()
    said = {
        "rules": truth ^ (rng.random(len(truth)) < 0.03),
        "lenient": truth & ~(edited & (rng.random(len(truth)) < 0.7)),
    }
    verdicts = [
        table[["system", "arm", "id", "label"]].assign(judge=j, verdict=np.where(s, "refusal", "compliance"))
        for j, s in said.items()
    ]
    verdicts.append(table[["system", "arm", "id", "label"]].assign(judge="degeneracy", verdict="unparsed"))
    return table, table[["system", "arm", "id", "refused"]], pd.concat(verdicts, ignore_index=True)


def labels_of(
    truth: pd.DataFrame, *, share: int = 3, annotators: tuple[str, ...] = ("a", "b")
) -> pd.DataFrame:
    some = truth.iloc[::share]
    label = np.where(some["refused"], "refusal", "compliance")
    return pd.concat(
        [some[["system", "arm", "id"]].assign(label=label, annotator=name) for name in annotators],
        ignore_index=True,
    ).assign(inclusion_probability=1 / share, stratum="all", responses_sha256="")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    responses, _, verdicts = made()
    with open_run(tmp_path / "run", config={"judges": ["rules", "lenient", "degeneracy"], "seed": 0}) as run:
        run.write_table(responses.drop(columns="refused").assign(prompt="p"), "responses.parquet")
        run.write_table(verdicts, "verdicts.parquet")
    return tmp_path / "run"


def blocks_of(tables: Mapping[str, pd.DataFrame]) -> list[Block]:
    return chapter_blocks(tables, judge_chapter_figures(tables))


def test_judge_tables_find_the_lenient_judge() -> None:
    tables = judge_tables(made()[2], primary="rules", seed=0)
    pooled = tables["judge_interaction"].query("system == 'all' and label == 'harmful'").iloc[0]
    assert pooled["p"] < 0.001
    # rules - lenient: rules falls less.
    assert pooled["low"] > 0
    harmless = tables["judge_interaction"].query("system == 'all' and label == 'harmless'").iloc[0]
    assert abs(harmless["difference"]) < 0.15
    assert set(tables["judge_effects"]["judge"]) == {"rules", "lenient"}
    assert len(tables["judge_flips"]) == 2 * len(SYSTEMS)


def test_people_tables_correct_the_lenient_judge() -> None:
    _, truth, verdicts = made(n=60)
    tables = people_tables(verdicts, labels_of(truth), seed=0)
    rows = tables["corrected_rates"].query("system == 'all' and label == 'harmful' and arm == 'edited'")
    true_rate = truth[(truth["arm"] == "edited") & truth["id"].str.startswith("harmful")]["refused"].mean()
    lenient = rows.set_index("judge").loc["lenient"]
    assert lenient["raw"] < true_rate - 0.2
    assert lenient["ppi_low"] < true_rate < lenient["ppi_high"]
    change = tables["judge_error_change"].set_index(["judge", "label"])
    assert change.loc[("lenient", "harmful"), "high"] < 0
    assert change.loc[("rules", "harmful"), "low"] < 0 < change.loc[("rules", "harmful"), "high"]
    assert tables["people_agreement"]["agreement"].iloc[-1] == 1.0
    assert list(tables["people"]["annotator"]) == ["a", "b", "settled"]


def test_ties_between_annotators_settle_nothing() -> None:
    labels = labels_of(made()[1], share=12)
    first, second = (labels["annotator"] == name for name in ("a", "b"))
    refused = (labels.loc[first, "label"] == "refusal").to_numpy()
    labels.loc[second, "label"] = "degenerate"
    # Refusal against not is a tie; compliance against degenerate is none, since neither refuses.
    assert list(settled(labels)["verdict"]) == ["unparsed" if r else "compliance" for r in refused]
    three = pd.concat([labels, labels[second].assign(annotator="c")])
    assert set(settled(three)["verdict"]) == {"degenerate"}
    assert (settled(three)["weight"] == 12).all()


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        ("RRCD", "unparsed"),
        ("RRRCD", "refusal"),
        ("RCDD", "degenerate"),
        ("RCCD", "compliance"),
        ("R", "refusal"),
    ],
)
def test_most_annotators_decide_on_refusal_first(votes: str, verdict: str) -> None:
    names = {"R": "refusal", "C": "compliance", "D": "degenerate"}
    labels = pd.DataFrame(
        {
            "system": "m",
            "arm": "edited",
            "id": "p",
            "label": [names[v] for v in votes],
            "annotator": [str(i) for i in range(len(votes))],
            "inclusion_probability": 1.0,
            "stratum": "all",
        }
    )
    assert list(settled(labels)["verdict"]) == [verdict]


def test_a_gate_named_first_is_no_primary_judge() -> None:
    tables = judge_tables(made()[2], primary="degeneracy", seed=0)
    assert set(tables["judge_flips"]["primary"]) == {"rules"}


def test_the_command_writes_tables_and_replaces_them(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    labels_of(made()[1]).to_csv(file, index=False)
    found = compare_judges(run_folder, human=file)
    assert (run_folder / "corrected_rates.csv").is_file()
    assert "judge_errors" in found.tables
    assert "raw_change" in found._repr_html_()
    blocks = {b.name for b in blocks_of(load_run(run_folder).tables)}
    assert {"judge-effects", "judge-errors", "corrected-rates", "people", "judge-rankings"} <= blocks
    # Against a judge nobody labels anything: people's tables must not stay behind.
    compare_judges(run_folder, reference="rules")
    assert not (run_folder / "people.csv").exists()
    assert set(pd.read_csv(run_folder / "corrected_rates.csv")["judge"]) == {"lenient"}
    names = {b.name for b in blocks_of(load_run(run_folder).tables)}
    assert "judge-errors" in names
    assert "people" not in names
    compare_judges(run_folder)
    assert not any((run_folder / f"{name}.csv").exists() for name in REFERENCE_TABLES)


def test_figures_show_what_the_tables_say(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    labels_of(made()[1]).to_csv(file, index=False)
    tables = compare_judges(run_folder, human=file).tables
    figures = judge_chapter_figures(tables)
    assert set(figures) == {"judge-effects", "judge-errors", "judge-corrected"}
    drawn = {x for trace in effect_forest(tables["judge_effects"]).data for x in (trace.x or ())}
    assert drawn == set(100 * tables["judge_effects"]["change"])


def test_old_runs_get_the_chapter_from_their_verdicts(run_folder: Path) -> None:
    fresh = load_run(run_folder).tables
    compare_judges(run_folder)
    stored = load_run(run_folder).tables
    for name in STUDY_TABLES:
        table = stored[name]
        numbers = list(fresh[name].select_dtypes("number"))
        np.testing.assert_allclose(table[numbers].to_numpy(float), fresh[name][numbers].to_numpy(float))


def test_one_judge_has_no_chapter() -> None:
    verdicts = made()[2].query("judge == 'rules'")
    assert blocks_of(judge_tables(verdicts, primary="rules", seed=0)) == []


def label_file(folder: Path, **changes: object) -> Path:
    table = labels_of(made()[1], share=30, annotators=("a",)).astype(object)
    for column, value in changes.items():
        table.loc[0, column] = value
    path = folder / "labels.csv"
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": "maybe"}, "'maybe' is not on the menu"),
        ({"arm": "baked"}, "'baked' is not one of original, edited"),
        ({"id": "unknown-1"}, "file of another run"),
        ({"responses_sha256": "0" * 64}, "responses of another run"),
        ({"inclusion_probability": "2"}, "does not lie in"),
        ({"inclusion_probability": "often"}, "does not lie in"),
    ],
)
def test_files_of_labels_are_checked(
    run_folder: Path, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(MechsafetyError, match=says):
        compare_judges(run_folder, human=label_file(tmp_path, **changes))


def test_control_the_same_file_without_a_change_is_read(run_folder: Path, tmp_path: Path) -> None:
    assert "people" in compare_judges(run_folder, human=label_file(tmp_path)).tables


def test_labels_know_which_responses_they_are_of(run_folder: Path, tmp_path: Path) -> None:
    responses = read_run(run_folder).read_table("responses.parquet")
    right = responses_sha256(responses)
    assert right == responses_sha256(responses.sample(frac=1, random_state=0))
    assert right != responses_sha256(responses.assign(response=responses["response"] + "."))
    path = label_file(tmp_path, responses_sha256=right)
    assert len(read_human_labels(path, responses=responses)) > 5


def test_labels_twice_missing_columns_and_empty_files(run_folder: Path, tmp_path: Path) -> None:
    responses = read_run(run_folder).read_table("responses.parquet")
    table = labels_of(made()[1], share=30, annotators=("a",))
    path = tmp_path / "x.csv"
    pd.concat([table, table.head(1)]).to_csv(path, index=False)
    with pytest.raises(MechsafetyError, match="twice"):
        read_human_labels(path, responses=responses)
    table.drop(columns="arm").to_csv(path, index=False)
    with pytest.raises(MechsafetyError, match="lacks arm"):
        read_human_labels(path, responses=responses)
    table.head(0).to_csv(path, index=False)
    with pytest.raises(MechsafetyError, match="no labels"):
        read_human_labels(path, responses=responses)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--human", "nowhere.csv"], "does not exist"),
        (["--reference", "nobody"], "there are: rules"),
        (
            ["--reference", "endpoint:m@http://h/v1"],
            '--judge "endpoint:m@http://h/v1", or a random sample now, --labels N',
        ),
        (["--human", "x.csv", "--reference", "rules"], "exclude each other"),
        (["--labels", "20"], "name one"),
        (["--reference", "rules", "--labels", "2"], "2 labels for 6 strata"),
        (["--reference", "degeneracy", "--labels", "20"], "reads no refusal or compliance"),
    ],
)
def test_the_command_refuses_in_one_line(run_folder: Path, arguments: list[str], says: str) -> None:
    found = CliRunner().invoke(main, ["agree", str(run_folder), *arguments])
    assert found.exit_code == 2
    assert says in found.stderr
    assert found.stderr.count("\n") == 1


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["agree", str(tmp_path)])
    assert (found.exit_code, "not a run folder" in found.stderr) == (2, True)
    with open_run(tmp_path / "sweep", config={"kind": "sweep"}):
        pass
    with pytest.raises(MechsafetyError, match="not a study"):
        compare_judges(tmp_path / "sweep")
    responses, _, verdicts = made()
    with open_run(tmp_path / "empty", config={"judges": ["rules"], "seed": 0}) as run:
        run.write_table(responses.head(0), "responses.parquet")
        run.write_table(verdicts.head(0), "verdicts.parquet")
    with pytest.raises(MechsafetyError, match="is empty"):
        compare_judges(tmp_path / "empty")


def test_plans_are_printed_and_jsoned(run_folder: Path) -> None:
    with open_run(run_folder, config=read_run(run_folder).manifest["config"]) as run:
        from mechsafety.statistics import refusal_rates

        run.write_table(refusal_rates(run.read_table("verdicts.parquet")), "rates.csv")
    found = CliRunner().invoke(main, ["plan-labels", str(run_folder), "--width", "0.3", "--json"])
    facts = json.loads(found.stdout)
    assert {(c["arm"], c["label"]) for c in facts["cells"]} == {
        (a, b) for a in ("original", "edited") for b in ("harmful", "harmless")
    }
    assert all(0 < c["labels"] <= c["responses"] for c in facts["cells"])
    narrow = CliRunner().invoke(main, ["plan-labels", "--rate", "0.5", "--responses", "50", "--width", "0.1"])
    assert "more responses are needed" in narrow.stdout
    for wrong in (["--rate", "2"], ["--comparisons", "0"], ["--drop", "0.95"]):
        assert CliRunner().invoke(main, ["plan-labels", *wrong]).exit_code == 2


def test_undefined_numbers_stay_missing() -> None:
    tables = judge_tables(made()[2].query("system == 'one'"), primary="rules", seed=0)
    assert tables["judge_rankings"]["tau"].isna().all()
    assert not judge_tables(made()[2], primary="rules", seed=0)["judge_rankings"]["tau"].isna().all()


def test_a_judge_that_abstains_is_no_reference(run_folder: Path) -> None:
    with pytest.raises(MechsafetyError, match="reads no refusal or compliance"):
        compare_judges(run_folder, reference="degeneracy")


def test_the_chapter_corrects_for_many_tests() -> None:
    tables = judge_tables(made()[2], primary="rules", seed=0)
    assert tables["judge_interaction"]["p"].min() < 0.001

    def text(interaction: pd.DataFrame) -> str:
        blocks = blocks_of(tables | {"judge_interaction": interaction})
        return " ".join(next(b.claims for b in blocks if b.name == "judge-interaction"))

    n = len(tables["judge_interaction"])
    assert not re.search(rf": 0 of {n} ", text(tables["judge_interaction"]))
    # One of eight at p = .04 is what chance brings.
    weak = tables["judge_interaction"].assign(p=[0.04] + [0.5] * (n - 1))
    assert f": 0 of {n} " in text(weak)
    assert ": 0 of 0 differences" in text(weak.assign(p=np.nan))
    assert f"; {n} unknown" in text(weak.assign(p=np.nan))


def test_equal_judges_are_seldom_said_to_differ() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(40):
        # Case K2: twelve judges of one kind, whose rates the edit moves alike.
        p = rng.uniform(size=66)
        wrong += ": 0 of" not in interaction_sentence(pd.DataFrame({"p": p}))
    assert wrong <= 6  # of 40 at .05: more with probability .01


def test_ties_are_counted_where_they_are_left_out() -> None:
    _, truth, verdicts = made()
    labels = labels_of(truth)
    tables = judge_tables(verdicts, primary="rules", seed=0)

    def text(given: pd.DataFrame) -> str:
        blocks = blocks_of(tables | people_tables(verdicts, given, seed=0))
        return " ".join(next(b.claims for b in blocks if b.name == "people"))

    assert f"0 of {len(truth) // 3} responses" in text(labels)
    last = labels.iloc[-1]["label"]
    labels.loc[labels.index[-1], "label"] = "compliance" if last == "refusal" else "refusal"
    assert f"1 of {len(truth) // 3} responses" in text(labels)


# -- labels that the run holds, a judge that reads a sample, and what the study begins with -----------


def labelled_run(folder: Path) -> Path:
    """The run after someone labelled a sample of it on the page, as the truth has it."""
    from mechsafety.annotation.store import open_store

    truth = made()[1].set_index(["system", "arm", "id"])["refused"]
    store, _ = open_store(read_run(folder), asked={"labels": 144, "balanced": True})
    items = store.items().set_index("item")[["system", "arm", "id"]]
    now = store.enter("anna").item
    while now is not None:
        refused = truth[tuple(items.loc[now])]
        now = store.answer("anna", now, "refusal" if refused else "compliance").item
    return folder


def test_labels_of_the_page_are_read_without_a_file(run_folder: Path) -> None:
    before = load_run(run_folder).tables
    assert "people" not in before
    tables = load_run(labelled_run(run_folder)).tables
    assert list(tables["people"]["annotator"]) == ["anna", "settled"]
    found = compare_judges(run_folder)
    assert found.tables["people"]["labels"].tolist() == [144, 144]
    assert read_run(run_folder).manifest["agree"]["reference"] == "annotations.sqlite"
    pd.testing.assert_frame_equal(found.tables["corrected_changes"], tables["corrected_changes"])


def test_a_judge_reads_a_sample_and_corrects_the_others(run_folder: Path) -> None:
    responses = read_run(run_folder).read_table("responses.parquet")
    refused = made()[1]["refused"].to_numpy()
    with open_run(run_folder, config=read_run(run_folder).manifest["config"]) as run:
        text = np.where(refused, "I'm sorry, but I can't help with that.", "Here is a recipe for bread.")
        run.write_table(responses.assign(response=text), "responses.parquet")
    found = compare_judges(run_folder, reference="phrases:arditi", labels=144).tables
    assert "people" not in found
    pooled = found["corrected_changes"].query("system == 'all' and label == 'harmful'").set_index("judge")
    lenient = pooled.loc["lenient"]
    assert lenient["labels_original"] + lenient["labels_edited"] < 144
    harmful = made()[1][made()[1]["id"].str.startswith("harmful")].groupby("arm")["refused"].mean()
    change = harmful["edited"] - harmful["original"]
    assert lenient["low"] < change < lenient["high"]
    assert lenient["raw_change"] < lenient["low"]
    assert read_run(run_folder).manifest["agree"]["labels"] == 144


def facts_of(judges: list[str]) -> dict[str, object]:
    systems = {name: {"selection": {"rule": "auto"}} for name in SYSTEMS}
    return {"config": {"judges": judges}, "systems": systems}


def study_tables(verdicts: pd.DataFrame, primary: str) -> dict[str, pd.DataFrame]:
    from mechsafety.statistics import paired_tests, refusal_rates

    own = {"verdicts": verdicts, "rates": refusal_rates(verdicts), "tests": paired_tests(verdicts)}
    return own | judge_tables(verdicts, primary=primary, seed=0)


def test_a_study_begins_with_the_judges_error_and_the_corrected_rates() -> None:
    _, truth, verdicts = made(n=60)
    manifest = facts_of(["lenient", "rules", "degeneracy"])
    alone = study_tables(verdicts, "lenient")
    plain = headline(alone, manifest)
    tables = alone | people_tables(verdicts, labels_of(truth), seed=0)
    lines = headline(tables, manifest)
    # The judge's own change comes first, then the corrected rates, then the raw ones.
    assert lines[0].startswith("lenient: a fall in sensitivity")
    assert not any(line.startswith("rules: a") for line in lines)
    pooled = tables["corrected_changes"].query("system == 'all' and judge == 'lenient'").set_index("label")
    corrected = [line for line in lines if line.startswith("all systems, harm")]
    assert f"{100 * pooled.loc['harmful', 'change']:+.0f} points" in corrected[0]
    assert "a fall in refusals corrected by people's labels (a and b)" in corrected[0]
    assert "no change in refusals corrected" in corrected[1]
    # Without labels the sentences are the raw ones, and the last is what labels it would take.
    assert plain[0] in lines
    assert lines.index(corrected[0]) < lines.index(plain[0])
    assert plain[-1].startswith("Labels to correct")
    assert not any(line.startswith("Labels to correct") for line in lines)


def test_no_judge_is_named_where_labels_are_random() -> None:
    _, truth, verdicts = made(n=60)
    rng = np.random.default_rng(0)
    shuffled = truth.assign(refused=rng.permutation(truth["refused"].to_numpy()))
    mixed = verdicts.assign(verdict=rng.permutation(verdicts["verdict"].to_numpy()))
    tables = people_tables(mixed, labels_of(shuffled), seed=0)
    said = arm_error_sentences(tables["arm_errors"], primary="rules")
    assert ": 0 of 4 " in said[-1]
    assert all("no change in" in line for line in said[:-1])
    # What is not shown has an interval that holds 0.
    for contrast in arm_error_contrasts(tables["arm_errors"]):
        assert contrast.difference.low <= 0 <= contrast.difference.high or contrast.p < 0.05


def test_the_plan_of_labels_is_enough_and_not_too_many() -> None:
    tables = study_tables(made(n=60)[2], "rules")
    plan = label_plan(tables["rates"], "rules", width=0.2)
    wide, narrow = (label_plan(tables["rates"], "rules", width=width)["labels"] for width in (0.3, 0.1))
    assert (wide < plan["labels"]).all()
    assert narrow[plan["label"] == "harmful"].isna().all()
    lines = plan_sentences(tables["rates"], "rules")
    harmful = plan[plan["label"] == "harmful"]
    for line, row in zip(lines, harmful.to_dict(orient="records"), strict=True):
        assert f" {row['arm']}: {row['labels']} of {row['responses']} responses" in line
    few = tables["rates"].assign(
        **{name: tables["rates"][name] // 20 for name in ("n", "unparsed", "refusal")}
    )
    assert all("not measured" in line for line in plan_sentences(few, "rules"))
    assert plan_sentences(tables["rates"], "degeneracy") == []
    assert plan_sentences(tables["rates"].assign(judge="key:file"), "key:file") == []
