"""A run folder holds whole files of one configuration, and one process writes it."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mechsafety.core.errors import MechsafetyError, StoppedError
from mechsafety.runs.folder import MANIFEST, RunFolder, differences, open_run, read_run, versions
from mechsafety.runs.journal import Journal

CONFIG = {"systems": ["a", "b"], "seed": 0, "sampling": {"temperature": 1.0, "top_p": 0.9}}
TABLE = pd.DataFrame({"id": ["x", "y"], "rate": [0.5, 0.25]})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    with open_run(tmp_path / "run", config=CONFIG) as made:
        return made


def error_of(path: Path, config: dict[str, Any] = CONFIG) -> str:
    with pytest.raises(MechsafetyError) as caught, open_run(path, config=config):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


# -- writing ----------------------------------------------------------------------------------------


class Unprintable(pd.DataFrame):
    """Writes half a file, then fails."""

    def to_parquet(self, path: Any, **_: Any) -> None:
        Path(path).write_text("half")
        raise OSError("disk full")

    to_csv = to_parquet


def half(path: Path) -> None:
    path.write_text("half")
    raise OSError("disk full")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("t.csv", lambda r: r.write_table(TABLE, "t.csv"), lambda r: r.write_table(Unprintable(), "t.csv")),
        ("t.parquet", lambda r: r.write_table(TABLE, "t.parquet"), lambda r: r.write_table(Unprintable(), "t.parquet")),
        ("parts/a/b.parquet", lambda r: r.write_part(TABLE, "a", "b"), lambda r: r.write_part(Unprintable(), "a", "b")),
        ("x.bin", lambda r: r.save("x.bin", lambda p: p.write_text("whole")), lambda r: r.save("x.bin", half)),
        ("t.txt", lambda r: r.write_text("t.txt", "whole"), lambda r: r.write_text("t.txt", "\ud800")),
    ],
)  # fmt: skip
def test_a_save_that_raises_leaves_the_old_file_and_no_scratch(
    run: RunFolder, name: str, good: Callable[[RunFolder], Any], bad: Callable[[RunFolder], Any]
) -> None:
    with pytest.raises((MechsafetyError, UnicodeEncodeError)):
        bad(run)
    assert files(run.path) == {MANIFEST}
    good(run)
    before = (run.path / name).read_bytes()
    assert before
    with pytest.raises((MechsafetyError, UnicodeEncodeError)):
        bad(run)
    assert (run.path / name).read_bytes() == before
    assert files(run.path) == {MANIFEST, name}


def test_a_full_disk_is_one_line_that_names_the_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    journal = Journal(run.path / "scores.jsonl")
    journal.put("a", 1)

    def no_room(_: int) -> None:
        raise full

    monkeypatch.setattr(os, "fsync", no_room)
    for name, write in (
        ("t.csv", lambda: run.write_table(TABLE, "t.csv")),
        (MANIFEST, lambda: run.record("a", 1)),
        ("scores.jsonl", lambda: journal.put("b", 2)),
    ):
        with pytest.raises(
            StoppedError, match=rf"cannot write '.*{name}': No space left .* same command goes on"
        ):
            write()
    assert journal.get("b") is None
    monkeypatch.undo()
    journal.put("c", 3)
    again = Journal(journal.path)
    assert [again.get(key) for key in "abc"] == [1, None, 3]


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file may be longer than 4 KB."""
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.csv", lambda run, table: run.write_table(table, "x.csv")),
        ("x.parquet", lambda run, table: run.write_table(table, "x.parquet")),
        ("x.txt", lambda run, table: run.write_text("x.txt", table.to_string())),
        (
            "x.safetensors",
            lambda run, table: run.save(
                "x.safetensors", lambda path: save_file({"a": torch.tensor(table["a"])}, path)
            ),
        ),
    ],
)
def test_a_file_that_does_not_fit_stops_the_run_whatever_writes_it(
    run: RunFolder, name: str, write: Callable[[RunFolder, pd.DataFrame], object]
) -> None:
    table = pd.DataFrame({"a": torch.rand(2000, generator=torch.Generator().manual_seed(0)).numpy()})
    with pytest.raises(
        StoppedError, match=rf"cannot write '.*{name}': File too large; .* same command goes on"
    ):
        write(run, table)
    assert files(run.path) == {MANIFEST}


@pytest.mark.usefixtures("little_room")
def test_a_piece_that_the_disk_cut_short_does_not_cost_the_next_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.put("a", 1)
    with pytest.raises(StoppedError, match="File too large"):
        journal.put("b", "x" * 5000)
    journal.put("c", 3)
    again = Journal(journal.path)
    assert [again.get(key) for key in "abc"] == [1, None, 3]


def test_what_is_no_full_disk_is_named_and_does_not_go_on(run: RunFolder) -> None:
    (run.path / "file").write_text("")
    for name, save, said in (
        ("x.bin", lambda path: shutil.copy(run.path / "none", path), "No such file or directory .*none"),
        ("x.safetensors", lambda path: save_file({}, path / "a"), "Not a directory|No such file"),
        ("file/x.bin", lambda path: path.write_text(""), "'.*file' is a file and no folder"),
    ):
        with pytest.raises(MechsafetyError, match=rf"cannot write '.*{name}': .*({said})") as caught:
            run.save(name, save)
        assert not isinstance(caught.value, StoppedError)
    assert files(run.path) == {MANIFEST, "file"}


def test_parts_and_tables_read_back(run: RunFolder) -> None:
    assert not run.has_part("verdicts", "a/b")
    run.write_part(TABLE, "verdicts", "a/b")
    assert run.has_part("verdicts", "a/b")
    pd.testing.assert_frame_equal(run.read_part("verdicts", "a/b"), TABLE)
    run.write_json_part({"layer": 3}, "selection", "a/b")
    assert run.read_json_part("selection", "a/b") == {"layer": 3}
    for name in ("rates.csv", "rates.parquet"):
        assert run.write_table(TABLE, name) == run.path / name
        pd.testing.assert_frame_equal(run.read_table(name), TABLE)
    assert b"\r" not in (run.path / "rates.csv").read_bytes()


def test_a_table_that_is_not_there_is_reported(run: RunFolder) -> None:
    with pytest.raises(MechsafetyError, match=r"has no rates\.parquet: did it finish\?"):
        run.read_table("rates.parquet")


def test_manifest_sections(run: RunFolder) -> None:
    run.record("timings", {"a": 1})
    run.record_item("timings", "b", 2)
    run.record_item("systems", "s", {"layer": 3})
    manifest = read_run(run.path).manifest
    assert manifest["timings"] == {"a": 1, "b": 2}
    assert manifest["systems"] == {"s": {"layer": 3}}
    assert manifest["config"] == CONFIG


def test_versions_hold_the_packages(run: RunFolder) -> None:
    found = run.manifest["versions"]
    assert found == versions()
    for package in ("mechsafety", "torch", "transformer-lens", "transformers", "numpy"):
        assert found[package] == metadata.version(package)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_package_that_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert versions()["torch"] == "not installed"


# -- names ------------------------------------------------------------------------------------------


def test_names_made_safe_stay_distinct(run: RunFolder) -> None:
    names = ["a/b", "a_b", "a+b", "a b", "../a", "..", "", ".", "_", "a", "A", "ä", "x" * 300, "x" * 301]
    paths = [run.part_path("verdicts", name) for name in names]
    assert len(set(paths)) == len(names)
    for number, name in enumerate(names):
        run.write_json_part(number, "verdicts", name)
    assert [run.read_json_part("verdicts", name) for name in names] == list(range(len(names)))
    folder = (run.path / "parts" / "verdicts").resolve()
    assert {run.part_path("verdicts", n).resolve().parent for n in names} == {folder}
    assert paths[1].name == "a_b.parquet"


@given(names=st.lists(st.text(max_size=200), min_size=2, max_size=2, unique=True))
def test_any_two_names_are_two_plain_files(names: list[str]) -> None:
    paths = [RunFolder(Path("run")).part_path(name) for name in names]
    assert paths[0] != paths[1]
    assert all(re.fullmatch(r"[A-Za-z0-9-][A-Za-z0-9._-]*|_(-\w+)?", p.stem) for p in paths)
    assert all(p.parent == Path("run/parts") and len(p.name) < 200 for p in paths)


# -- going on ---------------------------------------------------------------------------------------


def test_the_same_configuration_goes_on(run: RunFolder) -> None:
    run.write_part(TABLE, "a")
    run.record("systems", {"s": 1})
    with open_run(run.path, config={**CONFIG, "systems": ("a", "b")}) as again:  # a tuple is a list in JSON
        assert again.has_part("a")
        assert again.manifest["systems"] == {"s": 1}


def test_another_configuration_is_refused_with_its_keys(run: RunFolder) -> None:
    other = {"systems": ["a"], "sampling": {"temperature": 0.5, "top_p": 0.9}, "limit": 3}
    message = error_of(run.path, other)
    assert "systems: ['a', 'b'] -> ['a']" in message
    assert "sampling.temperature: 1.0 -> 0.5" in message
    assert "seed: 0 -> '(absent)'" in message
    assert "limit: '(absent)' -> 3" in message
    assert "top_p" not in message
    assert "out=" in message


def test_differences() -> None:
    assert differences({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}) == ["a.b.c: 1 -> 2"]
    assert differences({"a": None}, {"a": {"b": 1}}) == [
        "a: None -> '(absent)'",
        "a.b: '(absent)' -> 1",
    ]
    assert differences({"a": {}}, {}) == ["a: {} -> '(absent)'"]
    assert differences(CONFIG, dict(reversed(CONFIG.items()))) == []


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert "is not a run folder (it holds 'thesis.tex'): name a new or empty one" in error_of(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_while_it_began_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".writing-abc.json").write_text('{"conf')
    with open_run(tmp_path, config=CONFIG) as run:
        assert run.manifest["config"] == CONFIG


@pytest.mark.parametrize("below", [(), ("run",)])
def test_a_file_is_no_folder(tmp_path: Path, below: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file: name a folder for the run" in error_of(tmp_path.joinpath("file", *below))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"config": 3}', b"null", b"\xff"])
def test_a_damaged_manifest_is_one_line(run: RunFolder, content: bytes) -> None:
    (run.path / MANIFEST).write_bytes(content)
    assert "is damaged: name another folder" in error_of(run.path)
    with pytest.raises(MechsafetyError, match="is damaged"):
        _ = read_run(run.path).manifest
    assert (run.path / MANIFEST).read_bytes() == content


def test_reading_needs_a_manifest(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path(__file__)):
        with pytest.raises(MechsafetyError, match="is not a run folder"):
            read_run(path)


def test_a_journal_holds_pieces_of_one_thing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).bind(model="a", seed=0)
    journal = Journal(path)
    journal.bind(model="a", seed=0)
    journal.put("1", [0.5])
    before = path.read_bytes()
    for facts, said in (
        ({"model": "b", "seed": 0}, "'a' -> 'b'"),
        ({"model": "a"}, "seed: '0' -> '(absent)'"),
    ):
        with pytest.raises(MechsafetyError, match=re.escape(said)):
            Journal(path).bind(**facts)
    assert path.read_bytes() == before
    unknown = Journal(tmp_path / "unknown.jsonl")
    unknown.put("1", [0.5])
    with pytest.raises(MechsafetyError, match=re.escape("model: '(absent)' -> 'a'")):
        unknown.bind(model="a")


# -- one process at a time --------------------------------------------------------------------------

HOLD = """
import json, sys
from pathlib import Path
from mechsafety.runs.folder import open_run
with open_run(Path(sys.argv[1]), config=json.loads(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_run_in_use_is_refused_until_it_is_free(run: RunFolder) -> None:
    command = [sys.executable, "-c", HOLD, str(run.path), json.dumps(CONFIG)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert "is in use by another process" in error_of(run.path)
        other.communicate("\n", timeout=60)
    assert other.returncode == 0
    with open_run(run.path, config=CONFIG) as free:
        assert free.manifest["config"] == CONFIG


def test_an_error_inside_frees_the_run(run: RunFolder) -> None:
    with pytest.raises(KeyError), open_run(run.path, config=CONFIG):
        raise KeyError("inside")
    with open_run(run.path, config=CONFIG) as again:
        assert again.manifest["config"] == CONFIG
