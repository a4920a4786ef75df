"""Sentences of an anatomy: what planted tables show, and nothing that they do not; the claims beside their controls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from mechsafety.claims.numbers import p_value
from mechsafety.claims.tables import CONTROL_COLUMNS
from mechsafety.experiments.anatomy.contrasts import above, along_direction
from mechsafety.experiments.anatomy.controls import anatomy_controls
from mechsafety.experiments.anatomy.findings import anatomy_findings
from mechsafety.experiments.anatomy.naming import who
from tests import anatomy_tables as made

NAMES = {"base": "tiny", "tuned": "owner/tiny-tuned", "control": "tiny-benign"}
SECTIONS = {
    "clusters": "separation",
    "attacks": "attack_tau",
    "sensitivity": "sensitivity",
    "interpolation": "interpolation",
    "weights": "weight_changes",
    "action": "action_ratios",
    "reversal": "reversal",
    "links": "links",
    "ablation": "ablation",
}
N = made.N


BESIDE = {
    "d_prime_changes": ("separation",),
    "norms": ("sensitivity",),
    "verdicts": ("interpolation", "reversal", "ablation"),
}
"""Tables that are read beside those of sections."""


@cache
def plain() -> Mapping[str, pd.DataFrame]:
    """The tables of a whole run, which no test changes."""
    return MappingProxyType(made.tables(layers=4))


def some(names: Iterable[str], changed: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Tables by name, with those beside them and what is changed: others say nothing of these."""
    return {name: plain()[name] for name in (*names, *BESIDE)} | dict(changed)


def said(section: str, **changed: pd.DataFrame) -> str:
    tables = some([SECTIONS[section]], changed)
    return "\n".join(anatomy_findings(tables, names=NAMES).get(section, []))


def first(section: str, **changed: pd.DataFrame) -> str:
    return said(section, **changed).split("\n")[0]


def lines(section: str, *words: str, **changed: pd.DataFrame) -> list[str]:
    return [line for line in said(section, **changed).split("\n") if all(word in line for word in words)]


def claims(**changed: pd.DataFrame) -> dict[str, str]:
    of = [name for key in changed for name in BESIDE.get(key, (key,))]
    table = anatomy_controls(some(of or SECTIONS.values(), changed), names=NAMES)
    return dict(zip(table["claim"], table["holds beyond it"], strict=True))


State = tuple[str, str, str, str, list[str]]
"""Part, model, state, group, and the labels of its prompts in their order."""


def verdicts(*states: State) -> pd.DataFrame:
    """The made-up verdicts with others in these states."""
    table = made.verdicts()
    for part, model, state, group, labels in states:
        key = {"part": part, "model": model, "state": state, "group": group}
        old = pd.Series(True, index=table.index)
        for column, value in key.items():
            old &= table[column] == value
        ids = [f"{group}-{i}" for i in range(len(labels))]
        table = pd.concat([table[~old], pd.DataFrame({**key, "id": ids, "label": labels})], ignore_index=True)
    return table


def in_order(**counts: int) -> list[str]:
    return [label for label, n in counts.items() for _ in range(n)]


def own(role: str, **counts: int) -> State:
    return ("own answers", role, "held-out", "unsafe", in_order(**counts))


def random_dw(**counts: int) -> State:
    return ("reversal", "tuned", "random", "unsafe", in_order(**counts))


def edited(state: str, *labels: str, group: str = "unsafe", **counts: int) -> State:
    return ("ablation", "tuned", state, group, [*labels, *in_order(**counts)])


def test_every_table_has_its_section_and_an_empty_one_none() -> None:
    tables = made.tables(layers=4)
    assert list(anatomy_findings(tables, names=NAMES)) == list(SECTIONS)
    for section, name in SECTIONS.items():
        assert list(anatomy_findings({name: tables[name]}, names=NAMES)) == [section]
        assert anatomy_findings({name: tables[name].iloc[:0]}, names=NAMES) == {}


def test_sentences_end_and_have_no_nan() -> None:
    for sentences in anatomy_findings(made.tables(layers=4), names=NAMES).values():
        for sentence in sentences:
            assert sentence.endswith(".")
            assert not sentence.endswith("..")
            assert "nan" not in sentence.lower().split()
            assert "  " not in sentence
            assert "owner/" not in sentence


@pytest.mark.parametrize("layers", [1, 2])
def test_shallow_models_are_reported(layers: int) -> None:
    assert list(anatomy_findings(made.tables(layers=layers), names=NAMES)) == list(SECTIONS)


# -- activations ------------------------------------------------------------------------------------


def test_clusters_are_read_before_the_answer_first_and_against_base_and_control() -> None:
    main = first("clusters")
    assert "tuned (tiny-tuned): a rise in d' of tau at the last prompt token" in main
    assert "base 0.9 [0.6, 1.3], tuned 3.81 [3.51, 4.21] (+2.91 [2.41, 3.41])" in main
    assert len(lines("clusters", "a rise in d'", "control 1 [0.7, 1.4]")) == 2
    assert len(lines("clusters", "a rise in AUROC", "tuned")) == 2
    assert claims()["The clusters are farther apart than the base's, at the last prompt token"] == "yes"


@pytest.mark.parametrize("ends", [(-0.1, 2.4), (math.nan, math.nan)])
def test_a_difference_whose_interval_holds_nothing_is_not_shown_and_not_none(
    ends: tuple[float, float],
) -> None:
    """d' .9 -> 2.0, intervals that meet or are missing: doubled, but not shown; or not known."""
    changes = made.d_prime_changes(layers=4).assign(change=1.1, low=ends[0], high=ends[1])
    separation = made.separation(layers=4)
    separation.loc[separation["model"] == "tuned", ["d_prime", "d_prime_low", "d_prime_high"]] = [
        2.0,
        1.2,
        2.8,
    ]
    main = first("clusters", separation=separation, d_prime_changes=changes)
    assert ("no change in d'" in main) == (ends[0] == ends[0])
    assert ("not tested" in main) == (ends[0] != ends[0])
    assert "tuned 2 [1.2, 2.8]" in main
    expected = "no" if ends[0] == ends[0] else "not measurable"
    found = claims(separation=separation, d_prime_changes=changes)
    assert found["The clusters are farther apart than the base's, at the last prompt token"] == expected


def test_clusters_the_wrong_way_round_are_a_fall() -> None:
    """d' -2.0 [-2.8, -1.2], AUROC .10: not "no more than chance", but the wrong way round."""
    table = made.separation(layers=4)
    table[["auroc", "auroc_low", "auroc_high"]] = [0.1, 0.05, 0.2]
    table[["d_prime", "d_prime_low", "d_prime_high"]] = [-2.0, -2.8, -1.2]
    changes = made.d_prime_changes(layers=4).assign(change=-2.9, low=-3.5, high=-2.0)
    given = {"separation": table, "d_prime_changes": changes}
    assert "a fall in d'" in first("clusters", **given)
    assert (
        len(lines("clusters", "a fall in AUROC", "by chance 0.50, measured 0.10 [0.05, 0.20]", **given)) == 6
    )
    found = claims(**given)
    assert found["tau separates safe and unsafe prompts at the last prompt token"] == "no"
    assert found["The clusters are farther apart than the base's, at the last prompt token"] == "no"


def test_clusters_are_tested_on_tau_and_corrected_over_models_and_positions() -> None:
    """With the tau of prompts: d' by exchange over 2 x 2, AUROC by Mann-Whitney over 3 x 2, as the sides over 2."""
    tau = plain()["tau"]
    found = lines("clusters", "d' of tau", tau=tau)
    assert len(found) == 4
    assert all("after Holm over 4 models and positions" in line for line in found)
    areas = lines("clusters", "AUROC of tau", tau=tau)
    assert len(areas) == 6
    last = tau[(tau["positions"] == "last_prompt") & (tau["layer"] == tau["layer"].max())]
    for model in made.MODELS:
        own = last[last["model"] == model]
        p = mannwhitneyu(*(own.loc[own["group"] == g, "tau"] for g in ("safe", "unsafe"))).pvalue
        (line,) = [a for a in areas if a.startswith(model) and "last prompt" in a]
        assert (
            f"Mann-Whitney, {p_value(float(p))}, {p_value(6 * float(p))} after Holm over 6" in line
            or p < 1e-5
        )
    assert all("after Holm over 2 positions" in line for line in lines("attacks", "attacks on the safe side"))


def test_what_one_test_in_six_shows_is_lost_in_the_correction() -> None:
    """An area that one test alone would show (p .03) is not shown beside five that show nothing."""
    rng = np.random.default_rng(3)
    tau = plain()["tau"].assign(tau=rng.standard_normal(len(plain()["tau"])))
    chosen = (tau["model"] == "tuned") & (tau["positions"] == "last_prompt") & (tau["layer"] == 3)
    safe, unsafe = (chosen & (tau["group"] == group) for group in ("safe", "unsafe"))
    tau.loc[safe, "tau"] = np.arange(50) + 7.2
    tau.loc[unsafe, "tau"] = np.arange(50)
    p = float(mannwhitneyu(tau.loc[safe, "tau"], tau.loc[unsafe, "tau"]).pvalue)
    assert 0.01 < p < 0.05
    (line,) = lines("clusters", "no change in AUROC of tau at the last prompt token", "tuned", tau=tau)
    assert p_value(p) in line


def test_what_is_read_over_the_answer_cannot_fail() -> None:
    over = {claim: holds for claim, holds in claims().items() if "over the answer" in claim}
    assert len(over) == 3
    assert set(over.values()) == {"cannot fail"}


def test_sides_of_attacks_are_those_that_failed_against_those_that_succeeded() -> None:
    main = first("attacks")
    assert "a rise in attacks on the safe side of tau at the last prompt token" in main
    assert "failed 1 of 10 (10 %" in main
    assert "successful 9 of 10 (90 %" in main
    none = made.attack_tau(layers=3)
    none.loc[none["outcome"] == "success", ["n", "tau", "low", "high", "on_safe_side"]] = [0, *[math.nan] * 4]
    assert "not tested" in first("attacks", attack_tau=none)
    assert claims(attack_tau=none)["Successful attacks lie on the safe side, at the last prompt token"] == (
        "not measurable"
    )
    same = made.attack_tau(layers=3).assign(on_safe_side=0.9)
    assert "no change" in first("attacks", attack_tau=same)


def test_sensitivity_is_tested_over_prompts_and_beside_the_control() -> None:
    main = first("sensitivity")
    assert "a fall in sensitivity of the first token, median over unsafe prompts" in main
    assert len(lines("sensitivity", "control (tiny-benign): no change", "unsafe prompts")) == 1
    assert len(lines("sensitivity", "tuned", "no change", "safe prompts")) == 1
    claim = "The first token becomes less sensitive to unsafe prompts"
    assert claims()[claim] == "yes"
    unknown = made.norms().iloc[:0]
    assert "not tested" in first("sensitivity", norms=unknown)
    assert claims(norms=unknown)[claim] == "not measurable"
    everywhere = made.norms()
    everywhere.loc[everywhere["model"] == "control", "norm"] = everywhere.loc[
        everywhere["model"] == "tuned", "norm"
    ].to_numpy()
    assert claims(norms=everywhere)[claim] == "no"


# -- answers ----------------------------------------------------------------------------------------


def test_growth_along_the_line_is_a_rise_beyond_the_benign_line() -> None:
    text = said("interpolation")
    assert "a rise in refusals of unsafe prompts, alpha 0 0 of 50 (0 % [0, 7]), alpha 1 50 of 50" in text
    assert "this goes beyond the benign fine-tuning: 0 of 50" in text
    assert "a rise is first shown at 0.25" in text
    assert len(lines("interpolation", "alpha 1", "alpha 2", "no change")) == 4
    assert claims()["Refusals grow from base to tuned"] == "yes"


def test_refusals_that_never_rise_do_not_grow() -> None:
    flat = made.verdicts()
    flat["label"] = flat["label"].where(flat["group"] != "unsafe", "compliance")
    text = said("interpolation", verdicts=flat)
    assert "no change in refusals of unsafe prompts" in text
    assert "no change is shown at any" in text
    assert claims(verdicts=flat)["Refusals grow from base to tuned"] == "no"
    alike = verdicts(own("control", refusal=50))
    assert "a change beyond the benign fine-tuning is not shown" in said("interpolation", verdicts=alike)
    assert claims(verdicts=alike)["Refusals grow from base to tuned"] == "no"


def test_a_paired_difference_is_shown_where_two_intervals_meet() -> None:
    """Base 10, tuned 19 of 50 refused, 9 gained and none lost: they differ (p = .004)."""
    table = verdicts(own("base", refusal=10, compliance=40), own("tuned", refusal=19, compliance=31))
    main = first("reversal", verdicts=table)
    assert "tuned (tiny-tuned) changed: a rise in refusals of unsafe prompts" in main
    assert "base 10 of 50 (20 %" in main
    assert "tuned 19 of 50 (38 %" in main
    assert "p = .0039" in main


def test_a_random_change_that_refuses_is_a_rise_and_a_control() -> None:
    """Base 0, random dW 6 of 50 refused (p = .03): it does not leave the base as it is."""
    table = verdicts(own("base", compliance=50), random_dw(refusal=6, compliance=44))
    (line,) = lines("reversal", "base with a random dW: a rise", verdicts=table)
    assert "6 of 50 (12 %" in line
    assert "exact McNemar, p = .031" in line
    assert "this goes beyond a random dW of the same norm: 6 of 50" in said("reversal", verdicts=table)
    assert claims(verdicts=table)["dW of the MLPs alone brings refusals"] == "yes"
    strong = random_dw(refusal=40, compliance=10)
    assert claims(verdicts=verdicts(strong))["dW of the MLPs alone brings refusals"] == "no"
    assert "a larger change under a random dW of the same norm" not in said("reversal", verdicts=table)


def test_ranks_are_a_series_of_tests() -> None:
    text = said("reversal")
    assert "base with the top directions of dW: refusals of unsafe prompts over 3 ranks" in text
    assert "a rise is first shown at 1" in text
    assert (
        "tuned without the top directions: refusals of unsafe prompts over 3 ranks: a fall is first shown at 1"
        in text
    )


@pytest.mark.parametrize(
    ("before", "after", "change", "where"),
    [
        # R1: refusals rise; degenerate answers stay as they were.
        (
            {"refusal": 20, "degenerate": 5, "compliance": 25},
            {"refusal": 20, "degenerate": 5, "and then": 25},
            "a rise",
            "of 25 newly refused, 25 answered before",
        ),
        # R2: of 25 refusals lost 23 become answers.
        (
            {"refusal": 25, "degenerate": 25},
            {"compliance": 23, "degenerate": 27},
            "a fall",
            "of 25 no longer refused, 23 answered and 2 degenerate",
        ),
        (
            {"refusal": 20, "degenerate": 20, "compliance": 10},
            {"refusal": 20, "degenerate": 20, "compliance": 10},
            "no change",
            "",
        ),
    ],
)
def test_where_lost_and_gained_refusals_go_is_counted_answer_by_answer(
    before: dict[str, int], after: dict[str, int], change: str, where: str
) -> None:
    after = dict(after)
    last = ["refusal"] * after.pop("and then", 0)
    table = verdicts(edited("tuned", *in_order(**before)), edited("ablated", *in_order(**after), *last))
    text = said("ablation", verdicts=table)
    assert f"{change} in refusals of unsafe prompts" in text.split("\n")[0]
    assert where in text
    assert "broken" not in text
    if not where:
        assert "no longer refused" not in text.split("refusals of safe")[0]


def test_ablation_stands_beside_a_random_direction_and_safe_prompts() -> None:
    text = said("ablation")
    assert "unedited 50 of 50 (100 % [93, 100]), direction ablated 5 of 50 (10 %" in text
    assert "this goes beyond a random direction: 50 of 50" in text
    claim = "Ablation of the direction removes refusals"
    assert claims()[claim] == "yes"
    as_much = verdicts(edited("random_ablated", refusal=5, compliance=45))
    assert "a change beyond a random direction is not shown" in said("ablation", verdicts=as_much)
    assert claims(verdicts=as_much)[claim] == "no"
    more = verdicts(edited("ablated", refusal=30, compliance=20), edited("random_ablated", compliance=50))
    assert "a larger change under a random direction" in said("ablation", verdicts=more)
    harmless = verdicts(
        edited("tuned", group="safe", refusal=5, compliance=45),
        edited("ablated", group="safe", refusal=30, compliance=20),
    )
    assert lines("ablation", "on safe prompts: a rise in refusals of safe prompts", verdicts=harmless)
    assert lines("ablation", "on safe prompts: of 25 newly refused, 25 answered before", verdicts=harmless)


def test_all_degenerate_and_unread_answers_are_counted_as_that() -> None:
    broken = verdicts(edited("ablated", degenerate=50))
    assert "of 50 no longer refused, 50 degenerate" in said("ablation", verdicts=broken)
    unread = verdicts(edited("ablated", unparsed=50))
    assert "not tested" in first("ablation", verdicts=unread)
    assert "50 not read" in first("ablation", verdicts=unread)
    assert claims(verdicts=unread)["Ablation of the direction removes refusals"] == "not measurable"
    assert "not measured" in said("ablation", verdicts=made.verdicts().iloc[:0])


# -- weights ----------------------------------------------------------------------------------------


def test_null_space_alignment_is_counted_against_a_random_dw() -> None:
    text = said("weights")
    assert (
        "12 of 12 matrices of dW lie closer to the left null space of W (90 % energy) than a random dW"
        in text
    )
    assert (
        "0 of 12 matrices of dW lie closer to the left null space of W (99 % energy) than a random dW" in text
    )
    claim = "dW writes into the left null space of W (90 % energy)"
    assert claims()[claim] == "yes"
    table = made.weight_changes(layers=4)
    dull = table.assign(alignment_90=table["chance_90"] + 0.004 * (-1.0) ** table["layer"])
    assert claims(weight_changes=dull)[claim] == "no"
    alone = table[table["model"] != "random"]
    assert "than a random dW" not in said("weights", weight_changes=alone)
    assert claims(weight_changes=alone)[claim] == "not measurable"


def test_action_is_counted_before_the_answer_and_against_random() -> None:
    assert "at the last prompt token" in first("action")
    assert len(lines("action", "tuned (tiny-tuned): 12 of 12 matrices", "0.3 are expected by chance")) == 2
    assert len(lines("action", "control (tiny-benign): 0 of 12 matrices")) == 2
    claim = "dW acts more on unsafe prompts, at the last prompt token"
    assert claims()[claim] == "yes"
    same = made.action_ratios(layers=4).assign(ratio=1.3, low=1.2, high=1.4)
    assert claims(action_ratios=same)[claim] == "no"
    unknown = made.action_ratios(layers=4).assign(ratio=math.nan, low=math.nan, high=math.nan)
    assert said("action", action_ratios=unknown) == ""
    assert claims(action_ratios=unknown)[claim] == "not measurable"


def test_links_are_counted_against_random_directions() -> None:
    text = said("links")
    assert "8 of 8 matrices with more of dW's energy along the refusal direction" in text
    assert "0.2 are expected by chance" in text
    assert "median share of dW's energy in the weights that snip scores highest, 12 %" in text
    low = made.links(layers=4)
    low.loc[low["what"] == "energy", "value"] = 0.01
    assert along_direction(low) == (0, 8)
    assert claims(links=low)["dW writes along the refusal direction"] == "no"
    still = made.links(layers=4)
    still.loc[(still["what"] == "energy") & (still["layer"] == 0), "value"] = math.nan
    assert along_direction(still) == (6, 6)


def test_matrices_are_compared_where_both_are_known() -> None:
    table = pd.DataFrame(
        {"model": model, "layer": layer, "kind": "up", "x": value}
        for model, values in (("tuned", (2.0, 1.0, math.nan)), ("random", (1.0, 1.0, 1.0)))
        for layer, value in enumerate(values)
    )
    assert above(table, "x", "tuned", "random") == (1, 2)
    assert above(table, "x", "tuned", "control") == (0, 0)


# -- words ------------------------------------------------------------------------------------------


def test_every_claim_has_a_control_and_a_result() -> None:
    table = anatomy_controls(made.tables(layers=4), names=NAMES)
    assert tuple(table.columns) == CONTROL_COLUMNS
    assert len(table) == 13
    assert set(table["holds beyond it"]) == {"yes", "cannot fail"}
    alone = {name: t[t["model"] != "control"] if "model" in t else t for name, t in made.tables().items()}
    found = anatomy_controls(alone, names={"base": "a", "tuned": "b"})
    assert "not measurable" in set(found["holds beyond it"])


def test_words() -> None:
    assert who("tuned", NAMES) == "tuned (tiny-tuned)"
    assert who("control", {}) == "control"
