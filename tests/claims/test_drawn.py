"""No sentence that the package makes of a drawn table is false: the evaluator knows the rows and docs/claims.md, not the code.

The package is a black box here: verdicts go in, sentences come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mechsafety.claims import corrected_over, paired_binary, paired_control, sentences
from tests.claims.evaluator import refuted
from tests.claims.facts import Facts, Family, Labels, labelled_change

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


@dataclass(frozen=True)
class Text:
    """What was said of each system, and what is known."""

    facts: Facts
    said: dict[str, list[str]] = field(default_factory=dict)

    def wrong(self) -> list[tuple[str, str, str]]:
        """Every sentence that is false or unsupported."""
        return refuted([sentence for each in self.said.values() for sentence in each], self.facts)


def rows(letters: str, start: int = 0) -> dict[str, str]:
    """Verdicts by item from one letter each."""
    return {f"i{start + i}": VERDICTS[letter] for i, letter in enumerate(letters)}


def system(before: str, after: str, draws: Sequence[str] | None = None, **more) -> System:
    """A system from letters."""
    return System(
        rows(before), rows(after), None if draws is None else [rows(draw) for draw in draws], **more
    )


def say(systems: Sequence[System], *, family: bool) -> Text:
    """What the package says of systems, and the facts that it was given."""
    contrasts, changes = [], {}
    for i, each in enumerate(systems):
        subject, verdict = f"s{i}", MEASURES[each.measure]
        contrast = paired_binary(
            each.before, each.after, subject=subject, measure=each.measure, is_hit=verdict, margin=each.margin
        )
        if each.draws is not None:
            control = paired_control(each.control, each.after, each.draws, is_hit=verdict)
            contrast = replace(contrast, control=control)
        contrasts.append(contrast)
        draws = {} if each.draws is None else {each.control: each.draws}
        changes[subject, each.measure] = labelled_change(
            each.before, each.after, verdict, draws=draws, margin=each.margin
        )
    families = [Family("systems", list(changes))] if family else []
    contrasts = corrected_over(contrasts, "systems") if family else contrasts
    said = {f"s{i}": list(sentences(contrast)) for i, contrast in enumerate(contrasts)}
    return Text(Facts(changes, families), said)


def check(systems: Sequence[System], *, family: bool) -> Text:
    """Nothing said is refuted or unsupported, and something is said of each system, its change and its control."""
    text = say(systems, family=family)
    assert text.wrong() == []
    for i, each in enumerate(systems):
        said = text.said[f"s{i}"]
        assert sum(each.measure in sentence for sentence in said) == 1
        assert sum(each.control in sentence for sentence in said) == (each.draws is not None)
        moved = {item for item in each.before if item in each.after and each.before[item] != each.after[item]}
        assert any("longer" in s or "newly" in s or "went from" in s for s in said) == bool(moved)
    return text


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


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name: str) -> None:
    check([CORNERS[name]], family=False)


def test_corners_reach_every_claim() -> None:
    """Each word that the rules can decide on is said of some corner: a program that says little fails here."""
    said = " ".join(
        s for each in CORNERS.values() for of in say([each], family=False).said.values() for s in of
    )
    words = (
        "a rise in",
        "a fall in",
        "no change in",
        "equal within",
        "could be significant",
        "no longer",
        "newly",
        "went from",
    )
    controls = (
        "this goes beyond",
        "do more",
        "a change beyond",
        "whether this goes beyond",
        "none was measured",
        "not read",
    )
    assert [word for word in (*words, *controls) if word not in said] == []


def test_all_corners_are_one_family() -> None:
    """Holm over all, a family of 20 systems that do nothing, and one of 20 where one does something."""
    check(list(CORNERS.values()), family=True)
    alike = [
        system("r" * 9 + "c" * 5, "r" * (k % 10) + "c" * (14 - k % 10), ["r" * 9 + "c" * 5])
        for k in range(20)
    ]
    check(alike, family=True)
    check([*[CORNERS["nothing moved"]] * 19, CORNERS["fall"]], family=True)


@settings(max_examples=60, deadline=None)
@given(drawn_system())
@example(CORNERS["fall"])
def test_drawn_systems(each: System) -> None:
    check([each], family=False)


@settings(max_examples=15, deadline=None)
@given(st.lists(drawn_system(most=20), min_size=2, max_size=20))
def test_drawn_families(systems: list[System]) -> None:
    check(systems, family=True)


@settings(max_examples=40, deadline=None)
@given(drawn_system(), st.data())
def test_other_rows_refute_what_is_said(each: System, data: st.DataObject) -> None:
    """The control of the drawn tests: where the rows of one answer change, what was said of the others is false."""
    hit = MEASURES[each.measure]
    read = sorted(i for i in each.after if "unparsed" not in (each.before.get(i, "unparsed"), each.after[i]))
    assume(read)
    item = data.draw(st.sampled_from(read))
    other = data.draw(
        st.sampled_from(
            [v for v in VERDICTS.values() if v != each.after[item] and hit in (v, each.after[item])]
            or ["unparsed"]
        )
    )
    rows_of_another = replace(each, after={**each.after, item: other})
    text = Text(say([rows_of_another], family=False).facts, say([each], family=False).said)
    assert text.wrong()


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(drawn_system())
def test_many_drawn_systems(each: System) -> None:
    check([each], family=False)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(drawn_system(), min_size=2, max_size=20))
def test_many_drawn_families(systems: list[System]) -> None:
    check(systems, family=True)
