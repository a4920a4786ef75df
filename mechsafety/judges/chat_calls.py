"""Conversations with the model of a chat endpoint: what is sent, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from mechsafety.judges.answers import Answer, read_body
from mechsafety.judges.endpoint_calls import EndpointCalls
from mechsafety.judges.reading import SCHEMA

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_STRUCTURED = {
    "type": "json_schema",
    "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
}


class ChatCalls(EndpointCalls[Sequence[Mapping[str, str]], Answer]):
    """Conversations that the model of a chat endpoint goes on with."""

    def body(self, messages: Sequence[Mapping[str, str]]) -> dict[str, object]:
        """What is sent to ask ``messages``."""
        body: dict[str, object] = {"model": self.model, "messages": list(messages)}
        body[self._tokens_name] = self.options.answer_tokens
        if self.options.temperature is not None:
            body["temperature"] = self.options.temperature
        if self._structured:
            body["response_format"] = _STRUCTURED
        return body

    async def send(self, client: AsyncOpenAI, question: Sequence[Mapping[str, str]]) -> Any:
        # What is named must be named; the body says all of it, and wins.
        return await client.chat.completions.with_raw_response.create(
            model=self.model, messages=cast("Any", list(question)), extra_body=self.body(question)
        )

    def read(self, content: bytes) -> tuple[Answer, object]:
        answer, usage = read_body(content)
        shown = Answer(text=self.scrubbed(answer.text), cut=answer.cut, refusal=self.scrubbed(answer.refusal))
        return shown, usage

    def guessed(self, question: Sequence[Mapping[str, str]], reply: Answer) -> tuple[int, int]:
        # About four characters a token.
        return sum(len(message["content"]) for message in question) // 4, len(reply.text) // 4 + 1
