"""The lab's models: small Hugging Face GPT-NeoX models (LayerNorm, rotary positions, plain GELU MLPs) in folders.

A saved one is loaded like any other model: ``load_model(folder)`` boots it as a TransformerLens model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import quiet
from mechsafety.lab.vocabulary import Vocabulary
from mechsafety.models.filled_weights import load_filled


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """Blocks, heads and widths."""

    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int

    def __post_init__(self) -> None:
        if min(self.n_layers, self.n_heads, self.d_model, self.d_mlp) < 1 or self.d_model % self.n_heads:
            raise MechsafetyError(f"{self}: d_model must be a multiple of n_heads, and all at least 1")


def new_network(size: NetworkSize, vocabulary: Vocabulary, *, seed: int) -> GPTNeoXForCausalLM:
    """An untrained float32 model; the same seed gives the same weights."""
    end = vocabulary.id("<end>")
    config = GPTNeoXConfig(
        vocab_size=len(vocabulary),
        hidden_size=size.d_model,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        intermediate_size=size.d_mlp,
        max_position_embeddings=vocabulary.context,
        use_parallel_residual=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        tie_word_embeddings=False,
        bos_token_id=vocabulary.id("<bos>"),
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config).eval()


def copied(model: GPTNeoXForCausalLM) -> GPTNeoXForCausalLM:
    """The same weights in tensors of their own."""
    return copy.deepcopy(model)


def save_network(model: GPTNeoXForCausalLM, vocabulary: Vocabulary, folder: Path) -> Path:
    """Weights (safetensors), configuration and tokenizer, as :func:`load_model` wants them."""
    with quiet():
        model.save_pretrained(folder)
        vocabulary.tokenizer().save_pretrained(folder)
    return folder


def open_network(folder: Path, *, device: torch.device | str = "cpu") -> GPTNeoXForCausalLM:
    """A saved lab model in float32 on ``device``."""
    if not (folder / "config.json").is_file():
        raise MechsafetyError(f"folder {str(folder)!r} holds no config.json: it is not a saved model")
    with quiet():
        model = load_filled(GPTNeoXForCausalLM, str(folder), source=str(folder), dtype=torch.float32)
    return model.to(device).eval()  # pyright: ignore[reportArgumentType] - a decorator of transformers hides it


def embedding_table(model: GPTNeoXForCausalLM) -> Float[Tensor, "vocabulary d_model"]:
    """The embedding of every token."""
    return cast("torch.nn.Embedding", model.get_input_embeddings()).weight
