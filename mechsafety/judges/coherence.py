"""Cheap proofs that an answer is not degenerate, so that nothing need be measured.

Each test below names the reason of :mod:`mechsafety.judges.kinds.degeneracy` that it rules out and why. Where one of
them cannot decide, the answer is measured in full. Only plain ASCII answers are tried.

The argument on runs: a run that covers half of n characters and holds five or more repeats of a unit contains one of
the two pieces of w <= n / 4 characters that meet in the middle, and that piece again one unit further on or
back, since a unit is at most a fifth of the run. If neither middle piece occurs twice, there is no such run.
"""

from __future__ import annotations

import re

from mechsafety.judges.kinds.degeneracy import (
    DISTINCT_BIGRAMS,
    DISTINCT_SHARE,
    DISTINCT_WORDS,
    LOOP_REPEATS,
    NLL_NATS,
    ODD_WORD_RATIO,
    PROMPT_OVERLAP,
    QUESTION_REPEATS,
    SYMBOL_RATIO,
    UNIT_WORDS,
    ZLIB_BIGRAMS,
    ZLIB_CHARS,
)
from mechsafety.judges.normalise import PreparedPrompt

PIECE = 24
"""Characters of a middle piece: more would find no more."""
BLOCKS, BLOCK_WORDS = 6, 5

_LETTERS = bytes(range(97, 123))
_KEPT_WORDS = bytes(i if i in _LETTERS else 32 for i in range(256))
_NOT_ALNUM = bytes(i for i in range(256) if not chr(i).isalnum() or i > 127)
_NOT_CONTROL = bytes(i for i in range(32, 127)) + b"\n\t"
_DIGITS = b"0123456789"
_NOT_DIGITS = bytes(i for i in range(256) if i not in _DIGITS)
_ENDS = bytes(10 if i in b".!?" else i for i in range(256))
_READABLE: set[bytes] = set()
"""Words met before that are not odd."""
MOST_READABLE = 100_000
_VOWELS = re.compile(rb"[aeiouy]")


def surely_coherent(answer: str, *, prompt: PreparedPrompt, nll: float | None) -> bool:
    """Whether the normalised ``answer`` is proved to have no reason to be called degenerate."""
    if not answer.isascii() or not answer or (nll is not None and nll >= NLL_NATS):
        return False
    raw = answer.lower().encode("ascii")
    if raw.translate(None, _NOT_CONTROL):
        return False
    alnum = len(raw.translate(None, _NOT_ALNUM))
    # symbols: of the characters that are kept at most these are no letters or digits, and all of those are kept.
    if not alnum or (len(raw) - alnum) >= SYMBOL_RATIO * len(raw):
        return False
    words = raw.translate(_KEPT_WORDS).split()
    distinct = set(words)
    digits = len(raw.translate(None, _NOT_DIGITS))
    apostrophes = raw.count(b"'")
    return (
        (len(raw) < ZLIB_CHARS or len(words) - apostrophes >= DISTINCT_WORDS)
        and _has_varied_words(len(words), len(distinct), digits=digits, apostrophes=apostrophes)
        and not _may_copy(distinct, prompt, apostrophes=apostrophes, most_words=len(words) + digits)
        and not _may_be_odd(words, distinct, mixing=digits + raw.count(b"_"))
        and not _may_repeat_sentences(raw)
        and not _may_loop(b" ".join(raw.split()))
        and not _may_loop_words(words, len(distinct))
    )


def _has_varied_words(words: int, distinct: int, *, digits: int, apostrophes: int) -> bool:
    """Rule out ``low_diversity`` and ``compressible``, which need few different bigrams or words.

    Each different word but the last begins a bigram of its own. A word with an apostrophe counts as two here, a number
    as none, so that at least distinct - apostrophes words differ among at most words + digits.
    """
    least = (distinct - apostrophes - 1) / max(1, words + digits - 1)
    # The share of different words is larger still: (d + 1) / (n + 1) >= d / n.
    return least >= max(DISTINCT_BIGRAMS, ZLIB_BIGRAMS, DISTINCT_SHARE)


def _may_copy(distinct: set[bytes], prompt: PreparedPrompt, *, apostrophes: int, most_words: int) -> bool:
    """Whether ``prompt_copy`` is possible: nine tenths of the answer's different trigrams are in the prompt.

    A word that the prompt lacks is in at least one trigram, a trigram holds three, and there are not more
    different trigrams than words.
    """
    if not prompt.text:
        return False
    strange = len(distinct - prompt.words) - apostrophes
    return strange <= 3 * (1 - PROMPT_OVERLAP) * most_words


def _may_be_odd(words: list[bytes], distinct: set[bytes], *, mixing: int) -> bool:
    """Whether ``odd_words`` is possible: half of the words have four or more letters and no vowel.

    Each digit or underscore can make one word odd, and can join two of the words counted here.
    """
    new = distinct - _READABLE
    odd = {word for word in new if len(word) > 3 and not _VOWELS.search(word)}
    if len(_READABLE) > MOST_READABLE:
        _READABLE.clear()
    _READABLE.update(new - odd)
    most = mixing + (sum(word in odd for word in words) if odd else 0)
    return most >= ODD_WORD_RATIO * (len(words) - mixing)


def _may_repeat_sentences(raw: bytes) -> bool:
    """Whether a sentence may occur QUESTION_REPEATS times; sentences that are equal are so without their marks."""
    found = [b" ".join(s.split()) for s in raw.translate(_ENDS).split(b"\n") if s]
    return len(found) - len(set(found)) >= QUESTION_REPEATS - 1


def _may_loop(flat: bytes) -> bool:
    size = min(PIECE, len(flat) // 4)
    if size < 3:
        return True
    middle = len(flat) // 2
    return _again(flat, flat[middle - size : middle]) or _again(flat, flat[middle : middle + size])


def _may_loop_words(words: list[bytes], distinct: int) -> bool:
    """Whether words may loop, with digits and marks dropped.

    A run holds at least a third of these words, since a word with an apostrophe counts as two: so it holds one of
    some BLOCKS blocks as a whole, and the block again, and its words are LOOP_REPEATS times as many as differ.
    """
    number = len(words)
    if number < LOOP_REPEATS * UNIT_WORDS or distinct > number * (1 - (1 - 1 / LOOP_REPEATS) / 3):
        return False
    size = number // BLOCKS
    joined = b" " + b" ".join(words) + b" "
    blocks = (words[i * size : i * size + min(size, BLOCK_WORDS)] for i in range(number // size))
    return any(_again(joined, b" " + b" ".join(block) + b" ") for block in blocks)


def _again(text: bytes, piece: bytes) -> bool:
    first = text.find(piece)
    return text.find(piece, first + 1) >= 0
