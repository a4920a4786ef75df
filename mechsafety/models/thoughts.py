"""What a model thinks aloud, told from its answer: one function and one table of formats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mechsafety.core.places import packaged_words


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a model marks its thought: patterns of what opens and closes it, and of what closes one opened elsewhere.

    ``marks`` are the texts that models themselves write: what opens a thought, and after what the answer begins.
    ``empty`` is a thought of nothing.
    """

    name: str
    open: str
    close: str
    example: str
    source: str
    headless: str | None = None
    marks: Sequence[Sequence[str]] = ()
    empty: str | None = None


@dataclass(frozen=True, kw_only=True)
class Switch:
    """An argument by which chat templates switch thinking, the values that turn it off, and one that turns it on."""

    name: str
    off: Sequence[Any]
    on: Any


_WORDS = packaged_words("mechsafety.models", "words/thoughts.toml")
FORMATS = tuple(Format(**entry) for entry in _WORDS["format"])
"""All known formats, from ``words/thoughts.toml``."""
SWITCHES = tuple(Switch(**entry) for entry in _WORDS["switch"])
"""All known switches of templates, from ``words/thoughts.toml``."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A text without its ``thoughts``; ``unclosed`` where the last of them never ends."""

    answer: str
    thoughts: tuple[str, ...]
    unclosed: bool


def split_thought(text: str, *, own: Sequence[tuple[str, str]] = (), glue: str = "") -> Split:
    """Separate what was thought from what was answered, in one pass.

    ``own`` are the tags of the model itself where they are known (what opens and closes a thought, literally); they
    are looked for first. ``glue`` joins what stands before and behind a thought. A thought that is closed but was
    never opened, since the chat template opened it, begins with the text.
    """
    tags, headless = _tags(tuple(own))
    answer: list[str] = []
    thoughts: list[str] = []
    inside, begin = None, 0
    for match in tags.finditer(text):
        kind = str(match.lastgroup)
        if inside is None and kind[0] == "o":
            answer.append(text[begin : match.start()])
            inside, begin = kind[1:], match.end()
        elif inside is None and headless[int(kind[1:])].fullmatch(match[0]):
            thoughts.append("".join([*answer, text[begin : match.start()]]).strip())
            answer, begin = [], match.end()
        elif inside == kind[1:] and kind[0] == "c":
            thoughts.append(text[begin : match.start()].strip())
            inside, begin = None, match.end()
    (thoughts if inside is not None else answer).append(
        text[begin:].strip() if inside is not None else text[begin:]
    )
    return Split(
        answer=glue.join(answer), thoughts=tuple(filter(None, thoughts)), unclosed=inside is not None
    )


@lru_cache(maxsize=64)
def _tags(own: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], tuple[re.Pattern[str], ...]]:
    """All tags as one pattern with groups ``oN`` and ``cN``, and for each format what closes an unopened thought."""
    formats = [(re.escape(a), re.escape(b), None) for a, b in own]
    formats += [(f.open, f.close, f.headless) for f in FORMATS]
    tags = "|".join(f"(?P<o{i}>{a})|(?P<c{i}>{b})" for i, (a, b, _) in enumerate(formats))
    headless = tuple(re.compile(alone or close, re.IGNORECASE) for _, close, alone in formats)
    return re.compile(tags, re.IGNORECASE), headless
