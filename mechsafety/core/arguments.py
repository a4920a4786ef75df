"""Arguments as people give them: one thing where several may stand, and what it must be otherwise."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mechsafety.core.errors import MechsafetyError

if TYPE_CHECKING:
    import pandas as pd

Name = TypeVar("Name", bound=str)
_LONGEST = 60  # characters of a value in a message


def shown(value: object) -> str:
    """A value for a message: its repr in at most 60 characters, and its type."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = _LONGEST
    return f"{' '.join(short.repr(value).split())[: 2 * _LONGEST]} ({type(value).__name__})"


def nearest(word: object, allowed: Iterable[object], *, alike: float = 0.6) -> str:
    """`` (did you mean 'x'?)`` for the one of ``allowed`` that is most like ``word``; empty where none is."""
    close = closest(word, allowed, alike=alike)
    return "" if close is None else f" (did you mean {close!r}?)"


def closest(word: object, allowed: Iterable[object], *, alike: float = 0.6) -> str | None:
    """The one of ``allowed`` that is most like ``word``, by its letters whatever their case; None where none is."""
    import difflib

    folded = {str(one).casefold(): str(one) for one in allowed}
    close = difflib.get_close_matches(str(word).casefold(), folded, n=1, cutoff=alike)
    return folded[close[0]] if close else None


def whole_number(value: object, what: str) -> int:
    """``value`` as an int (numpy's and torch's too). Raises :class:`MechsafetyError` for anything else."""
    if isinstance(value, bool | str | bytes):
        raise MechsafetyError(f"{what} is {shown(value)}: a whole number is needed")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError, ValueError):
        raise MechsafetyError(f"{what} is {shown(value)}: a whole number is needed") from None


def number(value: object, what: str) -> float:
    """``value`` as a float. Raises :class:`MechsafetyError` for what is no number, NaN and infinity."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise MechsafetyError(f"{what} is {shown(value)}: a number is needed") from None
    if not math.isfinite(found):
        raise MechsafetyError(f"{what} is {found}; a finite number is needed")
    return found


def whole_numbers(value: int | Iterable[int], what: str) -> tuple[int, ...]:
    """One whole number, or several (a list, a range, an array), as a tuple."""
    return tuple(whole_number(each, what) for each in several(value))


def names(value: object, what: str, allowed: Sequence[Name]) -> tuple[Name, ...]:
    """One name, or several, as a tuple. Raises :class:`MechsafetyError` for none, and for one not ``allowed``."""
    found = several(value)
    wrong = [str(each) for each in found if not isinstance(each, str) or each not in allowed]
    if wrong or not found:
        raise MechsafetyError(f"{what} {', '.join(wrong) or 'none'} is not one of {', '.join(allowed)}")
    return tuple(found)


def several(value: Any) -> tuple[Any, ...]:
    """``value`` as a tuple: of itself, where it is a str or holds nothing that could be walked through."""
    if isinstance(value, str | bytes | Path) or not isinstance(value, Iterable):
        return (value,)
    try:
        return tuple(value)
    except TypeError:  # an array of no dimension
        return (value,)


def listed(text: str) -> list[str]:
    """What stands between commas, but not between those within parentheses: ``a, b(c, d)`` is ``a`` and ``b(c, d)``."""
    parts, depth = [""], 0
    for character in text:
        depth = max(depth + (character == "(") - (character == ")"), 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    # A parenthesis that is never closed is part of a name.
    return [part.strip() for part in (text.split(",") if depth else parts)]


def as_path(value: str | Path) -> Path:
    """``value`` as a path, with ``~`` as the home folder. Raises :class:`MechsafetyError` for an unknown user's."""
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise MechsafetyError(f"path {str(value)!r}: {error}") from None


def require_columns(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise :class:`MechsafetyError` where ``table`` lacks one of ``columns``; ``what`` is its name."""
    if missing := [name for name in columns if name not in table.columns]:
        raise MechsafetyError(
            f"the {what} lacks {', '.join(missing)}; it needs the columns {', '.join(columns)}"
        )
