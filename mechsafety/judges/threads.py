"""Calls to an endpoint from code that is not asynchronous, whether or not an event loop is running."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from queue import SimpleQueue
from typing import Any, TypeVarTuple

from mechsafety.core.errors import MechsafetyError

Ts = TypeVarTuple("Ts")


def in_a_thread(
    work: Callable[[Callable[[*Ts], Awaitable[None]]], Coroutine[Any, Any, None]],
    settle: Callable[[*Ts], None],
) -> None:
    """Run ``work`` in an event loop of its own thread; ``settle`` gets in this thread what it hands over, as it comes.

    Who hands over waits until it is settled. So it works where a loop is running already (Jupyter). An interrupt
    cancels the work, and what had come until then is still settled.
    """
    arrived: SimpleQueue[tuple[tuple[*Ts], Callable[[], object]] | BaseException | None] = SimpleQueue()
    cancel: list[Callable[[], object]] = []

    async def watched() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))

        async def hand(*found: *Ts) -> None:
            settled = asyncio.Event()
            arrived.put((found, lambda: loop.call_soon_threadsafe(settled.set)))
            await settled.wait()

        await work(hand)

    def run() -> None:
        try:
            asyncio.run(watched())
        except BaseException as error:
            arrived.put(error)
        else:
            arrived.put(None)

    thread = threading.Thread(target=run, name="endpoint", daemon=True)
    thread.start()
    item = None
    try:
        while (item := arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            found, confirm = item
            settle(*found)
            with contextlib.suppress(RuntimeError):  # the loop has ended, on an error that is the next item
                confirm()
    except BaseException:
        for stop in cancel:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                stop()
        thread.join()
        left = [item]  # which the interrupt may have caught half-way: to settle twice does no harm
        while not arrived.empty():
            left.append(arrived.get())
        for one in left:
            if isinstance(one, tuple):
                with contextlib.suppress(MechsafetyError):  # the first error is the one to report
                    settle(*one[0])
        raise
    thread.join()
