"""Which patterns may match at a place: a cheap test that is never wrong when it rules a pattern out.

The patterns are read as one automaton over characters that accepts more than they do: assertions (``\\b``,
look-around) always hold, ``x{2,5}`` is ``xx`` and any number more, characters outside ASCII fit every set and every
letter outside ASCII. A pattern that matches at a place is therefore alive after any number of the characters there,
so a place where all are dead needs no regular expression. Only the dead ends are used; whatever is alive is
matched by :mod:`re` itself. Subsets of states are built when first met (Rabin and Scott 1959) and kept.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from mechsafety.core.errors import MechsafetyError


class UnreadablePatternError(MechsafetyError):
    """The patterns cannot be read as an automaton, by this Python or at all; :mod:`re` itself still matches them."""


WORD, OTHER = "\x80", "\x81"
"""Stand for all letters and for all other characters outside ASCII."""
DEPTH, PIECE = 12, 6
"""Characters after the first word that are followed before the regular expressions are asked, and how many at once."""
MOST_STATES, MOST_PIECES = 20_000, 400_000
"""So many are kept before all are built anew."""

_ASCII = [chr(i) for i in range(128)]
_SYMBOLS = frozenset([*_ASCII, WORD, OTHER])
_WORDLY = frozenset([c for c in _ASCII if c.isalnum() or c == "_"] + [WORD])
_NOT_WORDLY = _SYMBOLS - _WORDLY
_SPACED = bytes(i if chr(i) in _WORDLY else 32 for i in range(256))
_CATEGORIES = {
    "CATEGORY_WORD": _WORDLY,
    "CATEGORY_NOT_WORD": _NOT_WORDLY,
    "CATEGORY_DIGIT": frozenset("0123456789" + WORD),
    "CATEGORY_NOT_DIGIT": _SYMBOLS - frozenset("0123456789"),
    "CATEGORY_SPACE": frozenset([*(c for c in _ASCII if c.isspace()), OTHER]),
    "CATEGORY_NOT_SPACE": _SYMBOLS - frozenset(c for c in _ASCII if c.isspace()),
}
_FOLDED = re.compile("[\u0130\u0131\u017f\u212a]")
_FOREIGN = re.compile(r"[^\x00-\x7f]")


class StateSet:
    """A set of states of the automaton: which patterns are alive in it and which are ``done`` (matched)."""

    __slots__ = ("done", "known", "live", "members", "rules", "steps")

    def __init__(self, members: frozenset[int], rules: int, done: int) -> None:
        self.members = members
        self.rules = rules
        self.done = done
        self.steps: dict[str, tuple[StateSet, int]] = {}
        """Where a piece of text leads, and what was done on the way."""
        self.known: set[str] = set()
        self.live: dict[str, tuple[StateSet, int]] = {}
        """Words met here, and those of them that lead on."""


class Automaton:
    """All ``patterns`` (compiled with IGNORECASE) as one; bit i of a mask stands for ``patterns[i]``."""

    def __init__(self, patterns: Sequence[re.Pattern[str]]) -> None:
        self._fits: list[frozenset[str]] = []
        self._next: list[int] = []
        self._free: list[list[int]] = []
        self._owner: list[int] = []
        self._final: dict[int, int] = {}
        self._starts: list[int] = []
        self._closures: dict[int, frozenset[int]] = {}
        for i, pattern in enumerate(patterns):
            start, end = self._state(i), self._state(i)
            try:
                self._sequence(_parse(pattern), start, end, i)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise UnreadablePatternError(_unreadable(pattern)) from error
            self._final[end] = 1 << i
            self._starts.append(start)
        self._clear()

    def _clear(self) -> None:
        self._states: dict[frozenset[int], StateSet] = {}
        self._openings: dict[int, StateSet] = {}
        self._pieces = 0
        self.dead = self._subset(frozenset())

    def opening(self, rules: int) -> StateSet:
        """Return the state before the first character where only the patterns of the mask ``rules`` begin."""
        if (state := self._openings.get(rules)) is None:
            starts = (self._closure(start) for i, start in enumerate(self._starts) if rules >> i & 1)
            state = self._openings[rules] = self._subset(frozenset().union(*starts))
        return state

    def scan(self, text: str, *, head: int, early: int, late: int) -> list[tuple[int, int]]:
        """Return (offset, mask) of the words at which patterns may begin; ``text`` is made by :func:`symbols`.

        The patterns of the mask ``early`` are looked for up to offset ``head`` (or a word further), of ``late`` behind.
        """
        if len(self._states) > MOST_STATES or self._pieces > MOST_PIECES:
            self._clear()
        spaced = text.encode("latin-1").translate(_SPACED).decode("latin-1")
        cut = spaced.find(" ", head)
        if cut < 0:
            return self._scan_part(text, spaced, 0, early)
        return [
            *self._scan_part(text, spaced[:cut], 0, early),
            *self._scan_part(text, spaced[cut + 1 :], cut + 1, late),
        ]

    def _scan_part(self, text: str, spaced: str, offset: int, rules: int) -> list[tuple[int, int]]:
        opening = self.opening(rules)
        live = opening.live
        words = spaced.split(" ")
        if not opening.known.issuperset(words):
            for word in set(words) - opening.known:
                state, done = self._walk(opening, word)
                opening.known.add(word)
                if word and (done or any(self._walk(state, c)[0] is not self.dead for c in _NOT_WORDLY)):
                    live[word] = (state, done)
        at_live = [i for i, word in enumerate(words) if word in live]
        ends = list(accumulate(map(len, words), initial=offset))
        found: list[tuple[int, int]] = []
        dead, walk = self.dead, self._walk
        for i in at_live:
            word = words[i]
            state, done = live[word]
            begin = ends[i] + i
            end = begin + len(word)
            # Most end here.
            piece = text[end : end + PIECE]
            state, more = state.steps.get(piece) or walk(state, piece)
            done |= more
            if state is not dead:
                done = self._follow(text, end + PIECE, state, done)
            if done:
                found.append((begin, done))
        return found

    def at_start(self, text: str, rules: int) -> int:
        """Return which of the patterns ``rules`` may match at the start of ``text`` (as symbols)."""
        return self._follow(text, 0, self.opening(rules), 0)

    def _follow(self, text: str, at: int, state: StateSet, done: int) -> int:
        dead = self.dead
        if state is dead:
            return done
        for begin in range(at, at + DEPTH, PIECE):
            piece = text[begin : begin + PIECE]
            state, more = state.steps.get(piece) or self._walk(state, piece)
            done |= more
            if state is dead:
                return done
        return done | state.rules

    def _walk(self, state: StateSet, piece: str) -> tuple[StateSet, int]:
        """Step through ``piece`` and remember where it leads."""
        self._pieces += 1
        if hop := state.steps.get(piece):
            return hop
        done, at = state.done, state
        for character in piece:
            found = at.steps.get(character)
            if found is None:
                targets = [self._next[m] for m in at.members if character in self._fits[m]]
                following = self._subset(frozenset().union(*map(self._closure, targets)))
                found = at.steps[character] = (following, at.done | following.done)
            at = found[0]
            done |= found[1]
        state.steps[piece] = (at, done)
        return at, done

    def needs_foreign(self, i: int) -> bool:
        """Whether each match of pattern ``i`` holds a character outside ASCII."""
        seen, todo = set[int](), [self._starts[i]]
        while todo:
            state = todo.pop()
            if state in self._final:
                return False
            ahead = self._free[state] + ([self._next[state]] if self._fits[state] - {WORD, OTHER} else [])
            todo.extend(s for s in ahead if s not in seen)
            seen.update(ahead)
        return True

    def first_characters(self, i: int) -> frozenset[str]:
        """Return the characters with which pattern ``i`` may begin."""
        return frozenset().union(*(self._fits[m] for m in self._closure(self._starts[i])))

    def _subset(self, members: frozenset[int]) -> StateSet:
        if (state := self._states.get(members)) is None:
            rules = done = 0
            for member in members:
                done |= self._final.get(member, 0)
                rules |= 1 << self._owner[member]
            state = self._states[members] = StateSet(
                frozenset(m for m in members if self._fits[m]), rules, done
            )
        return state

    def _closure(self, state: int) -> frozenset[int]:
        if (found := self._closures.get(state)) is None:
            seen, todo = {state}, [state]
            while todo:
                for following in self._free[todo.pop()]:
                    if following not in seen:
                        seen.add(following)
                        todo.append(following)
            found = self._closures[state] = frozenset(s for s in seen if self._fits[s] or s in self._final)
        return found

    def _state(self, owner: int) -> int:
        self._fits.append(frozenset())
        self._next.append(-1)
        self._free.append([])
        self._owner.append(owner)
        return len(self._fits) - 1

    def _sequence(self, items: Any, start: int, end: int, owner: int) -> None:
        at = start
        for op, argument in items:
            following = self._state(owner)
            self._item(str(op), argument, at, following, owner)
            at = following
        self._free[at].append(end)

    def _item(self, op: str, argument: Any, start: int, end: int, owner: int) -> None:
        if op in ("AT", "ASSERT", "ASSERT_NOT"):
            self._free[start].append(end)
        elif op == "SUBPATTERN":
            self._sequence(argument[3], start, end, owner)
        elif op == "BRANCH":
            for branch in argument[1]:
                first = self._state(owner)
                self._free[start].append(first)
                self._sequence(branch, first, end, owner)
        elif op in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, body = argument
            at = start
            for _ in range(least):
                following = self._state(owner)
                self._sequence(body, at, following, owner)
                at = following
            if most != least:
                loop = self._state(owner)
                self._free[at].append(loop)
                again = self._state(owner)
                self._sequence(body, loop, again, owner)
                self._free[again].append(loop)
                at = loop
            self._free[at].append(end)
        elif (fits := _fitting(op, argument)) is not None:
            one = self._state(owner)
            self._free[start].append(one)
            self._fits[one], self._next[one] = fits, end
        else:
            raise UnreadablePatternError(
                f"the automaton does not know the pattern element {op!r}; use a plainer pattern"
            )


def _fitting(op: str, argument: Any) -> frozenset[str] | None:
    """Return the symbols that one element may consume, None for an element that is no set of characters."""
    if op == "LITERAL":
        return frozenset(chr(argument).lower()) if argument < 128 else frozenset([WORD, OTHER])
    if op == "NOT_LITERAL":
        return _SYMBOLS - frozenset(chr(argument).lower())
    if op == "ANY":
        return _SYMBOLS
    if op != "IN":
        return None
    held: set[str] = set()
    negated = False
    for kind, value in argument:
        if str(kind) == "NEGATE":
            negated = True
        elif str(kind) == "LITERAL":
            held.update(_fitting("LITERAL", value) or ())
        elif str(kind) == "RANGE":
            low, high = value
            held.update(c for c in _ASCII if low <= ord(c) <= high or low <= ord(c.upper()) <= high)
            held.update((WORD, OTHER) if high > 127 else ())
        else:
            held.update(_CATEGORIES[str(value)])
    return frozenset(_SYMBOLS - held) | {WORD, OTHER} if negated else frozenset(held)


def symbols(text: str) -> str | None:
    """Return ``text`` in lower case with WORD and OTHER for what is not ASCII, character by character.

    None where case folding crosses from ASCII to other characters (the long s, the Kelvin sign, i with and without
    a dot), which the automaton does not model.
    """
    if text.isascii():
        return text.lower()
    if _FOLDED.search(text):
        return None
    return _FOREIGN.sub(lambda m: WORD if m.group().isalnum() else OTHER, text).lower()


def _parse(pattern: re.Pattern[str]) -> Any:
    """Return the elements of a pattern.

    The parser of the standard library is the only reader of patterns that agrees with ``re`` by construction; it is
    private, so another Python may lack it or name its elements otherwise.
    """
    try:
        return importlib.import_module("re._parser").parse(pattern.pattern, pattern.flags)
    except (ImportError, AttributeError, TypeError) as error:
        raise UnreadablePatternError(_unreadable(pattern)) from error


def _unreadable(pattern: re.Pattern[str]) -> str:
    return (
        f"the parser of this Python does not read {pattern.pattern[:40]!r} as Python 3.11 does; match plainly"
    )


def begins_at_word(pattern: re.Pattern[str]) -> bool:
    """Whether each match begins, by its leading assertion, where a word may begin."""
    return _leads_with(_parse(pattern), begin_only=False)


def starts_with_word(first: frozenset[str]) -> bool:
    """Whether all of the ``first`` characters of a pattern are letters, digits or the underscore."""
    return first <= _WORDLY


def begins_text(pattern: re.Pattern[str]) -> bool:
    """Whether the pattern begins with ``\\A`` in each branch."""
    return _leads_with(_parse(pattern), begin_only=True)


def _leads_with(items: Any, *, begin_only: bool) -> bool:
    for op, argument in items:
        if str(op) == "AT":
            return str(argument) == "AT_BEGINNING_STRING" or (
                not begin_only and str(argument) == "AT_BOUNDARY"
            )
        if str(op) == "ASSERT" and argument[0] == -1 and not begin_only:
            last = list(argument[1])[-1]
            fits = _fitting(str(last[0]), last[1])
            return fits is not None and not (fits - {WORD}) & _WORDLY
        if str(op) == "SUBPATTERN":
            return _leads_with(argument[3], begin_only=begin_only)
        if str(op) == "BRANCH":
            return all(_leads_with(branch, begin_only=begin_only) for branch in argument[1])
        return False
    return False
