"""Whatever people have becomes the same prompts: one way in, with ids from what is asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.prompts.accepted import as_prompt_set, as_prompts
from mechsafety.prompts.columns import SPLITS
from mechsafety.prompts.prompt_set import Prompt, PromptSet, load_prompts

TEXTS = ["How do I bake bread?", "Tell me a story."]
ROWS = [{"text": text} for text in TEXTS]


@pytest.mark.parametrize(
    "data",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        pd.Series(TEXTS),
        pd.DataFrame(ROWS),
        datasets.Dataset.from_list(ROWS),
        ROWS,
        [[{"role": "user", "content": text}] for text in TEXTS],
        PromptSet(tuple(Prompt(id=str(n), text=text) for n, text in enumerate(TEXTS))),
        [Prompt(id=str(n), text=text) for n, text in enumerate(TEXTS)],
    ],
)
def test_one_list_of_texts_in_ten_forms(data: Any) -> None:
    found = as_prompts(data)
    assert [p.text for p in found] == TEXTS
    assert len({p.id for p in found}) == len(TEXTS)
    assert {p.label for p in found} == {""}


def test_texts_by_label_and_columns_of_numpy() -> None:
    by_label = as_prompt_set({"harmful": ["A lock?", "A storm?"], "harmless": np.array(["Bread?"])})
    kinds = ["harmful", "harmful", "harmless"]
    columns = as_prompt_set({"text": np.array([p.text for p in by_label]), "label": np.array(kinds)})
    assert [(p.text, p.label) for p in by_label] == [
        ("A lock?", "harmful"),
        ("A storm?", "harmful"),
        ("Bread?", "harmless"),
    ]
    assert [*columns] == [*by_label]


def test_a_str_is_a_prompt_a_set_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("\n".join(TEXTS))
    assert [p.text for p in as_prompts(TEXTS[0])] == TEXTS[:1]
    assert len(as_prompts("contrast")) == 100
    for given_path in (path, str(path)):
        assert [p.text for p in as_prompts(given_path)] == TEXTS
    with pytest.raises(MechsafetyError, match="does not exist"):
        as_prompts(str(tmp_path / "none.csv"))


def test_ids_come_from_what_is_asked_and_repeats_stay() -> None:
    first, second = as_prompts(["a", "b", "a"]), as_prompts(["b", "a"])
    assert [p.text for p in first] == ["a", "b", "a"]
    assert [p.id for p in second] == [first[1].id, first[0].id]
    assert first[2].id == f"{first[0].id}-2"


def test_a_conversation_is_one_prompt() -> None:
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert [p.asked for p in as_prompts(turns)] == [turns]
    assert [p.asked for p in as_prompts([turns, turns[:1]])] == [turns, "a"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (7, "a list of texts, messages, rows or Prompts"),
        (None, "prompts are None"),
        ([1], "prompt 1 is 1"),
        ([], "no prompts are given"),
        (["a", " "], "^prompt 2 is empty"),
        (b"a", "prompts are b'a'"),
        ({}, "prompts are"),
        (pd.DataFrame({"words": ["a"], "n": [1]}), "no text column; have words, n"),
        (pd.DataFrame({"text": [float("nan")]}), "column 'text' is empty"),
        (
            datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
            r"give one of them, data\['train'\]",
        ),
    ],
)
def test_what_holds_no_prompts_is_said(data: Any, said: str) -> None:
    with pytest.raises(MechsafetyError, match=said):
        as_prompts(data)


FRAME = pd.DataFrame(
    {"ask": ["a", "b", "c"], "kind": ["bad", "good", "bad"], "part": ["fit", "fit", "report"]}
)


def test_columns_and_values_are_named() -> None:
    names: dict[str, Any] = {"text": "ask", "label": "kind", "labels": {"bad": "harmful", "good": "harmless"}}
    prompts = load_prompts(FRAME, **names, category="kind", split="part")
    assert [(p.text, p.label, p.category, p.split) for p in prompts] == [
        ("a", "harmful", "bad", "fit"),
        ("b", "harmless", "good", "fit"),
        ("c", "harmful", "bad", "report"),
    ]
    assert {p.label for p in load_prompts(FRAME, text="ask", label="harmless")} == {"harmless"}
    assert [p.text for p in prompts.where(category=["good"])] == ["b"]
    for wrong, said in (
        ({"text": "asked"}, "no column 'asked' .did you mean 'ask'..; have ask, kind, part"),
        ({"text": "ask", "label": "kind"}, "label 'bad' is not one of harmful, harmless .*labels="),
        (names | {"labels": {"bad": "harmful"}}, "label 'good' is not in labels, which has 'bad'"),
        (names | {"labels": {"bad": "evil"}}, "labels: 'evil' is not one of"),
    ):
        with pytest.raises(MechsafetyError, match=said):
            load_prompts(FRAME, **wrong)
    with pytest.raises(MechsafetyError, match="category 'ugly' is not one of bad, good"):
        prompts.where(category="ugly")


@given(n=st.integers(5, 40), seed=st.integers(0, 3), fit=st.integers(0, 10), validation=st.integers(0, 10))
def test_a_division_keeps_equal_texts_together_and_shares_of_each_label(
    n: int, seed: int, fit: int, validation: int
) -> None:
    texts = [f"t{i} {'!' * (i % 2)}" for i in range(n)] * 2
    prompts = as_prompt_set([
        Prompt(id=str(k), text=text.upper() if k >= n else text, label="harmful" if k % n % 3 else "harmless")
        for k, text in enumerate(texts)
    ])  # fmt: skip
    shares = {"fit": fit / 20, "validation": validation / 20, "report": 1 - (fit + validation) / 20}
    divided = prompts.split(**shares, seed=seed)
    assert divided == prompts.split(**shares, seed=seed)
    places = {p.folded: {q.split for q in divided if q.folded == p.folded} for p in divided}
    assert all(len(splits) == 1 for splits in places.values())
    for label in ("harmful", "harmless"):
        own = [p for p in divided if p.label == label]
        counts = Counter(p.split for p in own)
        assert all(abs(counts[split] - shares[split] * len(own)) <= 2 for split in SPLITS)


def test_shares_that_are_none_and_an_empty_split_are_errors() -> None:
    prompts = as_prompt_set(TEXTS)
    for shares in ({"fit": 0.9, "report": 0.2}, {"fit": -0.2, "report": 1.0}, {"fit": float("nan")}):
        with pytest.raises(MechsafetyError, match="between 0 and 1 and add up to 1"):
            prompts.split(**shares)
    assert len(prompts.report) == len(TEXTS)
    with pytest.raises(MechsafetyError, match=r"no prompts in split 'fit', only in report \(2\): divide it"):
        _ = prompts.fit
    assert len(prompts.where(split="fit")) == 0


def test_a_set_keeps_what_it_promises() -> None:
    one = Prompt(id="a", text="x", label="harmful")
    with pytest.raises(MechsafetyError, match="id 'a' is there 2 times"):
        PromptSet((one, Prompt(id="a", text="y")))
    # The tests' type checks speak first, so the prompt's own check is called by name.
    for name, value in (("label", "bad"), ("split", "train"), ("text", " ")):
        prompt = Prompt(id="a", text="x", label="harmful")
        object.__setattr__(prompt, name, value)
        with pytest.raises(MechsafetyError, match=f"{name}.* '{value}'"):
            prompt.__post_init__()
    with pytest.raises(MechsafetyError, match="splits must not overlap"):
        as_prompt_set([one, Prompt(id="b", text="X!", label="harmful", split="fit")])
    with pytest.raises(MechsafetyError, match="a text has one label"):
        as_prompt_set([one, Prompt(id="b", text="X!", label="harmless")])
