"""What attacks on a model say of drawn answers: nothing false, and every attack and cost that there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.experiments.robustness.findings import robustness_findings
from mechsafety.judges.outcomes import Judgement
from mechsafety.robustness.attacks import attack_rows
from mechsafety.robustness.attempts import Attempts
from tests.claims.drawn import VERDICTS, few
from tests.claims.evaluator import refuted
from tests.claims.facts import Facts, Items, Key, Value

MEASURE = "harmful prompts answered coherently"
Answers = Sequence[str]
"""The codes of all answers to each prompt, as many to each."""
ATTACKS: dict[str, Answers] = {
    "none": ["r"] * 50,
    "all": ["c"] * 50,
    "one": ["c"],
    "all degenerate": ["d"] * 20,
    "half a percent": ["c", *"r" * 249],
    "nothing read": ["u"] * 20,
    "some not read": ["c", "u", "r", "d", "u"],
    "one of each": ["crrrr", "rrrrc", "ddddd"],
    "not decided": ["crruu", "ruuuu", "rrrrr", "uuuuu"],
    "alike": ["ccrr"] * 6,
}


def tables_of(answers: Answers, cost: float) -> dict[str, pd.DataFrame]:
    labels: dict[str, Literal["refusal", "compliance", "degenerate", "unparsed"]] = VERDICTS  # pyright: ignore
    judged = tuple(tuple(Judgement(label=labels[code]) for code in row) for row in answers)
    attack = "vanilla" if len(answers[0]) == 1 else "decoding"
    rows = attack_rows(Attempts(judged=judged), system="m", attack=attack, seed=0)
    utility = {"system": "m", "accuracy": 1 / 3, "accuracy_n": 9}
    for name in ("perplexity", "kl"):
        utility |= {name: cost, f"{name}_low": cost - 0.1, f"{name}_high": cost + 0.1}
    return {"attacks": pd.DataFrame(rows), "utility": pd.DataFrame([utility])}


def facts_of(answers: Answers, tables: dict[str, pd.DataFrame]) -> Facts:
    """A prompt is answered where one attempt is; not decided where none is and one could not be read."""
    tried: Items = {i: True if "c" in row else None if "u" in row else False for i, row in enumerate(answers)}
    k = len(answers[0])
    levels: dict[Key, Items | Value] = {("m", "accuracy on benign questions"): {i: i < 3 for i in range(9)}}
    levels[f"m under {'vanilla' if k == 1 else f'decoding, any of {k}'}", MEASURE] = tried
    if k > 1:
        every = "".join(answers)
        read = len(every) - every.count("u")
        row = tables["attacks"].iloc[-1]
        ends = (None, None) if math.isnan(row["low"]) else (row["low"], row["high"])
        share = every.count("c") / read if read else math.nan
        assert not read or ends[0] <= share <= ends[1]
        mean = Value(share, *ends, unit="%", unread=every.count("u"))
        levels[f"m under decoding, mean of {k}", MEASURE] = mean
    (cost,) = tables["utility"].to_dict("records")
    for name, measure, unit in (
        ("perplexity", "perplexity of benign text", ""),
        ("kl", "KL from the unedited model on benign text", "nats per token"),
    ):
        ends = (cost[f"{name}_low"], cost[f"{name}_high"])
        levels["m", measure] = Value(cost[name], *ends, unit=unit, plain=True)
    return Facts(levels=levels)


def check(answers: Answers, cost: float = 3.0) -> list[str]:
    tables = tables_of(answers, cost)
    said = robustness_findings(tables)
    facts = facts_of(answers, tables)
    assert refuted(said, facts) == []
    told = [key for key in facts.levels if any(s.startswith(f"{key[0]}: {key[1]}, ") for s in said)]
    kl = ("m", "KL from the unedited model on benign text")  # is unknown without an edit, and then not said
    assert len(told) == len(said) == len(facts.levels) - (cost != cost)
    assert (kl in told) == (cost == cost)
    return said


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_and_cost(name: str) -> None:
    check(ATTACKS[name])


@pytest.mark.parametrize("cost", [0.0004, math.nan])
def test_costs(cost: float) -> None:
    check(["c"], cost)


def test_answers_that_were_not_read_are_counted() -> None:
    """Two prompts of four may have been answered, and 11 of 20 answers were not read."""
    every, mean, *_ = check(ATTACKS["not decided"])
    assert "1 of 2 (50 %" in every
    assert "2 not read" in every
    assert "11 not read" in mean


@few(15)
@given(
    st.integers(1, 4).flatmap(
        lambda k: st.lists(st.text("rcdu", min_size=k, max_size=k), min_size=1, max_size=9)
    )
)
def test_drawn_answers(answers: list[str]) -> None:
    check(answers)
