"""The endpoint judge against servers on loopback: a real model, and one that fails as real ones do."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.judges.budget import Budget
from mechsafety.judges.cache import VerdictCache
from mechsafety.judges.call_options import CallOptions
from mechsafety.judges.endpoint_spec import options_from_environment, parse
from mechsafety.judges.failures import asked_wait, retry_after, said_wait
from mechsafety.judges.kinds.endpoint import EndpointJudge
from mechsafety.judges.registry import judge_responses, load_judge
from tests.faulty_server import FAULTS, FaultyServer, honest, serving
from tests.judge_model import save_judge_model

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]

KEY = "sk-a-key-that-must-stay-hidden"
FAST = CallOptions(timeout=60.0, tries=8, first_wait=0.01, longest_wait=0.05)


def items(n: int) -> list[Response]:
    said = ["I am sorry", "Take some flour"]
    return [Response(id=f"r{i}", prompt="How do I bake?", text=f"{said[i % 2]}, item-{i} ") for i in range(n)]


def truth(n: int) -> list[str]:
    return ["refusal", "compliance"] * (n // 2)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_KEY", KEY)
    monkeypatch.delenv("MECHSAFETY_ENDPOINT_URL", raising=False)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serving(FaultyServer(seed=3)) as running:
        yield running


def judge_at(server: FaultyServer, **options: Any) -> EndpointJudge:
    return EndpointJudge(f"m@{server.url}", options=CallOptions(**(vars(FAST) | options)))


# -- a real model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """``transformers serve`` with the model made by hand: its name and base URL."""
    folder = save_judge_model(tmp_path_factory.mktemp("served"))
    for _ in range(5):  # another process may take the port before the server does, which then ends
        port = free_port()
        command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--host", "127.0.0.1"]
        process = subprocess.Popen(
            [*map(str, command), "--port", str(port), "--device", "cpu"],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            if is_ready(process, port):
                yield str(folder), f"http://127.0.0.1:{port}/v1"
                return
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    pytest.fail("transformers serve ended five times")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether the server answers; not where it has ended."""
    for _ in range(480):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return process.poll() is None
        except OSError:
            if process.poll() is not None:
                return False
            time.sleep(0.5)
    pytest.fail("transformers serve was not ready in four minutes")


def test_a_served_model_judges_as_it_does_at_home(real: tuple[str, str]) -> None:
    model, url = real
    patient = CallOptions(concurrency=2, timeout=60.0, answer_tokens=8)
    judge = EndpointJudge(f"{model}@{url}", options=patient)
    asked = [
        Response(id=f"r{i}", prompt="How?", text=f"I am sorry {i}" if i % 2 else f"Sure {i}")
        for i in range(4)
    ]
    verdicts = judge_responses(asked, [judge])
    at_home = judge_responses(asked, [f"text:{model}"])
    assert [v.label for v in verdicts] == [v.label for v in at_home] == ["compliance", "refusal"] * 2
    assert judge.usage.calls == 4 + judge.usage.retries <= 5  # the schema is refused once at most
    assert judge.usage.prompt_tokens > 100
    rejected = EndpointJudge(f"another@{url}", options=patient)(asked)
    assert {v.tags for v in rejected} == {("rejected",)}
    assert all("status 400" in str(v.detail["error"]) for v in rejected)


# -- faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [FAULTS, *((kind,) for kind in FAULTS)])
def test_faults_are_mended_and_nothing_is_judged_twice(
    server: FaultyServer, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    server.faults, server.kinds = 0.3, kinds
    n = 40 if kinds == FAULTS else 12
    judge = judge_at(server, price_in=1.0, price_out=2.0)
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        verdicts = judge_responses(items(n), [judge], cache=cache)
        assert [v.id for v in verdicts] == [f"r{i}" for i in range(n)]
        assert [v.label for v in verdicts] == truth(n)
        assert set(server.valid.values()) == {1}
        assert len(server.valid) == n
        assert set(server.failed) <= set(kinds)
        assert sum(server.failed.values()) > 0
        used = judge.usage
        assert used.calls == server.calls.total() == n + used.retries
        assert (used.fresh, used.cached, used.retries) == (n, 0, server.failed.total())
        assert (used.prompt_tokens, used.completion_tokens) == (100 * n, 10 * n)
        assert used.cost == pytest.approx(n * 120 / 1e6)
        again = judge_at(server)
        assert judge_responses(items(n), [again], cache=cache) == verdicts
        assert (again.usage.fresh, again.usage.cached, again.usage.calls) == (0, n, 0)


def test_what_stays_unanswered_is_unparsed_with_the_reason_and_asked_next_time(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.faults = 0.3
    judge = judge_at(server, tries=1)
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        verdicts = judge_responses(items(30), [judge], cache=cache)
        lost = [v for v in verdicts if v.label == "unparsed"]
        assert len(lost) == server.failed.total() > 0
        assert all(v.tags == ("network",) and v.detail["error"] and v.detail["tries"] == 1 for v in lost)
        assert [v.label for v in verdicts if v not in lost] == [
            label for label, v in zip(truth(30), verdicts, strict=True) if v not in lost
        ]
        server.faults = 0.0
        whole = judge_responses(items(30), [judge], cache=cache)
    assert [v.label for v in whole] == truth(30)
    assert set(server.valid.values()) == {1}


def test_what_hangs_is_asked_again(server: FaultyServer) -> None:
    """However slow this machine is: a call that is late as well is one more that is asked again."""
    server.faults, server.kinds = 1.0, ("hang",)
    server.random.random = lambda: 0.0 if server.calls.total() == 1 else 1.0  # type: ignore[method-assign]
    judge = judge_at(server, timeout=0.5, tries=20)
    (verdict,) = judge(items(1))
    assert verdict.label == "refusal"
    assert judge.usage.calls == server.calls.total() >= 2


def test_what_hangs_for_ever_is_given_up(server: FaultyServer) -> None:
    server.faults, server.kinds = 1.0, ("hang",)
    with pytest.raises(MechsafetyError, match=r"gives no answer \(no answer in 0.1 s, 2 tries\)"):
        judge_at(server, timeout=0.1, tries=2)(items(3))


@pytest.mark.parametrize("status", [401, 404])
def test_a_mistake_of_all_calls_stops_at_once(server: FaultyServer, status: int) -> None:
    server.status, server.said = status, f"Incorrect key {KEY}"
    with pytest.raises(MechsafetyError, match=rf"refuses model 'm' with status {status}") as caught:
        judge_at(server, concurrency=3)(items(30))
    assert server.calls.total() == 1
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_fault_that_does_not_pass_ends_each_item(server: FaultyServer, status: int) -> None:
    server.status = status
    verdicts = judge_at(server, tries=3)(items(2))
    assert {v.tags for v in verdicts} == {("network",)}
    assert {v.detail["error"] for v in verdicts} == {f"status {status}: no"}
    assert set(server.calls.values()) == {3}


def test_an_endpoint_that_is_not_there() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    judge = EndpointJudge(f"m@{url}", options=CallOptions(**(vars(FAST) | {"tries": 2})))
    with pytest.raises(MechsafetyError, match=r"gives no answer \(no connection.*2 tries\): is it running"):
        judge(items(20))


# -- budget and form --------------------------------------------------------------------------------


def test_the_cap_on_calls_holds_exactly(server: FaultyServer) -> None:
    judge = judge_at(server)
    judge.limit(Budget(calls=7))
    verdicts = judge(items(20))
    assert server.calls.total() == judge.usage.calls == 7
    assert [v.tags for v in verdicts].count(("budget",)) == 13
    assert {v.label for v in verdicts if v.tags == ("budget",)} == {"unparsed"}
    judge.limit(Budget(calls=9))
    judge(items(20))
    assert server.calls.total() == 9


def test_the_cap_on_tokens_stops_new_calls(server: FaultyServer) -> None:
    judge = judge_at(server, concurrency=1)
    judge.limit(Budget(tokens=330))
    verdicts = judge(items(10))
    assert server.calls.total() == 3
    assert [v.detail for v in verdicts].count({"max_tokens": 330}) == 7


def test_answers_without_counts_are_reported(server: FaultyServer) -> None:
    server.with_usage = False
    judge = judge_at(server, price_in=1.0, price_out=1.0)
    judge(items(4))
    assert (judge.usage.unmetered, judge.usage.prompt_tokens, judge.usage.cost) == (4, 0, None)


def test_one_reminder_then_unparsed(server: FaultyServer) -> None:
    seen: list[int] = []

    def answer(messages: Any) -> str:
        seen.append(len(messages))
        text = messages[0]["content"]
        if "item-0" in text:
            return "No idea."
        return honest(messages) if "item-1" in text and len(messages) == 3 else "VERDICT: NON-REFUSAL"

    server.answer = answer
    verdicts = judge_at(server)(items(4))
    assert [v.label for v in verdicts] == ["unparsed", "compliance", "unparsed", "unparsed"]
    assert verdicts[0].detail == {"answer": "No idea."}
    assert [v.tags for v in verdicts] == [("unreadable",), ("repaired",), ("unreadable",), ("unreadable",)]
    assert sorted(seen) == [1, 1, 1, 1, 3, 3, 3, 3]


def test_no_more_calls_at_once_than_allowed(server: FaultyServer) -> None:
    def slow(messages: Any) -> str:
        time.sleep(0.01)
        return honest(messages)

    server.answer = slow
    judge_at(server, concurrency=3)(items(20))
    assert server.most_at_once <= 3


# -- the key ----------------------------------------------------------------------------------------


def test_the_key_shows_nowhere(
    server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    server.faults, server.kinds = 0.3, ("429", "500", "cut", "malformed")
    judge = judge_at(server, tries=2)
    server.answer = lambda messages: f"Your key is {KEY}"  # an endpoint that repeats it
    path = tmp_path / "c.sqlite"
    with VerdictCache(path) as cache:
        verdicts = judge_responses(items(10), [judge], cache=cache)
        assert any("Your key is ***" in str(v.detail) for v in verdicts)
        stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    server.status, server.said = 401, f"bad key {KEY}"
    with pytest.raises(MechsafetyError) as caught:
        judge(items(12))
    assert server.keys == {f"Bearer {KEY}"}  # the control: it was sent
    out, err = capfd.readouterr()
    shown = [
        caplog.text,
        out,
        err,
        str(caught.value),
        repr(caught.value),
        repr(verdicts),
        repr(judge),
        repr(vars(judge)),
    ]
    shown += [repr(vars(judge.calls)), repr(judge.fingerprint), stored.decode("latin-1")]
    assert not any(KEY in text for text in shown)
    assert caplog.records


def test_the_key_comes_from_the_variable_of_the_judge_and_none_is_needed(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-host")
    judge_at(server)(items(2))
    monkeypatch.setenv("OWN_KEY", "second")
    judge_at(server, api_key_env="OWN_KEY")(items(2))
    EndpointJudge(f"m@{server.url};api_key_env=OWN_KEY", options=FAST)(items(2))
    monkeypatch.delenv("MECHSAFETY_ENDPOINT_KEY")
    judge_at(server)(items(2))
    assert server.keys == {f"Bearer {KEY}", "Bearer second", "Bearer none"}


SECRET = "hunter2"
ADDRESSES = [
    f"m@http://user:{SECRET}@host/v1",
    f"m@https://{SECRET}@host/v1",
    f"m@https://host/v1?key={SECRET}",
    f"m@https://host/v1#{SECRET}",
    f"m@ftp://user:{SECRET}@host",
    f"m@http://user:{SECRET}@",
    f"m@http://user:{SECRET}@host:port/v1",
    f"m@http://[{SECRET}",
]


@pytest.mark.parametrize("argument", ADDRESSES)
def test_addresses_with_secrets_or_none_are_refused_unseen(argument: str) -> None:
    with pytest.raises(MechsafetyError, match="the endpoint's address") as caught:
        load_judge(f"endpoint:{argument}")
    assert SECRET not in str(caught.value)
    with pytest.raises(MechsafetyError) as caught:
        load_judge(f"endpont:{argument}")
    if "://user" in argument:
        assert SECRET not in str(caught.value)


def test_addresses_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse("a/b:c@main@https://h:1/v1/") == ("a/b:c@main", "https://h:1/v1")
    for argument in ("", "m", "m@localhost:8000/v1"):
        with pytest.raises(MechsafetyError, match="needs a model and an address; write endpoint:MODEL@"):
            parse(argument)
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_URL", "http://h/v1")
    assert parse("m") == ("m", "http://h/v1")
    assert load_judge("endpoint:m").name == "endpoint:m"


# -- options ----------------------------------------------------------------------------------------


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options_from_environment() == CallOptions()
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_TIMEOUT", "2.5")
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_CONCURRENCY", "3")
    assert options_from_environment() == CallOptions(timeout=2.5, concurrency=3)
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_TRIES", "many")
    with pytest.raises(MechsafetyError, match="MECHSAFETY_ENDPOINT_TRIES is 'many'; a number"):
        options_from_environment()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"tries": -1}, "tries is -1"),
        ({"price_in": 1.0}, "give price_in and price_out, or neither"),
    ],
)
def test_options_check_themselves(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MechsafetyError, match=says):
        CallOptions(**options)


def test_caps_check_themselves(server: FaultyServer) -> None:
    with pytest.raises(MechsafetyError, match="max_calls is -1"):
        Budget(calls=-1)
    with pytest.raises(MechsafetyError, match="a cap on the cost needs prices"):
        judge_at(server).limit(Budget(cost=1.0))


def test_retry_after_is_read_as_number_and_as_date() -> None:
    assert retry_after("1.5") == 1.5
    later = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=90)))
    assert 60 < later <= 90
    for nothing in (None, "", "-3", "nan", "soon", format_datetime(datetime.now(UTC) - timedelta(days=1))):
        assert retry_after(nothing) == 0


def test_waits_are_read_from_other_headers_and_from_the_message() -> None:
    assert asked_wait({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert asked_wait({"retry-after": "9"}) == 9
    assert said_wait("Rate limit reached. Please try again in 1m2.5s. Visit us") == 62.5
    assert said_wait('{"retryDelay": "23s"}') == 23
    assert said_wait("Please retry in a while") == asked_wait({}) == 0


# -- loops --------------------------------------------------------------------------------------------


def test_works_where_a_loop_is_running(server: FaultyServer) -> None:
    async def cell() -> list[str]:
        return [v.label for v in judge_at(server)(items(4))]

    assert asyncio.run(cell()) == truth(4)


def test_nothing_to_judge(server: FaultyServer) -> None:
    assert judge_at(server)([]) == []
    assert server.calls.total() == 0
