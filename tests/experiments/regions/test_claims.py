"""What a regions run says of drawn tables: nothing false, and every change, control and count that there is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.experiments.regions.contrasts import link_claims, removal_claims
from mechsafety.experiments.regions.findings import region_findings
from tests.claims.drawn import (
    CORNERS,
    VALUES,
    System,
    change_of,
    drawn_system,
    drawn_values,
    falls_beyond,
    few,
    tally,
)
from tests.claims.evaluator import refuted, unsaid
from tests.claims.facts import Change, Count, Facts, Family, Labels, Value
from tests.claims.rules import decide

STATE = ["removal", "setting", "control", "draw"]
CONTROLS = {
    "random": "random removals of the same number",
    "matched": "random removals of the same number and size",
}
LABELS = ("harmful", "harmless")


def rows_of(part: str, states: Mapping[tuple, Labels], labels: Sequence[str] = LABELS) -> pd.DataFrame:
    rows = [
        (part, *state, f"{label} {i}", label, verdict)
        for state, found in states.items()
        for label in labels
        for i, verdict in found.items()
    ]
    return pd.DataFrame(rows, columns=["part", *STATE, "id", "label", "verdict"])


def removals(settings_of: Sequence[System], told: int = 0) -> tuple[dict[str, pd.DataFrame], dict]:
    """A run that removed the top weights at several settings, and the sweet spot, which sentences speak of."""
    states: dict[tuple, Labels] = {("none", "", "model", 0): settings_of[0].before}
    tradeoff = [{"removal": "none", "setting": "", "control": "model", "draw": 0}]
    for i, each in enumerate(settings_of):
        tradeoff.append({"removal": "top_safety", "setting": f"q={i}", "control": "removed", "draw": 0})
        states["top_safety", f"q={i}", "removed", 0] = each.after
        for draw, labels in enumerate(each.draws or []):
            for control in CONTROLS:
                states["top_safety", f"q={i}", control, draw] = labels
    table = pd.DataFrame(tradeoff).assign(complied=0.5, refused=0.5, harmless_refused=math.nan)
    table = table.assign(harmful_n=50, harmless_n=50)
    sweet = {"removal": "top_safety", "setting": f"q={told}"}
    return {"tradeoff": table, "verdicts": rows_of("outcomes", states)}, sweet


def removal_facts(settings_of: Sequence[System]) -> Facts:
    """All settings are one family, of changes and of each control's comparisons."""
    facts, before = Facts(), settings_of[0].before
    for label in LABELS:
        measure, keys = f"refusals of {label} prompts", []
        changes: dict[tuple[str, str], Change] = {}
        for i, each in enumerate(settings_of):
            if not each.after and not each.draws:
                continue
            key = (f"top safety weights alone q={i}, {label} prompts", "refusals")
            keys.append(key)
            changed = System(before, each.after, each.draws)
            draws = {
                n: d
                for name in CONTROLS.values()
                for n, d in change_of(changed, ("", ""), name).draws.items()
            }
            plain = change_of(System(before, each.after), ("whole", "removed"), "")
            changes[key] = Change(plain.before, plain.after, plain.states, draws=draws, labels=plain.labels)
        facts += Facts(changes, [Family("settings", keys)])
        told, name = facts, "top safety weights alone"
        what = {
            f"settings show a fall in {measure}": lambda key, told=told: decide(key, told).word == "fall",
            f"settings show a fall in {measure} beyond every random removal": lambda key, told=told: (
                falls_beyond(key, told)
            ),
            f"settings show a rise in {measure}": lambda key, told=told: decide(key, told).word == "rise",
        }
        counts = {(name, kind): tally(facts, [[key] for key in keys], is_so) for kind, is_so in what.items()}
        facts += Facts(counts=counts if keys else {})
    levels = {
        ("model", "refusals of harmful prompts"): dict.fromkeys(range(25), True)
        | dict.fromkeys(range(25, 50), False)
    }
    return facts + Facts(levels={**levels, ("model", "refusals of harmless prompts"): {}})


def check_removals(settings_of: Sequence[System]) -> str:
    facts, said = removal_facts(settings_of), ""
    for told in (0, len(settings_of) - 1):
        tables, sweet = removals(settings_of, told)
        sentences = region_findings(tables, name="model", sweet_spot=sweet)["tradeoff"]
        assert refuted(sentences, facts) == []
        at = {key: c for key, c in facts.changes.items() if f"q={told}," in key[0]}
        must = Facts(at, counts=facts.counts if at else {})
        assert unsaid(sentences, must) == []
        said += " ".join(sentences)
    return said


@pytest.mark.parametrize("name", CORNERS)
def test_a_removal_alone(name: str) -> None:
    check_removals([CORNERS[name]])


def test_corners_as_settings_say_every_claim() -> None:
    check_removals([CORNERS["fall"], *CORNERS.values()])
    said = " ".join(check_removals([each]) for each in CORNERS.values())
    words = (
        "a rise in",
        "a fall in",
        "no change in",
        "could be significant",
        "not tested",
        "this goes beyond",
    )
    assert [
        w for w in (*words, "a larger change under", "a change beyond", "no longer") if w not in said
    ] == []


@few(10)
@given(st.lists(drawn_system(most=20), min_size=1, max_size=4))
def test_drawn_removals(settings_of: list[System]) -> None:
    check_removals(settings_of)


def beside_each(change: Change, names: Sequence[str]) -> Change:
    """The change with its draws under each of several names."""
    return replace(change, draws=dict.fromkeys(names, change.draws[""]) if change.draws else {})


@pytest.mark.parametrize("name", CORNERS)
def test_links(name: str) -> None:
    """Removal, ablation and both: the removal beside its random removals."""
    each = CORNERS[name]
    drawn = each.draws[:1] if each.draws else []
    named = ("its random removal", "its random removal of the same size")
    states = {("", "", "model", 0): each.before, ("", "", "ablated", 0): each.after}
    states |= {("", "", "removed", 0): each.after}
    if drawn:
        states["", "", "random removed", 0] = states["", "", "matched removed", 0] = drawn[0]
    tables = {"verdicts": rows_of("links", states), "link_effects": pd.DataFrame({"state": ["model"]})}
    changes = {}
    for state, words, draws in (("ablated", "direction ablated", None), ("removed", "region removed", drawn)):
        if each.after:
            key, changed = (f"{words}, harmful prompts", "refusals"), System(each.before, each.after, draws)
            changes[key] = beside_each(change_of(changed, ("whole", state), ""), named)
    facts = Facts(changes, [Family("states", list(changes))])
    if not changes:
        return
    said = region_findings(tables, name="model", sweet_spot=None)["link_effects"]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []


def test_controls_of_a_region_of_low_rank_are_named_by_their_ranks() -> None:
    """Its random removals are of the same rank or energy, and not of the same number of weights."""
    each = CORNERS["fall"]
    states: dict[tuple, Labels] = {("none", "", "model", 0): each.before}
    for removal in ("orthogonal_projection", "top_safety"):
        states |= {(removal, "s", control, 0): each.after for control in ("removed", *CONTROLS)}
    claims = removal_claims({"verdicts": rows_of("outcomes", states)}, "harmful")
    named = {
        of: [c.contrast.control.name for c in some if c.contrast.control] for (of, _), some in claims.items()
    }
    low_rank = ["random removals of the same rank", "random removals of the same energy"]
    assert named == {"orthogonal_projection": low_rank, "top_safety": [*CONTROLS.values()]}
    for removal, size in (("orthogonal_projection", "energy"), ("set_difference", "size")):
        states = {(removal, "s", "model", 0): each.before}
        states |= {(removal, "s", f"{which}removed", 0): each.after for which in ("", "random ", "matched ")}
        (claims,) = link_claims({"verdicts": rows_of("links", states)})
        names = [c.contrast.control.name for c in claims if c.contrast.control]
        assert names == ["its random removal", f"its random removal of the same {size}"]


@pytest.mark.parametrize("name", CORNERS)
def test_freezing(name: str) -> None:
    """Compliance with weights kept against nothing kept, beside random weights kept."""
    each = CORNERS[name]
    if not each.before or not each.after:
        return
    drawn = each.draws[:1] if each.draws else []
    sets = {"none none": each.before, "safety freeze": each.after}
    if drawn:
        sets["random of that size freeze"] = sets["matched to that freeze"] = drawn[0]
    states = {("", f"{key} n=10", "", 0): labels for key, labels in sets.items()}
    modes = pd.DataFrame([{"mode": s.split()[-1], "frozen": " ".join(s.split()[:-1])} for s in sets])
    tables = {"verdicts": rows_of("freezing", states), "freezing": modes.assign(n_examples=10, seed=0)}
    key = ("safety frozen, 10 benign examples", "compliance with harmful prompts")
    change = change_of(System(each.before, each.after, drawn), ("nothing kept", "kept"), "", "compliance")
    change = beside_each(change, ("random weights kept", "random weights of the same size kept"))
    facts = Facts({key: change}, [Family("sets", [key])])
    said = region_findings(tables, name="model", sweet_spot=None)["freezing"]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []


def real(value: float, low: float | None = None, high: float | None = None) -> Value | None:
    return None if value != value else Value(value, low, high)


@pytest.mark.parametrize("values", VALUES)
def test_heads(values: str) -> None:
    v = drawn_values(values, 6)
    table = pd.DataFrame({"layer": [0, 0, 0, 1, 1, 1], "head": [0, 1, 2] * 2, "auroc": v})
    table = table.assign(low=table["auroc"] - 0.1, high=table["auroc"] + 0.1, n=40)
    said = region_findings({"heads": table}, name="model", sweet_spot=None).get("heads", [])
    known = [x for x in v if x == x]
    names = [f"layer {i // 3}, head {i % 3}" for i in range(6)]
    found = {n: real(x, x - 0.1, x + 0.1) for n, x in zip(names, v, strict=True)}
    above = Count([None if x != x else x - 0.1 > 0.5 for x in v], len(known) / 40)
    facts = Facts(
        extremes={("Linear probes", "AUROC on prompts held out", "heads"): found},
        counts={("Linear probes", "heads have a 95 % interval above 0.5"): above},
    )
    assert refuted(said, facts) == []
    assert unsaid(said, facts if known else Facts()) == []


@pytest.mark.parametrize("values", VALUES)
def test_structure_and_subspaces(values: str) -> None:
    """Means over layers by kind of matrix, with their ties and what random sets and subspaces give."""
    kinds = ("q", "k", "v", "o")
    v = drawn_values(values, len(kinds))
    table = pd.DataFrame({"kind": kinds, "layer": 0, "method": "snip", "q": 5.0, "jaccard": v, "chance": 0.1})
    spaces = pd.DataFrame({"kind": kinds, "layer": 0, "phi": v, "chance": v, "excess": v})
    said = region_findings({"structure": table, "subspaces": spaces}, name="model", sweet_spot=None)
    by_kind = {kind: real(x) for kind, x in zip(kinds, v, strict=True)}
    subject, things = "SNIP, top 5 % of safety and of utility", "kinds of matrix"
    shared = [2 * x / (1 + x) for x in v if x == x]
    times = sum(shared) / len(shared) / (0.2 / 1.1) if shared else math.nan
    space, measures = "Output subspaces of safety and utility", (
        "similarity phi, mean over layers",
        "similarity phi of random subspaces",
        "share of the way from chance to identical, mean over layers",
    )  # fmt: skip
    facts = Facts(
        levels={
            (subject, "Jaccard index of random sets"): Value(0.1),
            (subject, "weights in both, over those of random sets"): Value(times, unit="times"),
        },
        extremes={(subject, "Jaccard index, mean over layers", things): by_kind}
        | {(space, measure, things): by_kind for measure in measures},
    )
    sentences = [*said["structure"], *said["subspaces"]]
    assert refuted(sentences, facts) == []
    assert unsaid(sentences, facts) == []


@pytest.mark.parametrize("values", VALUES)
def test_links_of_removed_weights(values: str) -> None:
    """What removed weights wrote along the direction, beside random ones of the same maps, of their size too."""
    n, subject = 6, "top_safety (SNIP)"
    own, drawn = (
        drawn_values(values, n, seed=1),
        drawn_values("one known" if values == "one known" else "apart", n),
    )
    table = pd.DataFrame(
        {"share_removed_on_direction": own, "random": drawn, "chance": 0.125, "layer": range(n)}
    )
    sized = drawn_values("apart", n, seed=9)
    table = table.assign(removal="top_safety", method="snip", kind="down", matched=sized)
    said = region_findings({"links": table}, name="model", sweet_spot=None).get("links", [])
    pairs = [(x, y, z) if x == x and y == y else None for x, y, z in zip(own, drawn, sized, strict=True)]
    known = [pair for pair in pairs if pair]
    what = "maps whose removed weights write a larger share on the refusal direction than random ones"
    sides = [median(side) for side in zip(*known, strict=True)] + [0.125]
    names = (
        "the removed weights",
        "random weights",
        "random weights of the same size",
        "the removed weights along a random direction, expected",
    )
    levels = {
        (subject, f"share on the refusal direction of what was written, median over maps, by {name}"): Value(
            x, unit="%"
        )
        for name, x in zip(names, sides, strict=bool(known))
    }
    counts = {
        (subject, f"{what}{more}"): Count(
            [None if pair is None else pair[0] > pair[at] for pair in pairs], len(known) / 2
        )
        for at, more in ((1, ""), (2, " of the same size"))
    }
    facts = Facts(counts=counts, levels=levels) if known else Facts()
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []
    assert len(said) == (6 if known else 0)
