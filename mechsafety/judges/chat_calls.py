"""Calls to an OpenAI-compatible chat endpoint: what is tried again, what stops, what it costs.

Tried again, with growing waits: 429, 408 and 5xx answers, time-outs, cut connections, answers that are no chat
completion. Every other rejection by the endpoint is a mistake that holds for all calls, and stops at once.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast

from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.judges.asking import SHOWN, Ledger, Unread, Usage

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEYS = ("MECHSAFETY_ENDPOINT_KEY", "OPENAI_API_KEY")
"""Where the key is looked for, in this order, at the time of the call. It is kept nowhere else."""
_PREFIX = "MECHSAFETY_ENDPOINT_"
_LONGEST_RETRY_AFTER = 600.0  # seconds; an endpoint that asks for more is given up


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """How an endpoint is called.

    ``timeout`` (seconds) holds for one call, ``tries`` for one question; waits begin at ``first_wait`` seconds and
    double up to ``longest_wait``, each times a random factor in [0.5, 1]. ``max_calls`` and ``max_tokens`` cap what the
    judge spends in its life; calls that are under way when the token cap is reached still end. Prices are per
    million tokens.
    """

    concurrency: int = 8
    timeout: float = 60.0
    tries: int = 5
    first_wait: float = 0.5
    longest_wait: float = 30.0
    answer_tokens: int = 256
    max_calls: int | None = None
    max_tokens: int | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "timeout", "tries", "first_wait", "longest_wait", "answer_tokens"):
            if not 0 < getattr(self, name) < math.inf:
                raise MechsafetyError(f"endpoint option {name} is {getattr(self, name)}; it must be above 0")
        for name in ("max_calls", "max_tokens", "price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise MechsafetyError(f"endpoint option {name} is {value}; it must be 0 or more")
        if (self.price_in is None) != (self.price_out is None):
            raise MechsafetyError("endpoint prices: give price_in and price_out, or neither")


def options_from_environment() -> CallOptions:
    """The defaults, changed by ``MECHSAFETY_ENDPOINT_`` and CONCURRENCY, TIMEOUT, TRIES, PRICE_IN or PRICE_OUT."""
    kinds: dict[str, type] = {
        "concurrency": int,
        "timeout": float,
        "tries": int,
        "price_in": float,
        "price_out": float,
    }
    given: dict[str, Any] = {}
    for name, kind in kinds.items():
        if written := os.environ.get(variable := _PREFIX + name.upper()):
            try:
                given[name] = kind(written)
            except ValueError:
                raise MechsafetyError(f"{variable} is {written!r}; a number is expected") from None
    return CallOptions(**given)


class NoAnswer(Exception):
    """One question got no answer; the others may."""

    def __init__(self, reason: Unread, detail: Mapping[str, object]) -> None:
        super().__init__(reason)
        self.reason: Unread = reason
        self.detail = detail


class _TryAgain(Exception):
    def __init__(self, why: str, *, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class ChatCalls:
    """Questions to one model behind one URL; ``ledger`` takes what they cost."""

    def __init__(self, *, model: str, url: str, options: CallOptions, ledger: Ledger) -> None:
        self.model, self.url, self.options, self.ledger = model, url, options, ledger
        self._answered = False  # whether the endpoint ever answered anything
        self._pause_until = 0.0

    def client(self) -> AsyncOpenAI:
        """A client with the key of the environment; the retries are ours."""
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            api_key=_key() or "none", base_url=self.url, timeout=self.options.timeout, max_retries=0
        )

    async def answer(self, client: AsyncOpenAI, messages: Sequence[Mapping[str, str]]) -> str:
        """The model's answer. Raises :class:`NoAnswer`, or MechsafetyError where no call can succeed."""
        why, attempt = "", 0
        for attempt in range(self.options.tries):
            await asyncio.sleep(self._pause_until - _now())
            self._require_budget()
            self.ledger.add(Usage(calls=1, retries=1 if attempt else 0))
            try:
                return await self._call(client, messages)
            except _TryAgain as error:
                why = str(error)
                if error.after > _LONGEST_RETRY_AFTER:
                    why += f"; it asks to wait for {error.after:.0f} s"
                    break
                if error.after:  # the limit is the endpoint's, not this question's: all calls wait
                    self._pause_until = max(self._pause_until, _now() + error.after)
                if attempt + 1 < self.options.tries:
                    wait = min(self.options.first_wait * 2**attempt, self.options.longest_wait)
                    await asyncio.sleep(wait * random.uniform(0.5, 1))
        if not self._answered:
            raise MechsafetyError(
                f"endpoint {self.url} gives no answer ({why}, {self.options.tries} tries): is it running, and is the "
                "address right?"
            )
        raise NoAnswer("network", {"error": why, "tries": attempt + 1})

    async def _call(self, client: AsyncOpenAI, messages: Sequence[Mapping[str, str]]) -> str:
        import openai

        try:
            async with asyncio.timeout(self.options.timeout):
                raw = await client.chat.completions.with_raw_response.create(
                    model=self.model,
                    messages=cast("Any", list(messages)),
                    temperature=0,
                    max_tokens=self.options.answer_tokens,
                )
            self._answered = True
            return self._read(raw.text)
        except (openai.APITimeoutError, TimeoutError):
            raise _TryAgain(f"no answer in {self.options.timeout:g} s") from None
        except openai.APIStatusError as error:
            self._answered = True
            status = error.status_code
            if status in (408, 429) or status >= 500:
                after = retry_after(error.response.headers.get("retry-after"))
                raise _TryAgain(f"status {status}", after=after) from None
            raise MechsafetyError(self._refused(status, error)) from None
        except openai.APIConnectionError as error:
            raise _TryAgain(f"no connection: {_scrubbed(first_lines(error))}") from None

    def _read(self, body: str) -> str:
        try:
            answer = json.loads(body)
            text = answer["choices"][0]["message"].get("content") or ""
            if not isinstance(text, str):
                raise TypeError("content")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _TryAgain("the answer is no chat completion") from None
        self.ledger.add(self._spent(answer.get("usage")))
        return _scrubbed(text)

    def _spent(self, usage: object) -> Usage:
        counts = (
            [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            if isinstance(usage, dict)
            else []
        )
        if not counts or not all(type(n) is int and n >= 0 for n in counts):
            return Usage(unmetered=1)
        prompt, completion = cast("list[int]", counts)
        options, cost = self.options, None
        if options.price_in is not None and options.price_out is not None:
            cost = (prompt * options.price_in + completion * options.price_out) / 1e6
        return Usage(prompt_tokens=prompt, completion_tokens=completion, cost=cost)

    def _require_budget(self) -> None:
        usage = self.ledger.usage
        used = {"calls": usage.calls, "tokens": usage.prompt_tokens + usage.completion_tokens}
        caps = {"calls": self.options.max_calls, "tokens": self.options.max_tokens}
        for what, cap in caps.items():
            if cap is not None and used[what] >= cap:
                raise NoAnswer("budget", {f"max_{what}": cap})

    def _refused(self, status: int, error: Exception) -> str:
        advice = {
            401: f"set {KEYS[0]} to a key that is valid there",
            403: f"set {KEYS[0]} to a key that may use this model",
            404: "is the model's name right, and does the address end where the API begins (often /v1)?",
        }.get(status, "nothing was asked again")
        reason = _scrubbed(first_lines(error))[:SHOWN]
        return f"endpoint {self.url} refuses model {self.model!r} with status {status} ({reason}): {advice}"


def retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 if there is none that can be read."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return seconds if seconds > 0 else 0.0  # NaN as well


def _key() -> str:
    return next((os.environ[name] for name in KEYS if os.environ.get(name)), "")


def _scrubbed(text: str) -> str:
    # An endpoint may repeat the key in its messages.
    for name in KEYS:
        if key := os.environ.get(name):
            text = text.replace(key, "***")
    return text


def _now() -> float:
    return asyncio.get_running_loop().time()
