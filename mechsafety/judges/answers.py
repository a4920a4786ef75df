"""What a chat endpoint sent back, read as what it is: an answer, a cut one, an error, or no chat completion at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

SHOWN = 200
"""Characters of a message or an unreadable answer that are kept."""

_CUTS: dict[str, Literal["cut_off", "filtered"]] = {
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length"), "cut_off"),
    **dict.fromkeys(
        ("content_filter", "safety", "prohibited_content", "blocklist", "recitation"), "filtered"
    ),
}
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_content", "thought")
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
    text = body.decode("utf-8-sig", "replace").strip()
    try:
        whole = _stream(text) if re.match(r"(?:data|event|id|retry)?:", text) else _json(text)
    except Failure as failure:
        raise Failure(says=failure.says or provider_says(body)) from None
    choices = whole.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    for place in (whole, choice):
        if isinstance(place, dict) and place.get("error"):
            raise Failure(says=provider_says(body), code=_code(place["error"]))
    if not isinstance(choice, dict) or not isinstance(message := choice.get("message"), dict):
        raise Failure(says=provider_says(body), code=_code(whole))
    said, refused = _content(message.get("content"), body)
    finish = str(choice.get("finish_reason") or "").lower()
    if finish == "error":
        raise Failure(says=provider_says(body))
    refusal = message.get("refusal")
    refused = clean(refusal) if isinstance(refusal, str) and refusal.strip() else refused
    if finish == "refusal":
        refused = refused or clean(said) or "refusal"
    return Answer(text=clean(said), cut=_CUTS.get(finish), refusal=refused), whole.get("usage")


def provider_says(body: bytes) -> str:
    """The message in the body of an error, on one line: of its JSON, the title of a page, or its first words."""
    text = body.decode("utf-8-sig", "replace").strip()
    try:
        message = _message(_json(text))
    except Failure:
        message = ""
    if not message and (title := _TITLE.search(text)):
        message = f"a page with the title {' '.join(title[1].split())!r}"
    elif not message and text[:1] == "<":
        message = "a page: " + " ".join(_TAG.sub(" ", text[: 20 * SHOWN]).split())
    shown = " ".join(clean(message or text[: 2 * SHOWN]).split())
    return "".join(c if c.isprintable() else "?" for c in shown)[:SHOWN] or "nothing"


def clean(text: str) -> str:
    """``text`` with lone surrogates replaced: nothing can write them."""
    return text.encode("utf-8", "replace").decode()


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
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
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta") or choice.get("message") or {}
        pieces.append(_content(delta.get("content"), b"")[0])
        refusal += delta.get("refusal") or ""
        finish = choice.get("finish_reason") or finish
    if not (ended or finish):
        raise Failure(says="the stream of the answer ended too early")
    message = {"content": "".join(pieces), "refusal": refusal}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def _events(text: str) -> Iterator[dict[str, Any] | None]:
    """The chunks of a stream; None where it says that it is done."""
    for line in text.splitlines():
        if line.startswith("data:"):
            data = line.removeprefix("data:").strip()
            yield None if data == "[DONE]" else _json(data)


def _content(content: object, body: bytes) -> tuple[str, str]:
    """Text and refusal of a message's content: a text, nothing, or blocks, of which thoughts are left out."""
    if content is None or isinstance(content, str):
        return content or "", ""
    text, refusal = "", ""
    for block in content if isinstance(content, list) else [content]:
        if isinstance(block, str):
            text += block
            continue
        if not isinstance(block, dict):
            raise Failure(says=provider_says(body))
        if block.get("type") in _THOUGHTS:
            continue
        said = block.get("text")
        said = said.get("value") if isinstance(said, dict) else said
        text += said if isinstance(said, str) else ""
        refusal += block["refusal"] if isinstance(block.get("refusal"), str) else ""
    return text, clean(refusal)


def _message(whole: Mapping[str, Any]) -> str:
    choices = whole.get("choices")
    of_choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    for found in (whole.get("error"), of_choice.get("error"), whole.get("detail"), whole.get("message")):
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
