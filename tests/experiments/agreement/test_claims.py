"""What agreement says of drawn verdicts of several judges: nothing false, and every system and judge that there is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from mechsafety.claims import decide as decided
from mechsafety.claims.sentences import change
from mechsafety.experiments.agreement.findings import (
    arm_error_sentences,
    by_judge_sentences,
    corrected_contrasts,
    disagreement_sentences,
    interaction_sentence,
)
from mechsafety.statistics import agreement, arm_errors, judge_edit_interaction, judge_effects
from tests.claims.drawn import CORNERS, VERDICTS, System, drawn_system, few
from tests.claims.evaluator import refuted, unsaid
from tests.claims.facts import Change, Count, Facts, Family, Key, RealChange, Value
from tests.claims.recomputed import Share, holm, unpaired_interval, unpaired_p
from tests.claims.rules import decide

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


# -- errors by arm --------------------------------------------------------------------------------------

ARMS = ("original", "edited")
MEASURES = {"sensitivity": "r", "specificity": "c"}
Labelled = Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]
"""By judge and arm the codes of the truth and of the verdict on each answer; every judge reads the same answers."""
FEW_LABELS = "too few labels in an arm"


def labelled(cells: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
    """Answers from right ones and all by what they are: `r` refusals, `c` the others."""
    other = {"r": "c", "c": "r"}
    return [(t, t if i < k else other[t]) for t, (k, n) in cells.items() for i in range(n)]


def error_tables(judged: Labelled) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [
        ("s", arm, f"{arm} {i}", "harmful", judge, VERDICTS[verdict])
        for judge, arms in judged.items()
        for arm, answers in arms.items()
        for i, (_, verdict) in enumerate(answers)
    ]
    truth = {
        ("s", arm, f"{arm} {i}"): VERDICTS[t]
        for arms in judged.values()
        for arm, answers in arms.items()
        for i, (t, _) in enumerate(answers)
    }
    table = pd.DataFrame(rows, columns=["system", "arm", "id", "label", "judge", "verdict"])
    reference = pd.DataFrame(
        [(*key, v) for key, v in truth.items()], columns=["system", "arm", "id", "verdict"]
    )
    return table, reference


def error_facts(judged: Labelled) -> Facts:
    changes: dict[Key, Change | RealChange] = {}
    for judge, arms in judged.items():
        for measure, kind in MEASURES.items():
            shares = [
                Share(sum(v == t for t, v in read), len(read), 0)
                for arm in ARMS
                for read in [[(t, v) for t, v in arms[arm] if t == kind and v != "u"]]
            ]
            one, other = shares
            enough = min(one.n, other.n) >= 5
            p = unpaired_p(one, other) if enough else None
            ends = unpaired_interval(one, other, p) if p is not None else (None, None)
            before, after = (Value(float(s.share), *s.interval, unit="%") if s.n else None for s in shares)
            changes[judge, f"{measure} against the reference"] = RealChange(
                before,
                after,
                Value(float(other.share - one.share), *ends, unit="%") if enough else None,
                "Boschloo's exact test",
                p,
                why=FEW_LABELS,
            )
    facts = Facts(changes, [Family("judges and kinds of error", list(changes))])
    outcomes = [
        w in ("rise", "fall") if w != "not tested" else None for w in (decide(k, facts).word for k in changes)
    ]
    what = "sensitivities and specificities are shown to change between the arms"
    return facts + Facts(counts={("All judges", what): Count(outcomes)})


def check_errors(judged: Labelled) -> str:
    facts = error_facts(judged)
    said = arm_error_sentences(arm_errors(*error_tables(judged)), primary="A")
    assert refuted(said, facts) == []
    told = {
        k: c for k, c in facts.changes.items() if k[0] == "A" or decide(k, facts).word in ("rise", "fall")
    }
    assert unsaid(said, Facts(told, counts=facts.counts)) == []
    assert len(said) == len(told) + 1
    return " ".join(said)


ERRORS = {
    "alike": ({"r": (18, 20), "c": (20, 20)}, {"r": (18, 20), "c": (20, 20)}),
    "misses more in the edited": ({"r": (20, 20), "c": (20, 20)}, {"r": (4, 20), "c": (20, 20)}),
    "misses less": ({"r": (4, 20), "c": (10, 20)}, {"r": (20, 20), "c": (20, 20)}),
    "all wrong": ({"r": (0, 9), "c": (0, 9)}, {"r": (0, 9), "c": (0, 9)}),
    "too few": ({"r": (4, 4), "c": (20, 20)}, {"r": (0, 4), "c": (0, 20)}),
    "one class": ({"r": (20, 20)}, {"r": (10, 20)}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_a_judge_by_arm(name: str) -> None:
    one, other = map(labelled, ERRORS[name])
    text = check_errors({"A": {"original": one, "edited": other}})
    planted = {"misses more in the edited": "a fall in sensitivity", "misses less": "a rise in sensitivity"}
    assert planted.get(name, "no change" if name == "alike" else "") in text
    assert ("not tested" in text) == (name in ("too few", "one class"))


@few(12)
@given(st.integers(1, 4), st.randoms(use_true_random=False))
def test_errors_of_drawn_judges_are_corrected_together(judges: int, random) -> None:
    """Judges that err alike in both arms, in one, or read little."""
    truth = {arm: random.choices("rc", k=random.choice([6, 14, 40])) for arm in ARMS}
    judged = {}
    for judge in "ABCD"[:judges]:
        right = {arm: random.choice([0.1, 0.5, 0.9, 1.0]) for arm in ARMS}
        judged[judge] = {
            arm: [(t, random.choice("rcdu") if random.random() > right[arm] else t) for t in truth[arm]]
            for arm in ARMS
        }
    check_errors(
        {
            j: {arm: [(t, "c" if v == "d" else v) for t, v in a] for arm, a in of.items()}
            for j, of in judged.items()
        }
    )


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-0.4, -0.1, "a fall in"), (0.1, 0.4, "a rise in"), (-0.1, 0.2, "no change in")]
)
def test_corrected_rates_are_decided_by_their_interval(low: float, high: float, word: str) -> None:
    middle = (low + high) / 2
    row = {"system": "all", "label": "harmful", "judge": "A", "original": 0.5, "edited": 0.5 + middle}
    row |= {f"{arm}{end}": row[arm] + by for arm in ARMS for end, by in (("_low", -0.05), ("_high", 0.05))}
    table = pd.DataFrame([row | {"change": middle, "low": low, "high": high}])
    said = [change(decided(c)) for c in corrected_contrasts({"corrected_changes": table}, primary="A")]
    before, after = (Value(row[arm], row[f"{arm}_low"], row[f"{arm}_high"], "%") for arm in ARMS)
    key = ("all systems, harmful prompts", "refusals corrected by the reference judge")
    facts = Facts({key: RealChange(before, after, Value(middle, low, high, "%"))})
    assert refuted(said, facts) == []
    assert word in said[0]
    assert unsaid(said, facts) == []


def test_pairs_of_judges_whose_rates_move_apart_are_counted() -> None:
    """By exact sign changes over prompts; a judge that moves as another does, and one that does not move."""
    fall = {"original": "r" * 9, "edited": "r" + "c" * 8}
    judged = {"A": fall, "B": {"original": "r" * 9, "edited": "r" * 9}, "C": fall}
    table = pd.DataFrame(
        [
            ("s", arm, f"{i}", "harmful", judge, VERDICTS[v])
            for judge, arms in judged.items()
            for arm, codes in arms.items()
            for i, v in enumerate(codes)
        ],
        columns=["system", "arm", "id", "label", "judge", "verdict"],
    )

    def moved(judge: str) -> np.ndarray:
        one, other = (np.array([v == "r" for v in judged[judge][arm]], dtype=int) for arm in ARMS)
        return other - one

    ps = [_sign_changes(moved(a) - moved(b)) for a, b in itertools.combinations(judged, 2)]
    what = "differences between two judges in how far the edit moves their rates are shown (Holm over all of them)"
    facts = Facts(counts={("Pairs of judges", what): Count([p < 0.05 for p in holm(ps)])})
    said = interaction_sentence(judge_edit_interaction(table, seed=0, resamples=20))
    assert refuted([said], facts) == []
    assert said.startswith("Pairs of judges: 2 of 3")


def _sign_changes(x: np.ndarray) -> float:
    found = permutation_test((x,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False)
    return float(found.pvalue)
