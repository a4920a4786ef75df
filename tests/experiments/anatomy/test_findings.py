"""Sentences of an anatomy: numbers with intervals beside chance and control, and honest where nothing differs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import pytest

from mechsafety.experiments.anatomy.findings import anatomy_findings, layers_above, spelt_layers
from mechsafety.experiments.anatomy.naming import counted_of, measured, spelt, who
from mechsafety.experiments.anatomy.weight_findings import beyond_random, energy_above, excesses
from mechsafety.statistics.pooled import Pooled
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


def said(section: str, table: pd.DataFrame, names: Mapping[str, str] = NAMES) -> str:
    return "\n".join(anatomy_findings({SECTIONS[section]: table}, names=names).get(section, []))


def shares(rows: pd.DataFrame, refused: float) -> dict[str, list[float]]:
    """Outcome columns for as many rows."""
    found = made.outcomes(refused)
    return {name: [value] * len(rows) for name, value in found.items()}


def with_shares(table: pd.DataFrame, chosen: pd.Series, refused: float) -> pd.DataFrame:
    table = table.copy()
    for name, values in shares(table[chosen], refused).items():
        table.loc[chosen, name] = values
    return table


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


def test_models_are_named_once_a_section() -> None:
    for section, sentences in anatomy_findings(made.tables(layers=4), names=NAMES).items():
        assert "tiny-tuned" in sentences[0], section
        assert "owner/" not in " ".join(sentences), section
    # Without names the parts stand alone.
    assert "(" not in said("sensitivity", made.sensitivity(), {}).split(":")[0]


# -- activations ------------------------------------------------------------------------------------


def test_separation_is_reported_of_the_last_layer_with_intervals_and_control() -> None:
    table = made.separation(layers=5)
    text = said("clusters", table)
    last = table[(table["layer"] == 4) & (table["model"] == "tuned")].iloc[0]
    assert (
        f"tuned (tiny-tuned) {last['d_prime']:.2f} [{last['d_prime_low']:.2f}, {last['d_prime_high']:.2f}]"
        in text
    )
    assert "base (tiny) 0.90 [0.60, 1.30]" in text
    assert "control (tiny-benign) 1.00" in text
    assert "intervals apart, at 3 of 5 layers (2 to 4)" in text
    assert "The control's does at 0 of 5 layers" in text
    assert "permuted labels: below 0.60 in 95 %" in text
    assert "more than chance" not in text


def test_no_separation_beyond_the_base_and_none_beyond_chance_is_reported() -> None:
    table = made.separation(layers=5).assign(d_prime=0.9, d_prime_low=0.6, d_prime_high=1.3)
    assert "no more than before" in said("clusters", table)
    assert "no more than before" not in said("clusters", made.separation(layers=5))
    dull = made.separation(layers=5).assign(auroc=0.55)
    assert said("clusters", dull).count("no more than chance") == 6  # three models, two positions


def test_layers_above_need_intervals_apart() -> None:
    table = made.separation(layers=5)
    rows = table[table["positions"] == "output"]
    assert layers_above(rows, "tuned", "base") == [2, 3, 4]
    assert layers_above(rows, "base", "tuned") == []
    assert layers_above(rows.assign(d_prime_low=math.nan), "tuned", "base") == []
    assert spelt_layers([5, 2, 3, 4, 7]) == "2 to 5, 7"


def test_the_side_of_successful_attacks_is_reported_where_it_is_known() -> None:
    table = made.attack_tau(layers=3)
    assert "Successful attacks lie on the safe side on average." in said("attacks", table)
    success = table["outcome"] == "success"
    flipped = table.assign(**{c: table[c].where(~success, -table[c]) for c in ("tau", "low", "high")})
    flipped[["low", "high"]] = flipped[["low", "high"]].where(
        ~success, flipped[["high", "low"]].to_numpy(), axis=0
    )
    assert "lie on the unsafe side on average" in said("attacks", flipped)
    unknown = table.assign(low=math.nan, high=math.nan)
    assert "is open" in said("attacks", unknown)
    none = table.copy()
    none.loc[success, "n"] = 0
    none.loc[success, ["tau", "low", "high", "on_safe_side"]] = math.nan
    assert "none succeeded" in said("attacks", none)
    assert "on average" not in said("attacks", none)


def test_attacks_on_the_base_are_not_reported() -> None:
    table = made.attack_tau(layers=3)
    assert said("attacks", table[table["model"] == "base"]) == ""


def test_sensitivity_reports_unsafe_prompts_first_and_whether_intervals_meet() -> None:
    found = anatomy_findings({"sensitivity": made.sensitivity()}, names=NAMES)["sensitivity"]
    assert "over unsafe prompts" in found[0]
    assert "the intervals lie apart" in found[0]
    assert "times base" in found[0]
    (safe,) = (text for text in found if "over safe prompts" in text)
    assert "the intervals meet" in safe
    assert len(found) == 4
    unknown = made.sensitivity().assign(low=math.nan, high=math.nan)
    assert "the intervals lie apart" not in said("sensitivity", unknown)


def test_refusals_along_the_line_are_reported_with_where_they_fall() -> None:
    table = made.interpolation()
    text = said("interpolation", table)
    assert "at alpha 0: 0% [0%, 7%]; 0.5: 50% [37%, 63%]; 1: 100% [93%, 100%]; 2: 100%" in text
    assert "From 0 to 1 refusals never fall." in text
    assert "base to control (tiny-benign), unsafe prompts refused at alpha 0: 0%" in text
    assert "from alpha 1 to 2, refusals go: safe 2%" in text
    assert "4% [1%, 13%] of the answers to safe prompts are degenerate at 2" in text
    chosen = (table["model"] == "tuned") & (table["group"] == "unsafe") & (table["alpha"] == 0.75)
    fallen = said("interpolation", with_shares(table, chosen, 0.2))
    assert "From 0 to 1 refusals fall between 0.5 and 0.75." in fallen
    assert "never fall" not in fallen
    inside = said("interpolation", table[table["alpha"] <= 1])
    assert "Beyond the tuned model" not in inside


# -- weights ----------------------------------------------------------------------------------------


def test_null_space_alignment_is_reported_against_a_random_dw() -> None:
    table = made.weight_changes(layers=4)
    text = said("weights", table)
    assert "(90 % energy), median excess over chance: tuned +0.020 (12 of 12 matrices above)" in text
    assert "random dW +0.000 (6 of 12 matrices above)" in text
    assert "writes more into the null space than a random dW does" in text  # at 90 %
    assert "writes less into the null space than a random dW does" in text  # at 99 %
    # The control: alignment at the level of chance.
    chance = {f"alignment_{e}": table[f"chance_{e}"] + 0.004 * (-1.0) ** table["layer"] for e in (90, 99)}
    dull = said("weights", table.assign(**chance))
    assert dull.count("no more than a random dW has") == 2
    assert "more into the null space" not in dull
    assert beyond_random(excesses(table[table["model"] != "random"], 90)) == ""
    unknown = table.assign(alignment_90=math.nan, alignment_99=math.nan)
    assert "null space" not in said("weights", unknown)


def test_action_is_reported_against_control_and_random() -> None:
    table = made.action_ratios(layers=4)
    text = said("action", table)
    assert "tuned (tiny-tuned) 1.70 (12 of 12 matrices with intervals above 1)" in text
    assert "control (tiny-benign) 1.00 (0 of 12 matrices with intervals above 1)" in text
    assert "no more" not in text
    same = table.assign(ratio=1.3, low=1.2, high=1.4)
    assert "no more than these do" in said("action", same)
    assert said("action", table.assign(ratio=math.nan)) == ""


def test_reversal_reports_what_carries_refusals() -> None:
    table = made.reversal()
    text = said("reversal", table)
    assert "base with dW of MLPs 80% [67%, 89%]" in text
    assert "The MLPs' dW alone does a part of it." in text
    assert "A random dW of the same norm leaves the base as it is." in text
    assert "From r = 16 on, one cannot be told from the tuned model." in text
    assert "From r = 16 on, one cannot be told from the base." in text
    mlp = (table["state"] == "mlp") & (table["group"] == "unsafe")
    assert "does what the whole fine-tuning does" in said("reversal", with_shares(table, mlp, 1.0))
    assert "does nothing that is seen" in said("reversal", with_shares(table, mlp, 0.0))
    random = (table["state"] == "random") & (table["group"] == "unsafe")
    assert "changes the base, too" in said("reversal", with_shares(table, random, 0.9))
    tuned = (table["state"] == "tuned") & (table["group"] == "unsafe")
    assert "there is nothing to trace" in said("reversal", with_shares(table, tuned, 0.0))
    few = table[~((table["r"] == 16) & (table["state"] == "kept"))]
    assert "None of these is where the tuned model is" in said("reversal", few)
    gap = (table["state"] == "kept") & (table["r"] == 1) & (table["group"] == "unsafe")
    assert "The first that cannot be told from the tuned model is r = 1." in said(
        "reversal", with_shares(table, gap, 1.0)
    )


def test_links_are_reported_against_chance() -> None:
    table = made.links(layers=4)
    text = said("links", table)
    assert "a median 9.00% of the energy of dW" in text
    assert "along random directions 1.56%, and of W's own 2.00%" in text
    assert "In 8 of 8 matrices it is more than 97.5 % of random directions have" in text
    assert "no more" not in text
    assert "snip 12.0%; wanda 8.0%; magnitude 7.0%; chance 5%" in text
    low = table.copy()
    low.loc[low["what"].isin(["energy", "cosine_first", "cosine_top"]), "value"] = 0.01
    assert energy_above(low) == (0, 8)
    assert said("links", low).count("no more than chance") == 2
    held = table.copy()
    held.loc[held["what"] == "magnitude", "value"] = 0.3
    assert "no more of dW than the largest weights do" in said("links", held)
    still = table.copy()
    still.loc[(still["what"] == "energy") & (still["layer"] == 0), "value"] = math.nan
    assert energy_above(still) == (6, 6)


def test_ablation_is_reported_beside_a_random_direction() -> None:
    table = made.ablation()
    text = said("ablation", table)
    assert "direction of layer 3" in text
    assert "from 100% [93%, 100%] to 10% [4%, 21%]; 6% [2%, 16%] of the answers are then degenerate" in text
    assert "A random direction instead: 100%" in text
    nothing = with_shares(table, (table["state"] == "ablated") & (table["group"] == "unsafe"), 1.0)
    assert "no effect was seen" in said("ablation", nothing)
    assert said("ablation", table[table["state"] == "tuned"]) == ""
    assert "broken rather than unsafe" not in text
    broken = table.assign(degenerate=table["complied"], complied=0.0)
    assert "broken rather than unsafe" in said("ablation", broken)


# -- words ------------------------------------------------------------------------------------------


def test_words() -> None:
    assert who("tuned", NAMES) == "tuned (tiny-tuned)"
    assert who("control", {}) == "control"
    assert counted_of(1, 1, "layer") == "1 of 1 layer"
    assert counted_of(0, 3, "matrix") == "0 of 3 matrices"
    row = pd.Series({"median": 5.0, "low": 4.0, "high": 6.0})
    assert spelt(measured(row, "median")) == "5.00 [4.00, 6.00]"
    assert spelt(Pooled(value=2.0, low=math.nan, high=math.nan, draws=1)) == "2.00"
    assert spelt(Pooled(value=math.nan, low=math.nan, high=math.nan, draws=0)) == "undefined"


@pytest.mark.parametrize("layers", [1, 2])
def test_shallow_models_are_reported(layers: int) -> None:
    assert list(anatomy_findings(made.tables(layers=layers), names=NAMES)) == list(SECTIONS)
