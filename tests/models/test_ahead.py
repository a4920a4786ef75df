"""The files of the next model are fetched while one works: those that will be read, and nothing goes wrong by it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError

from mechsafety.engines.tasks import Task, next_model
from mechsafety.experiments import session as sessions
from mechsafety.experiments.session import Session
from mechsafety.models import ahead
from mechsafety.models.ahead import fetch_ahead
from mechsafety.runs.folder import RunFolder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that the system was asked to have in memory."""
    asked: list[str] = []

    def advise(descriptor: int, start: int, length: int, advice: int) -> None:
        assert (start, length, advice) == (0, 0, os.POSIX_FADV_WILLNEED)
        asked.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return asked


def hub(monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, Any]) -> list[str]:
    """A hub with one repository; what was asked of it."""
    asked: list[str] = []

    def download(repo: str, name: str, *, revision: str | None) -> str:
        assert (repo, revision) == ("org/model", "v2")
        asked.append(name)
        if name not in files:
            raise EntryNotFoundError("none")
        (folder / name).write_text(json.dumps(files[name]))
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"model.safetensors": 1, "pytorch_model.bin": 1}, ["model.safetensors"]),
        (
            {"model.safetensors.index.json": {"weight_map": {"x": "2.st", "y": "1.st", "z": "2.st"}}}
            | dict.fromkeys(("1.st", "2.st", "pytorch_model.bin"), 1),
            ["1.st", "2.st"],
        ),
        ({"pytorch_model.bin": 1, "consolidated.pth": 1}, ["pytorch_model.bin"]),
        ({}, []),
    ],
)
def test_what_is_on_the_hub_is_downloaded_as_far_as_it_will_be_read(
    files: dict[str, Any], wanted: list[str], read: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = hub(monkeypatch, tmp_path, files)
    fetch_ahead("org/model@v2").join()
    assert [name for name in asked if name in files and "index" not in name] == wanted
    assert read == wanted


def test_folders_are_read_while_there_is_room(
    read: list[str], tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetch_ahead(str(tiny_folder("llama"))).join()
    assert read == ["model.safetensors"]
    read.clear()
    for strange in ("no-such-model", "org/gated", str(tmp_path), "smollm2-135m", "+", "model.gguf"):
        fetch_ahead(strange).join()
    monkeypatch.setattr(ahead, "free_bytes", lambda _: 1)
    fetch_ahead(str(tiny_folder("llama"))).join()
    assert read == []


def test_a_session_fetches_the_model_behind_the_one_it_loads(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sessions, "fetch_ahead", asked.append)
    (tmp_path / "manifest.json").write_text('{"config": {}}')
    first, last = (str(tiny_folder(name)) for name in ("llama", "gpt2"))
    loading = {"device": "cpu", "dtype": "float32"}
    session = Session(
        run=RunFolder(tmp_path), day="2025-03-01", say=lambda _: None, loading=loading, models=[first, last]
    )
    session.load(first)
    assert asked == [last]
    session.load(last)
    assert asked == [last]


def test_workers_are_named_the_model_that_none_of_them_has() -> None:
    tasks = [Task(name=(name,), model=name, done=name == "a") for name in "abcd"]
    assert next_model([Task(name=("e",)), *tasks], {"b"}) == "c"
    assert next_model(tasks, {"b", "c", "d"}) is None
