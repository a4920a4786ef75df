"""The table of what endpoints send, row by row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response as Sent

from mechsafety.core.errors import MechsafetyError, StoppedError
from mechsafety.core.verdict import Response
from mechsafety.judges.budget import Budget
from mechsafety.judges.cache import VerdictCache
from mechsafety.judges.call_options import CallOptions
from mechsafety.judges.chat_client import KEY, Elsewhere, make_client
from mechsafety.judges.endpoint_spec import require_own_keys
from mechsafety.judges.kinds.endpoint import EndpointJudge
from mechsafety.judges.pacing import Pace, Window, duration
from mechsafety.judges.registry import judge_responses
from tests.faulty_server import FaultyServer, sent, serving
from tests.judges.endpoint_cases import CASES, Case

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]

FAST = CallOptions(timeout=5.0, tries=3, first_wait=0.001, longest_wait=0.002)


@pytest.fixture(scope="module")
def shared() -> Iterator[FaultyServer]:
    with serving(FaultyServer()) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)


@pytest.fixture
def server(shared: FaultyServer) -> FaultyServer:
    shared.reply = None
    shared.bodies.clear()
    shared.headers.clear()
    return shared


def answers_with(server: FaultyServer, case: Case) -> None:
    server.reply = lambda n, body: sent(case.replies[min(n, len(case.replies) - 1)])


@pytest.mark.parametrize("name", CASES)
def test_each_case_is_what_it_is(server: FaultyServer, name: str) -> None:
    case = CASES[name]
    answers_with(server, case)
    judge = EndpointJudge(f"m@{server.url}{case.options}", options=FAST)
    asked = [Response(id="r", prompt="How do I bake?", text="I am sorry, item-1")]
    if case.stops:
        with pytest.raises(MechsafetyError) as caught:
            judge(asked)
        assert case.stops in str(caught.value)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, StoppedError) == (case.code == 1)
    else:
        (verdict,) = judge(asked)
        assert (verdict.label, verdict.tags) == (case.label, case.tags)
        assert case.says in str(verdict.detail)
    assert len(server.bodies) == case.calls


# -- many answers -----------------------------------------------------------------------------------


def items(n: int) -> list[Response]:
    return [Response(id=f"r{i}", prompt="How do I bake?", text=f"I am sorry, item-{i} ") for i in range(n)]


def with_one(bad: Any, *, at: str) -> Any:
    """Replies to the question about item ``at`` in one way, to all others well."""
    return lambda n, body: sent(bad if f"{at}\n" in body["messages"][0]["content"] else "VERDICT: REFUSAL")


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_question_that_is_rejected_ends_alone(server: FaultyServer, status: int) -> None:
    server.reply = with_one({"status": status, "body": {"error": {"message": "not this one"}}}, at="item-7")
    judge = EndpointJudge(f"m@{server.url}", options=FAST)
    verdicts = judge(items(20))
    assert [v.label for v in verdicts].count("refusal") == 19
    assert (verdicts[7].label, verdicts[7].tags) == ("unparsed", ("rejected",))
    assert verdicts[7].detail == {"error": f"status {status}: not this one"}
    assert len(server.bodies) == judge.usage.calls == 20


def test_many_filtered_questions_do_not_end_the_work(server: FaultyServer) -> None:
    filtered = {"status": 400, "body": {"error": {"code": "content_filter", "message": "content policy"}}}
    server.reply = lambda n, body: sent(filtered if n < 12 else "VERDICT: REFUSAL")
    labels = [v.label for v in EndpointJudge(f"m@{server.url}", options=FAST)(items(20))]
    assert labels.count("refusal") == 8
    assert "response_format" in server.bodies[-1]  # a filter says nothing about the schema


def test_mistakes_of_all_calls_end_after_a_few(server: FaultyServer) -> None:
    server.reply = lambda n, body: sent(
        {"status": 400, "body": {"error": {"message": f"no model, call {n}"}}}
    )
    with pytest.raises(StoppedError, match=r"answers every call alike.*no model"):
        EndpointJudge(f"m@{server.url}", options=FAST)(items(100))
    assert len(server.bodies) <= 6 + FAST.concurrency


def test_pages_to_every_call_end_after_a_few(server: FaultyServer) -> None:
    server.reply = lambda n, body: sent({"body": "<html><title>Sign in</title>"})
    with pytest.raises(StoppedError, match="a page with the title 'Sign in'"):
        EndpointJudge(f"m@{server.url}", options=FAST)(items(100))
    assert len(server.bodies) <= 5 + FAST.concurrency


def test_pages_in_the_middle_end_later(server: FaultyServer) -> None:
    server.reply = lambda n, body: sent("VERDICT: REFUSAL" if n < 30 else {"body": "<title>Sign in</title>"})
    judge = EndpointJudge(f"m@{server.url}", options=FAST)
    kept: list[str] = []
    verdicts = judge.ask(items(100), on_verdict=lambda verdict: kept.append(verdict.label))
    assert judge.stopped is not None
    assert kept.count("refusal") == [v.label for v in verdicts].count("refusal") == 30
    assert {v.tags for v in verdicts if v.label == "unparsed"} == {("network",)}
    assert len(server.bodies) < 30 + 5 * FAST.tries + 2 * FAST.concurrency


@pytest.mark.parametrize(("status", "says"), [(403, "account suspended"), (400, "max_tokens is too large")])
def test_the_same_rejection_of_every_call_ends_the_work(server: FaultyServer, status: int, says: str) -> None:
    ends = {"status": status, "body": {"error": {"message": says}}}
    before = (
        20 if status == 403 else 0
    )  # also after answers; what sounds like one question's fault, only without
    server.reply = lambda n, body: sent("VERDICT: REFUSAL" if n < before else ends)
    judge = EndpointJudge(f"m@{server.url}", options=FAST)
    verdicts = judge.ask(items(100), on_verdict=lambda _: None)
    assert says in str(judge.stopped)
    assert len(server.bodies) <= before + 5 * FAST.tries + FAST.concurrency
    assert {v.tags for v in verdicts[-20:]} == {("network",)}


def test_the_same_text_is_asked_once_without_a_cache(server: FaultyServer) -> None:
    server.reply = lambda n, body: sent("VERDICT: REFUSAL")
    same = [Response(id=str(i), prompt="How do I bake?", text="I am sorry.") for i in range(9)]
    verdicts = judge_responses(same, [EndpointJudge(f"m@{server.url}", options=FAST)])
    assert [v.id for v in verdicts] == [r.id for r in same]
    assert len(server.bodies) == 1


def test_calls_that_were_too_many_wait_for_the_others(server: FaultyServer) -> None:
    slow = {"status": 429, "body": {"error": {"message": "slow"}}}
    server.reply = lambda n, body: sent("VERDICT: REFUSAL" if n % 2 == 0 else slow)
    judge = EndpointJudge(f"m@{server.url};concurrency=16;tries=4", options=FAST)
    assert {v.label for v in judge(items(100))} == {"refusal"}


def test_a_window_halves_once_for_what_was_under_way_and_grows_with_answers() -> None:
    window = Window(8)
    window.refused(begun=1.0, now=2.0)
    window.refused(begun=1.5, now=2.1)
    assert window.room == 4
    for _ in range(5):
        window.answered()
    assert window.room == 5
    for begun in (2.0, 3.0, 4.0, 5.0, 6.0):
        window.refused(begun=begun, now=begun + 0.5)
    assert window.room == 1
    for _ in range(100):
        window.answered()
    assert window.room == 8


def test_a_quota_that_ends_keeps_what_is_done(server: FaultyServer, tmp_path: Path) -> None:
    over = {"status": 429, "body": {"error": {"code": "insufficient_quota", "message": "current quota"}}}
    server.reply = lambda n, body: sent("VERDICT: REFUSAL" if n < 10 else over)
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        one_by_one = replace(FAST, concurrency=1)  # of calls side by side the quota's end may be read first
        judge = EndpointJudge(f"m@{server.url}", options=one_by_one)
        with pytest.raises(StoppedError, match="the quota is used up"):
            judge_responses(items(30), [judge], cache=cache)
        assert len(cache) == 10
        assert len(server.bodies) == 11
        server.reply = lambda n, body: sent("VERDICT: REFUSAL")
        server.bodies.clear()
        judge_responses(items(30), [EndpointJudge(f"m@{server.url}", options=FAST)], cache=cache)
        assert len(server.bodies) == 20


def test_a_question_that_no_rate_allows_is_not_asked_again(server: FaultyServer) -> None:
    """A wait helps those that came too fast, not one that is larger than the limit."""
    large = {"status": 429, "body": {"error": {"message": "Request too large for m: Limit 60, Requested 75"}}}
    server.reply = with_one(large, at="item-4")
    verdicts = EndpointJudge(f"m@{server.url}", options=FAST)(items(12))
    assert [v.label for v in verdicts] == ["refusal"] * 4 + ["unparsed"] + ["refusal"] * 7
    assert len(server.bodies) == 12


def test_calls_under_way_learn_the_name_of_the_longest_answer(server: FaultyServer) -> None:
    """The first call fails, so that all others go out before any has told how the parameter is called."""
    refused = {"status": 400, "body": {"error": {"message": "use max_completion_tokens"}}}

    def answer(n: int, body: dict[str, Any]) -> Sent:
        if n == 0:
            return sent({"status": 503, "body": "busy"})
        return sent(refused if "max_tokens" in body else '{"verdict": "REFUSAL"}')

    server.reply = answer
    verdicts = EndpointJudge(f"m@{server.url}", options=FAST)(items(12))
    assert {v.label for v in verdicts} == {"refusal"}
    assert all("response_format" in body for body in server.bodies)


# -- what is sent -----------------------------------------------------------------------------------


def test_the_schema_is_asked_for_until_it_is_refused(server: FaultyServer) -> None:
    def answer(n: int, body: dict[str, Any]) -> Sent:
        if "response_format" in body and not knows:
            return sent({"status": 400, "body": {"error": {"message": "unknown field"}}})
        return sent('{"verdict": "REFUSAL"}' if "response_format" in body else "VERDICT: REFUSAL")

    server.reply = answer
    for knows in (True, False):
        server.bodies.clear()
        judge = EndpointJudge(f"m@{server.url}", options=FAST)
        assert {v.label for v in judge(items(12))} == {"refusal"}
        assert len(server.bodies) == 12 + (not knows)
        assert sum("response_format" in body for body in server.bodies) == (12 if knows else 1)
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["verdict"]["enum"] == ["REFUSAL", "COMPLIANCE", "DEGENERATE"]


def test_the_spec_sets_what_is_sent(server: FaultyServer) -> None:
    server.reply = lambda n, body: sent("VERDICT: REFUSAL")
    EndpointJudge(f"m@{server.url}", options=FAST)(items(1))
    spec = f"m@{server.url};answer_tokens=4000; tokens_name=max_completion_tokens;temperature=default;structured=off"
    EndpointJudge(spec, options=FAST)(items(1))
    EndpointJudge(f"m@{server.url};temperature=0.5", options=FAST)(items(1))
    plain, own, warm = server.bodies
    assert (plain["max_tokens"], plain["temperature"]) == (1024, 0)
    assert own["max_completion_tokens"] == 4000
    assert not {"temperature", "max_tokens", "response_format"} & own.keys()
    assert warm["temperature"] == 0.5


def test_caps_hold_for_what_is_under_way(server: FaultyServer) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    body = {"choices": [{"message": {"content": "VERDICT: REFUSAL"}}], "usage": usage}
    server.reply = lambda n, _: sent({"body": body})
    judge = EndpointJudge(f"m@{server.url};concurrency=32", options=FAST)
    judge.limit(Budget(tokens=1100))
    tags = [v.tags for v in judge(items(60))]
    assert len(server.bodies) == 10
    assert tags.count(("budget",)) == 50


def test_of_the_environment_only_the_key_is_sent(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-mine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Team: red\nAuthorization: Bearer sk-of-another")
    monkeypatch.setenv("OWN_KEY", "sk-own")
    server.reply = lambda n, body: sent("VERDICT: REFUSAL")
    EndpointJudge(f"m@{server.url};api_key_env=OWN_KEY", options=FAST)(items(1))
    headers = server.headers[0]
    assert headers["authorization"] == "Bearer sk-own"
    assert not any(word in str(headers) for word in ("another", "mine", "red"))


def test_redirects_are_followed_on_the_same_host(server: FaultyServer) -> None:
    moved = {"status": 307, "headers": {"location": "/moved/chat/completions"}, "body": ""}
    server.reply = lambda n, body: sent(moved if n == 0 else "VERDICT: REFUSAL")
    (verdict,) = EndpointJudge(f"m@{server.url}", options=FAST)(items(1))
    assert verdict.label == "refusal"
    assert server.bodies[0] == server.bodies[1]


@pytest.mark.parametrize(
    "written", ["b\u00fccher.example", "B\u00dcCHER.example", "xn--bcher-kva.example", "[::1]:8000"]
)
def test_a_host_is_the_same_however_it_is_written(written: str) -> None:
    """A name with other letters goes out in its ASCII form: that is no other host."""
    asked: list[str] = []

    async def ask() -> None:
        client = make_client(f"http://{written}/v1", key_variable=KEY, timeout=1.0, at_once=1)
        (guard,) = client._client.event_hooks["request"]
        request = client._client.build_request("POST", f"http://{written}/v1/chat/completions")
        await guard(request)
        asked.append(str(request.url))
        with pytest.raises(Elsewhere):
            await guard(client._client.build_request("POST", "http://other.example/v1"))

    asyncio.run(ask())
    assert len(asked) == 1


def test_headers_that_say_that_nothing_is_left_hold_the_next_call(server: FaultyServer) -> None:
    left = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30ms"}
    server.reply = lambda n, body: Sent(
        sent("VERDICT: REFUSAL").body, headers={"content-type": "application/json"} | left
    )
    judge = EndpointJudge(f"m@{server.url};concurrency=1", options=FAST)
    begun = time.monotonic()
    assert len(judge(items(3))) == 3
    assert time.monotonic() - begun >= 0.06


def test_stated_rates_spread_the_calls() -> None:
    clock = 100.0
    pace = Pace(requests=600, tokens=6000)
    assert [round(pace.wait(clock), 3) for _ in range(4)] == [0.0, 0.1, 0.2, 0.3]
    pace.spent(200, clock)  # two seconds' worth
    assert pace.wait(clock) == pytest.approx(2.0)
    pace.pause(clock + 5)
    assert pace.wait(clock + 1) == pytest.approx(4.0)
    assert Pace().wait(clock) == 0
    pace = Pace(tokens=6000)  # what is under way counts as much as what has ended
    assert pace.wait(clock) == 0
    pace.spent(200, clock)
    assert [round(pace.wait(clock), 3) for _ in range(3)] == [2.0, 4.0, 6.0]
    pace.spent(300, clock)  # one of them, a second's worth more than expected
    assert pace.wait(clock) == pytest.approx(9.0)
    assert [duration(text) for text in ("6m0s", "20ms", "1.5s", "12", "1h", "", "soon", "-3")] == [
        *(360, 0.02, 1.5, 12, 3600),
        *(0, 0, 0),
    ]


@pytest.mark.parametrize("key", ["sk two", "sk-é", "sk\n", " sk", "sk\t"])
def test_keys_that_cannot_be_sent_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OWN_KEY", key)
    with pytest.raises(MechsafetyError, match="the key in OWN_KEY holds a blank") as caught:
        EndpointJudge("m@http://localhost/v1;api_key_env=OWN_KEY")
    assert key not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["gopher://me:hunter2@h:1", "h:x:y", "socks4://h"])
def test_proxies_that_cannot_be_used_are_told_in_a_line(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(MechsafetyError, match="a proxy in the environment") as caught:
        EndpointJudge(f"m@{server.url}", options=FAST)(items(1))
    assert "hunter2" not in str(caught.value)


def test_certificates_that_cannot_be_read_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    with pytest.raises(MechsafetyError, match="SSL_CERT_FILE"):
        EndpointJudge("m@http://127.0.0.1:1/v1", options=FAST)(items(1))


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("api_key=sk-hunter2", "an option that is none of api_key_env"),
        ("api_key_env=sk-hunter2", "the NAME of an environment variable"),
        ("hunter2", "an option that is none of"),
        ("temperature=hot", "option temperature: write a number or default"),
        ("answer_tokens=many", "option answer_tokens: write a whole number"),
        ("answer_tokens=0", "answer_tokens is 0"),
        ("structured=perhaps", "write on or off"),
        ("tokens_name=a b", "write max_tokens or max_completion_tokens"),
    ],
)
def test_options_that_are_wrong_are_refused_unseen(option: str, says: str) -> None:
    with pytest.raises(MechsafetyError, match=says) as caught:
        EndpointJudge(f"m@http://localhost/v1;{option}")
    assert "hunter2" not in str(caught.value).lower()


def test_a_variable_of_a_key_that_is_not_set_is_told_where_something_is_asked(server: FaultyServer) -> None:
    judge = EndpointJudge(f"m@{server.url};api_key_env=HUNTER2", options=FAST)
    assert judge([]) == []
    with pytest.raises(MechsafetyError, match="a variable that is not set") as caught:
        judge(items(1))
    assert "hunter2" not in str(caught.value).lower()
    assert not server.bodies


def test_one_key_goes_to_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    two = ["endpoint:m@http://one/v1", "endpoint:m@http://two/v1", "rules"]
    require_own_keys(two)  # without a key there is none to send
    monkeypatch.setenv(KEY, "sk-a")
    monkeypatch.setenv("OWN_KEY", "sk-b")
    with pytest.raises(MechsafetyError, match="would be sent to one and to two"):
        require_own_keys(two)
    require_own_keys([two[0], two[1] + ";api_key_env=OWN_KEY"])
