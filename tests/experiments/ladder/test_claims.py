"""What a ladder says of drawn tables: nothing false, and every change, control, series and count that there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from statistics import median

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.experiments.ladder.findings import ladder_findings, summary
from mechsafety.experiments.ladder.paper import PUBLISHED, net_losses, paper_claims, paper_findings
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
from tests.claims.facts import Change, Count, Facts, Family, Key, Value
from tests.claims.recomputed import holm
from tests.claims.rules import decide

KINDS = ("harmful", "harmless")
CONTROL = "as many random directions"
Ladder = Mapping[str, Mapping[int, System]]


def tables_of(ladder: Ladder, values: str = "apart") -> dict[str, pd.DataFrame]:
    """Tables of systems by number of directions; harmless prompts move as harmful ones do."""
    rows, survival = [], []

    def add(system: str, kind: str, k: int, draw: int, labels: Mapping) -> None:
        for label in KINDS:
            rows.extend((system, kind, k, draw, f"{label} {i}", label, v) for i, v in labels.items())
            numbers = drawn_values(values, 4, seed=len(survival))
            key = {"system": system, "kind": kind, "directions": k, "draw": draw, "label": label}
            survival.append(
                key | {"kl": numbers[0], "perplexity": 1 + numbers[1], "degenerate": numbers[2], "n": 50}
            )

    for system, steps in ladder.items():
        add(system, "unedited", 0, 0, next(iter(steps.values())).before)
        for k, each in steps.items():
            add(system, "refusal", k, 0, each.after)
            for draw, labels in enumerate(each.draws or [], start=1):
                add(system, "random", k, draw, labels)
    columns = ["system", "kind", "directions", "draw", "id", "label", "verdict"]
    return {"survival": pd.DataFrame(survival), "verdicts": pd.DataFrame(rows, columns=columns)}


def _subject(system: str, k: int) -> str:
    return f"{system} without {k} direction{'s' * (k != 1)}"


def facts_of(ladder: Ladder) -> Facts:
    facts = Facts()
    for label in KINDS:
        measure = f"refusals of {label} prompts"
        keys: dict[str, dict[int, Key]] = {
            system: {k: (_subject(system, k), measure) for k in sorted(steps)}
            for system, steps in ladder.items()
        }
        changes: dict[Key, Change] = {}
        for system, steps in ladder.items():
            before = next(iter(steps.values())).before
            for k, each in steps.items():
                if each.after:
                    changes[keys[system][k]] = change_of(
                        replace(each, before=before), ("unedited", "without"), CONTROL
                    )
        facts += Facts(changes, [Family("removals", list(changes))])
        groups = [[key for key in of.values() if key in changes] for of in keys.values()]
        groups = [group for group in groups if group]
        what = f"refusals of {label} prompts"
        told = facts
        counts = {
            f"systems show a fall in {what}": lambda key, told=told: decide(key, told).word == "fall",
            f"systems show a fall in {what} beyond random directions": lambda key, told=told: falls_beyond(
                key, told
            ),
            f"systems show a rise in {what}": lambda key, told=told: decide(key, told).word == "rise",
        }
        facts += Facts(
            counts={("Ladder", name): tally(facts, groups, is_so) for name, is_so in counts.items()}
        )
    harmful = "refusals of harmful prompts"
    series = {
        (system, harmful, "numbers of directions"): {
            str(k): (_subject(system, k), harmful) for k in sorted(steps) if steps[k].after
        }
        for system, steps in ladder.items()
        if any(each.after for each in steps.values())
    }
    return facts + Facts(series=series)


def check(ladder: Ladder) -> str:
    """Nothing false; every count and series; each system at the number of directions at which it first changes."""
    tables, facts = tables_of(ladder), facts_of(ladder)
    said = [*summary(tables), *ladder_findings(tables, layer=None).get("survival", [])]
    assert refuted(said, facts) == []
    told = []
    for (system, measure, _), steps in facts.series.items():
        words = {k: decide(key, facts).word for k, key in steps.items()}
        at = next((k for k, word in words.items() if word in ("rise", "fall")), list(words)[-1])
        told += [steps[at], (steps[at][0], measure.replace("harmful", "harmless"))]
        assert system
    must = Facts({key: facts.changes[key] for key in told}, counts=facts.counts, series=facts.series)
    assert unsaid(said, must) == []
    return " ".join(said)


@pytest.mark.parametrize("name", CORNERS)
def test_a_corner_alone(name: str) -> None:
    check({"s0": {1: CORNERS[name]}})


def test_corners_together_say_every_claim() -> None:
    """All corners as one ladder, and each claim planted: a ladder that says little fails here."""
    check({f"s{i}": {1: each} for i, each in enumerate(CORNERS.values())})
    alone = " ".join(check({"s0": {1: each}}) for each in CORNERS.values())
    words = (
        "a rise in",
        "a fall in",
        "no change in",
        "could be significant",
        "not tested",
        "this goes beyond",
    )
    assert [
        w
        for w in (*words, "a larger change under", "a change beyond", "a fall is first shown")
        if w not in alone
    ] == []


@few(10)
@given(st.lists(st.lists(drawn_system(most=20), min_size=1, max_size=3), min_size=1, max_size=4))
def test_drawn_ladders(systems: list[list[System]]) -> None:
    check({f"s{i}": {2**j: each for j, each in enumerate(steps)} for i, steps in enumerate(systems)})


COSTS = {
    "kl": ("KL of the next token on harmless prompts", "nats"),
    "ratio": ("perplexity of its own unedited answers to harmless prompts, over that unedited", "times"),
    "degenerate": ("degenerate answers to harmless prompts", "%"),
}


@pytest.mark.parametrize("values", VALUES)
def test_costs(values: str) -> None:
    """The extremes of the fewest and the most directions, of refusal directions and of random ones."""
    steps = dict.fromkeys((1, 4), CORNERS["fall"])
    tables = tables_of({f"s{i}": steps for i in range(4)}, values)
    rows = tables["survival"][tables["survival"]["label"] == "harmless"]
    unedited = rows[rows["kind"] == "unedited"].set_index("system")["perplexity"]
    rows = rows.assign(
        ratio=[p / unedited[s] for s, p in zip(rows["system"], rows["perplexity"], strict=True)]
    )
    extremes = {}
    for (k, kind), of in rows[rows["directions"] > 0].groupby(["directions", "kind"]):
        subject = f"Without {k} {kind} direction{'s' * (k != 1)}"
        things = "systems and draws" if kind == "random" else "systems"
        names = [f"{s}, draw {d}" if d else s for s, d in zip(of["system"], of["draw"], strict=True)]
        for column, (measure, unit) in COSTS.items():
            if of[column].notna().any():
                found = dict(zip(names, (real(v, unit) for v in of[column]), strict=True))
                extremes[subject, measure, things] = found
    facts = Facts(extremes=extremes)
    said = ladder_findings(tables, layer=None).get("cost", [])
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []


def real(value: float, unit: str = "", low: float | None = None, high: float | None = None) -> Value | None:
    return None if value != value else Value(value, low, high, unit)


@pytest.mark.parametrize("values", VALUES)
def test_cosines_ranks_and_angles(values: str) -> None:
    pairs = [(f"s{i}", f"s{j}") for i in range(4) for j in range(i)]
    v = drawn_values(values, len(pairs))
    cosines = pd.DataFrame(pairs, columns=["a", "b"]).assign(
        layer=3, cosine=v, low=[x - 0.1 for x in v], high=[x + 0.1 for x in v], harmless_high=0.3
    )
    ranks = pd.DataFrame(
        [
            {
                "system": s,
                "index": k,
                "auroc": x,
                "auroc_low": x - 0.1,
                "auroc_high": x + 0.1,
                "auroc_chance": 0.6,
            }
            for s in ("s0", "s1")
            for k, x in enumerate(drawn_values(values, 5), start=1)
        ]
    )
    tables = tables_of({f"s{i}": {1: CORNERS["fall"]} for i in range(4)})
    said = ladder_findings({**tables, "cosines": cosines, "ranks": ranks}, layer=3)
    names = [f"{a} with {b}" for a, b in pairs]
    subject = "Refusal directions at layer 3"
    cosine = {n: real(x, "", x - 0.1, x + 0.1) for n, x in zip(names, v, strict=True)}
    firsts = {s: real(x, "", x - 0.1, x + 0.1) for s in ("s0", "s1") for x in drawn_values(values, 1)}
    above = (
        "pairs have a cosine whose 95 % interval lies above those of 95 % of directions between halves of the "
        "harmless prompts"
    )
    beyond = "directions of the refusal subspace have, alone, an AUROC above 95 % of permuted labels"
    known = [x for x in drawn_values(values, 5) if x == x]
    extremes, counts = {}, {}
    if any(x == x for x in v):
        extremes[subject, "cosine", "pairs of systems"] = cosine
        counts[subject, above] = Count([None if x != x else x - 0.1 > 0.3 for x in v])
    if any(firsts.values()):
        extremes["The first direction alone", "AUROC on report prompts", "systems"] = firsts
    if known:
        outcomes = [None if x != x else x > 0.6 for x in drawn_values(values, 5)]
        counts |= {(s, beyond): Count(outcomes, 0.05 * len(known)) for s in ("s0", "s1")}
    facts = Facts(extremes=extremes, counts=counts)
    found = [*said.get("cosines", []), *said.get("ranks", [])]
    assert refuted(found, facts) == []
    assert unsaid(found, facts) == []


def _net_loss(each: System, before: Mapping) -> Fraction | None:
    read = [i for i in before if "unparsed" not in (before[i], each.after.get(i, "unparsed"))]
    lost = [(before[i] == "refusal") - (each.after[i] == "refusal") for i in read]
    return Fraction(sum(lost), len(read)) if read else None


@pytest.mark.parametrize(
    "names", [("fall", "rise"), ("nothing moved", "none of any", "all of all"), ("fall", "six items")]
)
def test_net_losses(names: tuple[str, ...]) -> None:
    """Which system loses the largest and which the smallest share of its refusals, with ties."""
    systems = {f"s{i}": {1: CORNERS[name]} for i, name in enumerate(names)}
    facts, measure = facts_of(systems), "refusals of harmful prompts"
    losses = {}
    for system, steps in systems.items():
        change = decide((_subject(system, 1), measure), facts).difference
        assert change is not None
        loss = _net_loss(steps[1], steps[1].before)
        losses[system] = Value(float(100 * loss), -100 * change.high, -100 * change.low, "points")
    subject = "Without 1 direction"
    found = Facts(extremes={(subject, "net loss of refusals of harmful prompts", "systems"): losses})
    said = net_losses(tables_of(systems))
    assert refuted(said, found) == []
    assert unsaid(said, found) == []


@pytest.mark.parametrize("values", VALUES)
def test_angles_stand_beside_what_halves_and_random_subspaces_give(values: str) -> None:
    pairs = [(f"s{i}", f"s{j}") for i in range(3) for j in range(i)]
    columns = {
        "angle": ("smallest principal angle", 1),
        "ceiling_a": ("smallest principal angle between halves of the prompts in the first system", 2),
        "random_low": ("angle that 95 % of random subspaces exceed", 3),
    }
    drawn = {name: [90 * x for x in drawn_values(values, 3, seed=k)] for name, (_, k) in columns.items()}
    first = pd.DataFrame(pairs, columns=["a", "b"]).assign(layer=3, index=1, **drawn)
    table = pd.concat([first, first.assign(index=2, angle=0.5), first.assign(layer=2, angle=0.1)])
    subject, things = "Refusal subspaces at layer 3", "pairs of systems"
    extremes = {
        (subject, measure, things): {
            f"{a} with {b}": real(x, "degrees") for (a, b), x in zip(pairs, drawn[name], strict=True)
        }
        for name, (measure, _) in columns.items()
    }
    facts = Facts(extremes=extremes if any(x == x for x in drawn["angle"]) else {})
    said = ladder_findings(_with({"angles": table}, "s0", "s1", "s2"), layer=3).get("angles", [])
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []


def _with(tables: Mapping[str, pd.DataFrame], *systems: str) -> dict[str, pd.DataFrame]:
    """The tables of a run of these systems."""
    return {**tables_of({system: {1: CORNERS["fall"]} for system in systems}), **tables}


@pytest.mark.parametrize("values", VALUES)
def test_links_of_weights(values: str) -> None:
    """Each system's maps against random directions, the extremes of medians over chance, and what removals wrote."""
    systems, n = ("s0", "s1", "s2"), 5
    energies = {
        "energy": "energy of dW along its refusal direction",
        "energy_base": "energy of the base's weights along the system's refusal direction",
        "snip": "energy of dW in the 5 % of weights that refusals need most by SNIP",
        "magnitude": "energy of dW in the largest 5 % of weights",
    }
    removed = {
        "removed_snip": "the weights removed by snip",
        "removed_snip_random": "random weights",
    }
    rows, counts, ratios, levels = [], {}, {}, {}
    above = "maps whose dW writes more along the refusal direction than along 97.5 % of random directions"
    for s, system in enumerate(systems):
        drawn = {
            what: drawn_values(values, n, seed=10 * s + k) for k, what in enumerate([*energies, *removed])
        }
        bounds = drawn_values("apart", n, seed=100 + s)
        drawn["energy_random"] = [0.5] * n
        for what, some in drawn.items():
            rows += [
                {"system": system, "what": what, "layer": i, "kind": "down", "value": x, "high": high}
                for i, (x, high) in enumerate(zip(some, bounds, strict=True))
            ]
        outcomes = [x > high for x, high in zip(drawn["energy"], bounds, strict=True) if x == x]
        if outcomes:
            counts[system, above] = Count(outcomes, len(outcomes) / 40)
        for what, measure in energies.items():
            known = [x / 0.25 for x in drawn[what] if x == x]
            if known:
                ratios.setdefault(measure, {})[system] = real(median(known), "times")
        for what, phrase in removed.items():
            known = [x for x in drawn[what] if x == x]
            if known:
                measure = f"share of what {phrase} wrote that lay on the refusal direction, median over maps"
                levels[system, measure] = Value(median(known), unit="%")
    facts = Facts(
        counts=counts,
        levels=levels,
        extremes={
            ("Weights", f"{m}, over chance, median over maps", "systems"): of for m, of in ratios.items()
        },
    )
    tables = _with({"links": pd.DataFrame(rows).assign(chance=0.25)}, *systems)
    said = ladder_findings(tables, layer=3).get("links", [])
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []
    assert len(said) == len(counts) + len(ratios) + len(levels)


# -- against the paper --------------------------------------------------------------------------------------


def _sign_changes(values: Sequence[int]) -> float:
    """The two-sided chance of a total as far from 0 where each value were as likely with the other sign."""
    ways = Counter({0: 1})
    for value in values:
        ways = Counter(
            {
                total: ways[total - value] + ways[total + value]
                for total in {t + s * value for t in ways for s in (1, -1)}
            }
        )
    far = sum(n for total, n in ways.items() if abs(total) >= abs(sum(values)))
    return far / sum(ways.values())


def paper_facts(ladder: Ladder) -> Facts:
    """Of each rung that the paper is about, whether each other rung loses fewer or more refusals; Holm over all."""
    fewest = min(k for steps in ladder.values() for k in steps)

    def loss(system: str, item: object) -> int | None:
        before, steps = next(iter(ladder[system].values())).before, ladder[system]
        sides = (
            before.get(item, "unparsed"),
            steps[fewest].after.get(item, "unparsed") if fewest in steps else "unparsed",
        )
        return None if "unparsed" in sides else (sides[0] == "refusal") - (sides[1] == "refusal")

    sums, p_values = {}, {}
    for rung in [rung for rung in PUBLISHED if rung in ladder]:
        for other in [other for other in ladder if other not in (rung, "smollm2")]:
            items = next(iter(ladder[rung].values())).before
            both = [(loss(rung, i), loss(other, i)) for i in items]
            apart = [a - b for a, b in both if a is not None and b is not None]
            sums[rung, other] = sum(apart)
            p_values[rung, other] = _sign_changes([x for x in apart if x]) if apart else None
    known = {pair: p for pair, p in p_values.items() if p is not None}
    corrected = dict(zip(known, holm(list(known.values())), strict=True))
    counts = {}
    for rung in {rung for rung, _ in sums}:
        for sign, word in ((1, "fewer"), (-1, "more")):
            outcomes = [
                None if pair not in known else bool(corrected[pair] < 0.05 and sign * sums[pair] > 0)
                for pair in sums
                if pair[0] == rung
            ]
            what = f"other rungs are shown to lose {word} refusals than {rung} here"
            counts[PUBLISHED[rung], what] = Count(outcomes)
    return Facts(counts=counts)


def check_paper(ladder: Ladder) -> str:
    said, facts = paper_findings(paper_claims(tables_of(ladder))), paper_facts(ladder)
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []
    return " ".join(said)


@pytest.mark.parametrize(
    "name", ["fall", "rise", "nothing moved", "one item", "unread answered", "read after, not before"]
)
def test_the_comparison_with_the_paper(name: str) -> None:
    """Each kind of change against a fall and none; plain SmolLM2 is compared, and no rung of the ladder."""
    others = {"all": CORNERS["fall"], "rephrase": CORNERS["all of all"], "smollm2": CORNERS["fall"]}
    check_paper({s: {1: each} for s, each in {"refusals": CORNERS[name], **others}.items()})


def test_what_a_ladder_shows_beside_the_paper_is_counted() -> None:
    kinds = {"refusals": "fall", "all": "all of all", "raw": "all of all", "smollm2": "nothing moved"}
    said = check_paper({s: {1: CORNERS[kind]} for s, kind in kinds.items()})
    assert "fragile: 2 of 2 other rungs are shown to lose fewer" in said
    lacks = check_paper({"refusals": {2: CORNERS["fall"]}, "all": {1: CORNERS["fall"]}})
    assert "0 of 0 other rungs" in lacks
    assert "1 unknown" in lacks


@few(5)
@given(st.lists(drawn_system(most=13), min_size=2, max_size=4))
def test_drawn_ladders_beside_the_paper(systems: list[System]) -> None:
    names = ("refusals", "rephrase", "all", "smollm2")
    check_paper({s: {1: each} for s, each in zip(names, systems, strict=False)})


def test_a_system_without_a_state_is_unknown_and_not_left_out() -> None:
    """Its arm without directions is missing: counts and extremes name it as unknown."""
    tables = tables_of({f"s{i}": {1: CORNERS["fall"]} for i in range(3)})
    verdicts = tables["verdicts"]
    gone = (verdicts["system"] == "s2") & (verdicts["kind"] == "refusal")
    tables["verdicts"] = verdicts[~gone]
    assert all("2 systems show" in s and "1 unknown" in s for s in summary(tables) if "systems show" in s)
    assert all("over 2 systems" in s and s.endswith("1 unknown.") for s in net_losses(tables))
