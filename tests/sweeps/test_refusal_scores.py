"""Refusal tokens are a set: how often and in which order they are named changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import find_directions
from mechsafety.sweeps.refusal_scores import RefusalTokens, named_refusal_tokens, refusal_scores
from mechsafety.sweeps.sweep import sweep
from tests.prompt_sets import small_prompts


@pytest.mark.parametrize("seed", range(5))
def test_any_list_of_the_same_set_gives_the_same_scores(seed: int) -> None:
    generator = random.Random(seed)
    logits = torch.randn(6, 30, generator=torch.Generator().manual_seed(seed)) * 4
    kept = generator.sample(range(30), 4)
    expected = refusal_scores(logits, kept)
    for _ in range(20):
        again = [*kept, *generator.choices(kept, k=generator.randint(0, 6))]
        generator.shuffle(again)
        assert torch.equal(refusal_scores(logits, again), expected)
    # The control: another set scores otherwise.
    assert not torch.allclose(refusal_scores(logits, kept[:3]), expected)


@pytest.mark.parametrize("largest", [-200.0, -1.0, 0.0, 1.0, 5.0, 40.0, 200.0])
def test_a_score_is_a_number_up_to_certainty(largest: float) -> None:
    logits = torch.zeros(1, 3)
    logits[0, 0] = largest
    scores = [float(refusal_scores(logits, tokens)) for tokens in ([0], [0, 0], [0, 0, 0], [0, 1, 2, 0, 1])]
    assert torch.isfinite(torch.tensor(scores)).all()
    assert scores[0] == scores[1] == scores[2]
    assert scores[3] == pytest.approx(18.42, abs=0.01)  # the whole vocabulary: P(R) = 1


def test_equal_tokens_are_merged() -> None:
    found = RefusalTokens(
        ids=(4, 7, 4, 9, 4),
        texts=("I cannot", "No", "I'm sorry", "Sorry", "I cannot"),
        weight=(0.25, 0.125, 0.5, 0.0625, 0.0625),
        source="own refusals",
    )
    assert found.ids == (4, 7, 9)
    assert found.texts == ("I cannot / I'm sorry", "No", "Sorry")
    assert found.weight == (0.8125, 0.125, 0.0625)
    with pytest.raises(ValueError, match="zip"):
        RefusalTokens(ids=(4, 7), texts=("I",), weight=(1.0, 1.0), source="user")


def test_texts_that_begin_alike_score_as_one(tiny_kept: Callable[..., Any]) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(12)
    named = named_refusal_tokens(model, ["sorry can not", "sorry", "sorry no"])
    assert len(named.ids) == 1
    directions = find_directions(residual_stream(model, prompts.fit), resamples=1)
    once = named_refusal_tokens(model, ["sorry"])
    several, single = (
        sweep(model, directions, prompts.validation, refusal_tokens=tokens) for tokens in (named, once)
    )
    assert several.to_frame().equals(single.to_frame())
    assert several.base_harmful == single.base_harmful
