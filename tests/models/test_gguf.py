"""A converted GGUF file takes no more room than its numbers ask for, and loses none that its format holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from mechsafety.models.gguf import converted
from mechsafety.models.loading import load_model
from tests.models.test_models import save_gguf


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path / "cache"))


IDS = torch.tensor([[3, 17, 40, 5, 60, 61]])


def written(path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny model whose matrices are in ``kind``, as a file; and its float32 weights as the file holds them."""
    plain, held = gguf.GGUFWriter.add_tensor, {}

    def add(self: Any, name: str, array: Any, **options: Any) -> None:
        chosen = kind if array.ndim > 1 and array.shape[-1] % 32 == 0 else Kind.F16
        if array.ndim == 1:
            chosen = Kind.F32
        packed = gguf.quantize(np.asarray(array, np.float32), chosen)
        held[name] = gguf.dequantize(packed, chosen)
        plain(self, name, packed, raw_dtype=chosen)

    with monkeypatch.context() as patched:
        patched.setattr(gguf.GGUFWriter, "add_tensor", add)
        save_gguf(path)
    return {name: torch.from_numpy(np.array(array)) for name, array in held.items()}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "dtype"), [(Kind.BF16, torch.bfloat16), (Kind.F16, torch.float16), (Kind.F32, torch.float32)]
)
def test_a_file_keeps_its_own_precision(
    tmp_path: Path, kind: Kind, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = written(tmp_path / "tiny.gguf", kind, monkeypatch)
    found = stored(converted(tmp_path / "tiny.gguf"))
    embedding = found["model.embed_tokens.weight"]
    assert embedding.dtype == dtype
    assert torch.equal(embedding.float(), held["token_embd.weight"])


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1])
def test_rounding_a_quantised_file_is_less_than_its_own_loss(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = written(tmp_path / "tiny.gguf", kind, monkeypatch)["token_embd.weight"]
    rounded = stored(converted(tmp_path / "tiny.gguf"))["model.embed_tokens.weight"]
    exact = stored(converted(tmp_path / "tiny.gguf", exact=True))["model.embed_tokens.weight"]
    assert (rounded.dtype, exact.dtype) == (torch.float16, torch.float32)
    assert torch.equal(exact, held)
    blocks = held.reshape(-1, 32)
    spread = blocks.max(-1).values - blocks.min(-1).values
    step = blocks.abs().max(-1).values / 127 if kind == Kind.Q8_0 else spread / 15
    moved = (rounded.float().reshape(-1, 32) - blocks).abs().max(-1).values
    assert bool((moved <= step / 8).all())
    assert bool((moved > 0).any())  # the control: there was something to round


def test_an_unembedding_that_is_the_embedding_is_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = gguf.GGUFWriter.add_tensor, {}

    def add(self: Any, name: str, array: Any, **options: Any) -> None:
        seen[name] = array
        plain(self, name, seen["token_embd.weight"] if name == "output.weight" else array, **options)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add)
    source = save_gguf(tmp_path / "tiny.gguf")
    source.lm_head.weight.data = source.model.embed_tokens.weight.data
    assert "lm_head.weight" not in stored(converted(tmp_path / "tiny.gguf"))
    model = load_model(str(tmp_path / "tiny.gguf"), dtype="float32", device="cpu")
    assert model.load_record.n_parameters == sum(p.numel() for p in source.parameters()) - 160 * 32
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS), source(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", plain)
    save_gguf(tmp_path / "untied.gguf")  # the control
    assert "lm_head.weight" in stored(converted(tmp_path / "untied.gguf"))
