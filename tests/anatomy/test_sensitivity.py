"""The norm of the gradient at the embeddings against finite differences, and its medians by group."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mechsafety.anatomy.sensitivity import (
    NORM_COLUMNS,
    SENSITIVITY_COLUMNS,
    gradient_norms,
    median_change,
    norm_table,
    sensitivity_table,
)
from mechsafety.core.errors import MechsafetyError
from mechsafety.models.chat import tokenize_prompts
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.regions.maps import running_body
from tests.prompt_sets import small_prompts

ARCHITECTURES = ("llama", "gpt2", "gemma2")  # gemma2 caps its logits
STEP = 1e-3  # norms of float64 models still run in float32, whose rounding a smaller step would show


def asked(n: int = 2) -> list[Prompt]:
    return list(small_prompts(n).report)


def by_differences(model: Any, ids: list[int]) -> torch.Tensor:
    """Central differences of the largest logit: [token, d_model]."""
    body = copy.deepcopy(running_body(model)).double()
    with torch.no_grad():
        at = body.get_input_embeddings()(torch.tensor([ids]))
        steps = STEP * torch.eye(at.numel(), dtype=torch.double).view(-1, *at.shape[1:])
        up, down = (body(inputs_embeds=at + sign * steps).logits[:, -1].max(-1).values for sign in (1, -1))
    return ((up - down) / (2 * STEP)).view(at.shape[1:])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_is_the_norm_of_finite_differences(tiny: Callable[..., Any], architecture: str) -> None:
    model = tiny(architecture)
    prompts = asked()[:2]
    sequences = tokenize_prompts(model, [p.text for p in prompts])
    assert len({len(s) for s in sequences}) > 1
    gradients = [by_differences(model, ids) for ids in sequences]
    expected = torch.stack([g.norm() for g in gradients]).float()
    for batch_size in (1, 3):  # alone, and padded
        torch.testing.assert_close(
            gradient_norms(model, prompts, batch_size=batch_size), expected, rtol=2e-3, atol=0
        )
    # Neither the last token's part nor that of the prompt without its template would do.
    assert all(g[-1].norm() < 0.97 * g.norm() for g in gradients)
    assert all(g[2:].norm() < 0.999 * g.norm() for g in gradients)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_is_near(tiny: Callable[..., Any], architecture: str) -> None:
    whole, half = (gradient_norms(tiny(architecture, dtype=d), asked(3)) for d in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    # The largest logit can be another's in bfloat16, so that single prompts may differ; most do not.
    ratio = (half / whole).log().abs()
    assert float(ratio.median()) < 0.1
    assert not torch.equal(half, whole)


def test_scales_with_the_unembedding(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    before = gradient_norms(model, asked())
    with torch.no_grad():
        running_body(model).get_output_embeddings().weight.mul_(3.0)
    torch.testing.assert_close(gradient_norms(model, asked()), 3 * before, rtol=1e-4, atol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_leaves_no_gradient_and_works_where_none_are_kept(tiny: Callable[..., Any], context: Any) -> None:
    model = tiny("llama")
    body = running_body(model)
    flags = [p.requires_grad for p in body.parameters()]
    state = [p.detach().clone() for p in body.parameters()]
    expected = gradient_norms(model, asked())
    with context():
        assert torch.equal(gradient_norms(model, asked()), expected)
    for module in (body, model):
        assert all(p.grad is None for p in module.parameters())
    assert [p.requires_grad for p in body.parameters()] == flags
    assert all(torch.equal(p, old) for p, old in zip(body.parameters(), state, strict=True))
    assert not expected.requires_grad


def test_bad_prompts_and_weights(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    with pytest.raises(MechsafetyError, match="0 prompts"):
        gradient_norms(model, [])
    with pytest.raises(MechsafetyError, match="batch_size 0"):
        gradient_norms(model, asked(), batch_size=0)
    with pytest.raises(MechsafetyError, match="float16: load the model"):
        gradient_norms(tiny("llama", dtype="float16"), asked())
    (storm,) = model.tokenizer("storm", add_special_tokens=False)["input_ids"]
    plain = Prompt(id="plain", text="tell me about bread", label="harmless", category="")
    broken = Prompt(id="broken", text="tell me about the storm", label="harmless", category="")
    with torch.no_grad():
        running_body(model).get_input_embeddings().weight[storm] = torch.nan
    assert torch.isfinite(gradient_norms(model, [plain])).all()
    with pytest.raises(MechsafetyError, match=r"llama.*: .* prompt 'broken' is NaN or infinite"):
        gradient_norms(model, [plain, broken])


def test_norms_by_prompt_and_medians_by_group() -> None:
    prompts = [*asked(2), *small_prompts(1, seed=1).report]
    groups = {p.id: "safe" if p.label == "harmless" else "unsafe" for p in prompts}
    groups[prompts[0].id] = "alone"
    values = torch.tensor([4.0, 1.0, 2.0, 9.0, 5.0, 7.0])
    norms = norm_table(values, prompts, model="tuned", groups=groups)
    assert list(norms.columns) == NORM_COLUMNS
    assert dict(zip(norms["id"], norms["norm"], strict=True)) == {
        p.id: float(v) for p, v in zip(prompts, values, strict=True)
    }
    assert [groups[i] for i in norms["id"]] == norms["group"].tolist()
    both = pd.concat([norms, norms.assign(model="base", norm=norms["norm"] * 2)])
    table = sensitivity_table(both, seed=0)
    assert list(table.columns) == SENSITIVITY_COLUMNS
    keyed = table.set_index(["model", "group"])
    for model, factor in (("tuned", 1), ("base", 2)):
        for group in ("safe", "unsafe", "alone"):
            picked = [float(v) for p, v in zip(prompts, values, strict=True) if groups[p.id] == group]
            row = keyed.loc[(model, group)]
            assert row["n"] == len(picked)
            assert row["median"] == factor * np.median(picked)
            if len(picked) > 1:
                assert (
                    min(picked) * factor <= row["low"] <= row["median"] <= row["high"] <= max(picked) * factor
                )
            else:
                assert row[["low", "high"]].isna().all()
    pd.testing.assert_frame_equal(table, sensitivity_table(both, seed=0))


def test_intervals_hold_the_median_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for k in range(200):
        norms = pd.DataFrame({"model": "m", "id": range(40), "group": "g", "norm": rng.lognormal(size=40)})
        row = sensitivity_table(norms, seed=k, resamples=300).iloc[0]
        held += row["low"] <= 1.0 <= row["high"]  # the median of a log-normal is 1
    assert 0.90 <= held / 200 <= 0.99


def test_norms_of_other_prompts() -> None:
    prompts = asked(1)
    with pytest.raises(MechsafetyError, match="3 norms for 2 prompts"):
        norm_table(torch.ones(3), prompts, model="m", groups={})
    with pytest.raises(MechsafetyError, match="2 prompts have no group"):
        norm_table(torch.ones(2), prompts, model="m", groups={})


@pytest.mark.parametrize(("factor", "shown"), [(1.0, False), (0.5, True), (2.0, True)])
def test_changes_of_medians_are_of_the_same_prompts(factor: float, shown: bool) -> None:
    rng = np.random.default_rng(0)
    before = np.exp(rng.standard_normal(60))
    after = factor * before * np.exp(0.1 * rng.standard_normal(60))
    table = pd.DataFrame({"base": before, "tuned": after})
    table.loc[60] = [np.nan, 100.0]  # a prompt that one model alone has read
    value, low, high = median_change(table, "base", "tuned")
    assert value == pytest.approx(np.median(after) - np.median(before))
    assert low <= value <= high
    assert (low > 0 or high < 0) == shown
    assert np.isnan(median_change(table.iloc[60:], "base", "tuned")).all()
