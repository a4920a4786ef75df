"""What an audit says of drawn counts and verdicts: nothing false, and every comparison, judge and count that there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.audit.findings import audit_sections
from tests.claims.drawn import CORNERS, few
from tests.claims.evaluator import refuted, unsaid
from tests.claims.facts import Change, Count, Facts, Family, Items, Key, RealChange, Value, hits
from tests.claims.recomputed import holm
from tests.claims.rules import decide
from tests.experiments.audit.test_work import audited, counts_file, verdict_rows

Counts = tuple[int, int, int, int]  # refused and all, before and after
MEASURE = "refusals"
UNPARSED = "unparsed"


def items(k: int, n: int, side: str) -> Items:
    return {f"{side} {i}": i < k for i in range(n)}


def _known(value: float, unit: str = "") -> Value | None:
    return None if value != value else Value(value, unit=unit)


def facts_of(changes: Mapping[str, Change], found, judges: Mapping[str, Mapping[str, str]]) -> Facts:
    """By subject; `judges` are subjects by system and judge. Numbers that no sentence form is about are the table's own."""
    keyed: dict[Key, Change | RealChange] = {
        (subject, MEASURE): change for subject, change in changes.items()
    }
    facts = Facts(keyed, [Family("comparisons", list(keyed))], alpha=found.alpha)
    at = "" if found.alpha == 0.05 else f" at alpha {found.alpha:g}"
    words = {key[0]: decide(key, facts).word for key in keyed}
    changed = [
        (system, of) for system, of in judges.items() if {words[s] for s in of.values()} & {"rise", "fall"}
    ]
    counts = {("Comparisons", f"differences are shown{at}"): Count([_shown(word) for word in words.values()])}
    if any(len(of) > 1 for of in judges.values()):
        several = [of for of in judges.values() if len(of) > 1]
        outcomes = [bool({words[s] for s in of.values()} & {"rise", "fall"}) for of in several]
        what = "systems and kinds of prompts are shown to change by some judge"
        counts["Under several judges", what] = Count(outcomes)
    table, extremes = found.comparisons, {}
    measure = "smallest fall found with power 0.8 where nothing is newly refused"
    for column, when in (("detectable", "without"), ("detectable_corrected", "after")):
        subject = f"Paired tests {when} correction"
        names = [_name(row, table) for row in table.to_dict(orient="records")]
        sizes = (_known(100 * x, "points") for x in table[column])
        extremes[subject, measure, "comparisons"] = dict(zip(names, sizes, strict=True))
        what = "comparisons have no fall that is found with power 0.8"
        counts[subject, what] = Count([bool(x != x) for x in table[column]])
    given = table[table["data"] == "counts"]
    if len(given):
        subject = "Comparisons given as counts, a paired test after correction"
        always = [None if p != p else p < found.alpha for p in given["paired_holm_worst"]]
        never = [None if p != p else p >= found.alpha for p in given["paired_holm_best"]]
        counts[subject, "would show a difference whatever the pairs"] = Count(always)
        counts[subject, "would show none whatever the pairs"] = Count(never)
    by = {
        (system, MEASURE): {judge: (subject, MEASURE) for judge, subject in of.items()}
        for system, of in changed
        if len(of) > 1
    }
    missing = (
        {}
        if any(len(of) > 1 for of in judges.values())
        else {"Whether another judge shows the same": "one judge"}
    )
    return facts + Facts(extremes=extremes, counts=counts, judges=by, missing=missing, alpha=found.alpha)


def _shown(word: str) -> bool | None:
    return None if word == "not tested" else word in ("rise", "fall")


def _name(row: Mapping, table: pd.DataFrame) -> str:
    several = [column for column in ("label", "judge") if len(set(table[column])) > 1]
    return ", ".join([row["system"], *(row[column] for column in several)])


def check_counts(path: Path, judged: Mapping[str, Mapping[str, Counts]], alpha: float = 0.05) -> list[str]:
    """Systems by judge, as counts."""
    rows, changes, judges = [], {}, {}
    for judge, systems in judged.items():
        for system, (k, n, edited, m) in systems.items():
            rows += [(system, "harmful", judge, k, n), (f"{system}-ALB", "harmful", judge, edited, m)]
            subject = f"{system}, harmful prompts, {judge}"
            changes[subject] = Change(items(k, n, "a"), items(edited, m, "b"), paired=False)
            judges.setdefault(f"{system}, harmful prompts", {})[judge] = subject
    try:
        found = audited(counts_file(path / "counts.csv", rows), family="all", alpha=alpha)
    except MechsafetyError:  # every judge is broken
        return []
    said = [s for s in found.sentences if not _of_other_tables(s)]
    out = set(found.broken["judge"])
    if out:
        changes = {s: c for s, c in changes.items() if s.rpartition(", ")[2] not in out}
        judges = {s: {j: n for j, n in of.items() if j not in out} for s, of in judges.items()}
    facts = facts_of(changes, found, judges)
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []
    return said


def _of_other_tables(sentence: str) -> bool:
    """Sentences on judges against the prompts' labels, each other's order, and judges that are left out."""
    starts = ("Against the prompts' labels", "harmful prompts: ", "All judges: ")
    return (
        sentence.startswith(starts)
        or "left out of every other number" in sentence
        or "sensitivity against" in sentence
        or "specificity against" in sentence
    )


COUNTS: dict[str, Counts] = {
    "fall": (46, 50, 6, 50),
    "rise": (6, 50, 46, 50),
    "equal": (25, 50, 25, 50),
    "all": (50, 50, 50, 50),
    "none after": (40, 40, 0, 60),
    "one each": (1, 1, 0, 1),
    "unequal": (3, 3, 60, 200),
    "just not": (9, 20, 3, 20),
}


@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_another_level_decides_and_is_said(tmp_path: Path, alpha: float) -> None:
    """p = .02 is no difference at .01 and one at .1; without its level a sentence would contradict its p."""
    judged = {"A": {"m": (30, 50, 18, 50), "n": (30, 50, 23, 50)}}
    said = check_counts(tmp_path, judged, alpha=alpha)
    shown = [s for s in said if "a fall in refusals" in s]
    assert len(shown) == (0 if alpha == 0.01 else 1)
    assert all(f", alpha {alpha:g})" in s for s in said if " refusals, original" in s or "in refusals" in s)


@pytest.mark.parametrize("name", COUNTS)
def test_one_comparison(name: str, tmp_path: Path) -> None:
    assert check_counts(tmp_path, {"A": {"X": COUNTS[name]}})


def test_judges_of_opposite_sides(tmp_path: Path) -> None:
    systems = {"X": COUNTS["fall"], "Y": COUNTS["equal"], "Z": COUNTS["one each"]}
    said = check_counts(tmp_path, {"A": systems, "B": {**systems, "X": COUNTS["rise"]}})
    assert any("fall by 1 (A); rise by 1 (B)" in s for s in said)


@few(8)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 30), st.integers(1, 30), st.integers(0, 30)),
        min_size=1,
        max_size=8,
    )
)
def test_drawn_counts(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, int, int]]
) -> None:
    systems = {f"M{i}": (min(k, n), n, min(j, m), m) for i, (n, k, m, j) in enumerate(drawn)}
    systems["first"] = (10, 20, 9, 20)
    check_counts(tmp_path_factory.mktemp("counts"), {"A": systems})


@pytest.mark.parametrize(
    "name", [n for n, c in CORNERS.items() if c.before and len(c.after) == len(c.before) < 300]
)
def test_verdicts(name: str, tmp_path: Path) -> None:
    """Answers one by one are tested in pairs."""
    each = CORNERS[name]
    rows = verdict_rows(*([_reading(v) for v in side.values()] for side in (each.before, each.after)))
    path = tmp_path / "verdicts.csv"
    pd.DataFrame(rows, columns=["question", "label", "model", "response", "is_refusal_A"]).to_csv(
        path, index=False
    )
    try:
        found = audited(path, family="all")
    except MechsafetyError:
        return
    change = Change(*(hits(side, "refusal") for side in (each.before, each.after)))
    subject = "X, harmful prompts, A"
    facts = facts_of({subject: change}, found, {"X, harmful prompts": {"A": subject}})
    said = [s for s in found.sentences if not _of_other_tables(s)]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []


def _reading(verdict: str) -> str:
    return "" if verdict == UNPARSED else "1" if verdict == "refusal" else "0"


# -- judges against the prompts' labels, and against each other ------------------------------------------

RATES = {
    "alike": [(2, 18), (5, 15), (9, 12), (12, 7), (15, 4), (20, 1)],
    "reversed": [(20, 1), (15, 4), (12, 7), (9, 12), (5, 15), (2, 18)],
    "ties": [(2, 2), (2, 2), (9, 9), (9, 9), (15, 15), (15, 15)],
    "constant": [(10, 10)] * 6,
}
"""Refused of 20 by six systems, before and after; A's are the first."""


def _share(k: int, n: int) -> float:
    return k / n if n else math.nan


@pytest.mark.parametrize("name", RATES)
def test_judges_against_labels_and_orders(name: str, tmp_path: Path) -> None:
    """Accuracy, precision and recall by raw counts; orders by Kendall's tau of the models' rates, with ties and constants."""
    judged, n = {"A": RATES["alike"], "B": RATES[name], "C": RATES["constant"]}, 20
    rows, truth, orders = [], {}, {}
    for judge, of in judged.items():
        harmful = [k for pair in of for k in pair]
        harmless = [max(0, k - 6) for k in harmful]
        for label, counts in (("harmful", harmful), ("harmless", harmless)):
            models = [f"M{i // 2}{'-ALB' * (i % 2)}" for i in range(len(counts))]
            rows += [(model, label, judge, k, n) for model, k in zip(models, counts, strict=True)]
            orders[judge, label] = counts
        hits, alarms, every = sum(harmful), sum(harmless), n * len(harmful)
        right = hits + every - alarms
        truth[judge] = (right / (2 * every), _share(hits, hits + alarms), hits / every)
    found = audited(counts_file(tmp_path / "counts.csv", rows), family="all")
    extremes: dict[tuple[str, str, str], Mapping[str, Value | None]] = {
        ("Against the prompts' labels", measure, "judges"): {j: _known(v[at], "%") for j, v in truth.items()}
        for at, measure in enumerate(("accuracy", "precision", "recall"))
    }
    counts = {}
    for label in ("harmful", "harmless"):
        pairs = {}
        for a, b in itertools.combinations(judged, 2):
            constant = 1 in (len({*orders[a, label]}), len({*orders[b, label]}))
            tau = (math.nan, math.nan) if constant else kendalltau(orders[a, label], orders[b, label])
            pairs[f"{a} and {b}"] = (float(tau[0]), float(tau[1]))
        extremes[f"{label} prompts", "Kendall's tau of the models' order", "pairs of judges"] = {
            pair: _known(tau) for pair, (tau, _) in pairs.items()
        }
        tested = [pair for pair, (_, p) in pairs.items() if p == p]
        adjusted = dict(zip(tested, holm([pairs[pair][1] for pair in tested]), strict=True))
        for way, sign in (("alike", 1), ("the other way", -1)):
            outcomes = [
                adjusted[pair] < 0.05 and tau * sign > 0 if pair in adjusted else None
                for pair, (tau, _) in pairs.items()
            ]
            counts[f"{label} prompts", f"pairs of judges order the models {way} beyond chance"] = Count(
                outcomes
            )
    facts = Facts(extremes=extremes, counts=counts)
    said = [s for name in ("prompt_labels", "pairs") for s in audit_sections(found)[name]]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [("rrrrcccc", "rrrrcccc"), ("rrrrcccc", "ccccrrrr"), ("rrrrcccc", "rrurcccu"), ("rrrrcccc", "uuuuuuuu")],
)
def test_answers_of_two_judges_one_by_one(one: str, other: str, tmp_path: Path) -> None:
    """How often they differ, with what one of them did not read; a judge that read nothing is no judge."""
    letters = {"r": "1", "c": "0", "u": ""}
    said_by = {"A": one + "r", "B": other + "u"}
    rows = [
        (f"question {i}", "harmful", model, "text", *(letters[said_by[judge][i]] for judge in "AB"))
        for model in ("X", "X-ALB")
        for i in range(len(one) + 1)
    ]
    path = tmp_path / "verdicts.csv"
    columns = ["question", "label", "model", "response", "is_refusal_A", "is_refusal_B"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    sections = audit_sections(audited(path, family="all"))
    codes = {"r": "refusal", "c": "compliance", "u": UNPARSED}
    answers = {
        judge: {(model, i): codes[v] for model in ("X", "X-ALB") for i, v in enumerate(letters_of)}
        for judge, letters_of in said_by.items()
    }
    said = sections.get("agreement", [])
    assert refuted(said, Facts(answers=answers)) == []
    assert len(said) == (other != "uuuuuuuu")


def test_a_judge_that_calls_nothing_a_refusal_is_named(tmp_path: Path) -> None:
    rows = [
        (f"X{end}", "harmful", judge, k, 40) for end in ("", "-ALB") for judge, k in (("A", 20), ("Blind", 0))
    ]
    found = audited(counts_file(tmp_path / "counts.csv", rows), family="all")
    measure = "refusals of harmful prompts by a judge that is left out of every other number"
    facts = Facts(levels={("Blind", measure): items(0, 80, "b")})
    assert refuted(audit_sections(found)["broken"], facts) == []
    assert not any(
        "Blind" in s for name, told in audit_sections(found).items() if name != "broken" for s in told
    )


def test_names_with_commas_slashes_and_lines_keep_their_judges(tmp_path: Path) -> None:
    """Judges that share what stands before a comma are three judges, not two and one; a name stays on one line."""
    systems = {
        "a|b*c": (40, 50, 10, 50),
        "new line <b>x</b>": (40, 50, 45, 50),
        "X, harmful prompts": (9, 50, 9, 50),
    }
    judged = dict.fromkeys(("llm, strict", "llm, lenient", "J"), systems)
    said = check_counts(tmp_path, judged)
    of_judges = [s for s in said if "judges: " in s and s.startswith("a|b*c")]
    assert of_judges == [s for s in of_judges if "by 3 judges: fall by 3" in s]
    assert of_judges
    rows = [("new\nline", "harmful", "J", 40, 50), ("new\nline-ALB", "harmful", "J", 4, 50)]
    broken = audited(counts_file(tmp_path / "lines.csv", rows))
    assert not any("\n" in sentence for sentence in broken.sentences)
