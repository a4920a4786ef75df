"""How the refusals of a ladder's systems lie to each other and to what training changed, as sentences with numbers."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from mechsafety.experiments.ladder.words import span

_SETS = {
    "snip": "the 5 % of weights that refusals need most by SNIP",
    "wanda": "the 5 % of weights that refusals need most by Wanda",
    "magnitude": "the largest 5 % of weights",
}


def cosine_sentences(at: pd.DataFrame, names: Mapping[str, str], layer: int | None) -> list[str]:
    known = at[at["cosine"].notna()]
    if known.empty:
        return []
    low, high = known.loc[known["cosine"].idxmin()], known.loc[known["cosine"].idxmax()]
    said = (
        f"Cosine of two systems' refusal directions at layer {layer}: from {_cosine(low, names)} to "
        f"{_cosine(high, names)}"
        if len(known) > 1
        else f"Cosine of the refusal directions at layer {layer}: {_cosine(low, names)}"
    )
    floor = known["harmless_high"]
    if floor.notna().any():
        above = int((known["low"] > floor).sum())
        said += (
            f". {above} of {len(known)} pairs lie above what directions between halves of the harmless prompts reach "
            f"({span(floor, '.2f')}, 95 %)"
        )
    return [f"{said}."]


def _cosine(row: pd.Series, names: Mapping[str, str]) -> str:
    ends = "" if row["low"] != row["low"] else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['cosine']:.2f}{ends} ({names.get(row['a'], row['a'])} and {names.get(row['b'], row['b'])})"


def angle_sentences(at: pd.DataFrame, layer: int | None) -> list[str]:
    known = at[at["angle"].notna()]
    if known.empty:
        return []
    k = int(known["index"].max())
    parts = [
        f"{span(rows['angle'], '.0f')}° (same system, halves of the prompts: "
        f"{span(rows[['ceiling_a', 'ceiling_b']].to_numpy(), '.0f')}°; random: from {rows['random_low'].min():.0f}°)"
        for _, rows in known[known["index"].isin([1, k])].groupby("index")
    ]
    ends = f"smallest {parts[0]}" + (f"; largest {parts[1]}" if len(parts) > 1 else "")
    return [
        f"Principal angles between refusal subspaces of {k} dimensions at layer {layer}, over pairs: {ends}."
    ]


def transfer_sentences(table: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    foreign = table[table["source"] != table["target"]]
    usable = foreign[(foreign["base"] > 0) & foreign["share"].notna()]
    if usable.empty:
        return ["No system loses refusal by its own direction, so that none can be seen to carry over."]
    beyond = usable[usable["low"] > usable[["random_max", "harmless_max"]].max(axis=1)]
    weak, strong = usable.loc[usable["share"].idxmin()], usable.loc[usable["share"].idxmax()]
    named = [
        f"{row['share']:.0%} ({names.get(row['source'], row['source'])}'s in {names.get(row['target'], row['target'])})"
        for row in (weak, strong)
    ]
    return [
        f"Another system's direction lowers the refusal score by {named[0]} to {named[1]} of what the own direction "
        f"does; {len(beyond)} of {len(usable)} such falls lie above every random and harmless control."
    ]


def link_sentences(table: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """dW beside the refusal direction and the safety-critical weights, and what these wrote along the direction."""
    wanted = [_energy, _sets, _removed]
    return [said for tell in wanted if (said := tell(table[table["value"].notna()], names))]


def _energy(table: pd.DataFrame, names: Mapping[str, str]) -> str:
    parts = []
    for system, rows in table[table["what"] == "energy"].groupby("system", sort=False):
        told = f"{names.get(str(system), system)} {(rows['value'] / rows['chance']).median():.2g}"
        random = table[(table["system"] == system) & (table["what"] == "energy_random")]
        if len(random):
            pairs = rows.merge(random, on=["layer", "kind"], suffixes=("", "_random"))
            above = int((pairs["value"] > pairs["high_random"]).sum())
            told += f" (above 97.5 % of random directions in {above} of {len(pairs)})"
        parts.append(told)
    if not parts:
        return ""
    base = table[table["what"] == "energy_base"]
    said = (
        "Times chance that dW writes along the system's refusal direction, median over maps: "
        f"{', '.join(parts)}. One in 40 would lie above by chance"
    )
    if len(base):
        medians = (base["value"] / base["chance"]).groupby(base["system"]).median()
        said += f"; the base's own weights write {span(medians, '.2g')} times chance there"
    return f"{said}."


def _sets(table: pd.DataFrame, names: Mapping[str, str]) -> str:
    parts = []
    for (system, what), rows in table[table["what"].isin(_SETS)].groupby(["system", "what"], sort=False):
        parts.append(
            f"{rows['value'].median():.1%} of {names.get(str(system), system)}'s in {_SETS[str(what)]} (chance "
            f"{rows['chance'].median():.1%})"
        )
    return f"Of the energy of dW, median over maps: {'; '.join(parts)}." if parts else ""


def _removed(table: pd.DataFrame, names: Mapping[str, str]) -> str:
    taken = table[table["what"].str.startswith("removed_") & ~table["what"].str.endswith("_random")]
    parts = []
    for (system, what), rows in taken.groupby(["system", "what"], sort=False):
        random = table[(table["system"] == system) & (table["what"] == f"{what}_random")]["value"]
        control = f", of random weights' {random.median():.2%}" if len(random) else ""
        parts.append(
            f"{rows['value'].median():.2%} in {names.get(str(system), system)} "
            f"({str(what).removeprefix('removed_')}{control}; chance {rows['chance'].median():.2%})"
        )
    if not parts:
        return ""
    return (
        f"Of what the safety-critical weights wrote, this lay on the refusal direction: {'; '.join(parts)}."
    )
