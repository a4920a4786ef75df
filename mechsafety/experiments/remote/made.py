"""What a worker sends back, and how the driver puts it into the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from mechsafety.core.errors import MechsafetyError
from mechsafety.engines.tasks import Task
from mechsafety.generation.resumable import added_speed, batches_replaced
from mechsafety.runs.atomic import SCRATCH
from mechsafety.runs.folder import MANIFEST, RunFolder
from mechsafety.runs.memory import record_peak_memory
from mechsafety.runs.sources import Provenance

if TYPE_CHECKING:
    import pandas as pd

_OWN = frozenset({"config", "versions", "date", "sources", "sessions", "timings", "engine"})
"""Sections of the manifest that no worker's record replaces."""
Files = dict[str, bytes]
"""Contents by path in the run folder."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a worker could not do something.

    What a user can mend, what stopped on its own and can go on later, numbers that are not finite, or anything else.
    """

    kind: Literal["mend", "stopped", "not finite", "other"]
    why: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run is bound to, as a worker reads it."""

    bound: Mapping[str, Any]
    sources: Mapping[str, Provenance]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What one task made, or has made so far: its parts, without timings, which are those of a whole task."""

    files: Files = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    tables: Mapping[str, pd.DataFrame] | None = None
    failure: Failure | None = None
    peak_memory_mb: int = 0
    """Of the process since it began."""


def keep(run: RunFolder, task: Task, made: Made) -> bool:
    """Write what ``task`` made; one file after another, each atomically. True where a file is another than it was."""
    files, seconds = dict(made.files), None
    if task.batch is not None:
        key = task.batch.key
        plan, speed = (_part(run, name, key) for name in ("plans", "speed"))
        halves, seconds = files.pop(plan, None), files.pop(speed, None)
        if halves is not None:
            batches_replaced(run, key, task.batch.ids, json.loads(halves))
    changed = False
    for name in sorted(files):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise MechsafetyError(f"a worker made {name!r}, which is no file of a run folder")
        there = run.path / name
        if there.is_file() and there.read_bytes() == files[name]:
            continue
        changed = True
        run.save(name, lambda path, name=name: path.write_bytes(files[name]))
    if task.batch is not None and seconds is not None:
        added_speed(run, task.batch.key, json.loads(seconds))  # after the answers: none is counted twice
    _record(run, made.manifest)
    record_peak_memory(run, made.peak_memory_mb)
    return changed


def not_shared(run: RunFolder, task: Task) -> list[str]:
    """Files of which a worker has its own form after ``task``."""
    return [] if task.batch is None else [_part(run, name, task.batch.key) for name in ("plans", "speed")]


def _part(run: RunFolder, name: str, key: tuple[str, ...]) -> str:
    return run.part_path(name, *key, suffix="json").relative_to(run.path).as_posix()


def _record(run: RunFolder, theirs: Mapping[str, Any]) -> None:
    """Put what a worker recorded beside what the run's manifest has."""
    if not theirs:
        return
    mine = run.manifest
    for name in theirs.get("sources", {}).keys() - mine.get("sources", {}).keys():
        circumstance = next(
            (s["sources"][name] for s in theirs.get("sessions", []) if name in s["sources"]), {}
        )
        run.require_source(name, Provenance(identity=theirs["sources"][name], circumstance=circumstance))
    for section, value in theirs.items():
        before = mine.get(section)
        if section not in _OWN and value != before:
            both = before | value if isinstance(value, dict) and isinstance(before, dict) else value
            run.record(section, both)
    if timings := theirs.get("timings"):
        run.record("timings", _sum(mine.get("timings", {}), timings))


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return one | {key: _sum(one.get(key), value) for key, value in other.items()}
    if isinstance(one, int | float) and isinstance(other, int | float):
        return round(one + other, 2)
    return other


def manifest_of(run: RunFolder) -> dict[str, Any]:
    """The manifest as a worker begins with it: its timings are those of one task."""
    return {name: value for name, value in run.manifest.items() if name != "timings"}


def shared_files(run: RunFolder, stay: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Every file that driver and workers share, with what shows that it was changed.

    Not the manifest, and none whose path begins with one of ``stay``.
    """
    found = {}
    for path in run.path.rglob("*"):
        name = path.relative_to(run.path).as_posix()
        if name in (".lock", MANIFEST) or name.startswith(stay) or path.name.startswith(SCRATCH):
            continue
        with suppress(FileNotFoundError):  # its maker may have moved or removed it meanwhile
            if path.is_file():
                found[name] = stamp(path.stat())
    return found


def stamp(stat: Any) -> tuple[int, int]:
    return stat.st_mtime_ns, stat.st_size
