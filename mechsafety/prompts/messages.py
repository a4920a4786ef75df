"""Conversations as prompts: lists of messages, as files and tables have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mechsafety.core.errors import MechsafetyError, way

Turns = tuple[tuple[str, str], ...]
"""The messages of a conversation, (role, content) of each; the last is the user's."""
ROLES = ("system", "developer", "user", "assistant")
_KEYS = ("role", "content")
_TEXT_PARTS = ("text", "input_text", "output_text")


def read_turns(value: object, *, at: str) -> Turns:
    """A list of {role, content}, or JSON text of one, as turns; empty where there is none.

    Raises :class:`MechsafetyError`, which begins with ``at``, for anything else, and for a conversation that does not
    end with the user's turn.
    """
    if value is None or value != value or value in ("", [], ()):  # Parquet and data frames give None or NaN
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise MechsafetyError(f"{at}: the messages are not JSON ({error.msg})") from None
    if not isinstance(value, list | tuple):
        raise MechsafetyError(f"{at}: messages are a list of {{role, content}}, got {type(value).__name__}")
    if not value:
        return ()
    turns = tuple(_turn(one, at=f"{at}, message {number}") for number, one in enumerate(value, start=1))
    if turns[-1][0] != "user":
        begun = way("--answer-prefix TEXT", "load_model(..., chat={'answer_prefix': ...})")
        raise MechsafetyError(
            f"{at}: the messages end with the {turns[-1][0]}'s turn, not with the user's"
            + (f"; what answers begin with is given as {begun}" if turns[-1][0] == "assistant" else "")
        )
    if not turns[-1][1].strip():
        raise MechsafetyError(f"{at}: the user's last message is empty")
    return turns


def _turn(given: Any, *, at: str) -> tuple[str, str]:
    if isinstance(given, tuple) and len(given) == len(_KEYS):
        given = dict(zip(_KEYS, given, strict=True))
    if not isinstance(given, Mapping):
        raise MechsafetyError(
            f"{at}: an object with role and content is expected, got {type(given).__name__}"
        )
    if strange := [key for key, value in given.items() if key not in _KEYS and value is not None]:
        raise MechsafetyError(f"{at}: key {strange[0]!r} is not one of {', '.join(_KEYS)}")
    role, content = (given.get(key) for key in _KEYS)
    if role not in ROLES:
        raise MechsafetyError(f"{at}: role {role!r} is not one of {', '.join(ROLES)}")
    content = _content(content, at=at)
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise MechsafetyError(f"{at}: the content holds half a character (a lone surrogate)")
    return str(role), content


def _content(given: Any, *, at: str) -> str:
    """The text of a message, whose content may be a list of parts; templates write these without anything between."""
    if isinstance(given, list | tuple):
        return "".join(_part(one, at=at) for one in given)
    if not isinstance(given, str):
        raise MechsafetyError(
            f"{at}: the content is a {type(given).__name__}; a text, or a list of text parts, is needed"
        )
    return given


def _part(given: Any, *, at: str) -> str:
    """The text of one part; Parquet writes the keys of other parts too, as None."""
    if isinstance(given, str):
        return given
    kind = given.get("type", "text") if isinstance(given, Mapping) else type(given).__name__
    if kind not in _TEXT_PARTS:
        raise MechsafetyError(f"{at}: the content holds a part of type {kind!r}; text alone is read")
    text = given.get("text")
    if not isinstance(text, str):
        raise MechsafetyError(f"{at}: a text part without a text; {{'type': 'text', 'text': ...}} is needed")
    return text


def as_messages(turns: Turns) -> list[dict[str, str]]:
    """Turns as chat templates take them."""
    return [{"role": role, "content": content} for role, content in turns]


def turns_text(turns: Turns) -> str:
    """Turns as JSON text, for a column of a table; empty where there are none."""
    return json.dumps(as_messages(turns), ensure_ascii=False) if turns else ""
