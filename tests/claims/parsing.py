"""Parts of sentences that many forms share: quantities with their intervals, lists of names, corrected p."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from tests.claims.facts import Facts, Items, Key, Value
from tests.claims.recomputed import Share, share_of
from tests.claims.spelled import NUMBER, P, is_percent, is_points, is_rounded

PERCENT = r"[<>]?\d+(?:\.\d+)?"
SHARE = rf"(?:\d+ of \d+ \({PERCENT} %(?: \[{PERCENT}, {PERCENT}\])?\)|unknown)(?:, \d+ not read)?"
REAL = rf"{NUMBER}(?: (?:%|[^\W\d][\w/ ]*?))?(?: \[{NUMBER}, {NUMBER}\])?(?:, \d+ not read)?"
QUANTITY = rf"(?:{SHARE}|{REAL})"
NAMES = r"[^();]+"
AFTER_HOLM = rf"(?P<holm>{P}) after Holm over (?P<members>\d+) (?P<over>[\w -]+)"


@dataclass(frozen=True)
class Context:
    """What a sentence is read against: the facts, its subject, and the measure that the sentence before was about."""

    facts: Facts
    subject: str
    about: str | None

    def key(self) -> Key:
        """The change that `this` refers to: the one before, or the only one of the subject."""
        measures = [measure for subject, measure, *_ in self.facts.changes if subject == self.subject]
        measure = self.about if self.about in measures else measures[0] if len(measures) == 1 else None
        if measure is None:
            raise Unsupported("which change this is about is not known")
        return self.subject, measure


class Refuted(Exception):
    """The rows say otherwise."""


class Unsupported(Exception):
    """No form, or nothing in the facts that could carry it."""


def require(holds: bool, reason: str) -> None:
    """Refute the sentence unless something holds."""
    if not holds:
        raise Refuted(reason)


def whole(row: Items | Value | Share | None) -> Share | Value | None:
    """A level of a row: items as their share."""
    if isinstance(row, Value):
        return None if row.value != row.value else row
    return share_of(row) if isinstance(row, dict) else row


def match_phrase(body: str, phrases: Iterable[str], pattern: str) -> re.Match[str] | None:
    """A match of a pattern in which MEASURE stands for one of the known phrases."""
    for phrase in sorted(set(phrases), key=len, reverse=True):
        if match := re.fullmatch(pattern.replace("MEASURE", f"(?P<measure>{re.escape(phrase)})"), body):
            return match
    return None


def is_decimal(text: str, value: float) -> bool:
    """Whether a stated bound is exactly the one that was set."""
    return abs(float(text) - value) < 1e-9


def split_quantities(text: str) -> list[str]:
    """The quantities of `A, B and C`, where each can have commas of its own."""
    found = re.split(r"(?:, (?!\d+ not read)| and )(?![^\[]*\])", text)
    require(text.endswith(" and ".join([", ".join(found[:-1]), found[-1]]) if found[1:] else text), "no list")
    return found


def check_quantity(text: str, row: Items | Value | Share | None) -> None:
    """Refute a quantity that is not the row's."""
    known = whole(row)
    if isinstance(known, Share):
        _check_share(text, known)
    elif known is None:
        unread = row.unread if isinstance(row, Value) else 0
        require(
            text == f"unknown, {unread} not read" if unread else text == "unknown", "nothing was measured"
        )
    else:
        _check_real(text, known)


def _check_share(text: str, row: Share) -> None:
    match = re.fullmatch(
        rf"(?:(?P<hits>\d+) of (?P<n>\d+) \((?P<share>{PERCENT}) %(?: \[(?P<low>{PERCENT}), (?P<high>{PERCENT})\])?\)|unknown)"
        r"(?:, (?P<unread>\d+) not read)?",
        text,
    )
    if not match:
        _refute("no share")
    require(int(match["unread"] or 0) == row.unread and match["unread"] != "0", f"{row.unread} were not read")
    require((match["n"] is None) == (row.n == 0), f"{row.n} were read")
    if match["n"] is None:
        return
    require((int(match["hits"]), int(match["n"])) == (row.hits, row.n), f"{row.hits} of {row.n}")
    require(is_percent(match["share"], float(row.share)), f"share {float(row.share)}")
    require((match["low"] is None) == row.pooled, "an interval")
    if row.pooled:
        return
    for bound, value in zip((match["low"], match["high"]), row.interval, strict=True):
        require(is_percent(bound, value), f"interval {row.interval}")


def _check_real(text: str, row: Value) -> None:
    match = re.fullmatch(
        rf"(?P<value>{NUMBER})(?: (?P<unit>[^\[,]+?))?(?: \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\])?"
        r"(?:, (?P<unread>\d+) not read)?",
        text,
    )
    if not match:
        _refute("no value")
    require(int(match["unread"] or 0) == row.unread and match["unread"] != "0", f"{row.unread} were not read")
    require((match["unit"] or "") == row.unit, f"unit {row.unit}")
    require((match["low"] is None) == (row.low is None), "interval")
    if row.unit == "%":
        numbers = ((match["value"], row.value), (match["low"], row.low), (match["high"], row.high))
        require(all(is_percent(text, share) for text, share in numbers if text), f"a share of {row.value}")
        return
    _check_number(match["value"], row)
    if match["low"] is not None:
        require(is_rounded(match["low"], row.low) and is_rounded(match["high"], row.high), "interval")


def _check_number(text: str, row: Value, exact: tuple[float, ...] = ()) -> None:
    value, counting = row.value, bool(row.unit) or row.plain
    decimals = len(text.partition(".")[2])
    inexact = float(f"{value:.2f}") in (-1.0, 0.0, 1.0) and float(f"{value:.2f}") != value
    require(counting or text[0] in "<>" or inexact or decimals == 2, "two digits without a unit")
    require(is_rounded(text, value, exact, two_digits=counting), f"the number is {value}")


def check_interval(text: str, low: str | None, high: str | None, row: Value | None, *, points: bool) -> None:
    """Refute a difference, or its interval, that is not the recomputed one."""
    if row is None:
        _refute("no difference was measured")
    if points:
        require(is_points(text, row.value), f"difference {row.value}")
    else:
        require(text.lstrip("<>")[0] in "+-", "a difference has a sign")
        _check_number(text, row, (0.0,))
    require((low is None) == (row.low is None), "interval")
    if low is None or high is None or row.low is None or row.high is None:
        return
    right = is_points if points else is_rounded
    require(right(low, row.low) and right(high, row.high), f"interval {row.low}, {row.high}")


def check_names(text: str, names: Sequence[str], among: int | None) -> None:
    """Refute names that are not all that tie; among how many decides between names and their number."""
    if among is not None and len(names) == among > 1:
        require(text == f"all {among} tie", "all tie")
        return
    if among is not None and len(names) > 3:
        require(text == f"{len(names)} tie", f"{len(names)} tie")
        return
    said, tie = (
        (text.removesuffix(" tie"), text.endswith(" tie")) if among is not None else (text, len(names) > 1)
    )
    require(tie == (len(names) > 1), "a tie")
    require(_listed(said, list(names)), f"it is {names}")


def _listed(text: str, names: list[str]) -> bool:
    """Whether a list names all of them in any order."""
    if len(names) <= 1:
        return text == "".join(names)
    return any(
        text.startswith(name + joint) and _listed(text[len(name + joint) :], [n for n in names if n != name])
        for name in names
        for joint in ([", "] if len(names) > 2 else [" and "])
    )


def _refute(reason: str) -> NoReturn:
    raise Refuted(reason)
