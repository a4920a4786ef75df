"""Finished pieces of long work, line by line."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, RefusedRunError
from mechsafety.runs.atomic import not_written
from mechsafety.runs.sources import differences, first_differences

_MADE_FROM = "\x00made from"  # no piece has such a key


class Journal:
    """Finished pieces of long work, appended line by line: what a killed run had finished is still there.

    One process writes at a time (:func:`open_run` sees to it). A line that was cut short is passed over and
    its piece done again.
    """

    def __init__(self, path: str | Path) -> None:
        path = as_path(path)
        self.path = path
        self._found: dict[str, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MechsafetyError(
                f"folder {str(path.parent)!r} cannot be written to: {error.strerror}"
            ) from None
        whole = path.read_bytes() if path.is_file() else b""
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            with path.open("rb+") as stream:
                stream.truncate(end)
        for line in whole[:end].splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._found[entry["key"]] = entry["value"]

    def bind(self, **facts: object) -> None:
        """Bind the journal to what its pieces are made from: kept at first, compared from then on.

        Raises :class:`MechsafetyError` where something differs, and for pieces of which nothing is known.
        """
        now = {name: str(value) for name, value in facts.items()}
        known = self.get(_MADE_FROM)
        if known is None and not self._found:
            self.put(_MADE_FROM, now)
        elif known != now:
            changed = first_differences(differences(known or {}, now))
            raise RefusedRunError(
                f"journal {str(self.path)!r} holds pieces that were made from something else ({changed}): name another "
                "file"
            )

    def get(self, key: str) -> Any:
        """What was put under ``key``, or None."""
        return self._found.get(key)

    def put(self, key: str, value: Any) -> None:
        """Append ``value`` and see it to the disk. Raises :class:`StoppedError` where the disk takes no more."""
        line = json.dumps({"key": key, "value": value}, allow_nan=False).encode() + b"\n"
        before = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with self.path.open("ab") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            # A part of the line may be there, to which the next one would be glued.
            with contextlib.suppress(OSError):
                os.truncate(self.path, before)
            raise not_written(self.path, error) from None
        self._found[key] = value
