"""A study ends with the same tables however often it is interrupted, and says what it did."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from statsmodels.stats.contingency_tables import mcnemar

from mechsafety.cli import main
from mechsafety.core.errors import MechsafetyError, NotFiniteError
from mechsafety.directions.files import read_directions
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.experiments.study.systems import direction_of
from mechsafety.experiments.study.work import StudyWork
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs import folder as runs
from mechsafety.runs.folder import read_run
from mechsafety.sweeps.candidates import BatchedScorer
from tests.architectures import save_architecture
from tests.prompt_sets import small_prompts, write_csv
from tests.tokenizer_kinds import DATED, KINDS, save_kind

pytestmark = pytest.mark.usefixtures("unpublished")

TABLES = (
    "responses.parquet",
    "verdicts.parquet",
    "sweep.parquet",
    "scatter.parquet",
    "random_responses.parquet",
    "random_verdicts.parquet",
    "selfjudge.parquet",
    "rates.csv",
    "tests.csv",
    "controls.csv",
    "agreement.csv",
    "selfjudge.csv",
)


@pytest.fixture(scope="session")
def config(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    csv = write_csv(small_prompts(10), tmp_path_factory.mktemp("prompts") / "small.csv")
    llama, gpt2 = str(tiny_folder("llama")), str(tiny_folder("gpt2"))
    return StudyConfig(
        systems=(llama, gpt2),
        prompts=str(csv),
        anchors=str(csv),
        max_new_tokens=6,
        batch_size=7,
        judges=("rules", "degeneracy", "phrases:granular", f"logit:{llama}"),
        dtype="float32",
        device="cpu",
    )


@pytest.fixture(scope="session")
def finished(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study(config, tmp_path_factory.mktemp("runs") / "whole").path


def tables(path: Path) -> dict[str, pd.DataFrame]:
    return {
        name: pd.read_csv(path / name) if name.endswith("csv") else pd.read_parquet(path / name)
        for name in TABLES
    }


def assert_same_tables(a: Path, b: Path) -> None:
    for name, table in tables(a).items():
        pd.testing.assert_frame_equal(table, tables(b)[name], obj=name)
    assert (a / "rates.csv").read_bytes() == (b / "rates.csv").read_bytes()
    assert (a / "directions.safetensors").read_bytes() == (b / "directions.safetensors").read_bytes()


def assert_same_answers(part: Path, whole: Path) -> None:
    """The study in ``part``, of fewer systems or judges, has the rows of that in ``whole``."""
    for name in ("responses", "sweep", "scatter", "random_responses"):
        if not (part / f"{name}.parquet").is_file():
            continue
        mine, others = (pd.read_parquet(path / f"{name}.parquet") for path in (part, whole))
        expected = others[others["system"].isin(set(mine["system"]))].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, expected, obj=name)


def test_tables_hold_every_system_arm_prompt_and_judge(finished: Path, config: StudyConfig) -> None:
    found = tables(finished)
    responses, verdicts, rates = found["responses.parquet"], found["verdicts.parquet"], found["rates.csv"]
    assert len(responses) == 2 * 2 * 20
    assert not responses.duplicated(["system", "arm", "id"]).any()
    assert len(verdicts) == len(responses) * 4
    assert list(rates.columns) == [
        *("system", "arm", "label", "judge", "n"),
        *("refusal", "compliance", "degenerate", "unparsed", "rate", "low", "high"),
    ]
    assert len(rates) == 2 * 2 * 2 * 4
    assert (rates[["refusal", "compliance", "degenerate", "unparsed"]].sum(axis=1) == rates["n"]).all()
    assert set(rates["arm"]) == {"original", "edited"}
    assert {"system", "label", "judge", "b", "c", "p", "p_holm"} <= set(found["tests.csv"].columns)
    counted = verdicts[verdicts["verdict"] == "refusal"].groupby(["system", "arm", "label", "judge"]).size()
    for row in rates.itertuples():
        assert counted.get((row.system, row.arm, row.label, row.judge), 0) == row.refusal


def test_manifest_reports_what_was_done(finished: Path, config: StudyConfig) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["config"]["seed"] == 0
    assert len(manifest["config"]["prompts_sha256"]) == 64
    assert manifest["versions"]["torch"]
    for system in config.systems:
        facts = manifest["systems"][system]
        assert facts["model"]["fingerprint"]
        assert len(facts["edit"]["sha256"]) == 64
        assert facts["generation"]["edited"]["coverage"]["hooks"] == 12
        assert facts["generation"]["original"]["tokens_per_s"] > 0
        assert facts["refusal_tokens"]["ids"]
        assert "sweep" in manifest["timings"][system]
    assert set(read_directions(finished / "directions.safetensors")) == set(config.systems)


def test_the_edit_changed_the_responses(finished: Path) -> None:
    responses = tables(finished)["responses.parquet"].set_index(["system", "arm", "id"])["response"]
    original, edited = responses.xs("original", level="arm"), responses.xs("edited", level="arm")
    assert (original != edited.reindex(original.index)).mean() > 0.3


def test_every_draw_is_answered_judged_and_tested_on_the_harmful_prompts(
    finished: Path, config: StudyConfig, tiny_folder: Callable[..., Path]
) -> None:
    found = tables(finished)
    controls, answers = found["controls.csv"], found["random_responses.parquet"]
    verdicts, random = found["verdicts.parquet"], found["random_verdicts.parquet"]
    for system in config.systems:
        assert list(controls[controls["system"] == system]["draw"]) == [1, 2, 3]
    asked = found["responses.parquet"].query("label == 'harmful' and arm == 'edited'")
    for (system, arm), rows in answers.groupby(["system", "arm"]):
        assert list(rows["id"]) == list(asked[asked["system"] == system]["id"]), arm
    assert set(random["judge"]) == {config.primary_judge}
    edited = verdicts.query("judge == 'rules' and arm == 'edited' and label == 'harmful'")
    for row in controls.to_dict(orient="records"):
        under = random[(random["system"] == row["system"]) & (random["arm"] == f"random-{row['draw']}")]
        pairs = under.merge(edited[["system", "id", "verdict"]], on=["system", "id"])
        grid = pd.crosstab(pairs["verdict_x"] == "refusal", pairs["verdict_y"] == "refusal")
        grid = grid.reindex(index=[True, False], columns=[True, False], fill_value=0)
        assert (row["fell"], row["rose"]) == (grid.loc[True, False], grid.loc[False, True])
        assert row["p"] == pytest.approx(mcnemar(grid.to_numpy(), exact=True).pvalue)
        assert row["p_beyond"] >= row["p"]
        assert row["degenerate"] == pytest.approx((under["verdict"] == "degenerate").mean())
        assert row["energy"] == pytest.approx(row["energy_direction"], rel=0.5)
        assert row["kl"] > 0
        assert row["kl_edited"] > 0
    manifest = read_run(finished).manifest
    assert "generate random" in manifest["timings"][config.systems[0]]


def test_a_draw_is_removed_as_the_direction_is(
    finished: Path, config: StudyConfig, tiny_kept: Callable[..., Any]
) -> None:
    """Same sites, same strength, another direction: the answers are those of the edit made by hand."""
    import torch

    from mechsafety.directions.activations import residual_stream
    from mechsafety.directions.controls import control_directions
    from mechsafety.edits.interventions import Ablate
    from mechsafety.generation.completions import generate
    from mechsafety.prompts.prompt_set import PromptSet, load_prompts

    model, spec, run = tiny_kept("llama"), config.systems[0], read_run(finished)
    prompts = load_prompts(config.prompts)
    direction = direction_of(run, spec)
    used = set(run.read_json_part("fit", spec))
    fit = PromptSet(tuple(p for p in prompts.fit if p.id in used))
    cache = residual_stream(model, fit, positions=(direction.position,))
    harmful, harmless = (cache.select(label)[:, 0, direction.layer] for label in ("harmful", "harmless"))
    drawn = control_directions(harmful, harmless, direction.unit, n=3, seed=0, system=spec)
    kept = run.read_part("controls", spec)
    for control, row in zip(drawn, kept.to_dict(orient="records"), strict=True):
        torch.testing.assert_close(torch.tensor(row["unit"]).float(), control.unit, atol=1e-5, rtol=0)
    mine = generate(model, prompts.report.harmful, edit=Ablate(drawn[1].unit), max_new_tokens=6, seed=0)
    answers = pd.read_parquet(finished / "random_responses.parquet").query("system == @spec")
    second = answers[answers["arm"] == "random-2"]
    assert list(second["response"]) == [c.text for c in mine]
    # The controls: another draw answers otherwise, and so does the edit.
    assert list(second["response"]) != list(answers[answers["arm"] == "random-1"]["response"])
    arms = pd.read_parquet(finished / "responses.parquet").query("system == @spec and label == 'harmful'")
    assert list(second["response"]) != list(arms[arms["arm"] == "edited"]["response"])


def test_a_study_without_controls_has_the_other_tables_and_the_same_numbers(
    finished: Path, config: StudyConfig, tmp_path: Path
) -> None:
    changed = {"controls": 0, "systems": config.systems[:1], "judges": ("rules",)}
    run = run_study(config.model_copy(update=changed), tmp_path / "run")
    assert not {"controls", "random_responses", "random_verdicts"} & run.tables.keys()
    assert_same_answers(run.path, finished)
    rates = pd.read_csv(finished / "rates.csv").query("system == @config.systems[0] and judge == 'rules'")
    pd.testing.assert_frame_equal(pd.read_csv(run.path / "rates.csv"), rates.reset_index(drop=True))
    assert "controls" not in run.path.joinpath("rates.csv").read_text()
    assert run.findings
    assert run.figures()["outcomes"]


def test_an_interrupted_random_arm_goes_on_with_the_same_draws(
    finished: Path, config: StudyConfig, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        if "random-2" in line:
            raise Stop

    alone = config.model_copy(update={"systems": config.systems[:1], "judges": ("rules",)})
    with pytest.raises(Stop):
        run_study(alone, tmp_path / "run", say=stop)
    drawn = list((tmp_path / "run" / "parts" / "controls").iterdir())
    before = [path.read_bytes() for path in drawn]
    run_study(alone, tmp_path / "run")
    assert [path.read_bytes() for path in drawn] == before
    assert_same_answers(tmp_path / "run", finished)


def test_running_again_changes_nothing_and_loads_no_model(
    finished: Path, config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*.parquet")}
    monkeypatch.setattr(
        "mechsafety.experiments.session.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    run_study(config, finished)
    assert {p: p.read_bytes() for p in finished.rglob("*.parquet")} == before


@pytest.mark.parametrize(
    "parts", [pytest.param(2, marks=pytest.mark.slow), 9, pytest.param(15, marks=pytest.mark.slow)]
)
def test_killed_study_resumes_to_the_same_tables(
    finished: Path, config: StudyConfig, tmp_path: Path, parts: int
) -> None:
    """kill -9 once ``parts`` parts are on disk; then the same command again."""
    program = (
        "import sys, json; from pathlib import Path; from mechsafety.experiments.study.experiment import run_study;"
        "from mechsafety.experiments.study.config import StudyConfig; import torch; torch.set_num_threads(1);"
        "run_study(StudyConfig.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, config.model_dump_json(), str(run)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    while process.poll() is None and len([p for p in run.rglob("parts/**/*") if p.is_file()]) < parts:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the study ended before it was killed"
    assert not (run / "rates.csv").exists()
    run_study(config, run)
    assert_same_tables(run, finished)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers of every candidate that is measured; each layer is measured on its own."""
    score, layers = BatchedScorer.score, []

    def counting(self: BatchedScorer, candidates: Any, *prompts: Any) -> Any:
        layers.extend(c.layer for c in candidates)
        if len(layers) == 2:
            raise KeyboardInterrupt
        return score(self, candidates, *prompts)

    monkeypatch.setattr("mechsafety.sweeps.scoring.ROWS_A_CHUNK", 1)
    monkeypatch.setattr(BatchedScorer, "score", counting)
    return layers


def test_a_study_goes_on_within_its_sweep_and_measures_no_candidate_twice(
    finished: Path, config: StudyConfig, tmp_path: Path, measured: list[int]
) -> None:
    exhaustive = {"search": "exhaustive", "positions": "last_prompt"}
    fewer = {"judges": ("rules",), "controls": 0, "selfjudge": False, "limit": 3}
    alone = config.model_copy(update={"systems": config.systems[:1], **fewer, **exhaustive})
    with pytest.raises(KeyboardInterrupt):
        run_study(alone, tmp_path / "run")
    (journal,) = (tmp_path / "run" / "parts" / "scores").rglob("*.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + 1  # what it is bound to, and one candidate
    run = run_study(alone, tmp_path / "run")
    layers = sorted({*measured})
    # The one that was under way when the study was interrupted is measured again.
    assert sorted(measured) == sorted([*layers, measured[1]])
    whole = run_study(alone, tmp_path / "whole").to_frame("sweep")
    pd.testing.assert_frame_equal(run.to_frame("sweep"), whole)


@pytest.mark.parametrize("given", [{"layer": 3}, {"recipe": "code"}])
def test_a_fixed_layer_is_the_one_candidate_that_is_measured(
    finished: Path,
    plain: StudyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
) -> None:
    score, measured = BatchedScorer.score, []

    def counting(self: BatchedScorer, candidates: Any, *prompts: Any) -> Any:
        measured.extend(c.layer for c in candidates)
        return score(self, candidates, *prompts)

    monkeypatch.setattr(BatchedScorer, "score", counting)
    alone = plain.model_copy(update={"systems": plain.systems[:1], "selfjudge": False, **given})
    run = run_study(alone, tmp_path / "run")
    layer = given.get("layer", int(4 * 0.6))
    assert measured == [layer]
    facts = run.manifest["systems"][plain.systems[0]]
    assert (facts["selection"]["layer"], facts["selection"]["rule"]) == (layer, "fixed")
    # As it is among all of them, where the direction is found on the same prompts.
    every = {"search": "exhaustive", "positions": "last_prompt", "confirm": 0, "fit_on": facts["fit_on"]}
    whole = plain.model_copy(update={"systems": plain.systems[:1], "selfjudge": False, **every})
    swept = run_study(whole, tmp_path / "whole").to_frame("sweep").query("layer == @layer")
    pd.testing.assert_frame_equal(run.to_frame("sweep"), swept.reset_index(drop=True))
    (figure,) = (f for name, f in run.figures().items() if name.startswith("layer-sweep"))
    assert all(list(trace.x) == [layer] for trace in figure.data)


def test_halved_batches_are_recorded_and_resumed(
    finished: Path, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from mechsafety.generation import completions as generation

    real = generation.hf_answers

    def small_memory(module: Any, batch: Any, *rest: Any) -> Any:
        if len(batch.rows) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return real(module, batch, *rest)

    monkeypatch.setattr(generation, "hf_answers", small_memory)
    said: list[str] = []
    alone = config.model_copy(update={"systems": config.systems[:1], "judges": ("rules",)})
    run_study(alone, tmp_path / "run", say=said.append)
    assert any("halved" in line for line in said)
    plans = [json.loads(p.read_text()) for p in (tmp_path / "run" / "parts" / "plans").rglob("*.json")]
    assert all(len(batch) <= 4 for plan in plans for batch in plan)
    # Float32 tokens do not depend on the batch size, so neither do the answers.
    assert_same_answers(tmp_path / "run", finished)


def test_changed_config_on_an_old_folder_is_refused_with_the_difference(
    finished: Path, config: StudyConfig
) -> None:
    other = config.model_copy(update={"max_new_tokens": 7})
    with pytest.raises(MechsafetyError, match="max_new_tokens: 6 -> 7"):
        run_study(other, finished)


def test_overlap_of_report_and_anchor_prompts_is_refused(config: StudyConfig, tmp_path: Path) -> None:
    prompts = small_prompts(4)
    anchors = write_csv(prompts, tmp_path / "anchors.csv")
    leaked = [{**row, "split": "report"} for row in prompts.fit.to_frame().to_dict("records")]
    report = tmp_path / "report.json"
    report.write_text(json.dumps(leaked))
    bad = config.model_copy(update={"prompts": str(report), "anchors": str(anchors)})
    with pytest.raises(MechsafetyError, match="is also anchor"):
        run_study(bad, tmp_path / "run")


@pytest.mark.parametrize("recipe", ["paper", "code", "granular-release", "arditi"])
def test_published_recipes_run(config: StudyConfig, tmp_path: Path, recipe: Any) -> None:
    small = config.model_copy(
        update={
            "recipe": recipe,
            "systems": config.systems[:1],
            "judges": ("rules",),
            "selfjudge": False,
            "limit": 2,
            "nll": False,
            "controls": 0,
        }
    )
    result = run_study(small, tmp_path / "run")
    facts = json.loads((result.path / "manifest.json").read_text())["systems"][config.systems[0]]
    expected = {
        "paper": "sites=resid_post",
        "code": "layers=1,2,3, writers=attn_out+mlp_out",
        "granular-release": "layers=1,2,3, writers=attn_out+mlp_out",
        "arditi": "sites=resid_pre+attn_out+mlp_out",
    }[recipe]
    assert expected in facts["edit"]["description"]
    if recipe == "code":
        assert facts["selection"]["layer"] == int(4 * 0.6)
    if recipe == "granular-release":
        assert facts["selection"]["layer"] == 4
        assert facts["fit_prompts_used"] == {"harmful": 20, "harmless": 20}  # fit and validation
        assert read_directions(result.path / "directions.safetensors")[config.systems[0]].final_norm
    positions = pd.read_parquet(result.path / "sweep.parquet")["position"].nunique()
    assert (positions > 1) == (recipe == "arditi")


# -- a system that cannot be measured --------------------------------------------------------------


@pytest.fixture
def overflowing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """``overflowing(spec, stage)``: numbers of that system are not finite from that stage on."""

    def make(spec: str, stage: str) -> None:
        real = getattr(StudyWork, stage)

        def failing(work: Any, system: str, *rest: Any) -> Any:
            if system == spec:
                raise NotFiniteError(f"{spec}: logits are not finite in layer 2")
            return real(work, system, *rest)

        monkeypatch.setattr(StudyWork, stage, failing)

    return make


@pytest.fixture
def plain(config: StudyConfig) -> StudyConfig:
    """The study without what is slow."""
    return config.model_copy(update={"judges": ("rules",), "nll": False, "limit": 3, "controls": 1})


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("_directions", marks=pytest.mark.slow),
        pytest.param("_sweep", marks=pytest.mark.slow),
        "respond",
        pytest.param("selfjudge", marks=pytest.mark.slow),
    ],
)
def test_a_system_that_is_not_finite_is_named_and_the_others_are_as_without_it(
    plain: StudyConfig, tmp_path: Path, overflowing: Callable[[str, str], None], stage: str
) -> None:
    llama, gpt2 = plain.systems
    alone = run_study(plain.model_copy(update={"systems": (gpt2,)}), tmp_path / "alone")
    overflowing(llama, stage)
    heard: list[str] = []
    result = run_study(plain, tmp_path / "run", say=heard.append)
    assert result.failed == {llama: f"{llama}: logits are not finite in layer 2"}
    assert "not finite" in result._repr_html_()
    assert_same_tables(result.path, alone.path)
    systems = read_run(result.path).manifest["systems"]
    assert systems[llama] == {"failed": result.failed[llama]}
    assert systems[gpt2]["model"]["fingerprint"]
    report = load_run(result.path).report().read_text()
    assert "Not measured" in report
    assert "logits are not finite in layer 2" in report
    assert "Not measured" not in load_run(alone.path).report().read_text()


def test_a_failed_system_is_not_tried_again(
    plain: StudyConfig,
    tmp_path: Path,
    overflowing: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overflowing(plain.systems[0], "respond")
    first = run_study(plain, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(
        "mechsafety.experiments.session.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    heard: list[str] = []
    again = run_study(plain, tmp_path / "run", say=heard.append)
    assert again.failed == first.failed
    assert any("not tried again" in line and "new folder" in line for line in heard)


def test_a_failed_system_is_tried_again_under_other_versions(
    plain: StudyConfig,
    tmp_path: Path,
    overflowing: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context():
        overflowing(plain.systems[0], "respond")
        assert run_study(plain, tmp_path / "run").failed
    monkeypatch.undo()
    newer = {**runs.computing_versions(), "torch": "99"}
    monkeypatch.setattr(runs, "computing_versions", lambda: newer)
    again = run_study(plain, tmp_path / "run", allow_other_versions=True)
    assert not again.failed
    assert set(again.to_frame()["system"]) == set(plain.systems)


def test_a_judge_that_is_not_finite_is_no_fault_of_the_system(
    plain: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise NotFiniteError("logits are not finite")

    monkeypatch.setattr("mechsafety.experiments.judging.judge_responses", broken)
    with pytest.raises(MechsafetyError, match="judge 'rules': logits are not finite") as caught:
        run_study(plain, tmp_path / "run")
    assert not isinstance(caught.value, NotFiniteError)


@pytest.mark.published
@pytest.mark.parametrize("failing", [1, 2])
def test_the_command_ends_with_1_and_names_what_failed(
    plain: StudyConfig, tmp_path: Path, overflowing: Callable[[str, str], None], failing: int
) -> None:
    for system in plain.systems[:failing]:
        overflowing(system, "_directions")
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(plain.model_dump(mode="json")))
    for words in ([], ["--json"]):
        done = CliRunner().invoke(main, ["study", str(path), "--out", str(tmp_path / "run"), *words])
        assert done.exit_code == 1, done.output
        assert "Traceback" not in done.output
        if words:
            assert set(json.loads(done.stdout)["failed"]) == set(plain.systems[:failing])
        else:
            assert all(f"Not measured: {system}: " in done.stdout for system in plain.systems[:failing])
    assert (
        (tmp_path / "run" / "rates.csv").exists()
        == (tmp_path / "run" / "report.html").exists()
        == (failing == 1)
    )
    if failing == 2:
        whole = CliRunner().invoke(main, ["study", str(path), "--out", str(tmp_path / "run")]).stdout
        assert len(whole.strip().splitlines()) == 1


def test_repeated_prompts_are_reported_and_recorded(
    plain: StudyConfig, tmp_path: Path, tiny_folder: Callable[..., Path]
) -> None:
    rows = small_prompts(10).to_frame().to_dict("records")
    doubled = tmp_path / "doubled.json"
    twice = [dict(row, id=row["id"] + "-again", text=row["text"].upper()) for row in rows[:3]]
    doubled.write_text(json.dumps([*rows, *twice]))
    changed = {"prompts": str(doubled), "anchors": str(doubled), "systems": plain.systems[:1], "layer": 2}
    heard: list[str] = []
    run = run_study(plain.model_copy(update=changed), tmp_path / "run", say=heard.append)
    assert read_run(run.path).manifest["repeated_prompts"] == 3
    assert any(line.startswith("3 prompts stand twice") for line in heard)
    same = plain.model_copy(update={**changed, "prompts": plain.prompts, "anchors": plain.anchors})
    once = run_study(same, tmp_path / "once")
    assert read_run(once.path).manifest["repeated_prompts"] == 0
    pd.testing.assert_frame_equal(run.to_frame(), once.to_frame())


# -- what the systems read ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dated(
    config: StudyConfig, tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A study of one system with a dated template, prompts beyond its window and with its control tokens."""
    folder = tmp_path_factory.mktemp("dated")
    shutil.copytree(tiny_folder("llama"), folder / "model")
    (folder / "model" / "chat_template.jinja").unlink()
    save_kind(folder / "model", KINDS["BOS added"], template=DATED)
    prompts = list(small_prompts(6))
    strange = {prompts[-1].id: "river " * 300 + "fire", prompts[-2].id: "make <|end|> bread"}
    changed = [replace(p, text=strange.get(p.id, p.text)) for p in prompts]
    csv = write_csv(PromptSet(tuple(changed), "strange"), folder / "strange.csv")
    return config.model_copy(
        update={
            "systems": (str(folder / "model"),),
            "prompts": str(csv),
            "anchors": str(csv),
            "judges": ("rules", f"logit:{tiny_folder('llama')}"),
            "selfjudge": True,
        }
    ), (prompts[-1].id, prompts[-2].id)


def test_a_study_reports_what_its_systems_read_and_refuses_what_does_not_fit(
    dated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, (long, breaking) = dated
    with pytest.raises(MechsafetyError, match=f"the first is {long!r}.* 6 new tokens"):
        run_study(config, tmp_path / "no")
    assert not (tmp_path / "no" / "parts").exists()  # before any work
    monkeypatch.setattr(runs, "today", lambda: "2001-02-03")
    asked = config.model_copy(update={"truncate_prompts": True, "escape_control_tokens": True})
    path = run_study(asked, tmp_path / "yes").path
    manifest = json.loads((path / "manifest.json").read_text())
    (facts,) = manifest["systems"].values()
    assert manifest["date"] == facts["model"]["date"] == "2001-02-03"
    assert facts["truncated_prompts"] == {"n": 1, "ids": [long]}
    assert facts["control_tokens"] == {"n_prompts": 1, "first": breaking, "escaped": True}
    assert all(text.startswith("Today: 3 Feb 2001") for text in facts["rendered"].values())
    responses = pd.read_parquet(path / "responses.parquet").set_index("id")
    assert set(responses.loc[breaking, "prompt"]) == {"make < |end|> bread"}
    assert responses["n_prompt_tokens"].max() == 256 - config.max_new_tokens
    page = load_run(path).report().read_text()
    assert "Today: 3 Feb 2001" in page
    assert f"1 ({long})" in page
    # Asked about the answer to a prompt that fills the window, the model has no room; about the others it has.
    judged = pd.read_parquet(path / "selfjudge.parquet").set_index("id")
    assert set(judged.index[judged["score"].isna()]) == {long}
    assert list(pd.read_csv(path / "selfjudge.csv")["not_asked"]) == [1, 1]


def test_a_later_system_with_a_smaller_window_is_refused_before_the_first_works(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = save_architecture(tmp_path / "small", "llama", max_position_embeddings=12)
    monkeypatch.setattr(
        "mechsafety.experiments.session.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    asked = config.model_copy(update={"systems": (config.systems[0], str(small)), "judges": ("rules",)})
    with pytest.raises(MechsafetyError, match=r"small: .*window of 12 tokens"):
        run_study(asked, tmp_path / "run")


def test_a_study_that_goes_on_another_day_reads_as_on_the_first(
    dated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = dated
    fewer = {"judges": ("rules",), "controls": 0, "selfjudge": False, "confirm": 0}
    asked = config.model_copy(update={"truncate_prompts": True, **fewer})
    monkeypatch.setattr(runs, "today", lambda: "2001-02-03")
    whole = run_study(asked, tmp_path / "whole").path
    stages: list[str] = []

    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        if "edited" in line:
            raise Stop
        stages.append(line)

    with pytest.raises(Stop):
        run_study(asked, tmp_path / "parts", say=stop)
    assert stages
    monkeypatch.setattr(runs, "today", lambda: "2001-05-06")
    resumed = run_study(asked, tmp_path / "parts").path
    answers = [pd.read_parquet(path / "responses.parquet") for path in (whole, resumed)]
    pd.testing.assert_frame_equal(*answers)
    # The control: on that day alone, it reads other prompts.
    later = pd.read_parquet(run_study(asked, tmp_path / "later").path / "responses.parquet")
    assert list(later["response"]) != list(answers[0]["response"])


def test_a_study_that_ends_before_its_random_arm_is_kept_lacks_no_cost(
    finished: Path, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config.model_copy(update={"systems": config.systems[:1], "judges": ("rules",), "selfjudge": False})
    write = StudyWork._write_responses

    def stops(self: StudyWork, spec: str, arm: str, table: pd.DataFrame) -> None:
        write(self, spec, arm, table)
        if arm == "random-3":
            raise KeyboardInterrupt

    monkeypatch.setattr(StudyWork, "_write_responses", stops)
    with pytest.raises(KeyboardInterrupt):
        run_study(one, tmp_path / "run")
    monkeypatch.undo()
    found = run_study(one, tmp_path / "run").tables["controls"]
    whole = read_run(finished).path / "controls.csv"
    expected = pd.read_csv(whole).query("system == @one.systems[0] and judge == 'rules'")
    assert list(found["kl"]) == pytest.approx(list(expected["kl"]))
    assert found["kl_edited"].notna().all()
