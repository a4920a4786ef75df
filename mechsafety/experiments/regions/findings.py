"""What a regions run found, as sentences with numbers: for its page, its figures' titles and a study's report.

Several calibration draws or random controls are pooled as their mean, with the span from the lowest to the highest
end of their 95 % intervals: the draws share their prompts, so that more draws make no narrower interval. Two states
are said to differ only where these spans do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from mechsafety.plots.attacks import attack_name
from mechsafety.plots.panels import size_text
from mechsafety.robustness.tradeoff import CONTROLS
from mechsafety.statistics.pooled import Pooled, pooled

REMOVAL_NAMES = {
    "set_difference": "set difference",
    "orthogonal_projection": "orthogonal projection",
    "top_safety": "top safety weights alone",
    "pruning": "plain pruning",
    "heads": "best heads",
}
CONTROL_NAMES = {
    "random": "random control, matched in number",
    "matched": "random control, matched in size",
}
METHOD_NAMES = {"snip": "SNIP", "wanda": "Wanda", "actsvd": "ActSVD"}
MODE_NAMES = {"freeze": "frozen", "rewind": "rewound"}
_UNRELATED = 0.5  # AUROC of a coin


def removals_of(tradeoff: pd.DataFrame) -> list[str]:
    """What was removed, in the order of the table."""
    return [name for name in dict.fromkeys(tradeoff["removal"]) if name != "none"]


def told_setting(tradeoff: pd.DataFrame, removal: str, sweet_spot: Mapping[str, Any] | None) -> str:
    """The setting that sentences speak of: the sweet spot, else the one with the most coherent compliance."""
    rows = tradeoff[(tradeoff["removal"] == removal) & (tradeoff["control"] == "removed")]
    named = (sweet_spot or {}).get("setting") if (sweet_spot or {}).get("removal") == removal else None
    if named in set(rows["setting"]):
        return str(named)
    means = rows.groupby("setting", sort=False)["complied"].mean()
    return str(means.idxmax()) if means.notna().any() else str(rows["setting"].iloc[0])


def region_findings(
    tables: Mapping[str, pd.DataFrame], *, name: str, sweet_spot: Mapping[str, Any] | None
) -> dict[str, list[str]]:
    """The sentences of every table, by its name; ``sweet_spot`` is the manifest's section, ``name`` the model's."""
    told: dict[str, Callable[[pd.DataFrame], list[str]]] = {
        "tradeoff": lambda table: _tradeoff(table, name=name, sweet_spot=sweet_spot),
        "structure": _structure,
        "subspaces": _subspaces,
        "attacks": _attacks,
        "links": _links,
        "link_effects": _link_effects,
        "heads": _heads,
        "freezing": _freezing,
    }
    return {key: say(tables[key]) for key, say in told.items() if key in tables and len(tables[key])}


def main_findings(found: Mapping[str, list[str]]) -> list[str]:
    """What stands first: removals, overlap and fine-tuning; whatever there is where the run has none of these."""
    main = [key for key in found if key in ("tradeoff", "structure", "subspaces", "freezing")]
    return [said for key in main or found for said in found[key]]


def _tradeoff(table: pd.DataFrame, *, name: str, sweet_spot: Mapping[str, Any] | None) -> list[str]:
    model = table[table["control"] == "model"]
    said = []
    if len(model):
        said.append(
            f"{name} as it is refuses {pooled(model, 'refused')} of {size_text(model, 'harmful_n')} harmful and "
            f"{pooled(model, 'harmless_refused')} of {size_text(model, 'harmless_n')} harmless prompts."
        )
    if sweet_spot and sweet_spot.get("explanation"):
        said.append(str(sweet_spot["explanation"]))
    return said + [_removal(table, model, removal, sweet_spot) for removal in removals_of(table)]


def _removal(
    table: pd.DataFrame, model: pd.DataFrame, removal: str, sweet_spot: Mapping[str, Any] | None
) -> str:
    rows = table[table["removal"] == removal]
    setting = told_setting(table, removal, sweet_spot)
    rows = rows[rows["setting"] == setting]
    removed = rows[rows["control"] == "removed"]
    refused, complied, degenerate = (pooled(removed, m) for m in ("refused", "complied", "degenerate"))
    several = len(set(table[table["removal"] == removal]["setting"])) > 1
    chosen = (sweet_spot or {}).get("removal") == removal and (sweet_spot or {}).get("setting") == setting
    which = "the sweet spot" if chosen else "the setting with the most coherent compliance"
    said = (
        f"{REMOVAL_NAMES.get(removal, removal).capitalize()}, {setting}{f' ({which})' if several else ''}, removes "
        f"{_share(removed)}: {refused} of harmful prompts are then refused, {complied} answered coherently and "
        f"{degenerate} degenerate{_draws(removed)}."
    )
    for control in CONTROLS:
        said += _against(refused, complied, rows[rows["control"] == control], control)
    if len(model):
        before = pooled(model, "refused")
        if not refused.differs_from(before):
            said += " No effect on refusals was seen: the intervals with and without the removal meet."
        elif degenerate.value > complied.value:
            said += " Most of what is no longer refused is degenerate text: the model is broken rather than unsafe."
        said += _cost(removed, model)
    return said


def _against(refused: Pooled, complied: Pooled, rows: pd.DataFrame, control: str) -> str:
    if rows.empty:
        return ""
    left, obeyed = pooled(rows, "refused"), pooled(rows, "complied")
    said = (
        f" {CONTROL_NAMES[control].capitalize()}: {left} refused, {obeyed} answered coherently{_draws(rows)};"
    )
    if refused.differs_from(left):
        return f"{said} the intervals lie apart in {'both' if complied.differs_from(obeyed) else 'refusals'}."
    beyond = "chance" if control == "random" else "the size of what is removed"
    return f"{said} the intervals of refusals meet, so no effect beyond {beyond} was seen."


def _cost(removed: pd.DataFrame, model: pd.DataFrame) -> str:
    parts = []
    before, after = pooled(model, "accuracy"), pooled(removed, "accuracy")
    if after.draws and before.draws:
        same = "" if after.differs_from(before) else " (the intervals meet)"
        parts.append(f"accuracy goes from {before} to {after}{same}")
    before, after = pooled(model, "perplexity"), pooled(removed, "perplexity")
    if after.draws and before.value > 0:
        parts.append(f"perplexity to {after.value / before.value:.2g} times what it was")
    return f" {' and '.join(parts).capitalize()}." if parts else ""


def _structure(table: pd.DataFrame) -> list[str]:
    said = []
    for (method, q), rows in table.groupby(["method", "q"], sort=False):
        kinds = rows.groupby("kind", sort=False)["jaccard"].mean()
        mean, chance = rows["jaccard"].mean(), rows["chance"].mean()
        said.append(
            f"{METHOD_NAMES.get(str(method), method)}: the top {q:g}% sets of safety and utility have a mean Jaccard "
            f"index of {mean:.2f} over {len(rows)} matrices (lowest in {kinds.idxmin()}, {kinds.min():.2f}; highest in "
            f"{kinds.idxmax()}, {kinds.max():.2f}; random sets {chance:.3f}): they share {times_chance(rows):.1f} "
            "times as many weights as random sets."
        )
    return said


def times_chance(structure: pd.DataFrame) -> float:
    """How many times as many weights the two sets of each matrix share as random sets of their size would.

    Two sets of equal size with Jaccard index J share 2 J / (1 + J) of each, so this is the mean of that over the mean
    of the same at chance: 1 for unrelated sets, 1 / q for equal top-q sets. A ratio of the indices themselves would
    say 39 of equal top-5 % sets, since the union shrinks as the sets come to agree.
    """
    shared, chance = (2 * structure[name] / (1 + structure[name]) for name in ("jaccard", "chance"))
    return float(shared.mean() / chance.mean())


def _subspaces(table: pd.DataFrame) -> list[str]:
    kinds = table.groupby("kind", sort=False)[["phi", "chance", "excess"]].mean()
    known = kinds["excess"].dropna()
    told = (
        f"Output subspaces of safety and utility: similarity phi {kinds['phi'].min():.2f} to {kinds['phi'].max():.2f} "
        f"by kind of matrix, where random subspaces have {kinds['chance'].min():.2f} to {kinds['chance'].max():.2f}"
    )
    if known.empty:
        return [f"{told}."]
    return [
        f"{told}; of the way from chance to identical they go {known.min():.0%} ({known.idxmin()}) to "
        f"{known.max():.0%} ({known.idxmax()})."
    ]


def _attacks(table: pd.DataFrame) -> list[str]:
    said = []
    for system, rows in table.groupby("system", sort=False):
        parts = [
            f"{attack_name(row)} {_rate(row['asr'], row['low'], row['high'])}"
            for row in rows.to_dict(orient="records")
        ]
        said.append(f"Answered coherently under attack ({system}): {'; '.join(parts)}.")
    return said


def _links(table: pd.DataFrame) -> list[str]:
    said = []
    for (removal, method), rows in table.groupby(["removal", "method"], sort=False):
        share, random, chance = (
            rows[name].median() for name in ("share_removed_on_direction", "random", "chance")
        )
        if share == share:
            said.append(
                f"Of what the weights that {removal} ({METHOD_NAMES.get(str(method), method)}) takes wrote to the "
                f"residual stream, a median of {share:.2%} lies on the refusal direction; of random weights' "
                f"{random:.2%}, and {chance:.2%} lies on a random direction."
            )
    return said


def _link_effects(table: pd.DataFrame) -> list[str]:
    parts = [f"{state} {pooled(rows, 'refused')}" for state, rows in table.groupby("state", sort=False)]
    return [
        f"Harmful prompts refused with the region removed, the direction ablated, and both: {'; '.join(parts)}."
    ]


def _heads(table: pd.DataFrame) -> list[str]:
    known = table[table["auroc"].notna()]
    if known.empty:
        return []
    best = known.loc[known["auroc"].idxmax()]
    apart = int((known["low"] > _UNRELATED).sum())
    return [
        f"Linear probes of single heads: the best of {len(known)} is layer {int(best['layer'])}, head "
        f"{int(best['head'])}, with AUROC {best['auroc']:.2f} [{best['low']:.2f}, {best['high']:.2f}] on held-out "
        f"prompts (the best of many looks better than it is); {apart} have intervals above 0.5."
    ]


def _freezing(table: pd.DataFrame) -> list[str]:
    most = table[table["n_examples"] == table["n_examples"].max()]
    groups = [
        (mode_name(*key), rows) for key, rows in most.groupby(["mode", "frozen"], sort=False, dropna=False)
    ]
    plain = most[most["mode"] == "none"]
    reached = pooled(plain, "complied")
    parts = []
    for named, rows in groups:
        found = pooled(rows, "complied")
        note = ""
        if reached.draws and not (rows["mode"] == "none").all():
            note = (
                " (less)"
                if reached.above(found)
                else " (more)"
                if found.above(reached)
                else " (no difference seen)"
            )
        parts.append(f"{named} {found}{note}")
    n = size_text(most, "n_examples")
    return [
        f"After fine-tuning on {n} benign examples, coherent compliance with harmful prompts: {'; '.join(parts)}."
    ]


def mode_name(mode: str, frozen: str) -> str:
    """``safety frozen``: what was kept in the fine-tuning, and how."""
    return "nothing kept" if mode == "none" else f"{frozen} {MODE_NAMES.get(mode, mode)}"


def _draws(rows: pd.DataFrame) -> str:
    return f" (mean of {len(rows)} draws)" if len(rows) > 1 else ""


def _share(rows: pd.DataFrame) -> str:
    share = rows["share"].mean()
    unit = "of the ranks" if rows["r_s"].notna().any() else "of the weights"
    return f"an unknown share {unit}" if share != share else f"{100 * share:.2g}% {unit}"


def _rate(value: float, low: float, high: float) -> str:
    return str(Pooled(value=value, low=low, high=high, draws=1))
