"""Edited models as folders: what plain transformers reads has the edited model's logits, tied and untied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Add, Orthogonalise, baked
from mechsafety.models.loading import load_model
from mechsafety.regions.lora_export import export_lora
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.removal import Pruning, removed
from mechsafety.regions.saved_models import save_model

IDS = torch.tensor([[5, 9, 30, 44, 7, 12]])


def direction() -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(3))


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def read(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return plain(folder)(input_ids=IDS).logits


def run(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, return_type="logits").float()


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "qwen2", "gpt2"])
def test_a_saved_model_is_the_edited_one(tiny: Callable[..., Any], architecture: str, tmp_path: Path) -> None:
    model = tiny(architecture)
    before, edit = run(model), Orthogonalise(direction())
    with baked(model, edit):
        expected = run(model)
    folder = save_model(model, edit, str(tmp_path / "edited"))
    torch.testing.assert_close(read(folder), expected, rtol=0, atol=1e-4)
    assert float((expected - before).abs().max()) > 1e-2
    torch.testing.assert_close(run(model), before, rtol=0, atol=0)
    config = json.loads((folder / "config.json").read_text())
    assert config.get("tie_word_embeddings", True) is False, "an edited embedding leaves its head as it was"
    loaded = plain(folder)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) is False
    assert [p.name for p in tmp_path.iterdir()] == ["edited"]
    assert AutoTokenizer.from_pretrained(folder).chat_template == model.tokenizer.chat_template
    again = load_model(str(folder), dtype="float32", device="cpu")
    torch.testing.assert_close(run(again), expected, rtol=0, atol=1e-4)


def test_a_tied_model_stays_tied_where_its_embedding_is_left(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    model, edit = tiny("llama-tied"), Orthogonalise(direction(), writers=("attn_out", "mlp_out"))
    with baked(model, edit):
        expected = run(model)
    folder = save_model(model, edit, tmp_path / "edited")
    assert json.loads((folder / "config.json").read_text()).get("tie_word_embeddings", True) is True
    torch.testing.assert_close(read(folder), expected, rtol=0, atol=1e-4)


def test_a_removal_is_saved_too_and_what_has_no_weights_is_refused(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny("llama")
    maps = linear_maps(model)
    shapes = {m.name: (m.d_out, m.d_in) for m in maps}
    removal = Pruning(label="some", entries={maps[3].name: torch.arange(0, 500, 3)}, shapes=shapes)
    with removed(model, removal):
        expected = run(model)
    torch.testing.assert_close(read(save_model(model, removal, tmp_path / "a")), expected, rtol=0, atol=1e-4)
    with pytest.raises(MechsafetyError, match="no weight form"):
        save_model(model, Add(direction(), layer=1), tmp_path / "b")
    with pytest.raises(MechsafetyError, match="not empty"):
        save_model(model, removal, tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_an_edit_is_an_adapter_of_its_directions_rank(
    tiny: Callable[..., Any], tiny_folder: Callable[..., Path], architecture: str, tmp_path: Path
) -> None:
    model = tiny(architecture)
    edit = Orthogonalise(direction(), alpha=0.7, writers=("attn_out", "mlp_out"))
    with baked(model, edit):
        expected = run(model)
    folder = export_lora(model, edit, tmp_path / "adapter")
    again = load_model(f"{tiny_folder(architecture)}+{folder}", dtype="float32", device="cpu")
    torch.testing.assert_close(run(again), expected, rtol=0, atol=1e-4)
    with pytest.raises(MechsafetyError, match="save_model"):
        export_lora(model, Orthogonalise(direction()), tmp_path / "other")
