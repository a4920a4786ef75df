"""The labelling page's server: on 127.0.0.1 only, for whoever holds the printed address.

The address carries a token that is exchanged once for a cookie no script can read. Every request must name this
server in its Host header (else a page elsewhere could reach it by rebinding a name), and every POST must come from
this server's own page. What is sent holds an opaque number, the prompt and the response: never a system, an arm, a
prompt's label, a verdict or a stratum.
"""

from __future__ import annotations

import json
import secrets
import shlex
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mechsafety.annotation.store import (
    Outdated,
    Progress,
    Store,
    read_shown,
    require_action,
    require_name,
    texts,
)
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.runs.folder import RunFolder

HOST = "127.0.0.1"
BODY_LIMIT = 4096
"""Bytes of the largest request body; an answer has about 100."""

_HERE = Path(__file__).parent
_ASSETS = {"page.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(kw_only=True)
class Access:
    """Who may use the page: a token good for one exchange, and the cookie it is exchanged for."""

    port: int
    token: str | None = field(default_factory=lambda: secrets.token_urlsafe(32))
    key: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def cookie(self) -> str:
        # Browsers share cookies between ports: two servers need two names.
        return f"mechsafety_{self.port}"

    @property
    def hosts(self) -> frozenset[str]:
        names = (HOST, "localhost")
        return frozenset(f"{name}:{self.port}" for name in names) | frozenset(
            names if self.port == 80 else ()
        )

    def address(self, annotator: str | None = None) -> str:
        named = {"annotator": annotator} if annotator else {}
        return f"http://{HOST}:{self.port}/?{urlencode({'token': self.token or '', **named})}"

    def admits(self, cookies: str) -> bool:
        try:
            morsel = SimpleCookie(cookies).get(self.cookie)
        except CookieError:
            return False
        return morsel is not None and secrets.compare_digest(morsel.value.encode(), self.key.encode())

    def exchange(self, token: str) -> bool:
        """Use the token up; False where it is wrong or was used."""
        if self.token is None or not secrets.compare_digest(token.encode(), self.token.encode()):
            return False
        self.token = None
        return True


class Guard:
    """Refuses other hosts, other origins, strangers and long bodies before anything else runs."""

    def __init__(self, app: ASGIApp, *, session: Access) -> None:
        self.app, self.session = app, session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        refusal = self._refusal(request)
        if refusal is None and request.method == "POST":
            body = await _body(receive)
            if body is None:
                refusal = _error(413, f"the request is longer than {BODY_LIMIT} bytes")
            else:
                receive = _replay(body)
        await (refusal or self.app)(scope, receive, _with_headers(send))

    def _refusal(self, request: Request) -> Response | None:
        if request.headers.get("host", "").lower() not in self.session.hosts:
            return _error(421, f"this server answers to {HOST}:{self.session.port} only")
        if request.method == "POST":
            origin = request.headers.get("origin", "").lower()
            if origin not in {f"http://{name}" for name in self.session.hosts}:
                return _error(403, "a request must come from this server's own page")
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return _error(415, "a request's body must be application/json")
        if self.session.admits(request.headers.get("cookie", "")):
            return None
        if request.method == "GET" and request.url.path == "/":
            return None  # may bring the token
        return _error(403, "no session: open the address that mechsafety annotate printed")


def build_app(store: Store, run: RunFolder, session: Access) -> ASGIApp:
    """The application: the page, its assets, and four calls."""
    shown = texts(read_shown(run))
    items = {
        int(row.item): shown[(row.system, row.arm, row.id)] for row in store.items().itertuples(index=False)
    }

    def state(progress: Progress) -> dict[str, Any]:
        prompt, response = items[progress.item] if progress.item is not None else ("", "")
        return {
            "annotator": progress.annotator,
            "item": None
            if progress.item is None
            else {"number": progress.item, "prompt": prompt, "response": response},
            "total": progress.total,
            "labelled": progress.labelled,
            "left": progress.left,
            "postponed": progress.postponed,
            "passed": progress.passed,
            "second_round": progress.second_round,
            "can_undo": progress.undoable is not None,
            "seconds_left": progress.seconds_left,
        }

    async def page(request: Request) -> Response:
        admitted = session.admits(request.headers.get("cookie", ""))
        if not admitted and not session.exchange(request.query_params.get("token", "")):
            return PlainTextResponse(
                "This address was used already, or lacks its token. Stop mechsafety annotate with Ctrl-C and start "
                "it again for a new address; every label that was given is kept.\n",
                status_code=403,
            )
        response = Response((_HERE / "page.html").read_bytes(), media_type="text/html; charset=utf-8")
        if not admitted:
            response.set_cookie(session.cookie, session.key, httponly=True, samesite="strict", path="/")
        return response

    async def asset(request: Request) -> Response:
        name = request.url.path.lstrip("/")
        return Response((_HERE / name).read_bytes(), media_type=f"{_ASSETS[name]}; charset=utf-8")

    async def people(_: Request) -> Response:
        def read() -> list[dict[str, Any]]:
            found = [store.progress(name) for name in store.annotators()]
            return [{"name": p.annotator, "done": p.total - p.left, "total": p.total} for p in found]

        export = f"mechsafety annotate {shlex.quote(str(run.path))} --export labels.csv"
        return JSONResponse({"annotators": await run_in_threadpool(read), "export": export})

    def call(work: Callable[[dict[str, Any]], Progress]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                body = json.loads(await request.body())
            except (ValueError, RecursionError):  # not JSON; nested without end
                body = None
            if not isinstance(body, dict) or not isinstance(body.get("annotator"), str):
                return _error(400, "the body must be a JSON object with an annotator")
            item = body.get("item")
            if item is not None and type(item) is not int:
                return _error(400, "item must be a whole number or null")
            try:
                body["annotator"] = require_name(body["annotator"])
                progress = await run_in_threadpool(work, body)
            except Outdated as error:
                now = await run_in_threadpool(store.progress, body["annotator"])
                return JSONResponse({"error": str(error), "state": state(now)}, status_code=409)
            except MechsafetyError as error:
                return _error(400, str(error))
            return JSONResponse(state(progress))

        return answer

    def record(body: dict[str, Any]) -> Progress:
        if body.get("item") is None:
            raise MechsafetyError("an answer names its item")
        return store.answer(body["annotator"], body["item"], require_action(body.get("action")))

    routes = [
        Route("/", page, methods=["GET"]),
        *(Route(f"/{name}", asset, methods=["GET"]) for name in _ASSETS),
        Route("/api/annotators", people, methods=["GET"]),
        Route("/api/enter", call(lambda body: store.enter(body["annotator"])), methods=["POST"]),
        Route("/api/answer", call(record), methods=["POST"]),
        Route(
            "/api/undo", call(lambda body: store.undo(body["annotator"], body.get("item"))), methods=["POST"]
        ),
    ]
    return Guard(Starlette(routes=routes), session=session)


def listen(port: int = 0) -> socket.socket:
    """A listening socket on 127.0.0.1; port 0 takes a free one."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
        opened.listen(64)
    except OSError as error:
        opened.close()
        raise MechsafetyError(
            f"port {port} cannot be used ({error.strerror}): leave {way('--port', 'port')} out for a free one"
        ) from None
    return opened


def server(app: ASGIApp) -> uvicorn.Server:
    """A server for ``run(sockets=[...])``, quiet, without WebSockets."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
    )


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)


async def _body(receive: Receive) -> bytes | None:
    """The whole body, None where it is longer than the limit."""
    whole = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return whole
        whole += message.get("body", b"")
        if len(whole) > BODY_LIMIT:
            return None
        if not message.get("more_body"):
            return whole


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return wrapped
