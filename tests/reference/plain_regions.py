"""SNIP, Wanda and Gram matrices as the papers write them: example by example, everything held at once.

On Hugging Face modules alone; nothing of ``mechsafety`` is called. Examples are (prompt ids, answer ids).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Ids = tuple[list[int], list[int]]


def plain_snip(
    hf: Any, modules: dict[str, nn.Module], examples: Sequence[Ids], *, loss: str
) -> dict[str, Tensor]:
    """mean over examples of |W * dL/dW| by autograd at the weights; each as its module stores it."""
    weights = {name: module.weight for name, module in modules.items()}
    sums = {name: torch.zeros(w.shape) for name, w in weights.items()}
    for w in weights.values():
        w.requires_grad_(True)
    for prompt, answer in examples:
        logits = hf(torch.tensor([prompt + answer])).logits[0].float()
        log_p = logits.log_softmax(-1)
        nll = [-log_p[len(prompt) + t - 1, token] for t, token in enumerate(answer)]
        total = torch.stack(nll).sum() if loss == "sum" else torch.stack(nll).mean()
        total.backward()
        for name, w in weights.items():
            sums[name] += (w.float() * w.grad.float()).abs().detach()
        hf.zero_grad(set_to_none=True)
    for w in weights.values():
        w.requires_grad_(False)
    return {name: s / len(examples) for name, s in sums.items()}


def plain_inputs(
    hf: Any, modules: dict[str, nn.Module], examples: Sequence[Ids], *, positions: str
) -> dict[str, Tensor]:
    """X [token, d_in] of every module: its raw inputs at the calibration tokens, stacked."""
    stacked: dict[str, list[Tensor]] = {name: [] for name in modules}
    for prompt, answer in examples:
        first = len(prompt) - (1 if positions == "predictive" else 0)
        where = slice(first, first + len(answer))
        handles = [
            module.register_forward_pre_hook(
                lambda _, args, name=name, where=where: stacked[name].append(args[0][0, where].float())
            )
            for name, module in modules.items()
        ]
        with torch.no_grad():
            hf(torch.tensor([prompt + answer]))
        for handle in handles:
            handle.remove()
    return {name: torch.cat(x) for name, x in stacked.items()}


def plain_wanda(weight: Tensor, x: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2 for W [d_out, d_in] and X [token, d_in]."""
    return weight.float().abs() * (x * x).sum(0).sqrt()


def plain_gram(x: Tensor) -> Tensor:
    """sum of x x^T over tokens, one after the other."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for row in x.double():
        total += torch.outer(row, row)
    return total
