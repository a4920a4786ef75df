"""Sentences about the weights of a fine-tuning: what dW is, what it does, what it is beside directions and regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from mechsafety.experiments.anatomy.naming import (
    SAFE,
    UNSAFE,
    Names,
    counted_of,
    digits,
    families_in,
    models_in,
    who,
)
from mechsafety.statistics.pooled import Pooled, pooled

STATE_NAMES: Mapping[str, str] = {
    "base": "base",
    "tuned": "tuned",
    "matrices": "base with dW of matrices",
    "others": "tuned without dW of matrices",
    "mlp": "base with dW of MLPs",
    "rest": "tuned without dW of MLPs",
    "random": "base with a random dW",
    "kept": "base with top {r} directions",
    "removed": "tuned without top {r}",
    "ablated": "refusal direction ablated",
    "random_ablated": "random direction ablated",
}
SETS = ("snip", "wanda", "magnitude")


def state_name(what: str, r: float) -> str:
    """``base with top 4 directions``: a state of the reversal or the ablation in words."""
    return STATE_NAMES.get(what, what).replace("{r}", f"{r:g}")


@dataclass(frozen=True, kw_only=True)
class Excess:
    """How far alignments with the left null space lie above chance, over the matrices of one model."""

    median: float
    low: float
    high: float
    above: int
    n: int


def excesses(changes: pd.DataFrame, energy: int) -> dict[str, Excess]:
    """By model: the median excess over matrices, their 2.5 and 97.5 % quantiles, and how many lie above 0."""
    found = {}
    for model in models_in(changes):
        rows = changes[changes["model"] == model]
        over = (rows[f"alignment_{energy}"] - rows[f"chance_{energy}"]).dropna()
        if len(over):
            low, high = over.quantile([0.025, 0.975])
            found[model] = Excess(
                median=float(over.median()),
                low=float(low),
                high=float(high),
                above=int((over > 0).sum()),
                n=len(over),
            )
    return found


def beyond_random(found: Mapping[str, Excess]) -> str:
    """``above``, ``below`` or ``within`` what 95 % of the random dW's matrices have; empty where one is missing."""
    if not {"tuned", "random"} <= set(found):
        return ""
    tuned, random = found["tuned"].median, found["random"]
    return "above" if tuned > random.high else "below" if tuned < random.low else "within"


def weights(changes: pd.DataFrame, names: Names) -> list[str]:
    by_model = {model: changes[changes["model"] == model] for model in models_in(changes)}
    sizes = [
        f"{who(model, names)} {rows['relative_norm'].median():.2%}"
        for model, rows in by_model.items()
        if model != "random"
    ]
    ranks = [f"{model} {digits(rows['effective_rank'].median())}" for model, rows in by_model.items()]
    number = len(next(iter(by_model.values())))
    sentences = [
        f"dW beside the base's weights, ||dW|| / ||W||, median over {number} matrices: {'; '.join(sizes)}. Effective "
        f"rank of dW: {'; '.join(ranks)}."
    ]
    for energy in (90, 99):
        found = excesses(changes, energy)
        parts = [
            f"{who(model, {})} {one.median:+.3f} ({counted_of(one.above, one.n, 'matrix')} above)"
            for model, one in found.items()
        ]
        place = beyond_random(found)
        verdict = {
            "": "",
            "above": " The fine-tuning writes more into the null space than a random dW does.",
            "below": " The fine-tuning writes less into the null space than a random dW does.",
            "within": " That is no more than a random dW has.",
        }[place]
        if parts:
            sentences.append(
                f"Alignment of dW's top directions with the left null space of W ({energy} % energy), median "
                f"excess over chance: {'; '.join(parts)}.{verdict}"
            )
    return sentences


def ratio_summary(ratios: pd.DataFrame) -> dict[str, tuple[float, int, int]]:
    """By model: the median ratio over matrices, how many have intervals above 1, and of how many."""
    found = {}
    for model in models_in(ratios):
        rows = ratios[(ratios["model"] == model) & ratios["ratio"].notna()]
        if len(rows):
            found[model] = (float(rows["ratio"].median()), int((rows["low"] > 1).sum()), len(rows))
    return found


def action(ratios: pd.DataFrame, names: Names) -> list[str]:
    found = ratio_summary(ratios)
    if not found:
        return []
    parts = [
        f"{who(model, names)} {digits(median)} ({counted_of(above, n, 'matrix')} with intervals above 1)"
        for model, (median, above, n) in found.items()
    ]
    verdict = ""
    others = [found[model][0] for model in ("control", "random") if model in found]
    if "tuned" in found and others:
        more = found["tuned"][0] > max(others)
        verdict = (
            f" A benign fine-tuning and a random dW reach at most {digits(max(others))}."
            if len(others) == 2
            else f" The other reaches {digits(max(others))}."
        )
        verdict += "" if more else " So dW acts on unsafe prompts no more than these do."
    return [
        f"dW acts on unsafe prompts, against safe ones, ||dW a|| / ||a||, median ratio over matrices: "
        f"{'; '.join(parts)}.{verdict}"
    ]


def reversal(table: pd.DataFrame, names: Names) -> list[str]:
    refused = _by_state(table, UNSAFE)
    if not refused:
        return []

    def part(what: str) -> str:
        return f"{state_name(what, 0.0)} {refused[(what, -1.0)]}"

    whole = ("base", "tuned", "mlp", "rest", "matrices", "others", "random")
    parts = [part(what) for what in whole if (what, -1.0) in refused]
    number = int(table.loc[table["group"] == UNSAFE, "n"].max())
    sentences = [
        f"Refused of {number} unsafe prompts between {who('base', names)} and {who('tuned', names)}: "
        f"{'; '.join(parts)}.{_carriers(refused)}"
    ]
    for what, verb in (("kept", "Only the top r directions of every dW"), ("removed", "All but the top r")):
        ranks = sorted(r for name, r in refused if name == what)
        if ranks:
            shares = "; ".join(f"r = {r:g}: {refused[(what, r)]}" for r in ranks)
            sentences.append(
                f"{verb}, unsafe prompts refused: {shares}.{_rank_verdict(refused, what, ranks)}"
            )
    for group in (SAFE, *families_in(table)):
        found = _by_state(table, group)
        shown = [what for what in ("base", "tuned", "mlp", "rest") if (what, -1.0) in found]
        if shown:
            sentences.append(
                f"Refused of {group} {'prompts' if group == SAFE else 'attacks'}: "
                f"{'; '.join(f'{state_name(w, 0.0)} {found[(w, -1.0)]}' for w in shown)}."
            )
    return sentences


def _by_state(table: pd.DataFrame, group: str) -> dict[tuple[str, float], Pooled]:
    """Refused by state and rank; a rank of -1 where a state has none."""
    rows = table[table["group"] == group]
    return {
        (str(row["state"]), float(row["r"]) if row["r"] == row["r"] else -1.0): pooled(
            rows.loc[[index]], "refused"
        )
        for index, row in rows.iterrows()
    }


def _carriers(refused: Mapping[tuple[str, float], Pooled]) -> str:
    base, tuned = refused.get(("base", -1.0)), refused.get(("tuned", -1.0))
    if base is None or tuned is None or base.value != base.value or tuned.value != tuned.value:
        return ""
    if not tuned.differs_from(base):
        return " Base and tuned do not differ: there is nothing to trace."
    sentence = ""
    if (mlp := refused.get(("mlp", -1.0))) is not None:
        sentence += {
            (True, False): " The MLPs' dW alone does what the whole fine-tuning does (the intervals meet).",
            (False, True): " The MLPs' dW alone does nothing that is seen.",
            (False, False): " The MLPs' dW alone does a part of it.",
            (True, True): " Whether the MLPs' dW alone does it is open.",
        }[(not mlp.differs_from(tuned), not mlp.differs_from(base))]
    if (random := refused.get(("random", -1.0))) is not None:
        same = not random.differs_from(base)
        sentence += f" A random dW of the same norm {'leaves the base as it is' if same else 'changes the base, too'}."
    return sentence


def _rank_verdict(refused: Mapping[tuple[str, float], Pooled], what: str, ranks: Sequence[float]) -> str:
    goal = refused.get(("tuned" if what == "kept" else "base", -1.0))
    if goal is None:
        return ""
    enough = [r for r in ranks if not refused[(what, r)].differs_from(goal)]
    end = "the tuned model" if what == "kept" else "the base"
    if not enough:
        return f" None of these is where {end} is (intervals apart)."
    return (
        f" From r = {min(enough):g} on, one cannot be told from {end}."
        if set(enough) == {r for r in ranks if r >= min(enough)}
        else f" The first that cannot be told from {end} is r = {min(enough):g}."
    )


def links(table: pd.DataFrame, names: Names) -> list[str]:
    sentences = []
    energy, random, before = (_median(table, what) for what in ("energy", "energy_random", "energy_base"))
    if energy == energy:
        above, n = energy_above(table)
        sentences.append(
            f"Along the refusal direction lies a median {energy:.2%} of the energy of dW of {who('tuned', names)}, "
            f"over {n} matrices that write to the residual stream; along random directions {random:.2%}, and of W's "
            f"own {before:.2%}. In {counted_of(above, n, 'matrix')} it is more than 97.5 % of random directions have."
        )
    for what, name in (
        ("cosine_first", "|cosine| of the direction with dW's first left singular vector"),
        ("cosine_top", "Length of the direction within the top left singular vectors of dW"),
    ):
        value, chance = _median(table, what), _median(table, what, "chance")
        if value == value:
            note = "" if value > chance else ": no more than chance"
            sentences.append(f"{name}, median: {value:.2f}; chance {chance:.2f}{note}.")
    shares = {what: _median(table, what) for what in SETS}
    parts = [f"{what} {value:.1%}" for what, value in shares.items() if value == value]
    if parts:
        chance = table.loc[table["what"].isin(SETS), "chance"].median()
        scores = [v for what, v in shares.items() if what != "magnitude" and v == v]
        note = ""
        if scores and shares["magnitude"] == shares["magnitude"] and max(scores) <= shares["magnitude"]:
            note = " Safety-critical weights hold no more of dW than the largest weights do."
        sentences.append(
            f"Share of dW's energy in the {chance:.0%} of weights with the highest score, median over matrices: "
            f"{'; '.join(parts)}; chance {chance:.0%}.{note}"
        )
    return sentences


def energy_above(table: pd.DataFrame) -> tuple[int, int]:
    """In how many matrices dW has more energy on the refusal direction than 97.5 % of random ones; of how many."""
    key = ["layer", "kind"]
    own = table[table["what"] == "energy"].set_index(key)["value"].dropna()
    drawn = table[table["what"] == "energy_random"].set_index(key)["high"].reindex(own.index)
    return int((own > drawn).sum()), len(own)


def _median(table: pd.DataFrame, what: str, column: str = "value") -> float:
    return float(table.loc[table["what"] == what, column].median())


def ablation(table: pd.DataFrame, names: Names) -> list[str]:
    rows = table[table["group"] == UNSAFE].set_index("state", drop=False)
    if not {"tuned", "ablated"} <= set(rows.index):
        return []
    refused = {state: pooled(rows.loc[[state]], "refused") for state in rows.index}
    after = rows.loc[["ablated"]]
    sentence = (
        f"With the refusal direction of layer {int(after['layer'].iloc[0])} projected out of {who('tuned', names)}, "
        f"refusals of unsafe prompts go from {refused['tuned']} to {refused['ablated']}; "
        f"{pooled(after, 'degenerate')} of the answers are then degenerate."
    )
    if pooled(after, "degenerate").value > pooled(after, "complied").value:
        sentence += (
            " Most of what is no longer refused is degenerate text: the model is broken rather than unsafe."
        )
    if not refused["ablated"].differs_from(refused["tuned"]):
        sentence += " The intervals meet: no effect was seen."
    if "random_ablated" in refused:
        sentence += f" A random direction instead: {refused['random_ablated']}."
    return [sentence]
