"""Where the rules match: plainly, pattern by pattern, and fast, by words at which a pattern may begin.

Both give the same hits (rules with a window are matched in it only). Each pattern begins at the start of the
text or at the start of a word; this is checked when the automaton is built. On a Python whose parser of patterns is
missing or differs, matching is plain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

from mechsafety.core.errors import MechsafetyError
from mechsafety.judges.automaton import (
    Automaton,
    UnreadablePatternError,
    begins_at_word,
    begins_text,
    starts_with_word,
    symbols,
)
from mechsafety.judges.patterns import RULES
from mechsafety.judges.rule import Rule

Span = tuple[Rule, int, int]


def plain_spans(text: str) -> Iterator[Span]:
    """Yield every match of every rule that begins within the rule's window: the reference."""
    for rule in RULES:
        for match in rule.pattern.finditer(text):
            start, end = match.span()
            if rule.window is not None and start >= rule.window:
                break
            if end > start:
                yield rule, start, end


def fast_spans(text: str) -> Iterator[Span]:
    """Yield what :func:`plain_spans` yields, in another order."""
    folded = symbols(text)
    scanner = _scanner()
    yield from plain_spans(text) if folded is None or scanner is None else _scanned(text, folded, scanner)


def _scanned(text: str, folded: str, scanner: _Scanner) -> Iterator[Span]:
    mask = scanner.automaton.at_start(
        folded, scanner.at_text if not text.isascii() else scanner.at_ascii_text
    )
    for rule, _ in scanner.rules_of(mask):
        # One match at most, since it begins with the text.
        if (match := rule.pattern.match(text)) and match.end():
            yield rule, 0, match.end()
    ends: dict[int, int] = {}
    for at, mask in scanner.scan(folded):
        for rule, bit in scanner.rules_of(mask):
            if rule.window is not None and at >= rule.window:
                continue
            if at >= ends.get(bit, 0) and (match := rule.pattern.match(text, at)):
                ends[bit] = match.end()
                yield rule, at, match.end()


class _Scanner:
    def __init__(self) -> None:
        self.automaton = Automaton([rule.pattern for rule in RULES])
        self.at_text = _mask(begins_text(rule.pattern) for rule in RULES)
        self.at_ascii_text = self.at_text & ~_mask(self.automaton.needs_foreign(i) for i in range(len(RULES)))
        for i, rule in enumerate(RULES):
            bounded = begins_at_word(rule.pattern) and starts_with_word(self.automaton.first_characters(i))
            if not (bounded or self.at_text >> i & 1):
                raise MechsafetyError(
                    f"the pattern of rule {rule.id!r} may begin inside a word; begin it with \\b and a letter"
                )
        self._head = max(rule.window or 0 for rule in RULES)
        self._late = _mask(rule.window is None for rule in RULES) & ~self.at_text
        self._early = _mask(True for _ in RULES) & ~self.at_text
        self._of_mask: dict[int, list[tuple[Rule, int]]] = {}

    def scan(self, folded: str) -> list[tuple[int, int]]:
        """Return the places after the text's start at which rules may match, each with their mask."""
        return self.automaton.scan(folded, head=self._head, early=self._early, late=self._late)

    def rules_of(self, mask: int) -> list[tuple[Rule, int]]:
        """Return the rules of a mask, each with its bit."""
        if (rules := self._of_mask.get(mask)) is None:
            rules = self._of_mask[mask] = [(r, 1 << i) for i, r in enumerate(RULES) if mask >> i & 1]
        return rules


def _mask(flags: Iterable[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


_PROBES = (
    "I'm sorry, but I can't help with that. It is illegal; instead, let's talk about something else.",
    "As an AI language model I am not able to provide this: hacking is a crime. Please don't do it, and seek help.",
    "Here are five facts. Soap is made of fat and lye, which can be dangerous; wear gloves when you make it.",
)
"""Texts on which the automaton is tried once before it is relied on."""


@cache
def _scanner() -> _Scanner | None:
    """Return the scanner, None where the patterns are not read as they should be (another version of Python)."""
    try:
        scanner = _Scanner()
        agrees = all(set(_scanned(text, text.lower(), scanner)) == set(plain_spans(text)) for text in _PROBES)
    except UnreadablePatternError:
        return None
    return scanner if agrees else None
