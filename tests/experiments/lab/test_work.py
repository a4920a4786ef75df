"""The lab from end to end, in its quickest size: whole, resumable, the same for the same seed, and readable."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from mechsafety.cli import main
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.engines.tasks import Task
from mechsafety.experiments.anatomy.config import AnatomyConfig
from mechsafety.experiments.anatomy.experiment import read_anatomy
from mechsafety.experiments.lab import controls, untrained
from mechsafety.experiments.lab import ladder as lab_ladder
from mechsafety.experiments.lab.config import LabConfig
from mechsafety.experiments.lab.experiment import Lab, LabResult, read_lab, run_lab
from mechsafety.experiments.lab.ladder import LabLadder, LabLadderResult, run_lab_ladder
from mechsafety.experiments.lab.thresholds import CLAIMS
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.remote.pool import Pool
from mechsafety.experiments.remote.worker import Worker
from mechsafety.experiments.result import Result
from mechsafety.experiments.status import run_status
from mechsafety.judges.registry import judge_responses
from mechsafety.models.loading import load_model
from mechsafety.runs.folder import RunFolder, computing_versions, read_run
from tests import in_process_ray

pytestmark = pytest.mark.usefixtures("unpublished")

CONFIG = LabConfig(preset="quick", seeds=(3,))
FEW_DRAWS: dict[str, Any] = {
    "untrained._TARGETS": 19,
    "untrained.NETWORKS": 5,
    "controls.SHUFFLES": 19,
    "controls.exchanged": partial(controls.exchanged, draws=19),
}
ALL_DRAWS = {"untrained._TARGETS": untrained._TARGETS, "untrained.NETWORKS": untrained.NETWORKS}
ALL_DRAWS |= {"controls.SHUFFLES": controls.SHUFFLES, "controls.exchanged": controls.exchanged}


@pytest.fixture(scope="module", autouse=True)
def _small_runs() -> Iterator[None]:
    """Ladders of six rungs and anatomies with fewer states than by default; fewer draws of each control."""
    with pytest.MonkeyPatch.context() as patch:
        few = partial(AnatomyConfig, alphas=(0.0, 0.5, 1.0, 1.5), ranks=(1,))
        patch.setattr("mechsafety.experiments.lab.experiment.AnatomyConfig", few)
        for name, value in FEW_DRAWS.items():
            patch.setattr(f"mechsafety.experiments.lab.{name}", value)
        patch.setattr(lab_ladder, "LadderConfig", partial(LadderConfig, counts=(1, 2), controls=1))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> LabResult:
    return run_lab(CONFIG, tmp_path_factory.mktemp("lab") / "run")


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> LabLadderResult:
    return run_lab_ladder(CONFIG, tmp_path_factory.mktemp("ladder") / "run")


def test_every_claim_has_numbers_and_every_model_every_kind(made: LabResult) -> None:
    assert set(made.tables["thresholds"]["number"]) == set(CLAIMS)
    assert set(made.tables["cases"]["model"]) == {"base", "benign", "ssft", "dpo", "unlearn"}
    kinds = made.tables["cases"].groupby("model")["kind"].nunique()
    assert set(kinds) == {8}
    assert set(made.tables["cases"]["seed"]) == {3}
    shares = made.tables["cases"][["correct", "refused", "rephrased", "tagged", "other"]].sum(axis=1)
    assert shares.round(9).eq(1).all()


def test_readings_beside_controls_are_those_of_the_anatomies(made: LabResult) -> None:
    controls = made.tables["controls"]
    assert set(controls["number"]) == set(CLAIMS)
    assert set(controls["control"]) == {"untrained networks", "shuffled labels"}
    assert set(controls.loc[controls["number"] == 7, "control"]) == {"untrained networks"}
    places = {"last_prompt": "last prompt token", "output": "over the answer"}
    for tuning in ("ssft", "dpo", "unlearn"):
        tables = read_anatomy(made.anatomy(3, tuning)).tables
        own = controls[controls["model"] == tuning].groupby("what")["value"].first()
        for positions, place in places.items():
            (row,) = (
                tables["separation"]
                .query(f"model == 'tuned' and positions == '{positions}' and layer == 1")
                .itertuples()
            )
            assert own[f"AUROC of tau, {place}"] == pytest.approx(row.auroc, abs=2e-3)
            assert own[f"d' of tau, {place}"] == pytest.approx(row.d_prime, rel=1e-2, abs=1e-2)
            (ratio,) = tables["action_ratios"].query(
                f"model == 'tuned' and positions == '{positions}' and layer == 1 and kind == 'down'"
            )["ratio"]
            found = own[f"||dW a|| unsafe over safe, last MLP output matrix, {place}"]
            assert found == pytest.approx(ratio, rel=1e-3)
        median = tables["sensitivity"].query("model == 'tuned'").set_index("group")["median"]
        assert own["median sensitivity, unsafe over safe inputs"] == pytest.approx(
            median["unsafe"] / median["safe"], rel=1e-4
        )


def test_models_prompts_and_key_serve_the_other_commands(made: LabResult) -> None:
    folders = made.models(3)
    steps = sorted(p.name for p in (Path(folders["base"]) / "checkpoints").iterdir())
    assert steps == ["step-000000", "step-000015", "step-000030"]
    model = load_model(str(Path(folders["base"]) / "checkpoints" / "step-000015"), dtype="float32")
    assert model.cfg.n_layers == 2
    seed = made.path / "seed-3"
    key = pd.read_csv(seed / "answer_key.csv", keep_default_na=False)
    responses = [
        Response(id=str(i), prompt=row["prompt"], text=row["answer"])
        for i, row in enumerate(key.to_dict("records"))
    ]
    verdicts = judge_responses(responses, [f"key:{seed / 'answer_key.csv'}"])
    assert {v.label for v in verdicts} == {"compliance"}
    assert read_anatomy(made.anatomy(3, "dpo")).tables["separation"]["model"].nunique() == 3


def test_a_finished_run_is_not_done_again(made: LabResult) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.path.rglob("*.safetensors")}
    again = run_lab(CONFIG, made.path)
    assert {p: p.stat().st_mtime_ns for p in made.path.rglob("*.safetensors")} == before
    pd.testing.assert_frame_equal(again.tables["thresholds"], made.tables["thresholds"])


def test_an_interrupted_run_goes_on_to_the_same_numbers(made: LabResult) -> None:
    """One tuned model, its anatomy and the tables are made again: the same bytes, the same tables."""
    before = {name: table.copy() for name, table in made.tables.items()}
    ssft = made.path / "seed-3" / "models" / "ssft"
    weights = (ssft / "model.safetensors").read_bytes()
    shutil.rmtree(ssft)
    shutil.rmtree(made.anatomy(3, "ssft"))
    shutil.rmtree(made.path / "parts")
    for table in made.path.glob("*.csv"):
        table.unlink()
    half = ssft.with_name("ssft.training")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"cut short")
    again = run_lab(CONFIG, made.path)
    for name, table in before.items():
        pd.testing.assert_frame_equal(again.tables[name], table)
    assert (ssft / "model.safetensors").read_bytes() == weights
    assert not half.exists()


def test_another_configuration_is_refused(made: LabResult) -> None:
    with pytest.raises(MechsafetyError, match="seeds"):
        run_lab(LabConfig(preset="quick", seeds=(4,)), made.path)


def test_the_ladder_distinguishes_rungs_and_begins_them_all_alike(ladder: LabLadderResult) -> None:
    rungs = ["raw", "score0", "rephrase", "metatags", "refusals", "all"]
    survival = ladder.ladders[3].tables["survival"]
    assert [Path(s).name for s in survival["system"].unique()] == rungs
    assert set(ladder.tables["cases"]["stage"]) == {"pretrained", "tuned"}
    page = load_run(read_run(ladder.ladders[3].path)).report().read_text(encoding="utf-8")
    assert all(rung in page for rung in rungs)


def test_runs_of_other_kinds_are_not_read_as_the_lab(ladder: LabLadderResult, tmp_path: Path) -> None:
    with pytest.raises(MechsafetyError, match="not a run of the lab"):
        read_lab(ladder.ladders[3].path)
    with pytest.raises(MechsafetyError, match="not a run folder"):
        read_lab(tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--preset", "huge"], "quick, tiny, paper"),
        (["run", "--seeds", "0,x"], "--seeds"),
        (["ladder", "--seeds", "-1"], "0 or more"),
        (["ladder", "--preset", "huge"], "quick, tiny, paper"),
        (["run", "--device", "abacus"], "use auto, cpu, cuda"),
    ],
)
def test_bad_input_is_reported_in_one_line(words: list[str], told: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["lab", *words, "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 2
    assert told in json.loads(result.stdout)["error"]
    assert not (tmp_path / "run").exists()


def test_presets_are_listed() -> None:
    result = CliRunner().invoke(main, ["lab", "presets", "--json"])
    assert result.exit_code == 0
    assert list(json.loads(result.stdout)) == ["quick", "tiny", "paper"]


@pytest.mark.published
def test_the_command_prints_what_it_made(made: LabResult, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pages of all anatomies are asked for; one of them is drawn.
    publish, others = Result.publish, [made.anatomy(3, tuning) for tuning in ("dpo", "unlearn")]
    monkeypatch.setattr(
        Result, "publish", lambda run: run.report_path.touch() if run.path in others else publish(run)
    )
    result = CliRunner().invoke(
        main, ["lab", "run", "--preset", "quick", "--seeds", "3", "--out", str(made.path), "--json"]
    )
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert Path(facts["report"]).is_file()
    assert len(facts["thresholds"]) == len(made.held())
    assert len(facts["cases"]) == len(made.tables["cases"])
    for tuning in ("ssft", "dpo", "unlearn"):
        assert (made.anatomy(3, tuning) / "report.html").is_file()
    drawn = {path.stem for path in (made.path / "figures").iterdir()}
    assert {"lab-claims", "lab-controls", "lab-outcomes"} <= drawn
    page = Path(facts["report"]).read_text(encoding="utf-8")
    for claim in CLAIMS.values():
        assert claim.split(",")[0].split(" that ")[0] in page
    assert "Anatomy of DPO, seed 3" in page
    assert "reported" in made._repr_html_()


@pytest.mark.published
def test_the_ladders_command_prints_what_it_made(ladder: LabLadderResult) -> None:
    words = ["lab", "ladder", "--preset", "quick", "--seeds", "3", "--out", str(ladder.path), "--json"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert Path(facts["reports"]["3"]).is_file()
    assert Path(facts["report"]).is_file()
    assert len(facts["breaking"]["3"]) == 6
    assert len(facts["cases"]) == len(ladder.tables["cases"])


# -- on workers ---------------------------------------------------------------------------------------------


def contents(run: Path) -> dict[str, bytes]:
    """Tables, and weights of models; those of anatomies and ladders with them."""
    paths = [path for kind in ("*.csv", "*.safetensors") for path in run.rglob(kind)]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def assert_same_contents(run: Path, whole: dict[str, bytes]) -> None:
    found = contents(run)
    assert found.keys() == whole.keys()
    assert [name for name in whole if found[name] != whole[name]] == []


def test_tasks_on_workers_make_what_the_sequential_run_made(
    made: LabResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model, its anatomy and what depends on them are made again, by workers; nothing else is."""
    in_process_ray.put_in(monkeypatch)
    whole, heard, key = contents(made.path), list[str](), made.path / "parts" / "seed-3"
    for folder in (made.models(3)["dpo"], made.anatomy(3, "dpo")):
        shutil.rmtree(folder)
    for part in ("cases/dpo.parquet", "anatomy/dpo.json", "controls.parquet"):
        (key / part).unlink()
    for table in made.path.glob("*.csv"):
        table.unlink()
    run = run_lab(CONFIG.model_copy(update={"engine": "ray"}), made.path, say=heard.append)
    assert_same_contents(run.path, whole)
    assert [line for line in heard if "anatomy of" in line] == ["seed 3: anatomy of dpo"]
    stages = run_status(run.path)["stages"]
    assert {name: (one["done"], one["known"]) for name, one in stages.items()} == {
        "train": (5, 5),
        "anatomy": (3, 3),
        "controls": (1, 1),
    }


@pytest.mark.slow
def test_tasks_on_workers_make_the_ladder_of_the_sequential_run(
    ladder: LabLadderResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same folder: random directions depend on the names of systems, which are paths."""
    in_process_ray.put_in(monkeypatch)
    whole = contents(ladder.path)
    shutil.rmtree(ladder.path)
    run_lab_ladder(CONFIG.model_copy(update={"engine": "ray"}), ladder.path)
    assert_same_contents(ladder.path, whole)


def test_the_first_seeds_ladder_waits_for_the_others(tmp_path: Path) -> None:
    tasks = {task.name: task for task in LabLadder(LabConfig(seeds=(3, 1))).tasks(RunFolder(tmp_path))}
    assert ("ladder", "seed-1") in tasks["ladder", "seed-3"].needs
    assert not {("ladder", "seed-3"), ("train", "seed-3", "raw")} & {*tasks["ladder", "seed-1"].needs}


def test_a_worker_without_the_run_folder_says_so(tmp_path: Path) -> None:
    options = {"day": "2025-03-01", "threads": 1, "allow_other_versions": False}
    worker = Worker(
        pickle.dumps(Lab(CONFIG)), home=str(tmp_path / "elsewhere"), versions=computing_versions(), **options
    )
    worker.prepare()
    failure = worker.do(Task(name=("train", "seed-3", "base")), {}, {"config": {}}, whole=False).failure
    assert failure is not None
    assert failure.kind == "mend"
    assert "on a disk that all machines share" in failure.why
    worker.leave()


@pytest.mark.slow
def test_processes_of_which_one_dies_make_the_files_of_the_sequential_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other processes know nothing of what the fixture puts in place.
    monkeypatch.setattr("mechsafety.experiments.lab.experiment.AnatomyConfig", AnatomyConfig)
    for name, value in ALL_DRAWS.items():
        monkeypatch.setattr(f"mechsafety.experiments.lab.{name}", value)
    whole = run_lab(CONFIG, tmp_path / "sequential")
    killed: list[str] = []
    begin = Pool.begin

    def begin_and_kill(pool: Any, member: Any, method: str, *arguments: Any, **options: Any) -> None:
        begin(pool, member, method, *arguments, **options)
        if method == "do" and arguments[0].name[0] not in killed:
            killed.append(arguments[0].name[0])
            member.handle.process.kill()

    monkeypatch.setattr(Pool, "begin", begin_and_kill)
    run = run_lab(CONFIG.model_copy(update={"workers": 2}), tmp_path / "run")
    assert killed == ["train", "anatomy", "controls"]
    assert_same_contents(run.path, contents(whole.path))
