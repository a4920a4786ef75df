"""What is wrong with ray is said in one line, before anything is written."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from mechsafety.cli import main
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.remote.worker import require_same_versions
from tests.prompt_sets import small_prompts, write_csv


@pytest.fixture
def command(tiny_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    csv = write_csv(small_prompts(2), tmp_path / "small.csv")
    out = str(tmp_path / "run")
    return ["generate", str(tiny_folder("llama")), "--prompts", str(csv), "--device", "cpu", "--out", out]


def refused(*words: str) -> str:
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    return line


def test_ray_that_is_not_installed(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'mechsafety[ray]'" in refused(*command, "--engine", "ray")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["--engine", "ray", "--workers", "0"],
            "workers: Input should be greater than or equal to 1 (got 0)",
        ),
        (["--gpus-per-task", "1"], "--gpus-per-task is about ray: give --engine ray too"),
        (
            ["--cpus-per-task", "1"],
            "--cpus-per-task is about several workers: give --workers or --engine ray too",
        ),
        (["--address", "auto"], "--address is about ray: give --engine ray too"),
        (["--engine", "ray", "--address", "ray://head:10001"], "HOST:PORT or auto is expected"),
        (["--engine", "ray", "--address", "head"], "HOST:PORT or auto is expected"),
    ],
)
def test_options_that_make_no_sense(command: list[str], words: list[str], why: str) -> None:
    assert why in refused(*command, *words)


@pytest.mark.enable_socket
def test_an_address_that_does_not_answer_is_given_up_soon(command: list[str], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    assert f"no ray cluster answers at '{address}'" in refused(
        *command, "--engine", "ray", "--address", address
    )
    assert time.monotonic() - began < 60
    assert not (tmp_path / "run").exists()


def test_a_worker_with_other_packages_is_named() -> None:
    mine = {"torch": "2.9", "transformers": "5.1"}
    require_same_versions(mine, dict(mine))
    with pytest.raises(MechsafetyError, match=r"the worker on .* has torch 2.8, not 2.9: install"):
        require_same_versions(mine, mine | {"torch": "2.8"})


def test_status_counts_what_a_run_has(command: list[str], tmp_path: Path) -> None:
    assert CliRunner().invoke(main, command).exit_code == 0
    found = json.loads(CliRunner().invoke(main, ["status", str(tmp_path / "run"), "--json"]).stdout)
    assert found["finished"]
    assert found["stages"] == {"plan": {"done": 1, "known": 1}, "answers": {"done": 1, "known": 1}}
    assert "is not a run folder" in refused("status", str(tmp_path))
