"""The released commands' abliteration in plain transformers: nothing of this package, one prompt at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def last_normed_state(hf: Any, ids: Sequence[int]) -> Float[Tensor, " d_model"]:
    """The last entry of ``hidden_states``, which is after the final norm, at the last token."""
    with torch.inference_mode():
        return hf(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states[-1][0, -1].float()


def release_direction(
    hf: Any, harmful: Sequence[Sequence[int]], harmless: Sequence[Sequence[int]]
) -> Float[Tensor, " d_model"]:
    means = [
        torch.stack([last_normed_state(hf, ids) for ids in several]).mean(0)
        for several in (harmful, harmless)
    ]
    v = means[0] - means[1]
    return v / v.norm()


def abliterated(hf: Any, v: Float[Tensor, " d_model"], *, alpha: float = 1.0) -> Any:
    """A copy with W <- W - alpha v v^T W in o_proj and down_proj of every layer but the first."""
    edited = copy.deepcopy(hf)
    with torch.no_grad():
        for layer in edited.model.layers[1:]:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight -= alpha * torch.outer(v, v) @ weight
    return edited
