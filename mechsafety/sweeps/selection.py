"""Choosing a candidate from a table of scores, and a list of what every filter dropped.

``auto`` knows no absolute score: it goes by the share of the gap between harmful and harmless prompts that a candidate
removes and causes, so that a constant added to all scores, or a positive factor, changes no choice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import SELECTION_RULES
from mechsafety.sweeps.answer_choice import answered_rows, by_answers
from mechsafety.sweeps.ranking import (
    UNEDITED,
    Scores,
    bound_of,
    dropping,
    failed_filters,
    nearest_row,
    passing_rows,
    published_filters,
    ranked_rows,
    score_arrays,
    scored_on_all,
)
from mechsafety.sweeps.selected import Place, Selection, counts_text

if TYPE_CHECKING:
    import pandas as pd


def select(table: pd.DataFrame, *, n_layers: int, rule: str = "auto") -> Selection:
    """Pick a candidate from a table with the columns position, layer, bypass, induce and kl.

    ``arditi``: the lowest bypass of those that pass every filter (Arditi et al. 2024, appendix C). Dropped, in this
    order: NaN scores, layer >= int(0.8 n_layers), KL above 0.1, induce below 0.

    ``auto`` needs the unedited means too, in columns ``harmful`` and ``harmless``. Dropped: layer >= int(0.8 n_layers),
    scores that are not finite, removed below .5, caused below .5 (see :func:`with_shares`), KL above the smallest of
    .1, .2, .3 and .5 that leaves a candidate. Of those left the first by min(removed, 1), then by KL. Where columns
    ``n_answers``, ``refused``, ``complied``, ``degenerate`` and ``nll`` hold what the model wrote under some
    candidates (:func:`mechsafety.sweeps.confirmation.confirm`), these decide among them: the highest coherent
    compliance, then the lowest nll; one that fails a filter must be shown to do better than all that pass.

    Raises :class:`MechsafetyError` when nothing is left, with the counts and the nearest candidate, and under ``auto``
    when harmful prompts do not score higher than harmless ones, and no answers were read: there is no refusal to
    remove.
    """
    scores = score_arrays(table)
    if rule not in SELECTION_RULES:
        raise MechsafetyError(f"rule {rule!r} is not one of {', '.join(SELECTION_RULES)}")
    if rule == "auto":
        return _select_by_shares(scores, n_layers=n_layers)
    dropped: dict[str, int] = {}
    for bound in SELECTION_RULES[rule]:
        kept, dropped = dropping(published_filters(scores, n_layers, bound))
        if len(kept):
            order = [scores[name][kept] for name in ("position", "layer", "kl", "bypass")]
            best = int(kept[np.lexsort(order)[0]])
            facts = {"rule": rule, "kl_bound": bound, "kept": len(kept), "dropped": dropped}
            return _selection(scores, best, **facts)
    raise MechsafetyError(_nothing_left(scores, n_layers=n_layers, rule=rule, dropped=dropped))


def _select_by_shares(scores: Scores, *, n_layers: int) -> Selection:
    if missing := [c for c in UNEDITED if c not in scores]:
        raise MechsafetyError(
            f"rule 'auto' needs the unedited model's mean scores, in columns harmful and harmless; missing: "
            f"{', '.join(missing)}. Rule 'arditi' does without"
        )
    read = answered_rows(scores)
    if (why := _no_gap(scores)) is not None and not len(read):
        raise MechsafetyError(why)
    kept, bound, dropped = passing_rows(scores, n_layers=n_layers)
    if not len(kept) and not len(read):
        raise MechsafetyError(_nothing_left(scores, n_layers=n_layers, rule="auto", dropped=dropped))
    best, confirmed = (int(kept[0]), None) if not len(read) else by_answers(scores, read, n_layers=n_layers)
    failed = failed_filters(scores, best, n_layers)
    return _selection(
        scores,
        best,
        rule="nearest" if failed else "auto",
        kl_bound=math.inf if failed else max(bound, bound_of(scores, best)),
        kept=len(kept),
        dropped=dropped,
        failed=failed,
        confirmed=confirmed,
    )


def no_gap(table: pd.DataFrame) -> str | None:
    """Why no refusal to remove is shown; None where harmful prompts score higher than harmless ones.

    Where the table holds the gap's 95 % interval (``gap_low``, ``gap_high``), it must not meet 0.
    """
    return _no_gap(score_arrays(table))


def _no_gap(scores: Scores) -> str | None:
    at = int(np.argmax(scored_on_all(scores)))
    harmful, harmless = (float(scores[name][at]) for name in UNEDITED)
    gap = harmful - harmless
    low, high = (float(scores[name][at]) if name in scores else gap for name in ("gap_low", "gap_high"))
    if gap > 0 and not low <= 0:
        return None
    interval = f" [{low:.2f}, {high:.2f}]" if "gap_low" in scores else ""
    return (
        f"no refusal to remove is shown: the unedited model's refusal score is {harmful:.2f} on harmful and "
        f"{harmless:.2f} on harmless prompts, a difference of {gap:.2f}{interval}"
    )


def nearest(table: pd.DataFrame, *, n_layers: int) -> Selection:
    """The candidate to try when ``auto`` leaves none: the same ranking with the fewest filters dropped, named.

    With equally few, one that removes half of the gap goes first, then the smallest KL bound (.1, .2, .3, .5, then
    doubled) that leaves one. No candidate within the same bound removes more. Tables without the unedited means
    go by bypass within the smallest bound. Raises :class:`MechsafetyError` where no candidate has scores.
    """
    return _nearest_of(score_arrays(table), n_layers=n_layers)


def _nearest_of(scores: Scores, *, n_layers: int) -> Selection:
    order = ranked_rows(scores, n_layers=n_layers)
    if not len(order):
        raise MechsafetyError(f"none of {len(scores['layer'])} candidates has scores")
    read = answered_rows(scores)
    best, confirmed = (
        (nearest_row(scores, order), None) if not len(read) else by_answers(scores, read, n_layers=n_layers)
    )
    kept, _, dropped = passing_rows(scores, n_layers=n_layers)
    failed = failed_filters(scores, best, n_layers)
    facts = {"kept": len(kept), "dropped": dropped, "failed": failed, "confirmed": confirmed}
    return _selection(scores, best, rule="nearest", kl_bound=math.inf, **facts)


def selection_stability(
    table: pd.DataFrame,
    *,
    bypass: Float[np.ndarray, "candidate harmful"],
    induce: Float[np.ndarray, "candidate harmless"],
    kl: Float[np.ndarray, "candidate harmless"],
    unedited: tuple[Float[np.ndarray, " harmful"], Float[np.ndarray, " harmless"]] | None = None,
    n_layers: int,
    rule: str,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """How often ``rule`` picks each candidate by its scores when the prompts of each class are drawn again.

    Every resample draws harmful and harmless prompts with replacement, averages their scores, those of the ``unedited``
    model among them, and selects; candidates that racing dropped and what the model wrote are left out. Columns
    position, layer, share, commonest first; a row with position and layer <NA> is the share of resamples in which no
    candidate passed.
    """
    import pandas as pd

    generator = np.random.default_rng(seed)
    counts: dict[Place | None, int] = {}
    whole = scored_on_all(score_arrays(table))
    scores = table[whole].drop(columns=[c for c in ("complied", "gap_low", "gap_high") if c in table.columns])
    bypass, induce, kl = bypass[whole], induce[whole], kl[whole]
    for _ in range(resamples):
        a = generator.integers(bypass.shape[1], size=bypass.shape[1])
        b = generator.integers(kl.shape[1], size=kl.shape[1])
        means = {"bypass": bypass[:, a].mean(1), "induce": induce[:, b].mean(1), "kl": kl[:, b].mean(1)}
        if unedited is not None:
            means |= {"harmful": unedited[0][a].mean(), "harmless": unedited[1][b].mean()}
        try:
            found = select(scores.assign(**means), n_layers=n_layers, rule=rule)
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
    scores = score_arrays(table)
    rows = np.flatnonzero((scores["layer"] == layer) & (scores["position"] == position))
    if not len(rows):
        raise MechsafetyError(f"layer {layer}, position {position} is not in the table of scores")
    return _selection(scores, int(rows[0]), rule="fixed", kl_bound=math.inf, kept=1, dropped={})


def _selection(scores: Scores, at: int, **facts: Any) -> Selection:
    row = {name: float(values[at]) for name, values in scores.items()}
    found = {name: row.get(name, math.nan) for name in ("bypass", "induce", "kl", "removed", "caused")}
    place = {"position": int(row["position"]), "layer": int(row["layer"])}
    return Selection(**place, **found, total=len(scores["layer"]), **facts)


def _nothing_left(scores: Scores, *, n_layers: int, rule: str, dropped: dict[str, int]) -> str:
    drops, left = counts_text(dropped), f"rule {rule!r} leaves none of {len(scores['layer'])} candidates"
    try:
        close = _nearest_of(scores, n_layers=n_layers)
    except MechsafetyError as error:
        return f"{left} ({drops}); {error}"
    return (
        f"{left} ({drops}); nearest is layer {close.layer}, position "
        f"{close.position} with bypass {close.bypass:.2f}, induce {close.induce:.2f}, KL {close.kl:.2f}"
    )
