"""A model without what it has learned: its own weights in random order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mechsafety.models.loading import body_of
from mechsafety.models.quantised import packed_modules

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Move = tuple[Tensor, int, Tensor]
"""A weight, one of its dimensions, and an order of that."""


def can_be_untrained(model: TransformerBridge) -> bool:
    """Whether all weights are there as numbers: none packed in fewer bits, none left on the disk."""
    body = body_of(model)
    return not packed_modules(body) and not any(p.is_meta for p in body.parameters())


@contextmanager
def untrained(model: TransformerBridge, *, seed: int) -> Iterator[None]:
    """While the block runs, the rows and the columns of every weight matrix stand in a random order of its own.

    The network keeps its architecture and every matrix its singular values; which dimension of one is read by which of
    the next is what training made, and is lost (after Adebayo et al. 2018, arXiv 1810.03292). Afterwards all weights
    are what they were, bit by bit.
    """
    done: list[Move] = []
    try:
        for weight, dim, order in _moves(body_of(model), seed=seed):
            _reorder(weight, dim, order)
            done.append((weight, dim, order))
        yield
    finally:
        # The last first: some maps are views of the parts of a fused one.
        for weight, dim, order in reversed(done):
            _reorder(weight, dim, order.argsort())


def _moves(body: nn.Module, *, seed: int) -> Iterator[Move]:
    """A random order of every dimension of every parameter."""
    generator = torch.Generator().manual_seed(seed)
    for weight in body.parameters():
        for dim, size in enumerate(weight.shape):
            yield weight, dim, torch.randperm(size, generator=generator)


@torch.no_grad()
def _reorder(weight: Tensor, dim: int, order: Tensor) -> None:
    weight.copy_(weight.index_select(dim, order.to(weight.device)))
