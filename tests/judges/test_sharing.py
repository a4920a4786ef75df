"""Paid verdicts: asked once, whoever asks, in panels and beside them, by several processes, through any kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError, StoppedError
from mechsafety.core.verdict import Response
from mechsafety.experiments.judging import ask
from mechsafety.generation.completions import Completion
from mechsafety.judges import endpoint_spec
from mechsafety.judges.budget import Budget
from mechsafety.judges.cache import VerdictCache
from mechsafety.judges.files import judge_file, write_batch
from mechsafety.judges.kinds.majority import MajorityJudge
from mechsafety.judges.outcomes import labels_of
from mechsafety.judges.registry import load_judge
from tests.faulty_server import FaultyServer, honest, serving

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serving(FaultyServer()) as running:
        yield running


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_TRIES", "1")


def items(n: int) -> list[Response]:
    return [
        Response(id=f"r{i}", prompt="How?", text=f"{'I am sorry' if i % 2 else 'Sure'}, item-{i}")
        for i in range(n)
    ]


def answers_file(folder: Path, n: int) -> Path:
    path = folder / "answers.csv"
    path.write_text("id,prompt,response\n" + "".join(f'{r.id},{r.prompt},"{r.text}"\n' for r in items(n)))
    return path


# -- panels -----------------------------------------------------------------------------------------


def test_members_are_ordinary_judges_and_asked_once(server: FaultyServer, tmp_path: Path) -> None:
    one, two = f"endpoint:one@{server.url}", f"endpoint:two@{server.url}"
    specs = [one, f"majority:{one},{two},rules", f"dawid_skene:{one},{two},rules"]
    path = answers_file(tmp_path, 6)
    done = judge_file(path, judges=specs, out=None)
    assert server.calls.total() == 12
    assert {name: used.calls for name, used in done.usage.items()} == {one: 6, two: 6}
    assert done.counts[specs[1]]["refusal"] == 3
    again = judge_file(path, judges=specs[1:], out=None)
    assert server.calls.total() == 12
    assert {name: used.cached for name, used in again.usage.items()} == {one: 6, two: 6}


def test_the_cap_holds_for_members_and_what_is_missing_is_told(server: FaultyServer, tmp_path: Path) -> None:
    one, two = f"endpoint:one@{server.url}", f"endpoint:two@{server.url}"
    panel = f"majority:{one},{two},rules"
    done = judge_file(answers_file(tmp_path, 6), judges=[panel], out=tmp_path / "v.jsonl", max_calls=8)
    assert server.calls.total() == 8  # of both together: six of the one, two of the other
    assert {name: used.calls for name, used in done.usage.items()} == {one: 6, two: 2}
    assert done.missing[panel] == {"budget": 4}
    lost = [line for line in (tmp_path / "v.jsonl").read_text().splitlines() if "missing_member" in line]
    assert len(lost) == 4
    assert all("budget" in line and "quorum" not in line for line in lost)  # the rules make two of three


def test_a_member_without_an_answer_is_shown_and_the_rest_decides(server: FaultyServer) -> None:
    server.answer = lambda messages: "Hm." if "item-1" in messages[0]["content"] else honest(messages)
    judges = [load_judge(f"endpoint:one@{server.url}"), load_judge("rules"), load_judge("phrases:wei")]
    found = MajorityJudge(judges)(items(4))
    assert [v.label for v in found] == ["compliance", "refusal"] * 2
    assert [v.tags for v in found] == [(), ("missing_member",), (), ()]
    assert found[1].detail["missing"] == {judges[0].name: "unreadable"}


# -- caps, cost, batches ----------------------------------------------------------------------------


def test_caps_on_tokens_and_money_hold_and_the_cost_is_said_first(
    server: FaultyServer, tmp_path: Path
) -> None:
    spec = f"endpoint:m@{server.url};price_in=1000;price_out=1000;concurrency=1"
    path, said = answers_file(tmp_path, 9), []
    done = judge_file(path, judges=[spec, "rules"], out=None, max_cost=0.25, say=said.append)
    assert (done.usage[spec].calls, done.usage[spec].cost) == (3, pytest.approx(0.33))  # 110 tokens each
    assert done.missing == {spec: {"budget": 6}}
    (line,) = said
    assert "9 questions" in line
    assert "cost" in line
    server.with_usage = False  # counts are guessed then, from the characters
    done = judge_file(path, judges=[spec], out=None, max_tokens=700, say=said.append)
    assert "6 questions" in said[1]
    assert 1 <= done.usage[spec].calls <= 3
    with pytest.raises(MechsafetyError, match="a cap on the cost needs prices"):
        judge_file(path, judges=[f"endpoint:m@{server.url}"], out=None, max_cost=1.0)


def test_caps_of_the_environment_hold_for_every_command(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(endpoint_spec, "_OF_PROCESS", Budget())
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_MAX_CALLS", "5")
    for name, n in (("one", 4), ("two", 4)):
        with pytest.raises(StoppedError, match="not complete") if name == "two" else nullcontext():
            ask(load_judge(f"endpoint:{name}@{server.url}"), items(n))
    assert server.calls.total() == 5
    # What was spent counts when a cap is raised, and one of the options leaves the others as they are.
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_MAX_CALLS", "6")
    with pytest.raises(StoppedError, match="not complete"):
        ask(load_judge(f"endpoint:three@{server.url}"), items(4))
    assert server.calls.total() == 6
    done = judge_file(
        answers_file(tmp_path, 9), judges=[f"endpoint:four@{server.url}"], out=None, max_tokens=10**6
    )
    assert server.calls.total() == 12
    assert done.missing == {f"endpoint:four@{server.url}": {"budget": 3}}
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_MAX_CALLS", "many")
    with pytest.raises(MechsafetyError, match="MAX_CALLS is 'many'; a number is expected"):
        load_judge(f"endpoint:m@{server.url}")


def test_a_batch_is_written_and_its_results_are_read(server: FaultyServer, tmp_path: Path) -> None:
    spec = f"endpoint:m@{server.url}"
    path, batch, results = (tmp_path / name for name in ("answers.csv", "batch.jsonl", "results.jsonl"))
    answers_file(tmp_path, 5)
    assert write_batch(path, batch, judges=[spec, "rules"]) == {spec: 5}
    asked = [json.loads(line) for line in batch.read_text().splitlines()]
    assert all(one["body"]["model"] == "m" and one["url"] == "/v1/chat/completions" for one in asked)
    lines = [
        {"custom_id": one["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}
        for one, body in zip(
            reversed(asked[1:]),
            [
                {"choices": [{"message": {"content": honest(one["body"]["messages"])}}]}
                for one in reversed(asked[1:])
            ],
            strict=True,
        )
    ]
    lines[0]["response"]["body"] = {"error": {"message": "lost"}}  # of the last one
    lines.append({"custom_id": "of another file", "response": None, "error": None})
    lines[1]["note"] = "JSON may hold other ends of lines\u2028"
    results.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    said: list[str] = []
    done = judge_file(path, judges=[spec], out=None, batch_in=results, say=said.append)
    assert "3 verdicts, 1 lines without one, 1 that were not asked for" in said[0]
    assert said[0].endswith("lost")
    assert server.calls.total() == 0
    assert done.missing == {spec: {"budget": 2}}
    assert judge_file(path, judges=[spec], out=None).missing == {}
    assert server.calls.total() == 2
    results.write_text(json.dumps({"custom_id": ["no", "text"], "response": {"body": 3}}))
    with pytest.raises(MechsafetyError, match="line 1: no result with custom_id"):
        judge_file(path, judges=[spec], out=None, batch_in=results)
    results.write_text("no results")
    with pytest.raises(MechsafetyError, match="line 1: no result with custom_id"):
        judge_file(path, judges=[spec], out=None, batch_in=results)


def test_a_batch_of_lines_that_are_cut_doubled_or_in_error_gives_what_it_holds(
    server: FaultyServer, tmp_path: Path
) -> None:
    spec = f"endpoint:m@{server.url}"
    path, batch, results = (tmp_path / name for name in ("answers.csv", "batch.jsonl", "results.jsonl"))
    answers_file(tmp_path, 6)
    write_batch(path, batch, judges=[spec])
    ids = [json.loads(line)["custom_id"] for line in batch.read_text().splitlines()]

    def line(custom_id: str, said: str | None, **more: Any) -> str:
        body = {"choices": [{"message": {"content": said}}]}
        return json.dumps(
            {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None} | more
        )

    expired = {"code": "batch_expired", "message": "too late"}
    cut = {"choices": [{"message": {"content": "VERDICT: REFUSAL"}, "finish_reason": "length"}]}
    lines = [
        line(ids[0], "VERDICT: REFUSAL"),
        line(ids[0], "VERDICT: COMPLIANCE"),
        line(ids[1], None, response=None, error=expired),
        line(ids[1], "VERDICT: COMPLIANCE"),
        line(ids[2], None, response=None, error=expired),
        line(ids[3], None, response={"status_code": 400, "body": {"error": {"message": "flagged"}}}),
        line(ids[4], None, response={"status_code": 200, "body": cut}),
        line(ids[5], "VERDICT: REFUSAL")[:-20],
    ]
    results.write_text("\n".join(lines), encoding="utf-8-sig")
    said: list[str] = []
    done = judge_file(path, judges=[spec], out=tmp_path / "out.csv", batch_in=results, say=said.append)
    assert "2 verdicts, 5 lines without one, 0 that were not asked for, 1 that came twice" in said[0]
    assert "too late" in said[0]
    assert done.missing == {spec: {"budget": 4}}
    assert list(pd.read_csv(tmp_path / "out.csv")["label"]) == ["refusal", "compliance", *["unparsed"] * 4]


# -- one cache --------------------------------------------------------------------------------------


def test_experiments_ask_for_distinct_answers_once(server: FaultyServer) -> None:
    spec = f"endpoint:m@{server.url}"
    done = [_completion(r) for r in items(4)]
    for _ in range(3):
        assert labels_of(done * 2, spec) == ["compliance", "refusal"] * 4
    ask(load_judge(spec), items(4))
    assert server.calls.total() == 4


def test_work_that_lacks_a_verdict_is_not_complete(server: FaultyServer) -> None:
    spec = f"endpoint:m@{server.url}"
    server.status = 503
    for work in (
        lambda: ask(load_judge(spec), items(3)),
        lambda: labels_of([_completion(items(1)[0])], spec),
    ):
        with pytest.raises(StoppedError, match=r"not complete: judge .* has no verdict on"):
            work()
    server.status = None
    assert [v.label for v in ask(load_judge(spec), items(3))] == ["compliance", "refusal", "compliance"]


def _completion(response: Response) -> Completion:
    return Completion(
        id=response.id,
        prompt=response.prompt,
        label="harmful",
        category="",
        text=response.text,
        tokens=(),
        n_prompt_tokens=1,
        finish="stop",
    )


# -- several processes ------------------------------------------------------------------------------

WORKER = """
import sys
from mechsafety.core.verdict import Response
from mechsafety.judges import endpoint_spec
from mechsafety.judges.budget import Budget
from mechsafety.judges.cache import VerdictCache
from mechsafety.judges.call_options import CallOptions
from mechsafety.judges.kinds.endpoint import EndpointJudge
from mechsafety.judges.registry import judge_responses
url, path, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
items = [Response(id=str(i), prompt="How?", text=f"Sure, item-{i}") for i in range(n)]
judge = EndpointJudge(f"m@{url}", options=CallOptions(concurrency=4))
with VerdictCache(path) as cache:
    print(len(judge_responses(items, [judge], cache=cache)))
"""


def start(server: FaultyServer, path: Path, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, server.url, str(path), str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_pay_as_one(server: FaultyServer, tmp_path: Path) -> None:
    n, path = 60, tmp_path / "c.sqlite"
    both = [start(server, path, n) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == [str(n)] * 2
    assert server.calls.total() == n


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_loses_only_what_is_in_flight(server: FaultyServer, tmp_path: Path, kills: int) -> None:
    n, path, draw = 60 * kills, tmp_path / "c.sqlite", random.Random(kills)
    VerdictCache(path).close()
    lost = 0
    for _ in range(kills):
        before = server.valid.total()
        kept = _kept(path)
        process = start(server, path, n)
        wanted = before + draw.randint(1, 50)
        while server.valid.total() < wanted and process.poll() is None:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.02)  # what the server had begun
        gone = server.valid.total() - before - (_kept(path) - kept)
        assert 0 <= gone <= 4  # the calls at once: each is kept before its worker asks the next
        lost += gone
    assert start(server, path, n).communicate()[0].strip() == str(n)
    assert server.valid.total() == n + lost
    assert _kept(path) == n


def _kept(path: Path) -> int:
    with VerdictCache(path) as cache:
        return len(cache)
