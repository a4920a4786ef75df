"""No sentence that the package makes of a drawn table is false: the evaluator knows the rows and docs/claims.md, not the code.

The package is a black box here: verdicts go in, sentences come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mechsafety.claims import corrected_over, paired_binary, paired_control, sentences
from tests.claims.drawn import CORNERS, MEASURES, VERDICTS, System, drawn_system, system
from tests.claims.evaluator import refuted
from tests.claims.facts import Facts, Family, labelled_change


@dataclass(frozen=True)
class Text:
    """What was said of each system, and what is known."""

    facts: Facts
    said: dict[str, list[str]] = field(default_factory=dict)

    def wrong(self) -> list[tuple[str, str, str]]:
        """Every sentence that is false or unsupported."""
        return refuted([sentence for each in self.said.values() for sentence in each], self.facts)


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
        "a larger change under",
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
