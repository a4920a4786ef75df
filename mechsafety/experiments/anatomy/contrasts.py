"""The contrasts of an anatomy: models beside each other in their activations, answers and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from scipy.stats import mannwhitneyu

from mechsafety.anatomy.clusters import TAU_COLUMNS, d_prime_p
from mechsafety.anatomy.sensitivity import exchange_p, median_change
from mechsafety.claims import (
    Claim,
    Contrast,
    Estimate,
    corrected_over,
    decide,
    of_values,
    paired_binary,
    paired_control,
    unpaired_counts,
)
from mechsafety.claims.contrasts import UNKNOWN
from mechsafety.claims.shared import once
from mechsafety.experiments.anatomy.naming import (
    SAFE,
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

Verdicts = dict[object, str]


# -- activations --------------------------------------------------------------------------------------------


def last_layer(table: pd.DataFrame, positions: str) -> pd.DataFrame:
    """The rows of the last layer at ``positions``."""
    rows = table[table["positions"] == positions]
    return rows[rows["layer"] == rows["layer"].max()]


def first_of(rows: pd.DataFrame, value: str, *ends: str) -> Estimate:
    """One row's value with its interval; unknown where there is no row."""
    return Estimate.of_row(rows.iloc[0].to_dict(), value, *ends) if len(rows) else UNKNOWN


def positions_in(table: pd.DataFrame) -> list[str]:
    """The last prompt token first: there is no answer yet that could be read."""
    return [p for p in ("last_prompt", "output") if p in set(table["positions"])]


@once
def apart(tables: Tables, names: Names) -> dict[tuple[str, str], Contrast]:
    """d' of tau of the tuned model against each other one's, by position and that model; corrected over all.

    Tested on the tau of prompts (:func:`~mechsafety.anatomy.clusters.d_prime_p`), where the run holds these.
    """
    keys = [(p, m) for p in positions_in(tables["separation"]) for m in ("base", "control")]
    found = [_apart(tables, names, "tuned", against, positions) for positions, against in keys]
    return dict(zip(keys, corrected_over(found, "models and positions"), strict=True))


def _apart(tables: Tables, names: Names, model: str, against: str, positions: str) -> Contrast:
    last = last_layer(tables["separation"], positions)
    ends = [
        first_of(rows_of(last, model=m), "d_prime", "d_prime_low", "d_prime_high") for m in (against, model)
    ]
    changes = tables.get("d_prime_changes", pd.DataFrame(columns=["model", "against", "positions", "layer"]))
    change = first_of(
        rows_of(last_layer(changes, positions), model=model, against=against), "change", "low", "high"
    )
    p = d_prime_p(_tau(tables, positions), against, model) if change.known else math.nan
    return of_values(
        subject=who(model, names),
        measure=f"d' of tau {WHERE[positions]}, last layer",
        unit="",
        states=(against, model),
        before=ends[0],
        after=ends[1],
        difference=change,
        test="exchange of models" if p == p else "",
        p=p,
    )


def _tau(tables: Tables, positions: str) -> pd.DataFrame:
    """tau of safe and unsafe prompts in the last layer; empty where the run does not hold it."""
    table = tables.get("tau", pd.DataFrame(columns=TAU_COLUMNS))
    return last_layer(table[table["group"].isin([SAFE, UNSAFE])], positions)


@once
def separated(tables: Tables, names: Names) -> dict[tuple[str, str], Contrast]:
    """AUROC of tau against that of chance, one half, by position and model; corrected over all."""
    keys = [(p, m) for p in positions_in(tables["separation"]) for m in models_in(tables["separation"])]
    found = [_separated(tables, names, model, positions) for positions, model in keys]
    return dict(zip(keys, corrected_over(found, "models and positions"), strict=True))


def _separated(tables: Tables, names: Names, model: str, positions: str) -> Contrast:
    rows = rows_of(last_layer(tables["separation"], positions), model=model)
    found = first_of(rows, "auroc", "auroc_low", "auroc_high")
    tau = rows_of(_tau(tables, positions), model=model)
    safe, unsafe = (tau.loc[tau["group"] == group, "tau"].dropna() for group in (SAFE, UNSAFE))
    p = float(mannwhitneyu(safe, unsafe).pvalue) if found.known and len(safe) and len(unsafe) else math.nan
    return of_values(
        subject=who(model, names),
        measure=f"AUROC of tau {WHERE[positions]}, last layer",
        unit="AUROC",
        states=("by chance", "measured"),
        before=Estimate(value=0.5),
        after=found,
        difference=Estimate(value=found.value - 0.5, low=found.low - 0.5, high=found.high - 0.5),
        test="Mann-Whitney" if p == p else "",
        p=p,
    )


@once
def sides(tables: Tables, names: Names) -> dict[str, Contrast]:
    """Which of the attacks on the tuned model lie on the safe side: those that failed against those that succeeded.

    By position; corrected over both.
    """
    there = positions_in(rows_of(tables["attack_tau"], model="tuned"))
    found = [_sides(tables, names, positions) for positions in there]
    return dict(zip(there, corrected_over(found, "positions"), strict=True))


def _sides(tables: Tables, names: Names, positions: str) -> Contrast:
    rows = rows_of(last_layer(tables["attack_tau"], positions), model="tuned", family="all")
    counts = {}
    for outcome in ("failed", "success"):
        one = rows[(rows["outcome"] == outcome) & rows["on_safe_side"].notna()]
        n = int(one["n"].iloc[0]) if len(one) else 0
        counts[outcome] = (round(float(one["on_safe_side"].iloc[0]) * n) if n else 0, n)
    return unpaired_counts(
        subject=who("tuned", names),
        measure=f"attacks on the safe side of tau {WHERE[positions]}, last layer",
        before=counts["failed"],
        after=counts["success"],
        states=("failed", "successful"),
    )


@once
def sensitive(tables: Tables, names: Names, group: str, before: str, after: str) -> Contrast:
    """Medians of the sensitivity of two models, and whether their difference is one beyond exchanges of the models."""
    medians = rows_of(tables["sensitivity"], group=group)
    ends = [first_of(rows_of(medians, model=model), "median", "low", "high") for model in (before, after)]
    change, p = UNKNOWN, math.nan
    if "norms" in tables:
        norms = rows_of(tables["norms"], group=group).pivot(index="id", columns="model", values="norm")
        if {before, after} <= set(norms):
            (value, low, high), p = median_change(norms, before, after), exchange_p(norms, before, after)
            change = Estimate(value=value, low=low, high=high)
    return of_values(
        subject=who(after, names),
        measure=f"sensitivity of the first token, median over {prompts_of(group)}",
        unit="",
        states=(before, after),
        before=ends[0],
        after=ends[1],
        difference=change,
        test="exchange of models" if p == p else "",
        p=p,
    )


@once
def sensitivities(tables: Tables, names: Names) -> list[Contrast]:
    """Each changed model against the base on each group of prompts, unsafe ones first; corrected over all."""
    there = models_in(tables["sensitivity"])
    changed = [model for model in there if model != "base"] if "base" in there else []
    groups = sorted(dict.fromkeys(tables["sensitivity"]["group"]), key=lambda group: group != UNSAFE)
    found = [sensitive(tables, names, group, "base", model) for group in groups for model in changed]
    return corrected_over(found, "models and groups")


def prompts_of(group: str) -> str:
    return f"{group} prompts" if group in (SAFE, UNSAFE) else f"attacks ({group})"


# -- answers ------------------------------------------------------------------------------------------------


def verdicts_of(tables: Tables, part: str, model: str, state: str, group: str) -> Verdicts:
    """Verdicts by prompt of a model in a state; empty where none was kept."""
    if "verdicts" not in tables:
        return {}
    rows = rows_of(tables["verdicts"], part=part, model=model, state=state, group=group)
    return dict(zip(rows["id"], rows["label"], strict=True))


def own_verdicts(tables: Tables, role: str, group: str) -> Verdicts:
    return verdicts_of(tables, "own answers", role, "held-out", group)


def refusals(
    subject: str,
    group: str,
    before: Mapping[object, str],
    after: Mapping[object, str],
    states: tuple[str, str],
) -> Contrast:
    """Refusals of a group of prompts in two states, prompt by prompt."""
    subject = subject if group == UNSAFE else f"{subject} on {prompts_of(group)}"
    return paired_binary(
        before, after, subject=subject, measure=f"refusals of {prompts_of(group)}", states=states
    )


def with_control(
    contrast: Contrast, name: str, after: Mapping[object, str], drawn: Mapping[object, str]
) -> Contrast:
    """The contrast beside the state that is its control, where there is one."""
    return replace(contrast, control=paired_control(name, after, [drawn])) if drawn else contrast


@once
def grown(tables: Tables, names: Names) -> Contrast:
    """Refusals of unsafe prompts at the ends of the line, the benign model's as the control."""
    base, tuned, benign = (own_verdicts(tables, role, UNSAFE) for role in ("base", "tuned", "control"))
    contrast = refusals(who("tuned", names), UNSAFE, base, tuned, ("alpha 0", "alpha 1"))
    return with_control(contrast, "the benign fine-tuning", tuned, benign)


def between(tables: Tables, names: Names, group: str, before: float, after: float) -> Contrast:
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


@once
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
        subject = all_of(names) if state == "tuned" else state_name(state, 0.0)
        contrast = refusals(subject, UNSAFE, base, after, ("base", state_name(state, 0.0)))
        if state == "random":  # a control: tested alone, so that a change of its own is not corrected away
            controls.append(contrast)
        else:
            found.append(with_control(contrast, "a random dW of the same norm", after, random))
    return [*corrected_over(found, "states"), *controls]


def all_of(names: Names) -> str:
    return f"base with all that {who('tuned', names)} changed"


def by_rank(tables: Tables, what: str, start: str, ranks: Sequence[float]) -> list[Claim]:
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


@once
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


def along_direction(table: pd.DataFrame) -> tuple[int, int]:
    """In how many matrices dW has more energy on the refusal direction than 97.5 % of random ones; of how many."""
    key = ["layer", "kind"]
    own = table[table["what"] == "energy"].set_index(key)["value"].dropna()
    drawn = table[table["what"] == "energy_random"].set_index(key)["high"].dropna()
    both = own.index.intersection(drawn.index)
    return int((own[both] > drawn[both]).sum()), len(both)
