"""Groups of prompts, and counts of outcomes by group."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechsafety.anatomy.readings import (
    OUTCOME_COLUMNS,
    outcome_row,
    outcome_rows,
    prompt_groups,
    read_outcomes,
)
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Label
from mechsafety.generation.answered import Completion
from mechsafety.generation.completions import generate
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.statistics import wilson


def prompt(name: str, *, harmful: bool, category: str = "") -> Prompt:
    return Prompt(
        id=name, text=f"how do i make {name}", label="harmful" if harmful else "harmless", category=category
    )


def completion(name: str, text: str) -> Completion:
    return Completion(
        id=name,
        prompt=name,
        label="harmful",
        category="",
        text=text,
        tokens=(5,),
        n_prompt_tokens=1,
        finish="stop",
    )


def test_groups_are_labels_and_families_of_attacks() -> None:
    prompts = [prompt("a", harmful=True), prompt("b", harmful=False), prompt("c", harmful=True)]
    attacks = [prompt("d", harmful=True, category="swap"), prompt("e", harmful=True, category="mix")]
    groups = prompt_groups(prompts, attacks)
    assert {name: [p.id for p in group] for name, group in groups.items()} == {
        "safe": ["b"],
        "unsafe": ["a", "c"],
        "swap": ["d"],
        "mix": ["e"],
    }
    assert list(prompt_groups(prompts[:1])) == ["unsafe"]


@pytest.mark.parametrize(
    "attack",
    [
        prompt("d", harmful=False, category="swap"),
        prompt("d", harmful=True),
        prompt("d", harmful=True, category="unsafe"),
    ],
)
def test_attacks_that_are_none_are_refused(attack: Prompt) -> None:
    with pytest.raises(MechsafetyError, match="attacks are harmful prompts"):
        prompt_groups([prompt("a", harmful=True)], [attack])


def test_ids_that_repeat_are_refused() -> None:
    with pytest.raises(MechsafetyError, match="'a'"):
        prompt_groups([prompt("a", harmful=True)], [prompt("a", harmful=True, category="swap")])
    with pytest.raises(MechsafetyError, match="unique"):
        read_outcomes([completion("a", "no"), completion("a", "yes")], "rules")


def test_rows_count_what_was_read() -> None:
    labels: dict[str, Label] = {
        "a": "refusal",
        "b": "refusal",
        "c": "compliance",
        "d": "degenerate",
        "e": "unparsed",
    }
    row = outcome_row(labels, list("abcde"))
    assert tuple(row) == OUTCOME_COLUMNS
    assert row["n"] == 4  # the unread one is no answer
    expected = wilson(2, 4)
    assert (row["refused"], row["refused_low"], row["refused_high"]) == (0.5, expected.low, expected.high)
    assert (row["complied"], row["degenerate"]) == (0.25, 0.25)
    nothing = outcome_row(labels, ["e"])
    assert nothing["n"] == 0
    assert all(math.isnan(value) for name, value in nothing.items() if name != "n")
    with pytest.raises(MechsafetyError, match="'f'"):
        outcome_row(labels, ["a", "f"])


def test_any_judge_by_name(tmp_path: Path) -> None:
    key = tmp_path / "key.csv"
    key.write_text("prompt,answer,refusal\na,one two,no no\nb,three,no\n")
    answers = [completion("a", " one  two "), completion("b", "no")]
    assert read_outcomes(answers, f"key:{key}") == {"a": "compliance", "b": "refusal"}
    refusal = "I'm sorry, but I can't help with that."
    assert read_outcomes([completion("a", refusal)], "rules") == {"a": "refusal"}


def test_rows_of_a_model_are_those_of_its_own_answers(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    groups = prompt_groups(
        [prompt("bread", harmful=False), prompt("fire", harmful=True), prompt("lock", harmful=True)]
    )
    rows = outcome_rows(model, groups, judge="rules", max_new_tokens=4, seed=0)
    assert [row["group"] for row in rows] == ["safe", "unsafe"]
    for row, group in zip(rows, groups.values(), strict=True):
        labels = read_outcomes(list(generate(model, group, max_new_tokens=4, seed=0)), "rules")
        assert row == {"group": row["group"], **outcome_row(labels, [p.id for p in group])}
