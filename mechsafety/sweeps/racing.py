"""Racing: every candidate on few prompts first, and on more only where it can still come among the first.

After each round the prompts scored so far are drawn again (the Bayesian bootstrap), all candidates on the same draws,
and listed in every draw as :func:`mechsafety.sweeps.selection.shortlist` lists them; a candidate that comes among the
first in no draw is not scored further. Exhaustive scoring is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mechsafety.sweeps.ranking import SHORTLISTED, failures, first_late_layer, in_turns, rank_keys, spread

FIRST_ROUND = 6
_DRAWS = 400


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores [candidate, prompt] of some candidates on some prompts."""

    bypass: Float[np.ndarray, "candidate harmful"]
    induce: Float[np.ndarray, "candidate harmless"]
    kl: Float[np.ndarray, "candidate harmless"]


@dataclass(frozen=True, kw_only=True)
class Unedited:
    """The unedited model's scores of the same prompts, all of them."""

    harmful: Float[np.ndarray, " harmful"]
    harmless: Float[np.ndarray, " harmless"]


Score = Callable[[Sequence[int], Sequence[int], Sequence[int]], Scored]
"""Scores of the named candidates on the named harmful and harmless prompts."""


@dataclass(frozen=True, kw_only=True)
class Raced:
    """Scores, NaN where none was taken, and of each candidate how many prompts of each class it was scored on."""

    scores: Scored
    n_harmful: Int[np.ndarray, " candidate"]
    n_harmless: Int[np.ndarray, " candidate"]
    harmful_order: tuple[int, ...]
    harmless_order: tuple[int, ...]

    @property
    def cost(self) -> float:
        """Prompts scored, as a share of what scoring every candidate on every prompt takes."""
        every = len(self.n_harmful) * (len(self.harmful_order) + len(self.harmless_order))
        return float((self.n_harmful.sum() + self.n_harmless.sum()) / max(1, every))


def rounds(n: int) -> list[int]:
    """How many prompts of a class are scored by the end of each round: 6, 12, 24, ... and all."""
    sizes = [FIRST_ROUND * 2**k for k in range(20) if FIRST_ROUND * 2**k < n]
    return [*sizes, n]


def race(
    score: Score,
    unedited: Unedited,
    layers: Sequence[int],
    *,
    n_layers: int,
    seed: int,
    first: int = SHORTLISTED,
) -> Raced:
    """Score candidates, of each its layer in ``layers``, until only those that can come among the ``first`` are left.

    Those in the last fifth of the layers, which no rule selects, are scored on no prompt, unless there are no others.
    """
    n, n_harmful, n_harmless = len(layers), len(unedited.harmful), len(unedited.harmless)
    generator = np.random.default_rng(seed)
    order_a, order_b = generator.permutation(n_harmful), generator.permutation(n_harmless)
    found = Scored(
        bypass=np.full((n, n_harmful), np.nan),
        induce=np.full((n, n_harmless), np.nan),
        kl=np.full((n, n_harmless), np.nan),
    )
    counts = np.zeros((2, n), dtype=int)
    early = np.flatnonzero(np.asarray(layers) < first_late_layer(n_layers))
    alive = early if len(early) else np.arange(n)
    plan = list(zip(_paced(n_harmful, n_harmless), _paced(n_harmless, n_harmful), strict=True))
    done = (0, 0)
    for a, b in plan:
        rows_a, rows_b = order_a[done[0] : a], order_b[done[1] : b]
        new = score(alive.tolist(), rows_a.tolist(), rows_b.tolist())
        found.bypass[np.ix_(alive, rows_a)] = new.bypass
        found.induce[np.ix_(alive, rows_b)] = new.induce
        found.kl[np.ix_(alive, rows_b)] = new.kl
        counts[:, alive] = [[a], [b]]
        done = (a, b)
        if (a, b) != plan[-1]:
            seen = (order_a[:a], order_b[:b])
            alive = alive[
                _hopeful(found, unedited, alive, np.asarray(layers, dtype=int), seen, generator, first)
            ]
    return Raced(
        scores=found,
        n_harmful=counts[0],
        n_harmless=counts[1],
        harmful_order=tuple(order_a.tolist()),
        harmless_order=tuple(order_b.tolist()),
    )


def exhaustive(score: Score, n: int, n_harmful: int, n_harmless: int) -> Raced:
    """Every one of ``n`` candidates on every prompt."""
    return Raced(
        scores=score(range(n), range(n_harmful), range(n_harmless)),
        n_harmful=np.full(n, n_harmful),
        n_harmless=np.full(n, n_harmless),
        harmful_order=tuple(range(n_harmful)),
        harmless_order=tuple(range(n_harmless)),
    )


def _paced(n: int, other: int) -> list[int]:
    """The rounds of a class of ``n`` prompts, as many as the larger class has."""
    sizes = rounds(max(n, other))
    return [min(size, n) for size in sizes[:-1]] + [n]


def _hopeful(
    found: Scored,
    unedited: Unedited,
    alive: Int[np.ndarray, " alive"],
    layers: Int[np.ndarray, " candidate"],
    seen: tuple[Int[np.ndarray, " harmful"], Int[np.ndarray, " harmless"]],
    generator: np.random.Generator,
    first: int,
) -> Bool[np.ndarray, " alive"]:
    """Which candidates come among the first in any draw of the prompts scored so far."""
    a, b = seen
    gap = abs(float(unedited.harmful.mean() - unedited.harmless.mean())) or float(np.finfo(float).tiny)
    weights_a, weights_b = _weights(len(a), generator), _weights(len(b), generator)
    removed = (unedited.harmful[a] - found.bypass[np.ix_(alive, a)]) @ weights_a.T / gap
    caused = (found.induce[np.ix_(alive, b)] - unedited.harmless[b]) @ weights_b.T / gap
    kl = found.kl[np.ix_(alive, b)] @ weights_b.T
    finite: Any = [np.isfinite(scores).all(1) for scores in (removed, caused, kl)]
    usable = finite[0] & finite[1] & finite[2]
    keys = [np.where(usable[:, None], key, np.inf) for key in rank_keys(removed, caused, kl)]
    among = np.zeros(len(alive), dtype=bool)
    orders: Any = np.lexsort(keys[::-1], axis=0)
    level, kind = failures(removed, caused, kl)
    for number, draw in enumerate(orders.T):
        order = in_turns(draw[usable[draw]].tolist(), level[:, number], kind[:, number])
        places = [(row, int(layers[alive[row]])) for row in order]
        among[[row for row, _ in spread(places, size=first)]] = True
    return usable & among


def _weights(n: int, generator: np.random.Generator) -> Float[np.ndarray, "draw prompt"]:
    """Random weights of ``n`` prompts that sum to 1: means so weighted vary as the mean of a new sample does.

    With concentration (n - 2) / n the variance over draws is s^2 / n, s^2 the sample variance.
    """
    drawn = generator.gamma(max(n - 2, 1) / n, size=(_DRAWS, n)) + np.finfo(float).tiny
    return drawn / drawn.sum(1, keepdims=True)
