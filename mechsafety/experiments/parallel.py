"""What an experiment states whose work divides into tasks; one that does not runs as a single task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from mechsafety.engines.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

    from mechsafety.experiments.session import Session
    from mechsafety.runs.folder import RunFolder


class Parallel(ABC):
    """The tasks of an experiment, as the ray engine works on them.

    A task runs the code of the local engine on a copy of those parts of the run that it ships, and what it makes is put
    into the run; so both engines make the same files.
    """

    @abstractmethod
    def tasks(self, run: RunFolder) -> list[Task]:
        """Every task that is known, in the order of the local engine: a function of configuration and folder alone."""

    @classmethod
    @abstractmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        """The same from the folder's own configuration, without prompts or models: what ``status`` counts."""

    @abstractmethod
    def do(self, task: Task, session: Session) -> None:
        """Make the parts of one task, on a worker; ``session.run`` is the worker's copy."""

    def divides(self) -> bool:
        """Whether there are tasks at all under this configuration; else the work is done as a whole."""
        return True

    def held(self) -> Collection[str]:
        """The models that this worker has loaded."""
        return ()

    def begin(self, session: Session) -> None:  # noqa: B027 - most have nothing to do
        """What the run's own process does before the first task."""

    def failed(self, session: Session, task: Task, why: str, *, not_finite: bool) -> bool:  # noqa: ARG002
        """Mark what a failed task was about; True where tables are made without it."""
        return False

    def finish(self, session: Session) -> Mapping[str, pd.DataFrame] | None:  # noqa: ARG002
        """The tables, by the run's own process; None where they need a model and ``work`` makes them on a worker."""
        return None


def divided(experiment: object) -> Parallel | None:
    """``experiment``, where its work divides into tasks."""
    return experiment if isinstance(experiment, Parallel) and experiment.divides() else None
