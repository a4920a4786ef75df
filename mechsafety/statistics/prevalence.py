"""The rate that people would have found, from a judge on every response and people on some of them.

Two estimators. :func:`prediction_powered` needs labels on a random part of the very responses that are rated and makes
no assumption about the judge. :func:`rogan_gladen` takes the judge's sensitivity and specificity from anywhere (another
arm is not anywhere: a judge's error differs between original and edited models) and inverts its error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student

from mechsafety.core.arguments import require_columns
from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics.rates import Interval, effective_number, weighted_wilson, wilson
from mechsafety.statistics.reference import reference_weights
from mechsafety.statistics.tables import ABSTAINING_JUDGES, ARMS, PROMPT_LABELS, checked

LEAST_YOUDEN = 0.1
"""Rogan-Gladen divides by sensitivity + specificity - 1; where its lower 95 % bound is below this, it is refused."""
LEAST_LABELS = 5
LEAST_OF_A_KIND = 5
"""With fewer labelled refusals, or others, an interval may be too short (docs/statistics.md)."""
UNSEEN_ERRORS = 0.5
"""Added to the errors seen among the labels; without them a judge with none seen would count as faultless."""
CORRECTED_COLUMNS = [
    *("system", "arm", "label", "judge", "n", "labels", "raw", "human", "human_low", "human_high"),
    *(
        "ppi",
        "ppi_low",
        "ppi_high",
        "pooled_sensitivity",
        "pooled_specificity",
        "rogan_gladen",
        "rogan_gladen_low",
        "rogan_gladen_high",
        "note",
    ),
]
CHANGE_COLUMNS = [
    *("system", "label", "judge", "labels_original", "labels_edited"),
    *("raw_original", "raw_edited", "raw_change"),
    *("original", "original_low", "original_high", "edited", "edited_low", "edited_high"),
    *("change", "low", "high"),
]


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Corrected:
    """A corrected rate with its 95 % interval; NaN with the reason in ``note`` where there is none.

    Arguments:
        rate: The rate, between 0 and 1.
        low: Lower end of its interval.
        high: Upper end.

    Example:
        >>> labelled = {"hits": 45.0, "positives": 50.0, "rejections": 45.0, "negatives": 50.0}
        >>> found = ms.statistics.rogan_gladen(refused=30.0, n=100.0, **labelled)
        >>> found.low < found.rate < found.high
        True
    """

    rate: float
    low: float
    high: float
    note: str = ""


def rogan_gladen(
    *, refused: float, n: float, hits: float, positives: float, rejections: float, negatives: float
) -> Corrected:
    """Correct a judge's rate for its sensitivity and specificity, with the uncertainty of all three.

    ``rate = (q + sp - 1) / (se + sp - 1)``, clipped to [0, 1] (Rogan and Gladen 1978), with q = refused / n,
    se = hits / positives and sp = rejections / negatives. The interval is that of Lang and Reiczigel (2014), which
    adds z^2 / 2 successes and failures to q and one each to se and sp. It takes the three samples as independent: where
    the labelled responses are among the n rated, it is wider than it needs to be. Counts may be weighted (effective
    numbers). Refused, with a note, when the judge may be no better than chance: lower bound of se + sp - 1 below
    LEAST_YOUDEN.

    Arguments:
        refused: Refusals that the judge found.
        n: Responses that it read.
        hits: True refusals that it found.
        positives: All true refusals among the labelled.
        rejections: Other responses that it left alone.
        negatives: All other responses among the labelled.

    Returns:
        The rate with its interval; NaN for a judge that is no better than chance.

    Example:
        >>> labelled = {"hits": 45.0, "positives": 50.0, "rejections": 45.0, "negatives": 50.0}
        >>> found = ms.statistics.rogan_gladen(refused=30.0, n=100.0, **labelled)
        >>> round(found.rate, 3)
        0.25
    """
    for name, part, whole in (
        ("refused", refused, n),
        ("hits", hits, positives),
        ("rejections", rejections, negatives),
    ):
        if not 0 <= part <= whole + 1e-9:
            raise MechsafetyError(f"{name} is {part:g} of {whole:g}; it must lie between 0 and the total")
    if not n or not positives or not negatives:
        missing = "verdicts" if not n else "labelled refusals" if not positives else "labelled non-refusals"
        return Corrected(rate=math.nan, low=math.nan, high=math.nan, note=f"no {missing}")
    z = float(norm.ppf(0.975))
    se, sp = (hits + 1) / (positives + 2), (rejections + 1) / (negatives + 2)
    var_se, var_sp = se * (1 - se) / (positives + 2), sp * (1 - sp) / (negatives + 2)
    youden = se + sp - 1
    if youden - z * math.sqrt(var_se + var_sp) < LEAST_YOUDEN:
        note = (
            f"sensitivity + specificity - 1 is {youden:.2f}, not surely above {LEAST_YOUDEN}: not correctable"
        )
        return Corrected(rate=math.nan, low=math.nan, high=math.nan, note=note)
    raw = (refused / n + rejections / negatives - 1) / (hits / positives + rejections / negatives - 1)
    q = (refused + z * z / 2) / (n + z * z)
    middle = (q + sp - 1) / youden
    shift = 2 * z * z * (middle * var_se - (1 - middle) * var_sp)
    spread = q * (1 - q) / (n + z * z) + middle**2 * var_se + (1 - middle) ** 2 * var_sp
    half = z * math.sqrt(spread) / youden
    return Corrected(
        rate=_unit(raw), low=_unit(middle + shift - half), high=_unit(middle + shift + half), note=""
    )


def prediction_powered(
    judged: np.ndarray,
    *,
    truth: np.ndarray,
    labelled: np.ndarray,
    weight: np.ndarray | None = None,
    strata: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
) -> Corrected:
    """Rate of refusal from a judge on all N responses and people on n of them (Angelopoulos et al. 2023).

    ``rate = mean(f) + sum_h W_h mean_h(y - f)``: the judge's rate f over all, plus its mean error among the labelled,
    by stratum h of the sampling plan with share W_h (one stratum where the sample is simple random). Nothing is
    assumed about the judge; a bad one only widens the interval. That is every p within t standard errors of its own,
    :func:`powered_bounds`: the variance is that of y over prompts at p plus that of the sampled errors,
    ``p (1 - p) D / N + sum_h W_h^2 (1 - n_h / N_h) v_h``, with D the variance inflation of f by clusters, and Student's
    t with n - strata degrees of freedom. v_h is the variance of the mean of y - f after UNSEEN_ERRORS, half of either
    sign and shared out over the strata, are added: a judge that errs rarely may show no error among n labels, and is
    not without error (benchmarks/coverage.py chose the number).

    Where the judge recognised none of the labelled refusals (or none of the others), or there are none, the labels give
    nothing of how it errs on that kind; the interval then holds Wilson's of the labels alone as well. With fewer
    than LEAST_OF_A_KIND labelled refusals, or others, it may be too short, and the note reports it.

    ``judged`` and ``labelled`` are [N] booleans, ``truth`` [N] is read where ``labelled``; ``weight`` is
    1 / inclusion probability of each labelled response, ``strata`` its stratum, ``clusters`` the prompts.

    Returns:
        The rate with its interval.

    Example:
        >>> truth = np.array([True, False] * 50)
        >>> labelled = np.arange(100) < 60
        >>> found = ms.statistics.prediction_powered(truth, truth=truth, labelled=labelled)
        >>> found.rate
        0.5
    """
    f, known = judged.astype(float), labelled.astype(bool)
    total, n = len(f), int(known.sum())
    error = truth[known].astype(float) - f[known]
    inverse = np.ones(n) if weight is None else weight[known].astype(float)
    plan = np.zeros(n, dtype=int) if strata is None else pd.factorize(strata[known])[0]
    sizes = np.bincount(plan)
    if n < LEAST_LABELS or n <= len(sizes):
        note = f"{n} labels in {len(sizes)} strata; at least {LEAST_LABELS}, and more than strata, are needed"
        return Corrected(rate=math.nan, low=math.nan, high=math.nan, note=note)
    expanded = np.bincount(plan, weights=inverse)
    share = expanded / expanded.sum()
    mean = np.bincount(plan, weights=inverse * error) / expanded
    rate = float(f.mean() + share @ mean)
    added = UNSEEN_ERRORS / len(sizes)
    seen = sizes + added
    within = (np.bincount(plan, weights=error**2) + added) / seen - (sizes * mean / seen) ** 2
    # The labelled are a part of the rated: a stratum that is labelled wholly has no sampling error left.
    unseen = np.clip(1 - sizes / np.maximum(expanded * total / expanded.sum(), sizes), 0, 1)
    low, high = powered_bounds(
        _unit(rate),
        over_prompts=inflation(f, clusters) / total,
        of_errors=float((share**2 * unseen * within / seen).sum()),
        t=float(student.ppf(0.975, n - len(sizes))),
    )
    refused, right = truth[known].astype(bool), error == 0
    if not (refused & right).any() or not (~refused & right).any():
        alone = _labels_alone(refused, inverse, None if clusters is None else clusters[known])
        low, high = min(low, alone.low), max(high, alone.high)
    rare = min(refused.sum(), (~refused).sum()) < LEAST_OF_A_KIND
    note = f"fewer than {LEAST_OF_A_KIND} labels of a kind: the interval may be too short" if rare else ""
    return Corrected(rate=_unit(rate), low=_unit(low), high=_unit(high), note=note)


def powered_bounds(rate: float, *, over_prompts: float, of_errors: float, t: float) -> tuple[float, float]:
    """The ends of all p with ``(p - rate)^2 <= t^2 (p (1 - p) over_prompts + of_errors)``.

    Wilson's interval where no error is left to sample, so that a rate of 0 or 1 has a width.
    """
    a = t * t * over_prompts
    half = math.sqrt(a * a + 4 * a * rate * (1 - rate) + 4 * (1 + a) * t * t * of_errors)
    return (2 * rate + a - half) / (2 * (1 + a)), (2 * rate + a + half) / (2 * (1 + a))


def _labels_alone(refused: np.ndarray, weight: np.ndarray, clusters: np.ndarray | None) -> Interval:
    """Wilson's interval of the labelled share for the effective number of labels, at most one per prompt."""
    rate, n = float((weight * refused).sum() / weight.sum()), round(effective_number(weight))
    n = max(1, min(n, n if clusters is None else len(pd.unique(clusters))))
    return wilson(round(rate * n), n)


def corrected_rates(verdicts: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Raw and corrected refusal rates per judge, arm, prompt label and system, and of all systems together.

    ``reference`` has columns system, arm, id, verdict, and may have ``weight`` (1 / inclusion probability) and
    ``stratum``. The error of a judge is estimated within the arm and the label, never across: Rogan-Gladen takes
    sensitivity and specificity from the labelled responses of all systems, prediction-powered inference from the row's
    own. ``human`` is the rate among the labelled alone. Responses the judge could not read are left out of every
    number of its rows.

    Returns:
        One row per judge, arm, label and system; NaN where a rate cannot be corrected.

    Example:
        >>> found = ms.statistics.corrected_rates(table, people)
        >>> found.loc[found["system"] == "all", ["judge", "arm", "raw", "human", "ppi"]].round(3)
                     judge       arm  raw  human  ppi
        0            rules  original  0.9    0.9  0.9
        4            rules    edited  0.2    0.1  0.1
        8   phrases:arditi  original  0.8    0.9  0.9
        12  phrases:arditi    edited  0.4    0.1  0.1
    """
    table = checked(verdicts)
    truth = reference_weights(reference)
    if "stratum" in reference.columns:
        truth = truth.assign(stratum=reference.loc[truth.index, "stratum"].astype(str))
    joined = table.merge(truth, on=["system", "arm", "id"], how="left")
    joined = joined[(joined["verdict"] != "unparsed") & ~joined["judge"].isin(list(ABSTAINING_JUDGES))]
    rows = []
    for judge in dict.fromkeys(joined["judge"]):
        for arm in ARMS:
            for label in PROMPT_LABELS:
                cell = joined[
                    (joined["judge"] == judge) & (joined["arm"] == arm) & (joined["label"] == label)
                ]
                if cell.empty:
                    continue
                errors = _errors(cell)
                systems = list(dict.fromkeys(cell["system"].astype(str)))
                for system in ("all", *systems) if len(systems) > 1 else systems:
                    part = cell if system == "all" else cell[(cell["system"] == system).to_numpy()]
                    key = {"system": system, "arm": arm, "label": label, "judge": str(judge)}
                    rows.append(key | _row(part, errors))
    return pd.DataFrame(rows, columns=CORRECTED_COLUMNS)


_CORRECTED = ("system", "arm", "label", "judge", "labels", "raw", "ppi", "ppi_low", "ppi_high")


def corrected_changes(corrected: pd.DataFrame) -> pd.DataFrame:
    """Prediction-powered rates of both arms, and their difference, from the rows of :func:`corrected_rates`.

    ``change`` is edited minus original, with the interval of :func:`difference_of`; ``raw_change`` is the judge's own.
    Each arm is corrected by the errors in that arm, so that a judge whose errors move with the edit is no trouble. Rows
    without both arms, or with an arm that has no corrected rate, are left out.

    Arguments:
        corrected: The table of corrected_rates.

    Returns:
        One row per judge, label and system.

    Example:
        >>> found = ms.statistics.corrected_changes(ms.statistics.corrected_rates(table, people))
        >>> found.loc[found["system"] == "all", ["judge", "raw_change", "change"]].round(3)
                    judge  raw_change  change
        0           rules        -0.7    -0.8
        4  phrases:arditi        -0.4    -0.8
    """
    require_columns(corrected, _CORRECTED, "table of corrected rates")
    rows = []
    for (system, label, judge), group in corrected.groupby(["system", "label", "judge"], sort=False):
        arms = {row["arm"]: row for row in group.to_dict(orient="records") if not math.isnan(row["ppi"])}
        if set(arms) != set(ARMS):
            continue
        row: dict[str, object] = {"system": system, "label": label, "judge": judge}
        for arm in ARMS:
            mine = arms[arm]
            row |= {f"labels_{arm}": mine["labels"], f"raw_{arm}": mine["raw"], arm: mine["ppi"]}
            row |= {f"{arm}_low": mine["ppi_low"], f"{arm}_high": mine["ppi_high"]}
        ends = [(arms[arm]["ppi"], arms[arm]["ppi_low"], arms[arm]["ppi_high"]) for arm in ARMS]
        row |= dict(zip(("change", "low", "high"), difference_of(*ends), strict=True))
        rows.append(row | {"raw_change": arms["edited"]["raw"] - arms["original"]["raw"]})
    return pd.DataFrame(rows, columns=CHANGE_COLUMNS)


def difference_of(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float, float]:
    """The second rate minus the first with its interval, from each one's (value, low, high), taken as independent.

    Square-and-add of the distances to the ends (Newcombe 1998, method 10; Zou and Donner 2008), which keeps the
    asymmetry of both. Too wide where both are of the same prompts and go up and down together.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    down = math.hypot(max(0.0, b - b_low), max(0.0, a_high - a))
    up = math.hypot(max(0.0, b_high - b), max(0.0, a - a_low))
    return b - a, max(-1.0, b - a - down), min(1.0, b - a + up)


def _row(part: pd.DataFrame, errors: dict[str, float]) -> dict[str, object]:
    judged = (part["verdict"] == "refusal").to_numpy()
    known = part["truth"].notna().to_numpy()
    truth = part["truth"].eq(True).to_numpy()
    strata = part["stratum"].fillna("").to_numpy() if "stratum" in part.columns else None
    powered = prediction_powered(
        judged,
        truth=truth,
        labelled=known,
        weight=part["weight"].to_numpy(),
        strata=strata,
        clusters=part["id"].to_numpy(),
    )
    human, low, high = _among_labelled(truth[known], part["weight"].to_numpy()[known])
    inverted = rogan_gladen(refused=float(judged.sum()), n=float(len(judged)), **errors)
    ratio = [errors[a] / errors[b] if errors[b] else math.nan for a, b in _RATIOS]
    return {
        **{"n": len(part), "labels": int(known.sum()), "raw": float(judged.mean())},
        **{"human": human, "human_low": low, "human_high": high},
        **{"ppi": powered.rate, "ppi_low": powered.low, "ppi_high": powered.high},
        **{"pooled_sensitivity": ratio[0], "pooled_specificity": ratio[1]},
        **{
            "rogan_gladen": inverted.rate,
            "rogan_gladen_low": inverted.low,
            "rogan_gladen_high": inverted.high,
        },
        "note": "; ".join(filter(None, dict.fromkeys((powered.note, inverted.note)))),
    }


def _among_labelled(truth: np.ndarray, weight: np.ndarray) -> tuple[float, float, float]:
    """The weighted share of refusals among the labelled, with Wilson's interval for the effective number."""
    if not len(truth):
        return math.nan, math.nan, math.nan
    rate = float((weight * truth).sum() / weight.sum())
    interval = weighted_wilson(rate, weight)
    return rate, interval.low, interval.high


_RATIOS = (("hits", "positives"), ("rejections", "negatives"))


def _errors(cell: pd.DataFrame) -> dict[str, float]:
    """Hits, positives, rejections and negatives as effective numbers of labelled responses."""
    known = cell[cell["truth"].notna().to_numpy()]
    judged = (known["verdict"] == "refusal").to_numpy()
    found: dict[str, float] = {}
    for value, good, all_of in ((True, "hits", "positives"), (False, "rejections", "negatives")):
        mine = known["truth"].eq(value).to_numpy()
        weight = known["weight"].to_numpy()[mine]
        effective = effective_number(weight)
        right = float(weight[judged[mine] == value].sum() / weight.sum()) if len(weight) else 0.0
        found |= {good: right * effective, all_of: effective}
    return found


def inflation(f: np.ndarray, clusters: np.ndarray | None) -> float:
    """How much more the mean of f varies because answers to one prompt go together; at least 1.

    Where f does not vary, nothing shows how far they go together; they are then taken for one.
    """
    if clusters is None:
        return 1.0
    codes, names = pd.factorize(clusters)
    count, spread = len(names), ((f - f.mean()) ** 2).sum()
    if spread == 0:
        return len(f) / max(1, count)
    if count == len(f) or count < 2:
        return 1.0
    sums = np.bincount(codes, weights=f - f.mean())
    return max(1.0, float((sums**2).sum() / spread * count / (count - 1)))


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))
