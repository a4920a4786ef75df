"""Calls to an OpenAI-compatible endpoint: what is tried again, what stops, what it costs.

Tried again, with growing waits: 408, 409, 425, 429 and 5xx answers, time-outs, cut connections, bodies that are no
chat completion. A question that the endpoint rejects (400, 403, 413, 422: a content filter, a context that is too
short) ends alone. What no other question changes stops at once: a wrong key, an unknown model, a quota that is used
up, an address that leads to another host, and the same failure several times with never an answer.
"""

from __future__ import annotations

import asyncio
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from mechsafety.core.errors import StoppedError, first_lines
from mechsafety.judges.answers import Failure, provider_says
from mechsafety.judges.asking import Ledger, Unread, Usage
from mechsafety.judges.budget import Budget
from mechsafety.judges.call_options import CallOptions
from mechsafety.judges.chat_client import Elsewhere, make_client, scrubbed
from mechsafety.judges.failures import (
    UnusableError,
    asked_wait,
    is_of_the_question,
    is_spent,
    is_too_large,
    named_status,
    said_wait,
)
from mechsafety.judges.pacing import LONGEST, Pace, Window

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Question = TypeVar("Question")
Reply = TypeVar("Reply")
_FEW = 5  # equal failures, with no answer before or between them, after which an endpoint is given up
_WAITS = 8  # calls for each allowed try, after which waiting for others counts as failing
_MOST_TOKENS = 10**9  # of one call: a count above it is none
_LONGEST_MESSAGE = 2000  # bytes of an error that are looked at
_TEMPORARY = frozenset({408, 409, 425, 429})


class NoAnswer(Exception):
    """One question got no answer; the others may."""

    def __init__(self, reason: Unread, detail: Mapping[str, object]) -> None:
        super().__init__(reason)
        self.reason: Unread = reason
        self.detail = detail


class _TryAgain(Exception):
    """``nonsense``: the endpoint sent what no chat endpoint sends; ``limited``: it was asked too fast."""

    def __init__(
        self, why: str, *, after: float = 0.0, nonsense: bool = False, limited: bool = False
    ) -> None:
        super().__init__(why)
        self.after, self.nonsense, self.limited = after, nonsense, limited


class _Adapted(Exception):
    """The call will be put otherwise: the endpoint does not know one of its parameters."""


class EndpointCalls(ABC, Generic[Question, Reply]):
    """Questions to one model behind one URL; ``ledger`` takes what they cost."""

    def __init__(self, *, model: str, url: str, options: CallOptions, ledger: Ledger) -> None:
        self.model, self.url, self.options, self.ledger = model, url, options, ledger
        self._answered = False  # whether the endpoint ever answered anything
        self._completed = False  # whether that was ever a chat completion
        self._structured, self._tokens_name = options.structured, options.tokens_name
        self._failure, self._alike = "", 0
        self.pace = Pace(requests=options.requests_per_minute, tokens=options.tokens_per_minute)
        self._guessed = Usage()
        self._replies = 0
        self._window = Window(options.concurrency)
        self.budget = Budget()
        """Caps, perhaps shared with other judges."""
        self._first, self._tried = False, asyncio.Event()

    def client(self) -> AsyncOpenAI:
        """A client for one event loop. The first call of it goes alone, so that what it teaches costs one call."""
        self._first, self._tried = not self._completed, asyncio.Event()
        self._window = Window(self.options.concurrency)
        return make_client(
            self.url,
            key_variable=self.options.api_key_env,
            timeout=self.options.timeout,
            at_once=self.options.concurrency,
        )

    async def answer(self, client: AsyncOpenAI, question: Question) -> Reply:
        """The model's answer. Raises :class:`NoAnswer`, or MechsafetyError where no call can succeed."""
        first, self._first = self._first, False
        if not first and not self._completed:
            await self._tried.wait()
        try:
            return await self._answer(client, question)
        finally:
            self._tried.set()

    async def _answer(self, client: AsyncOpenAI, question: Question) -> Reply:
        why, failed, calls = "", 0, 0
        while failed < self.options.tries:
            replies = self._replies
            await self._turn()
            self.ledger.add(Usage(calls=1, retries=1 if calls else 0))
            calls, begun = calls + 1, _now()
            try:
                return await self._call(client, question)
            except _Adapted:
                continue
            except _TryAgain as error:
                why = str(error)
                if error.limited:
                    self._window.refused(begun=begun, now=_now())
                # Where others are answered meanwhile, one that was too fast only waits, if it may be sent again at all.
                waits = error.limited and self._replies > replies and 1 < self.options.tries > calls / _WAITS
                failed += not waits
                if error.after > LONGEST:
                    why += f"; it asks to wait for {error.after:.0f} s"
                    break
                if error.nonsense and self._answered:
                    self._count(why, most=self._many())
                if error.after:  # the limit is the endpoint's, not this question's: all calls wait
                    self.pace.pause(_now() + error.after)
            finally:
                self._window.leave()
                self._tried.set()
            if failed < self.options.tries:
                await asyncio.sleep(self._wait(max(failed, 1)))
        if not self._answered:
            raise UnusableError(
                f"endpoint {self.url} gives no answer ({why}, {self.options.tries} tries): is it running, and is the "
                "address right?"
            )
        self._count(why, most=_FEW)
        raise NoAnswer("network", {"error": why, "tries": calls})

    async def _turn(self) -> None:
        """Wait until a call may begin. Raises :class:`NoAnswer` where a cap is reached."""
        self._require_budget()
        await asyncio.sleep(self.pace.wait(_now()))
        while (held := self.pace.held(_now())) or self._window.room < 1:
            await (asyncio.sleep(held) if held else self._window.wait())
        try:
            self._require_budget()
        except NoAnswer:
            self._window.wake()  # those behind have waited for this one
            raise
        self._window.under_way += 1

    def _wait(self, failed: int) -> float:
        wait = min(self.options.first_wait * 2 ** (failed - 1), self.options.longest_wait)
        return wait * random.uniform(0.5, 1)

    def _many(self) -> int:
        """After how many equal failures in a row an endpoint is given up: later, where it has answered before."""
        return _FEW * self.options.tries if self._completed else _FEW

    def _count(self, why: str, *, most: int) -> None:
        """Raise StoppedError at the ``most``-th equal failure in a row. Numbers in the messages do not count."""
        failure = re.sub(r"\d+", "", why)
        self._alike = self._alike + 1 if failure == self._failure else 1
        self._failure = failure
        if self._alike >= most:
            raise StoppedError(
                f"endpoint {self.url} answers every call alike ({why}): nothing more was asked; what had come is "
                "kept, and the same command goes on"
            )

    @abstractmethod
    async def send(self, client: AsyncOpenAI, question: Question) -> Any:
        """What the library gets from the endpoint, with its ``headers`` and ``content``."""

    @abstractmethod
    def read(self, content: bytes) -> tuple[Reply, object]:
        """The answer in a body, and its ``usage``. Raises :class:`Failure` where there is none."""

    @abstractmethod
    def guessed(self, question: Question, reply: Reply) -> tuple[int, int]:
        """About how many tokens question and answer have, where the endpoint does not say."""

    async def _call(self, client: AsyncOpenAI, question: Question) -> Reply:
        import openai

        sent = (self._structured, self._tokens_name)
        try:
            async with asyncio.timeout(self.options.timeout):
                raw = await self.send(client, question)
            content = raw.content
            self.pace.read(raw.headers, _now())
        except (openai.APITimeoutError, TimeoutError):
            raise _TryAgain(f"no answer in {self.options.timeout:g} s") from None
        except openai.APIStatusError as error:
            self._answered = True
            headers = error.response.headers
            self.pace.read(headers, _now())
            raise self._rejected(
                error.status_code,
                self.scrubbed(provider_says(error.response.content)),
                about=error.response.content[:_LONGEST_MESSAGE].decode("utf-8", "replace"),
                after=asked_wait(headers),
                sent=sent,
            ) from None
        except Exception as error:  # whatever a connection, a proxy or a server can do: never a traceback
            if isinstance(error, Elsewhere) or isinstance(error.__cause__, Elsewhere):
                where = error if isinstance(error, Elsewhere) else error.__cause__
                raise UnusableError(
                    f"endpoint {self.url} {where}: name that address in the judge if it is the right one"
                ) from None
            # The library's own message says no more than that there was none.
            why = (
                first_lines(error.__cause__)
                if error.__cause__ and str(error.__cause__)
                else first_lines(error)
            )
            raise _TryAgain(f"no connection: {self.scrubbed(why)}") from None
        self._answered = True
        try:
            reply, usage = self.read(content)
        except Failure as failure:
            raise self._failed(failure, sent=sent) from None
        self._completed, self._alike = True, 0
        spent = counted = self._spent(usage)
        if spent.unmetered:  # so that caps and rates hold here too
            counted = self._priced(*self.guessed(question, reply))
            self._guessed += counted
        self.ledger.add(spent)
        self._replies += 1
        self._window.answered()
        self.pace.spent(counted.prompt_tokens + counted.completion_tokens, _now())
        return reply

    def _failed(self, failure: Failure, *, sent: tuple[bool, str]) -> Exception:
        """What a body with status 200 that holds no answer is."""
        says, about = self.scrubbed(failure.says), f"{failure.code} {failure.says}"
        status = failure.status or (402 if is_spent(about, waits=False) else named_status(failure.code))
        if status is None:
            return _TryAgain(f"no completion, but {says}", nonsense=True)
        return self._rejected(status, says, about=about, after=0.0, sent=sent)

    def _rejected(
        self, status: int, says: str, *, about: str, after: float, sent: tuple[bool, str]
    ) -> Exception:
        """What a status other than success is; ``about`` is the message with its code, for telling by.

        ``sent``: whether the call asked for the schema, and its name of the longest answer.
        """
        after = after or said_wait(about)
        if status == 402 or (status in (400, 403, 429) and is_spent(about, waits=after > 0)):
            return StoppedError(
                f"endpoint {self.url}: the quota is used up (status {status}: {says}); what had come is kept, and "
                "the same command goes on"
            )
        if status == 429 and is_too_large(about):
            return NoAnswer("rejected", {"error": f"status {status}: {says}"})
        if status in _TEMPORARY or status >= 500:
            return _TryAgain(f"status {status}: {says}", after=after, limited=status == 429 or after > 0)
        if status in (401, 404):
            return UnusableError(self._refused(status, says))
        of_the_question = status == 413 or is_of_the_question(about)
        if self._adapts(about, sent=sent, unnamed=not (self._completed or of_the_question)):
            return _Adapted()
        if not (of_the_question and self._completed):
            many = _FEW * self.options.tries if of_the_question else self._many()
            self._count(f"status {status}: {says}", most=many)
        return NoAnswer("rejected", {"error": f"status {status}: {says}"})

    def _adapts(self, about: str, *, sent: tuple[bool, str], unnamed: bool) -> bool:
        """Whether the call can be put otherwise: with the parameter that the endpoint names, or without the schema.

        ``unnamed``: it may be the schema though the endpoint does not say so.
        """
        structured, tokens_name = sent  # what others have learnt meanwhile was not in this call
        if tokens_name == "max_tokens" and "max_completion_tokens" in about:
            self._tokens_name = "max_completion_tokens"
            return True
        if structured and (unnamed or re.search("response_format|schema", about)):
            self._structured = False
            return True
        return False

    def _spent(self, usage: object) -> Usage:
        counts = (
            [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            if isinstance(usage, dict)
            else []
        )
        if not counts or not all(type(n) is int and 0 <= n < _MOST_TOKENS for n in counts):
            return Usage(unmetered=1)
        return self._priced(*cast("list[int]", counts))

    def _priced(self, prompt: int, completion: int) -> Usage:
        return Usage(
            prompt_tokens=prompt, completion_tokens=completion, cost=self.options.cost(prompt, completion)
        )

    def _require_budget(self) -> None:
        if cap := self.budget.reached():
            raise NoAnswer("budget", cap)

    def spent(self) -> Usage:
        """What was spent, with a guess where answers came without counts, and for the calls that are under way."""
        known = self.ledger.usage + self._guessed
        share = self._window.under_way / max(self._replies, 1)  # as much as those that have ended
        return known + Usage(
            prompt_tokens=round(known.prompt_tokens * share),
            completion_tokens=round(known.completion_tokens * share),
            cost=None if known.cost is None else known.cost * share,
        )

    def _refused(self, status: int, says: str) -> str:
        key = self.options.api_key_env
        advice = {
            401: f"set {key} to a key that is valid there, or name another variable with ;api_key_env=NAME",
            404: "is the model's name right, and does the address end where the API begins (often /v1)?",
        }[status]
        return f"endpoint {self.url} refuses model {self.model!r} with status {status} ({says}): {advice}"

    def scrubbed(self, text: str) -> str:
        return scrubbed(text, self.options.api_key_env)


def _now() -> float:
    return asyncio.get_running_loop().time()
