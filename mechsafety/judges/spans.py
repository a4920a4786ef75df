"""Where the rules match: a set of RE2 says which rules may match a text at all, and :mod:`re` matches those.

RE2 knows no look-around and only ASCII words, so it is given patterns that accept more: look-around and ``\\b`` are
left out, and characters outside ASCII fit ``\\w``, ``\\s`` and ``\\d`` alike. What it rules out cannot match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import re2

from mechsafety.judges.patterns import RULES
from mechsafety.judges.rule import Rule

Span = tuple[Rule, int, int]

MEMORY = 1 << 28
"""Bytes that the states of RE2 may take before they are built anew."""

_CLASSES = {
    "w": r"\w\x{80}-\x{10FFFF}",
    "d": r"\d\x{80}-\x{10FFFF}",
    # Python's blanks include some control characters.
    "s": r"\s\x0b\x1c-\x1f\x{80}-\x{10FFFF}",
}
_FOLDS = str.maketrans({"\u0130": "i", "\u0131": "i", "\u017f": "s", "\u212a": "k"})
"""Letters that equal an ASCII letter where case is ignored, and not in RE2."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?<?[=!]|\(|\)|.", re.DOTALL)


def plain_spans(text: str, rules: Sequence[Rule] = RULES) -> Iterator[Span]:
    """Yield every match of every rule that begins within the rule's window: the reference."""
    for rule in rules:
        for match in rule.pattern.finditer(text):
            start, end = match.span()
            if rule.window is not None and start >= rule.window:
                break
            if end > start:
                yield rule, start, end


def fast_spans(text: str) -> Iterator[Span]:
    """Yield what :func:`plain_spans` yields, asking only the rules that may match."""
    yield from plain_spans(text, [RULES[i] for i in may_match(text)])


def may_match(text: str) -> Iterable[int]:
    """Return the indices of the rules that may match ``text``; no other matches."""
    if not text.isascii():
        text = _SURROGATE.sub("\ufffd", text.translate(_FOLDS))
    return sorted(_prefilter().Match(text) or ())


@cache
def _prefilter() -> re2.Set:
    options = re2.Options()
    options.max_mem = MEMORY
    options.case_sensitive = False
    options.log_errors = False
    found = re2.Set.SearchSet(options)
    for rule in RULES:
        found.Add(loosened(rule.pattern.pattern))
    found.Compile()
    return found


def loosened(pattern: str) -> str:
    """Return a pattern for RE2 that matches wherever ``pattern`` does."""
    out: list[str] = []
    depth = 0
    for token in _TOKEN.findall(pattern):
        if depth:
            depth += token.startswith("(") - (token == ")")
        elif token.startswith(("(?=", "(?!", "(?<=", "(?<!")):
            depth = 1
        elif token == r"\Z":
            out.append(r"\z")
        elif token[0] == "\\" and token[1:] in _CLASSES:
            out.append(f"[{_CLASSES[token[1:]]}]")
        elif token.startswith("["):
            out.append(_loose_class(token))
        elif token not in (r"\b", r"\B", "$"):
            out.append(token)
    return "".join(out)


def _loose_class(token: str) -> str:
    # A negated class leaves out less in RE2 than in Python.
    if token.startswith("[^"):
        return token
    return re.sub(r"\\([wsd])", lambda match: _CLASSES[match.group(1)], token)
