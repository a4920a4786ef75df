"""What is measured, before and after, against which controls: the only thing that sentences are made from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from mechsafety.claims.numbers import ALPHA
from mechsafety.statistics.controls import largest_p
from mechsafety.statistics.counts import counts_test, difference_interval
from mechsafety.statistics.judge_effects import exact_difference
from mechsafety.statistics.paired import holm, mcnemar
from mechsafety.statistics.rates import wilson

NAN = math.nan


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One number with its 95 % interval: of ``n`` items ``hits`` (a share), or a value in some unit.

    ``unread`` items are not among the ``n``. What is not known is NaN.
    """

    value: float
    low: float = NAN
    high: float = NAN
    hits: int | None = None
    n: int | None = None
    unread: int = 0

    @classmethod
    def of_counts(cls, hits: int, n: int, *, unread: int = 0) -> Estimate:
        """A share of ``n`` items that were read, with Wilson's interval; unknown where there are none."""
        found = wilson(hits, n)
        return cls(value=found.rate, low=found.low, high=found.high, hits=hits, n=n, unread=unread)

    @classmethod
    def of_row(cls, row: Mapping[Any, Any], value: str, *ends: str, unread: int = 0) -> Estimate:
        """A row's value, with its interval where ``ends`` name the columns of its ends."""
        low, high = (float(row.get(end, NAN)) for end in ends) if ends else (NAN, NAN)
        return cls(value=float(row[value]), low=low, high=high, unread=unread)

    @property
    def known(self) -> bool:
        return self.value == self.value


UNKNOWN = Estimate(value=NAN)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The same measure under one draw of a control, and the test of the changed state against it.

    ``fewer`` are items with the measure under the draw and not under the change, ``more`` the reverse.
    """

    estimate: Estimate
    fewer: int = 0
    more: int = 0
    p: float = NAN


@dataclass(frozen=True, kw_only=True)
class Control:
    """What stands beside a change: its name, one or more draws, and the p that the change goes beyond all of them.

    ``p`` is the largest over the draws (an intersection-union test: 1 where they do not lie to one side), ``corrected``
    the same after correction over ``family``. ``below`` is whether the changed state has the measure less than under
    the draws (True), more (False), or is not to one side (None).
    """

    name: str
    draws: tuple[Draw, ...]
    p: float
    corrected: float
    below: bool | None
    family: int = 1
    family_of: str = "systems"


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One measure in two states.

    ``subject`` is what is measured, ``measure`` a plural noun phrase of the table of measures ("refusals of harmful
    prompts"), ``unit`` ``share`` for counts, else the unit of its values. ``difference`` is after minus before.
    ``test`` names the test that gave ``p``; ``corrected`` is after ``correction`` over ``family`` such tests.
    ``moves`` counts items by their category before and after. ``margin`` is that of equivalence, stated beforehand;
    ``least_p`` the smallest p that so many items could give, ``least_corrected`` what it would be after correction
    beside the others' p as they are; ``why`` is why there is no test.
    """

    subject: str
    measure: str
    unit: str = "share"
    states: tuple[str, str] = ("before", "after")
    before: Estimate
    after: Estimate
    difference: Estimate
    paired: bool = True
    test: str = ""
    p: float = NAN
    corrected: float = NAN
    correction: str = "Holm"
    family: int = 1
    family_of: str = "systems"
    least_corrected: float | None = None
    control: Control | None = None
    moves: Mapping[tuple[str, str], int] = field(default_factory=dict)
    margin: float | None = None
    least_p: float = 0.0
    why: str = ""


def paired_binary(
    before: Mapping[object, str],
    after: Mapping[object, str],
    *,
    subject: str,
    measure: str,
    is_hit: str = "refusal",
    states: tuple[str, str] = ("original", "edited"),
    margin: float | None = None,
) -> Contrast:
    """Verdicts of the same items, by id, in two states: exact McNemar over the items that were read in both.

    An item that one state alone has is not read in the other. Where no item was read in both, each state has its own
    share, and nothing is tested.
    """
    both = list(dict.fromkeys([*before, *after])) if before and after else []
    sides = [{key: side.get(key, "unparsed") for key in both} or dict(side) for side in (before, after)]
    moves = Counter((label, after[key]) for key, label in before.items() if key in after)
    before, after = sides
    read = [key for key in both if "unparsed" not in (before[key], after[key])]
    if not read:
        found = _untested(sides, subject=subject, measure=measure, is_hit=is_hit, states=states)
        return replace(found, moves=dict(moves))
    lost = sum(n for (a, b), n in moves.items() if a == is_hit and b not in (is_hit, "unparsed"))
    gained = sum(n for (a, b), n in moves.items() if b == is_hit and a not in (is_hit, "unparsed"))
    hits = sum(before[key] == is_hit for key in read)
    unread = (sum(before[key] == "unparsed" for key in both), sum(after[key] == "unparsed" for key in both))
    return paired_counts(
        subject=subject,
        measure=measure,
        n=len(read),
        hits=hits,
        lost=lost,
        gained=gained,
        unread=unread,
        states=states,
        moves=moves,
        margin=margin,
    )


def _untested(
    sides: Sequence[Mapping[object, str]], *, subject: str, measure: str, is_hit: str, states: tuple[str, str]
) -> Contrast:
    first, second = (
        Estimate.of_counts(
            labels.count(is_hit),
            len(labels) - labels.count("unparsed"),
            unread=labels.count("unparsed"),
        )
        for labels in ([*side.values()] for side in sides)
    )
    return Contrast(
        subject=subject,
        measure=measure,
        states=states,
        before=first,
        after=second,
        difference=UNKNOWN,
        least_p=1.0,
        why="no item was read in both states",
    )


def paired_counts(
    *,
    subject: str,
    measure: str,
    n: int,
    hits: int,
    lost: int,
    gained: int,
    unread: tuple[int, int] = (0, 0),
    states: tuple[str, str] = ("original", "edited"),
    moves: Mapping[tuple[str, str], int] | None = None,
    margin: float | None = None,
) -> Contrast:
    """The same from counts: of ``n`` items ``hits`` before, of which ``lost`` are none after, and ``gained`` others."""
    low, high = exact_difference(lost, gained, n)
    p = mcnemar(lost, gained) if n else NAN
    return Contrast(
        subject=subject,
        measure=measure,
        states=states,
        before=Estimate.of_counts(hits, n, unread=unread[0]),
        after=Estimate.of_counts(hits - lost + gained, n, unread=unread[1]),
        difference=Estimate(value=(gained - lost) / n if n else NAN, low=low, high=high, n=n),
        test="exact McNemar",
        p=p,
        corrected=p,
        moves=dict(moves or {}),
        margin=margin,
        least_p=0.5 ** (n - 1) if n else 1.0,
        why="" if n else "no item was read in both states",
    )


def unpaired_counts(
    *,
    subject: str,
    measure: str,
    before: tuple[int, int],
    after: tuple[int, int],
    unread: tuple[int, int] = (0, 0),
    states: tuple[str, str] = ("original", "edited"),
    margin: float | None = None,
) -> Contrast:
    """Hits and items of two states on different items: Boschloo's or Fisher's exact test."""
    (a, n), (b, m) = before, after
    p, test = counts_test(a, n, b, m) if n and m else (NAN, "")
    low, high = difference_interval(a, n, b, m) if n and m else (NAN, NAN)
    if p >= ALPHA:  # Newcombe's interval is not that of the test
        low, high = min(low, 0.0), max(high, 0.0)
    return Contrast(
        subject=subject,
        measure=measure,
        states=states,
        before=Estimate.of_counts(a, n, unread=unread[0]),
        after=Estimate.of_counts(b, m, unread=unread[1]),
        difference=Estimate(value=b / m - a / n if n and m else NAN, low=low, high=high),
        paired=False,
        test=f"{test}'s exact test" if test else "",
        p=p,
        corrected=p,
        margin=margin,
        least_p=1.0 if not (n and m) else counts_test(0, n, m, m)[0] if p >= ALPHA else 0.0,
        why="" if n and m else "one of the two states has no item that was read",
    )


def of_values(
    *,
    subject: str,
    measure: str,
    unit: str,
    before: Estimate,
    after: Estimate,
    difference: Estimate,
    test: str = "",
    p: float = NAN,
    states: tuple[str, str] = ("before", "after"),
    margin: float | None = None,
    why: str = "",
) -> Contrast:
    """Two values in some unit. Without a test of its own the interval of the difference decides, where there is one.

    An interval that is not that of the test does not leave out 0 beside p >= .05.
    """
    if p >= ALPHA:
        difference = replace(difference, low=min(difference.low, 0.0), high=max(difference.high, 0.0))
    return Contrast(
        subject=subject,
        measure=measure,
        unit=unit,
        states=states,
        before=before,
        after=after,
        difference=difference,
        test=test,
        p=p,
        corrected=p,
        margin=margin,
        why=why or ("" if difference.low == difference.low or p == p else "no interval of the difference"),
    )


def corrected_over(contrasts: Sequence[Contrast], family_of: str) -> list[Contrast]:
    """The contrasts with Holm's correction over all of them that were tested, and that of their controls."""
    p_values = np.array([c.p for c in contrasts], dtype=float)
    adjusted, least = holm(p_values), [_with_least(p_values, at, c.least_p) for at, c in enumerate(contrasts)]
    tested = int(sum(c.p == c.p for c in contrasts))
    with_control = [c.control.p if c.control else NAN for c in contrasts]
    beyond = holm(np.array(with_control, dtype=float))
    controls = int(sum(p == p for p in with_control))
    return [
        replace(
            c,
            corrected=float(p),
            family=tested,
            family_of=family_of,
            least_corrected=best,
            control=c.control
            and replace(c.control, corrected=float(q), family=controls, family_of=family_of),
        )
        for c, p, q, best in zip(contrasts, adjusted, beyond, least, strict=True)
    ]


def _with_least(p_values: Float[np.ndarray, " test"], at: int, least: float) -> float:
    """Holm's p of one test, had it the least that it can have."""
    return float(holm(np.where(np.arange(len(p_values)) == at, least, p_values))[at])


def paired_control(
    name: str, after: Mapping[object, str], draws: Sequence[Mapping[object, str]], *, is_hit: str = "refusal"
) -> Control:
    """Random draws of the same change on the same items: is the changed state beyond each of them, to one side?"""
    found = [_draw(after, draw, is_hit) for draw in draws]
    sides = {np.sign(d.fewer - d.more) for d in found}
    one_side = len(sides) == 1 and 0 not in sides
    p = largest_p([(d.fewer, d.more, d.p) for d in found])
    return Control(name=name, draws=tuple(found), p=p, corrected=p, below=sides == {1} if one_side else None)


def _draw(after: Mapping[object, str], draw: Mapping[object, str], is_hit: str) -> Draw:
    read = {key: verdict for key, verdict in draw.items() if verdict != "unparsed"}
    pairs = [
        (read[key] == is_hit, after[key] == is_hit)
        for key in read
        if after.get(key, "unparsed") != "unparsed"
    ]
    fewer, more = pairs.count((True, False)), pairs.count((False, True))
    hits = sum(verdict == is_hit for verdict in read.values())
    return Draw(
        estimate=Estimate.of_counts(hits, len(read), unread=len(draw) - len(read)),
        fewer=fewer,
        more=more,
        p=mcnemar(fewer, more) if pairs else NAN,
    )
