"""What agreement says of drawn verdicts of several judges: nothing false, and every system and judge that there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.experiments.agreement.findings import by_judge_sentences, disagreement_sentences
from mechsafety.statistics import agreement, judge_effects
from tests.claims.drawn import CORNERS, System, drawn_system, few
from tests.claims.evaluator import refuted, unsaid
from tests.claims.facts import Change, Facts, Family, Key, RealChange

READINGS: Mapping[str, Mapping[str, bool]] = {
    "": {"refusal": True, "compliance": False, "degenerate": False},
    "coherent only": {"refusal": True, "compliance": False},
    "not compliance": {"refusal": True, "compliance": False, "degenerate": True},
    "unparsed refuses": {"refusal": True, "compliance": False, "degenerate": False, "unparsed": True},
    "unparsed complies": {"refusal": True, "compliance": False, "degenerate": False, "unparsed": False},
}
"""As docs/statistics.md has them: what counts as a refusal; a label that is not named is not read."""


def verdicts_of(judged: Mapping[str, Sequence[System]]) -> pd.DataFrame:
    rows = [
        (f"s{s}", arm, str(item), "harmful", judge, verdict)
        for judge, systems in judged.items()
        for s, each in enumerate(systems)
        for arm, labels in (("original", each.before), ("edited", each.after))
        for item, verdict in labels.items()
    ]
    return pd.DataFrame(rows, columns=["system", "arm", "id", "label", "judge", "verdict"])


def facts_of(judged: Mapping[str, Sequence[System]]) -> Facts:
    """By system and by judge and reading; a reading that tells nothing of a judge's labels from the plain one is none."""
    changes: dict[Key, Change | RealChange] = {}
    families, judges = [], {}
    for judge, systems in judged.items():
        for name, reading in READINGS.items():
            shown, keys = f"{judge} · {name}" if name else judge, []
            for s, each in enumerate(systems):
                used = {*each.before.values(), *each.after.values()}
                tells = any(reading.get(v) != READINGS[""].get(v) for v in used)
                if not used or (name and not tells):
                    continue
                key = (f"s{s} by {shown}", "refusals")
                sides = [{i: reading.get(v) for i, v in side.items()} for side in (each.before, each.after)]
                changes[key] = Change(sides[0], sides[1])
                judges.setdefault((f"s{s}, harmful prompts", "refusals"), {})[shown] = key
                keys.append(key)
            families.append(Family("systems", keys))
    answers = {
        judge: {
            (s, arm, item): verdict
            for s, each in enumerate(systems)
            for arm, labels in (("original", each.before), ("edited", each.after))
            for item, verdict in labels.items()
        }
        for judge, systems in judged.items()
    }
    several = {key: of for key, of in judges.items() if len(of) > 1}
    return Facts(changes, families, judges=several, answers=answers)


def check(judged: Mapping[str, Sequence[System]]) -> str:
    table, facts = verdicts_of(judged), facts_of(judged)
    said = by_judge_sentences(judge_effects(table))
    said += disagreement_sentences(table, agreement(table, resamples=20), primary="A")
    assert refuted(said, facts) == []
    assert unsaid(said, Facts(judges=facts.judges)) == []
    assert sum("calls a refusal" in s or "no answer was read" in s for s in said) == len(judged) - 1
    return " ".join(said)


PAIRED = [
    n for n, c in CORNERS.items() if c.before and list(c.before) == list(c.after) and len(c.before) < 300
]


@pytest.mark.parametrize("name", PAIRED)
def test_a_corner_under_two_judges(name: str) -> None:
    """The other judge reads the arms the other way round: opposite sides, or equal ones."""
    each = CORNERS[name]
    check({"A": [each], "B": [System(each.after, each.before)]})


def test_opposite_judges_and_one_that_reads_nothing() -> None:
    each, unread = CORNERS["fall"], dict.fromkeys(CORNERS["fall"].before, "unparsed")
    said = check({"A": [each], "B": [System(each.after, each.before)], "C": [System(unread, unread)]})
    assert "fall by" in said
    assert "rise by" in said
    assert "not tested by" in said


@few(8)
@given(st.lists(drawn_system(most=13), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_drawn_judges(systems: list[System], random) -> None:
    def other(labels: Mapping) -> dict:
        return {i: random.choice(["refusal", "compliance", v]) for i, v in labels.items()}

    check({"A": systems, "B": [System(other(each.before), other(each.after)) for each in systems]})
