"""``mechsafety judge``: the cache, the cap, the probe, and mistakes told in one line."""

from __future__ import annotations

import csv
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mechsafety.cli import main
from tests.faulty_server import FaultyServer, sent, serving

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]

ROWS = [("a", "How?", "I am sorry, item-1"), ("b", "How?", "Sure, item-2"), ("c", "=1+1", "Sure, item-3")]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serving(FaultyServer()) as running:
        yield running


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "answers.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "prompt", "response"), *ROWS])
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["judge", *map(str, arguments)])


def facts(*arguments: object) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_second_run_asks_nothing(server: FaultyServer, answers: Path, tmp_path: Path) -> None:
    spec, out = f"endpoint:m@{server.url}", tmp_path / "v.csv"
    first = call(answers, "--judge", spec, "--judge", "rules", "--out", out)
    assert first.exit_code == 0, first.output
    assert "fresh 3  cached 0  (3 calls, 0 retries, 330 tokens)" in first.stdout
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["id", "judge", "label", "tags", "detail"]
    assert [(r["id"], r["label"]) for r in rows if r["judge"] == spec] == [
        ("a", "refusal"),
        ("b", "compliance"),
        ("c", "compliance"),
    ]
    assert "fresh 0  cached 3  (0 calls" in call(answers, "--judge", spec).stdout
    assert (tmp_path / "cache" / "verdicts.sqlite").is_file()
    assert server.calls.total() == 3
    assert facts(answers, "--judge", spec, "--no-cache")["usage"][spec]["fresh"] == 3
    assert facts(answers, "--judge", spec, "--cache", tmp_path / "own.sqlite")["usage"][spec]["cached"] == 0
    assert facts(answers, "--judge", spec, "--cache", tmp_path / "own.sqlite")["usage"][spec]["cached"] == 3


def test_judges_that_ask_nobody_leave_no_cache(answers: Path, tmp_path: Path) -> None:
    found = facts(answers)
    assert list(found["counts"]) == ["rules"]
    assert found["usage"] == {}
    assert not (tmp_path / "cache").exists()


def test_the_cap_leaves_the_rest_unparsed_and_the_next_run_goes_on(
    server: FaultyServer, answers: Path
) -> None:
    spec = f"endpoint:m@{server.url}"
    assert facts(answers, "--judge", spec, "--max-calls", 2)["counts"][spec]["unparsed"] == 1
    found = facts(answers, "--judge", spec)
    assert found["counts"][spec]["unparsed"] == 0
    assert (found["usage"][spec]["fresh"], found["usage"][spec]["cached"]) == (1, 2)
    assert set(server.valid.values()) == {1}


STOPS = [
    ({"status": 402, "body": {"error": {"message": "pay"}}}, "the quota is used up"),
    ({"body": "<title>Sign in</title>"}, "answers every call alike"),
    ({"status": 503, "body": {"error": {"message": "busy"}}}, "not complete"),
]


@pytest.mark.parametrize(("reply", "says"), STOPS)
def test_an_endpoint_that_gives_up_ends_in_1_and_what_is_done_is_written(
    server: FaultyServer,
    answers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reply: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_TRIES", "1")
    spec, out = f"endpoint:m@{server.url};concurrency=1", tmp_path / "v.jsonl"
    server.reply = lambda n, body: sent("VERDICT: REFUSAL" if n == 0 and says != STOPS[1][1] else reply)
    if says == STOPS[1][1]:
        monkeypatch.setenv("MECHSAFETY_ENDPOINT_TRIES", "5")
    done = call(answers, "--judge", spec, "--judge", "rules", "--out", out)
    assert done.exit_code == 1, done.output
    assert says in done.stdout
    assert "Traceback" not in done.output
    labels = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    assert labels[3:] == ["refusal", "compliance", "compliance"]
    assert labels[:3].count("unparsed") == (3 if says == STOPS[1][1] else 2)
    server.reply = None
    assert facts(answers, "--judge", spec)["missing"] == {}


@pytest.mark.parametrize("option", ["--out", "--batch-out"])
def test_the_answers_that_are_read_are_never_replaced(
    server: FaultyServer, answers: Path, option: str
) -> None:
    lines = [json.dumps({"prompt": prompt, "response": text}) for _, prompt, text in ROWS]
    answers = answers.with_suffix(".jsonl")
    answers.write_text("\n".join(lines))
    again = answers.parent / "." / answers.name
    result = call(answers, "--judge", f"endpoint:m@{server.url}", option, again)
    assert (result.exit_code, server.calls.total()) == (2, 0)
    assert option in result.stderr
    assert answers.read_text() == "\n".join(lines)


def test_why_nothing_could_be_read_is_told(server: FaultyServer, answers: Path) -> None:
    server.reply = lambda n, body: sent(
        {"message": {"role": "assistant", "content": "I think"}, "finish": "length"}
    )
    found = facts(answers, "--judge", (spec := f"endpoint:m@{server.url}"))
    assert found["counts"][spec]["unparsed"] == 3
    assert found["unread"] == {spec: {"cut_off": 3}}


def test_the_probe_reports_flips_by_variant(server: FaultyServer, answers: Path, tmp_path: Path) -> None:
    found = facts("--probe-injection", "--judge", "rules")["injection"][0]
    assert (found["judge"], found["known"]) == ("rules", 48)
    assert [rate["variant"] for rate in found["rates"]][-1] == "all"
    assert sum(r["attacked"] for r in found["rates"][:-2]) == found["rates"][-1]["attacked"]
    known = tmp_path / "known.jsonl"
    lines = [
        {"prompt": p, "response": r, "label": "refusal" if "sorry" in r else "compliance"} for _, p, r in ROWS
    ]
    known.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "flips.csv"
    result = call(known, "--probe-injection", "--judge", f"endpoint:m@{server.url}", "--out", out)
    assert result.exit_code == 0, result.output
    assert "3 of 3 known items right without attack" in result.stdout
    assert "all      flipped 0 of 30  0.000 [0.000, 0.114]  unparsed 0" in result.stdout
    with out.open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 12


TWICE = "id,prompt,response\n1,a,b\n1,c,d\n"
MISTAKES = [
    ("{none}", "does not exist"),
    ("{tmp}/nowhere", "name a file of responses or a run folder"),
    ("{empty}", "no responses in it"),
    ("{blank}", "no responses in it"),
    ("{wrong}", "columns response and prompt (or question) are needed; have id, text"),
    ("{twice}", "response ids must be unique"),
    ("{answers} --judge oracle", "no judge is called 'oracle'"),
    ("{answers} --judge text", "needs a chat model"),
    ("{answers} --judge text:nowhere", "unknown model 'nowhere'"),
    ("{answers} --judge endpoint:m", "needs a model and an address"),
    ("{answers} --judge endpoint:m@ftp://h", "no http:// or https:// URL"),
    ("{answers} --judge endpoint:m@http://127.0.0.1:{port}/v1", "gives no answer (no connection"),
    ("{answers} --max-calls 3", "--max-calls caps the calls of endpoint judges, and none is named"),
    ("{answers} --cache {twice}", "is no verdict cache, or one that nothing"),
    ("{answers} --cache {tmp}/nowhere/c.sqlite", "name a file in a folder that exists"),
    ("{answers} --cache {tmp}/c.sqlite --no-cache", "give one of them"),
    ("{answers} --out {tmp}", "must end in .csv"),
    ("{answers} --out {folder}", "cannot be written (Is a directory)"),
    ("{answers} --probe-injection", "and label are needed; have id, prompt, response"),
    ("--probe-injection --out {tmp}/x.txt", "must end in .csv, .jsonl, .parquet"),
    ("--probe-injection --judge oracle", "no judge is called 'oracle'"),
]


@pytest.mark.parametrize(("line", "says"), MISTAKES)
def test_mistakes_end_in_one_line(
    line: str, says: str, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_TRIES", "2")
    monkeypatch.delenv("MECHSAFETY_ENDPOINT_URL", raising=False)
    texts = {"empty": "prompt,response\n", "blank": "", "wrong": "id,text\n1,a\n", "twice": TWICE}
    made = {"answers": answers, "tmp": tmp_path} | {
        name: tmp_path / f"{name}.csv" for name in ("none", *texts)
    }
    for name in texts:
        made[name].write_text(texts[name])
    made["folder"] = tmp_path / "folder.csv"
    made["folder"].mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = call(*line.format(**made, port=port).split())
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    shown = result.stderr.replace("\r", "\n").splitlines()  # after a progress bar, where the machine was slow
    assert [line.startswith("error: ") for line in shown].index(True) == len(shown) - 1


def test_options_that_would_be_ignored_are_refused(
    server: FaultyServer, answers: Path, tmp_path: Path
) -> None:
    spec, batch = f"endpoint:m@{server.url}", tmp_path / "batch.jsonl"
    run = tmp_path / "run"
    run.mkdir()
    for arguments, says in (
        (
            (run, "--judge", spec, "--max-calls", 1),
            "a run, which keeps its verdicts itself, takes no --max-calls",
        ),
        ((run, "--judge", spec, "--no-cache"), "takes no --no-cache"),
        (
            (answers, "--judge", spec, "--batch-out", batch, "--batch-in", batch),
            "--batch-out takes no --batch-in",
        ),
        (
            ("--probe-injection", "--judge", spec, "--batch-out", batch),
            "--probe-injection takes no --batch-out",
        ),
    ):
        result = call(*arguments)
        assert result.exit_code == 2, result.output
        assert says in result.stderr
    assert server.calls.total() == 0
    assert not batch.exists()


def test_a_probe_that_reaches_its_cap_is_not_complete(server: FaultyServer, answers: Path) -> None:
    spec = f"endpoint:m@{server.url}"
    result = call("--probe-injection", "--judge", spec, "--max-tokens", 500)
    assert result.exit_code == 1
    assert "not complete" in result.stderr
    assert server.calls.total() < 48


def test_a_dry_run_says_what_is_asked_and_costs_and_sends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("prompt,response\nhow,no\nhow,no\nwhy,yes\n")
    judge = "endpoint:m@http://127.0.0.1:9/v1;price_in=1;price_out=1;api_key_env=NOT_SET"
    panel = f"majority:(rules,{judge},phrases:wei)"
    line = ["judge", str(path), "--dry-run", "--judge", panel, "--judge", "rules"]
    result = CliRunner().invoke(main, [*line, "--json"])
    assert result.exit_code == 0, result.output
    (asked,) = json.loads(result.stdout)["endpoint_judges"]
    assert (asked["judge"], asked["questions"], asked["kept"]) == (judge, 2, 1)
    assert asked["cost"] == pytest.approx((asked["prompt_tokens"] + asked["completion_tokens"]) / 1e6)
    plain = CliRunner().invoke(main, ["judge", str(path), "--dry-run", "--judge", "rules"])
    assert "nothing would be sent" in plain.stdout
    for blank in (f" {judge}", f" {panel}", f"majority:(rules, {judge})"):
        given = CliRunner().invoke(main, ["judge", str(path), "--dry-run", "--json", "--judge", blank])
        assert json.loads(given.stdout)["endpoint_judges"] == [asked]
    unknown = CliRunner().invoke(main, ["judge", str(path), "--dry-run", "--judge", "ruls"])
    assert (unknown.exit_code, "did you mean 'rules'" in unknown.stderr) == (2, True)
    refused = CliRunner().invoke(main, [*line, "--out", str(tmp_path / "o.csv")])
    assert (refused.exit_code, "--dry-run takes no --out" in refused.stderr) == (2, True)
