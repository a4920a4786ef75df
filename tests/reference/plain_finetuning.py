"""Full fine-tuning with frozen entries, as the formulas say: float64, one example at a time, AdamW written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Where each map of a block is stored, and for joint projections which third of it: name -> (parameter, part).
_LLAMA = {
    "q": ("self_attn.q_proj", None),
    "k": ("self_attn.k_proj", None),
    "v": ("self_attn.v_proj", None),
    "o": ("self_attn.o_proj", None),
    "gate": ("mlp.gate_proj", None),
    "up": ("mlp.up_proj", None),
    "down": ("mlp.down_proj", None),
}
_GPT2 = {
    "q": ("attn.c_attn", 0),
    "k": ("attn.c_attn", 1),
    "v": ("attn.c_attn", 2),
    "o": ("attn.c_proj", None),
    "up": ("mlp.c_fc", None),
    "down": ("mlp.c_proj", None),
}


def adamw_step(
    w: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    step: int,
    rate: float,
    decay: float,
    frozen: Tensor,
    decay_frozen: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights and both moments after step 1, 2, ...; ``decay_frozen`` masks the gradient alone, which is not enough."""
    g = torch.where(frozen, torch.zeros_like(g), g)
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g * g
    decayed = w * (1 - rate * decay)
    if not decay_frozen:
        decayed = torch.where(frozen, w, decayed)
    unbiased_m = m / (1 - 0.9**step)
    unbiased_v = v / (1 - 0.999**step)
    return decayed - rate * unbiased_m / (torch.sqrt(unbiased_v) + 1e-8), m, v


def stored(module: Any, name: str) -> tuple[str, Any, bool]:
    """The parameter's name for a map such as ``blocks.3.q``, its slice of W's rows, and whether W is transposed."""
    _, layer, kind = name.split(".")
    gpt2 = hasattr(module, "transformer")
    path, part = (_GPT2 if gpt2 else _LLAMA)[kind]
    parameter = f"transformer.h.{layer}.{path}.weight" if gpt2 else f"model.layers.{layer}.{path}.weight"
    if part is None:
        return parameter, slice(None), gpt2
    third = dict(module.named_parameters())[parameter].shape[1] // 3
    return parameter, slice(part * third, (part + 1) * third), gpt2


def finetuned_weights(
    module: Any,
    examples: Sequence[tuple[list[int], list[int]]],
    *,
    names: Sequence[str],
    frozen: Mapping[str, Tensor],
    steps: int,
    rate: float,
    decay: float,
    decay_frozen: bool = False,
) -> tuple[dict[str, Tensor], list[float]]:
    """W of each map after ``steps`` steps over all examples at once, and the loss before each step."""
    module = copy.deepcopy(module).double()
    module.requires_grad_(True)
    where = {name: stored(module, name) for name in names}
    parameters = {p: dict(module.named_parameters())[p] for p in {p for p, *_ in where.values()}}
    masks = {p: torch.zeros_like(w, dtype=torch.bool) for p, w in parameters.items()}
    for name, (p, rows, transposed) in where.items():
        matrix = (masks[p].T if transposed else masks[p])[rows]
        for entry in frozen.get(name, torch.tensor([], dtype=torch.long)).tolist():
            matrix[entry // matrix.shape[1], entry % matrix.shape[1]] = True
    moments = {p: (torch.zeros_like(w), torch.zeros_like(w)) for p, w in parameters.items()}
    losses = []
    for step in range(1, steps + 1):
        module.zero_grad()
        total = sum(len(answer) for _, answer in examples)
        loss = torch.zeros((), dtype=torch.float64)
        for prompt, answer in examples:
            logits = module(input_ids=torch.tensor([prompt + answer])).logits[0]
            for i, token in enumerate(answer):
                loss = loss - torch.log_softmax(logits[len(prompt) + i - 1], -1)[token] / total
        loss.backward()
        losses.append(float(loss.detach()))
        assert math.isfinite(losses[-1])
        now = rate * (1 - (step - 1) / steps)
        for p, w in parameters.items():
            m, v = moments[p]
            with torch.no_grad():
                new, *moved = adamw_step(
                    w,
                    w.grad,
                    m,
                    v,
                    step=step,
                    rate=now,
                    decay=decay,
                    frozen=masks[p],
                    decay_frozen=decay_frozen,
                )
                w.copy_(new)
            moments[p] = (moved[0], moved[1])
    found = {}
    for name, (p, rows, transposed) in where.items():
        w = parameters[p].detach()
        found[name] = (w.T if transposed else w)[rows]
    return found, losses
