"""How much a selection depends on which first tokens count as refusal: the choice by every half of them.

No pass of the model is needed: the sweep keeps P of every token, from which the score by any set of them follows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from mechsafety.core.errors import MechsafetyError
from mechsafety.sweeps.refusal_scores import log_odds
from mechsafety.sweeps.selection import Place, nearest, select

if TYPE_CHECKING:
    import pandas as pd

_MOST_SETS = 50
_OF_ALL_TOKENS = ("gap_low", "gap_high", "complied")  # not known of half of them


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """P of every refusal token under every candidate, and of the unedited model; NaN where racing took none."""

    bypass: Float[np.ndarray, "candidate harmful token"]
    induce: Float[np.ndarray, "candidate harmless token"]
    harmful: Float[np.ndarray, "harmful token"]
    harmless: Float[np.ndarray, "harmless token"]

    @property
    def n_tokens(self) -> int:
        return self.harmful.shape[1]

    def means(self, tokens: Sequence[int]) -> dict[str, Float[np.ndarray, "*candidate"]]:
        """Mean refusal scores by the named columns, as columns of a table of scores."""
        names = ("bypass", "induce", "harmful", "harmless")
        chosen = {name: torch.from_numpy(getattr(self, name)[..., list(tokens)]) for name in names}
        return {name: log_odds(p).numpy().mean(-1) for name, p in chosen.items()}


@dataclass(frozen=True, kw_only=True)
class TokenStability:
    """What ``size`` of ``n_tokens`` refusal tokens pick, in ``sets`` sets.

    ``changed`` is the share of sets by which another candidate is picked, or named as the nearest where none passes;
    ``none`` the share by which none passes.
    """

    n_tokens: int
    size: int
    sets: int
    changed: float
    none: float


def token_stability(
    table: pd.DataFrame, scores: TokenScores, *, n_layers: int, rule: str, seed: int
) -> TokenStability | None:
    """The choice by every set of half of the tokens (rounded down), or by 50 of them; None where there is one token.

    ``scores`` are of the table's rows. What the model writes is left out, being the same for every set.
    """
    n = scores.n_tokens
    size = n // 2
    if not size:
        return None
    table = table.drop(columns=[c for c in _OF_ALL_TOKENS if c in table.columns])

    def pick(tokens: Sequence[int]) -> tuple[Place | None, bool]:
        return _pick(table.assign(**scores.means(tokens)), n_layers=n_layers, rule=rule)

    whole, _ = pick(range(n))
    picked = [pick(tokens) for tokens in _sets(n, size, seed)]
    return TokenStability(
        n_tokens=n,
        size=size,
        sets=len(picked),
        changed=sum(place != whole for place, _ in picked) / len(picked),
        none=sum(not passed for _, passed in picked) / len(picked),
    )


def _sets(n: int, size: int, seed: int) -> list[tuple[int, ...]]:
    if math.comb(n, size) <= _MOST_SETS:
        return list(itertools.combinations(range(n), size))
    generator, found = np.random.default_rng(seed), dict[tuple[int, ...], None]()
    while len(found) < _MOST_SETS:
        found[tuple(sorted(generator.choice(n, size, replace=False).tolist()))] = None
    return list(found)


def _pick(table: pd.DataFrame, *, n_layers: int, rule: str) -> tuple[Place | None, bool]:
    try:
        found, passed = select(table, n_layers=n_layers, rule=rule), True
    except MechsafetyError:
        try:
            found, passed = nearest(table, n_layers=n_layers), False
        except MechsafetyError:
            return None, False
    return (found.position, found.layer), passed
