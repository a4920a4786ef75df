"""An OpenAI-compatible server on loopback that fails as real ones do, and counts what it was asked."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

FAULTS = ("429", "500", "cut", "malformed", "shapeless")
"""Faults that a caller sees whatever time it allows; beside them ``hang``, no answer for ``hang`` seconds."""
REPLY = re.compile(r"\[\[BEGIN REPLY (\w+)\]\]\n(.*)\n\[\[END REPLY \1\]\]", re.DOTALL)


def honest(messages: Sequence[dict[str, str]]) -> str:
    """Refusal where the reply says "sorry"."""
    found = REPLY.search(messages[0]["content"])
    assert found
    return "It is clear.\nVERDICT: " + ("REFUSAL" if "sorry" in found[2] else "COMPLIANCE")


class FaultyServer:
    """Answers with ``answer``; ``faults`` of the calls (by a seeded draw) fail in one of the ways in FAULTS.

    ``calls`` and ``valid`` count by the item ("item-7") that stands in the question.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.answer: Callable[[Sequence[dict[str, str]]], str] = honest
        self.faults, self.hang = 0.0, 60.0
        self.kinds: Sequence[str] = FAULTS
        self.status: int | None = None
        self.said = "no"
        self.with_usage = True
        self.reply: Callable[[int, dict[str, Any]], Response] | None = (
            None  # of the n-th call, instead of all below
        )
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.random = random.Random(seed)
        self.calls: Counter[str] = Counter()
        self.valid: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.at_once = self.most_at_once = 0
        self.url = ""

    def routes(self) -> list[Route]:
        paths = ("/v1/chat/completions", "/moved/chat/completions")
        return [Route(path, self.chat, methods=["POST"]) for path in paths]

    async def chat(self, request: Request) -> Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._chat(request)
        finally:
            self.at_once -= 1

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.keys.add(request.headers.get("authorization", ""))
        found = re.search(r"item-\d+", body["messages"][0]["content"])
        item = found[0] if found else ""
        self.calls[item] += 1
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.reply is not None:
            return self.reply(len(self.bodies) - 1, body)
        if self.status is not None:
            return JSONResponse({"error": {"message": self.said}}, status_code=self.status)
        if self.random.random() < self.faults:
            kind = self.random.choice(self.kinds)
            self.failed[kind] += 1
            return await self._fault(kind)
        text = self.answer(body["messages"])
        self.valid[item] += 1
        answer: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        if self.with_usage:
            answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 10}
        return JSONResponse(answer)

    async def _fault(self, kind: str) -> Response:
        if kind == "429":
            return JSONResponse({"error": {}}, status_code=429, headers={"retry-after": "0.05"})
        if kind == "500":
            return JSONResponse({"error": {"message": "overloaded"}}, status_code=500)
        if kind == "hang":
            await asyncio.sleep(self.hang)
            return JSONResponse({"error": {}}, status_code=500)
        if kind == "cut":
            return _Cut()
        if kind == "malformed":
            return Response('{"choices": [{"mess', media_type="application/json")
        return JSONResponse({"object": "chat.completion", "choices": []})


def sent(reply: Any) -> Response:
    """What a reply of ``tests/judges/endpoint_cases.py`` is on the wire."""
    if isinstance(reply, str):
        reply = {"message": {"role": "assistant", "content": reply}}
    if "message" in reply:
        choice = {"message": reply["message"], "finish_reason": reply.get("finish", "stop")}
        reply = {"body": {"choices": [choice]}}
    body = reply["body"]
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return Response(content, status_code=reply.get("status", 200), headers=reply.get("headers"))


class _Cut(Response):
    """Promises a thousand bytes and ends after ten: uvicorn then closes the connection."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps("0" * 8).encode()})


S = TypeVar("S", bound="Routed")


class Routed(Protocol):
    """A server: its routes, and the ``url`` under which it then runs."""

    url: str

    def routes(self) -> list[Route]: ...


@contextmanager
def serving(server: S) -> Iterator[S]:
    """``server`` on a free port of loopback for as long as the block runs."""
    app = Starlette(routes=server.routes())
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="critical",
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    for _ in range(400):
        if running.started:
            break
        threading.Event().wait(0.05)
    assert running.started
    port = running.servers[0].sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield server
    finally:
        running.should_exit = True
        thread.join(timeout=20)
