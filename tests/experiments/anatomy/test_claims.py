"""What an anatomy says of drawn tables: nothing false, and every change, control, series and count that there is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from scipy.stats import binomtest, bootstrap, permutation_test

from mechsafety.anatomy.sensitivity import RESAMPLES, sensitivity_table
from mechsafety.experiments.anatomy.controls import anatomy_controls
from mechsafety.experiments.anatomy.findings import anatomy_findings
from tests.claims.drawn import CORNERS, VALUES, System, change_of, drawn_system, drawn_values, few
from tests.claims.evaluator import refuted, unsaid
from tests.claims.facts import Change, Count, Facts, Family, Key, Labels, RealChange, Value
from tests.claims.rules import beyond, decide

UNSAFE = "refusals of unsafe prompts"
NAMES: Mapping[str, str] = {}
States = Mapping[tuple[str, str, str], Labels]


def verdicts_of(states: States) -> pd.DataFrame:
    """By part, model and state, of unsafe prompts."""
    rows = [
        (*state, str(item), "unsafe", verdict)
        for state, labels in states.items()
        for item, verdict in labels.items()
    ]
    return pd.DataFrame(rows, columns=["part", "model", "state", "id", "group", "label"])


def _rows(**columns: list) -> pd.DataFrame:
    return pd.DataFrame(columns).assign(group="unsafe", n=0)


def _first(each: System) -> Labels:
    return each.draws[0] if each.draws else {}


def line(each: System) -> tuple[dict[str, pd.DataFrame], Facts]:
    """Refusals grow along the line beside the benign fine-tuning; beyond its end the same changes again."""
    states = {
        ("own answers", "base", "held-out"): each.before,
        ("own answers", "tuned", "held-out"): each.after,
        ("own answers", "control", "held-out"): _first(each),
        ("interpolation", "tuned", "alpha 0.5"): each.after,
        ("interpolation", "tuned", "alpha 2"): each.before,
    }
    tables = {"interpolation": _rows(alpha=[0.0, 0.5, 1.0, 2.0]), "verdicts": verdicts_of(states)}
    alone = replace(each, draws=each.draws and each.draws[:1])
    grown = change_of(alone, ("alpha 0", "alpha 1"), "the benign fine-tuning")
    steps = {"0.5": ("", "0.5"), "1": ("", "1")}
    changes: dict[Key, Change | RealChange] = {
        ("tuned", UNSAFE): grown,
        **{key: change_of(System(each.before, each.after), ("", ""), "") for key in steps.values()},
    }
    facts = Facts(
        changes, [Family("alphas", list(steps.values()))], series={("tuned", UNSAFE, "alphas up to 1"): steps}
    )
    return tables, facts


def past(each: System) -> Facts:
    """What is said of alpha 2 against 1, where all prompts of other groups are unread: a family of those tested."""
    back = change_of(System(each.after, each.before), ("alpha 1", "alpha 2"), "")
    safe = ("tuned on safe prompts", "refusals of safe prompts")
    return Facts({("tuned", UNSAFE): back, safe: Change({}, {}, ("alpha 1", "alpha 2"))})


def check_line(each: System) -> str:
    tables, facts = line(each)
    said = anatomy_findings(tables, names=NAMES)["interpolation"]
    here = [s for s in said if "alpha 2" not in s]
    cut = next(i for i, s in enumerate(said) if "alpha 2" in s)
    assert refuted(said[:cut], facts) == []
    assert refuted(said[cut:], past(each)) == []
    assert unsaid(here, Facts({("tuned", UNSAFE): facts.changes["tuned", UNSAFE]}, series=facts.series)) == []
    assert unsaid(said[cut:], past(each)) == []
    (row,) = anatomy_controls(tables, names=NAMES).to_dict(orient="records")
    assert row["holds beyond it"] == _holds(("tuned", UNSAFE), facts, "the benign fine-tuning", "rise")
    return " ".join(said)


def _holds(key: Key, facts: Facts, control: str, word: str) -> str:
    """Whether a claim of a rise or a fall holds beyond its control, by the rules."""
    if control not in facts.changes[key].draws or decide(key, facts).word == "not tested":
        return "not measurable"
    found = beyond(key, control, facts).word
    if found == "not tested":
        return "not measurable"
    return "yes" if decide(key, facts).word == word and found == "beyond" else "no"


@pytest.mark.parametrize("name", CORNERS)
def test_the_line(name: str) -> None:
    check_line(CORNERS[name])


@few(8)
@given(drawn_system(most=20))
def test_drawn_lines(each: System) -> None:
    check_line(each)


def test_the_verdict_of_a_claim_turns_with_its_control() -> None:
    """A rise beyond the benign fine-tuning holds; one that it brings too, a fall, and no change do not."""
    rise = System(*(dict(enumerate(v)) for v in (["compliance"] * 40, ["refusal"] * 40)))
    cases = {
        "yes": replace(rise, draws=[rise.before]),
        "no": replace(rise, draws=[rise.after]),
    }
    for holds, each in cases.items():
        (row,) = anatomy_controls(line(each)[0], names=NAMES).to_dict(orient="records")
        assert row["holds beyond it"] == holds
    fall = System(rise.after, rise.before, draws=[rise.after])
    (row,) = anatomy_controls(line(fall)[0], names=NAMES).to_dict(orient="records")
    assert row["holds beyond it"] == "no"


@pytest.mark.parametrize("name", CORNERS)
def test_ablation(name: str) -> None:
    each = CORNERS[name]
    if not each.before:
        return
    states = {
        ("ablation", "tuned", "tuned"): each.before,
        ("ablation", "tuned", "ablated"): each.after,
        ("ablation", "tuned", "random_ablated"): _first(each),
    }
    tables = {"ablation": _rows(state=["tuned"]), "verdicts": verdicts_of(states)}
    key, control = ("tuned", UNSAFE), "a random direction"
    alone = replace(each, draws=each.draws and each.draws[:1])
    facts = Facts({key: change_of(alone, ("unedited", "direction ablated"), control)})
    said = anatomy_findings(tables, names=NAMES)["ablation"]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []
    (row,) = anatomy_controls(tables, names=NAMES).to_dict(orient="records")
    assert row["holds beyond it"] == _holds(key, facts, control, "fall")


@pytest.mark.parametrize("name", CORNERS)
def test_parts_of_the_change(name: str) -> None:
    """dW of the MLPs alone, of all, and a random dW as the control, which stands alone."""
    each, drawn = CORNERS[name], _first(CORNERS[name])
    if not each.after:
        return
    states = {
        ("own answers", "base", "held-out"): each.before,
        ("own answers", "tuned", "held-out"): each.after,
        ("reversal", "tuned", "mlp"): each.after,
        ("reversal", "tuned", "random"): drawn,
    }
    tables = {
        "reversal": _rows(state=["base", "tuned", "mlp"], r=[math.nan] * 3),
        "verdicts": verdicts_of(states),
    }
    control = "a random dW of the same norm"
    alone = replace(each, draws=each.draws and each.draws[:1])
    keys = {"tuned": "base with all that tuned changed", "base with dW of MLPs": "base with dW of MLPs"}
    changes: dict[Key, Change | RealChange] = {
        (subject, UNSAFE): change_of(alone, ("base", state), control) for state, subject in keys.items()
    }
    facts = Facts(changes, [Family("states", list(changes))])
    if drawn:
        random = change_of(System(each.before, drawn), ("base", "base with a random dW"), "")
        facts += Facts({("base with a random dW", UNSAFE): random})
    said = anatomy_findings(tables, names=NAMES)["reversal"]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []
    (row,) = anatomy_controls(tables, names=NAMES).to_dict(orient="records")
    assert row["holds beyond it"] == _holds(("base with dW of MLPs", UNSAFE), facts, control, "rise")


def _value(x: float, *, plain: bool = False) -> Value | None:
    return None if x != x else Value(x, x - 0.1, x + 0.1, plain=plain)


@pytest.mark.parametrize("values", VALUES)
def test_clusters(values: str) -> None:
    """d' against the base's by the interval of the difference, AUROC against chance."""
    measure = "{} of tau at the last prompt token, last layer"
    v = dict(zip(("base", "tuned", "control"), drawn_values(values, 3), strict=True))
    separation = pd.DataFrame(
        {"model": m, "positions": "last_prompt", "layer": 1, "auroc_chance": 0.6}
        | {
            f"{name}{end}": x + d
            for name in ("d_prime", "auroc")
            for end, d in (("", 0), ("_low", -0.1), ("_high", 0.1))
        }
        for m, x in v.items()
    )
    apart = {(m, a): v[m] - v[a] for m in v for a in v if m != a}
    changes = pd.DataFrame(
        {
            "model": m,
            "against": a,
            "positions": "last_prompt",
            "layer": 1,
            "change": x,
            "low": x - 0.1,
            "high": x + 0.1,
        }
        for (m, a), x in apart.items()
    )
    said = anatomy_findings({"separation": separation, "d_prime_changes": changes}, names=NAMES)["clusters"]
    for at, against in ((0, "base"), (1, "control")):
        states, why = (against, "tuned"), "no interval of the difference"
        difference = _value(apart["tuned", against], plain=True)
        change = RealChange(
            *(_value(v[m], plain=True) for m in (against, "tuned")), difference, states=states, why=why
        )
        facts = Facts({("tuned", measure.format("d'")): change})
        assert refuted([said[at]], facts) == []
        assert unsaid([said[at]], facts) == []
    chance = {
        (m, measure.format("AUROC")): RealChange(
            Value(0.5),
            _value(x),
            None if x != x else Value(x - 0.5, x - 0.6, x - 0.4),
            states=("by chance", "measured"),
            why="no interval of the difference",
        )
        for m, x in v.items()
    }
    assert refuted(said[2:], Facts(chance)) == []
    assert unsaid(said[2:], Facts(chance)) == []


@pytest.mark.parametrize(
    ("failed", "successful"),
    [((1, 20), (18, 20)), ((10, 20), (10, 20)), ((18, 20), (1, 20)), ((0, 0), (3, 3))],
)
def test_sides_of_attacks(failed: tuple[int, int], successful: tuple[int, int]) -> None:
    rows = [
        {"model": "tuned", "positions": "last_prompt", "layer": 1, "family": "all", "outcome": outcome}
        | {"n": n, "on_safe_side": k / n if n else math.nan, "tau": 0.3, "low": 0.1, "high": 0.5}
        for outcome, (k, n) in (("failed", failed), ("success", successful))
    ]
    tables = {"attack_tau": pd.DataFrame(rows)}
    key = ("tuned", "attacks on the safe side of tau at the last prompt token, last layer")
    sides = [{f"{s} {i}": i < k for i in range(n)} for s, (k, n) in (("a", failed), ("b", successful))]
    change = Change(
        *sides,
        states=("failed", "successful"),
        paired=False,
        why="one of the two states has no item that was read",
    )
    means = {
        (
            "tuned",
            f"mean tau of {name} attacks at the last prompt token, last layer (safe side: above 0)",
        ): Value(0.3, 0.1, 0.5)
        for name in ("successful", "failed")
    }
    facts = Facts({key: change}, levels=means)
    said = anatomy_findings(tables, names=NAMES)["attacks"]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []
    first = anatomy_controls(tables, names=NAMES).iloc[0]
    word = decide(key, facts).word
    assert first["holds beyond it"] == (
        "not measurable" if word == "not tested" else "yes" if word == "rise" else "no"
    )


@pytest.mark.parametrize("values", VALUES)
def test_matrices(values: str) -> None:
    """How many matrices lie closer to the left null space than by chance and than a random dW, with ties on neither side."""
    n = 6
    own, drawn = drawn_values(values, n), drawn_values("apart", n, seed=5)
    table = pd.DataFrame(
        {"model": m, "layer": i, "kind": "up", "relative_norm": 0.1, "effective_rank": 4.0}
        | {f"alignment_{e}": x for e in (90, 99)}
        | {f"chance_{e}": 0.5 for e in (90, 99)}
        for m, some in (("tuned", own), ("random", drawn))
        for i, x in enumerate(some)
    )
    counts, levels = {}, {("tuned", f"median ||dW|| / ||W|| over {n} matrices"): Value(0.1, unit="%")}
    for name, some in (("tuned", own), ("random dW", drawn)):
        levels[name, "median effective rank of dW"] = Value(4.0, plain=True)
        for energy in (90, 99):
            known = [x > 0.5 for x in some if x == x]
            what = f"matrices of dW lie closer to the left null space of W ({energy} % energy) than by chance"
            if known:
                counts[name, what] = Count(known)
    both = [x > y for x, y in zip(own, drawn, strict=True) if x == x]
    for energy in (90, 99):
        what = f"matrices of dW lie closer to the left null space of W ({energy} % energy) than a random dW"
        if both:
            counts["tuned", what] = Count(both, len(both) / 2)
    facts = Facts(counts=counts, levels=levels)
    said = anatomy_findings({"weight_changes": table}, names=NAMES)["weights"]
    assert refuted(said, facts) == []
    assert unsaid(said, Facts(counts=counts)) == []


def _medians(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.median(b, axis=axis) - np.median(a, axis=axis)


def _exchange_p(before: np.ndarray, after: np.ndarray) -> float:
    """By scipy's permutations of every pair."""
    found = permutation_test(
        (before, after), _medians, permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    return float(found.pvalue)


def _median_change(before: np.ndarray, after: np.ndarray, p: float) -> Value:
    """By scipy's bootstrap over pairs."""
    found = bootstrap(
        (before, after),
        _medians,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = map(float, found)
    if p >= 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    return Value(float(np.median(after) - np.median(before)), low, high, plain=True)


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0, None])
def test_sensitivity(factor: float | None) -> None:
    """The median gradient falls, is the same, rises, or was not measured in one of the models."""
    each, n = np.random.default_rng(3), 9
    base = {group: each.lognormal(size=n) for group in ("unsafe", "co_task")}
    norms = {
        "base": base,
        "tuned": {g: x * (factor or 1.0) + 0.01 * each.normal(size=n) for g, x in base.items()},
    }
    table = pd.DataFrame(
        {"model": m, "id": f"{g}{i:02}", "group": g, "norm": x}
        for m, of in norms.items()
        for g, some in of.items()
        for i, x in enumerate(some)
    )
    kept = table if factor else table[table["model"] == "base"]
    levels = sensitivity_table(table, seed=0)
    ps = {group: _exchange_p(norms["base"][group], norms["tuned"][group]) for group in base}
    changes: dict[Key, Change | RealChange] = {}
    for group, prompts in (("unsafe", "unsafe prompts"), ("co_task", "attacks (co_task)")):
        ends = {
            m: Value(float(np.median(of[group])), *of_model(levels, m, group), plain=True)
            for m, of in norms.items()
        }
        measure = f"sensitivity of the first token, median over {prompts}"
        changes["tuned", measure] = RealChange(
            ends["base"],
            ends["tuned"],
            _median_change(norms["base"][group], norms["tuned"][group], ps[group]) if factor else None,
            "exchange of models" if factor else None,
            ps[group] if factor else None,
            states=("base", "tuned"),
            why="no interval of the difference",
        )
    facts = Facts(changes, [Family("models and groups", list(changes))])
    said = anatomy_findings({"sensitivity": levels, "norms": kept}, names=NAMES)["sensitivity"]
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []
    word = {0.3: "a fall in", 3.0: "a rise in", None: "not tested"}.get(factor)
    assert word is None or all(word in s for s in said)


def of_model(table: pd.DataFrame, model: str, group: str) -> tuple[float, float]:
    row = table[(table["model"] == model) & (table["group"] == group)].iloc[0]
    assert row["low"] <= row["median"] <= row["high"]
    return float(row["low"]), float(row["high"])


@pytest.mark.parametrize("values", VALUES)
def test_action(values: str) -> None:
    """In how many matrices dW acts more on unsafe prompts, by the interval of each, and where most."""
    n, at = 6, "at the last prompt token"
    columns = {m: [2 * x for x in drawn_values(values, n, seed=k)] for k, m in enumerate(("tuned", "random"))}
    table = pd.DataFrame(
        {
            "model": m,
            "positions": "last_prompt",
            "layer": i,
            "kind": "up",
            "ratio": x,
            "low": x - 0.1,
            "high": x + 0.1,
        }
        for m, some in columns.items()
        for i, x in enumerate(some)
    )
    what = f"matrices with ||dW a|| / ||a|| {at} larger on unsafe than on safe prompts (interval)"
    counts = {}
    for name, some in (("tuned", columns["tuned"]), ("random dW", columns["random"])):
        outcomes = [None if x != x else x - 0.1 > 1 for x in some]
        if known := sum(outcome is not None for outcome in outcomes):
            counts[name, what] = Count(outcomes, 0.025 * known)
    ratios = {f"layer {i} up": _value(x, plain=True) for i, x in enumerate(columns["tuned"])}
    extremes = {("tuned", f"ratio of ||dW a|| / ||a|| {at}, unsafe over safe,", "matrices"): ratios}
    facts = Facts(counts=counts, extremes=extremes if any(ratios.values()) else {})
    said = anatomy_findings({"action_ratios": table}, names=NAMES).get("action", [])
    assert refuted(said, facts) == []
    assert unsaid(said, facts) == []


@pytest.mark.parametrize("values", VALUES)
def test_links(values: str) -> None:
    """dW's energy along the refusal direction against random ones, and medians beside what chance gives."""
    n = 6
    own, bound = drawn_values(values, n), drawn_values("apart", n, seed=2)
    phrases = {
        "cosine_first": ("|cosine| of the refusal direction with dW's first left singular vector", ""),
        "cosine_top": ("length of the refusal direction within dW's top left singular vectors", ""),
        "snip": ("share of dW's energy in the weights that snip scores highest", "%"),
        "magnitude": ("share of dW's energy in the weights that magnitude scores highest", "%"),
    }
    columns = {what: drawn_values(values, n, seed=k) for k, what in enumerate(phrases, start=1)}
    table = pd.DataFrame(
        [
            {"what": what, "layer": i, "kind": "down", "value": x, "high": high, "chance": 0.125}
            for what, some in {"energy": own, "energy_random": bound, **columns}.items()
            for i, (x, high) in enumerate(zip(some, bound, strict=True))
        ]
    )
    outcomes = [x > high for x, high in zip(own, bound, strict=True) if x == x]
    what = "matrices with more of dW's energy along the refusal direction than 97.5 % of random directions"
    levels = {}
    for name, (phrase, unit) in phrases.items():
        if known := [x for x in columns[name] if x == x]:
            levels["tuned", f"median {phrase}"] = Value(median(known), unit=unit)
            levels["tuned", f"by chance: {phrase}"] = Value(0.125, unit=unit)
    counts = {("tuned", what): Count(outcomes, 0.025 * len(outcomes))} if outcomes else {}
    facts = Facts(counts=counts, levels=levels)
    said = anatomy_findings({"links": table}, names=NAMES).get("links", [])
    assert refuted(said, facts) == []
    assert len(said) == len(counts) + len(levels)
    first = anatomy_controls({"links": table}, names=NAMES).iloc[0]["holds beyond it"]
    p = binomtest(sum(outcomes), len(outcomes), 0.025, alternative="greater").pvalue if outcomes else math.nan
    assert first == ("not measurable" if not outcomes else "yes" if p < 0.05 else "no")
