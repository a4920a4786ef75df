"""Debiased linear CKA: how alike two checkpoints arrange the same prompts, whatever their bases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechsafety.geometry.similarity import ROUNDING, Z95, centred, jackknife_error


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Debiased linear CKA of one pair of layers; see :func:`compare_cka`."""

    cka: float
    low: float
    high: float
    class_floor: float
    floor: float
    floor_high: float


def compare_cka(
    a: Float[Tensor, "prompt d_a"],
    b: Float[Tensor, "prompt d_b"],
    harmful: Bool[Tensor, " prompt"],
    *,
    seed: int,
    permutations: int = 50,
) -> Alignment:
    """CKA of two representations of the same prompts; no common basis or width is needed.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T, L = Y Y^T (Kornblith et al. 2019) and the
    unbiased HSIC of Song et al. 2012 (eq. 5): with few prompts and many dimensions the plain estimate lies near
    1 for anything. Few directions of high variance rule it; compare it with its own yardsticks.

    ``low`` and ``high``: +- 1.96 jackknife standard errors (delete one prompt, classes as strata), cut to
    [-1, 1]; a bootstrap would repeat prompts, whose equal rows the unbiased estimate counts as likeness.
    The ceiling is 1: on the same prompts a checkpoint equals itself, and there is no noise to halve. A
    yardstick is its CKA with its own next layer (:func:`linear_cka`). ``floor`` and ``floor_high``: mean
    and 95 % quantile when the prompts of one side are permuted; ``class_floor``: the mean when they are
    permuted within harmful and within harmless, which is what separating the classes gives alone.
    NaN where a representation does not differ between prompts.
    """
    pair = _kernels(a, b)
    if pair is None:
        return Alignment(**dict.fromkeys(Alignment.__dataclass_fields__, math.nan))
    k, m = pair
    whole, without = _hsic(k, m)
    (ka, ka_without), (mb, mb_without) = _hsic(k, k), _hsic(m, m)
    value = _ratio(whole, ka, mb)
    error = jackknife_error(_ratio(without, ka_without, mb_without), harmful)
    generator = torch.Generator().manual_seed(seed)
    floors = [
        torch.stack([_ratio(_hsic(k, m[p][:, p])[0], ka, mb) for p in orders])
        for orders in _orders(harmful, permutations, generator)
    ]
    return Alignment(
        cka=float(value),
        low=max(-1.0, float(value) - Z95 * error),
        high=min(1.0, float(value) + Z95 * error),
        class_floor=float(floors[1].mean()),
        floor=float(floors[0].mean()),
        floor_high=float(floors[0].quantile(0.95)),
    )


def linear_cka(a: Float[Tensor, "prompt d_a"], b: Float[Tensor, "prompt d_b"]) -> float:
    """Debiased linear CKA alone."""
    pair = _kernels(a, b)
    if pair is None:
        return math.nan
    k, m = pair
    return float(_ratio(_hsic(k, m)[0], _hsic(k, k)[0], _hsic(m, m)[0]))


def _orders(harmful: Tensor, number: int, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Permutations of all prompts, and permutations within each class."""
    n = len(harmful)
    free = [torch.randperm(n, generator=generator) for _ in range(number)]
    within: list[Tensor] = []
    for _ in range(number):
        order = torch.arange(n)
        for rows in (harmful.nonzero().flatten(), (~harmful).nonzero().flatten()):
            order[rows] = rows[torch.randperm(len(rows), generator=generator)]
        within.append(order)
    return free, within


def _kernels(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """Gram matrices with a zero diagonal; None where one side is the same for every prompt."""
    kernels: list[Tensor] = []
    for x in (a, b):
        moved = centred(x)
        if float(moved.norm()) <= ROUNDING * float(x.double().norm()):
            return None
        gram = moved @ moved.T
        kernels.append((gram / gram.diagonal().mean()).fill_diagonal_(0))
    return kernels[0], kernels[1]


def _hsic(k: Tensor, m: Tensor) -> tuple[Tensor, Float[Tensor, " prompt"]]:
    """Unbiased HSIC (Song et al. 2012, eq. 5) of zero-diagonal kernels, and its values without each prompt."""
    n = len(k)
    rows = (k * m).sum(-1)
    sum_k, sum_m = k.sum(-1), m.sum(-1)
    middle = sum_k @ sum_m

    def value(size: int, trace: Tensor, all_k: Tensor, all_m: Tensor, inner: Tensor) -> Tensor:
        outer = all_k * all_m / ((size - 1) * (size - 2))
        return (trace + outer - 2 * inner / (size - 2)) / (size * (size - 3))

    without = middle - sum_k * sum_m - m @ sum_k - k @ sum_m + rows
    return value(n, rows.sum(), sum_k.sum(), sum_m.sum(), middle), value(
        n - 1, rows.sum() - 2 * rows, sum_k.sum() - 2 * sum_k, sum_m.sum() - 2 * sum_m, without
    )


def _ratio(across: Tensor, own_a: Tensor, own_b: Tensor) -> Tensor:
    scale = (own_a.clamp(min=0) * own_b.clamp(min=0)).sqrt()
    return torch.where(scale > 0, across / scale.clamp(min=1e-300), torch.nan)
