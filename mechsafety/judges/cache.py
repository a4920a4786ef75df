"""Verdicts kept on disk, so that no model is asked twice and an interrupted run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from filelock import FileLock, Timeout

from mechsafety.core.arguments import as_path
from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError, first_lines, way
from mechsafety.core.places import cache_folder
from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.judges.answers import Answer
from mechsafety.judges.asking import TRANSIENT
from mechsafety.judges.claims import Claims
from mechsafety.judges.reading import decide

_APPLICATION = 0x6D736A76  # "msjv": what makes an SQLite file one of ours
_MAGIC = b"SQLite format 3\0"
_FORMAT = 2
_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)  # the second where the message quotes what is damaged
_PATIENCE = 60.0  # seconds to wait for another process that is writing
_AT_ONCE = 500  # keys a query: SQLite limits the variables of one


def default_cache_path() -> Path:
    """Where verdicts are kept when no file is named: in the cache folder of the user."""
    return cache_folder() / "verdicts.sqlite"


@checked_construction
class VerdictCache:
    """Verdicts by what they depend on, in one SQLite file that several processes may use at once.

    The key is the SHA-256 of the judge's fingerprint (its name, the model's revision, the template, the
    parameters, any edit), the prompt, the response and the number of the repeat; neither prompt nor response is
    stored. What a judge answered in words is kept as it came and read anew, so that a better reader costs no call.
    Each :meth:`put` is committed before it returns (write-ahead log), so that a process killed at any moment
    loses nothing it had put. Each row carries a hash: one that is damaged is left out and named in ``damaged``. What
    one process has claimed, another does not ask (:class:`mechsafety.judges.claims.Claims`).

    Raises :class:`MechsafetyError` for a file of another kind or format and a place that cannot be written to. It is a
    context manager; use it in the thread that made it.

    Example:
        >>> with ms.judges.VerdictCache("verdicts.sqlite") as cache:
        ...     len(cache)
        0
    """

    def __init__(self, path: str | Path) -> None:
        path = as_path(path)
        self.path = path
        self.damaged: list[str] = []
        """What was found damaged and left out: keys of rows, or the file that the rest was saved from."""
        self._replace: set[str] = set()
        if path.is_dir() or not path.parent.is_dir():
            raise MechsafetyError(f"verdict cache {str(path)!r}: name a file in a folder that exists")
        try:
            with FileLock(f"{path}.lock", timeout=_PATIENCE), self._errors():
                self._open()
        except Timeout:
            raise MechsafetyError(f"verdict cache {str(path)!r} is in use by a process that hangs") from None
        except OSError as error:
            raise MechsafetyError(
                f"cannot write the verdict cache {str(path)!r}: {error.strerror}; {_otherwise()}"
            ) from None
        self.claims = Claims(self._connection, path)

    def __enter__(self) -> VerdictCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, and of what was claimed."""
        with contextlib.suppress(sqlite3.Error):
            self.claims.close()
        self._connection.close()

    def __len__(self) -> int:
        with self._errors():
            return int(self._connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])

    def get(self, keys: Sequence[str], *, judge: str) -> dict[str, Verdict]:
        """The kept verdicts of ``keys``, by key, signed by ``judge``; their ids are empty, the caller's to fill."""
        found: dict[str, Verdict] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = list(keys[start : start + _AT_ONCE])
            marks = ",".join("?" * len(some))
            with self._errors():
                rows = self._connection.execute(
                    f"SELECT key, verdict, hash FROM verdicts WHERE key IN ({marks})", some
                ).fetchall()
            for key, text, hashed in rows:
                if (verdict := self._read(key, text, hashed, judge)) is not None:
                    found[key] = verdict
                else:
                    self._replace.add(key)
        return found

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep ``verdict`` under ``key``, with what was ``said``, committed when this returns.

        The first of two verdicts under a key stays. One that is unparsed for a reason that may pass (no answer from
        the network, the budget, an answer that was cut) is not kept.
        """
        if verdict.label == "unparsed" and TRANSIENT & set(verdict.tags):
            return
        stored: dict[str, object] = {
            "label": verdict.label,
            "tags": list(verdict.tags),
            "detail": dict(verdict.detail),
        }
        if verdict.said:
            stored["said"] = [dict(answer) for answer in verdict.said]
        text = json.dumps(stored, sort_keys=True)
        verb = "REPLACE" if key in self._replace else "IGNORE"
        with self._errors():
            self._connection.execute(
                f"INSERT OR {verb} INTO verdicts (key, verdict, hash) VALUES (?, ?, ?)",
                (key, text, _row_hash(key, text)),
            )

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Those of ``keys`` that no other living process is asking: they are ours to ask until :meth:`release`."""
        with self._errors():
            return self.claims.take(keys)

    def release(self, keys: Sequence[str]) -> None:
        """Leave ``keys`` to whoever asks next."""
        with self._errors():
            self.claims.drop(keys)

    def _open(self) -> None:
        # SQLite itself would take a file of one byte to be empty. The file is not opened: closing it again would drop
        # the locks that other connections of this process hold on it.
        with contextlib.suppress(FileNotFoundError):
            if 0 < self.path.stat().st_size < len(_MAGIC):
                raise sqlite3.DatabaseError("it does not say that it is one")
        self._connection = self._connected()
        try:
            try:
                self._prepare()
            except _DAMAGE as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._save_the_rest()
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
        # A damaged text then fails its hash, like any other damage.
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        return connection

    def _save_the_rest(self) -> None:
        """Keep a copy of the damaged file and begin anew with the rows that can still be read.

        Raises sqlite3.DatabaseError where none can.
        """
        self._connection.close()
        with self.path.open("rb") as stream:
            head = stream.read(100)
        if head[:16] != _MAGIC or int.from_bytes(head[68:72]) != _APPLICATION:
            raise sqlite3.DatabaseError("it does not say that it is one")
        aside = self.path.with_name(f"{self.path.name}.damaged-{secrets.token_hex(4)}")
        shutil.copyfile(self.path, aside)
        # A file that was cut short is not read at all: what is missing becomes empty pages.
        whole = int.from_bytes(head[28:32]) * (int.from_bytes(head[16:18]) or 65536)
        os.truncate(self.path, max(whole, self.path.stat().st_size))
        self._connection = self._connected()
        rows = list(_readable(self._connection, 1, self.path.stat().st_size))
        self._connection.close()
        if not rows:
            aside.replace(self.path)
            raise sqlite3.DatabaseError("no row can be read")
        for ending in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        self.damaged.append(str(aside))
        self._connection = self._connected()
        self._prepare()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?)", rows)
        self._connection.execute("COMMIT")

    def _prepare(self) -> None:
        run = self._connection.execute
        application, version = (
            run(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        empty = run("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if application != _APPLICATION and not (empty and application == 0):
            raise MechsafetyError(
                f"{str(self.path)!r} is an SQLite file of another program: name another file"
            )
        if not empty and version != _FORMAT:
            raise MechsafetyError(
                f"verdict cache {str(self.path)!r} has format {version}; this version reads format {_FORMAT}: "
                "name another file"
            )
        if (state := run("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(state)
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("BEGIN IMMEDIATE")
        run(
            "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL, hash TEXT NOT NULL)"
        )
        run(f"PRAGMA application_id = {_APPLICATION}")
        run(f"PRAGMA user_version = {_FORMAT}")
        run("CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL)")
        run("COMMIT")

    def _read(self, key: str, text: str, hashed: str, judge: str) -> Verdict | None:
        """The verdict of a row; None for a damaged one, and where what was answered says nothing to this reader."""
        if isinstance(text, str) and _row_hash(key, text) == hashed:
            # A row of another version, perhaps, is no better than a damaged one.
            with contextlib.suppress(ValueError, KeyError, TypeError, MechsafetyError):
                if isinstance(stored := json.loads(text), dict):
                    return _stored(stored, judge)
        self.damaged.append(key)
        return None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise MechsafetyError(
                f"cannot use the verdict cache {str(self.path)!r}: {first_lines(error)}; {_otherwise()}"
            ) from None
        except _DAMAGE as error:
            raise MechsafetyError(
                f"{str(self.path)!r} is no verdict cache, or one that nothing can be read from "
                f"({first_lines(error)}): {_otherwise()}"
            ) from None


@contextmanager
def open_cache(path: str | Path | None) -> Iterator[VerdictCache]:
    """The cache at ``path``, or at the default place, whose folder is made."""
    path = None if path is None else as_path(path)
    if path is None:
        path = default_cache_path()
        with contextlib.suppress(OSError):  # the cache itself reports what is wrong with the place
            path.parent.mkdir(parents=True, exist_ok=True)
    with VerdictCache(path) as cache:
        yield cache


def cache_key(fingerprint: Mapping[str, object], response: Response, *, repeat: int = 0) -> str:
    """SHA-256 over the judge's fingerprint, prompt, response and the number of the repeat.

    The response's id is not part of it: the same text under another id has the same verdict.
    """
    parts = [dict(fingerprint), response.prompt, response.text, repeat]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _readable(connection: sqlite3.Connection, first: int, last: int) -> Iterator[tuple[str, str, str]]:
    """The rows with numbers from ``first`` to ``last`` that can be read: a range that cannot is halved."""
    try:
        yield from connection.execute(
            "SELECT key, verdict, hash FROM verdicts WHERE rowid BETWEEN ? AND ?", (first, last)
        ).fetchall()
    except _DAMAGE:
        if first < last:
            middle = (first + last) // 2
            yield from _readable(connection, first, middle)
            yield from _readable(connection, middle + 1, last)


def _stored(row: Mapping[str, Any], judge: str) -> Verdict | None:
    if said := row.get("said"):
        nobody = Response(id="", prompt="", text="")
        return decide(nobody, judge=judge, answers=[Answer(**answer) for answer in said])
    label, tags = cast("Label", row["label"]), tuple(row["tags"])
    return Verdict(id="", judge=judge, label=label, tags=tags, detail=row["detail"])


def _row_hash(key: str, text: str) -> str:
    return hashlib.sha256(f"{key}\x1f{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _otherwise() -> str:
    other, without = way("--cache", "ms.judges.VerdictCache"), way("--no-cache", "cache=None")
    return f"name another file with {other}, or do without ({without})"
