"""Entries of the table of architectures as a user's own HookedTransformer, under transformer-lens 3.9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

HOOKED: dict[str, str] = {
    "gpt2": "gpt2",
    "gpt-neox": "EleutherAI/pythia-70m",
    "gptj": "EleutherAI/gpt-j-6B",
    "gpt-neo": "EleutherAI/gpt-neo-125M",
    "llama": "01-ai/Yi-6B",
    "mistral": "mistralai/Mistral-7B-v0.1",
    "mixtral": "mistralai/Mixtral-8x7B-v0.1",
    "qwen2": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen3": "Qwen/Qwen3-0.6B",
    "gemma2": "google/gemma-2-2b",
    "gemma3": "google/gemma-3-270m",
    "bloom": "bigscience/bloom-560m",
    "opt": "facebook/opt-125m",
    "olmo2": "allenai/OLMo-2-0425-1B",
    "phi3": "microsoft/Phi-3-mini-4k-instruct",
}
"""Each entry's official name, under which transformer-lens knows how to convert its weights."""


def hooked_architecture(folder: Path, name: str, **changes: Any) -> Any:
    """The saved entry in ``folder`` as a HookedTransformer on unprocessed weights; ``changes`` to its configuration."""
    import transformer_lens.loading_from_pretrained as loading
    from transformer_lens import HookedTransformer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    hf.config.n_ctx = 256  # its name in GPT-2's old configurations
    hf.config.architectures = [type(hf).__name__]
    convert = loading.convert_hf_model_config

    def converted(official: str, **options: Any) -> dict[str, Any]:
        found = convert(official, **options) | _what_names_decide(name, hf.config)
        return found | {"n_ctx": 256} | changes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "convert_hf_model_config", converted)
        patch.setattr(loading.AutoConfig, "from_pretrained", lambda *_, **__: hf.config)
        return HookedTransformer.from_pretrained_no_processing(
            HOOKED[name],
            hf_model=hf,
            tokenizer=AutoTokenizer.from_pretrained(folder),
            device="cpu",
            dtype=torch.float32,
        )


def _what_names_decide(name: str, config: Any) -> dict[str, Any]:
    """Where transformer-lens takes sizes from a model's name and not from its configuration."""
    sizes = {"d_model": 32, "d_head": 8, "n_heads": 4, "n_layers": 4, "d_vocab": config.vocab_size}
    if name == "olmo2":
        return sizes | {
            "d_mlp": 48,
            "n_key_value_heads": None,
            "rotary_dim": 8,
            "rotary_base": config.rope_parameters["rope_theta"],
            "eps": config.rms_norm_eps,
        }
    if name == "gpt-neo":
        return {"d_mlp": 48}
    if not name.startswith("gemma"):
        return {}
    found = sizes | {
        "d_mlp": 48,
        "n_key_value_heads": 2,
        "window_size": config.sliding_window,
        "rotary_dim": 8,
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "attn_types": ["local" if kind == "sliding_attention" else "global" for kind in config.layer_types],
    }
    if name == "gemma3":
        rope = config.rope_parameters
        found |= {
            "rotary_base_local": int(rope["sliding_attention"]["rope_theta"]),
            "rotary_base": int(rope["full_attention"]["rope_theta"]),
        }
    return found
