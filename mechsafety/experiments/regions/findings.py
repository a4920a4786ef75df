"""What a regions run found: a list of contrasts and of measured values, each said by the forms of claims."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from mechsafety.claims import Claim, Estimate
from mechsafety.claims.rows import Say, above, counts_in, ends_of, middle, named, told
from mechsafety.claims.sentences import (
    NO_VERDICTS,
    beyond,
    change,
    extremes,
    level,
    missing,
    moves,
    tallies,
)
from mechsafety.claims.shared import filled
from mechsafety.experiments.regions.contrasts import (
    REMOVAL_NAMES,
    Tables,
    freezing_claims,
    link_claims,
    mode_name,
    removal_claims,
    removals_of,
)
from mechsafety.experiments.robustness.findings import attack_sentences
from mechsafety.statistics.tables import PROMPT_LABELS

METHOD_NAMES = {"snip": "SNIP", "wanda": "Wanda", "actsvd": "ActSVD"}


def told_setting(tradeoff: pd.DataFrame, removal: str, sweet_spot: Mapping[str, Any] | None) -> str:
    """The setting that sentences speak of: the sweet spot, else the one with the most coherent compliance."""
    rows = tradeoff[(tradeoff["removal"] == removal) & (tradeoff["control"] == "removed")]
    named = (sweet_spot or {}).get("setting") if (sweet_spot or {}).get("removal") == removal else None
    if named in set(rows["setting"]):
        return str(named)
    means = rows.groupby("setting", sort=False)["complied"].mean()
    return str(means.idxmax()) if means.notna().any() else next(iter(rows["setting"]), "")


def region_findings(
    tables: Tables, *, name: str, sweet_spot: Mapping[str, Any] | None
) -> dict[str, list[str]]:
    """The sentences of every table, by its name; ``sweet_spot`` is the manifest's section, ``name`` the model's."""
    return told(filled(tables), _SECTIONS, name, sweet_spot)


def main_findings(found: Mapping[str, list[str]]) -> list[str]:
    """What stands first: removals, overlap and fine-tuning; whatever there is where the run has none of these."""
    main = [key for key in found if key in ("tradeoff", "structure", "subspaces", "freezing")]
    return [said for key in main or found for said in found[key]]


def removal_sentences(claims: list[Claim]) -> Iterator[str]:
    """A change, where it went, and what each of its controls does."""
    yield change(claims[0])
    yield from moves(claims[0])
    for claim in claims:
        yield from beyond(claim)


def tallied(claims: Mapping[tuple[str, str], list[Claim]], removal: str, label: str) -> list[str]:
    """How many settings of a removal show a fall, one beyond every control, and a rise."""
    things = [[several] for (of, _), several in claims.items() if of == removal]
    subject, measure = REMOVAL_NAMES.get(removal, removal), f"refusals of {label} prompts"
    return tallies(subject, things, of="settings", measure=measure, control="every random removal")


def _tradeoff(tables: Tables, name: str, sweet_spot: Mapping[str, Any] | None) -> Iterator[str]:
    table = tables["tradeoff"]
    for row in table[table["control"] == "model"].to_dict(orient="records"):
        yield level(name, "refusals of harmful prompts", counts_in(row, "refused", "harmful_n"))
        harmless = counts_in(row, "harmless_refused", "harmless_n")
        yield level(name, "refusals of harmless prompts", harmless)
    if sweet_spot and sweet_spot.get("explanation"):
        yield str(sweet_spot["explanation"])
    found = {label: removal_claims(tables, label) for label in PROMPT_LABELS}
    if not found["harmful"]:
        yield missing("Refusals after removal against the whole model", NO_VERDICTS)
    for removal in removals_of(table):
        at = (removal, told_setting(table, removal, sweet_spot))
        for label, claims in found.items():
            if at in claims:
                yield from tallied(claims, removal, label)
                yield from removal_sentences(claims[at])
        yield from _utility(table, *at)


def _utility(table: pd.DataFrame, removal: str, setting: str) -> Iterator[str]:
    """Accuracy and perplexity of the whole model and of each calibration draw."""
    mine = (table["removal"] == removal) & (table["setting"] == setting) & (table["control"] == "removed")
    shown = pd.concat([table[table["control"] == "model"], table[mine]])
    for column, measure, unit in (
        ("accuracy", "accuracy on multiple choice", "share"),
        ("perplexity", "perplexity of benign text", ""),
    ):
        yield from ends_of(
            *(f"{REMOVAL_NAMES.get(removal, removal)} {setting}", measure, shown, _state),
            *(column, f"{column}_low", f"{column}_high"),
            unit=unit,
            of="states, the whole model and each draw",
        )


def _state(row: Mapping[Any, Any]) -> str:
    return "whole model" if row["control"] == "model" else f"draw {row['draw'] + 1}"


def _structure(tables: Tables, *_: object) -> Iterator[str]:
    for (method, q), rows in tables["structure"].groupby(["method", "q"], sort=False):
        subject = f"{METHOD_NAMES.get(str(method), method)}, top {q:g} % of safety and of utility"
        yield _by_kind(subject, "Jaccard index, mean over layers", rows, "jaccard", unit="Jaccard")
        chance, times = (Estimate(value=float(x)) for x in (rows["chance"].mean(), times_chance(rows)))
        yield level(subject, "Jaccard index of random sets", chance, unit="Jaccard")
        yield level(subject, "weights in both, over those of random sets", times, unit="times")


def _by_kind(subject: str, measure: str, rows: pd.DataFrame, column: str, *, unit: str) -> str:
    means = rows.groupby("kind", sort=False)[column].mean().reset_index()
    return extremes(subject, measure, named(means, "kind", column), unit=unit, of="kinds of matrix")


def times_chance(structure: pd.DataFrame) -> float:
    """How many times as many weights the two sets of each matrix share as random sets of their size would.

    Two sets of equal size with Jaccard index J share 2 J / (1 + J) of each, so this is the mean of that over the mean
    of the same at chance: 1 for unrelated sets, 1 / q for equal top-q sets. A ratio of the indices themselves would
    say 39 of equal top-5 % sets, since the union shrinks as the sets come to agree.
    """
    shared, chance = (2 * structure[name] / (1 + structure[name]) for name in ("jaccard", "chance"))
    return float(shared.mean() / chance.mean()) if chance.mean() else math.nan


def _subspaces(tables: Tables, *_: object) -> Iterator[str]:
    for column, measure in (
        ("phi", "similarity phi, mean over layers"),
        ("chance", "similarity phi of random subspaces"),
        ("excess", "share of the way from chance to identical, mean over layers"),
    ):
        subject = "Output subspaces of safety and utility"
        yield _by_kind(subject, measure, tables["subspaces"], column, unit="similarity")


def _links(tables: Tables, *_: object) -> Iterator[str]:
    own = "share_removed_on_direction"
    for (removal, method), rows in tables["links"].groupby(["removal", "method"], sort=False):
        known = rows.dropna(subset=[own, "random"])
        subject = f"{removal} ({METHOD_NAMES.get(str(method), method)})"
        for column, what in (
            (own, "the removed weights"),
            ("random", "random weights"),
            ("matched", "random weights of the same size"),
            ("chance", "the removed weights along a random direction, expected"),
        ):
            measure = f"share on the refusal direction of what was written, median over maps, by {what}"
            if len(known) and column in known:
                yield middle(subject, measure, known[column])
        for column, than in (("random", "random ones"), ("matched", "random ones of the same size")):
            what = f"maps whose removed weights write a larger share on the refusal direction than {than}"
            yield from above(subject, rows, own, column, what, chance=0.5)


def _link_effects(tables: Tables, *_: object) -> Iterator[str]:
    claims = link_claims(tables)
    for several in claims:
        yield from removal_sentences(several)
    if not claims:
        yield missing(
            "Refusals with region removed, direction ablated and both, against the model", NO_VERDICTS
        )
        for row in tables["link_effects"].to_dict(orient="records"):
            refused = counts_in(row, "refused", "harmful_n")
            yield level(str(row["state"]), "refusals of harmful prompts", refused)


def _heads(tables: Tables, *_: object) -> Iterator[str]:
    table, subject = tables["heads"], "Linear probes"
    yield from ends_of(
        *(subject, "AUROC on prompts held out", table),
        lambda row: f"layer {int(row['layer'])}, head {int(row['head'])}",
        *("auroc", "low", "high"),
        unit="AUROC",
        of="heads",
    )
    what = "heads have a 95 % interval above 0.5"  # 0.5: a coin
    yield from above(subject, table, "low", 0.5, what, chance=1 / 40)


def _freezing(tables: Tables, *_: object) -> Iterator[str]:
    table, claims = tables["freezing"], freezing_claims(tables)
    for several in claims:
        yield from removal_sentences(several)
    if claims:
        return
    yield missing("Compliance after fine-tuning with weights kept, against nothing kept", NO_VERDICTS)
    most = table[(table["n_examples"] == table["n_examples"].max()) & table["seed"].notna()]
    for row in most.to_dict(orient="records"):
        subject = f"{mode_name(row['mode'], row['frozen'])}, {row['n_examples']} benign examples, seed {row['seed']}"
        yield level(subject, "compliance with harmful prompts", counts_in(row, "complied", "harmful_n"))


_SECTIONS: Mapping[str, tuple[str, Say]] = {
    "tradeoff": ("tradeoff", _tradeoff),
    "structure": ("structure", _structure),
    "subspaces": ("subspaces", _subspaces),
    "attacks": ("attacks", lambda tables, *_: attack_sentences(tables["attacks"])),
    "links": ("links", _links),
    "link_effects": ("link_effects", _link_effects),
    "heads": ("heads", _heads),
    "freezing": ("freezing", _freezing),
}
