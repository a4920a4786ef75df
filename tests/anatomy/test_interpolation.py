"""The line from base to tuned passes through both bit for bit, and nothing of it is left behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.anatomy.interpolation import (
    INTERPOLATION_COLUMNS,
    interpolated,
    interpolation_rows,
)
from mechsafety.anatomy.readings import outcome_rows, prompt_groups
from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.completions import generate
from mechsafety.models.loading import load_model
from mechsafety.regions.maps import linear_maps
from tests.prompt_sets import small_prompts
from tests.regions.test_maps import FUSED, both_logits, save_fused
from tests.regions.test_removal import bits, same, weights

ARCHITECTURES = ("llama", "llama-tied", "gpt2", "gemma2", *FUSED)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Any]]:
    """Two models of one architecture that differ in every parameter, biases and norms too."""
    made: dict[str, tuple[str, str]] = {}

    def loaded(architecture: str, dtype: str = "float32") -> tuple[Any, Any]:
        if architecture not in made:
            folder = save_fused(tmp_path_factory.mktemp(architecture), architecture)
            other = moved(folder, tmp_path_factory.mktemp(f"{architecture}-tuned"))
            made[architecture] = (str(folder), str(other))
        base, tuned = made[architecture]
        return load_model(base, dtype=dtype, device="cpu"), load_model(tuned, dtype=dtype, device="cpu")

    return loaded


def moved(folder: Path, other: Path) -> Path:
    """The model in ``folder`` with noise on every parameter, saved in ``other``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(folder).save_pretrained(other)
    return other


def answers(model: Any) -> list[tuple[int, ...]]:
    prompts = list(small_prompts(2).report)
    return [c.tokens for c in generate(model, prompts, max_new_tokens=5, seed=0)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ends_are_the_two_models_bit_for_bit(pair: Any, architecture: str, dtype: str) -> None:
    base, tuned = pair(architecture, dtype)
    before, after = weights(base), weights(tuned)
    assert not same(before, after)
    with interpolated(base, tuned, 0.0):
        assert same(before, weights(base))
    with interpolated(base, tuned, 1.0):
        assert same(after, weights(base))
        for a, b in zip(both_logits(base), both_logits(tuned), strict=True):
            assert torch.equal(bits(a), bits(b))
        assert answers(base) == answers(tuned)
    assert same(before, weights(base))
    assert same(after, weights(tuned))
    with pytest.raises(RuntimeError, match="inside"), interpolated(base, tuned, 1.5):
        raise RuntimeError("inside")
    assert same(before, weights(base))


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2", "neox", "falcon"])
def test_between_the_ends_it_is_the_formula_everywhere(pair: Any, architecture: str) -> None:
    base, tuned = pair(architecture)
    before, after = weights(base), weights(tuned)
    for alpha in (0.25, 1.5):
        with interpolated(base, tuned, alpha):
            for now, a, b in zip(weights(base), before, after, strict=True):
                torch.testing.assert_close(now, a + alpha * (b - a))
            bridge, module, twin = both_logits(base)
            # A copy that stayed behind would show here.
            torch.testing.assert_close(bridge, twin, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(module, twin, atol=1e-4, rtol=1e-4)
            assert all(torch.isfinite(x).all() for x in (bridge, module, twin))
    assert not torch.equal(before[0], after[0])


def test_half_precision_is_summed_in_single(pair: Any) -> None:
    base, tuned = pair("llama", "bfloat16")
    before, after = weights(base), weights(tuned)
    with interpolated(base, tuned, 1.25):
        for now, a, b in zip(weights(base), before, after, strict=True):
            assert torch.equal(now, (a.float() + 1.25 * (b.float() - a.float())).bfloat16())
            assert now.dtype == torch.bfloat16


def test_buffers_stay_as_they_are(pair: Any) -> None:
    base, tuned = pair("neox")
    held = {name: b.clone() for name, b in base.named_buffers()}
    with interpolated(base, tuned, 2.0):
        assert held
        assert all(torch.equal(b, held[name]) for name, b in base.named_buffers())


def test_pairs_and_steps_that_are_none(pair: Any, tiny: Callable[..., Any]) -> None:
    base, tuned = pair("llama")
    before = weights(base)
    with pytest.raises(MechsafetyError, match="alpha is nan"), interpolated(base, tuned, math.nan):
        pass
    with pytest.raises(MechsafetyError, match="other parameters"), interpolated(base, tiny("gpt2"), 0.5):
        pass
    with (
        pytest.raises(MechsafetyError, match="given as base and as tuned"),
        interpolated(base, base, 0.5),
    ):
        pass
    assert same(before, weights(base))


def test_rows_at_the_ends_are_those_of_the_two_models(pair: Any) -> None:
    base, tuned = pair("llama")
    groups = prompt_groups(list(small_prompts(3).report))
    settings: Any = {"judge": "rules", "max_new_tokens": 4, "seed": 0}
    for alpha, model in ((0.0, base), (1.0, tuned)):
        expected = [{"alpha": alpha, **row} for row in outcome_rows(model, groups, **settings)]
        found = interpolation_rows(base, tuned, alpha, groups, **settings)
        assert found == expected
        assert ("model", *found[0]) == INTERPOLATION_COLUMNS
        assert [row["group"] for row in found] == ["safe", "unsafe"]


def test_the_models_maps_move_along(pair: Any) -> None:
    base, tuned = pair("bloom")
    with interpolated(base, tuned, 0.5):
        for linear in linear_maps(base):
            first, *others = [place.read() for place in linear.places]
            assert all(torch.equal(first, other) for other in others)
