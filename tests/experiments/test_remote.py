"""A run on ray workers, some of which die, ends with the files of the sequential run."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("ray")

from mechsafety.cli import main
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.generation.config import GenerationConfig
from mechsafety.experiments.generation.experiment import run_generation
from mechsafety.experiments.remote import driver, work
from mechsafety.experiments.remote.pool import Pool
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.runs.folder import RunFolder
from tests.experiments.slow_experiment import Slow, SlowConfig
from tests.prompt_sets import small_prompts, write_csv
from tests.small_studies import small_study

pytestmark = [
    pytest.mark.usefixtures("unpublished"),
    pytest.mark.enable_socket,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # ray leaves pipes and sockets to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ON_RAY = {"engine": "ray", "workers": 2}
TABLES = ("*.csv", "*.parquet", "directions.safetensors")


class Machines:
    """Two nodes of one CPU on this machine, on loopback alone."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.ray = ray
        quiet = {"include_dashboard": False, "object_store_memory": 80 * 2**20, "num_gpus": 0}
        soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
        head = {"num_cpus": 1, **quiet, "_system_config": soon}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second: Any = None
        self.add()
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level=logging.ERROR)

    def add(self) -> None:
        self.second = self.cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20)

    def kill_node(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)

    def close(self) -> None:
        self.ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    found = Machines()
    yield found
    found.close()


@pytest.fixture(scope="module")
def config(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    systems = [tiny_folder(name) for name in ("llama", "gpt2")]
    judges = ("rules", "degeneracy", f"logit:{systems[0]}")
    searched = {"layer": None, "confirm": 2, "controls": 2, "selfjudge": True}
    return small_study(tmp_path_factory.mktemp("prompts"), *systems, judges=judges, **searched)


def on_ray(config: Any, **more: Any) -> Any:
    return type(config)(**{**config.model_dump(), **ON_RAY, **more})


@pytest.fixture(scope="module")
def sequential(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study(config, tmp_path_factory.mktemp("runs") / "local").path


def assert_same_files(path: Path, whole: Path) -> None:
    names = sorted(p.name for pattern in TABLES for p in whole.glob(pattern))
    assert len(names) > 1
    assert sorted(p.name for pattern in TABLES for p in path.glob(pattern)) == names
    different = [name for name in names if (path / name).read_bytes() != (whole / name).read_bytes()]
    assert not different
    for part in ("responses", "batches", "verdicts", "selfjudge", "sweep", "controls"):
        for file in (whole / "parts" / part).rglob("*.parquet"):
            other = path / file.relative_to(whole)
            assert other.read_bytes() == file.read_bytes(), str(other)


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Act once the condition is met."""

    def watch() -> None:
        while not condition():
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The workers of each run that a test begins."""
    found: list[Any] = []
    begin = Pool.__init__

    def kept(pool: Any, *arguments: Any, **options: Any) -> None:
        found.append(pool)
        begin(pool, *arguments, **options)

    monkeypatch.setattr(Pool, "__init__", kept)
    return found


def test_a_study_that_loses_a_worker_and_a_node_has_the_tables_of_the_sequential_one(
    machines: Machines, config: StudyConfig, sequential: Path, pools: list[Any], tmp_path: Path
) -> None:
    def batches() -> int:
        return len([*(tmp_path / "run" / "parts" / "batches").rglob("*.parquet")])

    def kill_worker() -> None:
        machines.ray.kill(next(iter(pools[0].members.values())).handle)

    heard: list[str] = []
    first = when(lambda: batches() > 0, kill_worker)
    second = when(lambda: batches() > 5, machines.kill_node)
    run = run_study(on_ray(config), tmp_path / "run", say=heard.append)
    first.join()
    second.join()
    machines.add()
    assert not run.failed
    assert any("died" in line for line in heard)
    assert_same_files(run.path, sequential)
    assert run.manifest["engine"] == [{"engine": "ray", "threads": 1}]
    assert "engine" not in run.manifest["config"]
    # Gone on with locally, nothing is left to do.
    again = run_study(config, run.path)
    assert_same_files(again.path, sequential)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_lose_nothing(
    machines: Machines, config: StudyConfig, sequential: Path, pools: list[Any], tmp_path: Path
) -> None:
    """Workers die at random moments of their work, and every fifth time a node goes with them and comes back."""
    draw, kills = random.Random(0), 0

    def strike() -> bool:
        """Kill a worker that is at a task, or the second node; False where none is at one."""
        waiting = {*pools[-1].waiting.values()}
        busy = [m for m in [*pools[-1].members.values()] if m.prepared and m.name in waiting]
        if not busy:
            return False
        if (kills + 1) % 5:
            machines.ray.kill(draw.choice(busy).handle)
        else:
            machines.kill_node()
            machines.add()
        return True

    # The runs are in another thread: ray starts nodes in the main one alone.
    with ThreadPoolExecutor(1) as other:
        for number in range(20):
            folder, before = tmp_path / str(number), len(pools)
            running = other.submit(run_study, on_ray(config), folder)
            made = 0
            while not running.done():
                time.sleep(draw.uniform(0, 0.3))
                # So much is made between two kills that no task is at fault for all of them.
                if kills < 20 and len(pools) > before and (now := n_parts(folder)) > made and strike():
                    kills, made = kills + 1, now + draw.randrange(6)
            run = running.result()
            assert not run.failed
            assert_same_files(run.path, sequential)
            if kills == 20:
                return
    pytest.fail(f"only {kills} kills")


def n_parts(folder: Path) -> int:
    return sum(path.is_file() for path in (folder / "parts").rglob("*.*"))


def test_what_a_worker_had_made_of_the_one_task_of_a_run_is_not_made_again(
    machines: Machines, pools: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "LOOK_EVERY_S", 0.2)
    log, gate = tmp_path / "made.txt", tmp_path / "gate"
    first = tmp_path / "run" / "parts" / "made" / "1.json"

    def kill_worker() -> None:
        machines.ray.kill(next(iter(pools[0].members.values())).handle)
        gate.touch()

    heard: list[str] = []
    killer = when(first.is_file, kill_worker)
    slow = Slow(SlowConfig(log=str(log), gate=str(gate), engine="ray"))
    run = run_experiment(slow, tmp_path / "run", say=heard.append)
    killer.join()
    assert any("died over tables" in line for line in heard)
    assert log.read_text().split() == ["1", "2", "3"]
    assert run.manifest["made"] == {"1": "yes", "2": "yes", "3": "yes"}
    # A line that is on its way as the task ends is dropped with the answer that brings it.
    said = [line for line in heard if line.startswith("part")]
    assert said == sorted(set(said))
    assert {"part 1", "part 3"} <= set(said)


@pytest.mark.slow
def test_an_interrupted_command_keeps_what_is_done_and_goes_on(
    machines: Machines, config: StudyConfig, tmp_path: Path
) -> None:
    """A SIGINT to the command itself, whose cluster is its own; the same command then goes on, on this one."""
    many = write_csv(small_prompts(12), tmp_path / "many.csv")  # so many that the signal finds it at work
    words = ["generate", config.systems[0], "--prompts", str(many), "--device", "cpu"]
    words += ["--batch-size", "1", "--max-new-tokens", "200", "--engine", "ray", "--workers", "1"]
    out = tmp_path / "run"
    command = [sys.executable, "-m", "mechsafety.cli", *words, "--out", str(out)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def batches() -> list[Path]:
        """Those that are there: a file is begun under another name."""
        return RunFolder(out).parts("batches")

    when(lambda: bool(batches()), lambda: started.send_signal(signal.SIGINT)).join()
    _, said = started.communicate(timeout=120)
    assert started.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
    assert "Traceback" not in said
    kept = {path: path.stat().st_mtime_ns for path in batches()}
    assert 0 < len(kept) < 24
    assert not (out / "responses.parquet").exists()
    done = CliRunner().invoke(main, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    local = tmp_path / "local"
    assert CliRunner().invoke(main, [*words[:-4], "--out", str(local)]).exit_code == 0
    assert_same_files(out, local)


@pytest.mark.slow
def test_answers_are_those_of_the_sequential_run(
    machines: Machines, config: StudyConfig, tmp_path: Path
) -> None:
    asked = GenerationConfig(
        model=config.systems[0], prompts=config.prompts, max_new_tokens=4, batch_size=3, device="cpu"
    )
    local = run_generation(asked, tmp_path / "local")
    remote = run_generation(on_ray(asked), tmp_path / "remote")
    assert_same_files(remote.path, local.path)
    speeds = [run.manifest["generation"] for run in (local, remote)]
    assert speeds[0]["tokens"] == speeds[1]["tokens"]


def test_other_packages_on_a_worker_are_refused(
    machines: Machines, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = driver.computing_versions() | {"torch": "99.0"}
    monkeypatch.setattr(driver, "computing_versions", lambda: mine)
    with pytest.raises(MechsafetyError, match=r"the worker on .* has torch .*, not 99.0: install"):
        run_study(on_ray(config, workers=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_than_a_machine_of_the_cluster_has_is_refused(
    machines: Machines, config: StudyConfig, tmp_path: Path
) -> None:
    with pytest.raises(MechsafetyError, match=r"8 GPUs fits on no machine .* the largest has 0 GPUs"):
        run_study(on_ray(config, gpus_per_task=8), tmp_path / "run")
    with pytest.raises(MechsafetyError, match=r"5 CPUs fits on no machine .* the largest has 1 CPUs"):
        run_study(on_ray(config, cpus_per_task=5), tmp_path / "run")
