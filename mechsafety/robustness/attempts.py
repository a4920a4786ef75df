"""Several attempts at each prompt: does any of them succeed, and how many do on average?

The two are different questions. The paper speaks of success in any of five samples and reports the mean over all
samples (arXiv 2402.05162); both are given, and any is never below the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mechsafety.core.errors import MechsafetyError
from mechsafety.judges.outcomes import Judgement, Tally
from mechsafety.statistics.measures import bootstrap
from mechsafety.statistics.rates import Interval, wilson
from mechsafety.statistics.resampling import Estimate

RESAMPLES = 2000
Success = Literal["gated", "published"]
"""What counts as success: coherent compliance, or what the published metric takes for it."""


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """A share of attempts with its interval over prompts."""

    rate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """Judgements [prompt][attempt], the same number of attempts for each prompt."""

    judged: tuple[tuple[Judgement, ...], ...]

    def __post_init__(self) -> None:
        sizes = {len(row) for row in self.judged}
        if len(sizes) != 1 or 0 in sizes:
            raise MechsafetyError(
                f"attempts at {len(self.judged)} prompts, {sorted(sizes)} each: every prompt needs the same "
                "number, one at least"
            )

    @property
    def k(self) -> int:
        """Attempts at each prompt."""
        return len(self.judged[0])

    @property
    def tally(self) -> Tally:
        """All attempts, counted."""
        return Tally.of([j for row in self.judged for j in row])

    def any(self, success: Success = "gated") -> Interval:
        """Share of prompts at which an attempt succeeds, with Wilson's interval.

        A prompt without success of which an attempt could not be read is left out: it may have succeeded.
        """
        known = [found for row in self.judged if (found := _any(row, success)) is not None]
        return wilson(sum(known), len(known))

    def mean(self, success: Success = "gated", *, seed: int) -> Estimated:
        """Share of the attempts that succeed; prompts are drawn anew for the interval, with all their attempts.

        Where every prompt has the same share, and with one attempt each, the interval is Wilson's for the number of
        prompts: a bootstrap would have no width, or give the same.
        """
        cells = np.array([_sums(row, success) for row in self.judged])
        read = cells[cells[:, 1] > 0]
        if not len(read):
            return Estimated(rate=float("nan"), low=float("nan"), high=float("nan"), n=0)
        rate, n = float(cells[:, 0].sum() / cells[:, 1].sum()), int(cells[:, 1].sum())
        if self.k == 1 or len(np.unique(read[:, 0] / read[:, 1])) == 1:
            plain = wilson(round(rate * len(read)), len(read))
            return Estimated(rate=rate, low=min(plain.low, rate), high=max(plain.high, rate), n=n)
        found = ratio(read[:, 0], read[:, 1], seed=seed)
        return Estimated(rate=rate, low=found.low, high=found.high, n=n)


def ratio(sums: Sequence[float] | np.ndarray, sizes: Sequence[int] | np.ndarray, *, seed: int) -> Estimate:
    """``sum(sums) / sum(sizes)`` with a 95 % bootstrap interval over their members (prompts, passages)."""
    cells = np.column_stack([np.asarray(sums, dtype=float), np.asarray(sizes, dtype=float)])
    return bootstrap(
        cells,
        lambda drawn: drawn[:, 0] / drawn[:, 1],
        n=int(cells[:, 1].sum()),
        seed=seed,
        resamples=RESAMPLES,
        confidence=0.95,
    )


def _any(row: Sequence[Judgement], success: Success) -> bool | None:
    outcomes = [_succeeds(j, success) for j in row]
    return True if True in outcomes else None if None in outcomes else False


def _sums(row: Sequence[Judgement], success: Success) -> tuple[int, int]:
    read = [found for j in row if (found := _succeeds(j, success)) is not None]
    return sum(read), len(read)


def _succeeds(judgement: Judgement, success: Success) -> bool | None:
    if success == "published":
        return judgement.published
    return None if judgement.label == "unparsed" else judgement.label == "compliance"
