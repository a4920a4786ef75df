"""The rules of docs/claims.md, from a contrast to a claim, over raw rows."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from tests.claims.facts import Change, Facts, Items, Key, RealChange, Value
from tests.claims.recomputed import (
    Share,
    discordant,
    holm,
    mcnemar,
    paired_interval,
    read_in_both,
    share_of,
    smallest_p,
    unpaired_interval,
    unpaired_p,
    unpaired_test,
)

NOT_READ = {"no item was read in both states", "nothing was read in both states"}
NO_ARM = {"an arm is missing", "a state is missing"}
NO_TEST = {"there is neither a test nor an interval", "neither a test nor an interval"}


@dataclass(frozen=True)
class Decision:
    """A claim as the rows decide it, with every number that a sentence on it may hold."""

    word: str
    states: tuple[Share | Value | None, ...]
    difference: Value | None = None
    p: float | None = None
    corrected: float = 1.0
    tests: frozenset[str] = frozenset()
    over: str | None = None
    members: int = 1
    smallest: float = 0.0
    n: int = 0
    side: int = 0
    reasons: frozenset[str] = frozenset()


def number(row: Items | Value | Share | None) -> Fraction | float | None:
    """What a row is compared by: an exact share, or its value; None where it is unknown."""
    if isinstance(row, dict):
        row = share_of(row)
    if isinstance(row, Share):
        return row.share if row.n else None
    return None if row is None or row.value != row.value else row.value


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _shares(change: Change) -> tuple[Share, Share]:
    """Both states' shares: of the items read in both where they are paired."""
    if not change.paired:
        return share_of(change.before), share_of(change.after)
    both, known = read_in_both(change.before, change.after), set(change.before) | set(change.after)
    among = both or None  # where none was read in both, each state's own answers are all that is known
    states = (change.before, change.after)
    one, other = (share_of(state, among, known if state else None) for state in states)
    return one, other


@lru_cache(maxsize=4096)
def _measured(change: Change | RealChange) -> Decision:
    """Sizes, difference and p of a change, before any correction."""
    if isinstance(change, RealChange):
        tests = frozenset({change.test} if change.test else ())
        return Decision(
            "",
            (change.before, change.after),
            change.difference,
            change.p,
            tests=tests,
            reasons=_reasons(change),
        )
    one, other = states = _shares(change)
    if change.paired:
        lost, won, n = discordant(change.before, change.after)
        if n == 0:
            return Decision("", states, reasons=_reasons(change))
        value = Value((won - lost) / n, *paired_interval(lost, won, n))
        return Decision(
            "",
            states,
            value,
            mcnemar(lost, won),
            tests=frozenset({"exact McNemar"}),
            n=n,
            smallest=smallest_p(change),
        )
    if one.n == 0 or other.n == 0:
        return Decision("", states, reasons=_reasons(change))
    p = unpaired_p(one, other)
    test = unpaired_test(one, other)
    tests = {test, f"{test}'s exact test"}
    n = one.n + other.n
    value = Value(float(other.share - one.share), *unpaired_interval(one, other, p))
    return Decision("", states, value, p, tests=frozenset(tests), n=n, smallest=smallest_p(change))


def _reasons(change: Change | RealChange) -> frozenset[str]:
    own = {change.why} if change.why else set()
    if isinstance(change, Change):
        arms = NO_ARM if not change.before or not change.after else set()
        return frozenset(own | NOT_READ | arms)
    return frozenset(own | (NO_ARM if change.before is None or change.after is None else NO_TEST))


def _corrected(key: Key, facts: Facts, p_of: Callable[[Key], float | None]) -> tuple[float, str | None, int]:
    """A p after Holm over the family of its change, what the members are called, and how many were tested."""
    own = p_of(key)
    family = next((f for f in facts.families if key in f.keys), None)
    if own is None or family is None:
        return (1.0 if own is None else own), None, 1
    tested = [member for member in family.keys if p_of(member) is not None]
    after = holm(tuple(p for member in tested if (p := p_of(member)) is not None))
    return after[tested.index(key)], family.over, len(tested)


def could_be_shown(key: Key, facts: Facts) -> bool:
    """Whether any outcome of the same items would have been significant, beside the others of its family as they are."""
    smallest = _measured(facts.changes[key]).smallest
    return (
        _corrected(key, facts, lambda k: smallest if k == key else _measured(facts.changes[k]).p)[0]
        < facts.alpha
    )


def decide(key: Key, facts: Facts) -> Decision:
    """Whether a change is a rise, a fall, equal, none shown or not tested, by the one rule."""
    change = facts.changes[key]
    found = _measured(change)
    corrected, over, members = _corrected(key, facts, lambda k: _measured(facts.changes[k]).p)
    difference = found.difference
    has_interval = difference is not None and difference.low is not None and difference.high is not None
    if difference is None or (found.p is None and not has_interval):
        word = "not tested"
    else:
        excludes_0 = has_interval and not difference.low <= 0 <= difference.high
        shown = corrected < facts.alpha if found.p is not None else excludes_0
        word = {1: "rise", -1: "fall", 0: "none"}[_sign(difference.value) if shown else 0]
        inside = has_interval and change.margin is not None
        if (
            word == "none"
            and inside
            and -change.margin <= difference.low
            and difference.high <= change.margin
        ):
            word = "equal"
    return Decision(
        word, found.states, difference, found.p, corrected, found.tests, over, members, found.smallest, found.n, 0, found.reasons
    )  # fmt: skip


def _draw(after: Items, draw: Items, paired: bool) -> tuple[int, float] | None:
    """To which side of a draw the changed state lies, and p of the difference; None where they share nothing."""
    if not paired:
        one, other = share_of(draw), share_of(after)
        return (_sign(float(other.share - one.share)), unpaired_p(one, other)) if one.n and other.n else None
    lost, won, n = discordant(draw, after)
    return (_sign(won - lost), mcnemar(lost, won)) if n else None


@lru_cache(maxsize=4096)
def _over_draws(change: Change | RealChange, name: str) -> tuple[int, float | None]:
    """The common side of all draws (0 where there is none), and the largest p; None where one could not be compared."""
    if name not in change.draws:
        return 0, None
    if isinstance(change, RealChange):
        control = change.draws[name]
        if control.side is not None:
            return control.side, control.p
        after = change.after.value if change.after else float("nan")
        sides = {_sign(after - draw.value) for draw in control.draws}
        return (sides.pop() if len(sides) == 1 else 0), control.p
    compared = [_draw(change.after, draw, change.paired) for draw in change.draws[name]]
    if not compared or None in compared:
        return 0, None
    sides = {each[0] for each in compared if each}
    return (sides.pop() if len(sides) == 1 else 0), max(each[1] for each in compared if each)


def beyond(key: Key, name: str, facts: Facts) -> Decision:
    """Whether a change goes beyond a control, the control does more, neither is shown or nothing was tested."""
    change, claim = facts.changes[key], decide(key, facts)
    side, p = _over_draws(change, name)
    corrected, over, members = _corrected(key, facts, lambda k: _tested_p(k, name, facts))
    draws = (
        change.draws[name].draws
        if isinstance(change, RealChange)
        else [share_of(d) for d in change.draws[name]]
    )
    change_side = _sign(claim.difference.value) if claim.difference else 0
    if p is None or claim.word == "not tested":
        word = "not tested"
    elif corrected < facts.alpha and side and side == change_side and claim.word in ("rise", "fall"):
        word = "beyond"
    else:
        is_more = corrected < facts.alpha and side and side == -change_side
        word = "more" if is_more and claim.word in ("rise", "fall") else "not shown"
    return Decision(word, tuple(draws), None, p, corrected, frozenset(), over, members, side=side)


def _tested_p(key: Key, name: str, facts: Facts) -> float | None:
    """The p that enters a family: of the same control, or of the only one that a member has.

    Draws on both sides are no evidence of either, whatever each one's p.
    """
    change = facts.changes[key]
    own = next(iter(change.draws), name) if name not in change.draws and len(change.draws) == 1 else name
    side, p = _over_draws(change, own)
    return p if side or p is None else 1.0
