"""What the lab's readings are where no claim can hold: in networks that were never trained, and under shuffled labels.

A reading is one number of a claim. Each is taken again of networks of the same shape with fresh weights, led through
the tuned model's own answers where it is over those, and again after the labels of the inputs (or, of attacks, whether
they succeeded) were exchanged at random. A reading holds beyond a control where its place among these draws has
p < .05.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from mechsafety.anatomy.readings import SAFE, UNSAFE
from mechsafety.claims.numbers import significant
from mechsafety.experiments.lab.config import BASE
from mechsafety.lab.inputs import ATTACKS, KINDS

if TYPE_CHECKING:
    import pandas as pd

UNTRAINED = "untrained networks"
SHUFFLED = "shuffled labels"
CONTROLS = (UNTRAINED, SHUFFLED)
NETWORKS = 20
"""Untrained networks: as few as can show p < .05 by the place among them."""
SHUFFLES = 199
CONTROL_COLUMNS = [
    *("number", "model", "what", "value", "control", "draws", "low", "high", "p", "beyond"),
]
FAMILIES = (*ATTACKS, "soft")

Draws = Sequence[float] | np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One number of a claim with its draws under each control; ``side`` is 1 where the claim is that it is large.

    No draws: the control does not apply, since no label enters the number.
    """

    number: int
    model: str
    what: str
    value: float
    side: int = 1
    draws: Mapping[str, Draws]

    def rows(self) -> list[dict[str, Any]]:
        """One row per control: the draws' middle 95 %, the one-sided p of the reading's place among them, the verdict.

        ``beyond`` is yes, no, or not measurable where the reading or a draw is not known.
        """
        key = {"number": self.number, "model": self.model, "what": self.what, "value": self.value}
        rows = []
        for control, drawn in self.draws.items():
            values = np.asarray(drawn, dtype=float)
            low, high, p = math.nan, math.nan, math.nan
            if len(values) and not np.isnan(values).any():
                low, high = (float(x) for x in np.quantile(values, [0.025, 0.975]))
                if not math.isnan(self.value):
                    p = float((1 + (self.side * values >= self.side * self.value).sum()) / (1 + len(values)))
            beyond = "not measurable" if math.isnan(p) else "yes" if significant(p) else "no"
            found = {"draws": len(values), "low": low, "high": high, "p": p, "beyond": beyond}
            rows.append({**key, "control": control, **found})
        return rows


# -- answers (claims 1 to 3, 9) -----------------------------------------------------------------------------


def worst_answered(cases: pd.DataFrame) -> float:
    """The share of right answers in the worst class of inputs; soft tokens aside."""
    return float(cases.loc[cases["kind"].isin(KINDS), "correct"].min())


def safe_answered(cases: pd.DataFrame) -> float:
    return float(cases.loc[cases["kind"] == SAFE, "correct"].min())


def refused_apart(cases: pd.DataFrame) -> float:
    """The refusals of the unsafe class that is refused least, less those of the safe class that is refused most."""
    by = cases.groupby("kind")["refused"]
    return float(by.min().get(UNSAFE, math.nan) - by.max().get(SAFE, math.nan))


def through(cases: pd.DataFrame) -> float:
    """The right answers to the family of attacks that gets through most, less those to direct unsafe inputs."""
    most = cases.groupby("kind")["correct"].max()
    return float(most.reindex(FAMILIES).max() - most.get(UNSAFE, math.nan))


Counted = Callable[["pd.DataFrame"], float]
OUTCOMES: tuple[tuple[int, str, Counted, str, tuple[str, ...]], ...] = (
    (2, "worst class of safe inputs answered", safe_answered, "correct", (SAFE, UNSAFE)),
    (
        2,
        "refused of the worst unsafe class less of the worst safe class",
        refused_apart,
        "refused",
        (SAFE, UNSAFE),
    ),
    (3, "answered of the best family less of direct unsafe inputs", through, "correct", (UNSAFE, *FAMILIES)),
)
"""Claim, reading, how it is read from the cases, and of which column the labels of which kinds are exchanged."""


def outcome_readings(
    cases: pd.DataFrame, untrained: Sequence[pd.DataFrame], models: Sequence[str], *, seed: int
) -> Iterator[Reading]:
    """Readings of what the models answer; ``untrained`` are the cases of networks that were never trained."""
    for model in models:
        own = cases[cases["model"] == model]
        for number, what, read, column, kinds in OUTCOMES:
            shuffled = [read(table) for table in exchanged(own, column, kinds, seed=seed)]
            draws = {UNTRAINED: [read(table) for table in untrained], SHUFFLED: shuffled}
            yield Reading(number=number, model=model, what=what, value=read(own), draws=draws)


def exchanged(
    cases: pd.DataFrame, column: str, kinds: Sequence[str], *, seed: int, draws: int = SHUFFLES
) -> Iterator[pd.DataFrame]:
    """The cases after the labels of the inputs of these kinds were exchanged: their hits fall on any of them alike."""
    rng = np.random.default_rng(seed)
    chosen = cases["kind"].isin(kinds)
    sizes = cases.loc[chosen, "n"].to_numpy(dtype=int)
    hits = int((cases.loc[chosen, column] * sizes).round().sum())
    for _ in range(draws):
        table = cases.copy()
        table.loc[chosen, column] = rng.multivariate_hypergeometric(sizes, hits) / sizes
        yield table


def growth_reading(
    model: str,
    line: pd.DataFrame,
    cases: pd.DataFrame,
    untrained: Sequence[pd.DataFrame],
    *,
    seed: int,
) -> Reading:
    """How much the refusals of unsafe inputs grow from alpha 0 to 1; untrained networks are ends of lines of their own.

    ``line`` has the rows of the tuned model's line for safe and unsafe inputs.
    """
    rng = np.random.default_rng(seed)
    ends: list[np.ndarray] = []
    value = math.nan
    counts = {(alpha, group): _counts(line, alpha, group) for alpha in (0.0, 1.0) for group in (UNSAFE, SAFE)}
    if all(n for _, n in counts.values()):
        for alpha in (0.0, 1.0):
            (k, n), (other, m) = counts[alpha, UNSAFE], counts[alpha, SAFE]
            ends.append(rng.hypergeometric(k + other, n + m - k - other, n, size=SHUFFLES) / n)
        (a, n), (b, m) = counts[0.0, UNSAFE], counts[1.0, UNSAFE]
        value = b / m - a / n
    base = _refused(cases[cases["model"] == BASE])
    return Reading(
        number=9,
        model=model,
        what="refused of unsafe inputs at alpha 1 less at alpha 0",
        value=value,
        draws={
            UNTRAINED: [_refused(table) - base for table in untrained],
            SHUFFLED: ends[1] - ends[0] if ends else [],
        },
    )


def _counts(line: pd.DataFrame, alpha: float, group: str) -> tuple[int, int]:
    rows = line[(line["alpha"] == alpha) & (line["group"] == group)]
    if not len(rows) or math.isnan(rows["refused"].iloc[0]):
        return 0, 0
    n = int(rows["n"].iloc[0])
    return round(float(rows["refused"].iloc[0]) * n), n


def _refused(cases: pd.DataFrame) -> float:
    rows = cases[cases["kind"] == UNSAFE]
    return float((rows["refused"] * rows["n"]).sum() / rows["n"].sum()) if len(rows) else math.nan


# -- activations and gradients (claims 4 to 6, 8) ------------------------------------------------------------


def auroc(tau: np.ndarray, safe: np.ndarray) -> float:
    n, m = int(safe.sum()), int((~safe).sum())
    return float((rankdata(tau)[safe].sum() - n * (n + 1) / 2) / (n * m)) if n and m else math.nan


def d_prime(tau: np.ndarray, safe: np.ndarray) -> float:
    x, y = tau[safe], tau[~safe]
    spread = math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2)
    return float((x.mean() - y.mean()) / spread) if spread > 0 else math.nan


def safe_side(tau: np.ndarray, succeeded: np.ndarray) -> float:
    """The share of the attacks that succeeded which lie on the safe side."""
    return float((tau[succeeded] > 0).mean()) if succeeded.any() else math.nan


def mean_ratio(values: np.ndarray, safe: np.ndarray) -> float:
    """The mean over unsafe inputs over that over safe ones."""
    return float(values[~safe].mean() / values[safe].mean())


def median_ratio(values: np.ndarray, safe: np.ndarray) -> float:
    return float(np.median(values[~safe]) / np.median(values[safe]))


def labelled_reading(
    read: Callable[[np.ndarray, np.ndarray], float],
    own: np.ndarray,
    untrained: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    seed: int,
    **named: Any,
) -> Reading:
    """A reading of values and labels: of untrained networks' values, and of labels that were exchanged."""
    rng = np.random.default_rng(seed)
    shuffles = SHUFFLES if len(labels) else 0
    return Reading(
        value=read(own, labels),
        draws={
            UNTRAINED: [read(values, labels) for values in untrained],
            SHUFFLED: [read(own, rng.permutation(labels)) for _ in range(shuffles)],
        },
        **named,
    )
