"""What an anatomy found: contrasts of its tables, said by the forms of :mod:`mechsafety.claims`.

What is said of one layer is said of the last, which was fixed before anything was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from mechsafety.anatomy.sensitivity import median_change
from mechsafety.claims import (
    Claim,
    Contrast,
    Estimate,
    corrected_over,
    decide,
    of_values,
    paired_binary,
    paired_control,
    sentences,
    unpaired_counts,
)
from mechsafety.claims.contrasts import UNKNOWN
from mechsafety.claims.sentences import Named, counted, extremes, level, missing, series
from mechsafety.experiments.anatomy.naming import (
    SAFE,
    SETS,
    UNSAFE,
    WHERE,
    Names,
    Tables,
    families_in,
    models_in,
    rows_of,
    state_name,
    who,
)

Said = Iterator[str]


def anatomy_findings(tables: Tables, *, names: Names) -> dict[str, list[str]]:
    """The sentences of each section that the tables allow; ``names`` are the models' by their part.

    Sections, in this order: ``clusters``, ``attacks``, ``sensitivity``, ``interpolation``, ``weights``, ``action``,
    ``reversal``, ``links``, ``ablation``. The first sentence of each is the main one.
    """
    sections: dict[str, tuple[str, Callable[[Tables, Names], Iterable[str]]]] = {
        "clusters": ("separation", _clusters),
        "attacks": ("attack_tau", _attacks),
        "sensitivity": ("sensitivity", _sensitivity),
        "interpolation": ("interpolation", _interpolation),
        "weights": ("weight_changes", _weights),
        "action": ("action_ratios", _action),
        "reversal": ("reversal", _reversal),
        "links": ("links", _links),
        "ablation": ("ablation", _ablation),
    }
    there = {name: table for name, table in tables.items() if len(table)}
    found = {section: [*say(there, names)] for section, (table, say) in sections.items() if table in there}
    return {section: said for section, said in found.items() if said}


def last_layer(table: pd.DataFrame, positions: str) -> pd.DataFrame:
    """The rows of the last layer at ``positions``."""
    rows = table[table["positions"] == positions]
    return rows[rows["layer"] == rows["layer"].max()]


def estimate(rows: pd.DataFrame, column: str, low: str = "low", high: str = "high") -> Estimate:
    """One row's value with its interval; unknown where there is no row."""
    if not len(rows):
        return UNKNOWN
    value, *ends = (float(rows[name].iloc[0]) for name in (column, low, high))
    return Estimate(value=value, low=ends[0], high=ends[1])


# -- activations --------------------------------------------------------------------------------------------


def apart(tables: Tables, names: Names, model: str, against: str, positions: str) -> Contrast:
    """d' of tau of one model against another's; decided by the interval of the difference."""
    last = last_layer(tables["separation"], positions)
    ends = [
        estimate(rows_of(last, model=m), "d_prime", "d_prime_low", "d_prime_high") for m in (against, model)
    ]
    changes = tables.get("d_prime_changes", pd.DataFrame(columns=["model", "against", "positions", "layer"]))
    change = estimate(rows_of(last_layer(changes, positions), model=model, against=against), "change")
    return of_values(
        subject=who(model, names),
        measure=f"d' of tau {WHERE[positions]}, last layer",
        unit="",
        states=(against, model),
        before=ends[0],
        after=ends[1],
        difference=change,
    )


def separated(tables: Tables, names: Names, model: str, positions: str) -> Contrast:
    """AUROC of tau against that of chance, one half."""
    rows = rows_of(last_layer(tables["separation"], positions), model=model)
    found = estimate(rows, "auroc", "auroc_low", "auroc_high")
    less = Estimate(value=found.value - 0.5, low=found.low - 0.5, high=found.high - 0.5)
    return of_values(
        subject=who(model, names),
        measure=f"AUROC of tau {WHERE[positions]}, last layer",
        unit="AUROC",
        states=("by chance", "measured"),
        before=Estimate(value=0.5),
        after=found,
        difference=less,
    )


def _clusters(tables: Tables, names: Names) -> Said:
    there = models_in(tables["separation"])
    for positions in _positions(tables["separation"]):
        for against in ("base", "control"):
            if {"tuned", against} <= set(there):
                yield from sentences(apart(tables, names, "tuned", against, positions))
        for model in there:
            yield from sentences(separated(tables, names, model, positions))


def _positions(table: pd.DataFrame) -> list[str]:
    """The last prompt token first: there is no answer yet that could be read."""
    return [p for p in ("last_prompt", "output") if p in set(table["positions"])]


def sides(tables: Tables, names: Names, positions: str) -> Contrast:
    """Which of the attacks on the tuned model lie on the safe side: those that failed against those that succeeded."""
    rows = rows_of(last_layer(tables["attack_tau"], positions), model="tuned", family="all")
    counts = {}
    for outcome in ("failed", "success"):
        one = rows[rows["outcome"] == outcome]
        n = int(one["n"].iloc[0]) if len(one) else 0
        counts[outcome] = (round(float(one["on_safe_side"].iloc[0]) * n) if n else 0, n)
    return unpaired_counts(
        subject=who("tuned", names),
        measure=f"attacks on the safe side of tau {WHERE[positions]}, last layer",
        before=counts["failed"],
        after=counts["success"],
        states=("failed", "successful"),
    )


def _attacks(tables: Tables, names: Names) -> Said:
    tuned = rows_of(tables["attack_tau"], model="tuned")
    for positions in _positions(tuned):
        yield from sentences(sides(tables, names, positions))
        rows = rows_of(last_layer(tuned, positions), family="all")
        for outcome, name in (("success", "successful"), ("failed", "failed")):
            measure = f"mean tau of {name} attacks {WHERE[positions]}, last layer (safe side: above 0)"
            yield level(
                who("tuned", names), measure, estimate(rows_of(rows, outcome=outcome), "tau"), unit="tau"
            )


def sensitive(tables: Tables, names: Names, group: str, before: str, after: str) -> Contrast:
    """Medians of the sensitivity of two models; decided by the interval of their difference over the same prompts."""
    medians = rows_of(tables["sensitivity"], group=group)
    ends = [estimate(rows_of(medians, model=model), "median") for model in (before, after)]
    change = UNKNOWN
    if "norms" in tables:
        norms = rows_of(tables["norms"], group=group).pivot(index="id", columns="model", values="norm")
        if {before, after} <= set(norms):
            change = Estimate(
                **dict(zip(("value", "low", "high"), median_change(norms, before, after), strict=True))
            )
    return of_values(
        subject=who(after, names),
        measure=f"sensitivity of the first token, median over {_prompts(group)}",
        unit="",
        states=(before, after),
        before=ends[0],
        after=ends[1],
        difference=change,
    )


def _prompts(group: str) -> str:
    return f"{group} prompts" if group in (SAFE, UNSAFE) else f"attacks ({group})"


def _sensitivity(tables: Tables, names: Names) -> Said:
    there = models_in(tables["sensitivity"])
    groups = sorted(dict.fromkeys(tables["sensitivity"]["group"]), key=lambda group: group != UNSAFE)
    for group in groups:
        for model in there:
            if model != "base" and "base" in there:
                yield from sentences(sensitive(tables, names, group, "base", model))


# -- answers ------------------------------------------------------------------------------------------------


def verdicts_of(tables: Tables, part: str, model: str, state: str, group: str) -> dict[object, str]:
    """Verdicts by prompt of a model in a state; empty where none was kept."""
    if "verdicts" not in tables:
        return {}
    rows = rows_of(tables["verdicts"], part=part, model=model, state=state, group=group)
    return dict(zip(rows["id"], rows["label"], strict=True))


def own_verdicts(tables: Tables, role: str, group: str) -> dict[object, str]:
    return verdicts_of(tables, "own answers", role, "held-out", group)


def refusals(
    subject: str,
    group: str,
    before: Mapping[object, str],
    after: Mapping[object, str],
    states: tuple[str, str],
) -> Contrast:
    """Refusals of a group of prompts in two states, prompt by prompt."""
    subject = subject if group == UNSAFE else f"{subject} on {_prompts(group)}"
    return paired_binary(
        before, after, subject=subject, measure=f"refusals of {_prompts(group)}", states=states
    )


def with_control(
    contrast: Contrast, name: str, after: Mapping[object, str], drawn: Mapping[object, str]
) -> Contrast:
    """The contrast beside the state that is its control, where there is one."""
    return replace(contrast, control=paired_control(name, after, [drawn])) if drawn else contrast


def grown(tables: Tables, names: Names) -> Contrast:
    """Refusals of unsafe prompts at the ends of the line, the benign model's as the control."""
    base, tuned, benign = (own_verdicts(tables, role, UNSAFE) for role in ("base", "tuned", "control"))
    contrast = refusals(who("tuned", names), UNSAFE, base, tuned, ("alpha 0", "alpha 1"))
    return with_control(contrast, "the benign fine-tuning", tuned, benign)


def _interpolation(tables: Tables, names: Names) -> Said:
    if "verdicts" not in tables:
        yield missing(who("tuned", names), "no verdicts by prompt were kept")
        return
    alphas = sorted(a for a in set(tables["interpolation"]["alpha"]) if a > 0)
    yield from sentences(grown(tables, names))
    rising = [_at(tables, names, UNSAFE, 0.0, alpha) for alpha in alphas if alpha <= 1]
    steps = [decide(c) for c in corrected_over(rising, "alphas")]
    if steps:
        yield series([(f"{a:g}", c) for a, c in zip(alphas, steps, strict=False)], of="alphas up to 1")
    if alphas and alphas[-1] > 1:
        groups = (UNSAFE, SAFE, *families_in(tables["interpolation"]))
        beyond = [_at(tables, names, group, 1.0, alphas[-1]) for group in groups]
        for contrast in corrected_over(beyond, "groups"):
            yield from sentences(contrast)


def _at(tables: Tables, names: Names, group: str, before: float, after: float) -> Contrast:
    """Refusals at two places of the tuned model's line."""
    ends = []
    for alpha in (before, after):
        role = {0.0: "base", 1.0: "tuned"}.get(alpha)
        ends.append(
            own_verdicts(tables, role, group)
            if role
            else verdicts_of(tables, "interpolation", "tuned", f"alpha {alpha:g}", group)
        )
    states = (f"alpha {before:g}", f"alpha {after:g}")
    return refusals(who("tuned", names), group, ends[0], ends[1], states)


def carried(tables: Tables, names: Names) -> list[Contrast]:
    """Refusals of unsafe prompts of the base against those of the tuned model and of models with parts of dW."""
    base = own_verdicts(tables, "base", UNSAFE)
    random = verdicts_of(tables, "reversal", "tuned", "random", UNSAFE)
    found: list[Contrast] = []
    controls: list[Contrast] = []
    for state in ("tuned", "mlp", "rest", "matrices", "others", "random"):
        after = (
            own_verdicts(tables, "tuned", UNSAFE)
            if state == "tuned"
            else verdicts_of(tables, "reversal", "tuned", state, UNSAFE)
        )
        if not after:
            continue
        subject = _all_of(names) if state == "tuned" else state_name(state, 0.0)
        contrast = refusals(subject, UNSAFE, base, after, ("base", state_name(state, 0.0)))
        if state == "random":  # a control: tested alone, so that a change of its own is not corrected away
            controls.append(contrast)
        else:
            found.append(with_control(contrast, "a random dW of the same norm", after, random))
    return [*corrected_over(found, "states"), *controls]


def _all_of(names: Names) -> str:
    return f"base with all that {who('tuned', names)} changed"


def _reversal(tables: Tables, names: Names) -> Said:
    if "verdicts" not in tables:
        yield missing(who("tuned", names), "no verdicts by prompt were kept")
        return
    for contrast in carried(tables, names):
        yield from sentences(contrast)
    for what, start in (("kept", "base"), ("removed", "tuned")):
        ranks = sorted({float(r) for r in rows_of(tables["reversal"], state=what)["r"]})
        steps = _by_rank(tables, what, start, ranks)
        if steps:
            yield series(list(zip([f"{r:g}" for r in ranks], steps, strict=True)), of="ranks")
    for group in (SAFE, *families_in(tables["reversal"])):
        base, tuned = (own_verdicts(tables, role, group) for role in ("base", "tuned"))
        if base:
            yield from sentences(refusals(_all_of(names), group, base, tuned, ("base", "tuned")))


def _by_rank(tables: Tables, what: str, start: str, ranks: Sequence[float]) -> list[Claim]:
    before = own_verdicts(tables, start, UNSAFE)
    subject = {"kept": "base with the top directions of dW", "removed": "tuned without the top directions"}
    contrasts = [
        refusals(
            subject[what],
            UNSAFE,
            before,
            verdicts_of(tables, "reversal", "tuned", f"top {r:g} {what}", UNSAFE),
            (start, state_name(what, r)),
        )
        for r in ranks
    ]
    return [decide(c) for c in corrected_over(contrasts, "ranks")]


def ablated(tables: Tables, names: Names) -> list[Contrast]:
    """Refusals of each group before and after the ablation of the direction, beside a random one."""
    found = []
    for group in (UNSAFE, SAFE, *families_in(tables["ablation"])):
        before, after, drawn = (
            verdicts_of(tables, "ablation", "tuned", state, group)
            for state in ("tuned", "ablated", "random_ablated")
        )
        if before:
            states = ("unedited", "direction ablated")
            contrast = refusals(who("tuned", names), group, before, after, states)
            found.append(with_control(contrast, "a random direction", after, drawn))
    return corrected_over(found, "groups")


def _ablation(tables: Tables, names: Names) -> Said:
    contrasts = ablated(tables, names)
    if not contrasts:
        yield missing(who("tuned", names), "no verdicts by prompt were kept")
    for contrast in contrasts:
        yield from sentences(contrast)


# -- weights ------------------------------------------------------------------------------------------------


def above(table: pd.DataFrame, column: str, model: str, other: str) -> tuple[int, int]:
    """In how many matrices a model's number lies above another's, and of how many that both have."""
    wide = table.pivot_table(index=["layer", "kind"], columns="model", values=column)
    if not {model, other} <= set(wide):
        return 0, 0
    both = wide[[model, other]].dropna()
    return int((both[model] > both[other]).sum()), len(both)


def aligned(changes: pd.DataFrame, energy: int) -> pd.DataFrame:
    """The alignments with the left null space less what chance gives, as column ``excess``."""
    return changes.assign(excess=changes[f"alignment_{energy}"] - changes[f"chance_{energy}"])


def _weights(tables: Tables, names: Names) -> Said:
    changes = tables["weight_changes"]
    for model in models_in(changes):
        rows = rows_of(changes, model=model)
        if model != "random":
            size = Estimate(value=float(rows["relative_norm"].median()))
            yield level(who(model, names), f"median ||dW|| / ||W|| over {len(rows)} matrices", size)
        rank = Estimate(value=float(rows["effective_rank"].median()))
        yield level(who(model, names), "median effective rank of dW", rank, unit="")
    for energy in (90, 99):
        over = aligned(changes, energy)
        for model in models_in(changes):
            known = rows_of(over, model=model)["excess"].dropna()
            what = f"matrices of dW lie closer to the left null space of W ({energy} % energy) than by chance"
            if len(known):
                yield counted(who(model, names), int((known > 0).sum()), len(known), what)
        hits, n = above(over, "excess", "tuned", "random")
        if n:
            what = (
                f"matrices of dW lie closer to the left null space of W ({energy} % energy) than a random dW"
            )
            yield counted(who("tuned", names), hits, n, what, expected=n / 2)


def _action(tables: Tables, names: Names) -> Said:
    for positions in _positions(tables["action_ratios"]):
        ratios = rows_of(tables["action_ratios"], positions=positions)
        for model in models_in(ratios):
            rows = ratios[(ratios["model"] == model)]
            known = rows[rows["low"].notna()]
            what = f"matrices with ||dW a|| / ||a|| {WHERE[positions]} larger on unsafe than on safe prompts (interval)"
            if len(known):
                hits = int((known["low"] > 1).sum())
                unknown = len(rows) - len(known)
                yield counted(
                    who(model, names), hits, len(known), what, expected=0.025 * len(known), unknown=unknown
                )
        values = [
            Named(name=f"layer {r.layer} {r.kind}", estimate=Estimate(value=r.ratio, low=r.low, high=r.high))
            for r in rows_of(ratios, model="tuned").itertuples()
        ]
        if any(v.estimate.known for v in values):
            measure = f"ratio of ||dW a|| / ||a|| {WHERE[positions]}, unsafe over safe,"
            yield extremes(who("tuned", names), measure, values, unit="", of="matrices")


def along_direction(table: pd.DataFrame) -> tuple[int, int]:
    """In how many matrices dW has more energy on the refusal direction than 97.5 % of random ones; of how many."""
    key = ["layer", "kind"]
    own = table[table["what"] == "energy"].set_index(key)["value"].dropna()
    drawn = table[table["what"] == "energy_random"].set_index(key)["high"].reindex(own.index)
    return int((own > drawn).sum()), len(own)


def _links(tables: Tables, names: Names) -> Said:
    table, subject = tables["links"], who("tuned", names)
    hits, n = along_direction(table)
    if n:
        what = (
            "matrices with more of dW's energy along the refusal direction than 97.5 % of random directions"
        )
        yield counted(subject, hits, n, what, expected=0.025 * n)
    medians = table.groupby("what", sort=False)[["value", "chance"]].median()
    measures = {
        "cosine_first": ("|cosine| of the refusal direction with dW's first left singular vector", "cosine"),
        "cosine_top": ("length of the refusal direction within dW's top left singular vectors", "cosine"),
        **{
            name: (f"share of dW's energy in the weights that {name} scores highest", "share")
            for name in SETS
        },
    }
    for name, (measure, unit) in measures.items():
        if name in medians.index and medians.loc[name, "value"] == medians.loc[name, "value"]:
            for value, words in (("value", f"median {measure}"), ("chance", f"by chance: {measure}")):
                yield level(subject, words, Estimate(value=float(medians.loc[name, value])), unit=unit)
