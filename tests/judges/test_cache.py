"""The verdict cache: what is put stays, whoever kills whom, and what shares no cause shares no key."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.answers import Answer
from mechsafety.judges.asking import AskingJudge, OnVerdict, Usage
from mechsafety.judges.cache import VerdictCache, cache_key, default_cache_path, open_cache
from mechsafety.judges.registry import judge_responses

PRINT: dict[str, object] = {"judge": "j", "revision": "r", "template": "t", "parameters": {"n": 1}}


def response(i: int, text: str = "x") -> Response:
    return Response(id=f"r{i}", prompt="p", text=f"{text}{i}")


def verdict(i: int, label: str = "refusal", **more: object) -> Verdict:
    return Verdict(id=f"r{i}", judge="j", label=label, **more)  # type: ignore[arg-type]


class Counting(AskingJudge):
    """Refuses everything, remembers what it was asked, and breaks off after ``most``."""

    name = "counting"

    def __init__(self, *, most: int = 99, label: str = "refusal", tags: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.most, self.label, self.tags = most, label, tags

    @property
    def fingerprint(self) -> dict[str, object]:
        return PRINT

    def _ask(self, responses: Sequence[Response], *, on_verdict: OnVerdict) -> list[Verdict]:
        made = []
        for r in responses:
            if len(self.asked) == self.most:
                raise KeyboardInterrupt
            self.asked.append(r.id)
            self.ledger.add(Usage(fresh=1, calls=1))
            made.append(Verdict(id=r.id, judge=self.name, label=self.label, tags=self.tags))  # type: ignore[arg-type]
            on_verdict(made[-1])
        return made


def test_what_is_put_is_got(tmp_path: Path) -> None:
    kept = verdict(1, "unparsed", tags=("unreadable",), detail={"answer": "hm \ud800 é"})
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        cache.put("k", kept)
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        found = cache.get(["k", "none"], judge="j")
        assert list(found) == ["k"]
        assert (found["k"].label, found["k"].tags, found["k"].detail) == (kept.label, kept.tags, kept.detail)
        assert (found["k"].judge, found["k"].id) == ("j", "")
        cache.put("k", verdict(1, "compliance"))  # the first one stays
        assert cache.get(["k"], judge="j")["k"].label == "unparsed"
        for i in range(1200):  # more than one query's worth
            cache.put(str(i), verdict(i))
        assert len(cache.get([str(i) for i in range(1200)], judge="j")) == 1200


@pytest.mark.parametrize("reason", ["budget", "network", "cut_off", "filtered", "empty", "rejected"])
def test_what_may_pass_is_not_kept(tmp_path: Path, reason: str) -> None:
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        cache.put("k", verdict(1, "unparsed", tags=(reason,)))
        assert len(cache) == 0


parts = st.fixed_dictionaries(
    {
        "judge": st.text(),
        "revision": st.text(),
        "template": st.text(),
        "parameters": st.dictionaries(st.text(), st.integers()),
    }
)


@given(parts, parts, st.text(), st.text(), st.text(), st.text(), st.integers(0, 3), st.integers(0, 3))
def test_keys_are_equal_exactly_when_every_part_is(
    a: dict[str, object], b: dict[str, object], p: str, q: str, s: str, t: str, m: int, n: int
) -> None:
    one = cache_key(a, Response(id="1", prompt=p, text=s), repeat=m)
    two = cache_key(b, Response(id="2", prompt=q, text=t), repeat=n)
    assert (one == two) == ((a, p, s, m) == (b, q, t, n))
    assert one == cache_key(json.loads(json.dumps(a)), Response(id="3", prompt=p, text=s, nll=1.0), repeat=m)


def test_borders_between_parts_count() -> None:
    assert cache_key(PRINT, Response(id="", prompt="ab", text="c")) != cache_key(
        PRINT, Response(id="", prompt="a", text="bc")
    )


def test_judging_asks_only_what_is_not_kept_and_counts_both(tmp_path: Path) -> None:
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        first, second = Counting(), Counting()
        judge_responses([response(i) for i in range(4)], [first], cache=cache)
        verdicts = judge_responses([response(i) for i in (9, 3, 2, 8)], [second, "rules"], cache=cache)
        assert second.asked == ["r9", "r8"]
        assert (second.usage.fresh, second.usage.cached) == (2, 2)
        assert [(v.judge, v.id) for v in verdicts][:4] == [("counting", f"r{i}") for i in (9, 3, 2, 8)]
        assert len(cache) == 6  # rules are not kept
        repeated = Counting()
        judge_responses([response(0)], [repeated], cache=cache, repeat=1)
        assert repeated.asked == ["r0"]


def test_the_same_text_is_asked_once(tmp_path: Path) -> None:
    twins = [Response(id=i, prompt="p", text="same") for i in "abc"]
    judge = Counting()
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        assert [v.id for v in judge_responses(twins, [judge], cache=cache)] == ["a", "b", "c"]
    assert judge.asked == ["a"]
    assert judge.usage.cached == 2


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    todo = [response(i) for i in range(10)]
    with VerdictCache(tmp_path / "c.sqlite") as cache, pytest.raises(KeyboardInterrupt):
        judge_responses(todo, [Counting(most=6)], cache=cache)
    again = Counting()
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        assert len(judge_responses(todo, [again], cache=cache)) == 10
    assert again.asked == ["r6", "r7", "r8", "r9"]


WRITER = """
import sys
from pathlib import Path
from mechsafety.judges.cache import VerdictCache
from mechsafety.core.verdict import Verdict
name, n = sys.argv[2], int(sys.argv[3])
with VerdictCache(Path(sys.argv[1])) as cache:
    for i in range(n):
        cache.put(f"{name}-{i}", Verdict(id="", judge="j", label="refusal", detail={"fill": "x" * 500}))
        print(i, flush=True)
"""


def write(path: Path, name: str, n: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(n)], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_writer_loses_nothing_it_had_put(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with write(path, "a", 10**6) as process:
        assert process.stdout
        for line in process.stdout:
            if int(line) == 60:
                break
        os.kill(process.pid, signal.SIGKILL)
        done = max([60, *(int(line) for line in process.stdout if line.endswith("\n"))])
        process.wait()
    with VerdictCache(path) as cache:
        found = cache.get([f"a-{i}" for i in range(done + 1)], judge="j")
        assert len(found) == done + 1
        assert len(cache) - (done + 1) in (0, 1)  # one may be committed and not yet announced
        cache.put("more", verdict(1))


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with write(path, "a", 150) as one, write(path, "b", 150) as two:
        one.communicate()
        two.communicate()
        assert (one.returncode, two.returncode) == (0, 0)
    with VerdictCache(path) as cache:
        assert len(cache) == 300


def test_a_second_cache_of_a_process_leaves_the_first_its_locks(tmp_path: Path) -> None:
    """Another process that closes the file must not take itself to be the last one."""
    path = tmp_path / "c.sqlite"
    counts = f"import sqlite3; print(sqlite3.connect({str(path)!r}).execute('SELECT count(*) FROM verdicts').fetchone()[0])"

    def elsewhere() -> int:
        return int(subprocess.run([sys.executable, "-c", counts], check=True, capture_output=True).stdout)

    with VerdictCache(path) as first:
        first.put("one", verdict(1))
        with VerdictCache(path) as second:
            assert len(second) == 1
        assert elsewhere() == 1
        first.put("two", verdict(2))
        assert elsewhere() == 2


def test_foreign_files_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    for written in ("my thesis, " * 200, "a"):  # SQLite takes a file of one byte to be empty
        text.write_text(written)
        with pytest.raises(
            MechsafetyError, match=r"notes.txt' is no verdict cache, or one that nothing can be read from"
        ):
            VerdictCache(text)
        assert text.read_text() == written
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mail (body TEXT)")
    connection.commit()
    connection.close()
    before = other.read_bytes()
    with pytest.raises(MechsafetyError, match="an SQLite file of another program"):
        VerdictCache(other)
    assert other.read_bytes() == before
    with pytest.raises(MechsafetyError, match="name a file in a folder that exists"):
        VerdictCache(tmp_path / "nowhere" / "c.sqlite")
    with pytest.raises(MechsafetyError, match="name a file in a folder that exists"):
        VerdictCache(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    VerdictCache(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.commit()
    connection.close()
    with pytest.raises(MechsafetyError, match="has format 7; this version reads format 2"):
        VerdictCache(path)


def filled(path: Path) -> bytes:
    with VerdictCache(path) as cache:
        for i in range(200):
            cache.put(str(i), verdict(i, detail={"fill": "marker" * 20}))
    return path.read_bytes()


def read_all(path: Path) -> int:
    with VerdictCache(path) as cache:
        return len(cache.get([str(i) for i in range(200)], judge="j"))


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"refusal", b"ref\xffsal"), (b"refusal", b"degener"), (b"markermarker", b"markedmarker")],
)
def test_a_damaged_row_is_left_out_named_and_put_anew(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "c.sqlite"
    whole = filled(path)
    assert read_all(path) == 200  # the control
    path.write_bytes(whole.replace(before, after, 1))
    keys = [str(i) for i in range(200)]
    with VerdictCache(path) as cache:
        found = cache.get(keys, judge="j")
        assert len(found) == 199
        (lost,) = {*keys} - {*found}
        assert cache.damaged == [lost]
        cache.put(lost, verdict(0, "compliance"))
    with VerdictCache(path) as cache:
        assert cache.get(keys, judge="j")[lost].label == "compliance"
        assert cache.damaged == []


def test_of_a_damaged_file_the_rest_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    whole = filled(path)
    pages = len(whole) // 4096
    for damaged in (whole[: len(whole) // 2], *(_without(whole, page) for page in range(5, pages, 4))):
        path.write_bytes(damaged)
        with VerdictCache(path) as cache:
            assert 60 <= len(cache.get([str(i) for i in range(200)], judge="j")) < 200
            (aside,) = cache.damaged
        assert Path(aside).read_bytes() == damaged
        assert read_all(path) >= 60


def _without(whole: bytes, page: int) -> bytes:
    return whole[: 4096 * page] + b"\xff" * 4096 + whole[4096 * (page + 1) :]


def test_what_was_answered_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [asdict(Answer(text=text)) for text in ("Hm.", "VERDICT: REFUSAL")]
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        cache.put("k", verdict(1, "degenerate", said=tuple(said)))
        cache.put("alone", verdict(2, "compliance", said=tuple(said[1:])))
        found = cache.get(["k", "alone"], judge="j")
        assert (found["k"].label, found["k"].tags) == ("refusal", ("repaired",))
        monkeypatch.setattr("mechsafety.judges.reading.read_verdict", lambda text: None)
        assert cache.get(["k", "alone"], judge="j").keys() == {"k"}  # the other would be asked for once more
        cache.put("alone", verdict(2, "compliance"))
        assert cache.get(["alone"], judge="j")["alone"].label == "compliance"


# -- several at once ---------------------------------------------------------------------------------


def test_what_another_asks_is_waited_for(tmp_path: Path) -> None:
    path, todo = tmp_path / "c.sqlite", [response(i) for i in range(30)]
    at_once = threading.Barrier(2)

    class Slow(Counting):
        def _ask(self, responses: Sequence[Response], *, on_verdict: OnVerdict) -> list[Verdict]:
            made = []
            for r in responses:
                time.sleep(0.001)
                made += super()._ask([r], on_verdict=on_verdict)
            return made

    judges = [Slow(), Slow()]
    found: list[list[Verdict]] = []

    def work(judge: Slow, todo: list[Response]) -> None:
        with VerdictCache(path) as cache:
            at_once.wait()
            found.append(judge_responses(todo, [judge], cache=cache))

    threads = [
        threading.Thread(target=work, args=(j, t))
        for j, t in zip(judges, (todo[:20], todo[10:]), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(verdicts) for verdicts in found] == [20, 20]
    assert sorted(judges[0].asked + judges[1].asked) == sorted(r.id for r in todo)
    assert [file.name for file in tmp_path.iterdir() if "owner" in file.name] == []


def test_the_claims_of_the_dead_are_free(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    claim = "import sys, os\nfrom mechsafety.judges.cache import VerdictCache\n"
    claim += "print(VerdictCache(sys.argv[1]).claim(['a', 'b']), flush=True)\nos.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", claim, str(path)], capture_output=True, text=True)
    assert done.stdout.strip() == "['a', 'b']"
    assert done.returncode == -signal.SIGKILL
    with VerdictCache(path) as one, VerdictCache(path) as other:
        assert one.claim(["a"]) == ["a"]
        assert other.claim(["a", "b"]) == ["b"]  # the control: the living are left alone
        one.release(["a"])
        assert other.claim(["a"]) == ["a"]


def test_the_default_place_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path / "new" / "place"))
    with open_cache(None) as cache:
        assert cache.path == default_cache_path() == tmp_path / "new" / "place" / "verdicts.sqlite"
        assert len(cache) == 0


@pytest.mark.parametrize(
    "row",
    [
        "[]",
        "not JSON",
        '{"label": "refusal"}',
        '{"label": "odd", "tags": [], "detail": {}}',
        '{"said": [{"text": "VERDICT: REFUSAL", "new": 1}]}',
    ],
)
def test_a_row_of_another_form_is_left_out_and_named(tmp_path: Path, row: str) -> None:
    path, kept = tmp_path / "c.sqlite", Verdict(id="", judge="j", label="refusal")
    with VerdictCache(path) as cache:
        cache.put("good", kept)
    connection = sqlite3.connect(path)
    hashed = hashlib.sha256(f"odd\x1f{row}".encode()).hexdigest()
    connection.execute("INSERT INTO verdicts VALUES ('odd', ?, ?)", (row, hashed))
    connection.commit()
    connection.close()
    with VerdictCache(path) as cache:
        assert cache.get(["odd", "good"], judge="j") == {"good": kept}
        assert cache.damaged == ["odd"]
        cache.put("odd", kept)
        assert cache.get(["odd"], judge="j") == {"odd": kept}
