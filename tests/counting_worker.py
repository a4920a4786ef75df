"""A worker that loads nothing, for the tests of hosts."""

from __future__ import annotations

import os
import signal
import time


class Counter:
    """A worker that counts, explains nothing, and can be killed."""

    def __init__(self, start: int) -> None:
        self.n = start

    def add(self, by: int = 1) -> int:
        self.n += by
        return self.n

    def wait(self) -> int:
        """Until somebody has counted."""
        before, until = self.n, time.monotonic() + 60
        while self.n == before and time.monotonic() < until:
            time.sleep(0.01)
        return self.n

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self, *, at_once: bool) -> None:
        """Nothing to tidy up."""

    def fail(self) -> None:
        raise ZeroDivisionError
