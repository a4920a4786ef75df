"""The tasks of a comparison: what each checkpoint is compared by, then the ablations in each."""

from __future__ import annotations

from collections.abc import Sequence

from mechsafety.engines.tasks import Task
from mechsafety.runs.folder import RunFolder

_COMPARED_BY = ("thoughts", "streams", "directions", "checkpoint")
_MARK = "transferred"


def stream_tasks(run: RunFolder, models: Sequence[str]) -> list[Task]:
    """A task for each model: its streams, directions and embedding sample."""
    return [
        Task(
            name=("streams", name),
            done=run.has_part("checkpoint", name, suffix="json"),
            ships=tuple((part, name) for part in _COMPARED_BY),
            model=name,
        )
        for name in models
    ]


def transfer_tasks(run: RunFolder, streams: Sequence[Task], layer: int | None) -> list[Task]:
    """A task for each model in which the directions of all are ablated at ``layer``; its journal keeps the scores."""
    ships = tuple(key for task in streams for key in task.ships)
    return [
        Task(
            name=("transfer", task.name[1]),
            done=run.has_part(_MARK, task.name[1], str(layer), suffix="json"),
            needs=tuple(other.name for other in streams),
            ships=(*ships, ("transfer", task.name[1])),
            model=task.model,
        )
        for task in streams
    ]


def mark_transferred(run: RunFolder, name: str, layer: int | None) -> None:
    """Every ablation in ``name`` is in its journal; the local engine reads that alone."""
    run.write_json_part(True, _MARK, name, str(layer))
