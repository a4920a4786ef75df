"""A chat model behind an OpenAI-compatible endpoint as a judge."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mechsafety.core.errors import MechsafetyError, StoppedError
from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.answers import SHOWN, Answer
from mechsafety.judges.asking import (
    LONGEST,
    REPAIR,
    AskingJudge,
    OnVerdict,
    Usage,
    is_missing,
    question,
    template_digest,
    unread,
)
from mechsafety.judges.budget import Budget
from mechsafety.judges.call_options import CallOptions
from mechsafety.judges.chat_calls import ChatCalls
from mechsafety.judges.endpoint_calls import NoAnswer
from mechsafety.judges.endpoint_spec import (
    budget_from_environment,
    options_from_environment,
    options_of,
    parse,
)
from mechsafety.judges.reading import decide
from mechsafety.judges.side_by_side import Put, Work, ask_side_by_side, in_parallel, require_usable

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from mechsafety.judges.registry import ModelSource

ABOUT = "endpoint:MODEL@URL;api_key_env=NAME  a chat model behind an OpenAI-compatible URL, with options"

_SHORT_ANSWER = 12  # tokens of an answer that holds the verdict alone


class EndpointJudge(AskingJudge):
    """``endpoint:MODEL@BASE_URL;OPTION=VALUE``: the class that the model names on the last line of its answer.

    An answer out of form is followed by one short message; then the verdict is ``unparsed`` with the tag
    ``unreadable``. Every response ends with a verdict or ``unparsed`` with the tag that names the reason, in the order
    given. What no repetition mends (a wrong key, an unknown model, an endpoint that never answered) raises
    MechsafetyError at once; where the endpoint gave up, ``stopped`` says why. The verdicts that had come were handed to
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

    @property
    def host(self) -> str:
        """Where its questions go: host and port."""
        return urlsplit(self.calls.url).netloc.lower()

    def limit(self, budget: Budget) -> None:
        """Share ``budget`` with other judges; what was spent already counts."""
        if budget.caps["cost"] is not None and self.calls.options.price_in is None:
            raise MechsafetyError(
                "a cap on the cost needs prices: give price_in and price_out, per million tokens"
            )
        budget.share(self.calls.spent)
        self.calls.budget = budget

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
        verdicts: list[Verdict] = []

        def settle(verdict: Verdict) -> None:
            verdicts.append(verdict)
            on_verdict(verdict)

        ask_side_by_side([Work(self, responses, settle)])
        require_usable([self])
        return verdicts

    async def ask_all(self, responses: Sequence[Response], put: Put) -> None:
        """Ask about ``responses`` in the event loop that runs; ``put`` takes each verdict as it comes."""
        rest = iter(responses)  # shared: each worker takes the next

        async def work() -> None:
            for response in rest:
                verdict = await self._verdict(client, response)
                self.ledger.add(Usage(fresh=0 if is_missing(verdict) else 1))
                await put(verdict)

        try:
            async with self.calls.client() as client:
                await in_parallel(
                    [work() for _ in range(min(self.calls.options.concurrency, len(responses)))]
                )
        except StoppedError as error:
            self.stopped = error

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
    """``argument`` is ``MODEL@URL`` or ``MODEL``, with options; others, and caps, come from the environment."""
    judge = EndpointJudge(argument or "", options=options_from_environment())
    if (budget := budget_from_environment()) is not None:
        judge.limit(budget)
    return judge
