"""What a run of the benchmarks is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MODEL = "smollm2-135m+refusals"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Sizes of every benchmark. ``every`` times each so-manieth layer of the sweep; ``quick`` is a try."""

    rounds: int
    prompts: int
    new_tokens: int
    every: int
    quick: bool
    device: str
    study: Path

    def size(self, full: int, tiny: int) -> int:
        """``full``, or ``tiny`` in a quick run."""
        return tiny if self.quick else full
