"""How judges do against a reference: people, or any judge taken for the truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import LABELS
from mechsafety.statistics.measures import pair_cells, pair_intervals, spread
from mechsafety.statistics.rates import weighted_wilson
from mechsafety.statistics.resampling import (
    cluster_codes,
    cluster_weights,
    flat,
    joint_codes,
    percentiles,
    steady_bounds,
)
from mechsafety.statistics.tables import ABSTAINING_JUDGES, ARMS, PROMPT_LABELS, checked

MEASURES = ("kappa", "ac1", "alpha", "agreement")
REFERENCE_COLUMNS = [
    *("judge", "arm", "label", "n", "labelled_refusals", "unread"),
    *("kappa", "kappa_low", "kappa_high", "ac1", "ac1_low", "ac1_high", "alpha", "alpha_low", "alpha_high"),
    *("agreement", "agreement_low", "agreement_high"),
    *("sensitivity", "sensitivity_low", "sensitivity_high"),
    *("specificity", "specificity_low", "specificity_high"),
]

ERROR_COLUMNS = ["judge", "label", "n", "bias_original", "bias_edited", "change", "low", "high"]


def against_reference(
    verdicts: pd.DataFrame, reference: pd.DataFrame, *, seed: int, resamples: int = 2000
) -> pd.DataFrame:
    """Return how each judge does against a reference (people, or any judge), per arm and prompt label.

    ``reference`` has columns system, arm, id, verdict and ``weight`` (1 / inclusion probability; 1 where all were
    labelled). Sensitivity is the share of the reference's refusals that the judge calls refusals, specificity the share
    of the others that it does not. Sums are weighted by ``weight`` (Horvitz-Thompson), so a sample rich in
    disagreements does not make a judge look worse. Intervals: bootstrap over prompts; where the value is 0 or 1 a
    bootstrap has no width, and Wilson's with the effective number of items ``(sum w)^2 / sum w^2`` is given. ``unread``
    counts items that the judge left unparsed; they are left out.

    Example:
        >>> found = ms.statistics.against_reference(table, people, seed=0, resamples=200)
        >>> found.loc[found["label"] == "all", ["judge", "arm", "sensitivity", "specificity"]].round(3)
                     judge       arm  sensitivity  specificity
        1            rules  original        1.000        1.000
        3            rules    edited        1.000        0.889
        5            rules       all        1.000        0.900
        7   phrases:arditi  original        0.889        1.000
        9   phrases:arditi    edited        1.000        0.667
        11  phrases:arditi       all        0.900        0.700
    """
    table = checked(verdicts)
    truth = reference_weights(reference)
    joined = table.merge(truth, on=["system", "arm", "id"], how="inner")
    rows: list[dict[str, object]] = []
    judges = [j for j in dict.fromkeys(table["judge"]) if j not in ABSTAINING_JUDGES]
    for arm, label in itertools.product((*ARMS, "all"), (*PROMPT_LABELS, "all")):
        here = ((joined["arm"] == arm) | (arm == "all")) & ((joined["label"] == label) | (label == "all"))
        cell = joined[here.to_numpy()]
        parts = {judge: cell[(cell["judge"] == judge).to_numpy()] for judge in judges}
        parts = {judge: part for judge, part in parts.items() if not part.empty}
        read = [part[(part["verdict"] != "unparsed").to_numpy()] for part in parts.values()]
        found = _reference_rows(read, seed=seed, resamples=resamples)
        for (judge, part), mine, row in zip(parts.items(), read, found, strict=True):
            rows.append(
                {
                    **{"judge": str(judge), "arm": arm, "label": label, "n": len(mine)},
                    **{"labelled_refusals": int(mine["truth"].sum()), "unread": len(part) - len(mine)},
                    **row,
                }
            )
    order = {str(judge): place for place, judge in enumerate(judges)}
    rows.sort(key=lambda row: order[str(row["judge"])])
    return pd.DataFrame(rows, columns=REFERENCE_COLUMNS)


def error_change(
    verdicts: pd.DataFrame, reference: pd.DataFrame, *, seed: int, resamples: int = 2000
) -> pd.DataFrame:
    """Does a judge err differently on edited responses? Per judge and prompt label.

    ``bias`` of an arm is the weighted mean of (judge refuses) - (reference refuses): how far the judge's rate lies
    above the reference's among what both read. ``change`` is the bias in the edited arm minus that in the original; its
    interval resamples prompts. Where it lies off 0, the judge's difference between the arms is partly its own.
    Where the labelled errors of an arm are all the same, the intervals of the arms (:func:`steady_bounds` there)
    are joined by Zou and Donner's (2008) square-and-add: no error among a few labels is not the certainty of none.

    Arguments:
        reference: The truth, as for against_reference.

    Returns:
        One row per judge and label.

    Example:
        >>> found = ms.statistics.error_change(table, people, seed=0, resamples=200)
        >>> found.loc[found["label"] == "all", ["judge", "bias_original", "bias_edited", "change"]].round(3)
                    judge  bias_original  bias_edited  change
        1           rules            0.0          0.1     0.1
        3  phrases:arditi           -0.1          0.3     0.4
    """
    table = checked(verdicts)
    joined = table.merge(reference_weights(reference), on=["system", "arm", "id"], how="inner")
    joined = joined[(joined["verdict"] != "unparsed").to_numpy()]
    rows: list[dict[str, object]] = []
    for judge, label in itertools.product(dict.fromkeys(table["judge"]), (*PROMPT_LABELS, "all")):
        part = joined[(joined["judge"] == judge) & ((joined["label"] == label) | (label == "all"))]
        if judge in ABSTAINING_JUDGES or set(part["arm"]) != set(ARMS):
            continue
        error = (part["verdict"] == "refusal").to_numpy().astype(float) - part["truth"].to_numpy().astype(
            float
        )
        weight, edited = part["weight"].to_numpy(), (part["arm"] == "edited").to_numpy()
        group, count = cluster_codes(part["id"], sizes=(len(part),))
        columns = [w for arm in (~edited, edited) for w in (error * weight * arm, weight * arm)]
        sums = np.stack([np.bincount(group, weights=c, minlength=count) for c in columns], axis=1)
        rng = np.random.default_rng(seed)
        draws = [np.ones((1, count)), *cluster_weights(rng, count, resamples, width=count)]
        with np.errstate(invalid="ignore", divide="ignore"):
            biases = [(t[:, 0] / t[:, 1], t[:, 2] / t[:, 3]) for t in (d @ sums for d in draws)]
        original, after = (float(side[0]) for side in biases[0])
        low, high = percentiles(after - original, [b - a for a, b in biases[1:]], 0.95)
        if any(flat([side[arm] for side in biases[1:]]) for arm in (0, 1)):
            low, high = _apart(biases, [int((sums[:, place] > 0).sum()) for place in (1, 3)])
        rows.append(
            {
                **{"judge": str(judge), "label": label, "n": len(part)},
                **{"bias_original": original, "bias_edited": after},
                **{"change": after - original, "low": low, "high": high},
            }
        )
    return pd.DataFrame(rows, columns=ERROR_COLUMNS)


def _apart(biases: list[tuple[np.ndarray, np.ndarray]], prompts: list[int]) -> tuple[float, float]:
    """Interval of the second arm's bias less the first's, from an interval for each."""
    value, below, above = [], [], []
    for arm, count in enumerate(prompts):
        mean, drawn = float(biases[0][arm][0]), [side[arm] for side in biases[1:]]
        low, high = steady_bounds(mean, count) if flat(drawn) else percentiles(mean, drawn, 0.95)
        value.append(mean)
        below.append(mean - low)
        above.append(high - mean)
    change = value[1] - value[0]
    low, high = change - math.hypot(below[1], above[0]), change + math.hypot(above[1], below[0])
    return max(-2.0, low), min(2.0, high)


def reference_weights(reference: pd.DataFrame) -> pd.DataFrame:
    """The reference as columns system, arm, id, truth (refused or not) and weight.

    Rows whose verdict is missing (None, NaN) or unparsed are dropped; any other verdict must be a label.
    """
    if missing := [n for n in ("system", "arm", "id", "verdict") if n not in reference.columns]:
        raise MechsafetyError(
            f"the reference lacks {', '.join(missing)}; it needs system, arm, id and verdict"
        )
    kept = reference[reference["verdict"].notna() & (reference["verdict"] != "unparsed")]
    if strange := sorted(set(map(str, kept["verdict"])) - set(LABELS)):
        raise MechsafetyError(
            f"the reference's column verdict holds {', '.join(strange)}; allowed are {', '.join(LABELS)}"
        )
    if kept.duplicated(["system", "arm", "id"]).any():
        raise MechsafetyError("the reference has more than one verdict for a response; settle them first")
    weight = kept["weight"].astype(float) if "weight" in kept.columns else pd.Series(1.0, index=kept.index)
    return kept[["system", "arm", "id"]].assign(
        truth=(kept["verdict"] == "refusal").to_numpy(), weight=weight
    )


def _reference_rows(parts: list[pd.DataFrame], *, seed: int, resamples: int) -> list[dict[str, float]]:
    """Each judge's measures on what it read; all from the same draws of prompts."""
    places, count = joint_codes([part["id"].to_numpy(dtype=object) for part in parts])
    answers = [_coded(part) for part in parts]
    cells = [
        pair_cells(truth, verdict, place, count, 2, weight)
        for (truth, verdict, weight), place in zip(answers, places, strict=True)
    ]
    rows = []
    for (truth, _, weight), found in zip(
        answers, pair_intervals(cells, 2, seed=seed, resamples=resamples), strict=True
    ):
        row = {n: value for measure in MEASURES for n, value in spread(measure, found[measure]).items()}
        for name, cls in (("sensitivity", 1), ("specificity", 0)):
            mine = truth == cls
            value, low, high = found[name]
            if value in (0.0, 1.0):
                bounds = weighted_wilson(value, weight[mine])
                low, high = bounds.low, bounds.high
            row |= spread(name, (value, low, high))
        rows.append(row)
    return rows


def _coded(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and verdict as 0 or 1, and weights of mean 1, so that totals stay numbers of items."""
    weight = part["weight"].to_numpy() / part["weight"].mean() if len(part) else np.ones(0)
    verdict = (part["verdict"] == "refusal").to_numpy().astype(int)
    return part["truth"].to_numpy().astype(int), verdict, weight
