"""Requests that arrive one by one from coroutines, run together in batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mechsafety.core.errors import needs

with needs("inspect"):
    import inspect_ai  # noqa: F401 - anyio comes with it

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar

Asked = TypeVar("Asked")
Given = TypeVar("Given")

GATHER_SECONDS = 0.02
"""How long the first request waits for others of the same moment."""


@dataclass(eq=False)
class _Waiting(Generic[Asked, Given]):
    request: Asked
    result: Given | None = None
    error: Exception | None = None

    @property
    def over(self) -> bool:
        return self.result is not None or self.error is not None


class Batches(Generic[Asked, Given]):
    """Runs what is waiting whenever the model is free, at most ``size`` requests at a time.

    The coroutine whose turn it is runs the batch for all, in a thread, so that others can come to wait meanwhile.
    """

    def __init__(self, run: Callable[[list[Asked]], list[Given]], *, size: int) -> None:
        self._run = run
        self._size = size
        self._waiting: list[_Waiting[Asked, Given]] = []
        self._turn: RunVar[anyio.Lock] = RunVar("turn")

    async def submit(self, request: Asked) -> Given:
        waiting: _Waiting[Asked, Given] = _Waiting(request)
        self._waiting.append(waiting)
        try:
            await anyio.sleep(GATHER_SECONDS)
            async with self._lock():
                while not waiting.over:
                    batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
                    await to_thread.run_sync(self._answer, batch)
        finally:
            if waiting in self._waiting:  # cancelled before its turn
                self._waiting.remove(waiting)
        if waiting.error is not None:
            raise waiting.error
        assert waiting.result is not None
        return waiting.result

    def _lock(self) -> anyio.Lock:
        # A lock belongs to one event loop; every evaluation runs its own.
        try:
            return self._turn.get()
        except LookupError:
            lock = anyio.Lock()
            self._turn.set(lock)
            return lock

    def _answer(self, batch: list[_Waiting[Asked, Given]]) -> None:
        try:
            for waiting, result in zip(batch, self._run([w.request for w in batch]), strict=True):
                waiting.result = result
        except Exception as error:  # every request of the batch fails as its run did
            for waiting in batch:
                waiting.error = error
