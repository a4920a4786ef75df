"""A chat model behind an OpenAI-compatible endpoint as a judge."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mechsafety.core.progress import bar
from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.answers import SHOWN, Answer
from mechsafety.judges.asking import (
    LONGEST,
    REPAIR,
    AskingJudge,
    OnVerdict,
    Usage,
    question,
    template_digest,
    unread,
)
from mechsafety.judges.chat_calls import CallOptions, ChatCalls, NoAnswer
from mechsafety.judges.endpoint_spec import options_from_environment, options_of, parse
from mechsafety.judges.reading import decide
from mechsafety.judges.threads import in_a_thread

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from mechsafety.judges.registry import ModelSource

ABOUT = "endpoint:MODEL@URL;api_key_env=NAME  a chat model behind an OpenAI-compatible URL, with options"

_SHORT_ANSWER = 12  # tokens of an answer that holds the verdict alone
_Put = Callable[[int, Verdict], None]


class EndpointJudge(AskingJudge):
    """``endpoint:MODEL@BASE_URL;OPTION=VALUE``: the class that the model names on the last line of its answer.

    An answer out of form is followed by one short message; then the verdict is ``unparsed`` with the tag
    ``unreadable``. Every response ends with a verdict or ``unparsed`` with the tag that names the reason, in the order
    given. What no repetition mends (a wrong key, an unknown model, an endpoint that never answered) raises
    MechsafetyError at once, StoppedError where the endpoint gave up; the verdicts that had come were handed to
    ``on_verdict``. Options are those of :func:`mechsafety.judges.endpoint_spec.options_of`.
    """

    paid = True

    def __init__(self, argument: str, *, options: CallOptions | None = None, longest: int = LONGEST) -> None:
        model, url = parse(argument)
        self.name = f"endpoint:{argument}"
        self.longest = longest
        super().__init__()
        given = options_of(argument, options or CallOptions())
        self.calls = ChatCalls(model=model, url=url, options=given, ledger=self.ledger)

    def limit(self, **caps: int | float | None) -> None:
        """Set the caps ``max_calls``, ``max_tokens`` and ``max_cost``; what was spent already counts."""
        self.calls.options = replace(self.calls.options, **caps)  # type: ignore[arg-type]

    def estimate(self, responses: Sequence[Response]) -> Usage:
        """What judging ``responses`` costs about, with a token for four characters and one short answer each."""
        shown = [question(r, salt="", longest=self.longest, swapped=self.swapped) for r in responses]
        prompt, answer = sum(map(len, shown)) // 4, _SHORT_ANSWER * len(shown)
        cost = self.calls.options.cost(prompt, answer)
        return Usage(calls=len(shown), prompt_tokens=prompt, completion_tokens=answer, cost=cost)

    @property
    def fingerprint(self) -> dict[str, object]:
        return {
            "judge": "endpoint",
            "revision": {"model": self.calls.model, "url": self.calls.url},
            "template": template_digest(swapped=self.swapped),
            "parameters": {
                "temperature": self.calls.options.temperature,
                "answer_tokens": self.calls.options.answer_tokens,
                "structured": self.calls.options.structured,
                "longest": self.longest,
            },
        }

    def messages(self, response: Response) -> list[dict[str, str]]:
        """What is asked first about ``response``; the code of its fence is new each time."""
        asked = question(response, salt=secrets.token_hex(16), longest=self.longest, swapped=self.swapped)
        return [{"role": "user", "content": asked}]

    def _ask(self, responses: Sequence[Response], *, on_verdict: OnVerdict) -> list[Verdict]:
        verdicts: dict[int, Verdict] = {}
        with bar(self.name, total=len(responses), unit="response") as progress:

            def settle(row: int, verdict: Verdict) -> None:
                verdicts[row] = verdict
                on_verdict(verdict)
                if (cost := self.usage.cost) is not None:
                    progress.set_postfix_str(f"cost {cost:.4f}", refresh=False)
                progress.update(1)

            in_a_thread(lambda put: self._ask_all(responses, put), settle)
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
        messages = self.messages(response)
        answers: list[Answer] = []
        try:
            while True:
                answers.append(await self.calls.answer(client, messages))
                if (verdict := decide(response, judge=self.name, answers=answers)) is not None:
                    return verdict
                messages += [
                    {"role": "assistant", "content": answers[0].text[:SHOWN] or "(nothing)"},
                    {"role": "user", "content": REPAIR},
                ]
                self.ledger.add(Usage(repairs=1))
        except NoAnswer as error:
            return unread(response, judge=self.name, reason=error.reason, detail=error.detail)


def create(argument: str | None, *, models: ModelSource | None = None) -> EndpointJudge:  # noqa: ARG001
    """``argument`` is ``MODEL@URL`` or ``MODEL``, with options; others come from the environment."""
    return EndpointJudge(argument or "", options=options_from_environment())
