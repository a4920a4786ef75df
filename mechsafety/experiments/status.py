"""How far a run is, read from its folder alone while another process may be writing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechsafety.engines.progress import by_stage
from mechsafety.engines.tasks import JOINT, Task, blocked, shown
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.registry import experiment_of
from mechsafety.experiments.remote.work import STATE
from mechsafety.runs.folder import RunFolder, read_run


def run_status(path: str | Path) -> dict[str, Any]:
    """Tasks that are done of those that are known, by stage; workers, failures and pace where workers were at it.

    ``workers`` are those of the last ray session, as it wrote them down at ``written`` (seconds since 1970);
    ``blocked_tasks`` those that cannot be made, each with the one of ``failed_tasks`` that it waits for. Raises
    :class:`MechsafetyError` for what is no run folder.
    """
    run = read_run(path)
    kind = experiment_of(run)
    there = run.has_part(STATE, suffix="json")
    last: dict[str, Any] = run.read_json_part(STATE) if there else {}
    tasks = _now(run, kind)
    done = {task.title for task in tasks if task.done}
    systems = _failed_systems(run)
    failed = {
        name: why
        for name, why in last.get("failed", {}).items()
        if name not in done and not any(spec in name.split(JOINT) for spec in systems)
    }
    stopped = blocked(tasks, {task.name for task in tasks if task.title in failed})
    stages: dict[str, dict[str, Any]] = dict(last.get("stages", {}))
    for name, (made, known) in by_stage(tasks).items():
        stages[name] = {**stages.get(name, {}), "done": made, "known": known}
    finished = any((run.path / file).is_file() for file in kind.tables.values())
    return {
        "run": str(run.path),
        "kind": kind.kind,
        "finished": finished,
        "stages": stages,
        "workers": {} if finished else last.get("workers", {}),
        "seconds_left": None if finished else last.get("seconds_left"),
        "written": last.get("written"),
        "failed_tasks": {**failed, **systems},
        "blocked_tasks": {shown(name): shown(why) for name, why in stopped.items()},
    }


def _now(run: RunFolder, kind: Any) -> list[Task]:
    """The tasks as the folder has them; none for an experiment that is one task."""
    return kind.stored_tasks(run) if issubclass(kind, Parallel) else []


def _failed_systems(run: RunFolder) -> dict[str, str]:
    systems = run.manifest["config"].get("systems") or []
    return {
        spec: run.read_json_part("failed", spec)["failed"]
        for spec in systems
        if run.has_part("failed", spec, suffix="json")
    }
