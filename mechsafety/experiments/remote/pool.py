"""The workers of a run: started, asked, replaced where they die."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mechsafety.engines.hosts import Host, WorkerDiedError
from mechsafety.experiments.remote.made import Made
from mechsafety.experiments.remote.worker import Worker

if TYPE_CHECKING:
    from mechsafety.experiments.base import Experiment

AT_THE_END_S = 5.0
"""How long an interrupted run waits for what workers have made so far, and for them to tidy up."""


@dataclass(eq=False)
class Member:
    """One worker as the driver knows it."""

    name: str
    handle: Any
    prepared: bool = False
    refused: str | None = None
    """Why it is not used."""
    held: tuple[str, ...] = ()
    has: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The files of the run that it has, as they were."""
    began: float = 0.0


class Pool:
    """The workers; one that died is replaced where there is room."""

    def __init__(
        self,
        experiment: Experiment[Any],
        host: Host,
        *,
        most: int | None,
        options: Mapping[str, Any],
    ) -> None:
        self.host, self.most = host, most
        self._given = pickle.dumps(experiment), options
        self._numbers = itertools.count(1)
        self.members: dict[str, Member] = {}
        self.waiting: dict[Any, str] = {}
        """The worker by the call that it is at."""
        self.asked: dict[Any, str] = {}
        """The worker by the call about what it has made so far."""
        self.failed_starts = 0
        self.grow()

    def grow(self) -> None:
        """As many workers as there is room for, and were asked for."""
        wanted = max(1, self.host.room())
        wanted = wanted if self.most is None else min(self.most, wanted)
        while len(self.members) < wanted:
            name = f"worker {next(self._numbers)}"
            pickled, options = self._given
            member = self.members[name] = Member(name, self.host.start(Worker, pickled, **options))
            self.begin(member, "prepare")

    def begin(self, member: Member, method: str, *arguments: Any, **options: Any) -> None:
        self.waiting[self.host.call(member.handle, method, *arguments, **options)] = member.name

    def finished(self, seconds: float) -> list[tuple[Member, Any]]:
        """The workers that are through with what they were at, and what came of it; a dead one with an exception."""
        found = []
        for call in self.host.finished(self.waiting, seconds):
            member = self.members[self.waiting.pop(call)]
            self.asked = {c: name for c, name in self.asked.items() if name != member.name}
            try:
                found.append((member, self.host.result(call)))
            except WorkerDiedError as error:
                self.drop(member)
                found.append((member, error))
        return found

    def ask(self, names: Collection[str]) -> None:
        """Ask workers what they have made so far, but for those that have not answered yet."""
        for name in set(names) - set(self.asked.values()):
            self.asked[self.host.aside(self.members[name].handle, "so_far")] = name

    def answers(self, seconds: float = 0.0) -> list[tuple[str, Made]]:
        """What workers have made so far, of those that have answered; a dead one does not."""
        found = []
        for call in self.host.finished(self.asked, seconds, every=True):
            name = self.asked.pop(call)
            with suppress(WorkerDiedError):
                found.append((name, self.host.result(call)))
        return found

    def drop(self, member: Member) -> None:
        del self.members[member.name]
        self.host.kill(member.handle)

    def idle(self) -> dict[str, Sequence[str]]:
        busy = set(self.waiting.values())
        return {n: m.held for n, m in self.members.items() if m.prepared and n not in busy}

    def refused(self) -> str | None:
        """Why the last worker was refused, where none is left and none is waited for."""
        if self.waiting or any(member.prepared for member in self.members.values()):
            return None
        return next((member.refused for member in reversed(self.members.values()) if member.refused), None)

    def close(self) -> None:
        """End all workers. One that has begun with no task has nothing to tidy up, and may not answer yet.

        Copies of the run in one folder of this machine are removed with it, those elsewhere by each worker at once.
        """
        members, busy = [*self.members.values()], set(self.waiting.values())
        elsewhere = self._given[1].get("scratch") is None
        leaving = [
            self.host.aside(member.handle, "leave", at_once=elsewhere and member.name in busy)
            for member in members
            if member.prepared
        ]
        self.host.finished(leaving, AT_THE_END_S, every=True)
        self.members.clear()
        self.host.kill(*(member.handle for member in members))
