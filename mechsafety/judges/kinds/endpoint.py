"""A chat model behind an OpenAI-compatible endpoint as a judge."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.asking import (
    LONGEST,
    REPAIR,
    SHOWN,
    AskingJudge,
    OnVerdict,
    Usage,
    question,
    read,
    read_verdict,
    template_digest,
    unread,
    unreadable,
)
from mechsafety.judges.chat_calls import KEYS, CallOptions, ChatCalls, NoAnswer, options_from_environment

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from mechsafety.judges.registry import ModelSource

ABOUT = "endpoint:MODEL@URL  a chat model behind an OpenAI-compatible URL; key in MECHSAFETY_ENDPOINT_KEY"

URL_VARIABLE = "MECHSAFETY_ENDPOINT_URL"
_SPEC = re.compile(r"(?P<model>.+?)(?:@(?P<url>[A-Za-z][\w+.-]*://.*))?", re.DOTALL)
_Put = Callable[[int, Verdict], None]


class EndpointJudge(AskingJudge):
    """``endpoint:MODEL@BASE_URL``: the class that the model names on the last line of its answer.

    An answer out of form is followed by one short message; then the verdict is ``unparsed`` with the tag
    ``unreadable``. Every response ends with a verdict or ``unparsed`` with the tag that names the reason (``network``,
    ``budget``), in the order given. What no repetition mends (a wrong key, an unknown model, an endpoint that never
    answered) raises MechsafetyError at once; the verdicts that had come were handed to ``on_verdict``.
    """

    def __init__(self, argument: str, *, options: CallOptions | None = None, longest: int = LONGEST) -> None:
        model, url = parse(argument)
        self.name = f"endpoint:{argument}"
        self.longest = longest
        super().__init__()
        self.calls = ChatCalls(model=model, url=url, options=options or CallOptions(), ledger=self.ledger)

    def limit(self, *, max_calls: int) -> None:
        """Send no more than ``max_calls`` calls, those that were sent already included."""
        self.calls.options = replace(self.calls.options, max_calls=max_calls)

    @property
    def fingerprint(self) -> dict[str, object]:
        return {
            "judge": "endpoint",
            "revision": {"model": self.calls.model, "url": self.calls.url},
            "template": template_digest(swapped=self.swapped),
            "parameters": {
                "temperature": 0,
                "answer_tokens": self.calls.options.answer_tokens,
                "longest": self.longest,
            },
        }

    def _ask(self, responses: Sequence[Response], *, on_verdict: OnVerdict) -> list[Verdict]:
        verdicts: dict[int, Verdict] = {}
        with bar(self.name, total=len(responses), unit="response") as progress:

            def settle(row: int, verdict: Verdict) -> None:
                verdicts[row] = verdict
                on_verdict(verdict)
                progress.update(1)

            _in_a_thread(lambda put: self._ask_all(responses, put), settle)
        return [verdicts[row] for row in range(len(responses))]

    async def _ask_all(self, responses: Sequence[Response], put: _Put) -> None:
        rows = iter(range(len(responses)))  # shared: each worker takes the next

        async def work() -> None:
            for row in rows:
                verdict = await self._verdict(client, responses[row])
                self.ledger.add(Usage(fresh=1))
                put(row, verdict)

        try:
            async with self.calls.client() as client, asyncio.TaskGroup() as group:
                for _ in range(min(self.calls.options.concurrency, len(responses))):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _verdict(self, client: AsyncOpenAI, response: Response) -> Verdict:
        asked = question(response, salt=secrets.token_hex(16), longest=self.longest, swapped=self.swapped)
        messages = [{"role": "user", "content": asked}]
        try:
            answer = await self.calls.answer(client, messages)
            if label := read_verdict(answer):
                return read(response, judge=self.name, label=label, repaired=False)
            messages += [
                {"role": "assistant", "content": answer[:SHOWN] or "(nothing)"},
                {"role": "user", "content": REPAIR},
            ]
            self.ledger.add(Usage(repairs=1))
            answer = await self.calls.answer(client, messages)
        except NoAnswer as error:
            return unread(response, judge=self.name, reason=error.reason, detail=error.detail)
        if label := read_verdict(answer):
            return read(response, judge=self.name, label=label, repaired=True)
        return unreadable(response, judge=self.name, answer=answer)


def parse(argument: str) -> tuple[str, str]:
    """Model and base URL of ``MODEL@URL``, or of ``MODEL`` with the URL in ``MECHSAFETY_ENDPOINT_URL``.

    Raises MechsafetyError for anything but an http(s) address with a host, and for one that carries a password or a
    query: names of judges are written into results, so no secret may stand in them.
    """
    found = _SPEC.fullmatch(argument)
    url = (found and found["url"]) or os.environ.get(URL_VARIABLE, "")
    if not found or not url:
        raise MechsafetyError(
            f"judge 'endpoint' needs a model and an address; write endpoint:MODEL@http://localhost:8000/v1, or set "
            f"{URL_VARIABLE} and write endpoint:MODEL"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = None, None
    # Nothing of the address is repeated: it may hold the password.
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise MechsafetyError(
            "the endpoint's address is no http:// or https:// URL with a host; write one such"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise MechsafetyError(
            "the endpoint's address holds a password, a query or a fragment; write it without, and put the key "
            f"into {KEYS[0]}"
        )
    return found["model"], url.rstrip("/")


def _in_a_thread(work: Callable[[_Put], Coroutine[Any, Any, None]], settle: _Put) -> None:
    """Run ``work`` in an event loop of its own thread; ``settle`` gets in this thread what it puts, as it comes.

    So it works where a loop is running already (Jupyter). An interrupt cancels the work, and what had come until
    then is still settled.
    """
    arrived: SimpleQueue[tuple[int, Verdict] | BaseException | None] = SimpleQueue()
    cancel: list[Callable[[], object]] = []

    async def watched() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        await work(lambda row, verdict: arrived.put((row, verdict)))

    def run() -> None:
        try:
            asyncio.run(watched())
        except BaseException as error:
            arrived.put(error)
        else:
            arrived.put(None)

    thread = threading.Thread(target=run, name="endpoint", daemon=True)
    thread.start()
    try:
        while (item := arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            settle(*item)
    except BaseException:
        for stop in cancel:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                stop()
        thread.join()
        while not arrived.empty():
            if isinstance(item := arrived.get(), tuple):
                with contextlib.suppress(MechsafetyError):  # the first error is the one to report
                    settle(*item)
        raise
    thread.join()


def create(argument: str | None, *, models: ModelSource | None = None) -> EndpointJudge:  # noqa: ARG001
    """``argument`` is ``MODEL@URL`` or ``MODEL``; options come from the environment."""
    return EndpointJudge(argument or "", options=options_from_environment())
