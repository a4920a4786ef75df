"""Who is asking what: several processes on one verdict cache, none of which pays for what another is asking."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout


class Claims:
    """The questions that this process is asking, in table ``claims`` of the cache.

    Each owner holds a lock on a file of its own for as long as it lives, so that the system itself says who is dead:
    the claims of a process that was killed are free at once, whatever it was doing.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self.owner = secrets.token_hex(8)
        self._lock: FileLock | None = None

    def take(self, keys: Sequence[str]) -> list[str]:
        """Those of ``keys`` that are ours to ask now: nobody alive has claimed them."""
        if self._lock is None:
            self._lock = FileLock(self._file(self.owner), timeout=0)
            self._lock.acquire()
        run = self._connection.execute
        run("BEGIN IMMEDIATE")
        try:
            for owner in {row[0] for row in run("SELECT DISTINCT owner FROM claims")} - {self.owner}:
                if self._is_dead(owner):
                    run("DELETE FROM claims WHERE owner = ?", (owner,))
            self._connection.executemany(
                "INSERT OR IGNORE INTO claims (key, owner) VALUES (?, ?)", [(key, self.owner) for key in keys]
            )
            mine = {row[0] for row in run("SELECT key FROM claims WHERE owner = ?", (self.owner,))}
        except BaseException:
            run("ROLLBACK")
            raise
        run("COMMIT")
        return [key for key in keys if key in mine]

    def drop(self, keys: Sequence[str]) -> None:
        """Leave ``keys`` to whoever asks next."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "DELETE FROM claims WHERE key = ? AND owner = ?", [(key, self.owner) for key in keys]
        )
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Leave everything that is still claimed."""
        if self._lock is not None:
            self._connection.execute("DELETE FROM claims WHERE owner = ?", (self.owner,))
            self._lock.release()
            self._file(self.owner).unlink(missing_ok=True)
            self._lock = None

    def _is_dead(self, owner: str) -> bool:
        lock = FileLock(self._file(owner), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        lock.release()
        self._file(owner).unlink(missing_ok=True)
        return True

    def _file(self, owner: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{owner}.owner")
