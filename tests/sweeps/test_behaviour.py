"""Fit prompts that the model treats as their label says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import body_of
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.sweeps.behaviour import rows_as_labelled, treated_as_labelled
from mechsafety.sweeps.measures import TokenMeasure
from tests.prompt_sets import small_prompts
from tests.sweeps.test_sweep import TOKENS


def plain_scores(model: Any, prompts: PromptSet) -> dict[str, float]:
    """log P(R) - log(1 - P(R)) behind every prompt, one at a time."""
    found = {}
    for prompt, ids in zip(prompts, tokenize_prompts(model, [p.text for p in prompts]), strict=True):
        with torch.inference_mode():
            logits = body_of(model)(input_ids=torch.tensor([ids])).logits[0, -1]
        p = float(torch.softmax(logits.double(), -1)[list(TOKENS.ids)].sum())
        found[prompt.id] = float(torch.logit(torch.tensor(p, dtype=torch.float64)))
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_prompts_are_kept_on_their_own_side_of_the_middle(
    tiny_kept: Callable[..., Any], architecture: str
) -> None:
    model, prompts = tiny_kept(architecture), small_prompts(40).fit
    measure = TokenMeasure(tokens=TOKENS)
    kept = treated_as_labelled(model, prompts, measure=measure, batch_size=7)
    scores = plain_scores(model, prompts)
    means = [sum(scores[p.id] for p in some) / len(some) for some in (prompts.harmful, prompts.harmless)]
    middle = sum(means) / 2
    expected = {p.id for p in prompts.harmful if scores[p.id] > middle}
    expected |= {p.id for p in prompts.harmless if scores[p.id] < middle}
    assert {p.id for p in kept} == expected
    assert 16 <= len(expected) < len(prompts)  # the control: some are left out
    assert [p.id for p in kept] == [p.id for p in prompts if p.id in expected]
    # Beyond every score nothing agrees, and then all stay.
    assert len(treated_as_labelled(model, prompts, measure=measure, threshold=1e3).harmful) == 40


@pytest.mark.parametrize(("constant", "factor"), [(30.0, 1.0), (-4.0, 0.01), (0.0, 50.0)])
def test_the_middle_moves_with_the_scores(constant: float, factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, generator=generator, dtype=torch.float64) + shift for shift in (0.5, -0.5))
    moved = rows_as_labelled(factor * a + constant, factor * b + constant, None)
    assert moved == rows_as_labelled(a, b, None)
    # The control: a threshold of 0 does not.
    assert rows_as_labelled(a + 30, b + 30, 0.0) != rows_as_labelled(a, b, 0.0)
