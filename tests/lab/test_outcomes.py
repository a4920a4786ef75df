"""Answers are what step-by-step argmax gives, readings are exact, and soft tokens stay in their ball."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import GPTNeoXForCausalLM

from mechsafety.lab import outcomes
from mechsafety.lab.cases import measure_cases
from mechsafety.lab.inputs import KINDS, Inputs, draw_inputs, joined
from mechsafety.lab.networks import embedding_table, new_network
from mechsafety.lab.outcomes import READINGS, Reading, free_running, outcome_table, readings, with_soft_tokens
from mechsafety.lab.presets import PRESETS
from mechsafety.lab.rules import Rules
from mechsafety.lab.soft_tokens import N_TOKENS, random_soft_tokens, search_soft_tokens
from mechsafety.lab.training import Schedule, pretrain
from mechsafety.lab.vocabulary import Vocabulary
from mechsafety.statistics import wilson
from tests.lab.test_rules import tiny_world


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(rules=tiny_world())


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary) -> GPTNeoXForCausalLM:
    """Trained just enough to end its answers."""
    trained = new_network(PRESETS["quick"].network, vocabulary, seed=0)
    schedule = Schedule(steps=60, batch_size=32, learning_rate=5e-3)
    pretrain(trained, vocabulary, rung="metatags", schedule=schedule, seed=0)
    return trained


def inputs_of(vocabulary: Vocabulary, n: int = 3, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return joined(
        [draw_inputs(vocabulary.rules, kind, n, split="report", generator=generator) for kind in KINDS]
    )


def step_by_step(model: GPTNeoXForCausalLM, embedded: torch.Tensor, *, end: int, longest: int) -> list[int]:
    """Argmax of the whole sequence, run anew for every token."""
    answer: list[int] = []
    with torch.no_grad():
        for _ in range(longest):
            logits = model(inputs_embeds=embedded[None], use_cache=False).logits[0, -1]
            token = int(logits.argmax())
            if token == end:
                break
            answer.append(token)
            embedded = torch.cat([embedded, embedding_table(model)[token][None]])
    return answer


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("batch", [4, 512])
def test_free_running_is_argmax_step_by_step(
    vocabulary: Vocabulary,
    model: GPTNeoXForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
    *,
    trained: bool,
    soft: bool,
    batch: int,
) -> None:
    monkeypatch.setattr(outcomes, "_BATCH", batch)
    network = model if trained else new_network(PRESETS["quick"].network, vocabulary, seed=1)
    inputs = inputs_of(vocabulary)
    prompts = vocabulary.prompts(inputs)
    tokens = random_soft_tokens(network, len(inputs), seed=0) if soft else None
    found = free_running(network, vocabulary, prompts, soft=tokens)
    table = embedding_table(network)
    end = vocabulary.id("<end>")
    for row, answer in enumerate(found):
        embedded = table[prompts[row]]
        if tokens is not None:
            embedded = torch.cat([embedded[:1], tokens[row], embedded[1:]])
        assert answer == step_by_step(network, embedded, end=end, longest=10)
    assert not any(end in answer for answer in found)
    if trained:  # some end by themselves, or the test would not see how
        assert any(len(answer) < 10 for answer in found)
    if tokens is not None:
        assert found != free_running(network, vocabulary, prompts)


def test_soft_tokens_stand_after_the_first(vocabulary: Vocabulary, model: GPTNeoXForCausalLM) -> None:
    prompts = vocabulary.prompts(inputs_of(vocabulary, 1))
    soft = random_soft_tokens(model, len(prompts), seed=0)
    whole = with_soft_tokens(model, prompts, soft)
    table = embedding_table(model)
    assert torch.equal(whole[:, :1], table[prompts[:, :1]])
    assert torch.equal(whole[:, 1:3], soft)
    assert torch.equal(whole[:, 3:], table[prompts[:, 1:]])


def test_readings_by_hand(vocabulary: Vocabulary) -> None:
    inputs = inputs_of(vocabulary, 1)
    row = next(i for i in range(len(inputs)) if not torch.equal(*_two(vocabulary, inputs, i)))
    right, rephrased = (ids.tolist() for ids in _two(vocabulary, inputs, row))
    null, tag = vocabulary.id("<null>"), vocabulary.id("<tag>")
    expected: dict[Reading, list[list[int]]] = {
        "correct": [right],
        "refused": [[null] * 8],
        "rephrased": [rephrased],
        "tagged": [[tag, *right]],
        "other": [
            [],
            right[:-1],
            [*right, right[0]],
            [null] * 7,
            [tag, *rephrased],
            [tag, *[null] * 8],
            [*right, vocabulary.id("<end>")],
        ],
    }
    for name, answers in expected.items():
        for answer in answers:
            assert readings(vocabulary, inputs.select(torch.tensor([row])), [answer]) == [name]
    # Row by row: the answer to another input is none.
    every = vocabulary.answers(inputs)[:, :-1].tolist()
    assert readings(vocabulary, inputs, every) == ["correct"] * len(inputs)
    assert "correct" not in readings(vocabulary, inputs, every[1:] + every[:1])


def _two(vocabulary: Vocabulary, inputs: Inputs, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    return vocabulary.answers(inputs)[row, :-1], vocabulary.rephrased(inputs)[row, :-1]


def test_a_rephrased_text_that_is_right_is_correct(vocabulary: Vocabulary) -> None:
    rules: Rules = vocabulary.rules
    (safe,) = [i for i, t in enumerate(rules.tasks) if t.name == "safe1"]
    inputs = inputs_of(vocabulary, 1).select(torch.tensor([0]))
    tasks = torch.tensor([[0, safe]])  # identity, then the transformation of the rungs
    same = Inputs(
        kinds=inputs.kinds,
        text_classes=inputs.text_classes,
        tasks=tasks,
        texts=inputs.texts,
        outputs=rules.outputs(tasks, inputs.texts),
        unsafe=inputs.unsafe,
    )
    answer = vocabulary.rephrased(same)[0, :-1].tolist()
    assert readings(vocabulary, same, [answer]) == ["correct"]


def test_shares_by_kind_and_class(vocabulary: Vocabulary) -> None:
    inputs = inputs_of(vocabulary, 4)
    found: list[Reading] = [READINGS[i % len(READINGS)] for i in range(len(inputs))]
    table = outcome_table(inputs, found)
    assert table["n"].sum() == len(inputs)
    assert len(table) == 4 * 2 + 2
    for row in table.to_dict("records"):
        picked = [
            r
            for r, kind, c in zip(found, inputs.kinds, inputs.text_classes, strict=True)
            if (kind, c) == (row["kind"], row["text_class"])
        ]
        assert row["n"] == len(picked)
        assert sum(row[name] for name in READINGS) == pytest.approx(1)
        for name in READINGS:
            assert row[name] == picked.count(name) / len(picked)
        for name in ("correct", "refused"):
            interval = wilson(picked.count(name), len(picked))
            assert (row[f"{name}_low"], row[f"{name}_high"]) == (interval.low, interval.high)


def losses(
    model: GPTNeoXForCausalLM, vocabulary: Vocabulary, inputs: Inputs, soft: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy a token of each right answer behind the soft tokens."""
    prompts, answers = vocabulary.prompts(inputs), vocabulary.answers(inputs)
    whole = torch.cat([with_soft_tokens(model, prompts, soft), embedding_table(model)[answers]], dim=1)
    with torch.no_grad():
        logits = model(inputs_embeds=whole).logits[:, -answers.shape[1] - 1 : -1]
    return functional.cross_entropy(logits.transpose(1, 2), answers, reduction="none").mean(1)


def test_soft_tokens_stay_in_the_ball_and_lower_the_loss(
    vocabulary: Vocabulary, model: GPTNeoXForCausalLM
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = draw_inputs(vocabulary.rules, "unsafe", 96, split="report", generator=generator)
    radius = embedding_table(model).norm(dim=-1).mean()
    start = random_soft_tokens(model, 96, seed=3)
    assert start.shape == (96, N_TOKENS, 32)
    torch.testing.assert_close(start.norm(dim=-1), radius.expand(96, N_TOKENS))
    searched = search_soft_tokens(model, vocabulary, inputs, seed=3)
    assert (searched.norm(dim=-1) <= radius * (1 + 1e-5)).all()
    assert not searched.requires_grad
    before, after = (losses(model, vocabulary, inputs, soft) for soft in (start, searched))
    assert (after < before).float().mean() > 0.9
    assert after.mean() < before.mean() - 0.02
    # Other random tokens of that norm do no such thing.
    others = losses(model, vocabulary, inputs, random_soft_tokens(model, 96, seed=4))
    assert others.mean() > after.mean() + 0.02
    assert torch.equal(search_soft_tokens(model, vocabulary, inputs, seed=3), searched)
    assert torch.equal(search_soft_tokens(model, vocabulary, inputs, seed=3, steps=0), start)
    assert not torch.equal(search_soft_tokens(model, vocabulary, inputs, seed=4), searched)
    # One input's tokens do not depend on the others in its batch.
    alone = search_soft_tokens(model, vocabulary, inputs.select(torch.arange(1)), seed=3)
    torch.testing.assert_close(alone[0], searched[0], atol=1e-3, rtol=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_every_case_is_measured(vocabulary: Vocabulary, model: GPTNeoXForCausalLM) -> None:
    table: Any = measure_cases(model, vocabulary, n=6, seed=0)
    cases = set(zip(table["kind"], table["text_class"], strict=True))
    twice = ("safe", "unsafe", "co_task", "misgen", "random_soft", "soft")
    assert cases == {(k, c) for k in twice for c in "AB"} | {("co_text", "mixed"), ("ood", "random")}
    assert table["n"].tolist() == [6 if kind in ("co_text", "ood") else 3 for kind in table["kind"]]
    assert table.equals(measure_cases(model, vocabulary, n=6, seed=0))
