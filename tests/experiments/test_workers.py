"""A run on several processes of this machine, one of which dies, ends with the files of the sequential run."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechsafety.engines.hosts import WorkerDiedError
from mechsafety.engines.processes import processes
from mechsafety.experiments.remote.pool import Pool
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from tests.counting_worker import Counter
from tests.small_studies import small_study

pytestmark = pytest.mark.usefixtures("unpublished")


def called(host: Any, worker: Any, method: str, *arguments: Any) -> Any:
    call = host.call(worker, method, *arguments)
    while not (found := host.finished([call], 60.0)):
        pass
    assert found == [call]
    return host.result(call)


def test_processes_keep_their_state_and_their_deaths_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    with processes(2) as host:
        one, other = host.start(Counter, 10), host.start(Counter, start=20)
        assert [called(host, one, "add"), called(host, one, "add", 5), called(host, other, "add")] == [
            11,
            16,
            21,
        ]
        # Ctrl-C in a terminal reaches workers too, and is not theirs to act on.
        os.kill(one.process.pid, signal.SIGINT)
        assert called(host, one, "add") == 17
        # Beside what a worker is at, it answers.
        waiting = host.call(one, "wait")
        (call,) = host.finished([host.aside(one, "add")], 60.0, every=True)
        assert (host.result(call), host.result(waiting)) == (18, 18)
        for worker, method in ((one, "die"), (other, "fail")):
            with pytest.raises(WorkerDiedError):
                called(host, worker, method)
            # A call to one that is gone is told too, and asks nobody to wait.
            with pytest.raises(WorkerDiedError):
                called(host, worker, "add")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_busy_worker_ends_when_the_process_that_asked_is_gone() -> None:
    with processes(1) as host:
        worker = host.start(Counter, 0)
        assert called(host, worker, "add") == 1
        host.call(worker, "wait")
        worker.hang_up()
        worker.process.join(30)
        assert worker.process.exitcode == 1


@pytest.fixture(scope="module")
def config(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return small_study(tmp_path_factory.mktemp("prompts"), tiny_folder("llama"))


def test_a_study_that_loses_a_process_has_the_files_of_the_sequential_one(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    begin = Pool.begin

    def begin_and_kill(pool: Any, member: Any, method: str, *arguments: Any, **options: Any) -> None:
        begin(pool, member, method, *arguments, **options)
        if not killed and method == "do" and arguments[0].name[0] == "answers":
            killed.append(member.name)
            member.handle.process.kill()

    monkeypatch.setattr(Pool, "begin", begin_and_kill)
    heard: list[str] = []
    whole = run_study(config, tmp_path / "local").path
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    run = run_study(config.model_copy(update={"workers": 2}), tmp_path / "run", say=heard.append)
    assert killed
    assert not [*(tmp_path / "scratch").glob("mechsafety-*")]
    assert any("died" in line for line in heard)
    assert run.manifest["engine"] == [{"engine": "local", "threads": 1}]
    names = sorted(
        p.relative_to(whole) for kind in ("csv", "parquet", "safetensors") for p in whole.rglob(f"*.{kind}")
    )
    made = sorted(
        p.relative_to(run.path)
        for kind in ("csv", "parquet", "safetensors")
        for p in run.path.rglob(f"*.{kind}")
    )
    assert made == names
    different = [n for n in names if (run.path / n).read_bytes() != (whole / n).read_bytes()]
    assert not different
