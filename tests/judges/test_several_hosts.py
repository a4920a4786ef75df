"""Endpoint judges of different hosts at the same time: overlap, shared caps, errors and interrupts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mechsafety.core.errors import MechsafetyError, StoppedError
from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.budget import Budget
from mechsafety.judges.cache import VerdictCache
from mechsafety.judges.call_options import CallOptions
from mechsafety.judges.kinds.endpoint import EndpointJudge
from mechsafety.judges.registry import judge_responses
from tests.faulty_server import FaultyServer, honest, sent, serving

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]

FAST = CallOptions(timeout=60.0, tries=1, first_wait=0.01, longest_wait=0.05, concurrency=4)


@pytest.fixture
def servers() -> Iterator[list[FaultyServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serving(FaultyServer())) for _ in range(2)]


def judges_at(servers: list[FaultyServer], **options: Any) -> list[EndpointJudge]:
    made = CallOptions(**(vars(FAST) | options))
    return [EndpointJudge(f"m@{server.url}", options=made) for server in servers]


def items(n: int) -> list[Response]:
    return [
        Response(id=f"r{i}", prompt="How?", text=f"{'Sure' if i % 2 else 'I am sorry'}, item-{i} ")
        for i in range(n)
    ]


def truth(n: int) -> list[str]:
    return ["refusal", "compliance"] * (n // 2)


def meeting(together: Callable[[], object]) -> Callable[[Any], str]:
    """An answer that waits in its first call."""
    first = [True]

    def answer(messages: Any) -> str:
        if first:
            first.clear()
            together()
        return honest(messages)

    return answer


def test_two_hosts_have_calls_in_flight_at_once(servers: list[FaultyServer]) -> None:
    both = threading.Barrier(
        2, timeout=30
    )  # which breaks if no second host is asked before the first has answered
    for server in servers:
        server.answer = meeting(both.wait)
    verdicts = judge_responses(items(6), judges_at(servers))
    assert not both.broken
    assert [v.label for v in verdicts] == truth(6) * 2
    assert [server.calls.total() for server in servers] == [6, 6]
    assert [v.judge for v in verdicts[::6]] == [f"endpoint:m@{server.url}" for server in servers]


def test_two_judges_of_one_host_take_turns(servers: list[FaultyServer]) -> None:
    one = servers[0]
    judges = [EndpointJudge(f"{name}@{one.url}", options=FAST) for name in ("first", "second")]
    judge_responses(items(6), judges)
    assert [body["model"] for body in one.bodies] == ["first"] * 6 + ["second"] * 6


def test_each_host_has_its_own_limit(servers: list[FaultyServer]) -> None:
    judges = [
        EndpointJudge(f"m@{server.url};concurrency={n}", options=FAST)
        for n, server in enumerate(servers, start=1)
    ]
    judge_responses(items(12), judges)
    assert servers[0].most_at_once == 1
    assert servers[1].most_at_once <= 2


@pytest.mark.parametrize("cap", [{"calls": 7}, {"tokens": 770}, {"cost": 0.77}])
def test_a_cap_is_shared(servers: list[FaultyServer], cap: dict[str, Any]) -> None:
    judges = judges_at(servers, concurrency=1, price_in=1000.0, price_out=1000.0)  # 110 tokens a call
    budget = Budget(**cap)
    for judge in judges:
        judge.limit(budget)
    verdicts = judge_responses(items(10), judges)
    spent = sum(judge.usage.calls for judge in judges)
    assert 7 <= spent == sum(server.calls.total() for server in servers) <= (7 if "calls" in cap else 8)
    assert sum(v.tags == ("budget",) for v in verdicts) == 20 - spent


def test_a_host_without_quota_leaves_the_other_alone(servers: list[FaultyServer]) -> None:
    servers[0].status, servers[0].said = 402, "pay"
    judges = judges_at(servers)
    verdicts = judge_responses(items(6), judges, partial=True)
    assert [v.label for v in verdicts] == ["unparsed"] * 6 + truth(6)
    assert "quota" in str(judges[0].stopped)
    assert judges[1].stopped is None


@pytest.mark.parametrize("status", [401, 404])
def test_an_endpoint_that_cannot_be_used_leaves_the_other_alone(
    servers: list[FaultyServer], tmp_path: Path, status: int
) -> None:
    servers[0].status, servers[0].said = status, "no such"
    judges = judges_at(servers)
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        verdicts = judge_responses(items(6), judges, cache=cache, partial=True)
        assert [(v.label, v.tags) for v in verdicts[:6]] == [("unparsed", ("network",))] * 6
        assert [v.label for v in verdicts[6:]] == truth(6)
        assert f"with status {status}" in str(judges[0].stopped)
        with pytest.raises(StoppedError, match=f"with status {status}"):
            judge_responses(items(8), judges_at(servers), cache=cache)
        assert len(cache) == 8
        servers[0].status = None
        again = judges_at(servers)
        assert [v.label for v in judge_responses(items(8), again, cache=cache)] == truth(8) * 2
    assert [judge.usage.calls for judge in again] == [8, 0]


def test_where_no_endpoint_can_be_used_it_is_a_mistake(servers: list[FaultyServer]) -> None:
    for server in servers:
        server.status = 401
    with pytest.raises(MechsafetyError, match="with status 401") as caught:
        judge_responses(items(6), judges_at(servers), partial=True)
    assert not isinstance(caught.value, StoppedError)


def test_a_model_that_one_host_does_not_know_leaves_its_other_model_alone(
    servers: list[FaultyServer],
) -> None:
    def answer(number: int, body: dict[str, Any]) -> Any:
        known = body["model"] == "second"
        return sent("VERDICT: REFUSAL" if known else {"status": 404, "body": {"error": {"message": "no"}}})

    servers[0].reply = answer
    judges = [EndpointJudge(f"{name}@{servers[0].url}", options=FAST) for name in ("first", "second")]
    verdicts = judge_responses(items(6), judges, partial=True)
    assert [v.label for v in verdicts] == ["unparsed"] * 6 + ["refusal"] * 6


def test_an_interrupt_keeps_what_both_had(
    servers: list[FaultyServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The signal is raised in this thread while the third verdict is kept. The workers of the first two have gone on,
    # so that by then ten have come: of four workers at each host, and of two once more.
    judges, path, put, puts = judges_at(servers), tmp_path / "c.sqlite", VerdictCache.put, []

    def interrupted(cache: VerdictCache, key: str, verdict: Verdict) -> None:
        puts.append(key)
        if len(puts) == 3:
            while sum(judge.usage.fresh for judge in judges) < 10:
                time.sleep(0.002)
            signal.raise_signal(signal.SIGINT)
        put(cache, key, verdict)

    monkeypatch.setattr(VerdictCache, "put", interrupted)
    # A process that a shell started in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with VerdictCache(path) as cache, pytest.raises(KeyboardInterrupt):
            judge_responses(items(20), judges, cache=cache)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [t for t in threading.enumerate() if t.name == "endpoint"]
    assert min(judge.usage.fresh for judge in judges) >= 4
    with VerdictCache(path) as cache:
        assert len(cache) == 10
        again = judges_at(servers)
        verdicts = judge_responses(items(20), again, cache=cache)
    assert [v.label for v in verdicts] == truth(20) * 2
    assert sum(judge.usage.calls for judge in again) == 30
