"""``mechsafety selfjudge``: a study's own edit, all four cells, the same however often it stops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.selfjudgement import experiment as selfjudge_runs
from mechsafety.experiments.selfjudgement.config import SelfJudgeConfig
from mechsafety.experiments.selfjudgement.experiment import run_selfjudge
from mechsafety.experiments.selfjudgement.findings import findings
from mechsafety.experiments.selfjudgement.tables import two_by_two
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.runs.folder import RunFolder, open_run, read_run
from tests import in_process_ray
from tests.cli.test_base import call, succeed
from tests.prompt_sets import small_prompts, write_csv

pytestmark = pytest.mark.usefixtures("unpublished")

CELLS = {(judge, response) for judge in ("original", "edited") for response in ("original", "edited")}


@pytest.fixture(scope="session")
def study(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny study whose responses and verdicts have both classes."""
    csv = write_csv(small_prompts(8), tmp_path_factory.mktemp("prompts") / "small.csv")
    config = StudyConfig(
        systems=(str(tiny_folder("llama")),),
        prompts=str(csv),
        anchors=str(csv),
        max_new_tokens=6,
        batch_size=8,
        judges=("phrases:granular",),
        nll=False,
        dtype="float32",
        device="cpu",
    )
    path = run_study(config, tmp_path_factory.mktemp("runs") / "study").path
    verdicts = pd.read_parquet(path / "verdicts.parquet")
    verdicts["verdict"] = ["refusal" if i % 3 else "compliance" for i in range(len(verdicts))]
    RunFolder(path).write_table(verdicts, "verdicts.parquet")
    return path


@pytest.fixture(scope="session")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_selfjudge(SelfJudgeConfig(study=study), tmp_path_factory.mktemp("runs") / "whole").path


def tables(path: Path) -> list[bytes]:
    return [(path / n).read_bytes() for n in ("judgements.parquet", "selfjudge_2x2.csv", "calibration.csv")]


def test_workers_ask_the_same_without_the_studys_folder(
    study: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process_ray.put_in(monkeypatch)
    work = selfjudge_runs.SelfJudging.do

    def far_away(experiment: selfjudge_runs.SelfJudging, *given: Any) -> None:
        experiment.study = RunFolder(tmp_path / "not there")
        work(experiment, *given)

    monkeypatch.setattr(selfjudge_runs.SelfJudging, "do", far_away)
    remote = run_selfjudge(SelfJudgeConfig(study=study, engine="ray"), tmp_path / "remote").path
    assert tables(remote) == tables(finished)


# -- the run ----------------------------------------------------------------------------------------


def test_every_arm_is_asked_about_every_arm_in_both_forms(finished: Path) -> None:
    table = pd.read_csv(finished / "selfjudge_2x2.csv")
    assert len(table) == 8
    for form in ("logit", "text"):
        part = table[table["form"] == form]
        assert set(zip(part["judge_arm"], part["response_arm"], strict=True)) == CELLS
        assert (part["n"] == 16).all()
    logits = table[table["form"] == "logit"]
    assert (
        logits[["auc", "low", "high", "ece", "brier", "auc_shuffled", "auc_untrained", "auc_reversed"]]
        .notna()
        .all(axis=None)
    )
    judgements = pd.read_parquet(finished / "judgements.parquet")
    assert len(judgements) == 8 * 16
    assert judgements["verdict"].isin(["refusal", "compliance"]).all()
    words = judgements[judgements["form"] == "text"]
    unparsed = (words["said"] == "unparsed").groupby([words["judge_arm"], words["response_arm"]]).sum()
    for row in table[table["form"] == "text"].to_dict(orient="records"):
        assert row["unparsed"] == unparsed[row["judge_arm"], row["response_arm"]]


def test_own_answers_get_the_scores_of_the_study_and_the_others_do_not(finished: Path, study: Path) -> None:
    judgements = pd.read_parquet(finished / "judgements.parquet")
    logits = judgements[judgements["form"] == "logit"]
    before = pd.read_parquet(study / "selfjudge.parquet").set_index(["arm", "id"])
    for judge, response in sorted(CELLS):
        cell = logits[(logits["judge_arm"] == judge) & (logits["response_arm"] == response)].set_index("id")
        stored = before.loc[response].loc[cell.index]
        same = np.allclose(cell["score"], stored["score"], atol=1e-4)
        assert same == (judge == response)
        assert (cell["length"] == stored["length"]).all()


def test_the_manifest_reports_what_was_asked(finished: Path, study: Path) -> None:
    config = read_run(finished).manifest["config"]
    assert (config["kind"], config["judge"], config["forms"]) == (
        "selfjudge",
        "phrases:granular",
        ["logit", "text"],
    )
    (system,) = config["systems"]
    recorded = read_run(study).manifest["systems"][system]["edit"]["sha256"]
    assert config["edits"] == {system: recorded}
    assert len(config["responses_sha256"]) == 64


def test_an_interrupted_run_goes_on_and_ends_the_same(
    finished: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = selfjudge_runs.ask_words

    def failing(*arguments: Any, **options: Any) -> Any:
        asked.append("words")
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(*arguments, **options)

    monkeypatch.setattr(selfjudge_runs, "ask_words", failing)
    with pytest.raises(KeyboardInterrupt):
        run_selfjudge(SelfJudgeConfig(study=study), tmp_path / "run")
    assert len(list((tmp_path / "run" / "parts").rglob("*.parquet"))) == 5
    monkeypatch.setattr(selfjudge_runs, "ask_logits", lambda *_, **__: pytest.fail("asked again"))
    run_selfjudge(SelfJudgeConfig(study=study), tmp_path / "run")
    assert len(asked) == 2 + 3
    assert tables(tmp_path / "run") == tables(finished)
    monkeypatch.setattr(
        "mechsafety.experiments.session.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    run_selfjudge(SelfJudgeConfig(study=study), tmp_path / "run")
    assert tables(tmp_path / "run") == tables(finished)


def test_a_limit_takes_the_same_prompts_of_each_label_for_all_arms(study: Path, tmp_path: Path) -> None:
    config = SelfJudgeConfig(study=study, limit=3, forms=("logit",))
    path = run_selfjudge(config, tmp_path / "run").path
    judgements = pd.read_parquet(path / "judgements.parquet")
    cells = judgements.groupby(["judge_arm", "response_arm"])
    assert {tuple(sorted(part["id"])) for _, part in cells} == {tuple(sorted(set(judgements["id"])))}
    assert judgements.drop_duplicates("id")["label"].value_counts().to_dict() == {"harmful": 3, "harmless": 3}
    assert set(judgements["form"]) == {"logit"}
    other = run_selfjudge(config.model_copy(update={"seed": 5}), tmp_path / "other").path
    assert set(pd.read_parquet(other / "judgements.parquet")["id"]) != set(judgements["id"])
    with pytest.raises(MechsafetyError, match="another configuration"):
        run_selfjudge(config.model_copy(update={"limit": 4}), tmp_path / "run")


# -- mistakes ---------------------------------------------------------------------------------------


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "copy"))


def test_a_run_of_another_kind_or_an_unfinished_one_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(MechsafetyError, match=r"no finished study \(it is of kind 'selfjudge'"):
        run_selfjudge(SelfJudgeConfig(study=finished), tmp_path / "run")
    with open_run(tmp_path / "begun", config={"judges": ["rules"]}):
        pass
    with pytest.raises(MechsafetyError, match="no finished study"):
        run_selfjudge(SelfJudgeConfig(study=tmp_path / "begun"), tmp_path / "run")
    with pytest.raises(MechsafetyError, match="not a run folder"):
        run_selfjudge(SelfJudgeConfig(study=tmp_path / "nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_edit_that_is_not_the_studys_is_refused(copied: Path, tmp_path: Path) -> None:
    run = RunFolder(copied)
    (system,) = run.manifest["systems"]
    facts = run.read_json_part("selection", system)
    facts["selection"]["layer"] = (facts["selection"]["layer"] + 1) % 4
    run.write_json_part(facts, "selection", system)
    with pytest.raises(MechsafetyError, match="its parts were changed"):
        run_selfjudge(SelfJudgeConfig(study=copied), tmp_path / "run")
    shutil.rmtree(copied / "parts")
    with pytest.raises(MechsafetyError, match="lacks the parts"):
        run_selfjudge(SelfJudgeConfig(study=copied), tmp_path / "run")


def test_other_weights_are_refused(copied: Path, tmp_path: Path) -> None:
    run = RunFolder(copied)
    systems = run.manifest["systems"]
    (system,) = systems
    systems[system]["model"]["fingerprint"] = "0" * 64
    run.record("systems", systems)
    with pytest.raises(MechsafetyError, match="no longer those that answered"):
        run_selfjudge(SelfJudgeConfig(study=copied), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--system", "gpt"], "no system 'gpt'; it has"),
        (["--limit", "0"], "limit"),
    ],
)
def test_mistakes_end_in_one_line(study: Path, tmp_path: Path, options: list[str], message: str) -> None:
    result = call("selfjudge", study, "--out", tmp_path / "run", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


# -- the command ------------------------------------------------------------------------------------


@pytest.mark.published
def test_the_command_writes_tables_figures_and_a_page(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    facts = succeed("selfjudge", study, "--limit", 4, "--out", out, "--json")
    assert len(facts["cells"]) == 8
    assert len(facts["findings"]) >= 2 * 8
    assert facts["run"] == str(out)
    assert {row["kind"] for row in facts["calibration"]} == {"raw", "content_free"}
    drawn = {"two-by-two", "yes-or-no", "calibration"}
    assert {p.stem for p in (out / "figures").glob("*.html")} == drawn
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Recognition of own refusals" in page
    assert all(f'id="{name}"' in page for name in drawn)
    shown = succeed("selfjudge", study, "--limit", 4, "--out", out)
    assert f"report: {out / 'report.html'}" in shown
    assert json.loads((out / "manifest.json").read_text())["config"]["limit"] == 4


def test_one_form_and_one_class_leave_a_page_that_reports_it(study: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(study, tmp_path / "copy"))
    verdicts = pd.read_parquet(copy / "verdicts.parquet").assign(verdict="compliance")
    RunFolder(copy).write_table(verdicts, "verdicts.parquet")
    config = SelfJudgeConfig(study=copy, limit=2, forms=("text",))
    run = run_selfjudge(config, tmp_path / "run")
    assert set(run.figures()) == {"two-by-two", "yes-or-no"}
    found = run.page().findings
    assert sum(": AUROC, unknown" in line for line in found) == 4
    assert sum(": 0 of 4 answers are refusals." in line for line in found) == 4


def test_findings_hold_the_auc_against_its_controls() -> None:
    row = {
        **{"system": "s", "judge_arm": "original", "response_arm": "edited", "form": "logit"},
        **{"readable": 40, "refusals": 20, "unparsed": 0, "auc": 0.9, "low": 0.8, "high": 0.95},
        **{"auc_shuffled": 0.5, "p_shuffled": 0.001, "auc_length": 0.85, "p_length": 0.4},
        **{"auc_untrained": 0.6, "p_untrained": 0.01},
        **{"auc_labels_low": 0.33, "auc_labels_high": 0.67, "p_labels": 0.001},
        **{"majority": 0.5, "own_only": 15, "majority_only": 2},
    }
    own, labels, beyond, short, untrained, word = findings(pd.DataFrame([row]))
    assert "about the edited model's answers by log-probability: AUROC, 0.90 [0.80, 0.95]" in own
    assert "a rise in AUROC, shuffled labels 0.50 [0.33, 0.67]" in labels
    assert "a rise in AUROC, the same answer after another prompt 0.50" in beyond
    assert "no change in AUROC shown, shortness of the answer alone 0.85" in short
    assert "a rise in AUROC, the highest of 3 untrained networks 0.60" in untrained
    assert "20 of 40" in word
    assert "33 of 40" in word
    # A control that recognises refusals better is said to.
    assert "a fall in AUROC" in findings(pd.DataFrame([row | {"auc_shuffled": 0.99}]))[2]


def test_replies_that_cannot_be_read_are_no_missing_class() -> None:
    judged = pd.DataFrame(
        {
            **{"system": "s", "judge_arm": "original", "response_arm": "original", "form": "text"},
            **{"id": range(40), "verdict": ["refusal", "compliance"] * 20},
            **{"said": "unparsed", "said_reversed": "unparsed"},
        }
    )
    own, classes, labels, word = findings(two_by_two(judged, seed=0))
    assert "AUROC, unknown, 40 not read" in own
    assert "20 of 40 answers are refusals" in classes
    assert "not tested" in labels
    assert "not tested" in word


def test_the_figures_show_the_table(finished: Path) -> None:
    figures = load_run(finished).figures()
    table = pd.read_csv(finished / "selfjudge_2x2.csv")
    own = [trace for trace in figures["two-by-two"].data if trace.name == "answer shown"]
    drawn = [value for trace in own for value in trace.y if value == value]
    assert sorted(drawn) == sorted(table["auc"].dropna())
    curves = pd.read_csv(finished / "calibration.csv")
    points = [y for trace in figures["calibration"].data if trace.customdata is not None for y in trace.y]
    assert sorted(points) == sorted(curves["rate"])
