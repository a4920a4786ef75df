"""How far a run is, read from its folder alone while another process may be writing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechsafety.engines.progress import by_stage
from mechsafety.experiments.base import experiment_of
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.remote.driver import STATE
from mechsafety.runs.folder import RunFolder, read_run


def run_status(path: str | Path) -> dict[str, Any]:
    """Tasks that are done of those that are known, by stage; workers, failures and pace where workers were at it.

    ``workers`` are those of the last ray session, as it wrote them down at ``written`` (seconds since 1970). Raises
    :class:`MechsafetyError` for what is no run folder.
    """
    run = read_run(path)
    kind = experiment_of(run)
    there = run.has_part(STATE, suffix="json")
    last: dict[str, Any] = run.read_json_part(STATE) if there else {}
    stages: dict[str, dict[str, Any]] = dict(last.get("stages", {}))
    for name, (done, known) in _now(run, kind).items():
        stages[name] = {**stages.get(name, {}), "done": done, "known": known}
    finished = any((run.path / file).is_file() for file in kind.tables.values())
    return {
        "run": str(run.path),
        "kind": kind.kind,
        "finished": finished,
        "stages": stages,
        "workers": {} if finished else last.get("workers", {}),
        "seconds_left": None if finished else last.get("seconds_left"),
        "written": last.get("written"),
        "failed_tasks": {**last.get("failed", {}), **_failed_systems(run)},
    }


def _now(run: RunFolder, kind: Any) -> dict[str, tuple[int, int]]:
    """The stages as the folder has them; none for an experiment that is one task."""
    return by_stage(kind.stored_tasks(run)) if issubclass(kind, Parallel) else {}


def _failed_systems(run: RunFolder) -> dict[str, str]:
    systems = run.manifest["config"].get("systems") or []
    return {
        spec: run.read_json_part("failed", spec)["failed"]
        for spec in systems
        if run.has_part("failed", spec, suffix="json")
    }
