"""Calls to an endpoint from code that is not asynchronous, whether or not an event loop is running."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, TypeVar

from mechsafety.core.errors import MechsafetyError

T = TypeVar("T")


def in_a_thread(
    work: Callable[[Callable[[int, T], None]], Coroutine[Any, Any, None]], settle: Callable[[int, T], None]
) -> None:
    """Run ``work`` in an event loop of its own thread; ``settle`` gets in this thread what it puts, as it comes.

    So it works where a loop is running already (Jupyter). An interrupt cancels the work, and what had come until
    then is still settled.
    """
    arrived: SimpleQueue[tuple[int, T] | BaseException | None] = SimpleQueue()
    cancel: list[Callable[[], object]] = []

    async def watched() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        await work(lambda *found: arrived.put(found))

    def run() -> None:
        try:
            asyncio.run(watched())
        except BaseException as error:
            arrived.put(error)
        else:
            arrived.put(None)

    thread = threading.Thread(target=run, name="endpoint", daemon=True)
    thread.start()
    try:
        while (item := arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            settle(*item)
    except BaseException:
        for stop in cancel:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                stop()
        thread.join()
        while not arrived.empty():
            if isinstance(item := arrived.get(), tuple):
                with contextlib.suppress(MechsafetyError):  # the first error is the one to report
                    settle(*item)
        raise
    thread.join()
