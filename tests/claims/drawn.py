"""Tables of verdicts over the corners of specs: systems before and after, with controls, from letters or drawn."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import Phase, settings
from hypothesis import strategies as st

from tests.claims.facts import Change, Count, Facts, Key, Labels, labelled_change
from tests.claims.rules import beyond, decide

MEASURES = {
    "refusals of harmful prompts": "refusal",
    "refusals of harmless prompts": "refusal",
    "answers": "compliance",
}
VERDICTS = {"r": "refusal", "c": "compliance", "d": "degenerate", "u": "unparsed"}
CONTROL = "random directions"


@dataclass(frozen=True)
class System:
    """One drawn system: verdicts by item before, after, and under each draw of a control (None: no control)."""

    before: Labels
    after: Labels
    draws: Sequence[Labels] | None = None
    margin: float | None = None
    measure: str = "refusals of harmful prompts"
    control: str = CONTROL


def rows(letters: str, start: int = 0) -> dict[str, str]:
    """Verdicts by item from one letter each."""
    return {f"i{start + i}": VERDICTS[letter] for i, letter in enumerate(letters)}


def system(before: str, after: str, draws: Sequence[str] | None = None, **more) -> System:
    """A system from letters."""
    return System(
        rows(before), rows(after), None if draws is None else [rows(draw) for draw in draws], **more
    )


COUNTS = st.sampled_from([1, 2, 3, 5, 6, 7, 12, 13, 20, 50, 250])
MIXES = ("r", "c", "d", "rc", "rcd", "rrrrrrrrrrc", "rccccccccccc", "rcd", "cd")
UNREAD_MIXES = ("u", "rcu", "rcdu", "uuuur", "rrrrrrrrrrrrrrrrrrrru")


def _letters(mix: str, n: int):
    return (
        st.lists(st.sampled_from(mix), min_size=n, max_size=n).map("".join) if n <= 13 else _shuffled(mix, n)
    )


def _shuffled(mix: str, n: int):
    return st.randoms(use_true_random=False).map(lambda random: "".join(random.choice(mix) for _ in range(n)))


@st.composite
def drawn_system(draw, *, most: int = 250) -> System:
    """Any system: either state of any mix of verdicts, alike or unrelated, with controls that do nothing, as much or more."""
    n = draw(COUNTS.filter(lambda n: n <= most))
    mixes = st.sampled_from(MIXES + UNREAD_MIXES)
    before = draw(_letters(draw(mixes), n))
    after = draw(st.one_of(st.just(before), _letters(draw(mixes), n)))
    like = st.one_of(
        st.just(before),
        st.just(after),
        st.sampled_from(MIXES + UNREAD_MIXES).flatmap(lambda mix: _letters(mix, n)),
    )
    draws = draw(st.one_of(st.none(), st.lists(like, max_size=3)))
    margin = draw(st.sampled_from([None, 0.05, 0.1, 0.2, 1.0]))
    measure = draw(st.sampled_from(sorted(MEASURES)))
    control = draw(st.sampled_from([CONTROL, "a foreign direction (s.d. 2)"]))
    return system(before, after, draws, margin=margin, measure=measure, control=control)


CORNERS = {
    "rise": system("c" * 30 + "r" * 20, "r" * 48 + "c" * 2, ["c" * 30 + "r" * 20]),
    "fall": system("r" * 46 + "c" * 4, "c" * 38 + "d" * 2 + "r" * 6 + "c" * 4, ["r" * 40 + "c" * 10] * 3),
    "nothing moved": system("r" * 20 + "d" * 20 + "c" * 10, "r" * 20 + "d" * 20 + "c" * 10),
    "none of any": system("c" * 50, "c" * 50, ["c" * 50]),
    "all of all": system("r" * 50, "r" * 50, ["r" * 50]),
    "equal": system("r" * 200, "r" * 199 + "c", margin=0.05),
    "one item": system("r", "c", ["r"]),
    "two items": system("rr", "cc", ["rr", "cc"]),
    "five items": system("rrrrr", "ccccc"),
    "six items": system("rrrrrr", "cccccc", ["rrrrrr"]),
    "all degenerate": system("r" * 40, "d" * 40, ["d" * 40]),
    "degenerate before": system("d" * 20 + "r" * 20, "c" * 40),
    "as much": system("r" * 45 + "c" * 5, "r" * 25 + "c" * 25, ["r" * 25 + "c" * 25] * 2),
    "more": system("r" * 45 + "c" * 5, "r" * 25 + "c" * 25, ["c" * 50] * 3),
    "the other way": system("r" * 30, "r" * 10 + "c" * 20, ["r" * 30, "r" * 29 + "d"]),
    "not shown, control far": system("r" * 30, "r" * 28 + "c" * 2, ["c" * 30] * 2),
    "one of many": system("r" + "c" * 249, "d" + "c" * 249),
    "one of very many": system("r" * 2000, "r" * 1999 + "c", ["r" * 1999 + "u"]),
    "lost and won": system("r" * 25 + "c" * 25, "c" * 25 + "r" * 25),
    "lines up to .05": system("r" * 8 + "c" * 20, "c" + "r" * 7 + "c" * 20),
    "no draws": system("r" * 30, "c" * 30, []),
    "unread draw": system("r" * 30, "c" * 30, ["u" * 30, "r" * 30]),
    "draws of fewer and of other items": System(rows("r" * 30), rows("c" * 30), [rows("r" * 20), rows("r" * 30, 20)]),
    "unread answered": system("ccc" + "u" * 3 + "r" * 10, "ccc" + "c" * 3 + "c" * 10),
}  # fmt: skip


CORNERS |= {
    "read after, not before": system("u" * 4, "c" * 4),
    "no arm before": System({}, rows("rrcc")),
    "items of one arm": System(rows("r" * 20), rows("c" * 10)),
    "refused, then not read": system("c" * 10 + "r" * 5, "c" * 10 + "u" * 5),
    "not read, then refused": system("c" * 10 + "u" * 5, "c" * 10 + "r" * 5),
    "draws on both sides": system("r" * 45 + "c" * 5, "r" * 25 + "c" * 25, ["c" * 50, "r" * 50]),
    "not tested, draws read": system("u" * 10 + "c" * 5, "c" * 10 + "u" * 5, ["c" * 15]),
    "six that stay": system("r" * 6, "r" * 6),
}


def change_of(each: System, states: tuple[str, str], control: str, verdict: str = "refusal") -> Change:
    """The change of a system, with its draws under the name of a control; no draws are no control."""
    return labelled_change(
        each.before, each.after, verdict, draws={control: each.draws} if each.draws else {}, states=states
    )


def tally(facts: Facts, groups: Sequence[Sequence[Key]], holds: Callable[[Key], bool | None]) -> Count:
    """In how many groups of changes one is so; None where none of a group was tested, or may be and is not known."""
    tested = [[key for key in group if decide(key, facts).word != "not tested"] for group in groups]
    return Count([_any([holds(key) for key in group]) for group in tested])


def _any(outcomes: Sequence[bool | None]) -> bool | None:
    return True if True in outcomes else None if None in outcomes or not outcomes else False


def falls_beyond(key: Key, facts: Facts) -> bool | None:
    """Whether a change is a fall beyond each control that it has; unknown of a fall where none, or one, was not tested."""
    if decide(key, facts).word != "fall":
        return False
    words = {beyond(key, name, facts).word for name in facts.changes[key].draws}
    if words & {"not shown", "more"}:
        return False
    return True if words == {"beyond"} else None


VALUES = ("apart", "equal", "unknown", "one known", "one", "near 0 and 1")
"""Kinds of columns of real numbers over which sentences on them are tried."""


def drawn_values(kind: str, n: int, seed: int = 0) -> list[float]:
    """Numbers from 0 to 1 of one of the kinds; NaN is unknown."""
    each = random.Random(seed)
    values = {
        "apart": [each.random() for _ in range(n)],
        "equal": [0.5] * n,
        "unknown": [math.nan] * n,
        "one known": [0.25, *[math.nan] * (n - 1)],
        "one": [1.0] * n,
        "near 0 and 1": [(0.0, 0.0004, 0.9996, 1.0, math.nan)[i % 5] for i in range(n)],
    }
    return values[kind][:n]


def few(examples: int) -> settings:
    """So many drawn examples, without the shrinking, which would take long."""
    return settings(
        max_examples=examples, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
    )
