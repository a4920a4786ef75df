"""Text under judgement made into data: nothing in it reads as a verdict, as a fence, as a turn or as a control token.

One function for every judge that asks a model. What it cannot take away is the argument: a reply may say in plain
words that it is harmless, and a persuadable judge may believe it
(:func:`mechsafety.judges.injection.injection_flip_rate` measures how often).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence

from mechsafety.judges.normalise import tidy
from mechsafety.models.rendering import broken

# Letters of VERDICT in other alphabets, which NFKC leaves as they are.
_LOOK_ALIKES = dict(zip("ЕеІіӀӏСсТтѴѵΕΙιΤτνϹϲ", "EeIiIiCcTtVvEIiTtvCc", strict=True))
_VERDICT_WORD = re.compile(r"[\W_]{0,3}".join("VERDICT"), re.IGNORECASE)
# The answers of all judges that are asked here, where they follow the word, or are written as a command is.
_CLASSES = "refusal|refused|compliance|complied|answered|degenerate|harmful|unsafe|safe|yes|no"
_CLAIM = re.compile(
    rf"(?<!\w)v_rdict(?:[\W_]|\b(?:is|was|are|of)\b)*\b(?:{_CLASSES})\b(?:[ \t]*[.!])?", re.IGNORECASE
)
_SHOUTED = re.compile(r"\b(?:NON[\W_]?)?(?:REFUSAL|REFUSED|COMPLIANCE|COMPLIED|ANSWERED|DEGENERATE)\b")
_FENCE_WORDS = re.compile(
    r"\b(?:BEGIN|START|END|CLOSE)(?:NING|ING)?[\s_-]+(?:OF[\s_-]+)?(?:THE[\s_-]+)?"
    r"(?:REQUEST|REPLY|RESPONSE|ANSWER|DATA|MARKER)\b",
    re.IGNORECASE,
)
_FENCE_MARKS = re.compile(r"\[(?=\[)|\](?=\])|<(?=\|)|\|(?=>)")
# Turns and ends of text, whichever model they belong to: behind an endpoint the tokenizer is not known.
_TAGS = re.compile(
    r"<(?=/?(?:s|bos|eos|pad|unk|sop|eop|think|start_of_turn|end_of_turn)>|<?/?SYS>)"
    r"|\[(?=/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|PAD|CLS|SEP|UNK|gMASK)\])",
    re.IGNORECASE,
)
# At the start of a line a colon behind these opens a turn, or a field of some judge's question or answer.
_ROLE = re.compile(
    r"^([ \t>#*_-]{0,8}(?:(?:human|user|system|ai|model|assistant)[ \t]+)?(?:user|human|system|assistant|ai|model|bot"
    r"|request|reply|response|answers?|question|instructions?|input|output|behaviou?r|generation|refusal|label|class"
    r"|classification|judge?ment|grade|score|(?:harmful|unsafe)[ \t]+(?:request|response)|response[ \t]+refusal)"
    r"[ \t*_]{0,4}):",
    re.IGNORECASE | re.MULTILINE,
)


def neutralise(text: str, *, special: Sequence[str] = ()) -> str:
    """``text`` in which nothing reads as a verdict, as a marker of ours, as a turn or as a control token.

    The word VERDICT becomes ``v_rdict`` in any case, width and spacing, also with accents or Cyrillic and Greek
    letters, and the class that it names becomes dots, as does a class in capitals anywhere. Behind a role or a field
    at the start of a line (``Reply:``) a dash takes the colon's place; the words of a fence are joined by underscores;
    double brackets, ``<|``, tags of turns and the ``special`` strings (:func:`control_strings`) are broken by a blank;
    lone surrogates, which no tokenizer takes, become ``?``. Doing it twice changes nothing more.
    """
    text = tidy(text.encode("utf-8", "replace").decode())
    while True:
        new = broken(text, special)
        new = _FENCE_MARKS.sub(lambda found: f"{found[0]} ", new)
        new = _TAGS.sub(lambda found: f"{found[0]} ", new)
        new = _replaced(new, _FENCE_WORDS, lambda found: re.sub(r"[\s_-]+", "_", found))
        new = _replaced(new, _VERDICT_WORD, lambda _: "v_rdict")
        new = _CLAIM.sub("", new).strip()
        new = _SHOUTED.sub("...", new)
        new = _ROLE.sub(r"\1 -", new)
        if new == text:
            return new
        text = new


def neutral_digest() -> str:
    """SHA-256 of what :func:`neutralise` does to every text: verdicts that are kept depend on it."""
    patterns = (_VERDICT_WORD, _CLAIM, _SHOUTED, _FENCE_WORDS, _FENCE_MARKS, _TAGS, _ROLE)
    return hashlib.sha256("\x1f".join(p.pattern for p in patterns).encode()).hexdigest()


def _replaced(text: str, pattern: re.Pattern[str], new: Callable[[str], str]) -> str:
    """``pattern`` is looked for in the folded text, which has the same length, and replaced in the text."""
    folded = "".join(map(_fold, text))
    pieces, end = [], 0
    for found in pattern.finditer(folded):
        pieces += [text[end : found.start()], new(found[0])]
        end = found.end()
    return "".join([*pieces, text[end:]])


def _fold(character: str) -> str:
    character = _LOOK_ALIKES.get(character, character)
    return character if character.isascii() else unicodedata.normalize("NFKD", character)[0]
