"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mechsafety.core.errors import MechsafetyError, StoppedError, first_lines

SCRATCH = ".writing-"
"""How the name of a file begins that is being written."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A disk, a user's share of it, or a process's, that takes no more."""
_IN_WORDS = re.compile(r"\(os error (\d+)\)")


def atomically(target: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write a file beside ``target``, and move it there.

    Raises :class:`StoppedError` where the disk takes no more, and :class:`MechsafetyError` for whatever else the system
    refuses.
    """
    try:
        _moved(target, save)
    except _system_errors() as error:
        raise not_written(target, error) from None


def not_written(target: Path, error: Exception) -> MechsafetyError:
    """What is said of a file that could not be written."""
    code = _code(error)
    if code in _FULL:
        return StoppedError(
            f"cannot write {str(target)!r}: {os.strerror(code)}; what was there is kept, and the same command goes on"
        )
    return MechsafetyError(f"cannot write {str(target)!r}: {_refused(target, error)}")


def _refused(target: Path, error: Exception) -> str:
    """What is in the way; where that is another file than ``target``, its name."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        file = next((path for path in reversed(target.parents) if path.is_file()), None)
        if file is not None:
            return f"{str(file)!r} is a file and no folder"
    why = getattr(error, "strerror", None) or first_lines(error)
    other = str(getattr(error, "filename", None) or target)
    return why if SCRATCH in other or other == str(target) else f"{why} ({other})"


def _system_errors() -> tuple[type[Exception], ...]:
    """What is raised for a system's error; asked for only where something is raised."""
    from safetensors import SafetensorError

    return OSError, SafetensorError


def _code(error: Exception) -> int:
    """The system's number of ``error``, which safetensors gives in words; 0 where there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = _IN_WORDS.search(str(error))
    return int(found[1]) if found else 0


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
