"""The recipe ``granular-release`` does what plain transformers do with the published steps; others do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.directions.files import load_directions
from mechsafety.edits.interventions import baked, edited
from mechsafety.edits.recipes import RECIPES
from mechsafety.models.chat import device_of, pad_left, pad_token, tokenize_prompts
from mechsafety.models.forward import last_logits
from mechsafety.models.loading import load_model
from tests.paper_systems import save_system
from tests.prompt_sets import small_prompts
from tests.reference.plain_release import abliterated, last_normed_state, release_direction

RECIPE = RECIPES["granular-release"]
CASES = ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "zai-org/glm-4-9b-chat-hf", "Qwen/Qwen3-14B")


def _both(tmp_path: Path, system: str) -> tuple[Any, Any]:
    """The model as this package loads it, and as transformers do."""
    from transformers import AutoModelForCausalLM

    folder = save_system(tmp_path, system)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return load_model(str(folder), dtype="float32", device="cpu"), plain


def _directions(model: Any, **reading: Any) -> Directions:
    anchors = [p for p in small_prompts(5) if p.split != "report"]
    cache = residual_stream(model, anchors, batch_size=4, **reading)
    return find_directions(cache, method=RECIPE.method, seed=0)


def _logits(model: Any, prompts: list[Any]) -> torch.Tensor:
    batch = pad_left(tokenize_prompts(model, [p.text for p in prompts]), pad=pad_token(model))
    return last_logits(model, batch.to(device_of(model)))


@pytest.mark.parametrize("system", CASES)
def test_logits_are_those_of_plain_transformers_with_edited_weights(tmp_path: Path, system: str) -> None:
    model, hf = _both(tmp_path, system)
    ids = {label: [] for label in ("harmful", "harmless")}
    for prompt in small_prompts(5):
        if prompt.split != "report":
            ids[prompt.label] += tokenize_prompts(model, [prompt.text])
    v = release_direction(hf, ids["harmful"], ids["harmless"])

    n = model.cfg.n_layers
    direction = _directions(model, final_norm=RECIPE.final_norm).at(layer=RECIPE.layer_of(n) or 0)
    torch.testing.assert_close(direction.unit, v, atol=1e-5, rtol=0)

    report = list(small_prompts(5).to_judge)
    reference = abliterated(hf, v)
    with torch.inference_mode():
        expected = torch.stack(
            [
                reference(torch.tensor([t])).logits[0, -1]
                for t in tokenize_prompts(model, [p.text for p in report])
            ]
        )
    edit = RECIPE.build(direction, alpha=1.0, n_layers=n)
    with edited(model, edit):
        hooked = _logits(model, report)
    torch.testing.assert_close(hooked, expected, atol=1e-4, rtol=1e-4)
    with baked(model, edit):
        written = _logits(model, report)
    torch.testing.assert_close(written, expected, atol=1e-4, rtol=1e-4)

    # The control: read before the final norm, or edited everywhere, it is another thing.
    before = _directions(model).at(layer=n)
    assert float(before.unit @ v) < 0.999
    with edited(model, RECIPES["default"].build(direction, alpha=1.0, n_layers=n)):
        assert not torch.allclose(_logits(model, report), expected, atol=1e-2)


def test_only_the_last_layer_is_read_after_the_final_norm(tmp_path: Path) -> None:
    model, hf = _both(tmp_path, CASES[0])
    prompts = list(small_prompts(2).fit)
    plain, normed = (residual_stream(model, prompts, final_norm=on).activations for on in (False, True))
    torch.testing.assert_close(normed[:, :, :-1], plain[:, :, :-1])
    own = torch.stack([last_normed_state(hf, t) for t in tokenize_prompts(model, [p.text for p in prompts])])
    torch.testing.assert_close(normed[:, 0, -1], own, atol=1e-5, rtol=1e-5)


def test_where_directions_were_found_travels_in_their_file(tmp_path: Path) -> None:
    found = _directions(_both(tmp_path, CASES[0])[0], final_norm=True)
    found.save(tmp_path / "d.safetensors")
    assert load_directions(tmp_path / "d.safetensors").final_norm
