"""Only the holder of the printed address gets in, from this server's own page, and learns nothing but the text."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mechsafety.annotation.export import load_annotations
from mechsafety.annotation.server import BODY_LIMIT, Access, listen
from mechsafety.annotation.store import Store, existing_store
from mechsafety.core.errors import MechsafetyError
from mechsafety.runs.folder import RunFolder
from tests.annotated_runs import make_run, page, served

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1", "localhost"])]


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Client:
    """Requests to 127.0.0.1 with just the headers that are given, and the cookie it holds."""

    def __init__(self, port: int) -> None:
        self.port, self.cookie = port, ""

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> Reply:
        sent: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}"}
        if self.cookie:
            sent["Cookie"] = self.cookie
        if method == "POST":
            sent |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            if data is not None:
                connection.putheader("Content-Length", str(len(data)))
            connection.endheaders(data)
            found = connection.getresponse()
            return Reply(found.status, found.headers, found.read().decode())

    def enter(self, token: str) -> Reply:
        reply = self.ask("GET", f"/?token={token}")
        if cookie := reply.headers.get("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
        return reply

    def post(self, path: str, **body: Any) -> Reply:
        return self.ask("POST", path, body)


@dataclass
class Running:
    session: Access
    store: Store
    run: RunFolder
    port: int

    def stranger(self) -> Client:
        return Client(self.port)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    run = make_run(tmp_path_factory.mktemp("served") / "run")
    with served(run, kind="disagreement", labels=20) as (session, _):
        yield Running(session, existing_store(run), run, session.port)


@pytest.fixture(scope="module")
def client(running: Running) -> Client:
    """Whoever opened the printed address."""
    made = running.stranger()
    token = running.session.token
    assert token
    assert made.enter(token).status == 200
    return made


# -- who gets in ------------------------------------------------------------------------------------


def test_the_token_is_good_for_one_cookie(tmp_path: Path) -> None:
    session = Access(port=1)
    token = session.token
    assert token
    assert not session.exchange("")
    assert not session.exchange(token + "x")
    assert session.exchange(token)
    assert not session.exchange(token)
    assert not session.exchange("")


def test_the_cookie_is_for_this_server_and_no_script(running: Running) -> None:
    with served(running.run) as (session, _):  # of its own, so that its token is fresh
        mine, token = Client(session.port), session.token
        assert token
        for wrong in ("", "wrong", token[:-1]):
            assert mine.enter(wrong).status == 403
        reply = mine.enter(token)
        cookie = reply.headers["Set-Cookie"].lower()
        assert reply.status == 200
        assert cookie.startswith(f"mechsafety_{session.port}=")
        assert {"httponly", "samesite=strict", "path=/"} <= set(cookie.split("; "))
        assert token not in reply.headers["Set-Cookie"] + reply.text
        # Used: whoever saw the address later does not get in; who has the cookie stays.
        assert Client(session.port).enter(token).status == 403
        assert mine.enter(token).status == mine.ask("GET", "/").status == 200


@pytest.mark.parametrize(
    "cookie", [None, "", "mechsafety=x", "mechsafety_{port}=wrong", "mechsafety_{port}", "a\x01=;;"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/page.js"), ("GET", "/api/annotators"), ("POST", "/api/enter"), ("POST", "/api/answer"), ("HEAD", "/"), ("GET", "/")],
)  # fmt: skip
def test_without_the_cookie_everything_is_refused(
    running: Running, client: Client, method: str, path: str, cookie: str | None
) -> None:
    sent = cookie and cookie.format(port=running.port)
    body = {"annotator": "Eve"} if method == "POST" else None
    assert running.stranger().ask(method, path, body, Cookie=sent).status in (403, 400)
    assert "Eve" not in running.store.annotators()


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "0.0.0.0:{port}",
        "127.0.0.1:{port}.evil.example",
        "",
    ],
)
def test_other_hosts_are_refused(running: Running, client: Client, host: str) -> None:
    reply = client.ask("GET", "/", Host=host.format(port=running.port))
    assert reply.status == 421
    assert client.ask("GET", "/", Host=f"localhost:{running.port}").status == 200


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "http://evil.example",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:1",
    ],
)
def test_other_origins_are_refused(running: Running, client: Client, origin: str | None) -> None:
    sent = origin and origin.format(port=running.port)
    for path in ("/api/enter", "/api/answer", "/api/undo"):
        assert (
            client.ask("POST", path, {"annotator": "Eve", "item": 1, "action": "skip"}, Origin=sent).status
            == 403
        )
    assert "Eve" not in running.store.annotators()
    assert (
        client.ask(
            "POST", "/api/enter", {"annotator": "Ann"}, Origin=f"http://localhost:{running.port}"
        ).status
        == 200
    )


def test_headers_forbid_scripts_of_others_and_caching(client: Client) -> None:
    for path in ("/", "/page.js", "/page.css", "/icon.svg", "/api/annotators", "/nowhere"):
        headers = client.ask("GET", path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
    html = client.ask("GET", "/").text
    assert "<style" not in html
    assert " on" + "click=" not in html
    assert html.count("<script") == html.count('<script src="/page.js"') == 1
    script = client.ask("GET", "/page.js").text
    assert not any(
        word in script for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
    )


# -- bodies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 4000, 400),
        (b'{"annotator": 3}', 400),
        (b'{"annotator": "Ann", "item": "1", "action": "refusal"}', 400),
        (b'{"annotator": "Ann", "item": true, "action": "refusal"}', 400),
        (b'{"annotator": "Ann", "item": null, "action": "refusal"}', 400),
        (b'{"annotator": "Nobody", "item": 1, "action": "refusal"}', 400),
        (b'{"annotator": "\\ud800", "item": 1, "action": "refusal"}', 400),
        (b'{"annotator": "Ann", "item": 1, "action": "unparsed"}', 400),
        (b" " * (BODY_LIMIT + 1), 413),
    ],
)  # fmt: skip
def test_bad_bodies_are_refused(client: Client, running: Running, body: bytes, status: int) -> None:
    client.post("/api/enter", annotator="Ann")
    reply = client.ask("POST", "/api/answer", body)
    assert reply.status == status
    assert reply.json["error"]
    assert running.store.history().empty


def test_a_body_must_be_json_by_its_type(client: Client) -> None:
    reply = client.ask("POST", "/api/enter", {"annotator": "Ann"}, Content_Type="text/plain")
    assert reply.status == 415


def test_a_long_body_without_a_length_is_refused(client: Client) -> None:
    head = (
        f"POST /api/enter HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nCookie: {client.cookie}\r\n"
        f"Origin: http://127.0.0.1:{client.port}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as raw:
        raw.sendall(head.encode() + b"1000\r\n" + b" " * 4096 + b"\r\n10\r\n" + b" " * 16 + b"\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


# -- what is sent -----------------------------------------------------------------------------------


def test_nothing_that_is_sent_reveals_the_system_of_a_response(client: Client, running: Running) -> None:
    secrets = [
        "secret-judge",
        "secret-category",
        "original",
        "edited",
        "disagreement",
        "agreement",
        "harmless",
        "stratum",
    ]
    seen = []
    now = client.post("/api/enter", annotator="Blind")
    while now.json["item"] is not None:
        seen.append(now.text)
        assert set(now.json["item"]) == {"number", "prompt", "response"}
        assert not any(word in now.text for word in secrets)
        now = client.post(
            "/api/answer", annotator="Blind", item=now.json["item"]["number"], action="compliance"
        )
    assert len(seen) == 20
    assert not any(word in now.text + client.ask("GET", "/api/annotators").text for word in secrets)
    # The control: the store, which the page does not see, holds them.
    assert {"disagreement", "agreement"} == set(running.store.items()["stratum"])
    undone = client.post("/api/undo", annotator="Blind", item=None)
    assert undone.json["labelled"] == 19


def test_a_second_answer_to_an_item_gets_the_present_state(client: Client) -> None:
    first = client.post("/api/enter", annotator="Twice").json["item"]["number"]
    second = client.post("/api/answer", annotator="Twice", item=first, action="refusal").json["item"][
        "number"
    ]
    reply = client.post("/api/answer", annotator="Twice", item=first, action="refusal")
    assert reply.status == 409
    assert (reply.json["state"]["item"]["number"], reply.json["state"]["labelled"]) == (second, 1)


# -- processes --------------------------------------------------------------------------------------


def opened(address: str) -> Client:
    port, token = int(address.split(":")[2].split("/")[0]), address.partition("token=")[2].partition("&")[0]
    client = Client(port)
    assert client.enter(token).status == 200
    return client


def test_a_killed_server_has_kept_every_answer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    given = []
    for round_ in range(2):
        with page(run.path, *(["--labels", "12"] if round_ == 0 else [])) as (process, address):
            client = opened(address)
            now = client.post("/api/enter", annotator="Ann").json
            assert now["labelled"] == 5 * round_
            for _ in range(5):
                number = now["item"]["number"]
                now = client.post("/api/answer", annotator="Ann", item=number, action="degenerate").json
                given.append(number)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(timeout=10)
    assert len(set(given)) == 10
    found = load_annotations(run)
    assert (len(found.to_frame()), int(found.progress.loc[0, "left"])) == (10, 2)
    with closing(sqlite3.connect(run.path / "annotations.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_servers_share_a_store(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with page(run.path, "--labels", "8") as (_, one), page(run.path) as (_, two):
        clients = [opened(one), opened(two)]
        assert clients[0].cookie != clients[1].cookie
        now = clients[0].post("/api/enter", annotator="Ann").json
        for turn in range(8):
            answer = {"annotator": "Ann", "item": now["item"]["number"], "action": "refusal"}
            now = clients[turn % 2].post("/api/answer", **answer).json
            assert clients[(turn + 1) % 2].post("/api/answer", **answer).status == 409
        assert now["item"] is None
        clients[1].post("/api/enter", annotator="Bea")
        assert [p["name"] for p in clients[0].ask("GET", "/api/annotators").json["annotators"]] == [
            "Ann",
            "Bea",
        ]
    assert len(load_annotations(run).to_frame()) == 8


def test_ctrl_c_ends_with_counts_and_the_next_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with page(run.path, "--labels", "3", "--json", "--annotator", "Ann B.") as (process, address):
        assert address.endswith("&annotator=Ann+B.")
        client = opened(address)
        number = client.post("/api/enter", annotator="Ann B.").json["item"]["number"]
        client.post("/api/answer", annotator="Ann B.", item=number, action="refusal")
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    facts = json.loads(out)
    assert (facts["labels"], facts["sampled"]) == (1, 3)
    assert facts["progress"][0]["annotator"] == "Ann B."
    assert "Traceback" not in said


def test_a_port_in_use_is_reported() -> None:
    with listen() as taken, pytest.raises(MechsafetyError, match="leave port out for a free one"):
        listen(taken.getsockname()[1])
