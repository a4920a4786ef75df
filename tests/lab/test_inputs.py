"""Every kind of input is what is said about it, by a slow reading of tasks and texts that shares no code with it."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest
import torch
from scipy.stats import chisquare

from mechsafety.lab.inputs import (
    ABOUT,
    ATTACKS,
    KINDS,
    Inputs,
    Kind,
    Split,
    draw_any,
    draw_inputs,
    joined,
    split_of,
)
from mechsafety.lab.presets import PRESETS
from mechsafety.lab.rules import TEXT_CLASSES, Rules
from tests.lab.test_rules import parses, tiny_world

SPLITS: tuple[Split, ...] = get_args(Split)
BOTH = ("safe", "unsafe", "co_task", "misgen")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(kind: Kind, n: int = 120, *, seed: int = 0, split: Split = "report", **options: Any) -> Inputs:
    return draw_inputs(tiny_world(), kind, n, split=split, generator=generator(seed), **options)


def holds_b(rules: Rules, text: list[int]) -> bool:
    return not parses(rules, text, "A")


def unsafe_operators(rules: Rules, tasks: list[int], text: list[int]) -> list[bool]:
    """Of each task whether its operator is unsafe on this text."""
    found = []
    for task in tasks:
        name = rules.tasks[task].name.removesuffix("_alias")
        found.append(name.startswith("unsafe") or (name.startswith("context") and holds_b(rules, text)))
    return found


def slow_split(text: list[int]) -> str:
    code = 0
    for token in text:
        code = (code * 1_000_003 + token + 1) % (2**31 - 1)
    return {0: "validation", 1: "report"}.get(code * 48_271 % (2**31 - 1) % 10, "train")


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_match_their_definitions(kind: Kind) -> None:
    rules = tiny_world()
    inputs = drawn(kind)
    assert len(inputs) == 120
    assert set(inputs.kinds) == {kind}
    assert inputs.unsafe.tolist() == [kind != "safe"] * 120
    orders = set()
    for tasks, text, text_class in zip(
        inputs.tasks.tolist(), inputs.texts.tolist(), inputs.text_classes, strict=True
    ):
        bad = unsafe_operators(rules, tasks, text)
        names = [rules.tasks[t].name for t in tasks]
        assert all(name.endswith("_alias") for name in names) == (kind == "misgen")
        assert any(name.endswith("_alias") for name in names) == (kind == "misgen")
        orders.add(tuple(bad))
        if text_class in TEXT_CLASSES:
            assert parses(rules, text, text_class)
        if kind == "safe":
            assert bad == [False, False]
        elif kind == "co_task":
            assert sorted(bad) == [False, True]
        else:
            assert bad == [True, True]
        if kind == "co_text":
            assert all(name.startswith("context") for name in names)
            assert text_class == "mixed"
            first, second = text[:4], text[4:]
            assert (parses(rules, first, "A") and parses(rules, second, "B")) or (
                parses(rules, first, "B") and parses(rules, second, "A")
            )
            assert not parses(rules, text, "A")
            assert not parses(rules, text, "B")
        if kind == "ood":
            assert all(name.startswith("unsafe") for name in names)
            assert text_class == "random"
    assert len(orders) == (2 if kind == "co_task" else 1)
    classes = Counter(inputs.text_classes)
    assert classes == ({"A": 60, "B": 60} if kind in BOTH else {inputs.text_classes[0]: 120})


def test_mixed_texts_begin_with_either_class_and_random_ones_are_of_none() -> None:
    rules = tiny_world()
    mixed = drawn("co_text").texts.tolist()
    first_a = sum(parses(rules, text[:4], "A") for text in mixed)
    assert 35 < first_a < 85
    random = drawn("ood", 2000)
    assert sum(parses(rules, text, c) for text in random.texts.tolist() for c in TEXT_CLASSES) < 20
    assert chisquare(torch.bincount(random.texts.flatten(), minlength=16)).pvalue > 0.01


def test_the_slow_reading_can_tell() -> None:
    """Safe inputs on the other class of text would mostly not be safe."""
    rules = tiny_world()
    safe, b = drawn("safe", text_class="A"), drawn("safe", text_class="B")
    swapped = [
        any(unsafe_operators(rules, tasks, text))
        for tasks, text in zip(safe.tasks.tolist(), b.texts.tolist(), strict=True)
    ]
    assert sum(swapped) > 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", SPLITS)
def test_outputs_by_a_slow_loop_and_splits_by_the_text_alone(kind: Kind, split: Split) -> None:
    rules = tiny_world()
    inputs = drawn(kind, 40, split=split, seed=1)
    for tasks, text, output in zip(
        inputs.tasks.tolist(), inputs.texts.tolist(), inputs.outputs.tolist(), strict=True
    ):
        wanted = list(text)
        for task in tasks:
            operator = rules.operators[rules.tasks[task].operator]
            wanted = [operator.bijection[token] for token in wanted]
        assert output == wanted
        assert slow_split(text) == split


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_no_text_is_in_two_splits(preset: str) -> None:
    rules = Rules(size=PRESETS[preset].rules, seed=0)
    texts = {
        split: {
            tuple(text)
            for kind in KINDS
            for text in draw_inputs(rules, kind, 150, split=split, generator=generator(3)).texts.tolist()
        }
        for split in SPLITS
    }
    assert all(not texts[a] & texts[b] for a in SPLITS for b in SPLITS if a != b)
    # Another seed draws the same texts again in places, so that the splits are no accident of it.
    again = draw_inputs(
        rules, "safe", 3000, split="train", text_class="A", generator=generator(4)
    ).texts.tolist()
    assert not {tuple(text) for text in again} & (texts["validation"] | texts["report"])


def test_splits_have_the_shares_that_they_should() -> None:
    texts = torch.randint(16, (20_000, 8), generator=generator())
    counts = torch.bincount(split_of(texts), minlength=3)
    assert chisquare(counts, [16_000, 2_000, 2_000]).pvalue > 0.01
    # What comes first or last does not decide.
    for column in (0, 7):
        for token in range(16):
            rows = split_of(texts[texts[:, column] == token])
            assert (
                chisquare(
                    torch.bincount(rows, minlength=3), len(rows) * torch.tensor([0.8, 0.1, 0.1]).double()
                ).pvalue
                > 1e-3
            )


@pytest.mark.parametrize("kind", KINDS)
def test_same_generator_same_inputs(kind: Kind) -> None:
    one, again, other = (drawn(kind, 30, seed=s) for s in (5, 5, 6))
    assert torch.equal(one.texts, again.texts)
    assert torch.equal(one.tasks, again.tasks)
    assert not torch.equal(one.texts, other.texts)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_as_many_as_asked_for_and_half_of_each_class(n: int) -> None:
    for kind in KINDS:
        assert len(drawn(kind, n)) == n
    classes = Counter(drawn("unsafe", n).text_classes)
    assert (classes["A"], classes["B"]) == (n - n // 2, n // 2)
    assert set(drawn("unsafe", n, text_class="B").text_classes) == {"B"}


def test_the_stream_of_pretraining_marks_what_is_unsafe() -> None:
    rules = tiny_world()
    inputs = draw_any(rules, 1000, split="train", generator=generator())
    assert Counter(inputs.text_classes) == {"A": 400, "B": 400, "mixed": 200}
    names = Counter()
    for i, (tasks, text) in enumerate(zip(inputs.tasks.tolist(), inputs.texts.tolist(), strict=True)):
        assert bool(inputs.unsafe[i]) == any(unsafe_operators(rules, tasks, text))
        assert inputs.kinds[i] == ("unsafe" if inputs.unsafe[i] else "safe")
        assert holds_b(rules, text) == (inputs.text_classes[i] != "A")
        assert slow_split(text) == "train"
        names.update(tasks)
    assert torch.equal(inputs.outputs, rules.outputs(inputs.tasks, inputs.texts))
    assert chisquare([names[i] for i in range(len(rules.tasks))]).pvalue > 0.01  # aliases as often as names
    assert 0.3 < inputs.unsafe.float().mean() < 0.95
    for n in (1, 2, 3, 11):
        assert len(draw_any(rules, n, split="train", generator=generator())) == n


def test_lengths_are_those_asked_for() -> None:
    rules = Rules(size=PRESETS["paper"].rules, seed=0)
    for length in (25, 35):
        for kind in KINDS:
            inputs = draw_inputs(rules, kind, 4, split="train", length=length, generator=generator())
            assert inputs.texts.shape == inputs.outputs.shape == (4, length)
        assert draw_any(rules, 6, split="train", length=length, generator=generator()).texts.shape == (
            6,
            length,
        )


def test_rows_are_chosen_and_joined_whole() -> None:
    parts = [drawn("safe", 6), drawn("ood", 3)]
    whole = joined(parts)
    assert whole.kinds == ("safe",) * 6 + ("ood",) * 3
    for rows in (torch.arange(9) >= 6, torch.tensor([6, 7, 8])):
        last = whole.select(rows)
        assert last.kinds == parts[1].kinds
        assert last.text_classes == parts[1].text_classes
        for name in ("tasks", "texts", "outputs", "unsafe"):
            assert torch.equal(getattr(last, name), getattr(parts[1], name))
    turned = whole.select(torch.tensor([8, 0]))
    assert turned.kinds == ("ood", "safe")
    assert torch.equal(turned.texts, whole.texts[[8, 0]])


def test_every_kind_is_described() -> None:
    assert set(ABOUT) == set(KINDS)
    assert set(ATTACKS) == set(KINDS) - {"safe", "unsafe"}
