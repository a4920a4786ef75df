"""The layer profile's numbers are their definitions, on prompts the directions were not found on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import METHODS
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Direction, Directions, find_directions
from mechsafety.models.loading import load_model
from mechsafety.sweeps.layer_profile import _read_out, logit_lens, profile_layers
from tests.architectures import UNFAITHFUL, random_model, save_architecture
from tests.prompt_sets import small_prompts


def found_and_held_out(model: Any, method: Any = "mean_difference") -> tuple[Directions, Any]:
    prompts = small_prompts(12)
    return (
        find_directions(residual_stream(model, prompts.fit), method=method, resamples=2),
        residual_stream(model, prompts.validation),
    )


@pytest.mark.parametrize("method", METHODS)
def test_profile_equals_plain_formulas(tiny_kept: Callable[..., Any], method: str) -> None:
    directions, held_out = found_and_held_out(tiny_kept("llama"), method)
    table = (
        profile_layers(directions, held_out, selected=3, seed=0, resamples=50).to_frame().set_index("layer")
    )
    read = directions.vectors if directions.covectors is None else directions.covectors
    for layer in range(1, 5):
        row, x = table.loc[layer], held_out.activations[:, 0, layer].double()
        scores = (x @ read[0, layer].double()).numpy()
        truth = [label == "harmful" for label in held_out.labels]
        assert row["auroc"] == pytest.approx(roc_auc_score(truth, scores))
        assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
        a, b = scores[truth], scores[~np.array(truth)]
        assert row["fisher"] == pytest.approx((a.mean() - b.mean()) ** 2 / (a.var(ddof=1) + b.var(ddof=1)))
        shares = PCA(5).fit(x.numpy()).explained_variance_ratio_
        np.testing.assert_allclose([row[f"explained_{k}"] for k in range(1, 6)], shares, rtol=1e-6)
        v = directions.vectors[0]
        assert row["cosine_selected"] == pytest.approx(
            float(torch.cosine_similarity(v[layer], v[3], dim=0)), abs=1e-5
        )
    assert table.loc[3, "cosine_selected"] == pytest.approx(1.0)
    # The template's own token is the same for every prompt: nothing to separate.
    assert table.loc[0, ["auroc", "fisher", "cosine_previous", "cosine_selected"]].isna().all()


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    from mechsafety.sweeps.layer_profile import _auroc

    generator, inside = np.random.default_rng(0), 0
    truth = 0.76025  # of two unit normals one standard deviation apart
    for _ in range(300):
        a, b = generator.normal(1, 1, 40), generator.normal(0, 1, 40)
        _, low, high = _auroc(a, b, generator, 300)
        inside += low <= truth <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_profile_refuses_another_models_cache(tiny_kept: Callable[..., Any]) -> None:
    directions, held_out = found_and_held_out(tiny_kept("llama"))
    other = residual_stream(tiny_kept("llama", seed=1), small_prompts().validation)
    with pytest.raises(MechsafetyError, match="both must be of one model"):
        profile_layers(directions, other, seed=0)
    with pytest.raises(MechsafetyError, match=r"position -2: the directions have \[-1\]"):
        profile_layers(directions, held_out, position=-2, seed=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_lens_names_the_token_whose_unembedding_the_direction_is(
    tiny_kept: Callable[..., Any], architecture: str
) -> None:
    model = tiny_kept(architecture)
    head = model.original_model.get_output_embeddings().original_component.weight.float()
    base = model.original_model.base_model
    norm = base.ln_f if architecture == "gpt2" else base.norm
    scale = norm.original_component.weight.float() + (1.0 if architecture == "gemma2" else 0.0)
    for token in (10, 57):
        direction = Direction(
            vector=head[token].detach().clone(), layer=1, position=-1, method="mean_difference"
        )
        lens = logit_lens(model, direction, k=160)
        # By hand: rows of the unembedding times the scaled (for a layer norm, centred) direction.
        v = direction.unit - (direction.unit.mean() if architecture == "gpt2" else 0.0)
        expected = head @ (v * scale)
        if (
            architecture == "gemma2"
        ):  # its head caps the logits of what is normalised, sqrt(d_model) times as long
            expected = 30 * torch.tanh(math.sqrt(32) * expected / 30)
        promoted = lens[lens["side"] == "promoted"]
        order = expected.argsort(descending=True)
        assert list(promoted["token"]) == [str(model.tokenizer.decode([int(t)])) for t in order]
        np.testing.assert_allclose(
            promoted["logit"].to_numpy(), (expected[order] / expected.std()).detach().numpy(), atol=1e-3
        )
    assert list(lens["side"].unique()) == ["promoted", "suppressed"]


@pytest.mark.parametrize(
    "architecture", [name for name in ("gemma2", "cohere", "granite") if name not in UNFAITHFUL]
)
def test_lens_reads_by_the_models_own_head(tmp_path: Path, architecture: str) -> None:
    settings = {"final_logit_softcapping": 5.0} if architecture == "gemma2" else {}
    folder = save_architecture(tmp_path, architecture, **settings)
    model = load_model(str(folder), dtype="float32", device="cpu")
    unit = torch.nn.functional.normalize(
        torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=0
    )
    ids = torch.tensor([[5, 9, 13]])
    with torch.inference_mode():
        before = model(ids)
    read = _read_out(model, torch.stack([unit.float(), torch.zeros(32)]))
    # By hand, from the file's configuration: norm and table, then what the model does to its logits.
    plain = random_model(architecture, **settings)
    with torch.inference_mode():
        states = plain.base_model.norm(torch.stack([unit.float(), torch.zeros(32)]))
        table = plain.get_output_embeddings()(states)
    scaled = {
        "gemma2": lambda x: 5.0 * torch.tanh(x / 5.0),
        "cohere": lambda x: 0.0625 * x,
        "granite": lambda x: x / 8.0,
    }[architecture]
    torch.testing.assert_close(read, scaled(table), rtol=1e-4, atol=1e-5)
    assert (read - table).abs().max() > 0.05
    # Afterwards the model reads tokens as before.
    with torch.inference_mode():
        assert torch.equal(model(ids), before)


def test_a_lens_on_a_direction_of_another_width_is_said(tiny_kept: Callable[..., Any]) -> None:
    for wrong, said in (
        (torch.ones(31), r"shape \[31\], the model's residual stream 32"),
        (torch.zeros(32), "is zero"),
    ):
        with pytest.raises(MechsafetyError, match=said):
            logit_lens(tiny_kept("llama"), wrong)
    assert len(logit_lens(tiny_kept("llama"), torch.ones(32).tolist(), k=3)) == 6
