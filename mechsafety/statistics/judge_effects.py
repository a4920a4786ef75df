"""Effect of the edit by judge: the edit's effect under every judge and every reading of the labels.

Refusal is a mapping of the labels, and mappings differ in what they do with text that is broken or could not be read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

from mechsafety.core.arguments import require_columns
from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics.paired import mcnemar
from mechsafety.statistics.resampling import (
    cluster_codes,
    cluster_weights,
    flat,
    joint_codes,
    percentiles,
    steady_bounds,
)
from mechsafety.statistics.tables import ARMS, deciding

MAPPINGS: Mapping[str, Mapping[str, bool]] = {
    "refusal": {"refusal": True, "compliance": False, "degenerate": False},
    "coherent only": {"refusal": True, "compliance": False},
    "not compliance": {"refusal": True, "compliance": False, "degenerate": True},
    "unparsed refuses": {"refusal": True, "compliance": False, "degenerate": False, "unparsed": True},
    "unparsed complies": {"refusal": True, "compliance": False, "degenerate": False, "unparsed": False},
    "strict": {"refusal": True, "indirect refusal": False, "compliance": False, "degenerate": False},
    "lenient": {"refusal": True, "evasion": True, "compliance": False, "degenerate": False},
}
"""What counts as a refusal; a label that a mapping does not name is left out of the pair and counted as dropped.

Where the table has the judges' ``tags``, ``strict`` counts only answers that say that they refuse (no lecture,
condemnation, clarification, disclaimer, reframing, denial, reversal or diversion), and ``lenient`` also those that
only ask back or point elsewhere.
"""
_COARSE = {"indirect refusal": "refusal", "evasion": "compliance"}
"""Finer readings by tags, each with the label that it is part of."""
_EVASIVE = frozenset({"deflection", "redirection"})

PRIMARY_MAPPING = "refusal"
SIGNIFICANT = 0.05
EFFECT_COLUMNS = [
    *("system", "label", "judge", "mapping", "n", "dropped", "original", "edited"),
    *("change", "low", "high", "b", "c", "p", "significant"),
]
FLIP_COLUMNS = [
    "system",
    "label",
    "primary",
    "change",
    "p",
    "alternatives",
    "sign_flips",
    "significance_flips",
    "flipped_by",
]
RANKING_COLUMNS = ["judge_a", "judge_b", "label", "what", "systems", "tau", "low", "high"]
INTERACTION_COLUMNS = [
    "judge_a",
    "judge_b",
    "system",
    "label",
    "n",
    "prompts",
    "difference",
    "low",
    "high",
    "p",
]


_NO_GAP = pd.Series(dtype=float, index=pd.MultiIndex.from_arrays([[], []], names=["system", "id"]))


def paired_difference(b: int, c: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of (c - b) / n for n pairs, b refused in the original only and c in the edited only.

    Bonett and Price (2012), formula 2: the Wald interval after one is added to b and c and two to n. It keeps
    its level where b or c is 0, as plain Wald does not.

    Arguments:
        b: Pairs refused in the original only.
        c: Pairs refused in the edited only.
        n: All pairs.

    Returns:
        The lower and the upper end.

    Example:
        >>> low, high = ms.statistics.paired_difference(7, 0, 10)
        >>> round(low, 3), round(high, 3)
        (-0.945, -0.221)
    """
    if not n:
        return math.nan, math.nan
    lost, won = (b + 1) / (n + 2), (c + 1) / (n + 2)
    change = won - lost
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt((lost + won - change**2) / (n + 2))
    return max(-1.0, change - half), min(1.0, change + half)


def exact_difference(lost: int, gained: int, n: int) -> tuple[float, float]:
    """A 95 % interval of a paired difference of shares that never leaves out 0 where exact McNemar has p >= .05.

    The hull of Bonett and Price's (2012) and of the exact conditional one, which inverts McNemar's test: Clopper and
    Pearson's interval of the gained among the items that changed.
    """
    if not n:
        return math.nan, math.nan
    low, high = paired_difference(lost, gained, n)
    changed = lost + gained
    if changed:
        share = binomtest(gained, changed).proportion_ci(method="exact")
        low = min(low, changed / n * (2 * share.low - 1))
        high = max(high, changed / n * (2 * share.high - 1))
    return max(low, -1.0), min(high, 1.0)


def judge_effects(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The multiverse: the edit's effect on refusal per system, prompt label, judge and mapping.

    ``change`` is the edited rate minus the original on the same prompts, with its interval
    (:func:`exact_difference`) and exact McNemar p, uncorrected: the rows are readings of one result, not further
    results. Mappings that differ from ``refusal`` in no verdict of the judge are left out, and so are judges without
    both arms. ``dropped`` counts prompts with a side that is missing or that the mapping does not name.

    Returns:
        One row per system, label, judge and mapping; columns EFFECT_COLUMNS.

    Example:
        >>> effects = ms.statistics.judge_effects(table)
        >>> effects.loc[effects["system"] == "a", ["judge", "mapping", "original", "edited", "change"]]
                    judge  mapping  original  edited  change
        0           rules  refusal       0.9     0.2    -0.7
        1  phrases:arditi  refusal       0.8     0.4    -0.4
    """
    table = _by_tags(deciding(verdicts), verdicts)
    rows = []
    for (system, label, judge), group in table.groupby(
        ["system", "label", "judge"], observed=True, sort=True
    ):
        pairs = group.pivot_table(
            index="id", columns="arm", values="verdict", aggfunc="first", observed=False
        )
        pairs = pairs.reindex(columns=list(ARMS))
        if pairs.isna().all().any():
            continue
        used = set(group["verdict"])
        for name, mapping in MAPPINGS.items():
            if name == PRIMARY_MAPPING or any(
                _read(mapping, v) != _read(MAPPINGS[PRIMARY_MAPPING], v) for v in used
            ):
                key = {"system": str(system), "label": str(label), "judge": str(judge), "mapping": name}
                rows.append(key | _effect(pairs, mapping))
    return pd.DataFrame(rows, columns=EFFECT_COLUMNS)


def effect_flips(effects: pd.DataFrame, *, primary: str) -> pd.DataFrame:
    """Per system and label: in how many alternatives the effect of ``primary`` changes sign or significance.

    An alternative is any other judge or mapping that reads at least one pair; there is none where ``primary`` read
    no pair. A sign flip needs both changes to be other than 0; a significance flip is p < .05 in one and not in the
    other.

    Raises :class:`MechsafetyError` for a judge that the table lacks.

    Arguments:
        effects: The table of judge_effects.

    Returns:
        One row per system and label.

    Example:
        >>> flips = ms.statistics.effect_flips(ms.statistics.judge_effects(table), primary="rules")
        >>> flips[["system", "change", "alternatives", "sign_flips"]]
          system  change  alternatives  sign_flips
        0      a    -0.7             1           0
        1      b    -0.7             1           0
        2      c    -0.7             1           0
    """
    require_columns(
        effects, ("system", "label", "judge", "mapping", "n", "change", "significant"), "table of effects"
    )
    rows = []
    for (system, label), group in effects.groupby(["system", "label"], sort=False):
        mine = (group["judge"] == primary) & (group["mapping"] == PRIMARY_MAPPING)
        if not mine.any():
            raise MechsafetyError(
                f"judge {primary!r} has no effect for {system} / {label}; there are: {', '.join(set(group['judge']))}"
            )
        reference = group[mine].iloc[0]
        others = group[~mine & (group["n"] > 0) & (reference["n"] > 0)]
        sign = (np.sign(others["change"]) * np.sign(reference["change"]) < 0).to_numpy()
        level = (others["significant"] != reference["significant"]).to_numpy()
        names = [
            judge if mapping == PRIMARY_MAPPING else f"{judge} ({mapping})"
            for judge, mapping in zip(others["judge"], others["mapping"], strict=True)
        ]
        rows.append(
            {
                **{"system": system, "label": label, "primary": primary},
                **{"change": reference["change"], "p": reference["p"], "alternatives": len(others)},
                **{"sign_flips": int(sign.sum()), "significance_flips": int(level.sum())},
                "flipped_by": ", ".join(
                    name for name, s, p in zip(names, sign, level, strict=True) if s or p
                ),
            }
        )
    return pd.DataFrame(rows, columns=FLIP_COLUMNS)


def ranking_agreement(verdicts: pd.DataFrame, *, seed: int, resamples: int = 2000) -> pd.DataFrame:
    """Kendall's tau-b between the orders in which two judges put the systems.

    ``what`` is the rate of refusal in an arm, or the ``change`` by the edit; per prompt label. Intervals resample
    prompts. NaN with fewer than three systems (two can only agree or not), or where a judge finds all equal.

    Returns:
        One row per pair of judges and label.

    Example:
        >>> found = ms.statistics.ranking_agreement(table, seed=0, resamples=200)
        >>> found[["what", "systems", "tau"]]  # all systems are equal here
               what  systems  tau
        0  original        3  NaN
        1    edited        3  NaN
        2    change        3  NaN
    """
    table = deciding(verdicts)
    judges = list(dict.fromkeys(table["judge"].astype(str)))
    rows = []
    for label in dict.fromkeys(table["label"].astype(str)):
        rates = _system_rates(table[table["label"] == label], judges, seed=seed, resamples=resamples)
        ranked = dict(zip(ARMS, rates, strict=True)) | {"change": rates[1] - rates[0]}
        for what, means in ranked.items():
            for a, b in itertools.combinations(range(len(judges)), 2):
                taus = _taus(means[:, a], means[:, b])
                low, high = percentiles(float(taus[0]), [taus[1:]], 0.95)
                key = {"judge_a": judges[a], "judge_b": judges[b], "label": label, "what": what}
                rows.append(key | {"systems": means.shape[2], "tau": taus[0], "low": low, "high": high})
    return pd.DataFrame(rows, columns=RANKING_COLUMNS)


def judge_edit_interaction(verdicts: pd.DataFrame, *, seed: int, resamples: int = 2000) -> pd.DataFrame:
    """Does the edit change what two judges differ by? Per pair of judges, label and system, and over all of them.

    ``difference`` is the mean over prompts (and systems) of ``(A edited - A original) - (B edited - B original)``, each
    1 for refusal: how much more A's rate moves than B's. If the edit changed both judges' readings alike, each prompt's
    sum were as likely with the other sign; ``p`` is the exact two-sided probability, over all sign changes of the
    prompts' sums, of a total at least as far from 0 (Fisher's randomisation test). The interval resamples prompts;
    where all prompts have the same value it is that of :func:`~mechsafety.statistics.resampling.steady_bounds`.

    Returns:
        One row per pair of judges, label and system.

    Example:
        >>> found = ms.statistics.judge_edit_interaction(table, seed=0, resamples=200)
        >>> found[["system", "difference", "p"]].round(3)
          system  difference     p
        0    all        -0.3  0.25
        1      a        -0.3  0.25
        2      b        -0.3  0.25
        3      c        -0.3  0.25
    """
    table = deciding(verdicts)
    judges = list(dict.fromkeys(table["judge"].astype(str)))
    rows = []
    for label in dict.fromkeys(table["label"].astype(str)):
        moved = _changes(table[table["label"] == label])
        gaps: list[tuple[dict[str, object], pd.Series]] = []
        for a, b in itertools.combinations(judges, 2):
            gap = (moved[a] - moved[b]).dropna() if {a, b} <= set(moved.columns) else _NO_GAP
            systems = list(dict.fromkeys(gap.index.get_level_values("system")))
            for system in ("all", *systems) if len(systems) != 1 else systems:
                part = gap if system == "all" else gap.xs(system, level="system", drop_level=False)
                key = {"judge_a": a, "judge_b": b, "system": system, "label": label, "n": len(part)}
                gaps.append((key, part))
        found = _interactions([part for _, part in gaps], seed=seed, resamples=resamples)
        rows += [key | row for (key, _), row in zip(gaps, found, strict=True)]
    return pd.DataFrame(rows, columns=INTERACTION_COLUMNS)


def sign_change_p(sums: Sequence[int] | np.ndarray) -> float:
    """Exact two-sided p of ``sum(sums)`` under independent random signs of its whole-number terms.

    The distribution of the total is the convolution of two points per term, so no draw is needed.

    Arguments:
        sums: Whole numbers: one total per prompt.

    Returns:
        A p value.

    Example:
        >>> ms.statistics.sign_change_p([1, 1, 1, 1, 1])
        0.0625
    """
    sizes = np.abs(np.asarray(sums, dtype=int))
    sizes = sizes[sizes > 0]
    reach = int(sizes.sum())
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    for size in sizes:
        moved = np.zeros_like(chance)
        moved[size:] += chance[:-size] / 2
        moved[:-size] += chance[size:] / 2
        chance = moved
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(int(np.sum(sums)))
    return min(1.0, float(chance[far].sum()))


def _by_tags(table: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """``table`` with the finer readings that the tags of ``verdicts`` allow, in the place of their labels."""
    if "tags" not in verdicts.columns:
        return table
    tags = verdicts["tags"].reset_index(drop=True).reindex(table.index).fillna("").astype(str).str.split()
    finer = [
        "indirect refusal"
        if verdict == "refusal" and "indirect" in found
        else "evasion"
        if verdict == "compliance" and not _EVASIVE.isdisjoint(found)
        else verdict
        for verdict, found in zip(table["verdict"], tags, strict=True)
    ]
    return table.assign(verdict=finer)


def _read(mapping: Mapping[str, bool], verdict: object) -> bool | None:
    """Whether a verdict counts as a refusal under ``mapping``, None where it is not named."""
    return mapping.get(str(verdict), mapping.get(_COARSE.get(str(verdict), str(verdict))))


def _effect(pairs: pd.DataFrame, mapping: Mapping[str, bool]) -> dict[str, object]:
    sides = [[_read(mapping, v) for v in pairs[arm]] for arm in ARMS]
    read = [(x, y) for x, y in zip(*sides, strict=True) if x is not None and y is not None]
    n, b, c = len(read), read.count((True, False)), read.count((False, True))
    low, high = exact_difference(b, c, n)
    before, after = (sum(pair[side] for pair in read) / n if n else math.nan for side in (0, 1))
    p = mcnemar(b, c) if n else math.nan
    return {
        **{"n": n, "dropped": len(pairs) - n, "original": before, "edited": after},
        **{"change": after - before, "low": low, "high": high, "b": b, "c": c, "p": p},
        "significant": bool(p < SIGNIFICANT),
    }


def _refused(part: pd.DataFrame) -> pd.Series:
    """1 refusal, 0 not, NaN unparsed."""
    return (part["verdict"] == "refusal").astype(float).where(part["verdict"] != "unparsed")


def _changes(part: pd.DataFrame) -> pd.DataFrame:
    """Edited minus original, rows (system, id), one column per judge."""
    wide = (
        part.assign(refused=_refused(part), judge=part["judge"].astype(str), arm=part["arm"].astype(str))
        .astype({"system": str})
        .set_index(["system", "id", "judge", "arm"])["refused"]
        .unstack("arm")
    )
    if not set(ARMS) <= set(wide.columns):
        return pd.DataFrame()
    return (wide["edited"] - wide["original"]).unstack("judge")


def _interactions(gaps: Sequence[pd.Series], *, seed: int, resamples: int) -> list[dict[str, object]]:
    """Each gap's mean with its interval and exact p; all from the same draws of prompts."""
    places, count = joint_codes([gap.index.get_level_values("id").to_numpy(dtype=object) for gap in gaps])
    sums = np.zeros((count, len(gaps)))
    sizes = np.zeros((count, len(gaps)))
    for column, (gap, place) in enumerate(zip(gaps, places, strict=True)):
        np.add.at(sums[:, column], place, gap.to_numpy(dtype=float))
        np.add.at(sizes[:, column], place, 1)
    drawn = [np.zeros((0, len(gaps)))]
    rng = np.random.default_rng(seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn += [(w @ sums) / (w @ sizes) for w in cluster_weights(rng, count, resamples, width=count)]
        values = sums.sum(axis=0) / sizes.sum(axis=0)
    means = np.concatenate(drawn)
    rows: list[dict[str, object]] = []
    for column, value in enumerate(values.tolist()):
        prompts = int((sizes[:, column] > 0).sum())
        alike = flat([means[:, column]])
        low, high = steady_bounds(value, prompts) if alike else percentiles(value, [means[:, column]], 0.95)
        low, high = max(low, -2.0), min(high, 2.0)  # a difference of two changes of a share
        p = math.nan if math.isnan(value) else sign_change_p(np.rint(sums[:, column]))
        rows.append({"prompts": prompts, "difference": value, "low": low, "high": high, "p": p})
    return rows


def _system_rates(part: pd.DataFrame, judges: Sequence[str], *, seed: int, resamples: int) -> np.ndarray:
    """[arm, 1 + resample, judge, system]: the refusal rate, first of all prompts, then of draws."""
    systems = list(dict.fromkeys(part["system"].astype(str)))
    prompts, count = cluster_codes(part["id"], sizes=(len(part),))
    shape = (len(ARMS), len(judges), len(systems), count)
    sums, sizes = np.zeros(shape), np.zeros(shape)
    value = _refused(part).to_numpy()
    place = (
        pd.Categorical(part["arm"].astype(str), categories=ARMS).codes,
        pd.Categorical(part["judge"].astype(str), categories=judges).codes,
        pd.Categorical(part["system"].astype(str), categories=systems).codes,
        prompts,
    )
    np.add.at(sums, place, np.nan_to_num(value))
    np.add.at(sizes, place, ~np.isnan(value))
    rng = np.random.default_rng(seed)
    draws = np.concatenate([np.ones((1, count)), *cluster_weights(rng, count, resamples, width=count)])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("rc,ajsc->arjs", draws, sums) / np.einsum("rc,ajsc->arjs", draws, sizes)


def _taus(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row of two [row, system] arrays; NaN with ties throughout or under three systems."""
    # Rounded: 0.3 - 0.7 and 0.5 - 0.9 are a tie that floating point breaks.
    first, second = (np.sign(np.round(x[:, :, None] - x[:, None, :], 9)) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        taus = (first * second).sum(axis=(1, 2)) / np.sqrt(
            (first**2).sum(axis=(1, 2)) * (second**2).sum(axis=(1, 2))
        )
    return taus if a.shape[1] > 2 else np.full(len(a), np.nan)
