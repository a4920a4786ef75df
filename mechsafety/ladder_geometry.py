"""How the refusals of a ladder's systems lie to each other and to what training changed, as sentences with numbers."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from mechsafety.ladder_words import span

LINKS = {
    "energy": "on the refusal direction",
    "energy_random": "on random directions",
    "energy_base": "of the base's own weights on it",
    "cosine_first": "cosine with the first singular vector",
    "cosine_top": "length within the top singular vectors",
}
"""What :func:`mechsafety.anatomy.links.direction_links` measures, in words."""


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
    """dW beside the direction, a sentence a system; then whatever else was linked, as medians against chance."""
    said = []
    for system, rows in table.groupby("system", sort=False):
        at = {str(what): part for what, part in rows.groupby("what")}
        energy, random, base = (at.get(f"energy{end}") for end in ("", "_random", "_base"))
        if energy is not None and energy["value"].notna().any():
            times = (energy["value"] / energy["chance"]).dropna()
            told = (
                f"dW of {names.get(str(system), system)} writes {times.median():.2g} times chance along its refusal "
                f"direction (median of {len(times)} maps, {times.min():.2g} to {times.max():.2g})"
            )
            if random is not None:
                pairs = energy.merge(random, on=["layer", "kind"], suffixes=("", "_random"))
                above = int((pairs["value"] > pairs["high_random"]).sum())
                told += f", above 97.5 % of random directions in {above} of {len(pairs)}"
            if base is not None and base["value"].notna().any():
                told += f"; the base's weights write {(base['value'] / base['chance']).median():.2g} times chance there"
            said.append(f"{told}.")
        for what, part in at.items():
            if what not in LINKS and part["value"].notna().any():
                told = f"{names.get(str(system), system)}, {what.replace('_', ' ')}: {part['value'].median():.3g}"
                if part["chance"].notna().any():
                    told += f", where chance is {part['chance'].median():.3g}"
                said.append(f"{told} (median of {len(part)}).")
    return said
