"""Jobs timed in turns, so that drift of the machine hits all alike; the result is a ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The median over rounds of one job's speed by another's in the same round, with the extremes."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Items per second of every job, round by round."""

    rates: dict[str, list[float]]

    def rate(self, name: str) -> float:
        """Median items per second."""
        return statistics.median(self.rates[name])

    def ratio(self, fast: str, slow: str) -> Ratio:
        """How many times the speed of ``slow`` ``fast`` reached."""
        found = [a / b for a, b in zip(self.rates[fast], self.rates[slow], strict=True)]
        return Ratio(median=statistics.median(found), low=min(found), high=max(found))


def in_turns(jobs: Mapping[str, Callable[[], float]], *, rounds: int) -> Turns:
    """Run the jobs in turns; each returns how many items it did."""
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.perf_counter()
            done = job()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            rates[name].append(done / (time.perf_counter() - started))
    return Turns(rates=rates)
