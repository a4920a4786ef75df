"""How much arithmetic a job does: rows through the plain twin's linear maps, counted while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from mechsafety.models.loading import generation_twin


@dataclass
class Work:
    """Multiply-adds in the blocks' linear maps and in the unembedding, and the rows they come from.

    ``tokens`` counts a token that runs through half of the blocks as half a token. Attention's own products
    (2 % more at 50 tokens of SmolLM2-135M) are left out.
    """

    per_token: int = 0
    block_macs: int = 0
    unembedding_macs: int = 0
    unembedded: int = 0

    @property
    def tokens(self) -> float:
        return self.block_macs / self.per_token

    @property
    def macs(self) -> int:
        return self.block_macs + self.unembedding_macs


@contextmanager
def counted(model: Any) -> Iterator[Work]:
    """Count what runs on the model's plain twin while the block runs."""
    twin: Any = generation_twin(model)
    head = twin.get_output_embeddings()
    maps = [m for m in twin.modules() if isinstance(m, nn.Linear)]
    work = Work(per_token=sum(m.weight.numel() for m in maps if m is not head))

    def counting(module: nn.Linear) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def count(_m: nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].numel() // args[0].shape[-1]
            if module is head:
                work.unembedded += rows
                work.unembedding_macs += rows * module.weight.numel()
            else:
                work.block_macs += rows * module.weight.numel()

        return count

    with ExitStack() as stack:
        for module in maps:
            stack.callback(module.register_forward_pre_hook(counting(module)).remove)
        yield work
