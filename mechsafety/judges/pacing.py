"""How fast an endpoint may be asked: within rates that are stated, and with what its answers say is left."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Mapping

LONGEST = 600.0  # seconds; an endpoint that asks for more is given up
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)?")


class Pace:
    """When the next call may begin; all times are those of one clock, in seconds.

    Calls are spread evenly over ``requests`` and ``tokens`` a minute. What a call costs is known only at its end: until
    then it counts as the mean of those before, and before any has ended as nothing.
    """

    def __init__(self, *, requests: int | float | None = None, tokens: int | float | None = None) -> None:
        self._requests, self._tokens = requests, tokens
        self._next = self._paid_until = self._pause_until = 0.0
        self._mean, self._ended = 0.0, 0

    def wait(self, now: float) -> float:
        """Seconds until a call may begin that wants to begin ``now``; its place is taken."""
        begins = max(now, self._pause_until, self._paid_until)
        if self._requests is not None:
            begins = max(begins, self._next)
            self._next = begins + 60 / self._requests
        if self._tokens is not None and self._mean:
            self._paid_until = begins + 60 * self._mean / self._tokens
        return begins - now

    def held(self, now: float) -> float:
        """Seconds of the pause that are left."""
        return max(self._pause_until - now, 0.0)

    def pause(self, until: float) -> None:
        """Let nothing begin before ``until``: the limit is the endpoint's, and holds for all calls."""
        self._pause_until = max(self._pause_until, until)

    def spent(self, tokens: int, now: float) -> None:
        """Count what an answer has cost beyond what was expected."""
        if self._tokens is not None:
            self._paid_until = max(self._paid_until, now) + 60 * (tokens - self._mean) / self._tokens
        self._ended += 1
        self._mean += (tokens - self._mean) / self._ended

    def read(self, headers: Mapping[str, str], now: float) -> None:
        """Pause where the headers of an answer say that nothing is left, until they say that there is again.

        A reset that is far, such as a day's, or a moment of the calendar holds nothing: the next call will be told.
        """
        for what in ("requests", "tokens"):
            if headers.get(f"x-ratelimit-remaining-{what}") == "0":
                wait = duration(headers.get(f"x-ratelimit-reset-{what}", ""))
                self.pause(now + (wait if wait <= LONGEST else 0))


class Window:
    """How many calls may be under way: at most ``most``, half as many after one that was too many for the endpoint, and
    slowly more with every answer, as TCP does. Who is let in counts itself (``under_way``), and leaves."""

    def __init__(self, most: int) -> None:
        self.most, self.under_way = most, 0
        self._size, self._shrunk = float(most), 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def room(self) -> int:
        """For how many more there is room."""
        return int(self._size) - self.under_way

    async def wait(self) -> None:
        """Wait until there may be room."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def leave(self) -> None:
        """End a call, and let others in."""
        self.under_way -= 1
        self.wake()

    def wake(self) -> None:
        """Let as many look for room as there is."""
        room = self.room
        while room > 0 and self._waiting:
            if not (turn := self._waiting.popleft()).done():
                turn.set_result(None)
                room -= 1

    def answered(self) -> None:
        """Grow by one for as many answers as there is room for calls."""
        self._size = min(self._size + 1 / self._size, self.most)

    def refused(self, *, begun: float, now: float) -> None:
        """Shrink, unless the call had ``begun`` before that was done last."""
        if begun >= self._shrunk:
            self._size, self._shrunk = max(self._size / 2, 1.0), now


def duration(written: str) -> float:
    """Seconds of ``6m0s``, ``20ms``, ``1.5s`` or ``12``; 0 for anything else."""
    parts = _DURATION.findall(written)
    if not parts or "".join(number + unit for number, unit in parts) != written:
        return 0.0
    return sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
