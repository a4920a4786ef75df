"""What the driver keeps of its workers: batches that ran out of memory, failures, and what stays where it was made."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError, NotFiniteError, StoppedError
from mechsafety.engines.cluster import OnRay
from mechsafety.engines.hosts import Share
from mechsafety.engines.tasks import Task
from mechsafety.experiments.generation.config import GenerationConfig
from mechsafety.experiments.generation.experiment import Generation, run_generation
from mechsafety.experiments.remote.made import Facts, Failure, Made, keep
from mechsafety.experiments.remote.pool import Member, Pool
from mechsafety.experiments.remote.work import RemoteWork
from mechsafety.experiments.remote.worker import Worker
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.experiments.status import run_status
from mechsafety.experiments.study import tasks as study_tasks
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.experiments.study.work import StudyWork
from mechsafety.generation import completions
from mechsafety.models import ahead
from mechsafety.runs.folder import RunFolder, computing_versions
from tests import in_process_ray
from tests.experiments.slow_experiment import Slow, SlowConfig
from tests.prompt_sets import small_prompts, write_csv
from tests.small_studies import small_study

pytestmark = pytest.mark.usefixtures("unpublished")


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    in_process_ray.put_in(monkeypatch)


@pytest.fixture
def asked(tiny_folder: Callable[..., Path], tmp_path: Path) -> GenerationConfig:
    csv = write_csv(small_prompts(4), tmp_path / "small.csv")
    model = str(tiny_folder("llama"))
    return GenerationConfig(
        model=model, prompts=str(csv), max_new_tokens=4, batch_size=4, temperature=1.0, device="cpu"
    )


def on_ray(config: Any) -> Any:
    return type(config)(**{**config.model_dump(), "engine": "ray"})


def little_memory(monkeypatch: pytest.MonkeyPatch, *, rows: int) -> None:
    """Batches of more than ``rows`` rows run out of memory."""
    answer = completions.hf_answers

    def answered(module: Any, batch: Any, asking: Any) -> torch.Tensor:
        if len(batch.ids) > rows:
            raise torch.OutOfMemoryError("pretended")
        return answer(module, batch, asking)

    monkeypatch.setattr(completions, "hf_answers", answered)


def parts(run: Path, name: str) -> dict[str, bytes]:
    folder = run / "parts" / name
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_batch_that_a_worker_halves_is_recorded_and_answered_as_the_local_engine_does(
    asked: GenerationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_generation(asked, tmp_path / "whole").path
    with monkeypatch.context() as short:
        little_memory(short, rows=2)
        local = run_generation(asked, tmp_path / "local").path
        heard: list[str] = []
        remote = run_generation(on_ray(asked), tmp_path / "remote", say=heard.append).path
    assert any("out of memory: batches of 4 halved" in line for line in heard)
    assert parts(remote, "plans") == parts(local, "plans")
    assert parts(remote, "batches") == parts(local, "batches")
    answers = {run: (run / "responses.parquet").read_bytes() for run in (whole, local, remote)}
    assert answers[remote] == answers[local]
    # The control: draws depend on the batch, so that the plan shows in the bytes.
    assert answers[whole] != answers[local]
    assert {len(b) for (plan,) in [[*parts(remote, "plans").values()]] for b in json.loads(plan)} == {2}
    # The halved plan is followed where memory suffices, whichever engine goes on.
    for run, config in ((remote, asked), (local, on_ray(asked))):
        shutil.rmtree(run / "parts" / "batches")
        (run / "responses.parquet").unlink()
        assert (run_generation(config, run).path / "responses.parquet").read_bytes() == answers[local]


@pytest.fixture
def study(tiny_folder: Callable[..., Path], tmp_path: Path) -> StudyConfig:
    systems = [tiny_folder(name) for name in ("llama", "gpt2")]
    return small_study(
        tmp_path, *systems, per_split=2, max_new_tokens=2, controls=0, judges=("rules", "degeneracy")
    )


def fails_at(monkeypatch: pytest.MonkeyPatch, name: tuple[str, ...], error: Exception) -> None:
    work = study_tasks.do

    def do(study: StudyWork, task: Task) -> None:
        if task.name[: len(name)] == name:
            raise error
        work(study, task)

    monkeypatch.setattr(study_tasks, "do", do)


def test_a_system_whose_numbers_are_not_finite_is_marked_under_the_circumstance_of_the_workers(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = study.systems
    elsewhere: list[Any] = []
    facts = Worker.prepare

    def on_another_processor(worker: Worker) -> Any:
        found = facts(worker)
        assert isinstance(found, Facts)
        more = {"processor": "another one"}
        there = {
            name: replace(one, circumstance={**one.circumstance, **more})
            for name, one in found.sources.items()
        }
        elsewhere.append(there)
        return replace(found, sources=there)

    with monkeypatch.context() as broken:
        broken.setattr(Worker, "prepare", on_another_processor)
        fails_at(broken, ("select", bad), NotFiniteError("logits are not finite"))
        run = run_study(on_ray(study), tmp_path / "run")
    assert elsewhere
    assert set(run.failed) == {bad}, run.failed
    circumstance = run.run.read_json_part("failed", bad)["circumstance"]
    assert circumstance["processor"] == "another one"
    assert circumstance["versions"] == computing_versions()
    assert set(run.to_frame("rates")["system"]) == {good}
    assert run_status(run.path)["failed_tasks"] == {bad: "logits are not finite"}


def test_a_later_worker_that_is_unlike_the_first_is_not_used(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, asked = Worker.prepare, list[Worker]()

    def another(worker: Worker) -> Any:
        asked.append(worker)
        return facts(worker) if len(asked) == 1 else Failure(kind="mend", why="it has torch 0.0, not 2.0")

    monkeypatch.setattr(Worker, "prepare", another)
    heard: list[str] = []
    run = run_study(on_ray(study), tmp_path / "run", say=heard.append)
    assert len(asked) == 2
    assert heard.count("ray: worker 2 is not used: it has torch 0.0, not 2.0") == 1
    assert not run.failed


def test_status_tells_what_failed_from_what_cannot_be_made_because_of_it(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = study.systems[0]
    judged = study.model_copy(update={"systems": (model,), "judges": ("rules", f"logit:{model}")})
    with monkeypatch.context() as broken:
        fails_at(broken, ("check",), ValueError("no such token"))
        with pytest.raises(StoppedError, match=r"check .* failed: ValueError: no such token"):
            run_study(on_ray(judged), tmp_path / "run")
    found = run_status(tmp_path / "run")
    (failed,) = found["failed_tasks"]
    assert failed == f"check · logit:{model}"
    waiting = {f"verdicts · logit:{model} · {model} · {arm}" for arm in ("original", "edited")}
    assert found["blocked_tasks"] == dict.fromkeys(waiting, failed)
    assert found["stages"]["verdicts"]["known"] == 4
    assert found["stages"]["verdicts"]["done"] == 2
    run_study(judged, tmp_path / "run")
    assert not run_status(tmp_path / "run")["failed_tasks"]


def slow(tmp_path: Path, **more: Any) -> Slow:
    return Slow(SlowConfig(log=str(tmp_path / "made.txt"), gate=str(tmp_path / "gate"), **more))


def test_a_run_whose_last_worker_is_refused_stops_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, asked = Worker.prepare, list[Worker]()

    def another(worker: Worker) -> Any:
        asked.append(worker)
        return facts(worker) if len(asked) == 1 else Failure(kind="mend", why="it has torch 0.0, not 2.0")

    def dies(*_: Any, **__: Any) -> None:
        raise in_process_ray.RayError("the node is gone")

    (tmp_path / "gate").touch()
    with monkeypatch.context() as broken:
        broken.setattr(Worker, "prepare", another)
        broken.setattr(Worker, "do", dies)
        with pytest.raises(StoppedError, match=r"no worker is left: worker 2 is not used: it has torch 0\.0"):
            run_experiment(slow(tmp_path, engine="ray"), tmp_path / "run")
    run_experiment(slow(tmp_path, engine="ray"), tmp_path / "run")
    assert (tmp_path / "made.txt").read_text().split() == ["1", "2", "3"]


@pytest.mark.parametrize("failure", [None, Failure(kind="stopped", why="disk full")])
def test_files_are_sent_again_after_a_task_that_failed(tmp_path: Path, failure: Failure | None) -> None:
    run, member = RunFolder(tmp_path / "run"), Member("worker 1", None)
    run.write_text("manifest.json", '{"config": {}}')
    experiment, pool = slow(tmp_path), Pool.__new__(Pool)  # of which no worker is asked
    pool.host = OnRay(Share())
    session = Session(run=run, day="2025-03-01", say=lambda _: None, loading=experiment.loading)
    work = RemoteWork(experiment, pool, session, lambda *_: None)
    run.write_json_part(1, "x")
    first, second = (Task(name=(name,), ships=(("x",),)) for name in "ab")
    assert [*work._shipped(member, first)] == ["parts/x.json"]
    work.schedule.running[member.name] = first
    work._ended(member, Made(failure=failure, held=("a model",)))
    assert [*work._shipped(member, second)] == ([] if failure is None else ["parts/x.json"])
    assert member.held == ("a model",)


def a_worker(experiment: Slow, home: Path) -> Worker:
    return Worker(
        pickle.dumps(experiment),
        home=str(home),
        day="2025-03-01",
        threads=1,
        allow_other_versions=False,
        versions=computing_versions(),
    )


def test_a_worker_that_did_not_get_its_files_still_holds_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = a_worker(slow(tmp_path), tmp_path / "run")
    worker.prepare()
    worker._experiment.held = lambda: ["a model"]

    def full(*_: Any) -> None:
        raise StoppedError("disk full")

    monkeypatch.setattr(RunFolder, "save", full)
    made = worker.do(Task(name=("a",)), {"parts/x.json": b"1"}, {"config": {}}, whole=False)
    assert (made.failure, made.held) == (Failure(kind="stopped", why="disk full"), ("a model",))
    worker.leave()


@pytest.mark.parametrize("writes", [True, False])
def test_a_worker_that_leaves_in_the_midst_of_a_task_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], writes: bool
) -> None:
    (tmp_path / "gate").touch()
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    worker = a_worker(slow(tmp_path), tmp_path / "run")
    worker.prepare()
    assert not [*temporary.iterdir()]

    def left() -> None:
        assert [*temporary.iterdir()]
        worker.leave(at_once=True)
        assert not [*temporary.iterdir()]
        if writes:
            worker._session.run.write_text("late.txt", "of a task that goes on")

    worker._experiment.after_part = left
    made = worker.do(Task(name=("tables",)), {}, {"config": {}}, whole=True)
    assert not made.files
    assert not [*temporary.iterdir()]
    again = worker.do(Task(name=("tables",)), {}, {"config": {}}, whole=True)
    assert again.failure is not None
    assert not [*temporary.iterdir()]
    assert not capfd.readouterr().err


def test_what_a_worker_has_made_so_far_is_handed_back_once_and_its_own_files_never(tmp_path: Path) -> None:
    experiment = slow(tmp_path)
    (tmp_path / "gate").touch()
    worker = a_worker(experiment, tmp_path / "run")
    worker.prepare()
    assert not worker.so_far().files
    seen: list[Mapping[str, Any]] = []
    leaving: list[bool] = []

    def asked_aside() -> None:
        seen.append(vars(worker.so_far()))
        worker.leave()  # it is at a task, which goes on
        leaving.append(worker._session.run.path.is_dir())

    worker._experiment.after_part = asked_aside
    made = worker.do(Task(name=("tables",)), {}, {"config": {}}, whole=True)
    assert made.failure is None
    assert leaving == [True] * 3
    assert [sorted(one["files"]) for one in seen] == [[f"parts/made/{n}.json"] for n in (1, 2, 3)]
    assert [one["manifest"] for one in seen] == [
        {"made": {str(n): "yes" for n in range(1, last + 1)}} for last in (1, 2, 3)
    ]
    assert [one["lines"] for one in seen] == [("part 1",), ("part 2",), ("part 3",)]
    assert sorted(made.files) == [f"parts/made/{n}.json" for n in (1, 2, 3)]
    assert made.lines == ()
    assert set(made.manifest) == {"made", "timings"}
    worker.leave()
    assert not worker._session.run.path.exists()


def test_errors_of_workers_propose_what_those_of_the_driver_do(
    asked: GenerationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pickled = pickle.dumps(Generation(asked.model_copy(update={"device": "cuda"})))
    given: dict[str, Any] = {"home": "", "day": "2025-03-01", "threads": 1, "allow_other_versions": False}
    for on, proposed in ((True, "use --device cpu"), (False, 'use device="cpu"')):
        found = Worker(pickled, versions=computing_versions(), command_line=on, **given).prepare()
        assert isinstance(found, Failure)
        assert found.why.endswith(proposed)


def test_an_interrupted_run_keeps_what_its_one_task_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        if (tmp_path / "made.txt").read_text().endswith("2\n"):
            raise KeyboardInterrupt

    (tmp_path / "gate").touch()
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with monkeypatch.context() as pressed:
        pressed.setattr(Slow, "after_part", staticmethod(interrupted))
        with pytest.raises(KeyboardInterrupt):
            run_experiment(slow(tmp_path, engine="ray"), tmp_path / "run")
    assert sorted(parts(tmp_path / "run", "made")) == ["1.json", "2.json"]
    assert not [*temporary.iterdir()]
    run_experiment(slow(tmp_path, engine="ray"), tmp_path / "run")
    assert (tmp_path / "made.txt").read_text().split() == ["1", "2", "3"]


def test_a_worker_fetches_the_next_model_while_it_works_on_one(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ahead, "fetch_ahead", asked.append)
    run_study(study.model_copy(update={"engine": "ray", "workers": 1}), tmp_path / "run")
    assert asked == [study.systems[1]]


def test_a_folder_that_stays_with_its_worker_is_neither_sent_nor_missed(tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    run = run_experiment(slow(tmp_path, engine="ray"), tmp_path / "remote")
    here = run_experiment(slow(tmp_path), tmp_path / "local")
    assert (here.path / "large" / "scores.bin").is_file()
    assert not (run.path / "large").exists()
    assert (run.path / "made.csv").read_bytes() == (here.path / "made.csv").read_bytes()


def test_a_worker_may_not_write_outside_the_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for name in ("../escaped.txt", "/tmp/escaped.txt"):
        with pytest.raises(MechsafetyError, match="which is no file of a run folder"):
            keep(run, Task(name=("a",)), Made(files={name: b""}))


def test_a_folder_that_cannot_be_written_is_refused(study: StudyConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MechsafetyError, match="is a file: name a folder for the run"):
        run_study(on_ray(study), tmp_path / "file")
