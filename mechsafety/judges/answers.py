"""What a chat endpoint sent back, read as what it is: an answer, a cut one, an error, or no chat completion at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

SHOWN = 200
"""Characters of a message or an unreadable answer that are kept."""

_Cut = Literal["cut_off", "filtered"]
_ENDS: tuple[tuple[_Cut, re.Pattern[str]], ...] = (
    ("cut_off", re.compile(r"length|max|truncat|incomplete|exceed")),
    (
        "filtered",
        re.compile(r"filter|safety|prohibit|block|recitation|guardrail|sensitive|spii|moderat|polic"),
    ),
)
"""What is said of an answer that is not whole, in the many words of providers."""
_DIGITS = 16
_BROKEN = re.compile(r"error|malformed|abort|cancel|insufficient|time_?out")
_THOUGHTS = re.compile(r"think|thought|reason|summary")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The ``text`` of an answer without what the model thought; ``cut`` where it is not whole, ``refusal`` where the
    model declined to answer."""

    text: str
    cut: Literal["cut_off", "filtered"] | None = None
    refusal: str = ""


class Failure(Exception):
    """A body that holds no answer: what it ``says``, and the status or code it names, if any."""

    def __init__(self, *, says: str, code: str = "") -> None:
        super().__init__(says)
        self.says, self.code = says, code

    @property
    def status(self) -> int | None:
        """The HTTP status that the body itself names."""
        return int(self.code) if re.fullmatch("[45][0-9][0-9]", self.code) else None


def read_body(body: bytes) -> tuple[Answer, object]:
    """The answer in a body, and its ``usage``. Raises :class:`Failure` for anything but a chat completion.

    Server-sent events are put together; a stream that ends before it says so is a failure.
    """
    text = _decoded(body)
    try:
        whole = _stream(text) if re.match(r"(?:data|event|id|retry)?:", text) else _json(text)
        return _answer(whole), whole.get("usage")
    except Failure as failure:
        raise Failure(says=failure.says or provider_says(body), code=failure.code) from None


def provider_says(body: bytes) -> str:
    """The message in the body of an error, on one line: of its JSON, the title of a page, or its first words."""
    text = _decoded(body)
    try:
        message = _message(_json(text))
    except Failure:
        message = ""
    if not message and (title := _TITLE.search(text)):
        message = f"a page with the title {' '.join(title[1].split())!r}"
    elif not message and text[:1] == "<":
        message = "a page: " + " ".join(_TAG.sub(" ", text[: 20 * SHOWN]).split())
    return _shown(message or text[: 2 * SHOWN])


def _answer(whole: Mapping[str, Any]) -> Answer:
    choice = _first(whole.get("choices"))
    for place in (whole, choice):
        if place.get("error"):
            raise Failure(says=_shown(_message(whole)) if _message(whole) else "", code=_code(place["error"]))
    if not isinstance(message := choice.get("message"), dict):
        raise Failure(says="", code=_code(whole))
    said, refused = _content(message.get("content"))
    finish = str(choice.get("finish_reason") or "").lower()
    if _BROKEN.search(finish):
        raise Failure(says=f"an answer that ended with {_shown(finish)!r}")
    refusal = message.get("refusal")
    refused = clean(refusal) if isinstance(refusal, str) and refusal.strip() else refused
    if finish == "refusal":
        refused = refused or clean(said) or "refusal"
    cut: _Cut | None = next((kind for kind, pattern in _ENDS if pattern.search(finish)), None)
    return Answer(text=clean(said), cut=cut, refusal=refused)


def _shown(text: str) -> str:
    shown = " ".join(clean(text).split())
    return "".join(c if c.isprintable() else "?" for c in shown)[:SHOWN] or "nothing"


def clean(text: str) -> str:
    """``text`` with lone surrogates replaced: nothing can write them."""
    return text.encode("utf-8", "replace").decode()


def _decoded(body: bytes) -> str:
    return body.decode(json.detect_encoding(body), "replace").strip("\ufeff \t\r\n")


def _number(written: str) -> int | float:
    """A whole number; one of very many digits as a float, which no count is."""
    return int(written) if len(written) < _DIGITS else float(written)


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, strict=False, parse_int=_number)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        raise Failure(says="")
    return found


def _stream(text: str) -> dict[str, Any]:
    pieces: list[str] = []
    refusal, finish, usage, ended = "", None, None, False
    for chunk in _events(text):
        if chunk is None:
            ended = True
            break
        if chunk.get("error"):
            return chunk
        usage = chunk.get("usage") or usage
        choice = _first(chunk.get("choices"))
        delta = _mapping(choice.get("delta")) or _mapping(choice.get("message"))
        said, refused = _content(delta.get("content"))
        pieces.append(said)
        more = delta.get("refusal")
        refusal += refused + (more if isinstance(more, str) else "")
        finish = choice.get("finish_reason") or finish
    if not (ended or finish):
        raise Failure(says="the stream of the answer ended too early")
    message = {"content": "".join(pieces), "refusal": refusal}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def _events(text: str) -> Iterator[dict[str, Any] | None]:
    """The chunks of a stream; None where it says that it is done."""
    # Not by splitlines: separators that JSON may hold are no ends of lines here.
    for event in text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
        lines = event.split("\n")
        several = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
        for data in several if all(map(_is_whole, several)) else ["\n".join(several)]:
            yield None if data == "[DONE]" else _json(data)


def _is_whole(data: str) -> bool:
    """Whether a line of an event stands alone: some servers leave out the blank line between two."""
    return data == "[DONE]" or (data.startswith("{") and data.endswith("}"))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(values: object) -> dict[str, Any]:
    """The first of a list of mappings, by their ``index`` if they have one; an empty one where there is none."""
    if not isinstance(values, list) or not values:
        return {}
    return next((v for v in map(_mapping, values) if v.get("index") == 0), _mapping(values[0]))


def _content(content: object) -> tuple[str, str]:
    """Text and refusal of a message's content: a text, nothing, or blocks, of which thoughts are left out."""
    if content is None or isinstance(content, str):
        return content or "", ""
    text, refusal = "", ""
    for block in content if isinstance(content, list) else [content]:
        if isinstance(block, str):
            text += block
            continue
        if not isinstance(block, dict):
            raise Failure(says="")
        if _THOUGHTS.search(str(block.get("type"))) or block.get("thought") is True:
            continue
        said = block.get("text")
        said = said.get("value") if isinstance(said, dict) else said
        text += said if isinstance(said, str) else ""
        refusal += block["refusal"] if isinstance(block.get("refusal"), str) else ""
    return text, clean(refusal)


def _message(whole: Mapping[str, Any]) -> str:
    for found in (
        whole.get("error"),
        _first(whole.get("choices")).get("error"),
        whole.get("detail"),
        whole.get("message"),
    ):
        if isinstance(found, dict):
            found = found.get("message") or found.get("detail") or found.get("code")
        if found and isinstance(found, str | int):
            return str(found)
        if found:
            return json.dumps(found, ensure_ascii=True)
    return ""


def _code(error: object) -> str:
    """Code and type that an error names, as far as they are words or numbers."""
    if not isinstance(error, dict):
        return ""
    named = [error.get(name) for name in ("code", "status", "type")]
    number = next((str(n) for n in named if re.fullmatch("[45][0-9][0-9]", str(n))), None)
    return number or " ".join(n for n in named if isinstance(n, str))
