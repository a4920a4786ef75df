"""Caps on what endpoint judges spend, over all of them together."""

from __future__ import annotations

import math
from collections.abc import Callable

from mechsafety.core.errors import MechsafetyError
from mechsafety.judges.asking import Usage

Spent = Callable[[], Usage]


class Budget:
    """At most ``calls``, ``tokens`` and ``cost`` (None: no cap) over all judges that share it.

    Calls that are under way when tokens or cost are reached still end; they count as much as the mean of those before.
    Raises MechsafetyError for a cap below 0.
    """

    def __init__(
        self, *, calls: int | None = None, tokens: int | None = None, cost: float | None = None
    ) -> None:
        self.caps: dict[str, int | float | None] = {"calls": calls, "tokens": tokens, "cost": cost}
        for what, cap in self.caps.items():
            if cap is not None and not 0 <= cap < math.inf:
                raise MechsafetyError(f"endpoint option max_{what} is {cap}; it must be 0 or more")
        self._shares: list[Spent] = []

    def share(self, spent: Spent) -> None:
        """Count what ``spent`` returns, now and later."""
        self._shares.append(spent)

    def reached(self) -> dict[str, int | float]:
        """The first cap that is reached, by name; empty where there is room."""
        usage = sum((spent() for spent in self._shares), Usage())
        used = {
            "calls": usage.calls,
            "tokens": usage.prompt_tokens + usage.completion_tokens,
            "cost": usage.cost or 0.0,
        }
        for what, cap in self.caps.items():
            if cap is not None and used[what] >= cap:
                return {f"max_{what}": cap}
        return {}
