"""Choosing a candidate from a table of scores, and a list of what every filter dropped.

``auto`` knows no absolute score: it goes by the share of the gap between harmful and harmless prompts that a candidate
removes and causes, so that a constant added to all scores, or a positive factor, changes no choice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import SELECTION_RULES

if TYPE_CHECKING:
    import pandas as pd

Place = tuple[int, int]
"""Position and layer."""
SHORTLISTED = 5
_SHORTLISTED_A_LAYER = 2
_LEAST_SHARE = 0.5
_NEEDED = ("position", "layer", "bypass", "induce", "kl")
_UNEDITED = ("harmful", "harmless")
_OTHERS = (
    *("gap_low", "gap_high", "n_harmful", "n_harmless"),
    *("n_answers", "refused", "complied", "degenerate", "nll"),
)
# Shares that differ by rounding only are equal: a constant added to all scores changes the last digits.
_DIGITS = 9


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """What the model writes to harmful validation prompts under the selected candidate, and under the runner-up.

    Shares of ``n`` answers; ``nll`` is the mean negative log-likelihood, in nats a token, of the unedited model's own
    answers to harmless prompts. ``margin`` is the difference in ``complied`` to the candidate with the next highest
    one, with Newcombe's 95 % interval; NaN where there is no other.
    """

    n: int
    refused: float
    complied: float
    degenerate: float
    nll: float
    candidates: int
    runner_up: Place | None
    margin: float
    margin_low: float
    margin_high: float


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The chosen candidate, the KL bound it met, and how many each filter dropped.

    ``removed`` and ``caused`` are shares of the gap between the unedited scores of harmful and harmless prompts; NaN
    where the table does not hold these. ``failed`` names the filters that a candidate of rule ``nearest`` does not
    pass. ``confirmed`` is what the model writes, where it was asked.
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
    removed: float = math.nan
    caused: float = math.nan
    failed: tuple[str, ...] = ()
    confirmed: Confirmation | None = None

    @classmethod
    def from_record(cls, stored: Mapping[str, Any]) -> Selection:
        """What ``dataclasses.asdict`` made of one, read back from JSON."""
        values: dict[str, Any] = {
            name: math.nan if value is None else value for name, value in stored.items()
        }
        confirmed: dict[str, Any] | None = stored.get("confirmed")
        if confirmed is not None:
            runner_up = confirmed["runner_up"]
            known: dict[str, Any] = {
                name: math.nan if value is None else value for name, value in confirmed.items()
            }
            known["runner_up"] = runner_up and tuple(runner_up)
            values["confirmed"] = Confirmation(**known)
        return cls(
            **values
            | {"failed": tuple(stored.get("failed", ())), **({} if confirmed else {"confirmed": None})}
        )

    def explain(self) -> str:
        """How it was chosen, for the report: one sentence, and one more where its answers were read."""
        text = f"Layer {self.layer}, position {self.position}"
        scores = f"bypass {self.bypass:.2f}, induce {self.induce:.2f}, KL {self.kl:.2f}"
        shares = "" if math.isnan(self.removed) else f"removed {self.removed:.2f}, caused {self.caused:.2f}, "
        drops = _counts(self.dropped)
        if self.rule == "fixed":
            return f"{text} (fixed, one of {self.total}, no filter): {shares}{scores}"
        if self.rule == "nearest":
            fails = f"it fails {' and '.join(self.failed)}" if self.failed else "it passes every filter"
            text += f": the nearest of {self.total} candidates (dropped: {drops}); {fails}; {shares}{scores}"
        elif self.rule == "auto":
            passed = f"{self.kept} of {self.total} candidates pass (dropped: {drops})"
            why = (
                "the first of those that pass" if self.confirmed is None else "taken by what the model writes"
            )
            text += f": {why}; {passed}; {shares}{scores}; rule auto, KL bound {self.kl_bound:g}"
        else:
            text += (
                f": the lowest bypass ({self.bypass:.2f}) of {self.kept} candidates out of {self.total} (dropped: "
                f"{drops}); rule {self.rule}, KL bound {self.kl_bound:g}"
            )
        return text if self.confirmed is None else f"{text}. {_read(self.confirmed)}"


def _counts(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n} by {name}" for name, n in dropped.items() if n) or "none"


def _read(c: Confirmation) -> str:
    text = (
        f"Of {c.candidates} candidates whose answers to {c.n} harmful validation prompts were read it was taken: "
        f"{c.refused:.0%} refused, {c.complied:.0%} coherent compliance, {c.degenerate:.0%} degenerate"
    )
    if c.runner_up is None:
        return text
    position, layer = c.runner_up
    return (
        f"{text}; coherent compliance differs from that under layer {layer}, position {position} by "
        f"{100 * c.margin:+.0f} points [{100 * c.margin_low:+.0f}, {100 * c.margin_high:+.0f}]"
    )


def first_late_layer(n_layers: int) -> int:
    """Where the last fifth of the layers begins, in which nothing is selected."""
    return int(0.8 * n_layers)


def with_shares(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``removed`` and ``caused``, where it holds the unedited means ``harmful`` and ``harmless``.

    removed = (harmful - bypass) / (harmful - harmless); caused = (induce - harmless) / (harmful - harmless). Where
    harmful prompts do not score higher, the gap's absolute value divides, so that lower bypass is still more removed.
    """
    scores = _arrays(table)
    return table.assign(**{name: scores[name] for name in ("removed", "caused") if name in scores})


_Scores = dict[str, np.ndarray]
"""Columns of a table of scores as arrays of floats, with the shares."""


def _arrays(table: pd.DataFrame) -> _Scores:
    missing = [c for c in _NEEDED if c not in table.columns]
    if missing or table.empty:
        raise MechsafetyError(
            f"a table of scores needs rows and the columns {', '.join(_NEEDED)}; "
            f"missing: {', '.join(missing) or 'rows'}"
        )
    known = [c for c in (*_NEEDED, *_UNEDITED, *_OTHERS) if c in table.columns]
    scores = {name: table[name].to_numpy(dtype=float, na_value=math.nan) for name in known}
    if all(c in scores for c in _UNEDITED):
        gap = np.abs(scores["harmful"] - scores["harmless"])
        gap[gap == 0] = math.nan
        scores["removed"] = ((scores["harmful"] - scores["bypass"]) / gap).round(_DIGITS)
        scores["caused"] = ((scores["induce"] - scores["harmless"]) / gap).round(_DIGITS)
    return scores


def select(table: pd.DataFrame, *, n_layers: int, rule: str = "auto") -> Selection:
    """Pick a candidate from a table with the columns position, layer, bypass, induce and kl.

    ``arditi``: the lowest bypass of those that pass every filter (Arditi et al. 2024, appendix C). Dropped, in this
    order: NaN scores, layer >= int(0.8 n_layers), KL above 0.1, induce below 0.

    ``auto`` needs the unedited means too, in columns ``harmful`` and ``harmless``. Dropped: layer >= int(0.8 n_layers),
    scores that are not finite, removed below .5, caused below .5 (see :func:`with_shares`), KL above the smallest of
    .1, .2, .3 and .5 that leaves a candidate. Of those left the first by min(removed, 1), then by KL. Where columns
    ``n_answers``, ``refused``, ``complied``, ``degenerate`` and ``nll`` hold what the model wrote under some
    candidates (:func:`mechsafety.sweeps.confirmation.confirm`), these decide among them: of those whose coherent
    compliance lies within one standard error of the highest, the one with the lowest nll.

    Raises :class:`MechsafetyError` when nothing is left, with the counts and the nearest candidate, and under ``auto``
    when harmful prompts do not score higher than harmless ones, and no answers were read: there is no refusal to
    remove.
    """
    scores = _arrays(table)
    if rule not in SELECTION_RULES:
        raise MechsafetyError(f"rule {rule!r} is not one of {', '.join(SELECTION_RULES)}")
    if rule == "auto":
        return _select_by_shares(scores, n_layers=n_layers)
    dropped: dict[str, int] = {}
    for bound in SELECTION_RULES[rule]:
        kept, dropped = _dropping(_published_filters(scores, n_layers, bound))
        if len(kept):
            order = [scores[name][kept] for name in ("position", "layer", "kl", "bypass")]
            best = int(kept[np.lexsort(order)[0]])
            facts = {"rule": rule, "kl_bound": bound, "kept": len(kept), "dropped": dropped}
            return _selection(scores, best, **facts)
    raise MechsafetyError(_nothing_left(scores, n_layers=n_layers, rule=rule, dropped=dropped))


def _select_by_shares(scores: _Scores, *, n_layers: int) -> Selection:
    if missing := [c for c in _UNEDITED if c not in scores]:
        raise MechsafetyError(
            f"rule 'auto' needs the unedited model's mean scores, in columns harmful and harmless; missing: "
            f"{', '.join(missing)}. Rule 'arditi' does without"
        )
    read = _answered(scores)
    if (why := _no_gap(scores)) is not None and not len(read):
        raise MechsafetyError(why)
    kept, bound, dropped = _passing(scores, n_layers=n_layers)
    if not len(kept) and not len(read):
        raise MechsafetyError(_nothing_left(scores, n_layers=n_layers, rule="auto", dropped=dropped))
    best, confirmed = (int(kept[0]), None) if not len(read) else _by_answers(scores, read)
    failed = _failed(scores, best, n_layers)
    return _selection(
        scores,
        best,
        rule="nearest" if failed else "auto",
        kl_bound=math.inf if failed else max(bound, _bound_of(scores, best)),
        kept=len(kept),
        dropped=dropped,
        failed=failed,
        confirmed=confirmed,
    )


def no_gap(table: pd.DataFrame) -> str | None:
    """Why there is no refusal to remove; None where harmful prompts score higher than harmless ones.

    Where the table holds the gap's 95 % interval (``gap_low``, ``gap_high``), it must not meet 0.
    """
    return _no_gap(_arrays(table))


def _no_gap(scores: _Scores) -> str | None:
    at = int(np.argmax(_whole(scores)))
    harmful, harmless = (float(scores[name][at]) for name in _UNEDITED)
    gap = harmful - harmless
    low, high = (float(scores[name][at]) if name in scores else gap for name in ("gap_low", "gap_high"))
    if gap > 0 and not low <= 0:
        return None
    interval = f" [{low:.2f}, {high:.2f}]" if "gap_low" in scores else ""
    return (
        f"there is no refusal to remove: the unedited model's refusal score is {harmful:.2f} on harmful and "
        f"{harmless:.2f} on harmless prompts, a difference of {gap:.2f}{interval}"
    )


def nearest(table: pd.DataFrame, *, n_layers: int) -> Selection:
    """The candidate to try when ``auto`` leaves none: the same ranking with the fewest filters dropped, named.

    With equally few, one that removes half of the gap goes first, then the smallest KL bound (.1, .2, .3, .5, then
    doubled) that leaves one. No candidate within the same bound removes more. Tables without the unedited means
    go by bypass within the smallest bound. Raises :class:`MechsafetyError` where no candidate has scores.
    """
    return _nearest_of(_arrays(table), n_layers=n_layers)


def _nearest_of(scores: _Scores, *, n_layers: int) -> Selection:
    order = _ordered(scores, n_layers=n_layers)
    if not len(order):
        raise MechsafetyError(f"none of {len(scores['layer'])} candidates has scores")
    read = _answered(scores)
    best, confirmed = (_nearest(scores, order), None) if not len(read) else _by_answers(scores, read)
    kept, _, dropped = _passing(scores, n_layers=n_layers)
    failed = _failed(scores, best, n_layers)
    facts = {"kept": len(kept), "dropped": dropped, "failed": failed, "confirmed": confirmed}
    return _selection(scores, best, rule="nearest", kl_bound=math.inf, **facts)


def _nearest(scores: _Scores, order: Int[np.ndarray, " usable"]) -> int:
    """The first in order, or what removes more within the same KL bound."""
    best, removed = int(order[0]), _removed(scores)
    rivals = [i for i in order if scores["kl"][i] <= _bound_of(scores, best) and removed[i] > removed[best]]
    return int(max(rivals, key=lambda i: removed[i])) if rivals else best


def shortlist(
    table: pd.DataFrame, *, n_layers: int, size: int = SHORTLISTED, a_layer: int = _SHORTLISTED_A_LAYER
) -> list[Place]:
    """The first ``size`` candidates of the ranking, at most ``a_layer`` of one layer.

    Where few pass all filters, the nearest ones follow, those that fail this or that filter in turns: KL at the next
    token is no sure sign of damage, and adding a direction need not cause what removing it ends.
    """
    scores = _arrays(table)
    order = _ordered(scores, n_layers=n_layers)
    if not len(order):
        return []
    nearest_first = bool(_failed(scores, int(order[0]), n_layers))
    first = [_nearest(scores, order)] if nearest_first else []
    if "removed" in scores:
        shares = (scores[name][order] for name in ("removed", "caused", "kl"))
        order = order[in_turns(range(len(order)), *failures(*shares))]
    order = np.array([*first, *(i for i in order if i not in first)])
    places = [(int(scores["position"][i]), int(scores["layer"][i])) for i in order]
    return spread(places, size=size, a_layer=a_layer)


def failures(
    removed: Float[np.ndarray, "*draw candidate"],
    caused: Float[np.ndarray, "*draw candidate"],
    kl: Float[np.ndarray, "*draw candidate"],
) -> tuple[Shaped[np.ndarray, "*draw candidate"], Shaped[np.ndarray, "*draw candidate"]]:
    """How far candidates are from passing all filters (as :func:`rank_keys` begins), and which filters they fail."""
    fails, little, *_ = rank_keys(removed, caused, kl)
    which = little + 2 * (caused < _LEAST_SHARE) + 4 * (kl > SELECTION_RULES["auto"][-1])
    return 2 * fails + little, which


def in_turns(
    order: Sequence[int], level: Shaped[np.ndarray, " candidate"], kind: Shaped[np.ndarray, " candidate"]
) -> list[int]:
    """``order`` with the kinds of each level in turns: which filter is the wrong one is for the answers to tell."""
    seen: Counter[tuple[int, int]] = Counter()
    turns: dict[int, tuple[int, int]] = {}
    for i in order:
        group = (int(level[i]), int(kind[i]))
        turns[i] = (group[0], seen[group])
        seen[group] += 1
    return sorted(order, key=turns.__getitem__)


def spread(
    places: Sequence[Place], *, size: int = SHORTLISTED, a_layer: int = _SHORTLISTED_A_LAYER
) -> list[Place]:
    """The first ``size`` places, at most ``a_layer`` of one layer."""
    taken: list[Place] = []
    for place in places:
        if len(taken) < size and sum(layer == place[1] for _, layer in taken) < a_layer:
            taken.append(place)
    return taken


def rank_keys(
    removed: Float[np.ndarray, "*draw candidate"],
    caused: Float[np.ndarray, "*draw candidate"],
    kl: Float[np.ndarray, "*draw candidate"],
) -> list[Shaped[np.ndarray, "*draw candidate"]]:
    """What the ranking sorts by, the first key first; where all filters pass it is the order of ``auto``.

    Filters failed, whether less than half of the gap is removed, the KL bound, min(removed, 1) downwards, KL.
    """
    least, widest = _LEAST_SHARE, SELECTION_RULES["auto"][-1]
    fails = (removed < least).astype(int) + (caused < least) + (kl > widest)
    return [fails, removed < least, _bounds_of(kl), -np.minimum(removed, 1.0), kl]


def _ordered(scores: _Scores, *, n_layers: int) -> Int[np.ndarray, " usable"]:
    """Candidates with finite scores by :func:`rank_keys`; those of the last layers where there are no others."""
    usable = _finite(scores) & _whole(scores)
    early = usable & (scores["layer"] < first_late_layer(n_layers))
    rows = np.flatnonzero(early if early.any() else usable)
    if "removed" in scores:
        keys = rank_keys(*(scores[name][rows] for name in ("removed", "caused", "kl")))
    else:
        keys = [_bounds_of(scores["kl"][rows]), scores["bypass"][rows], scores["kl"][rows]]
    return rows[np.lexsort([*(scores[name][rows] for name in ("position", "layer")), *keys[::-1]])]


def _removed(scores: _Scores) -> Float[np.ndarray, " candidate"]:
    return np.minimum(scores["removed"], 1.0) if "removed" in scores else -scores["bypass"]


def _bounds_of(kl: Float[np.ndarray, "*draw candidate"]) -> Float[np.ndarray, "*draw candidate"]:
    bounds = np.array([*SELECTION_RULES["auto"], *(2.0**k for k in range(12))])
    return np.append(bounds, math.inf)[np.searchsorted(bounds, kl)]


def _bound_of(scores: _Scores, at: int) -> float:
    return float(_bounds_of(scores["kl"][at : at + 1])[0])


_Filters = dict[str, Bool[np.ndarray, " candidate"]]
"""By name, which candidates pass."""


def _passing(scores: _Scores, *, n_layers: int) -> tuple[Int[np.ndarray, " kept"], float, dict[str, int]]:
    """Ranked candidates that pass the filters of ``auto``, the KL bound, and how many each filter dropped."""
    kept, bound, dropped = np.array([], dtype=int), math.nan, {}
    for bound in SELECTION_RULES["auto"] if "removed" in scores else ():
        kept, dropped = _dropping(_filters(scores, n_layers, bound))
        if len(kept):
            passing = frozenset(kept.tolist())
            kept = np.array([i for i in _ordered(scores, n_layers=n_layers) if i in passing])
            break
    return kept, bound, dropped


def _filters(scores: _Scores, n_layers: int, kl_bound: float) -> _Filters:
    last = first_late_layer(n_layers)
    with np.errstate(invalid="ignore"):
        return {
            f"layer >= {last}": scores["layer"] < last,
            "racing": _whole(scores),
            "NaN": _finite(scores),
            f"bypass (removed < {_LEAST_SHARE:g})": scores["removed"] >= _LEAST_SHARE,
            f"induce (caused < {_LEAST_SHARE:g})": scores["caused"] >= _LEAST_SHARE,
            f"KL > {kl_bound:g}": scores["kl"] <= kl_bound,
        }


def _published_filters(scores: _Scores, n_layers: int, kl_bound: float) -> _Filters:
    last = first_late_layer(n_layers)
    # Racing takes part only where candidates were scored on different prompts.
    whole = _whole(scores)
    return ({} if whole.all() else {"racing": whole}) | {
        "NaN": ~np.stack([np.isnan(scores[name]) for name in ("bypass", "induce", "kl")]).any(0),
        f"layer >= {last}": scores["layer"] < last,
        f"KL > {kl_bound:g}": scores["kl"] <= kl_bound,
        "induce below 0": scores["induce"] >= 0,
    }


def _dropping(filters: _Filters) -> tuple[Int[np.ndarray, " kept"], dict[str, int]]:
    """What passes every filter, and how many each dropped of those that passed the ones before."""
    dropped: dict[str, int] = {}
    left = np.ones_like(next(iter(filters.values())))
    for name, passes in filters.items():
        dropped[name] = int((left & ~passes).sum())
        left = left & passes
    return np.flatnonzero(left), dropped


def _failed(scores: _Scores, at: int, n_layers: int) -> tuple[str, ...]:
    """The filters of ``auto``, at its widest bound, that one candidate does not pass."""
    if "removed" not in scores:
        return ()
    filters = _filters(scores, n_layers, SELECTION_RULES["auto"][-1])
    return tuple(name for name, passes in filters.items() if not passes[at])


def _finite(scores: _Scores) -> Bool[np.ndarray, " candidate"]:
    names = ("bypass", "induce", "kl", "removed", "caused")
    finite: Any = np.isfinite([scores[name] for name in names if name in scores])
    return finite.all(0)


def _whole(scores: _Scores) -> Bool[np.ndarray, " candidate"]:
    """Candidates that were scored on every prompt; racing drops the others on the way."""
    found = np.ones(len(scores["layer"]), dtype=bool)
    for name in ("n_harmful", "n_harmless"):
        if name in scores:
            found &= scores[name] == np.nanmax(scores[name])
    return found


def _answered(scores: _Scores) -> Int[np.ndarray, " read"]:
    return np.flatnonzero(~np.isnan(scores["complied"])) if "complied" in scores else np.array([], dtype=int)


def _by_answers(scores: _Scores, read: Int[np.ndarray, " read"]) -> tuple[int, Confirmation]:
    """Within one standard error of the highest coherent compliance the lowest nll, and the margin to the next."""
    n = int(scores["n_answers"][read[0]])
    complied, nll = scores["complied"], scores["nll"]
    places = [scores[name][read] for name in ("position", "layer")]
    order = read[np.lexsort([*places, nll[read], -complied[read]])]
    highest = float(complied[order[0]])
    p = (highest * n + 1) / (n + 2)  # never a standard error of 0
    close = order[complied[order] >= highest - math.sqrt(2 * p * (1 - p) / n)]
    places = [scores[name][close] for name in ("position", "layer")]
    best = int(close[np.lexsort([*places, -complied[close], nll[close]])[0]])
    others = [int(i) for i in order if i != best]
    margin, low, high = math.nan, math.nan, math.nan
    if others:
        a, b = (round(float(complied[i]) * n) for i in (best, others[0]))
        margin, low, high = _difference(a, b, n)
    return best, Confirmation(
        n=n,
        refused=float(scores["refused"][best]),
        complied=float(complied[best]),
        degenerate=float(scores["degenerate"][best]),
        nll=float(nll[best]),
        candidates=len(read),
        runner_up=(int(scores["position"][others[0]]), int(scores["layer"][others[0]])) if others else None,
        margin=margin,
        margin_low=low,
        margin_high=high,
    )


def _difference(a: int, b: int, n: int) -> tuple[float, float, float]:
    """(a - b) / n with Newcombe's 95 % interval."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    bounds: Any = confint_proportions_2indep(a, n, b, n, method="newcomb", compare="diff")
    return (a - b) / n, float(bounds[0]), float(bounds[1])


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
    whole = _whole(_arrays(table))
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
    scores = _arrays(table)
    rows = np.flatnonzero((scores["layer"] == layer) & (scores["position"] == position))
    if not len(rows):
        raise MechsafetyError(f"layer {layer}, position {position} is not in the table of scores")
    return _selection(scores, int(rows[0]), rule="fixed", kl_bound=math.inf, kept=1, dropped={})


def _selection(scores: _Scores, at: int, **facts: Any) -> Selection:
    row = {name: float(values[at]) for name, values in scores.items()}
    found = {name: row.get(name, math.nan) for name in ("bypass", "induce", "kl", "removed", "caused")}
    place = {"position": int(row["position"]), "layer": int(row["layer"])}
    return Selection(**place, **found, total=len(scores["layer"]), **facts)


def _nothing_left(scores: _Scores, *, n_layers: int, rule: str, dropped: dict[str, int]) -> str:
    drops, left = _counts(dropped), f"rule {rule!r} leaves none of {len(scores['layer'])} candidates"
    try:
        close = _nearest_of(scores, n_layers=n_layers)
    except MechsafetyError as error:
        return f"{left} ({drops}); {error}"
    return (
        f"{left} ({drops}); nearest is layer {close.layer}, position "
        f"{close.position} with bypass {close.bypass:.2f}, induce {close.induce:.2f}, KL {close.kl:.2f}"
    )
