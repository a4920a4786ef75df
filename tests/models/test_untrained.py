"""Untrained networks: nothing learned is left, the sizes are, and afterwards the model is what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mechsafety.generation.next_tokens import logits
from mechsafety.models.loading import body_of
from mechsafety.models.untrained import can_be_untrained, untrained


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_weights_are_in_another_order_and_back_again(
    architecture: str, tiny_kept: Callable[..., Any]
) -> None:
    model = tiny_kept(architecture)
    before = {name: weight.clone() for name, weight in body_of(model).named_parameters()}
    answers = logits(model, ["tell me about the river"])
    with untrained(model, seed=0):
        moved = {name: weight.clone() for name, weight in body_of(model).named_parameters()}
        assert not torch.allclose(logits(model, ["tell me about the river"]), answers, atol=1e-2)
    assert all(torch.equal(weight, before[name]) for name, weight in body_of(model).named_parameters())
    for name, weight in before.items() if architecture == "llama" else ():  # gpt2 has views of a fused map
        assert torch.equal(moved[name].flatten().sort().values, weight.flatten().sort().values), name
        if weight.ndim == 2:
            singular = torch.linalg.svdvals(weight)
            torch.testing.assert_close(torch.linalg.svdvals(moved[name]), singular, rtol=1e-3, atol=1e-4)
            assert not torch.equal(moved[name], weight), name
    assert torch.equal(logits(model, ["tell me about the river"]), answers)


def test_an_error_within_leaves_the_model_as_it_was(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept()
    before = [weight.clone() for weight in body_of(model).parameters()]
    with pytest.raises(KeyboardInterrupt), untrained(model, seed=1):
        raise KeyboardInterrupt
    assert all(map(torch.equal, body_of(model).parameters(), before))


def test_weights_that_are_packed_or_elsewhere_are_left_alone(tiny: Callable[..., Any]) -> None:
    model = tiny()
    assert can_be_untrained(model)
    body = body_of(model)
    body.register_module("packed", nn.Module())
    body.packed.register_parameter(
        "weight", nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    )
    assert not can_be_untrained(model)
    del body.packed
    body.register_module("elsewhere", nn.Linear(2, 2, device="meta"))
    assert not can_be_untrained(model)
