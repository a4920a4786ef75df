"""How much room text takes, and how it is broken or cut to fit.

Widths are those of DejaVu Sans, the widest of the fonts that figures ask for, so that what fits in it fits in all.
"""

from __future__ import annotations

import re

_EM = {
    0.28: "ijlI|'",
    0.33: " .,:;!/\\ft()[]·",
    0.42: 'r-"{}',
    0.53: "szcJ?*",
    0.99: "mMW@%…→",
    0.84: "w+=<>~",
    0.72: "ABCDEFGHKNOPQRSTUVXYZ&",
}
_WIDTHS = {letter: width for width, letters in _EM.items() for letter in letters}
_MARKUP = re.compile(r"</?(?:b|i|sub|sup|span|br)\b[^>]*>")
LINE = 1.3
"""Height of a line over the size of its letters."""


def text_width(text: str, size: int | float) -> float:
    """Pixels that the widest line of ``text`` takes."""
    lines = (_MARKUP.sub("", line) for line in text.split("<br>"))
    return float(size) * max(sum(_WIDTHS.get(letter, 0.64) for letter in line) for line in lines)


def text_height(text: str, size: int | float) -> float:
    return LINE * float(size) * (text.count("<br>") + 1)


def fitted(text: str, room: int | float, size: int | float) -> str:
    """``text`` over as many lines as it takes in so much room; lines that it has stay apart.

    A word that is wider than the room is broken where it must be, after a sign that separates where there is one.
    """
    if text_width(text, size) <= room:
        return text
    return "<br>".join(piece for line in text.split("<br>") for piece in _balanced(line, room, size))


def _balanced(line: str, room: int | float, size: int | float) -> list[str]:
    """The line over as few lines as it takes, of about one length: no last word stands alone."""
    found = _broken(line, room, size)
    for share in (0.9, 0.8, 0.7, 0.6) if len(found) > 1 else ():
        narrower = _broken(line, room * share, size)
        if len(narrower) != len(found) or " ".join(narrower) != " ".join(found):
            break
        found = narrower
    return found


def _broken(line: str, room: int | float, size: int | float) -> list[str]:
    found = [""]
    for word in line.split():
        for piece in _pieces(word, room, size):
            whole = f"{found[-1]} {piece}".strip()
            if found[-1] and text_width(whole, size) > room:
                found.append(piece)
            else:
                found[-1] = whole
    return found


def _pieces(word: str, room: int | float, size: int | float) -> list[str]:
    found = []
    while text_width(word, size) > room:
        most = max(
            1, next((n for n in range(1, len(word)) if text_width(word[:n], size) > room), len(word)) - 1
        )
        signs = [n for n in range(most // 2, most) if word[n] in "+@/_-."]
        cut = signs[-1] + 1 if signs else most
        found.append(word[:cut])
        word = word[cut:]
    return [*found, word]


def cut(text: str, room: int | float, size: int | float) -> str:
    """``text`` in one line, with its middle left out where it is wider than the room."""
    text = text.replace("<br>", " ")
    kept = len(text)
    while kept > 3 and text_width(shortened(text, kept), size) > room:
        kept -= 1
    return shortened(text, kept)


def shortened(text: str, most: int) -> str:
    """At most so many letters of a text, of both ends."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :] if tail else ''}"
