"""What a sweep says of drawn verdicts over doses: nothing false, and every dose, control and series that there is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.experiments.sweep.findings import sweep_findings
from tests.claims.drawn import CORNERS, VALUES, System, change_of, drawn_system, drawn_values, few
from tests.claims.evaluator import refuted, unsaid
from tests.claims.facts import Facts, Family, Value
from tests.claims.rules import decide

LABELS = ("harmful", "harmless")
CONTROL = "random directions of like energy"
SELECTED = {"selection": {"layer": 2, "position": -1}, "method": "best", "explanation": "Selected: layer 2"}
MANIFEST = {"selected": SELECTED, "selections": {"best": SELECTED}}
RATIO = "perplexity of the unedited model's own answers, over that unedited"


def tables_of(doses: Mapping[str, System], values: str = "apart") -> dict[str, pd.DataFrame]:
    rows = []

    def add(family: str, dose: str, direction: str, found: Mapping) -> None:
        rows.extend(
            (family, dose, direction, label, f"{label} {i}", v) for label in LABELS for i, v in found.items()
        )

    add("none", "unedited", "none", next(iter(doses.values())).before)
    for dose, each in doses.items():
        add("alpha", dose, "refusal", each.after)
        for draw, found in enumerate(each.draws or []):
            add("alpha", dose, f"random {draw}", found)
    numbers = drawn_values(values, 4)
    curves = [{"family": "none", "dose": "unedited", "control": False, "perplexity": 2.0}]
    curves += [
        {"family": "alpha", "dose": "1", "control": control, "perplexity": x}
        for control, some in ((False, numbers[:1]), (True, numbers[1:]))
        for x in some
    ]
    return {
        "stability": pd.DataFrame(
            {"layer": [2.0, math.nan], "position": [-1.0, math.nan], "share": [0.75, 0.25]}
        ),
        "profile": pd.DataFrame({"layer": [2], "auroc": [0.9], "auroc_low": [0.8], "auroc_high": [0.95]}),
        "doses": pd.DataFrame(curves),
        "verdicts": pd.DataFrame(rows, columns=["family", "dose", "direction", "label", "id", "verdict"]),
    }


AGAIN = "Selection by scores alone, validation prompts drawn again"


def facts_of(doses: Mapping[str, System], values: str = "apart") -> Facts:
    facts = Facts()
    before = next(iter(doses.values())).before
    for label in LABELS:
        measure, keys = f"refusals of {label} prompts", {}
        changes = {}
        for dose, each in doses.items():
            if each.after:
                keys[dose] = (f"Projection at alpha {dose}", measure)
                changed = System(before, each.after, each.draws)
                changes[keys[dose]] = change_of(changed, ("unedited", "projected"), CONTROL)
        series = {("Projection", measure, "strengths alpha"): keys} if keys else {}
        facts += Facts(changes, [Family("strengths", list(changes))], series=series)
    at = ("Projection at alpha 1", RATIO)
    numbers = [Value(x / 2.0, unit="times") if x == x else None for x in drawn_values(values, 4)]
    return facts + Facts(
        levels={
            (AGAIN, "resamples that pick layer 2 at position -1"): Value(0.75, unit="%"),
            (AGAIN, "resamples in which no candidate passes"): Value(0.25, unit="%"),
            ("Direction of layer 2, position -1", "AUROC of its projection on held-out prompts"): Value(
                0.9, 0.8, 0.95
            ),
        },
        extremes={
            (*at, "refusal direction"): {"refusal direction": numbers[0]},
            (*at, "random directions"): {f"draw {i}": x for i, x in enumerate(numbers[1:], start=1)},
        },
    )


def check(doses: Mapping[str, System], values: str = "apart") -> str:
    said = sweep_findings(tables_of(doses, values), MANIFEST)
    facts = facts_of(doses, values)
    made = [s for s in said if not s.startswith("Selected")]
    assert refuted(made, facts) == []
    first = {key: c for key, c in facts.changes.items() if key[0] == "Projection at alpha 1"}
    assert unsaid(made, Facts(first, series=facts.series, extremes=facts.extremes)) == []
    return " ".join(said)


@pytest.mark.parametrize("name", CORNERS)
def test_one_dose(name: str) -> None:
    check({"1": CORNERS[name]})


@pytest.mark.parametrize("values", VALUES)
def test_perplexities(values: str) -> None:
    check({"1": CORNERS["fall"]}, values)


@few(10)
@given(st.lists(drawn_system(most=20), min_size=2, max_size=4))
def test_drawn_doses(steps: list[System]) -> None:
    names = ["0.5", "1", "1.5", "2"]
    check(dict(zip(names, steps, strict=False)))


def test_every_claim_is_reached() -> None:
    said = " ".join(check({"1": each}) for each in CORNERS.values())
    words = (
        "a rise in",
        "a fall in",
        "no change in",
        "first shown at 1",
        "this goes beyond",
        "a larger change under",
        "not tested",
    )
    assert [w for w in words if w not in said] == []
    facts = facts_of({"1": CORNERS["fall"]})
    assert decide(("Projection at alpha 1", "refusals of harmful prompts"), facts).word == "fall"


def test_where_answers_decided_the_share_of_resamples_is_said_to_be_of_scores() -> None:
    """Scores pick the candidate that answers chose in 0 % of resamples, and in 60 % one of those whose answers were read."""
    tables = tables_of({"1": CORNERS["fall"]})
    tables["stability"] = pd.DataFrame(
        {"layer": [3.0, 5.0, math.nan], "position": [-1.0, -1.0, math.nan], "share": [0.6, 0.3, 0.1]}
    )
    scores = {
        "removed": 1.0,
        "caused": 1.0,
        "kl": 0.1,
        "n_answers": 9,
        "refused": 0.0,
        "degenerate": 0.0,
        "nll": 1.0,
    }
    tables["sweep"] = pd.DataFrame(
        {"layer": [2, 3, 5], "position": -1, "complied": [1.0, 0.5, math.nan], "method": "best"}
    ).assign(**scores)
    place = {"layer": 2, "position": -1, "confirmed": {"candidates": 2}}
    selected = {**SELECTED, "selection": place}
    said = sweep_findings(tables, {"selected": selected, "selections": {"best": selected}})
    shares = {
        "resamples that pick one of the 2 candidates whose answers were read": 0.6,
        "resamples that pick layer 2 at position -1 as answers did": 0.0,
        "resamples in which no candidate passes": 0.1,
    }
    facts = Facts(levels={(AGAIN, measure): Value(x, unit="%") for measure, x in shares.items()})
    told = [s for s in said if s.startswith(AGAIN)]
    assert refuted(told, facts) == []
    assert len(told) == 3
    assert not any("this candidate" in s for s in said)
