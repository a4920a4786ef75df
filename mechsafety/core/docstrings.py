"""Docstrings of public functions, completed by what arguments of one name have in common everywhere."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Mapping

from mechsafety.core.places import packaged_words

_LIST = re.compile(r"^Arguments:\n((?:[ ]{4,}.*\n|\n)*)", re.MULTILINE)


def described(document: str) -> set[str]:
    """The arguments that a docstring describes: in its list, or as ``name`` in its prose."""
    prose = inspect.cleandoc(document).partition("\nExample:")[0]
    named = set(re.findall(r"``(\w+)", prose))
    listed = _LIST.search(f"{prose}\n")
    return named | (set(re.findall(r"^    (\w+):", listed[1], re.MULTILINE)) if listed else set())


def completed(document: str, parameters: Iterable[str], known: Mapping[str, str] | None = None) -> str:
    """``document`` with the ``parameters`` that it leaves out in its list of arguments, as far as they are known.

    ``known`` are descriptions besides those in ``arguments.toml``.
    """
    words = {**_words(), **(known or {})}
    there = described(document)
    new = [f"    {name}: {words[name]}\n" for name in parameters if name not in there and name in words]
    text = inspect.cleandoc(document)
    if not new:
        return text
    if listed := _LIST.search(text):
        end = listed.start() + len(listed[0].rstrip()) + 1
        return text[:end] + "".join(new) + text[end:]
    return _inserted(text, f"Arguments:\n{''.join(new)}")


def with_returns(document: str, returned: str) -> str:
    """``document`` with a section on what is returned, where it has none."""
    text = inspect.cleandoc(document)
    if "\nReturns:" in text:
        return text
    return _inserted(text, f"Returns:\n    {returned}\n", before=r"Raises|Example|Source")


def _inserted(text: str, section: str, *, before: str = "Returns|Raises|Example|Source") -> str:
    later = re.search(rf"\n\n(?=(?:{before})\b)", text)
    at = later.end() if later else len(text)
    return f"{text[:at].rstrip()}\n\n{section}\n{text[at:]}".rstrip() + "\n"


@functools.cache
def _words() -> Mapping[str, str]:
    return packaged_words("mechsafety.core", "arguments.toml")
