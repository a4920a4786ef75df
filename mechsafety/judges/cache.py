"""Verdicts kept on disk, so that no model is asked twice and an interrupted run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import cast

from filelock import FileLock, Timeout

from mechsafety.core.errors import MechsafetyError, first_lines, way
from mechsafety.core.places import cache_folder
from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.judges.asking import TRANSIENT

_APPLICATION = 0x6D736A76  # "msjv": what makes an SQLite file one of ours
_FORMAT = 1
_PATIENCE = 60.0  # seconds to wait for another process that is writing
_AT_ONCE = 500  # keys a query: SQLite limits the variables of one


def default_cache_path() -> Path:
    """Where verdicts are kept when no file is named: in the cache folder of the user."""
    return cache_folder() / "verdicts.sqlite"


class VerdictCache:
    """Verdicts by what they depend on, in one SQLite file that several processes may use at once.

    The key is the SHA-256 of the judge's fingerprint (its name, the model's revision, the template, the
    parameters, any edit), the prompt, the response and the number of the repeat; neither prompt nor response is
    stored. Each :meth:`put` is committed before it returns (write-ahead log), so that a process killed at any moment
    loses nothing it had put. Each row carries a hash, so that a damaged one is noticed.

    Raises :class:`MechsafetyError` for a file of another kind or format, a damaged one and a place that cannot be
    written to. It is a context manager; use it in the thread that made it.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path
        if path.is_dir() or not path.parent.is_dir():
            raise MechsafetyError(f"verdict cache {str(path)!r}: name a file in a folder that exists")
        try:
            with FileLock(f"{path}.lock", timeout=_PATIENCE), self._errors():
                self._connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
                # A damaged text then fails its hash, like any other damage.
                self._connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
                try:
                    self._prepare()
                except BaseException:
                    self._connection.close()
                    raise
        except Timeout:
            raise MechsafetyError(f"verdict cache {str(path)!r} is in use by a process that hangs") from None
        except OSError as error:
            raise MechsafetyError(
                f"cannot write the verdict cache {str(path)!r}: {error.strerror}; {_otherwise()}"
            ) from None

    def __enter__(self) -> VerdictCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def __len__(self) -> int:
        with self._errors():
            return int(self._connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])

    def get(self, keys: Sequence[str], *, judge: str) -> dict[str, Verdict]:
        """The verdicts that are kept, by key, signed by ``judge``; their ids are empty, the caller's to fill."""
        found: dict[str, Verdict] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = list(keys[start : start + _AT_ONCE])
            marks = ",".join("?" * len(some))
            with self._errors():
                rows = self._connection.execute(
                    f"SELECT key, verdict, hash FROM verdicts WHERE key IN ({marks})", some
                ).fetchall()
            found |= {key: self._read(key, text, hashed, judge) for key, text, hashed in rows}
        return found

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep ``verdict``, committed when this returns. The first of two verdicts under a key stays.

        One that is unparsed for a reason that may pass (no answer from the network, the budget) is not kept.
        """
        if verdict.label == "unparsed" and TRANSIENT & set(verdict.tags):
            return
        text = json.dumps(
            {"label": verdict.label, "tags": list(verdict.tags), "detail": dict(verdict.detail)},
            sort_keys=True,
        )
        with self._errors():
            self._connection.execute(
                "INSERT INTO verdicts (key, verdict, hash) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
                (key, text, _row_hash(key, text)),
            )

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
        run("COMMIT")

    def _read(self, key: str, text: str, hashed: str, judge: str) -> Verdict:
        if not isinstance(text, str) or _row_hash(key, text) != hashed:
            raise self._damaged("a row does not match its hash")
        stored = json.loads(text)
        return Verdict(
            id="",
            judge=judge,
            label=cast("Label", stored["label"]),
            tags=tuple(stored["tags"]),
            detail=stored["detail"],
        )

    def _damaged(self, why: str) -> MechsafetyError:
        return MechsafetyError(
            f"{str(self.path)!r} is no verdict cache, or a damaged one ({why}): delete it, {_otherwise()}"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise MechsafetyError(
                f"cannot use the verdict cache {str(self.path)!r}: {first_lines(error)}; {_otherwise()}"
            ) from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(first_lines(error)) from None


@contextmanager
def open_cache(path: str | Path | None) -> Iterator[VerdictCache]:
    """The cache at ``path``, or at the default place, whose folder is made."""
    path = None if path is None else Path(path)
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


def _row_hash(key: str, text: str) -> str:
    return hashlib.sha256(f"{key}\x1f{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _otherwise() -> str:
    other, without = way("--cache", "ms.VerdictCache"), way("--no-cache", "cache=None")
    return f"name another file with {other}, or do without ({without})"
