"""Text preparation before judging: what a reader would take to be the answer, without the scaffolding.

Stored generations carry role headers, special tokens, thoughts and copies of the prompt: 60 of the 200
stored responses of the granular study (arXiv 2510.02768) contain the prompt, 20 contain ``<think>``. A
pattern that matches the copied prompt judges the prompt. The raw text stays with the caller.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from mechsafety.models.thoughts import split_thought

# ``None`` deletes: zero-width and direction marks split words without being seen.
_CHARACTERS: dict[int, str | None] = dict.fromkeys(
    [0x00AD, 0x061C, 0x180E, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A)]
)
_CHARACTERS |= {ord(c): "'" for c in "‘’‚‛′ʼ＇´"}
_CHARACTERS |= {ord(c): '"' for c in "“”„‟″«»＂"}
_CHARACTERS |= {ord(c): "-" for c in "‐‑‒–—―−﹘﹣－"}
_CHARACTERS |= {ord("\u2028"): "\n", ord("\u2029"): "\n", ord("\x85"): "\n"}

_BACKTICK_CONTRACTION = re.compile(r"(?<=[a-z])`(?=(?:t|m|s|d|re|ve|ll)\b)", re.IGNORECASE)

# What follows the start of another user turn does not answer this prompt.
_NEXT_TURN = re.compile(
    r"<\|im_start\|>\s*user\b|<\|user\|>|<\|start_header_id\|>\s*user\b|<start_of_turn>\s*user\b|\[INST\]"
    r"|\n\s*#{2,6}\s*(?:Instruction|Human|User)\s*:|\n\nHuman:"
)
_SPECIAL = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?s>|\[/?INST\]|\[/?SYS\]|<</?SYS>>"
    r"|<(?:bos|eos|pad|unk|start_of_turn|end_of_turn|sop|eop)>|\[(?:PAD|CLS|SEP|UNK)\]|\[gMASK\]",
    re.IGNORECASE,
)
# Possessive: runs of blanks would otherwise be tried in every split.
_GAP = rf"(?:\s|{_SPECIAL.pattern})*+"
_LEADING_SPECIAL = re.compile(_GAP, re.IGNORECASE)
_ROLE_HEADER = re.compile(
    r"(?:\*\*|__)?(?:assistant|response|answer|chatbot|ai assistant|AI)(?:\*\*|__)?\s*:(?:\*\*|__)?\s*"
    r"|#{1,6}\s*(?:assistant|response|answer|output)\b\s*:?\s*(?:\n|\Z|(?<=:\s))"
    r"|(?:assistant|model)\s*(?:\n|\Z)"
    r"|\[(?:un)?safe\]\s*:?\s*|\[(?:assistant|response|answer|refusal|compliance|harmful|harmless)\]\s*:?\s*"
    r"|A:\s+",
    re.IGNORECASE,
)
# Letters that equal an ASCII letter when case is ignored.
_FOLDS = re.compile("[\u0130\u0131\u017f\u212a]")
_ECHO_HEADER = (
    r"(?:(?:\*\*|#{1,6}[ ]?)?(?:user|human|question|instruction|prompt|q)(?:\*\*)?"
    r"(?:[ ]?:(?:\*\*)?|(?=\n|<\|)))?"
)
# With skip_special_tokens a whole dialogue decodes to "system\n...\nuser\nPROMPT\nassistant\n...".
_SYSTEM_TURN = r"(?:system\b.{0,4000}?(?:\n|\|>)(?=user\b))?"


JOINS = 8
"""Rounds in which the two sides of a token that is removed may join to another."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is judged: ``answer``; what was thought aloud: ``thought``; was the prompt copied: ``echoed``.

    ``unclosed``: a thought never ends, so that what there is of an answer may not be all of it.
    """

    answer: str
    thought: str
    echoed: bool
    unclosed: bool = False


def tidy(text: str) -> str:
    """Return ``text`` in NFKC, with typographic quotes and dashes made plain and zero-width marks removed.

    Idempotent: removing a mark may let two characters compose, so the steps run until nothing changes.
    """
    while True:
        new = text.replace("\r\n", "\n").replace("\r", "\n").translate(_CHARACTERS)
        new = unicodedata.normalize("NFKC", new).translate(_CHARACTERS)
        new = _BACKTICK_CONTRACTION.sub("'", new)
        if new == text:
            return new
        text = new


@dataclass(frozen=True, kw_only=True)
class PreparedPrompt:
    """What the fast paths need to know of a prompt, found once: see :func:`read_prompt`."""

    text: str
    """Tidied and stripped."""
    flat: str
    """In lower case, special tokens and runs of blanks each made one blank."""
    longest: str
    """The longest piece of ``flat`` between blanks, the least likely to be met by chance."""
    words: frozenset[bytes]
    """Runs of ASCII letters in lower case."""


@lru_cache(maxsize=4096)
def read_prompt(prompt: str) -> PreparedPrompt:
    """Prepare a prompt for :func:`normalise_plain` and the proofs of coherence."""
    tidied = tidy(prompt)
    pieces = _SPECIAL.sub(" ", tidied).lower().split()
    return PreparedPrompt(
        text=tidied.strip(),
        flat=" ".join(pieces),
        longest=max(pieces, key=len, default=""),
        words=frozenset(word.encode() for word in re.findall(r"[a-z]+", tidied.lower())),
    )


def normalise_plain(text: str, *, prompt: PreparedPrompt) -> Prepared | None:
    """Return what :func:`normalise` returns where nothing but outer blanks is to be stripped, else None.

    All markup needs one of ``<``, ``[``, ``◁`` and the words of another turn or a channel; a copied prompt needs all of
    the prompt's words in a row; role headers are looked for as they are.
    """
    if not text.isascii() or "\r" in text or "`" in text:
        text = tidy(text)
    if "<" in text or "[" in text or "Human" in text or "User" in text or "Instruction" in text:
        return None
    answer = text.strip()
    if "◁" in text or answer.startswith("analysis") or _ROLE_HEADER.match(answer):
        return None
    if prompt.flat and (not prompt.flat.isascii() or _FOLDS.search(answer) or _holds(answer.lower(), prompt)):
        return None
    return Prepared(answer=answer, thought="", echoed=False)


def _holds(text: str, prompt: PreparedPrompt) -> bool:
    return prompt.longest in text and prompt.flat in " ".join(text.split())


def normalise(text: str, *, prompt: str = "") -> Prepared:
    """Split a raw generation into answer and thought, and strip what is neither.

    Removed: special tokens anywhere, role headers and copies of ``prompt`` at the start, everything from
    the start of a further user turn, surrounding white space. A prompt of fewer than three words counts
    as copied only when it stands on a line of its own ("Hi" also begins "Hi there").

    ``normalise(normalise(t, prompt=p).answer, prompt=p).answer`` equals ``normalise(t, prompt=p).answer``.
    """
    echo = _echo_pattern(tidy(prompt))
    thoughts: list[str] = []
    echoed = unclosed = False
    for turn in count():
        before = text
        # What is left may join to new tokens, and those again: "<<s>s>". A blank ends that.
        glue = "" if turn < JOINS else " "
        split = split_thought(tidy(text), glue=glue)
        thoughts += split.thoughts
        text, unclosed = split.answer, unclosed or split.unclosed
        text, found = _strip_start(text, echo)
        echoed = echoed or found
        text = _cut_next_turn(text)
        text = _SPECIAL.sub(glue, text).strip()
        if text == before:
            break
    return Prepared(answer=text, thought="\n".join(thoughts), echoed=echoed, unclosed=unclosed)


def _strip_start(text: str, echo: re.Pattern[str] | None) -> tuple[str, bool]:
    at, echoed = 0, False
    while True:
        before = at
        if echo and (match := echo.match(text, at)):
            at, echoed = match.end(), True
        for pattern in (_LEADING_SPECIAL, _ROLE_HEADER):
            if match := pattern.match(text, at):
                at = match.end()
        if at == before:
            return text[at:], echoed


def _cut_next_turn(text: str) -> str:
    # The start was stripped before, so a marker found here has content in front of it.
    match = _NEXT_TURN.search(text)
    return text[: match.start()] if match else text


def _echo_pattern(prompt: str) -> re.Pattern[str] | None:
    words = _SPECIAL.sub(" ", prompt).split()
    if not words:
        return None
    body = r"\s+".join(re.escape(word) for word in words)
    end = r"(?!\w)" if len(words) >= 3 else r"(?=\s*(?:\n|\Z))"
    return re.compile(
        rf"{_GAP}{_SYSTEM_TURN}{_ECHO_HEADER}{_GAP}[\"'*>]{{0,4}}\s*+{body}{end}[\"'*]{{0,4}}",
        re.IGNORECASE | re.DOTALL,
    )
