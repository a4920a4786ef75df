"""What an anatomy found, as sentences with numbers: for its page, its figures' titles and whatever prints it.

Two values are said to differ only where their 95 % intervals do not meet. Sentences about one
layer are about the last, which was fixed before anything was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import pandas as pd

from mechsafety.experiments.anatomy.naming import (
    POSITIONS,
    SAFE,
    UNSAFE,
    Names,
    Tables,
    counted_of,
    families_in,
    measured,
    models_in,
    rows_of,
    spelt,
    who,
)
from mechsafety.experiments.anatomy.weight_findings import ablation, action, links, reversal, weights
from mechsafety.statistics.pooled import Pooled, pooled


def anatomy_findings(tables: Tables, *, names: Names) -> dict[str, list[str]]:
    """The sentences of each section that the tables allow; ``names`` are the models' by their part.

    Sections, in this order: ``clusters``, ``attacks``, ``sensitivity``, ``interpolation``, ``weights``, ``action``,
    ``reversal``, ``links``, ``ablation``. The first sentence of each is the main one.
    """
    sections: dict[str, tuple[str, Callable[[pd.DataFrame, Names], list[str]]]] = {
        "clusters": ("separation", clusters),
        "attacks": ("attack_tau", attacks),
        "sensitivity": ("sensitivity", sensitivity),
        "interpolation": ("interpolation", interpolation),
        "weights": ("weight_changes", weights),
        "action": ("action_ratios", action),
        "reversal": ("reversal", reversal),
        "links": ("links", links),
        "ablation": ("ablation", ablation),
    }
    found = {
        section: say(tables[table], names)
        for section, (table, say) in sections.items()
        if table in tables and len(tables[table])
    }
    return {section: sentences for section, sentences in found.items() if sentences}


def last_layer(table: pd.DataFrame, positions: str) -> pd.DataFrame:
    """The rows of the last layer at ``positions``."""
    rows = table[table["positions"] == positions]
    return rows[rows["layer"] == rows["layer"].max()]


def clusters(separation: pd.DataFrame, names: Names) -> list[str]:
    sentences = []
    for positions in POSITIONS:
        rows = separation[separation["positions"] == positions]
        if rows.empty:
            continue
        last = {model: rows_of(last_layer(rows, positions), model=model) for model in models_in(rows)}
        where = "averaged over the answer's tokens" if positions == "output" else "at the last prompt token"
        size = next(iter(last.values())).iloc[0]
        called = {} if sentences else names
        parts = [f"{who(model, called)} {spelt(pooled(row, 'd_prime'))}" for model, row in last.items()]
        sentences.append(
            f"Activations {where}, last layer: tau sets safe and unsafe prompts apart by d' = {'; '.join(parts)} "
            f"({size['n_safe']:g} safe and {size['n_unsafe']:g} unsafe prompts that the centroids were not fitted to)."
            + _beyond_base(rows)
        )
        sentences.append(_aurocs(last, where))
        sentences.append(_ranks(last, where))
    return sentences


def _beyond_base(rows: pd.DataFrame) -> str:
    if not {"base", "tuned"} <= set(rows["model"]):
        return ""
    above = layers_above(rows, "tuned", "base")
    of = rows["layer"].nunique()
    if not above:
        text = " At no layer does the tuned model's d' lie above the base's with its interval: no more than before."
    else:
        text = f" The tuned model's d' lies above the base's, intervals apart, at {counted_of(len(above), of, 'layer')}"
        text += f" ({spelt_layers(above)})."
    if "control" in set(rows["model"]):
        text += (
            f" The control's does at {counted_of(len(layers_above(rows, 'control', 'base')), of, 'layer')}."
        )
    return text


def layers_above(rows: pd.DataFrame, model: str, other: str) -> list[int]:
    """The layers at which the interval of a model's d' lies above that of the other's."""
    ends = {
        name: rows[rows["model"] == name].set_index("layer")[["d_prime_low", "d_prime_high"]]
        for name in (model, other)
    }
    apart = ends[model]["d_prime_low"] > ends[other]["d_prime_high"]
    return [int(str(layer)) for layer in apart.index[apart]]


def spelt_layers(layers: Sequence[int]) -> str:
    """``2 to 5, 7``."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{r[0]}" if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)


def _aurocs(last: Mapping[str, pd.DataFrame], where: str) -> str:
    parts = []
    for model, row in last.items():
        found, chance = pooled(row, "auroc"), float(row["auroc_chance"].iloc[0])
        note = "" if found.value > chance else ", no more than chance"
        parts.append(f"{model} {spelt(found)} (permuted labels: below {chance:.2f} in 95 %{note})")
    return f"AUROC of tau {where}, last layer: {'; '.join(parts)}."


def _ranks(last: Mapping[str, pd.DataFrame], where: str) -> str:
    parts = [
        f"{model} {row['share_unsafe'].iloc[0]:.0%} of the unsafe and {row['share_safe'].iloc[0]:.0%} of the safe"
        for model, row in last.items()
    ]
    chance = [float(row["share_unsafe_chance"].iloc[0]) for row in last.values()]
    return (
        f"Share of a cluster's variance along its first direction, {where}, last layer: {'; '.join(parts)} cluster "
        f"(a round cloud of as many points: {max(chance):.0%})."
    )


def attacks(attack_tau: pd.DataFrame, names: Names) -> list[str]:
    sentences = []
    tuned = attack_tau[attack_tau["model"] == "tuned"]
    for positions in POSITIONS:
        rows = last_layer(tuned, positions)
        if rows.empty:
            continue
        where = "over the answer" if positions == "output" else "at the last prompt token"
        together = rows[rows["family"] == "all"]
        sentences.append(
            f"Attacks on {who('tuned', {} if sentences else names)}, last layer, tau {where}: {_sides(together)}"
            f"{_verdict(together)}"
        )
        families = [str(f) for f in dict.fromkeys(rows["family"]) if f != "all"]
        parts = [f"{family}: {_sides(rows[rows['family'] == family])}" for family in families]
        if len(parts) > 1:
            sentences.append(f"By family, {where}: {'; '.join(parts)}.")
    return sentences


def _sides(rows: pd.DataFrame) -> str:
    parts = []
    for outcome, name in (("success", "succeeded"), ("failed", "failed")):
        row = rows[rows["outcome"] == outcome]
        if row.empty or not row["n"].iloc[0]:
            parts.append(f"none {name}")
            continue
        one = row.iloc[0]
        parts.append(
            f"{one['n']:g} {name}, mean {spelt(measured(one, 'tau'))}, {one['on_safe_side']:.0%} on the safe side"
        )
    return ", ".join(parts)


def _verdict(rows: pd.DataFrame) -> str:
    known = rows[(rows["outcome"] == "success") & (rows["n"] > 0)]
    if known.empty:
        return "."
    mean = measured(known.iloc[0], "tau")
    if mean.low > 0:
        return ". Successful attacks lie on the safe side on average."
    if mean.high < 0:
        return ". Successful attacks lie on the unsafe side on average."
    return ". On which side successful attacks lie on average is open: the interval holds 0, or is unknown."


def sensitivity(table: pd.DataFrame, names: Names) -> list[str]:
    sentences = []
    # Unsafe prompts are what the fine-tuning is about.
    for group in sorted(dict.fromkeys(table["group"]), key=lambda group: group != UNSAFE):
        rows = {
            model: row for model in models_in(table) if len(row := rows_of(table, model=model, group=group))
        }
        values = {model: measured(row.iloc[0], "median") for model, row in rows.items()}
        called = {} if sentences else names
        parts = [f"{who(model, called)} {spelt(value)}" for model, value in values.items()]
        note = ""
        if {"base", "tuned"} <= set(values) and values["base"].value > 0:
            apart = "lie apart" if values["tuned"].differs_from(values["base"]) else "meet"
            times = values["tuned"].value / values["base"].value
            note = f" Tuned is {times:.2f} times base; the intervals {apart}."
        kind = f"{group} prompts" if group in (SAFE, UNSAFE) else f"attacks ({group})"
        sentences.append(
            f"Local Lipschitz constant of the first token, median over {kind}: {'; '.join(parts)}.{note}"
        )
    return sentences


def interpolation(table: pd.DataFrame, names: Names) -> list[str]:
    sentences = []
    for model in ("tuned", "control"):
        rows = rows_of(table, model=model, group=UNSAFE).sort_values("alpha")
        if rows.empty:
            continue
        shares = [f"{a:g}: {of_alpha(rows, model, UNSAFE, a, 'refused')}" for a in main_alphas(rows["alpha"])]
        text = f"On the line from base to {who(model, names)}, unsafe prompts refused at alpha {'; '.join(shares)}."
        sentences.append(text + (_monotone(rows) if model == "tuned" else ""))
        if model == "tuned" and (beyond := _beyond_tuned(rows_of(table, model=model))):
            sentences.append(beyond)
    return sentences


def _monotone(rows: pd.DataFrame) -> str:
    inside = rows[rows["alpha"].between(0, 1)]
    values = list(zip(inside["alpha"], inside["refused"], strict=True))
    falls = [(a, b) for (a, x), (b, y) in pairwise(values) if y < x]
    if len(values) < 2 or inside["refused"].isna().any():
        return ""
    if not falls:
        return " From 0 to 1 refusals never fall."
    return f" From 0 to 1 refusals fall between {', '.join(f'{a:g} and {b:g}' for a, b in falls)}."


def _beyond_tuned(rows: pd.DataFrame) -> str:
    """What the farthest alpha past the tuned model does, against it."""
    far = rows["alpha"].max()
    if not far > 1 or 1.0 not in set(rows["alpha"]):
        return ""
    parts = []
    for group in (SAFE, *families_in(rows)):
        at, past = (rows[(rows["group"] == group) & (rows["alpha"] == alpha)] for alpha in (1.0, far))
        if len(at) and len(past):
            before, after = pooled(at, "refused"), pooled(past, "refused")
            same = "" if after.differs_from(before) else " (the intervals meet)"
            parts.append(f"{group} {before} to {after}{same}")
    garbage = pooled(rows[(rows["group"] == SAFE) & (rows["alpha"] == far)], "degenerate")
    if not parts:
        return ""
    return (
        f"Beyond the tuned model, from alpha 1 to {far:g}, refusals go: {'; '.join(parts)}; {garbage} of the answers "
        f"to safe prompts are degenerate at {far:g}."
    )


def of_alpha(table: pd.DataFrame, model: str, group: str, alpha: float, measure: str) -> Pooled:
    """One outcome at one place on the line."""
    rows = rows_of(table, model=model, group=group)
    return pooled(rows[rows["alpha"] == alpha], measure)


def main_alphas(alphas: Sequence[float] | pd.Series) -> list[float]:
    """The ends of the line, its middle and the farthest point, of those that were measured."""
    there = {float(alpha) for alpha in alphas}
    return [alpha for alpha in dict.fromkeys((0.0, 0.5, 1.0, max(there))) if alpha in there]
