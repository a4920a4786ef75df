"""How an endpoint is called: how often, how long, with what, at what price."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mechsafety.core.errors import MechsafetyError
from mechsafety.judges.chat_client import KEY


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """How an endpoint is called.

    ``timeout`` (seconds) holds for one call, ``tries`` for one question; waits begin at ``first_wait`` seconds and
    double up to ``longest_wait``, each times a random factor in [0.5, 1]. Prices are per million tokens. Rates hold for
    the judge (:class:`mechsafety.judges.pacing.Pace`). An answer has at most ``answer_tokens``, under the name
    ``tokens_name`` in the call; ``temperature`` None leaves it to the endpoint. With ``structured`` a JSON schema is
    sent until the endpoint refuses it. The key is in the environment variable ``api_key_env``.
    """

    concurrency: int = 8
    timeout: float = 60.0
    tries: int = 5
    first_wait: float = 0.5
    longest_wait: float = 30.0
    answer_tokens: int = 1024
    tokens_name: str = "max_tokens"
    temperature: float | None = 0.0
    structured: bool = True
    api_key_env: str = KEY
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "timeout", "tries", "first_wait", "longest_wait", "answer_tokens"):
            if not 0 < getattr(self, name) < math.inf:
                raise MechsafetyError(f"endpoint option {name} is {getattr(self, name)}; it must be above 0")
        for name in ("price_in", "price_out", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise MechsafetyError(f"endpoint option {name} is {value}; it must be 0 or more")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if (rate := getattr(self, name)) is not None and not 0 < rate < math.inf:
                raise MechsafetyError(f"endpoint option {name} is {rate}; it must be above 0")
        if (self.price_in is None) != (self.price_out is None):
            raise MechsafetyError("endpoint prices: give price_in and price_out, or neither")
        if not re.fullmatch("[a-z_]{1,40}", self.tokens_name):
            raise MechsafetyError("endpoint option tokens_name: write max_tokens or max_completion_tokens")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What so many tokens cost; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6
