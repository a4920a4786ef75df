"""What is no causal language model that can be hooked is refused when it is loaded, by one line that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.models import faithful
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import generation_twin
from tests.architectures import random_model, save_architecture
from tests.conftest import save_tokenizer
from tests.prompt_sets import small_prompts

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 160,
    "initializer_range": 0.3,
}


def bert(folder: Path, **settings: Any) -> str:
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    BertLMHeadModel(BertConfig(**SMALL, **settings)).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_reads_what_follows_is_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(MechsafetyError, match="no causal language model") as refused:
        ms.load_model(bert(tmp_path), dtype=dtype, device="cpu")
    assert "\n" not in str(refused.value)


def test_control_the_same_weights_that_read_what_precedes_alone_are_taken(tmp_path: Path) -> None:
    """They are also written as loaded, although TransformerLens itself has hooks on them, and not with an edit."""
    model = ms.load_model(bert(tmp_path / "own", is_decoder=True), dtype="float32", device="cpu")
    assert generation_twin(model) is not None
    assert ms.logits(model, ["Q"]).isfinite().all()
    assert ms.save_model(model, None, tmp_path / "again").is_dir()
    with pytest.raises(MechsafetyError, match="a norm lies between"):
        ms.save_model(model, ms.Orthogonalise(torch.ones(32)), tmp_path / "edited")
    model.blocks[0].hook_out.add_hook(lambda x, hook: x)
    assert generation_twin(model) is None


def test_a_model_without_a_list_of_blocks_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.20")
    if not hasattr(transformers, "HrmTextConfig"):
        pytest.skip("this transformers has no HRM")
    config = transformers.HrmTextConfig(**SMALL, num_key_value_heads=4, head_dim=8)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(MechsafetyError, match="no list of blocks"):
        ms.load_model(str(tmp_path), dtype="float32", device="cpu")


def test_a_configuration_that_transformers_cannot_run_is_not_laid_to_transformer_lens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_architecture(tmp_path, "llama"))

    def broken(*_: Any) -> Any:
        raise KeyError("rope")

    monkeypatch.setattr(faithful, "_all_logits", broken)
    with pytest.raises(MechsafetyError, match=r"^transformers cannot run .* in float32: 'rope'$"):
        ms.load_model(folder, dtype="float32", device="cpu")


def test_a_block_that_gives_a_list_is_read_and_edited(tmp_path: Path) -> None:
    """GPT-1's blocks give ``[stream]``."""
    folder = save_architecture(tmp_path, "openai-gpt")
    model, oracle = ms.load_model(str(folder), dtype="float32", device="cpu"), random_model("openai-gpt")
    prompts = small_prompts(2).report
    ids = tokenize_prompts(model, [p.asked for p in prompts])[0]
    stream = ms.residual_stream(model, prompts).activations[0, 0]
    states = oracle(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(stream, torch.stack([s[0, -1] for s in states]), atol=1e-4, rtol=1e-4)
