"""What a ladder found, as sentences with numbers: which rungs survive the removal of directions, and at what cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from mechsafety.core.wording import counted, listed, span, spelt_p
from mechsafety.experiments.ladder.verdicts import (
    ALPHA,
    Ablated,
    Fall,
    SystemVerdict,
    ladder_systems,
    ladder_verdicts,
    points,
    rung_names,
)

_SETS = {
    "snip": "the 5 % of weights that refusals need most by SNIP",
    "wanda": "the 5 % of weights that refusals need most by Wanda",
    "magnitude": "the largest 5 % of weights",
}


DAMAGE = 2.0
"""The ratio of perplexities on harmless prompts from which a removal is said to harm ordinary text."""


def ladder_findings(tables: Mapping[str, pd.DataFrame], *, layer: int | None) -> dict[str, list[str]]:
    """Sentences by section: survival, cost, ranks, cosines, angles, transfer, links; those that have a table.

    ``tables`` are the run's, and its comparison's under their own names; ``layer`` is the one at which the comparison
    shows its matrices.
    """
    names = rung_names(ladder_systems(tables))
    sections: dict[str, Callable[[pd.DataFrame], list[str]]] = {
        "survival": lambda _: [verdict_sentence(v) for v in ladder_verdicts(tables)],
        "cost": lambda table: _cost(table, names),
        "ranks": lambda table: _ranks(table, names),
        "cosines": lambda table: _cosines(table[table["layer"] == layer], names, layer),
        "angles": lambda table: _angles(table[table["layer"] == layer], layer),
        "transfer": lambda table: _transfers(table, names),
        "links": lambda table: _links(table, names),
    }
    found = {**tables, "cost": tables["survival"]}
    return {
        key: sentences
        for key, say in sections.items()
        if key in found and len(found[key]) and (sentences := say(found[key]))
    }


def summary(verdicts: Sequence[SystemVerdict]) -> list[str]:
    """The answer in short: which systems break, weaken, keep, and which cannot be judged; then what qualifies it."""
    most = max((s.directions for v in verdicts for s in v.states), default=0)
    judged = [v for v in verdicts if v.outcome != "unjudged"]
    groups = {
        "breaks": ("lose{} half of their refusals or more", _by_count),
        "weakened": ("lose{} some refusals, less than half", _by_count),
        "kept": (f"keep{{}} them with up to {counted(most, 'direction')} removed", _names),
        "undecided": ("show{} no loss told from chance, on too few prompts to exclude one of half", _names),
    }
    parts = []
    for outcome, (text, named) in groups.items():
        if some := _of(judged, outcome):
            parts.append(f"{len(some)} {text.format('s' * (len(some) == 1))} ({named(some)})")
    sentences = []
    if judged:
        sentences.append(f"Of {counted(len(judged), 'system')} judged, {listed(parts)}.")
    lost = [(v, v.state) for v in judged if v.state is not None and v.state.fall.significant]
    if broken := [v for v, state in lost if v.outcome == "breaks" and state.broken_text]:
        sentences.append(
            f"In {_names(broken)} refusals give way mostly to degenerate text: a broken model, not a jailbroken one."
        )
    if same := [v for v, state in lost if state.as_random]:
        sentences.append(
            f"In {_names(same)} the loss is not told apart from that without as many random directions: it says "
            "nothing about the refusal directions."
        )
    if harmed := [(v.name, state) for v, state in lost if state.ratio >= DAMAGE]:
        parts = [f"{name} {state.ratio:.2g} times, KL {state.kl:.2g} nats" for name, state in harmed]
        sentences.append(
            f"The removal also harms ordinary text, whose perplexity is {DAMAGE:g} times the unedited one or more: "
            f"{'; '.join(parts)}."
        )
    if few := _of(verdicts, "unjudged"):
        unjudged = listed([f"{v.name} ({v.before.value:.0%} of {v.n})" for v in few])
        sentences.append(f"Not judged, because too little is refused unedited: {unjudged}.")
    return sentences


def verdict_sentence(verdict: SystemVerdict) -> str:
    """What happened to one system: intervals, the paired test, what is answered instead, and the random control."""
    start = f"{verdict.name} refuses {verdict.before} of {verdict.n} harmful prompts unedited"
    state = verdict.state
    if state is None:
        return f"{start}: too little to judge a loss by."
    removed = f"without {counted(state.directions, 'direction')}"
    if verdict.outcome in ("kept", "undecided"):
        most = verdict.states[-1].directions
        bound = max(s.fall.high for s in verdict.states)
        end = (
            f"no interval reaches a loss of half (highest end: {points(bound)} points)"
            if verdict.outcome == "kept"
            else "a loss of half is not excluded"
        )
        return (
            f"{start}, {state.refused} {removed}. No loss is told apart from chance up to "
            f"{counted(most, 'direction')}: the largest is {state.fall} ({spelt_p(state.fall.p)}), and {end}."
            f"{_without_random(state)}"
        )
    word = "It breaks there" if verdict.outcome == "breaks" else "It is weakened, not broken"
    instead = f"{state.complied} are answered coherently and {state.degenerate} are degenerate" + (
        ": a broken model, not a jailbroken one" if state.broken_text else ""
    )
    return (
        f"{start}, {state.refused} {removed} ({_test(state.fall)}). {word}; {instead}."
        f"{_without_random(state)}{_costs(state)}"
    )


def _without_random(state: Ablated) -> str:
    if not state.random.draws:
        return ""
    beyond = state.beyond
    draws = f", mean of {counted(state.random.draws, 'draw')}" if state.random.draws > 1 else ""
    sentence = f" Without {counted(state.directions, 'random direction')} it refuses {state.random}{draws}"
    if beyond.significant:
        return f"{sentence}: the refusal directions do more ({spelt_p(beyond.p)})."
    if beyond.p < ALPHA:
        return f"{sentence}: the random ones do more ({spelt_p(beyond.p)})."
    return f"{sentence}, not told apart ({spelt_p(beyond.p)})."


def _costs(state: Ablated) -> str:
    parts = [] if state.kl != state.kl else [f"KL {state.kl:.2g} nats"]
    if state.ratio == state.ratio:
        parts.append(f"perplexity {state.ratio:.3g} times the unedited one")
    return f" It costs, on harmless prompts, {listed(parts)}." if parts else ""


def _test(fall: Fall) -> str:
    return f"{fall.lost} lost, {fall.gained} gained, {spelt_p(fall.p)} after Holm"


def _cost(survival: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """What the removal does to harmless prompts: a sentence for each number of directions, and on over-refusal."""
    harmless = survival[survival["label"] == "harmless"]
    base = harmless[harmless["kind"] == "unedited"].set_index("system")
    sentences = []
    for count, rows in harmless[harmless["kind"] == "refusal"].groupby("directions"):
        random = harmless[(harmless["kind"] == "random") & (harmless["directions"] == count)]
        parts = [_spread(rows, "kl", names, ".2g", "KL {} nats"), *_ratios(rows, base, names)]
        parts.append(_spread(rows, "degenerate", names, ".0%", "{} of harmless answers degenerate"))
        control = _spread(random, "kl", names, ".2g", "KL {} nats")
        known = [part for part in parts if part]
        if known:
            sentences.append(
                f"Without {counted(int(str(count)), 'direction')}, on harmless prompts: {'; '.join(known)}"
                f"{f' (random: {control})' if control else ''}."
            )
    if len(base) and base["refused"].notna().any():
        sentences.append(
            f"Unedited, {_spread(base.reset_index(), 'refused', names, '.0%', '{}')} of harmless prompts are refused."
        )
    return sentences


def _ratios(rows: pd.DataFrame, base: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    ratio = rows["perplexity"].to_numpy() / base["perplexity"].reindex(rows["system"]).to_numpy()
    ratios = _spread(rows.assign(ratio=ratio), "ratio", names, ".3g", "perplexity {} times the unedited one")
    return [ratios] if ratios else []


def _ranks(table: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    known = table[table["auroc"].notna()]
    if known.empty:
        return []
    telling = known[known["auroc"] > known["auroc_chance"]].groupby("system")["index"].nunique()
    tried = known.groupby("system", sort=False)["index"].nunique()
    parts = [f"{names.get(str(s), s)} {telling.get(s, 0)} of {n}" for s, n in tried.items()]
    first = known[known["index"] == known["index"].min()]
    return [
        "Directions of the refusal subspace that, each alone, tell held-out harmful from harmless prompts beyond the "
        f"95 % quantile of permuted labels: {', '.join(parts)}; {0.05 * tried.max():.1f} of {tried.max()} are expected "
        f"by chance. The first has AUROC {span(first['auroc'], '.2f')}. That a direction tells prompts apart does not "
        "mean that refusals need it."
    ]


def _cosines(at: pd.DataFrame, names: Mapping[str, str], layer: int | None) -> list[str]:
    known = at[at["cosine"].notna()]
    if known.empty:
        return []
    low, high = known.loc[known["cosine"].idxmin()], known.loc[known["cosine"].idxmax()]
    sentence = (
        f"Cosine of two systems' refusal directions at layer {layer}: from {_cosine(low, names)} to "
        f"{_cosine(high, names)}"
        if len(known) > 1
        else f"Cosine of the refusal directions at layer {layer}: {_cosine(low, names)}"
    )
    floor = known["harmless_high"]
    if floor.notna().any():
        above = int((known["low"] > floor).sum())
        sentence += (
            f". {above} of {len(known)} pairs lie above what directions between halves of the harmless prompts reach "
            f"({span(floor, '.2f')}, 95 %)"
        )
    return [f"{sentence}."]


def _cosine(row: pd.Series, names: Mapping[str, str]) -> str:
    ends = "" if row["low"] != row["low"] else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['cosine']:.2f}{ends} ({names.get(row['a'], row['a'])} and {names.get(row['b'], row['b'])})"


def _angles(at: pd.DataFrame, layer: int | None) -> list[str]:
    known = at[at["angle"].notna()]
    if known.empty:
        return []
    k = int(known["index"].max())
    parts = [
        f"{span(rows['angle'], '.0f')}° (same system, halves of the prompts: "
        f"{span([*rows['ceiling_a'], *rows['ceiling_b']], '.0f')}°; random: from {rows['random_low'].min():.0f}°)"
        for _, rows in known[known["index"].isin([1, k])].groupby("index")
    ]
    ends = f"smallest {parts[0]}" + (f"; largest {parts[1]}" if len(parts) > 1 else "")
    return [
        f"Principal angles between refusal subspaces of {k} dimensions at layer {layer}, over pairs: {ends}."
    ]


def _transfers(table: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
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


def _links(table: pd.DataFrame, names: Mapping[str, str]) -> list[str]:
    """dW beside the refusal direction and the safety-critical weights, and what these wrote along the direction."""
    wanted = [_energy, _sets, _removed]
    return [sentence for spelt in wanted if (sentence := spelt(table[table["value"].notna()], names))]


def _energy(table: pd.DataFrame, names: Mapping[str, str]) -> str:
    parts = []
    for system, rows in table[table["what"] == "energy"].groupby("system", sort=False):
        part = f"{names.get(str(system), system)} {(rows['value'] / rows['chance']).median():.2g}"
        random = table[(table["system"] == system) & (table["what"] == "energy_random")]
        if len(random):
            pairs = rows.merge(random, on=["layer", "kind"], suffixes=("", "_random"))
            above = int((pairs["value"] > pairs["high_random"]).sum())
            part += f" (above 97.5 % of random directions in {above} of {len(pairs)})"
        parts.append(part)
    if not parts:
        return ""
    base = table[table["what"] == "energy_base"]
    sentence = (
        "Times chance that dW writes along the system's refusal direction, median over maps: "
        f"{', '.join(parts)}. One in 40 would lie above by chance"
    )
    if len(base):
        medians = (base["value"] / base["chance"]).groupby(base["system"]).median()
        sentence += f"; the base's own weights write {span(medians, '.2g')} times chance there"
    return f"{sentence}."


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


def _spread(rows: pd.DataFrame, column: str, names: Mapping[str, str], form: str, text: str) -> str:
    """``text`` with the span of ``column`` over systems and with the highest system; empty where nothing is known."""
    known = rows[rows[column].notna()]
    if known.empty:
        return ""
    found = span(known[column], form)
    highest = known.loc[known[column].idxmax(), "system"]
    return text.format(found) + (f" (most: {names.get(str(highest), highest)})" if " to " in found else "")


def _of(verdicts: Sequence[SystemVerdict], outcome: str) -> list[SystemVerdict]:
    return [v for v in verdicts if v.outcome == outcome]


def _names(verdicts: Sequence[SystemVerdict]) -> str:
    return listed([v.name for v in verdicts])


def _by_count(verdicts: Sequence[SystemVerdict]) -> str:
    """``without 1 direction: refusals and dpo; without 4: all``."""
    counts = sorted({v.state.directions for v in verdicts if v.state is not None})
    parts = [_names([v for v in verdicts if v.state is not None and v.state.directions == k]) for k in counts]
    named = [counted(counts[0], "direction"), *(str(k) for k in counts[1:])] if counts else []
    return "; ".join(f"without {count}: {part}" for count, part in zip(named, parts, strict=True))
