"""Statistics of raw rows, from scipy, statsmodels and scikit-learn alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import sqrt

from scipy import stats
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from tests.claims.facts import UNREAD, Change, Items, Labels

ALPHA = 0.05


@dataclass(frozen=True)
class Share:
    """Hits of the items that count, and how many of the rest could not be read.

    `pooled` are items of different worlds counted together, which have no interval.
    """

    hits: int
    n: int
    unread: int
    pooled: bool = False

    @property
    def share(self) -> Fraction:
        """Hits over items."""
        return Fraction(self.hits, self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        low, high = proportion_confint(self.hits, self.n, method="wilson")
        return (0.0 if self.hits == 0 else float(low)), (1.0 if self.hits == self.n else float(high))


def share_of(items: Items, among: set | None = None, of: set | None = None) -> Share:
    """The share of read items (among some of them); unread are those of `of` that this state could not read."""
    read = {item for item, hit in items.items() if hit is not None}
    counted = read if among is None else read & among
    return Share(sum(bool(items[item]) for item in counted), len(counted), len((of or set(items)) - read))


def read_in_both(one: Items, other: Items) -> set:
    """Items that both states could read."""
    return {i for i, hit in one.items() if hit is not None and other.get(i) is not None}


def discordant(before: Items, after: Items) -> tuple[int, int, int]:
    """Items that only the first state, only the second, and both could read: lost, won, n."""
    both = read_in_both(before, after)
    lost = sum(bool(before[i]) and not after[i] for i in both)
    return lost, sum(bool(after[i]) and not before[i] for i in both), len(both)


@lru_cache(maxsize=100_000)
def mcnemar(lost: int, won: int) -> float:
    """Exact McNemar: the two-sided sign test of the pairs that differ."""
    return 1.0 if lost + won == 0 else float(stats.binomtest(lost, lost + won, 0.5).pvalue)


@lru_cache(maxsize=100_000)
def paired_interval(lost: int, won: int, n: int) -> tuple[float, float]:
    """Hull of Bonett and Price's interval (2012) and of the exact conditional one of the pairs that differ."""
    p_won, p_lost = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = p_won - p_lost
    half = stats.norm.ppf(1 - ALPHA / 2) * sqrt((p_won + p_lost - centre**2) / (n + 2))
    lows, highs = [max(-1.0, centre - half)], [min(1.0, centre + half)]
    differ = lost + won
    exact = stats.binomtest(won, differ).proportion_ci(1 - ALPHA, "exact") if differ else None
    lows.append((2 * exact.low - 1) * differ / n if exact else 0.0)
    highs.append((2 * exact.high - 1) * differ / n if exact else 0.0)
    return float(min(lows)), float(max(highs))


def unpaired_test(one: Share, other: Share) -> str:
    """Boschloo's exact test, or Fisher's for counts with more than 60 000 possible outcomes (statistics/counts.py)."""
    return "Fisher" if (one.n + 1) * (other.n + 1) > 60_000 else "Boschloo"


@lru_cache(maxsize=10_000)
def unpaired_p(one: Share, other: Share) -> float:
    """The exact p of two shares of different items."""
    if one.hits + other.hits in (0, one.n + other.n):
        return 1.0
    table = [[one.hits, other.hits], [one.n - one.hits, other.n - other.hits]]
    exact = stats.fisher_exact if unpaired_test(one, other) == "Fisher" else stats.boschloo_exact
    return min(float(exact(table).pvalue), 1.0)


def unpaired_interval(one: Share, other: Share, p: float) -> tuple[float, float]:
    """Newcombe's interval of second minus first, widened to 0 beside p >= .05."""
    low, high = confint_proportions_2indep(
        other.hits, other.n, one.hits, one.n, compare="diff", method="newcomb"
    )
    low, high = max(-1.0, float(low)), min(1.0, float(high))
    return (min(low, 0.0), max(high, 0.0)) if p >= ALPHA else (low, high)


def smallest_p(change: Change) -> float:
    """The smallest p that so many read items can give."""
    if change.paired:
        return mcnemar(len(read_in_both(change.before, change.after)), 0)
    one, other = share_of(change.before), share_of(change.after)
    if one.n * other.n > 10_000:  # far below .05, and slow to compute
        return 0.0
    ends = ((0, other.n), (one.n, 0))
    return min(unpaired_p(Share(a, one.n, 0), Share(b, other.n, 0)) for a, b in ends)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction, as statsmodels' `multipletests` has it (held by a test), which collects garbage at every call."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, at in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = adjusted[at] = max(least, min(1.0, (len(ps) - rank) * ps[at]))
    return adjusted


def flows(before: Labels, after: Labels) -> dict[tuple[str, str], int]:
    """How many items went from one verdict to another one."""
    found: dict[tuple[str, str], int] = {}
    for item, label in before.items():
        if item in after and after[item] != label:
            found[label, after[item]] = found.get((label, after[item]), 0) + 1
    return found


def disagreement(one: Labels, other: Labels) -> tuple[Share, float | None]:
    """Answers that two judges label differently of those that both read, and kappa (None where it is undefined)."""
    pairs = [(one[i], other[i]) for i in one if i in other]
    read = [(a, b) for a, b in pairs if UNREAD not in (a, b)]
    share = Share(sum(a != b for a, b in read), len(read), len(pairs) - len(read))
    if not read or min(len(set(of_one)) for of_one in zip(*read, strict=True)) < 2:
        return share, None
    return share, float(cohen_kappa_score([a for a, _ in read], [b for _, b in read]))
