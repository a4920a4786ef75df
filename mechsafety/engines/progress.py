"""How far a run of tasks is, by stage; what the driver writes down and ``mechsafety status`` reads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mechsafety.engines.tasks import Task


def by_stage(tasks: Iterable[Task]) -> dict[str, tuple[int, int]]:
    """Of each stage, how many tasks are done and how many are known."""
    known: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for task in tasks:
        known[task.stage] += 1
        done[task.stage] += task.done
    return {stage: (done[stage], n) for stage, n in known.items()}


@dataclass
class Pace:
    """The seconds that tasks took in this session, by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    finished: Counter[str] = field(default_factory=Counter)
    begun: float = field(default_factory=time.monotonic)

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.finished[stage] += 1

    def left_s(self, stages: Mapping[str, tuple[int, int]], workers: int) -> float | None:
        """Seconds left on so many workers; None while a stage that is left has finished nothing."""
        total = 0.0
        for stage, (done, known) in stages.items():
            if known == done:
                continue
            if not self.finished[stage]:
                return None
            total += (known - done) * self.seconds[stage] / self.finished[stage]
        return total / max(1, workers)

    def per_minute(self, stage: str, workers: int) -> float | None:
        """Tasks of a stage that all workers together finish in a minute, while they are at it."""
        spent = self.seconds.get(stage, 0.0)
        return 60 * workers * self.finished[stage] / spent if spent else None


def state(
    stages: Mapping[str, tuple[int, int]],
    pace: Pace,
    *,
    workers: Mapping[str, str],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """What the run folder records of its workers: by worker its task, by task that failed the reason."""
    left, n = pace.left_s(stages, len(workers)), len(workers)
    rates = {stage: pace.per_minute(stage, n) for stage in stages}
    return {
        "stages": {
            stage: {
                "done": done,
                "known": known,
                "per_minute": None if (rate := rates[stage]) is None else round(rate, 1),
            }
            for stage, (done, known) in stages.items()
        },
        "workers": dict(workers),
        "failed": dict(failed),
        "seconds_left": None if left is None else round(left),
        "written": round(time.time()),
    }


def line(found: Mapping[str, Any]) -> str:
    """The same in one line."""
    stages = [
        f"{name} {one['done']}/{one['known']}"
        + (f" ({one['per_minute']:g} a minute)" if one["per_minute"] is not None else "")
        for name, one in found["stages"].items()
        if one["done"] < one["known"]
    ]
    busy = sum(bool(task) for task in found["workers"].values())
    parts = [*stages, f"{busy} of {len(found['workers'])} workers busy"]
    if found["failed"]:
        parts.append(f"{len(found['failed'])} failed")
    if (seconds := found["seconds_left"]) is not None:
        parts.append(f"about {_spelt(float(seconds))} left")
    return " · ".join(parts)


def _spelt(seconds: float) -> str:
    for length, unit in ((5400, "h"), (90, "min")):
        if seconds >= length:
            return f"{seconds / (3600 if unit == 'h' else 60):.0f} {unit}"
    return f"{seconds:.0f} s"
