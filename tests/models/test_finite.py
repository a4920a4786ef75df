"""A model whose logits are not numbers is named with the layer at which they break, and gives no result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mechsafety as ms
from mechsafety.core.errors import NotFiniteError
from mechsafety.generation.completions import Sampling
from mechsafety.generation.continuations import Request, continuations
from mechsafety.generation.scoring import answer_nll, option_log_probs
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.prefixes import all_last_logits
from tests.prompt_sets import small_prompts

PROMPTS = small_prompts(3).report

USES: dict[str, Callable[[Any], object]] = {
    "greedy": lambda m: ms.generate(m, PROMPTS, max_new_tokens=3, seed=0),
    "sampled": lambda m: ms.generate(m, PROMPTS, max_new_tokens=3, seed=0, sampling=Sampling()),
    "reference path": lambda m: ms.generate(m, PROMPTS, max_new_tokens=3, seed=0, fast_path=False),
    "continuations": lambda m: continuations(
        m,
        [Request(tokens=(5, 6, 7), max_new_tokens=2), Request(tokens=(5, 6), max_new_tokens=2)],
        batch_size=2,
    ),
    "last logits": lambda m: all_last_logits(m, m.original_model, _tokens(m), batch_size=4),
    "options": lambda m: option_log_probs(m, _tokens(m), [[5], [6, 7]]),
    "likelihood": lambda m: answer_nll(m, _tokens(m), [[5, 6]] * len(PROMPTS)),
}


def _tokens(model: Any) -> list[list[int]]:
    return tokenize_prompts(model, [p.text for p in PROMPTS])


def broken(model: Any, layer: int) -> Any:
    """The model with one weight of a block so large that the next step overflows."""
    with torch.inference_mode():
        block: Any = model.original_model.model.layers[layer]
        for name, parameter in block.named_parameters():
            if "down_proj" in name:
                parameter.fill_(float("inf"))
    return model


@pytest.mark.parametrize("use", USES)
def test_every_use_of_logits_names_the_model_and_the_layer(tiny: Callable[..., Any], use: str) -> None:
    with pytest.raises(NotFiniteError, match=r"layer 2\b") as raised:
        USES[use](broken(tiny("llama"), 2))
    assert "llama" in str(raised.value)


@pytest.mark.parametrize("use", USES)
def test_control_the_same_model_unbroken_gives_results(tiny_kept: Callable[..., Any], use: str) -> None:
    found: Any = USES[use](tiny_kept("llama"))
    assert len(found) in (len(PROMPTS), 2)  # of the continuations there are two


def test_a_token_that_is_ruled_out_is_no_fault(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")

    def without_seven(_module: Any, _args: Any, out: Any) -> Any:
        out.logits[..., 7] = float("-inf")
        return out

    rule_out = model.original_model.register_forward_hook(without_seven)
    logits = all_last_logits(model, model.original_model, _tokens(model), batch_size=4)
    rule_out.remove()
    assert bool((logits[:, 7] == float("-inf")).all())


def test_an_edit_that_overflows_is_named_too(tiny: Callable[..., Any]) -> None:
    model = tiny("llama", dtype="float16")
    edit = ms.Add(torch.full((32,), 1e5), layer=1)
    with pytest.raises(NotFiniteError, match=r"layer \d"):
        ms.generate(model, PROMPTS, edit=edit, max_new_tokens=2, seed=0)
