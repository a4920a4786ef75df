"""What a regions run found: a list of contrasts and of measured values, each said by the forms of claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from mechsafety.claims import Claim, Estimate
from mechsafety.claims.sentences import (
    NO_VERDICTS,
    Named,
    beyond,
    change,
    counted,
    extremes,
    level,
    missing,
    moves,
    named,
    tallies,
)
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
    told: dict[str, Callable[[pd.DataFrame], Iterator[str]]] = {
        "tradeoff": lambda table: _tradeoff(tables, table, name=name, sweet_spot=sweet_spot),
        "structure": _structure,
        "subspaces": _subspaces,
        "attacks": attack_sentences,
        "links": _links,
        "link_effects": lambda table: _link_effects(tables, table),
        "heads": _heads,
        "freezing": lambda table: _freezing(tables, table),
    }
    return {key: list(say(tables[key])) for key, say in told.items() if key in tables and len(tables[key])}


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


def _tradeoff(
    tables: Tables, table: pd.DataFrame, *, name: str, sweet_spot: Mapping[str, Any] | None
) -> Iterator[str]:
    for row in table[table["control"] == "model"].to_dict(orient="records"):
        for column, measure, n in (
            ("refused", "refusals of harmful prompts", "harmful_n"),
            ("harmless_refused", "refusals of harmless prompts", "harmless_n"),
        ):
            yield level(name, measure, _share(row, column, n))
    if sweet_spot and sweet_spot.get("explanation"):
        yield str(sweet_spot["explanation"])
    harmful, harmless = (removal_claims(tables, label) for label in ("harmful", "harmless"))
    if not harmful:
        yield missing("Refusals after removal against the whole model", NO_VERDICTS)
    for removal in removals_of(table):
        at = (removal, told_setting(table, removal, sweet_spot))
        for label, claims in (("harmful", harmful), ("harmless", harmless)):
            if at in claims:
                yield from tallied(claims, removal, label)
                yield from removal_sentences(claims[at])
        yield from _utility(table, *at)


def _share(row: Mapping[Any, Any], column: str, n: str) -> Estimate:
    """A share with its count, as tables hold it."""
    count = int(row[n]) if row[n] == row[n] else 0
    known = count and row[column] == row[column]
    return Estimate.of_counts(round(row[column] * count), count) if known else Estimate.of_counts(0, 0)


def _utility(table: pd.DataFrame, removal: str, setting: str) -> Iterator[str]:
    """Accuracy and perplexity of the whole model and of each calibration draw."""
    rows = table[
        (table["removal"] == removal) & (table["setting"] == setting) & (table["control"] == "removed")
    ]
    shown = pd.concat([table[table["control"] == "model"], rows])
    for column, measure, unit in (
        ("accuracy", "accuracy on multiple choice", "share"),
        ("perplexity", "perplexity of benign text", ""),
    ):
        if column not in shown or shown[column].isna().all():
            continue
        subject = f"{REMOVAL_NAMES.get(removal, removal)} {setting}"
        values = named(shown, _state, column, f"{column}_low", f"{column}_high")
        yield extremes(subject, measure, values, unit=unit, of="states, the whole model and each draw")


def _state(row: Mapping[Any, Any]) -> str:
    return "whole model" if row["control"] == "model" else f"draw {row['draw'] + 1}"


def _structure(table: pd.DataFrame) -> Iterator[str]:
    for (method, q), rows in table.groupby(["method", "q"], sort=False):
        subject = f"{METHOD_NAMES.get(str(method), method)}, top {q:g} % of safety and of utility"
        yield _by_kind(subject, "Jaccard index, mean over layers", rows, "jaccard", unit="Jaccard")
        yield level(
            subject,
            "Jaccard index of random sets",
            Estimate(value=float(rows["chance"].mean())),
            unit="Jaccard",
        )
        times = Estimate(value=times_chance(rows))
        yield level(subject, "weights in both, over those of random sets", times, unit="times")


def _by_kind(subject: str, measure: str, rows: pd.DataFrame, column: str, *, unit: str) -> str:
    means = rows.groupby("kind", sort=False)[column].mean()
    values = [Named(name=str(kind), estimate=Estimate(value=float(v))) for kind, v in means.items()]
    return extremes(subject, measure, values, unit=unit, of="kinds of matrix")


def times_chance(structure: pd.DataFrame) -> float:
    """How many times as many weights the two sets of each matrix share as random sets of their size would.

    Two sets of equal size with Jaccard index J share 2 J / (1 + J) of each, so this is the mean of that over the mean
    of the same at chance: 1 for unrelated sets, 1 / q for equal top-q sets. A ratio of the indices themselves would
    say 39 of equal top-5 % sets, since the union shrinks as the sets come to agree.
    """
    shared, chance = (2 * structure[name] / (1 + structure[name]) for name in ("jaccard", "chance"))
    return float(shared.mean() / chance.mean()) if chance.mean() else math.nan


def _subspaces(table: pd.DataFrame) -> Iterator[str]:
    subject = "Output subspaces of safety and utility"
    for column, measure in (
        ("phi", "similarity phi, mean over layers"),
        ("chance", "similarity phi of random subspaces"),
        ("excess", "share of the way from chance to identical, mean over layers"),
    ):
        yield _by_kind(subject, measure, table, column, unit="similarity")


def _links(table: pd.DataFrame) -> Iterator[str]:
    for (removal, method), rows in table.groupby(["removal", "method"], sort=False):
        own = "share_removed_on_direction"
        known = rows[rows[own].notna() & rows["random"].notna()]
        subject = f"{removal} ({METHOD_NAMES.get(str(method), method)})"
        if known.empty:
            continue
        for column, what in (
            (own, "the removed weights"),
            ("random", "random weights"),
            ("matched", "random weights of the same size"),
            ("chance", "the removed weights along a random direction, expected"),
        ):
            measure = f"share on the refusal direction of what was written, median over maps, by {what}"
            if column in known:
                yield level(subject, measure, Estimate(value=float(known[column].median())))
        for column, than in (("random", "random ones"), ("matched", "random ones of the same size")):
            what = f"maps whose removed weights write a larger share on the refusal direction than {than}"
            both = known[known[column].notna()] if column in known else known[:0]
            if len(both):
                above, unknown = int((both[own] > both[column]).sum()), len(rows) - len(both)
                yield counted(subject, above, len(both), what, expected=len(both) / 2, unknown=unknown)


def _link_effects(tables: Tables, table: pd.DataFrame) -> Iterator[str]:
    claims = link_claims(tables)
    for several in claims:
        yield from removal_sentences(several)
    if not claims:
        yield missing(
            "Refusals with region removed, direction ablated and both, against the model", NO_VERDICTS
        )
        for row in table.to_dict(orient="records"):
            yield level(str(row["state"]), "refusals of harmful prompts", _share(row, "refused", "harmful_n"))


def _heads(table: pd.DataFrame) -> Iterator[str]:
    values = named(
        table, lambda row: f"layer {int(row['layer'])}, head {int(row['head'])}", "auroc", "low", "high"
    )
    if not any(one.estimate.known for one in values):
        return
    yield extremes("Linear probes", "AUROC on prompts held out", values, unit="AUROC", of="heads")
    known = table[table["low"].notna()]
    apart, unknown = int((known["low"] > 0.5).sum()), len(table) - len(known)  # 0.5: a coin
    what = "heads have a 95 % interval above 0.5"
    yield counted("Linear probes", apart, len(known), what, expected=len(known) / 40, unknown=unknown)


def _freezing(tables: Tables, table: pd.DataFrame) -> Iterator[str]:
    claims = freezing_claims(tables)
    for several in claims:
        yield from removal_sentences(several)
    if claims:
        return
    yield missing("Compliance after fine-tuning with weights kept, against nothing kept", NO_VERDICTS)
    most = table[(table["n_examples"] == table["n_examples"].max()) & table["seed"].notna()]
    for row in most.to_dict(orient="records"):
        subject = f"{mode_name(row['mode'], row['frozen'])}, {row['n_examples']} benign examples, seed {row['seed']}"
        yield level(subject, "compliance with harmful prompts", _share(row, "complied", "harmful_n"))
