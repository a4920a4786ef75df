"""The sentence forms: every sentence of every experiment is one of these, with all the numbers that carry it.

docs/claims.md lists the forms; an evaluator that knows no line of this file parses them back and recomputes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mechsafety.claims.claims import Claim, decide
from mechsafety.claims.contrasts import Contrast, Control, Estimate
from mechsafety.claims.numbers import ALPHA, between, number, p_value, points_between
from mechsafety.core.wording import listed, percent, points

WORDS: Mapping[str, str] = {
    "refusal": "refused",
    "compliance": "answered",
    "degenerate": "degenerate",
    "unparsed": "not read",
}
"""How a category is named behind a number: ``40 answered``."""


NO_VERDICTS = "the run holds no verdicts by prompt"
"""Why changes of refusals are not measured."""


def sentences(*claims: Claim | Contrast) -> list[str]:
    """All that there is to say of contrasts: of each the change, where it went, and what its control does."""
    decided = [claim if isinstance(claim, Claim) else decide(claim) for claim in claims]
    return [said for one in decided for said in (change(one), *moves(one), *beyond(one))]


# -- one state ----------------------------------------------------------------------------------------


def level(subject: str, measure: str, estimate: Estimate, *, unit: str = "share") -> str:
    """``smollm2: refusals of harmful prompts, 46 of 50 (92 % [81, 97]).``"""
    return f"{subject}: {measure}, {spelt(estimate, unit)}."


def spelt(estimate: Estimate, unit: str) -> str:
    """``46 of 50 (92 % [81, 97]), 2 not read``; ``3.2 nats [2.9, 3.5]``."""
    unread = f", {estimate.unread} not read" if estimate.unread else ""
    if estimate.hits is not None and estimate.n is not None:
        if not estimate.n:
            return f"unknown{unread}"
        ends = between(estimate.low, estimate.high, unit)
        return (
            f"{estimate.hits} of {estimate.n} ({percent(estimate.value)}{f' {ends}' if ends else ''}){unread}"
        )
    return f"{number(estimate.value, unit)}{_ends(estimate, unit)}{unread}"


def _ends(estimate: Estimate, unit: str) -> str:
    ends = between(estimate.low, estimate.high, unit)
    return f" {ends}" if ends else ""


# -- two states ---------------------------------------------------------------------------------------


def change(claim: Claim) -> str:
    """Whether a measure rises, falls, is equal within a margin, or is not shown to change."""
    c = claim.contrast
    test = f" ({_difference(c)}{_test(c, claim.alpha)})"
    said = {
        "up": f"a rise in {c.measure}",
        "down": f"a fall in {c.measure}",
        "equal": f"{c.measure} equal within {_margin(c)}",
        "none shown": f"no change in {c.measure} shown",
        "not tested": f"change in {c.measure} not tested{f' ({c.why})' if c.why else ''}",
    }[claim.direction]
    few = f"; no change of {_items(c)} could be significant" if claim.powerless else ""
    return f"{c.subject}: {said}, {_shift(c)}{'' if claim.direction == 'not tested' else test}{few}."


def _margin(c: Contrast) -> str:
    if c.margin is None:
        return ""
    return f"{points(c.margin)[1:]} points" if c.unit == "share" else number(c.margin, c.unit)


def _items(c: Contrast) -> str:
    n, m = c.before.n, c.after.n
    return f"{n} items" if c.paired else f"{n} and {m} items"


def _shift(c: Contrast) -> str:
    return f"{c.states[0]} {spelt(c.before, c.unit)}, {c.states[1]} {spelt(c.after, c.unit)}"


def _difference(c: Contrast) -> str:
    if c.unit == "share":
        ends = points_between(c.difference.low, c.difference.high)
        return f"{points(c.difference.value)} points{f' {ends}' if ends else ''}"
    sign = "+" if c.difference.value >= 0 else ""
    return f"{sign}{number(c.difference.value, c.unit)}{_ends(c.difference, c.unit)}"


def _test(c: Contrast, alpha: float) -> str:
    if c.p != c.p:
        return ""
    over = f"{c.correction} over {c.family} {c.family_of}"
    corrected = f", {p_value(c.corrected, alpha)} after {over}" if c.family > 1 else ""
    return f"; {c.test}, {p_value(c.p, alpha)}{corrected}{_level(alpha)}"


def _level(alpha: float) -> str:
    return "" if alpha == ALPHA else f", alpha {alpha:g}"


def moves(claim: Claim, *, of: str = "refusal") -> list[str]:
    """``Of 40 no longer refused, 38 are answered and 2 degenerate; of 1 newly refused, 1 was answered.``"""
    table = claim.contrast.moves
    unread = "unparsed"
    lost = {b: n for (a, b), n in table.items() if a == of and b not in (of, unread) and n}
    gained = {a: n for (a, b), n in table.items() if b == of and a not in (of, unread) and n}
    parts = []
    if lost:
        parts.append(f"of {sum(lost.values())} no longer {WORDS[of]}, {_kinds(lost)}")
    if gained:
        parts.append(f"of {sum(gained.values())} newly {WORDS[of]}, {_kinds(gained)} before")
    other = {k: n for k, n in table.items() if (of not in k or unread in k) and k[0] != k[1] and n}
    parts += [f"{n} went from {WORDS[a]} to {WORDS[b]}" for (a, b), n in sorted(other.items())]
    return [f"{claim.contrast.subject}: {'; '.join(parts)}."] if parts else []


def _kinds(counts: Mapping[str, int]) -> str:
    return listed([f"{counts[label]} {word}" for label, word in WORDS.items() if label in counts])


def beyond(claim: Claim) -> list[str]:
    """What the control does, and whether a change that is shown goes beyond it."""
    control = claim.contrast.control
    if control is None or claim.beyond == "no control":
        return []
    c = claim.contrast
    test = "" if claim.beyond == "not tested" else _control_test(control, c.unit, claim.alpha)
    drawn = f"{_drawn(control, c.unit)}{test}"
    said = {
        "yes": f"this goes beyond {control.name}",
        "no": f"a change beyond {control.name} is not shown",
        "control does more": f"a larger change under {control.name}",
        "not tested": f"whether this goes beyond {control.name} is not tested",
    }[claim.beyond]
    return [f"{c.subject}: {said}: {drawn}."]


def _drawn(control: Control, unit: str) -> str:
    return listed([spelt(draw.estimate, unit) for draw in control.draws]) or "none was measured"


def _control_test(control: Control, unit: str, alpha: float) -> str:
    if control.below is None:
        return " (not to one side of all)"
    sides = ("fewer", "more") if unit == "share" else ("lower", "higher")
    side = sides[0 if control.below else 1]
    over = f", {p_value(control.corrected, alpha)} after Holm over {control.family} {control.family_of}"
    corrected = over if control.family > 1 else ""
    return f" ({side} than under each, largest {p_value(control.p, alpha)}{corrected}{_level(alpha)})"


# -- many ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Named:
    """A value and whose it is."""

    name: str
    estimate: Estimate


def extremes(subject: str, measure: str, values: Sequence[Named], *, unit: str, of: str) -> str:
    """The lowest and the highest of several values, with ties and with those that are not known.

    ``smollm2: AUROC of single heads over 9 heads: lowest 0.41 (L0H1), highest 0.93 (L2H0 and L2H1 tie); 1 unknown.``
    """
    known = [v for v in values if v.estimate.known]
    missing = f"; {len(values) - len(known)} unknown" if len(known) < len(values) else ""
    if not known:
        return f"{subject}: {measure} over 0 {of}{missing}."
    ends = [f(v.estimate.value for v in known) for f in (min, max)]
    if ends[0] == ends[1]:
        tie = f"all {len(known)} tie" if len(known) > 1 else known[0].name
        return f"{subject}: {measure} over {len(known)} {of}: {_common(known, unit)} ({tie}){missing}."
    parts = [
        f"{word} {_common(who, unit)} ({_tied([v.name for v in who])})"
        for word, end in zip(("lowest", "highest"), ends, strict=True)
        if (who := [v for v in known if v.estimate.value == end])
    ]
    return f"{subject}: {measure} over {len(known)} {of}: {', '.join(parts)}{missing}."


def _common(tied: Sequence[Named], unit: str) -> str:
    """The value that all have; its counts and its interval only where these are the same too."""
    said = {spelt(v.estimate, unit) for v in tied}
    return said.pop() if len(said) == 1 else number(tied[0].estimate.value, unit)


def _tied(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"{len(names)} tie"
    return names[0] if len(names) == 1 else f"{listed(names)} tie"


def counted(
    subject: str, hits: int, n: int, what: str, *, expected: float | None = None, unknown: int = 0
) -> str:
    """``smollm2: 3 of 30 heads have an AUROC above its control; 1.5 are expected by chance; 2 unknown.``"""
    parts = [f"{subject}: {hits} of {n} {what}"]
    if expected is not None:
        parts.append(f"{number(expected, '')} are expected by chance")
    if unknown:
        parts.append(f"{unknown} unknown")
    return f"{'; '.join(parts)}."


def tallies(
    subject: str, things: Sequence[Sequence[Sequence[Claim]]], *, of: str, measure: str, control: str
) -> list[str]:
    """How many things show a fall, one beyond every control, and a rise, at any of their changes.

    A thing has changes, and a change a claim for each of its controls. A fall whose control was not tested is unknown
    among those beyond it.
    """
    known = [thing for thing in things if any(change[0].direction != "not tested" for change in thing)]
    kinds: dict[str, Callable[[Sequence[Claim]], bool | None]] = {
        f"a fall in {measure}": lambda c: c[0].direction == "down",
        f"a fall in {measure} beyond {control}": _falls_beyond,
        f"a rise in {measure}": lambda c: c[0].direction == "up",
    }
    found = {kind: [_at_any(map(is_so, thing)) for thing in known] for kind, is_so in kinds.items()}
    return [
        counted(
            subject,
            outcomes.count(True),
            len(known) - outcomes.count(None),
            f"{of} show {kind}",
            unknown=len(things) - len(known) + outcomes.count(None),
        )
        for kind, outcomes in found.items()
    ]


def _falls_beyond(change: Sequence[Claim]) -> bool | None:
    """Whether a fall goes beyond every control; None where it does beyond all that were tested, and some were not."""
    beyond = {claim.beyond for claim in change}
    if change[0].direction != "down" or beyond & {"no", "control does more"}:
        return False
    return True if beyond == {"yes"} else None


def _at_any(outcomes: Iterable[bool | None]) -> bool | None:
    found = set(outcomes)
    return True if True in found else None if None in found else False


def series(claims: Sequence[tuple[str, Claim]], *, of: str) -> str:
    """At which of several doses, in their order, a change is first shown."""
    c = claims[0][1].contrast
    tested = [(name, claim) for name, claim in claims if claim.direction != "not tested"]
    left = f"; {len(claims) - len(tested)} not tested" if len(tested) < len(claims) else ""
    first: dict[str, str] = {}
    for name, claim in tested:
        if claim.shown:
            first.setdefault(claim.direction, name)
    parts = [
        f"a {word} is first shown at {first[way]}"
        for way, word in (("down", "fall"), ("up", "rise"))
        if way in first
    ]
    said = " and ".join(parts) or "no change is shown at any"
    return (
        f"{c.subject}: {c.measure} over {len(claims)} {of}: {f'{said}{left}' if tested else 'none tested'}."
    )


# -- judges -------------------------------------------------------------------------------------------


def by_judge(subject: str, measure: str, claims: Mapping[str, Claim], *, of: str = "judges") -> str:
    """Which judges (or judges and readings of their labels) show a rise, a fall, or none, and which were not tested."""
    ways = {
        "fall": [j for j, c in claims.items() if c.direction == "down"],
        "rise": [j for j, c in claims.items() if c.direction == "up"],
        "no change shown": [j for j, c in claims.items() if c.direction in ("none shown", "equal")],
        "not tested": [j for j, c in claims.items() if c.direction == "not tested"],
    }
    parts = [f"{way} by {len(who)} ({listed(who)})" for way, who in ways.items() if who]
    return f"{subject}: {measure}, by {len(claims)} {of}: {'; '.join(parts)}."


def disagreement(
    a: str,
    b: str,
    labels: Sequence[tuple[object, object]],
    *,
    kappa: float,
    measure: str = "answers labelled differently",
    unread: int = 0,
) -> str:
    """How two judges label the answers that both read; ``unread`` answers were not read by both."""
    if not labels:
        return f"{a} and {b}: no answer was read by both."
    differ = Estimate.of_counts(sum(x != y for x, y in labels), len(labels), unread=unread)
    agreed = "undefined" if kappa != kappa else number(kappa, "kappa")
    return f"{a} and {b}: {measure}, {spelt(differ, 'share')}, kappa {agreed}."


# -- claims with bounds over repetitions --------------------------------------------------------------


def held(claim: str, outcomes: Sequence[bool | None], *, of: str, control: str = "") -> str:
    """In how many repetitions a bound was met, was not, and could not be measured; with what its control does."""
    counts = Counter(outcomes)
    parts = [
        f"{word} in {counts[key]}"
        for key, word in ((True, "met"), (False, "not met"), (None, "not measurable"))
        if counts[key]
    ]
    said = ", ".join(parts) or "not measured"
    return f"{claim}: {said} of {len(outcomes)} {of}{f'; control: {control}' if control else ''}."


def missing(subject: str, why: str) -> str:
    """Why something is not there."""
    return f"{subject}: not measured ({why})."
