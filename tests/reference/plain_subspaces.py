"""ActSVD the plain way: raw activations of one example at a time, and numpy's SVD of W X."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mechsafety.generation.answers import Example, encode
from mechsafety.regions.maps import LinearMap, running_body


def raw_inputs(model: Any, maps: Sequence[LinearMap], examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """X [d_in, token] of every map in float64: its inputs at the answers' tokens."""
    columns: dict[str, list[np.ndarray]] = {m.name: [] for m in maps}
    for prompt, answer in encode(model, examples):
        seen: dict[str, torch.Tensor] = {}

        def keep(name: str, seen: dict[str, torch.Tensor] = seen) -> Any:
            return lambda _module, args: seen.update({name: args[0][0]})

        handles = [m.module.register_forward_pre_hook(keep(m.name)) for m in maps]
        with torch.no_grad():
            running_body(model)(input_ids=torch.tensor([prompt + answer]))
        for handle in handles:
            handle.remove()
        for name, x in seen.items():
            columns[name].append(x[len(prompt) :].double().numpy().T)
    return {name: np.concatenate(parts, axis=1) for name, parts in columns.items()}


def left_singular(weight: torch.Tensor, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    u, s, _ = np.linalg.svd(weight.double().numpy() @ x, full_matrices=False)
    return u, s


def projected_out(
    weight: torch.Tensor, x_safety: np.ndarray, x_utility: np.ndarray, *, r_s: int, r_u: int
) -> np.ndarray:
    """dW = (I - P_u) P_s W with dense projectors."""
    rank = min(weight.shape)
    u_s = left_singular(weight, x_safety)[0][:, : rank - r_s]
    u_u = left_singular(weight, x_utility)[0][:, : rank - r_u]
    identity = np.eye(weight.shape[0])
    return (identity - u_u @ u_u.T) @ (u_s @ u_s.T) @ weight.double().numpy()
