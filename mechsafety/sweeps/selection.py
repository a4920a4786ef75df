"""Choosing a candidate from a table of scores, and a list of what every filter dropped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import SELECTION_RULES

if TYPE_CHECKING:
    import pandas as pd

_LAST_FIFTH = 0.8


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The chosen candidate, the KL bound it met, and how many each filter dropped.

    ``rule`` and ``kl_bound`` go into the record: under ``auto`` the bound is the smallest of .1, .2, .3
    and .5 that leaves a candidate with bypass < 0 and induce > 0.
    """

    position: int
    layer: int
    bypass: float
    induce: float
    kl: float
    rule: str
    kl_bound: float
    kept: int
    total: int
    dropped: dict[str, int]

    def explain(self) -> str:
        """One sentence for the report."""
        if math.isinf(self.kl_bound):
            return (
                f"Layer {self.layer}, position {self.position} ({self.rule}, one of {self.total}, no filter): bypass "
                f"{self.bypass:.2f}, induce {self.induce:.2f}, KL {self.kl:.2f}"
            )
        drops = ", ".join(f"{n} by {name}" for name, n in self.dropped.items() if n)
        return (
            f"Layer {self.layer}, position {self.position}: the lowest bypass ({self.bypass:.2f}) of {self.kept} "
            f"candidates out of {self.total} (dropped: {drops or 'none'}); rule {self.rule}, KL bound "
            f"{self.kl_bound:g}"
        )


def select(table: pd.DataFrame, *, n_layers: int, rule: str = "auto") -> Selection:
    """Pick the lowest bypass among the candidates that pass every filter (Arditi et al. 2024, appendix C).

    Dropped, in this order: NaN scores, layer >= int(0.8 n_layers), KL above the bound, induce below 0; the
    rest is ``kept``. ``auto`` picks among those with bypass < 0 and induce > 0, and widens the bound until
    there is one.

    Raises :class:`MechsafetyError` when nothing is left, with the counts and the nearest candidate.
    """
    needed = ("position", "layer", "bypass", "induce", "kl")
    missing = [c for c in needed if c not in table.columns]
    if missing or table.empty:
        raise MechsafetyError(
            f"a table of scores needs rows and the columns {', '.join(needed)}; "
            f"missing: {', '.join(missing) or 'rows'}"
        )
    if rule not in SELECTION_RULES:
        raise MechsafetyError(f"rule {rule!r} is not one of {', '.join(SELECTION_RULES)}")
    more: dict[str, int] = {}
    dropped: dict[str, int] = {}
    for bound in SELECTION_RULES[rule]:
        kept, dropped = _filter(table, n_layers=n_layers, kl_bound=bound)
        eligible, more = _dropping(kept, _STRICTER if rule == "auto" else {})
        if not eligible.empty:
            best = eligible.sort_values(["bypass", "kl", "layer", "position"]).iloc[0]
            return _selection(
                best, rule=rule, kl_bound=bound, kept=len(kept), total=len(table), dropped=dropped
            )
    raise MechsafetyError(_nothing_left(table, n_layers=n_layers, rule=rule, dropped=dropped | more))


def selection_stability(
    table: pd.DataFrame,
    *,
    bypass: Float[np.ndarray, "candidate harmful"],
    induce: Float[np.ndarray, "candidate harmless"],
    kl: Float[np.ndarray, "candidate harmless"],
    n_layers: int,
    rule: str,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """How often ``rule`` picks each candidate when the prompts of each class are drawn again.

    Every resample draws harmful and harmless prompts with replacement, averages their scores and selects.
    Columns position, layer, share, commonest first; a row with position and layer <NA> is the share of
    resamples in which no candidate passed.
    """
    import pandas as pd

    generator = np.random.default_rng(seed)
    counts: dict[tuple[int, int] | None, int] = {}
    for _ in range(resamples):
        a = generator.integers(bypass.shape[1], size=bypass.shape[1])
        b = generator.integers(kl.shape[1], size=kl.shape[1])
        drawn = table.assign(bypass=bypass[:, a].mean(1), induce=induce[:, b].mean(1), kl=kl[:, b].mean(1))
        try:
            found = select(drawn, n_layers=n_layers, rule=rule)
            place = (found.position, found.layer)
        except MechsafetyError:
            place = None
        counts[place] = counts.get(place, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0] or (0, 0)))
    return pd.DataFrame(
        {
            "position": pd.array([p[0] if p else None for p, _ in ordered], dtype="Int64"),
            "layer": pd.array([p[1] if p else None for p, _ in ordered], dtype="Int64"),
            "share": [n / resamples for _, n in ordered],
        }
    )


def candidate(table: pd.DataFrame, *, layer: int, position: int) -> Selection:
    """The named candidate, unfiltered."""
    rows = table[(table["layer"] == layer) & (table["position"] == position)]
    if rows.empty:
        raise MechsafetyError(f"layer {layer}, position {position} is not in the table of scores")
    return _selection(rows.iloc[0], rule="fixed", kl_bound=math.inf, kept=1, total=len(table), dropped={})


def nearest(table: pd.DataFrame, *, n_layers: int) -> Selection:
    """The usable candidate with the smallest KL, those that induce refusal first: what to try when a rule
    leaves none."""
    usable = table.dropna(subset=["bypass", "induce", "kl"])
    usable = usable[usable["layer"] < int(_LAST_FIFTH * n_layers)]
    if usable.empty:
        raise MechsafetyError(
            f"none of {len(table)} candidates below the last fifth of the layers has scores"
        )
    inducing = usable[usable["induce"] > 0]
    best = (
        (inducing if not inducing.empty else usable)
        .sort_values(["kl", "bypass", "layer", "position"])
        .iloc[0]
    )
    return _selection(best, rule="nearest", kl_bound=math.inf, kept=1, total=len(table), dropped={})


def _selection(
    row: Any, *, rule: str, kl_bound: float, kept: int, total: int, dropped: dict[str, int]
) -> Selection:
    return Selection(
        position=int(row["position"]),
        layer=int(row["layer"]),
        bypass=float(row["bypass"]),
        induce=float(row["induce"]),
        kl=float(row["kl"]),
        rule=rule,
        kl_bound=kl_bound,
        kept=kept,
        total=total,
        dropped=dropped,
    )


Filter = Callable[["pd.DataFrame"], "pd.Series"]
_STRICTER: dict[str, Filter] = {
    "induce not above 0": lambda t: t["induce"] > 0,
    "bypass not below 0": lambda t: t["bypass"] < 0,
}


def _filter(table: pd.DataFrame, *, n_layers: int, kl_bound: float) -> tuple[pd.DataFrame, dict[str, int]]:
    last = int(_LAST_FIFTH * n_layers)
    filters: dict[str, Filter] = {
        "NaN": lambda t: t[["bypass", "induce", "kl"]].notna().all(axis=1),
        f"layer >= {last}": lambda t: t["layer"] < last,
        f"KL > {kl_bound:g}": lambda t: t["kl"] <= kl_bound,
        "induce below 0": lambda t: t["induce"] >= 0,
    }
    return _dropping(table, filters)


def _dropping(table: pd.DataFrame, filters: Mapping[str, Filter]) -> tuple[pd.DataFrame, dict[str, int]]:
    """What passes every filter, and how many each dropped."""
    dropped: dict[str, int] = {}
    for name, keep in filters.items():
        passed = table[keep(table)]
        dropped[name] = len(table) - len(passed)
        table = passed
    return table, dropped


def _nothing_left(table: pd.DataFrame, *, n_layers: int, rule: str, dropped: dict[str, int]) -> str:
    drops = ", ".join(f"{n} by {name}" for name, n in dropped.items() if n)
    try:
        close = nearest(table, n_layers=n_layers)
    except MechsafetyError as error:
        return f"rule {rule!r} leaves none of {len(table)} candidates ({drops}); {error}"
    return (
        f"rule {rule!r} leaves none of {len(table)} candidates ({drops}); nearest is layer {close.layer}, position "
        f"{close.position} with bypass {close.bypass:.2f}, induce {close.induce:.2f}, KL {close.kl:.2f}"
    )
