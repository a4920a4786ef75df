"""What a ladder found: a list of contrasts and of measured values, each said by the forms of claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mechsafety.claims import Claim, Estimate, sentences
from mechsafety.claims.sentences import (
    NO_VERDICTS,
    counted,
    extremes,
    level,
    missing,
    named,
    series,
    tallies,
)
from mechsafety.core.wording import counted as number_of
from mechsafety.experiments.comparison.findings import transfer_findings
from mechsafety.experiments.ladder.contrasts import (
    Claims,
    ladder_claims,
    ladder_systems,
    of_system,
    rung_names,
)

_SETS = {
    "snip": "the 5 % of weights that refusals need most by SNIP",
    "wanda": "the 5 % of weights that refusals need most by Wanda",
    "magnitude": "the largest 5 % of weights",
}
_DRAWN = {"random": "random weights", "matched": "random weights of the same size"}
Names = Mapping[str, str]


def ladder_findings(tables: Mapping[str, pd.DataFrame], *, layer: int | None) -> dict[str, list[str]]:
    """Sentences by section: survival, cost, ranks, cosines, angles, transfer, links; those that have a table.

    ``tables`` are the run's, and its comparison's under their own names; ``layer`` is the one at which the comparison
    shows its matrices.
    """
    names = rung_names(ladder_systems(tables))
    sections: dict[str, Callable[[pd.DataFrame], Iterator[str]]] = {
        "survival": lambda _: _survival(tables),
        "cost": lambda table: _cost(table, names),
        "ranks": lambda table: _ranks(table, names),
        "cosines": lambda table: _cosines(table[table["layer"] == layer], names, layer),
        "angles": lambda table: _angles(table[table["layer"] == layer], names, layer),
        "transfer": lambda table: transfer_findings(table, names),
        "links": lambda table: _links(table[table["value"].notna()], names),
    }
    found = {**tables, "cost": tables["survival"]}
    return {
        key: said
        for key, say in sections.items()
        if key in found and len(found[key]) and (said := list(say(found[key])))
    }


def summary(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """In how many systems refusals change, of harmful and of harmless prompts, and where each system's first do."""
    harmful, harmless = (ladder_claims(tables, label) for label in ("harmful", "harmless"))
    if not harmful:
        return [missing("Refusals without directions", NO_VERDICTS)]
    steps = [_steps(of_system(harmful, system)) for system in ladder_systems(tables)]
    systems = ladder_systems(tables)
    return [
        *tallied(harmful, systems, "harmful"),
        *filter(None, steps),
        *(tallied(harmless, systems, "harmless") if harmless else []),
    ]


def tallied(claims: Claims, systems: Sequence[str], label: str) -> list[str]:
    """How many systems show a fall, one beyond random directions, and a rise."""
    things = [[[claim] for claim in of_system(claims, system).values()] for system in systems]
    measure = f"refusals of {label} prompts"
    return tallies("Ladder", things, of="systems", measure=measure, control="random directions")


def _steps(claims: Mapping[int, Claim]) -> str:
    if not claims:
        return ""
    alone = [(str(k), _of_all(claim)) for k, claim in claims.items()]
    return series(alone, of="numbers of directions")


def _of_all(claim: Claim) -> Claim:
    """The same about the system whatever the number of directions."""
    return replace(
        claim, contrast=replace(claim.contrast, subject=claim.contrast.subject.rpartition(" without ")[0])
    )


def _survival(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Each system at the fewest directions that change its refusals of harmful prompts, else at the most."""
    both = [ladder_claims(tables, label) for label in ("harmful", "harmless")]
    for system in ladder_systems(tables):
        claims = of_system(both[0], system)
        at = next((k for k, claim in claims.items() if claim.shown), max(claims, default=0))
        yield from sentences(*(several[system, at] for several in both if (system, at) in several))


def _cost(survival: pd.DataFrame, names: Names) -> Iterator[str]:
    """What the fewest and the most directions cost on harmless prompts, refusal directions and random ones."""
    harmless = survival[survival["label"] == "harmless"]
    base = harmless[harmless["kind"] == "unedited"].set_index("system")["perplexity"]
    harmless = harmless.assign(
        ratio=harmless["perplexity"].to_numpy() / base.reindex(harmless["system"]).to_numpy()
    )
    measures = (
        ("kl", "KL of the next token on harmless prompts", "nats"),
        ("ratio", "perplexity of its own unedited answers to harmless prompts, over that unedited", "times"),
        ("degenerate", "degenerate answers to harmless prompts", "share"),
    )
    removed = harmless[harmless["directions"] > 0]
    ends = removed[removed["directions"].isin([removed["directions"].min(), removed["directions"].max()])]
    for (directions, kind), rows in ends.groupby(["directions", "kind"]):
        what = number_of(
            int(str(directions)), "random direction" if kind == "random" else "refusal direction"
        )
        of = "systems and draws" if kind == "random" else "systems"
        for column, measure, unit in measures:
            if rows[column].notna().any():
                values = named(rows, lambda row: _draw_name(row, names), column)
                yield extremes(f"Without {what}", measure, values, unit=unit, of=of)


def _draw_name(row: Mapping[Any, Any], names: Names) -> str:
    name = str(names.get(row["system"], row["system"]))
    return f"{name}, draw {row['draw']}" if row.get("draw") else name


def _ranks(table: pd.DataFrame, names: Names) -> Iterator[str]:
    for system, rows in table.groupby("system", sort=False):
        known = rows[rows["auroc"].notna() & rows["auroc_chance"].notna()]
        if len(known):
            yield counted(
                names.get(str(system), str(system)),
                int((known["auroc"] > known["auroc_chance"]).sum()),
                len(known),
                "directions of the refusal subspace have, alone, an AUROC above 95 % of permuted labels",
                expected=0.05 * len(known),
                unknown=len(rows) - len(known),
            )
    first = table[table["index"] == table["index"].min()]
    if first["auroc"].notna().any():
        values = named(first, lambda row: _draw_name(row, names), "auroc", "auroc_low", "auroc_high")
        yield extremes(
            "The first direction alone", "AUROC on report prompts", values, unit="AUROC", of="systems"
        )


def _cosines(at: pd.DataFrame, names: Names, layer: int | None) -> Iterator[str]:
    if not at["cosine"].notna().any():
        return
    subject = f"Refusal directions at layer {layer}"
    values = named(at, lambda row: _pair_name(row, names), "cosine", "low", "high")
    yield extremes(subject, "cosine", values, unit="cosine", of="pairs of systems")
    known = at[at["low"].notna() & at["harmless_high"].notna()]
    yield counted(
        subject,
        int((known["low"] > known["harmless_high"]).sum()),
        len(known),
        "pairs have a cosine whose 95 % interval lies above those of 95 % of directions between halves of the "
        "harmless prompts",
        unknown=len(at) - len(known),
    )


def _angles(at: pd.DataFrame, names: Names, layer: int | None) -> Iterator[str]:
    smallest = at[at["index"] == 1]
    if not smallest["angle"].notna().any():
        return
    subject = f"Refusal subspaces at layer {layer}"
    for column, what in (
        ("angle", "smallest principal angle"),
        ("ceiling_a", "smallest principal angle between halves of the prompts in the first system"),
        ("random_low", "angle that 95 % of random subspaces exceed"),
    ):
        values = named(smallest, lambda row: _pair_name(row, names), column)
        yield extremes(subject, what, values, unit="degrees", of="pairs of systems")


def _pair_name(row: Mapping[Any, Any], names: Names) -> str:
    return f"{names.get(row['a'], row['a'])} with {names.get(row['b'], row['b'])}"


def _links(table: pd.DataFrame, names: Names) -> Iterator[str]:
    """dW beside the refusal direction and the safety-critical weights, and what these wrote along the direction."""
    keys = ["system", "layer", "kind"]
    energy, random = (table[table["what"] == what] for what in ("energy", "energy_random"))
    for system, rows in energy.merge(random, on=keys, suffixes=("", "_random")).groupby("system", sort=False):
        known = rows[rows["high_random"].notna()]
        yield counted(
            names.get(str(system), str(system)),
            int((known["value"] > known["high_random"]).sum()),
            len(known),
            "maps whose dW writes more along the refusal direction than along 97.5 % of random directions",
            expected=len(known) / 40,
            unknown=len(rows) - len(known),
        )
    for what, measure in (
        ("energy", "energy of dW along its refusal direction"),
        ("energy_base", "energy of the base's weights along the system's refusal direction"),
        *((kind, f"energy of dW in {weights}") for kind, weights in _SETS.items()),
    ):
        rows = table[table["what"] == what]
        if len(rows):
            ratios = (rows["value"] / rows["chance"]).groupby(rows["system"], sort=False).median()
            values = named(ratios.rename("ratio").reset_index(), lambda row: _draw_name(row, names), "ratio")
            measure = f"{measure}, over chance, median over maps"
            yield extremes("Weights", measure, values, unit="times", of="systems")
    removed = table[table["what"].str.startswith("removed_")]
    for (system, what), rows in removed.groupby(["system", "what"], sort=False):
        method, _, control = str(what).removeprefix("removed_").partition("_")
        weights = _DRAWN.get(control, f"the weights removed by {method}")
        yield level(
            names.get(str(system), str(system)),
            f"share of what {weights} wrote that lay on the refusal direction, median over maps",
            Estimate(value=float(rows["value"].median())),
        )
