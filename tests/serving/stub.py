"""A server with vLLM's interface for completions that runs a tiny checkpoint with plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import AutoModelForCausalLM


class VllmStub:
    """Has one model, ``name``, of ``folder``; ``bodies`` are the calls, and its
    models were asked for ``listed`` times.

    ``twist(body, choice)`` may change a choice, or return a whole response in its place.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.module = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.name, self.window, self.url = name, 256, ""
        self.listed = 0
        self.bodies: list[dict[str, Any]] = []
        self.twist: Callable[[dict[str, Any], dict[str, Any]], Response | None] = lambda *_: None

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
        ]

    async def models(self, _request: Request) -> Response:
        self.listed += 1
        card = {"id": self.name, "object": "model", "max_model_len": self.window}
        return JSONResponse({"object": "list", "data": [card]})

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if body["model"] != self.name:
            return JSONResponse({"error": {"message": "no such model"}}, status_code=404)
        choice = self.choice(body)
        used = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(choice["token_ids"])}
        if (changed := self.twist(body, choice)) is not None:
            return changed
        return JSONResponse({"object": "text_completion", "choices": [choice], "usage": used})

    def choice(self, body: dict[str, Any]) -> dict[str, Any]:
        """One token at a time without a cache: greedy, or drawn by the seed of the call."""
        ids, new, finish = list(body["prompt"]), [], "length"
        generator = torch.Generator().manual_seed(body["seed"] % 2**32)
        while len(new) < body["max_tokens"]:
            with torch.inference_mode():
                logits = self.module(input_ids=torch.tensor([ids])).logits[0, -1]
            if body["temperature"] > 0:
                drawn = torch.multinomial((logits / body["temperature"]).softmax(-1), 1, generator=generator)
                token = int(drawn)
            else:
                token = int(logits.argmax())
            ids, new = [*ids, token], [*new, token]
            if token in body["stop_token_ids"]:
                finish = "stop"
                break
        return {
            "index": 0,
            "text": "",
            "finish_reason": finish,
            "token_ids": new,
            "prompt_token_ids": body["prompt"],
        }
