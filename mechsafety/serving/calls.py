"""Calls to the completions of a vLLM server: token ids in, token ids out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mechsafety.core.errors import MechsafetyError
from mechsafety.judges.answers import Failure, provider_says
from mechsafety.judges.endpoint_calls import EndpointCalls

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_NEUTRAL: Mapping[str, float | int] = {
    "n": 1,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What the checkpoint's own generation config could otherwise set: none of it is followed here either."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids, and the fields of the call about them; no ids ask for the models that the server has."""

    tokens: tuple[int, ...] = ()
    fields: Mapping[str, object] | None = None


@dataclass(frozen=True, kw_only=True)
class Continued:
    """What a server sends: tokens with the reason to end, or the names and windows of its models."""

    tokens: tuple[int, ...] = ()
    finish: str = ""
    prompt: tuple[int, ...] | None = None
    models: Mapping[str, int | None] | None = None


class CompletionCalls(EndpointCalls[Prompt, Continued]):
    """Prompts that a model of a vLLM server goes on with."""

    def body(self, prompt: Prompt) -> dict[str, object]:
        """What is sent beside the model's name and the token ids."""
        return {**_NEUTRAL, **(prompt.fields or {}), "return_token_ids": True}

    async def send(self, client: AsyncOpenAI, question: Prompt) -> Any:
        if not question.tokens:
            return await client.models.with_raw_response.list()
        return await client.completions.with_raw_response.create(
            model=self.model, prompt=list(question.tokens), extra_body=self.body(question)
        )

    def read(self, content: bytes) -> tuple[Continued, object]:
        try:
            whole = json.loads(content)
        except ValueError:
            raise Failure(says=provider_says(content)) from None
        if not isinstance(whole, dict) or whole.get("error"):
            raise Failure(says=provider_says(content))
        if isinstance(cards := whole.get("data"), list):
            return Continued(models=_models(cards)), None
        return self._choice(whole.get("choices"), content), whole.get("usage")

    def _choice(self, choices: object, content: bytes) -> Continued:
        if not isinstance(choices, list):
            raise Failure(says=provider_says(content))
        if len(choices) != 1 or not isinstance(choices[0], dict):
            raise MechsafetyError(
                f"server {self.url} returns {len(choices)} choices for a prompt where 1 was asked for: is it vLLM?"
            )
        tokens, prompt = _ids(choices[0].get("token_ids")), _ids(choices[0].get("prompt_token_ids"))
        if tokens is None:
            raise MechsafetyError(
                f"server {self.url} returns no token ids, which are compared: vLLM 0.10.2 or later is needed"
            )
        return Continued(tokens=tokens, finish=str(choices[0].get("finish_reason")), prompt=prompt)

    def guessed(self, question: Prompt, reply: Continued) -> tuple[int, int]:
        return len(question.tokens), len(reply.tokens)


def _ids(given: object) -> tuple[int, ...] | None:
    if not isinstance(given, list) or not all(type(one) is int for one in given):
        return None
    return tuple(given)


def _models(cards: Sequence[object]) -> dict[str, int | None]:
    found = [card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str)]
    windows = [card.get("max_model_len") for card in found]
    return {
        card["id"]: most if isinstance(most, int) else None for card, most in zip(found, windows, strict=True)
    }
