"""Where workers live: what the driver asks of ray, and of processes on this machine, in the same words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one worker has of a machine."""

    cpus: int = 1
    gpus: float = 0.0


class WorkerDiedError(Exception):
    """A worker is gone, with what it was at."""


class Host(ABC):
    """Starts workers, each an object that works on one call at a time in a process of its own."""

    name: ClassVar[str]
    """The engine, as lines of progress call it."""

    @abstractmethod
    def room(self) -> int:
        """How many workers there can be."""

    @abstractmethod
    def start(self, kind: type, *arguments: Any, **options: Any) -> Any:
        """A new worker ``kind(*arguments, **options)``, which may still be starting."""

    @abstractmethod
    def call(self, worker: Any, method: str, *arguments: Any, **options: Any) -> Any:
        """Begin with one call; what it returns can be waited for."""

    @abstractmethod
    def aside(self, worker: Any, method: str, **options: Any) -> Any:
        """The same in another thread of the worker, beside what it is at."""

    @abstractmethod
    def finished(self, calls: Iterable[Any], seconds: float, *, every: bool = False) -> list[Any]:
        """The calls that are through, waiting at most so long for the first one, or for ``every`` one."""

    @abstractmethod
    def result(self, call: Any) -> Any:
        """What came of a finished call. Raises :class:`WorkerDiedError`."""

    @abstractmethod
    def kill(self, *workers: Any) -> None:
        """End workers, whatever they are at."""
