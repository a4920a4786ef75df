"""Utility: every number equals a plain loop's, a model is no distance from itself, and bad input is said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError, NotFiniteError
from mechsafety.edits.interventions import Ablate
from mechsafety.robustness.benign import Choice, Passage, benign_choices, benign_passages
from mechsafety.robustness.choices import accuracy, choice_log_probs
from mechsafety.robustness.utility import UTILITY_COLUMNS, base_distributions, measure_utility
from mechsafety.statistics.rates import wilson

TEXTS = ["tell me about the river", "how do i make bread with fire and a key", "the gate is a lock for the garden of the storm", "yes sure"]  # fmt: skip
PASSAGES = [Passage(id=str(i), topic="t", text=text) for i, text in enumerate(TEXTS)]
CHOICES = [
    Choice(id="0", subject="s", question="how do i make", choices=("bread", "the river", "a list of key"), answer=0),
    Choice(id="1", subject="s", question="the garden is", choices=("sorry", "here for me"), answer=1),
    Choice(id="2", subject="s", question="tell me about the", choices=("storm", "gate"), answer=0),
    Choice(id="3", subject="s", question="i can", choices=("not", "help", "lock", "write a list"), answer=2),
    Choice(id="4", subject="s", question="is bread a", choices=("storm of fire", "river"), answer=1),
]  # fmt: skip


def logits_of(model: Any, text: str) -> tuple[list[int], torch.Tensor]:
    """One text alone, through the bridge: no batch, no padding, no twin."""
    ids = model.tokenizer(text)["input_ids"]
    with torch.inference_mode():
        out = model(torch.tensor([ids]), return_type="logits")
    return ids, torch.log_softmax(out[0].float(), dim=-1)


def tolerance(dtype: str) -> float:
    return 1e-4 if dtype == "float32" else 5e-2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_perplexity_is_exp_of_the_mean_over_all_tokens(
    architecture: str, dtype: str, tiny_kept: Callable[..., Any]
) -> None:
    model = tiny_kept(architecture, dtype=dtype)
    losses: list[float] = []
    for text in TEXTS:
        ids, log_probs = logits_of(model, text)
        losses += [-float(log_probs[t - 1, ids[t]]) for t in range(1, len(ids))]
    found = measure_utility(model, passages=PASSAGES, seed=0).perplexity
    assert found is not None
    assert math.log(found.value) == pytest.approx(sum(losses) / len(losses), abs=tolerance(dtype))
    assert (found.n, found.clusters) == (len(losses), len(TEXTS))
    assert found.low < found.value < found.high
    # The control: the mean of the passages' means is another number.
    by_passage = [measure_utility(model, passages=[p], seed=0).perplexity for p in PASSAGES]
    mean_of_means = sum(math.log(p.value) for p in by_passage if p is not None) / len(TEXTS)
    assert abs(mean_of_means - math.log(found.value)) > tolerance(dtype)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_divergence_is_that_of_a_plain_loop(architecture: str, tiny_kept: Callable[..., Any]) -> None:
    model, other = tiny_kept(architecture), tiny_kept(architecture, seed=1)
    base = base_distributions(model, PASSAGES, per_passage=3)
    total = count = 0.0
    for text, places in zip(TEXTS, base.places, strict=True):
        p, q = (logits_of(m, text)[1] for m in (model, other))
        for t in places:
            total += float((p[t].exp() * (p[t] - q[t])).sum())
            count += 1
    found = measure_utility(other, passages=PASSAGES, base=base, seed=0).kl
    assert found is not None
    assert found.value == pytest.approx(total / count, abs=1e-4)
    assert found.n == count
    assert 0 < found.low < found.value < found.high


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_no_distance_from_itself_and_some_from_its_edit(
    dtype: str, tiny_kept: Callable[..., Any]
) -> None:
    model = tiny_kept("llama", dtype=dtype)
    base = base_distributions(model, PASSAGES)
    same = measure_utility(model, passages=PASSAGES, base=base, seed=0)
    assert same.kl is not None
    assert same.kl.value == 0
    edit = Ablate(torch.randn(32, generator=torch.Generator().manual_seed(0)))
    edited = measure_utility(model, passages=PASSAGES, base=base, edit=edit, seed=0)
    assert edited.kl is not None
    assert edited.kl.value > 1e-3
    assert edited.perplexity != same.perplexity
    assert measure_utility(model, passages=PASSAGES, base=base, seed=0) == same


def test_places_are_spread_and_have_something_before_them(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept()
    base = base_distributions(model, PASSAGES, per_passage=3)
    for text, places, rows in zip(TEXTS, base.places, base.log_probs, strict=True):
        n = len(model.tokenizer(text)["input_ids"])
        assert len(places) == min(3, n - 1) == len(rows) == len(set(places))
        assert all(1 <= t < n for t in places)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_accuracy_is_that_of_a_plain_loop(architecture: str, tiny_kept: Callable[..., Any]) -> None:
    rights = []
    for seed in range(3):
        model = tiny_kept(architecture, seed=seed)
        right = 0
        batched = choice_log_probs(model, CHOICES)
        for item, ours in zip(CHOICES, batched, strict=True):
            start = len(model.tokenizer(item.question)["input_ids"])
            scores = []
            for choice in item.choices:
                ids, log_probs = logits_of(model, f"{item.question} {choice}")
                total = sum(float(log_probs[t - 1, ids[t]]) for t in range(start, len(ids)))
                scores.append(total / len(choice))
            plain = [score * len(choice) for score, choice in zip(scores, item.choices, strict=True)]
            assert ours == pytest.approx(plain, abs=2e-4)
            right += max(range(len(scores)), key=scores.__getitem__) == item.answer
        assert accuracy(model, CHOICES) == wilson(right, len(CHOICES))
        rights.append(right)
    assert 0 < sum(rights) < 3 * len(CHOICES)


def test_a_broken_model_is_no_number(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    with torch.inference_mode():
        # The twin shares it.
        model.original_model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="lm_head"):
        accuracy(model, CHOICES)


def test_the_row_has_every_column_and_what_was_not_measured_is_missing(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept()
    row = measure_utility(
        model, passages=PASSAGES, choices=CHOICES, base=base_distributions(model, PASSAGES), seed=0
    ).row()
    assert tuple(row) == UTILITY_COLUMNS
    assert not any(math.isnan(value) for value in row.values())
    assert row["accuracy_n"] == len(CHOICES)
    part = measure_utility(model, choices=CHOICES, seed=0).row()
    assert tuple(part) == UTILITY_COLUMNS
    assert math.isnan(part["perplexity"])
    assert math.isnan(part["kl_high"])
    none = measure_utility(model, passages=PASSAGES, seed=0).row()
    assert math.isnan(none["accuracy"])
    assert none["accuracy_n"] == 0


# -- the packaged text ------------------------------------------------------------------------------


def test_the_packaged_passages_are_short_and_varied() -> None:
    passages = benign_passages()
    assert len(passages) == len({p.text for p in passages}) == len({p.id for p in passages}) == 60
    assert all(60 <= len(p.text.split()) <= 120 for p in passages)
    assert len({p.topic for p in passages}) > 10


def test_the_packaged_questions_have_balanced_answers() -> None:
    questions = benign_choices()
    assert len(questions) == len({(q.question) for q in questions}) == 130
    for n, expected in ((4, 106), (2, 24)):
        answers = [q.answer for q in questions if len(q.choices) == n]
        counts = [answers.count(place) for place in range(n)]
        assert len(answers) == expected
        assert max(counts) - min(counts) <= 1
    # The right choice is not given away by its length.
    longest = sum(len(q.choices[q.answer]) == max(map(len, q.choices)) for q in questions)
    assert longest / len(questions) < 0.5


def test_wrong_input_is_reported(tiny_kept: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_kept()
    with pytest.raises(MechsafetyError, match="needs passages"):
        measure_utility(model, seed=0)
    with pytest.raises(MechsafetyError, match="of the same"):
        measure_utility(model, passages=PASSAGES[:2], base=base_distributions(model, PASSAGES), seed=0)
    with pytest.raises(MechsafetyError, match="0 passages"):
        base_distributions(model, [])
    with pytest.raises(MechsafetyError, match="0 places"):
        base_distributions(model, PASSAGES, per_passage=0)
    with pytest.raises(MechsafetyError, match="is empty"):
        Passage(id="1", topic="t", text=" ")
    good: dict[str, Any] = {"id": "q", "subject": "s", "question": "is it"}
    with pytest.raises(MechsafetyError, match="two different choices"):
        Choice(**good, choices=("yes", "yes"), answer=0)
    with pytest.raises(MechsafetyError, match="answer is 2"):
        Choice(**good, choices=("yes", "no"), answer=2)
    with pytest.raises(MechsafetyError, match="is empty"):
        Choice(**good, choices=("yes", " "), answer=0)
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps(good), encoding="utf-8")
    with pytest.raises(MechsafetyError, match="line 1: no choices, answer"):
        benign_choices(file)
    with pytest.raises(MechsafetyError, match="does not exist"):
        benign_passages(tmp_path / "none.jsonl")
