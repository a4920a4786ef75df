"""Endpoint judges at work at the same time, where they ask different hosts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

from mechsafety.core.errors import StoppedError
from mechsafety.core.progress import bar
from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.asking import OnVerdict, Usage
from mechsafety.judges.failures import UnusableError
from mechsafety.judges.threads import in_a_thread

Put = Callable[[Verdict], Awaitable[None]]
"""Takes a verdict, and returns once it is kept: what a kill loses is then no more than the calls at once."""


@runtime_checkable
class HostedJudge(Protocol):
    """A judge behind an address."""

    name: str
    stopped: StoppedError | None

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


_Hand = Callable[[Work, Verdict], Awaitable[None]]


def ask_side_by_side(works: Sequence[Work]) -> None:
    """Ask the judges of different hosts at the same time, those of one host one after the other.

    One whose endpoint cannot be used is ``stopped`` because of that, and the others go on. Any other error ends the
    work of all. What had come until then, or until an interrupt, was handed on.
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

        in_a_thread(lambda hand: _ask_hosts(works, hand), settle)


async def _ask_hosts(works: Sequence[Work], hand: _Hand) -> None:
    hosts: dict[str, list[Work]] = {}
    for work in works:
        hosts.setdefault(work.judge.host, []).append(work)

    async def one_host(several: Sequence[Work]) -> None:
        for work in several:
            try:
                await work.judge.ask_all(work.responses, partial(hand, work))
            except UnusableError as error:
                stopped = StoppedError(f"{error}; what had come is kept, and the same command goes on")
                stopped.__cause__ = error
                work.judge.stopped = stopped

    await in_parallel([one_host(several) for several in hosts.values()])


def require_usable(judges: Sequence[HostedJudge]) -> None:
    """Raise UnusableError where that is what stopped every one of ``judges``: a mistake, and not a stop half-way."""
    causes = [None if judge.stopped is None else judge.stopped.__cause__ for judge in judges]
    if causes and all(isinstance(cause, UnusableError) for cause in causes):
        raise next(cause for cause in causes if cause)


async def in_parallel(tasks: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run ``tasks`` together; the first error ends all, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
