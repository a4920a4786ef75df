"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mechsafety.core.errors import StoppedError

SCRATCH = ".writing-"
"""How the name of a file begins that is being written."""


def atomically(target: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a file beside ``target``, and move it there.

    Raises :class:`StoppedError` where the disk takes no more.
    """
    try:
        _moved(target, save)
    except OSError as error:
        raise not_written(target, error) from None


def not_written(target: Path, error: OSError) -> StoppedError:
    """What is said of a file that the disk did not take."""
    return StoppedError(
        f"cannot write {str(target)!r}: {error.strerror or error}; what was there is kept, and the same command goes on"
    )


def _moved(target: Path, save: Callable[[Path], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f"{SCRATCH}{uuid.uuid4().hex}{target.suffix}"
    # Made first, so that it has the mode that the user's umask gives; safetensors makes its files 0600.
    os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = stat.S_IMODE(scratch.stat().st_mode)
    try:
        save(scratch)
        with scratch.open("rb") as stream:
            os.fsync(stream.fileno())
        scratch.chmod(mode)
        scratch.replace(target)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
