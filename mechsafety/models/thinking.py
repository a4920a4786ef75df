"""How a model is kept from thinking before it answers: by its template's own switch, or by text that ends a thought.

What is known of models is a table of formats and switches (:mod:`mechsafety.models.thoughts`); which of them a model
has is found in its template and vocabulary, and every switch is tried out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mechsafety.models import rendering
from mechsafety.models.thoughts import FORMATS, SWITCHES, Format, Switch

_ASKED = "Sandstone"


@dataclass(frozen=True, kw_only=True)
class ThinkingOff:
    """``arguments`` of the template that switch thinking off, the answer ``prefix`` that ends a thought (empty where
    none is needed), and ``how`` it is done, for the record.

    ``certain`` is false where it could not be switched off: thoughts may come, and answers are what stands after them.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    how: str
    certain: bool = True


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a model writes before a thought and before the answer that follows it; ``empty`` is a thought of nothing."""

    open: str
    close: str
    empty: str


def thinking_off(tokenizer: Any, *, day: str) -> ThinkingOff:
    """How thinking is switched off in the tokenizer's chat template, as on ``day``.

    By the template's own switch; else by a prefix that ends the thought that the template opens, or that is an empty
    thought where the template knows of thoughts. Marks of thoughts that the vocabulary alone has do not tell: models
    that never think share it with those that do.
    """
    template = str(tokenizer.chat_template or "")
    for switch in SWITCHES:
        for value in switch.off:
            if _switches(tokenizer, template, switch, value, day):
                return ThinkingOff(arguments={switch.name: value}, how=f"{switch.name}={json.dumps(value)}")
    begins = answer_beginning(tokenizer, day=day)
    known = [mark for mark in thought_marks(tokenizer) if _mentioned(mark, template)]
    if begins is not None and known:
        if ends_in_answer(begins, known):
            return ThinkingOff(how="the template writes an ended thought")
        prefix = _ending(begins, known)
        return ThinkingOff(prefix=prefix, how=f"answer prefix {prefix!r}")
    if begins is not None and (marks := thought_marks(tokenizer)):
        return ThinkingOff(
            certain=False,
            how=f"the chat template knows of no thoughts; the vocabulary has {marks[0].open!r}: should thoughts come, "
            "answers are what stands after them",
        )
    return ThinkingOff(how="does not think")


# -- what template and vocabulary know of thoughts ----------------------------------------------------


def thought_marks(tokenizer: Any) -> tuple[Mark, ...]:
    """The marks of thoughts that stand in the chat template, then those that are tokens of the vocabulary."""
    template = str(tokenizer.chat_template or "")
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values()}
    marks = [mark for each in FORMATS for mark in _marks(each)]
    in_template = [mark for mark in marks if _mentioned(mark, template)]
    return tuple(in_template + [mark for mark in marks if mark not in in_template and mark.open in tokens])


def _marks(known: Format) -> Iterator[Mark]:
    for opens, closes in known.marks:
        yield Mark(open=opens, close=closes, empty=known.empty or f"{opens}\n\n{closes}\n\n")


def _mentioned(mark: Mark, template: str) -> bool:
    return mark.open in template or mark.close in template


# -- where the answer begins --------------------------------------------------------------------------


def answer_beginning(tokenizer: Any, *, day: str, arguments: Mapping[str, Any] | None = None) -> str | None:
    """What the template writes after the user's text, up to the answer; None where it fails."""
    whole = _rendered(tokenizer, day, arguments or {})
    return None if whole is None else whole.rpartition(_ASKED)[2]


def opened(text: str, marks: list[Mark] | tuple[Mark, ...]) -> Mark | None:
    """The mark whose thought is open at the end of ``text``; None where none is."""
    for mark in marks:
        if mark.open in text.rpartition(mark.close)[2]:
            return mark
    return None


def ends_in_answer(text: str, marks: list[Mark] | tuple[Mark, ...]) -> bool:
    """Whether ``text`` ends with an ended thought, so that an answer follows."""
    return any(text.rstrip().endswith(mark.close) for mark in marks)


def _ending(begins: str, marks: list[Mark]) -> str:
    """What ends the thought that is open at the end of ``begins``; an empty thought where none is."""
    mark = opened(begins, marks)
    if mark is None:
        return marks[0].empty
    written = mark.open + begins.rpartition(mark.open)[2]
    return mark.empty[len(written) :] if mark.empty.startswith(written) else f"{mark.close}\n\n"


# -- switches -----------------------------------------------------------------------------------------


def _switches(tokenizer: Any, template: str, switch: Switch, value: Any, day: str) -> bool:
    """Whether the template has ``switch``, and ``value`` turns thinking off: tried out."""
    if not re.search(rf"\b{switch.name}\b", template):
        return False
    off, on = (_rendered(tokenizer, day, {switch.name: v}) for v in (value, switch.on))
    if off is None or off == on:
        return False
    begins, marks = off.rpartition(_ASKED)[2], thought_marks(tokenizer)
    if opened(begins, marks) is not None:
        return False
    return isinstance(value, bool) or ends_in_answer(begins, marks) or _quoted(value, template)


def _quoted(value: Any, template: str) -> bool:
    return isinstance(value, str) and re.search(rf"""(['"]){re.escape(value)}\1""", template) is not None


def _rendered(tokenizer: Any, day: str, arguments: Mapping[str, Any]) -> str | None:
    """One user turn, ready for the answer; None where the template fails: it may refuse a value, or such a chat."""
    from mechsafety.models.chat_settings import TemplateInput

    turn = ({"role": "user", "content": _ASKED},)
    try:
        return rendering.rendered(tokenizer, turn, day=day, given=TemplateInput(arguments=arguments))
    except Exception:  # templates raise errors of their own making
        return None
