"""Packed weights: a model that has them loads, edits by hooks act on it as on its unpacked twin, weights are not written.

No quantiser runs on every CPU, so that the packed module is one of this file's own, found by the general rule.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Add, baked, edited
from mechsafety.generation.answers import Example
from mechsafety.models.loading import generation_twin, load_model
from mechsafety.models.quantised import packed_modules
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.maps import linear_maps
from tests.architectures import random_model
from tests.conftest import save_tokenizer
from tests.prompt_sets import small_prompts

METHOD = "packed-for-tests"
IDS = torch.tensor([[5, 9, 12, 30, 7], [6, 11, 33, 8, 40]])


class Packed(nn.Module):
    """A linear map whose weight is bytes in one column, and a scale; unpacked at its first pass, beside the tensors."""

    scale: Tensor

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = d_in, d_out, None
        self.weight = nn.Parameter(torch.zeros(d_in * d_out, 1, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("scale", torch.ones(1))
        self.state: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.state:
            self.state.append(unpacked(self.weight, self.scale).reshape(self.out_features, self.in_features))
        return x @ self.state[0].T


def unpacked(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight.float() - 128) * scale


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    def __init__(self, **_: Any) -> None:
        self.quant_method: Any = METHOD


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        for block in model.model.layers:
            for path, linear in list(block.named_modules()):
                if isinstance(linear, nn.Linear):
                    with torch.device("meta"):
                        block.set_submodule(path, Packed(linear.in_features, linear.out_features))

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        return model

    def is_serializable(self) -> Any:
        return True

    is_trainable: Any = False


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with packed maps, and the same with the numbers that these stand for."""
    packed, plain = tmp_path_factory.mktemp("packed"), tmp_path_factory.mktemp("plain")
    model = random_model("llama")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in [n for n in state if "layers" in n and "proj" in n]:
        scale = state[name].abs().max().reshape(1) / 127
        bytes_ = (state[name] / scale).round().add(128).to(torch.uint8).reshape(-1, 1)
        state |= {name: bytes_, name.replace("weight", "scale"): scale}
        model.get_parameter(name).data = unpacked(bytes_, scale).reshape(model.get_parameter(name).shape)
    for folder in (packed, plain):
        model.save_pretrained(folder)
        save_tokenizer(folder)
    save_file(state, packed / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": METHOD}})
    )
    return packed, plain


@pytest.fixture(scope="module")
def models(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    packed, plain = (load_model(str(folder), dtype="float32", device="cpu") for folder in folders)
    return packed, plain


def direction(seed: int) -> Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


def logits(model: Any, edit: Any) -> Tensor:
    with edited(model, edit), torch.inference_mode():
        return model(IDS)


def test_edits_by_hooks_are_those_of_the_unpacked_model(models: tuple[Any, Any]) -> None:
    packed, plain = models
    assert len(packed_modules(packed.original_model)) == 28
    assert generation_twin(packed) is not None
    unedited = packed(IDS)
    torch.testing.assert_close(unedited, plain(IDS), rtol=1e-4, atol=1e-4)
    for edit in (Ablate(direction(0)), Add(direction(1), layer=2, coefficient=3.0)):
        torch.testing.assert_close(logits(packed, edit), logits(plain, edit), rtol=1e-4, atol=1e-4)
        assert float((logits(packed, edit) - unedited).abs().max()) > 0.1  # the control: it changes something
    edit = Ablate(direction(0))
    answers = [
        [c.tokens for c in ms.generate(m, small_prompts().report, max_new_tokens=5, seed=0, edit=edit)]
        for m in models
    ]
    assert answers[0] == answers[1]


def test_streams_are_those_of_the_unpacked_model(models: tuple[Any, Any]) -> None:
    one, other = (ms.residual_stream(model, small_prompts().fit).activations for model in models)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_what_writes_or_scores_weights_is_refused_by_name(models: tuple[Any, Any]) -> None:
    packed, _ = models
    example = Example(prompt="tell me about bread", answer="here is", whole=True)
    attempts = {
        "baked": lambda: baked(packed, Ablate(direction(0))).__enter__(),
        "maps": lambda: linear_maps(packed),
        "scores": lambda: score_weights(packed, [example]),
    }
    for attempt in attempts.values():
        with pytest.raises(MechsafetyError, match=rf"weights are quantised \({METHOD}\)") as error:
            attempt()
        assert "\n" not in str(error.value)


def test_an_adapter_is_not_merged_into_packed_weights(folders: tuple[Path, Path]) -> None:
    from tests.models.test_models import save_adapter

    adapter = save_adapter(folders[0].parent / "adapter")
    with pytest.raises(MechsafetyError, match="an adapter is merged into the weights, and its weights are"):
        load_model(f"{folders[0]}+{adapter}", dtype="float32")
