"""A judge that is added to a finished study is a member of it as if it had been there from the start."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest
from click.testing import CliRunner

from mechsafety.cli import main
from mechsafety.core.errors import MechsafetyError, StoppedError
from mechsafety.core.verdict import Response, Verdict
from mechsafety.engines.tasks import Task
from mechsafety.experiments import judging
from mechsafety.experiments import session as sessions
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.study import answers as study
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.experiments.study.tasks import do
from mechsafety.experiments.study.work import StudyWork
from mechsafety.judges.checks import load_checks
from mechsafety.judges.failures import UnusableError
from mechsafety.judges.kinds.rules import RulesJudge
from mechsafety.judges.registry import judge_responses
from mechsafety.runs.folder import read_run
from mechsafety.statistics import ARMS, control_tests
from tests.faulty_server import FaultyServer, honest, serving
from tests.prompt_sets import small_prompts, write_csv

pytestmark = pytest.mark.usefixtures("unpublished")

ADDED = "phrases:granular"
TABLES = (
    *("rates.csv", "tests.csv", "agreement.csv", "selfjudge.csv", "verdicts.parquet", "judge_effects.csv"),
    *("judge_flips.csv", "judge_rankings.csv", "judge_interaction.csv", "panel_agreement.csv"),
)


class Compliant:
    """Calls every answer compliance."""

    name = "key:compliant"

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        return [Verdict(id=r.id, label="compliance", judge=self.name) for r in responses]


class Opposite:
    """Refusal where the rules see none, and the reverse."""

    name = "key:opposite"

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        turned = {v.id: "compliance" if v.label == "refusal" else "refusal" for v in RulesJudge()(responses)}
        return [Verdict(id=i, label=label, judge=self.name) for i, label in turned.items()]


@pytest.fixture(scope="module")
def config(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    csv = write_csv(small_prompts(8), tmp_path_factory.mktemp("prompts") / "small.csv")
    fields: dict[str, Any] = {"prompts": str(csv), "anchors": str(csv), "limit": 4, "layer": 2}
    fields |= {"judges": ("rules",), "max_new_tokens": 4, "dtype": "float32", "device": "cpu"}
    return StudyConfig(systems=(str(tiny_folder("llama")), str(tiny_folder("gpt2"))), **fields)


@pytest.fixture(scope="module")
def finished(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study(config, tmp_path_factory.mktemp("runs") / "study").path


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the study, in which nothing is generated and no system is loaded any more."""
    monkeypatch.setattr(sessions, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(study, "resumable_responses", lambda *_, **__: pytest.fail("generated"))
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.mark.published
def test_an_added_judge_gives_the_tables_of_a_study_that_had_it_from_the_start(
    config: StudyConfig, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(main, ["judge", str(copied), "--judge", ADDED, "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert {row["judge"] for row in facts["rates"]} == {"rules", ADDED}
    assert facts["report"] == str(copied / "report.html")
    assert ADDED in (copied / "report.html").read_text()
    assert (copied / "figures" / "judge-agreement.html").is_file()
    assert read_run(copied).manifest["config"]["judges"] == ["rules", ADDED]
    monkeypatch.undo()
    asked = config.model_copy(update={"judges": ("rules", ADDED)})
    whole = run_study(asked, tmp_path / "whole")
    for name in TABLES:
        assert (copied / name).read_bytes() == (whole.path / name).read_bytes(), name
    # Asked to, the study of both lets its second judge read the random arm too; none of them does so twice.
    assert set(whole.tables["controls"]["judge"]) == {"rules"}
    load_run(whole.path).judge(ADDED)
    for name in ("controls.csv", "random_verdicts.parquet", *TABLES):
        assert (copied / name).read_bytes() == (whole.path / name).read_bytes(), name
    with pytest.raises(MechsafetyError, match="has read the answers"):
        load_run(whole.path).judge(ADDED)
    # It goes on as a study of both judges.
    assert run_study(asked, copied).to_frame().equals(whole.to_frame())


def test_a_judge_that_sees_compliance_everywhere_gives_other_rates(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "load_judge", lambda *_, **__: Compliant())
    monkeypatch.setattr(judging, "judge_sources", lambda *_, **__: {})
    rates = load_run(copied).judge("key:compliant").rates_by_judge()
    mine = rates[rates["judge"] == "key:compliant"]
    assert (mine["compliance"] == mine["n"]).all()
    assert not (mine["compliance"].to_numpy() == rates[rates["judge"] == "rules"]["compliance"]).all()


def test_an_added_judge_reads_the_random_arm_and_the_first_stays_primary(copied: Path) -> None:
    before, headline = pd.read_csv(copied / "controls.csv"), load_run(copied).findings
    load_run(copied).judge(ADDED)
    controls = pd.read_csv(copied / "controls.csv")
    pd.testing.assert_frame_equal(controls[controls["judge"] == "rules"], before)
    own = {line for line in headline if "judges and readings" not in line}
    assert own <= set(load_run(copied).findings)
    verdicts, random = (
        pd.read_parquet(copied / f"{name}.parquet") for name in ("verdicts", "random_verdicts")
    )
    assert len(random) == 2 * len(pd.read_parquet(copied / "random_responses.parquet"))
    edited = verdicts.query("judge == @ADDED and arm == 'edited' and label == 'harmful'")
    under = random[random["judge"] == ADDED]
    draws = under["arm"].str.removeprefix("random-").astype(int)
    mine = controls[controls["judge"] == ADDED].reset_index(drop=True)
    expected = control_tests(edited, under.assign(draw=draws))
    pd.testing.assert_frame_equal(mine[list(expected.columns)], expected)


def test_a_judge_of_opposite_verdicts_reverses_the_tests_against_the_draws(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "load_judge", lambda *_, **__: Opposite())
    monkeypatch.setattr(judging, "judge_sources", lambda *_, **__: {})
    load_run(copied).judge("key:opposite")
    controls = pd.read_csv(copied / "controls.csv").set_index(["judge", "system", "draw"])
    mine, primary = controls.loc["key:opposite"], controls.loc["rules"]
    assert list(mine["refused"] + primary["refused"]) == pytest.approx([1.0] * len(mine))
    assert (mine["fell"] == primary["rose"]).all()
    assert (mine["p"] == primary["p"]).all()


def test_a_judge_of_a_model_loads_that_model_alone(
    config: StudyConfig, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.undo()
    load = sessions.load_model

    def counting(spec: str, **options: Any) -> Any:
        loaded.append(spec)
        return load(spec, **options)

    monkeypatch.setattr(sessions, "load_model", counting)
    load_run(copied).judge(f"logit:{config.systems[0]}")
    assert loaded == [config.systems[0]]


def test_a_panel_that_is_fitted_sees_all_arms_at_once(
    config: StudyConfig, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = "dawid_skene:rules,phrases:wei,phrases:gcg"
    load_run(copied).judge(panel)
    tables = load_run(copied).tables
    given = tables["verdicts"][tables["verdicts"]["judge"] == panel]
    answers = tables["responses"]
    assert set(map(tuple, given[["system", "arm"]].to_numpy())) == {
        (system, arm) for system in config.systems for arm in ("original", "edited")
    }
    texts = zip(answers["prompt"], answers["response"], strict=True)
    responses = [Response(id=str(n), prompt=p, text=t) for n, (p, t) in enumerate(texts)]
    pooled = judge_responses(responses, [panel])
    assert list(given["verdict"]) == [v.label for v in pooled]
    assert [json.loads(d) for d in given["detail"]] == [dict(v.detail) for v in pooled]
    # From the start it is the same, random arms included in the fit only where it is the primary judge.
    monkeypatch.undo()
    asked = config.model_copy(update={"judges": ("rules", panel)})
    whole = run_study(asked, tmp_path / "whole")
    assert whole.to_frame().equals(load_run(copied).to_frame())
    first = run_study(config.model_copy(update={"judges": (panel, "rules")}), tmp_path / "first")
    # A member that is a judge of the study too has then read the random arms.
    assert set(first.tables["random_verdicts"]["judge"]) == {panel, "rules"}


def test_judges_that_are_models_are_tried_first_and_their_order_is_reported(
    config: StudyConfig, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    judge = f"logit:{config.systems[0]}"
    load_run(copied).judge(judge)
    found = load_run(copied)
    (check,) = found.tables["judge_checks"].to_dict(orient="records")
    assert (check["judge"], check["n"]) == (judge, 20)
    order = found.tables["label_order"]
    tagged = found.tables["verdicts"][found.tables["verdicts"]["judge"] == judge]["tags"].str.split()
    assert order["turned"].sum() == sum("order" in tags for tags in tagged)
    page = found.report().read_text()
    assert "Verdicts that turn with the order of the labels" in page
    assert "on 20 answers with known labels" in page
    named = [line for line in found.findings if line.startswith("Unusable judge")]
    assert len(named) == isinstance(check["unusable"], str)


def test_an_interrupted_judge_goes_on_and_judges_nothing_twice(
    config: StudyConfig, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = study.ask_together, []

    def second(*arguments: Any) -> Any:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(study, "ask_together", second)
    before = (copied / "rates.csv").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        load_run(copied).judge(ADDED)
    assert (copied / "rates.csv").read_bytes() == before
    assert load_run(copied).config["judges"] == ["rules"]
    table = load_run(copied).judge(ADDED).rates_by_judge()
    assert len(asked) == 2 + 3 + 2 * config.controls  # four arms, and the draws of two systems
    assert set(table["judge"]) == {"rules", ADDED}


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_judges_of_two_hosts_are_asked_at_once_and_what_one_said_is_kept_when_the_other_fails(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path / "cache"))
    both, known = threading.Barrier(2, timeout=30), 2 * len(load_checks())

    def meeting(server: FaultyServer) -> Callable[[Any], str]:
        """Answers that, once the known ones are judged, wait until the other host is asked too."""

        def answer(messages: Any) -> str:
            if server.calls.total() == known + 1:
                both.wait()
            return honest(messages)

        return answer

    with serving(FaultyServer()) as one, serving(FaultyServer()) as other:
        judges = [f"endpoint:m@{server.url};concurrency=1" for server in (one, other)]
        for server in (one, other):
            server.answer = meeting(server)
        load_run(copied).judge(*judges)
        assert not both.broken
        found = load_run(copied).tables["verdicts"]
        assert set(found["judge"]) == {"rules", *judges}
        assert (found["verdict"] != "unparsed").all()


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_an_address_that_is_dead_leaves_the_others_alone_and_the_study_goes_on(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DEAD_KEY", "sk-dead")
    with serving(FaultyServer()) as one, serving(FaultyServer()) as dead:
        dead.status = 401
        judges = (f"endpoint:m@{dead.url};api_key_env=DEAD_KEY", f"endpoint:m@{one.url}", "rules")
        asked = config.model_copy(update={"judges": judges, "controls": 0, "selfjudge": False})
        with pytest.raises(StoppedError, match=r"not complete: verdicts of judge .*with status 401"):
            run_study(asked, tmp_path / "study")
        answered, tried = one.calls.total(), dead.calls.total()
        assert tried == 1
        run = read_run(tmp_path / "study")
        done = [(judge, spec, arm) for judge in judges[1:] for spec in config.systems for arm in ARMS]
        assert all(run.has_part("verdicts", *key) for key in done)
        dead.status = None
        rates = run_study(asked, tmp_path / "study").to_frame()
        assert set(rates["judge"]) == set(judges)
        assert (one.calls.total(), dead.calls.total()) == (answered, tried + answered)
        # Nothing is left to be asked, so that no key is needed.
        monkeypatch.delenv("DEAD_KEY")
        assert run_study(asked, tmp_path / "study").to_frame().equals(rates)
        assert dead.calls.total() == tried + answered
        with pytest.raises(MechsafetyError, match="names a variable that is not set"):
            run_study(asked, tmp_path / "other")
        assert not (tmp_path / "other" / "parts" / "responses").exists()


def test_a_dry_run_counts_the_answers_of_a_study_those_under_random_directions_too(copied: Path) -> None:
    judge = "endpoint:m@http://127.0.0.1:9/v1;price_in=1;price_out=1"
    done = CliRunner().invoke(
        main, ["judge", str(copied), "--judge", judge, "--dry-run", "--no-cache", "--json"]
    )
    assert done.exit_code == 0, done.output
    (asked,) = json.loads(done.stdout)["endpoint_judges"]
    answers = [pd.read_parquet(copied / f"{name}.parquet") for name in ("responses", "random_responses")]
    texts = {pair for table in answers for pair in zip(table["prompt"], table["response"], strict=True)}
    assert asked["questions"] == len(texts)
    assert asked["questions"] + asked["kept"] == sum(map(len, answers))
    assert asked["cost"] > 0
    assert read_run(copied).manifest["config"]["judges"] == ["rules"]


def test_judges_that_cannot_be_added_are_one_line(copied: Path) -> None:
    with pytest.raises(MechsafetyError, match="'rules' has read the answers"):
        load_run(copied).judge("rules")
    with pytest.raises(MechsafetyError, match="no judge is called 'oracle'"):
        load_run(copied).judge("oracle")
    assert load_run(copied).config["judges"] == ["rules"]
    shutil.rmtree(copied / "parts" / "responses")
    with pytest.raises(MechsafetyError, match="keep its folder parts"):
        load_run(copied).judge(ADDED)


def test_a_comparison_with_a_reference_reports_that_it_lacks_the_judge(copied: Path) -> None:
    assert CliRunner().invoke(main, ["judge", str(copied), "--judge", ADDED]).exit_code == 0
    assert CliRunner().invoke(main, ["agree", str(copied), "--reference", "rules"]).exit_code == 0
    assert set(pd.read_csv(copied / "judge_errors.csv")["judge"]) == {ADDED}
    done = CliRunner().invoke(main, ["judge", str(copied), "--judge", "phrases:arditi"])
    assert "mechsafety agree makes them again" in done.stderr


@pytest.mark.parametrize(
    "name", [("check", "endpoint:m@http://h/v1"), ("verdicts", "endpoint:m@http://h/v1", "s", "a")]
)
def test_on_a_worker_an_endpoint_that_is_dead_stops_its_own_task_as_not_complete(
    name: tuple[str, ...],
) -> None:
    work = MagicMock(spec=StudyWork)
    work.session, work.config = MagicMock(), StudyConfig()
    work.check.side_effect = work.verdicts.side_effect = UnusableError("nobody is there")
    with pytest.raises(StoppedError, match=r"not complete: verdicts of judge .*nobody is there"):
        do(work, Task(name=name, done=False))
