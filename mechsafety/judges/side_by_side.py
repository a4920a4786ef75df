"""Endpoint judges at work at the same time, where they ask different hosts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.asking import OnVerdict, Usage

Put = Callable[[Verdict], Awaitable[None]]
"""Takes a verdict, and returns once it is kept: what a kill loses is then no more than the calls at once."""


@runtime_checkable
class HostedJudge(Protocol):
    """A judge behind an address."""

    name: str

    @property
    def host(self) -> str:
        """Where its questions go."""
        ...

    @property
    def usage(self) -> Usage:
        """What it has spent."""
        ...

    async def ask_all(self, responses: Sequence[Response], put: Put) -> None:
        """Ask about ``responses``, within the judge's own limits; ``put`` takes each verdict as it comes."""
        ...


@dataclass(frozen=True)
class Work:
    """What one judge is asked, and who gets its verdicts."""

    judge: HostedJudge
    responses: Sequence[Response]
    on_verdict: OnVerdict


@dataclass(frozen=True)
class _Arrived:
    """A verdict on its way to who keeps it; ``confirm`` says that it is kept."""

    work: Work
    verdict: Verdict
    confirm: Callable[[], object]


_Settle = Callable[[Work, Verdict], None]
_Hand = Callable[[Work, Verdict], Awaitable[None]]


def ask_side_by_side(works: Sequence[Work]) -> None:
    """Ask the judges of different hosts at the same time, those of one host one after the other.

    The first error ends the work of all. What had come until then, or until an interrupt, was handed on.
    """
    works = [work for work in works if work.responses]
    label = works[0].judge.name if len(works) == 1 else f"{len(works)} judges"
    with bar(label, total=sum(len(work.responses) for work in works), unit="response") as progress:

        def settle(work: Work, verdict: Verdict) -> None:
            work.on_verdict(verdict)
            costs = [w.judge.usage.cost for w in works]
            if known := [cost for cost in costs if cost is not None]:
                progress.set_postfix_str(f"cost {sum(known):.4f}", refresh=False)
            progress.update(1)

        _in_a_thread(lambda hand: _ask_hosts(works, hand), settle)


async def _ask_hosts(works: Sequence[Work], hand: _Hand) -> None:
    hosts: dict[str, list[Work]] = {}
    for work in works:
        hosts.setdefault(work.judge.host, []).append(work)

    async def one_host(several: Sequence[Work]) -> None:
        for work in several:
            await work.judge.ask_all(work.responses, partial(hand, work))

    await in_parallel([one_host(several) for several in hosts.values()])


async def in_parallel(tasks: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run ``tasks`` together; the first error ends all, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _in_a_thread(ask: Callable[[_Hand], Coroutine[Any, Any, None]], settle: _Settle) -> None:
    """Run ``ask`` in an event loop of its own thread; ``settle`` gets in this thread what it hands over, as it comes.

    So it works where a loop is running already (Jupyter). An interrupt cancels the work, and what had come until
    then is still settled.
    """
    arrived: SimpleQueue[_Arrived | BaseException | None] = SimpleQueue()
    cancel: list[Callable[[], object]] = []

    async def watched() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))

        async def hand(work: Work, verdict: Verdict) -> None:
            kept = asyncio.Event()
            arrived.put(_Arrived(work, verdict, lambda: loop.call_soon_threadsafe(kept.set)))
            await kept.wait()

        await ask(hand)

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
            settle(item.work, item.verdict)
            with contextlib.suppress(RuntimeError):  # the loop has ended, on an error that is the next item
                item.confirm()
    except BaseException:
        for stop in cancel:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                stop()
        thread.join()
        left = [item]  # which the interrupt may have caught half-way: to settle twice does no harm
        while not arrived.empty():
            left.append(arrived.get())
        for one in left:
            if isinstance(one, _Arrived):
                with contextlib.suppress(MechsafetyError):  # the first error is the one to report
                    settle(one.work, one.verdict)
        raise
    thread.join()
