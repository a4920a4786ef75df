"""What a ladder found: a list of contrasts and of measured values, each said by the forms of claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mechsafety.claims import Claim, sentences
from mechsafety.claims.rows import Say, above, ends_of, middle, named, told
from mechsafety.claims.sentences import NO_VERDICTS, counted, extremes, missing, series, tallies
from mechsafety.claims.shared import Tables
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


def ladder_findings(tables: Tables, *, layer: int | None) -> dict[str, list[str]]:
    """Sentences by section: survival, cost, ranks, cosines, angles, transfer, links; those that have a table.

    ``tables`` are the run's, and its comparison's under their own names; ``layer`` is the one at which the comparison
    shows its matrices.
    """
    return told(tables, _SECTIONS, rung_names(ladder_systems(tables)), layer)


def summary(tables: Tables) -> list[str]:
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


def _survival(tables: Tables, *_: object) -> Iterator[str]:
    """Each system at the fewest directions that change its refusals of harmful prompts, else at the most."""
    both = [ladder_claims(tables, label) for label in ("harmful", "harmless")]
    for system in ladder_systems(tables):
        claims = of_system(both[0], system)
        at = next((k for k, claim in claims.items() if claim.shown), max(claims, default=0))
        yield from sentences(*(several[system, at] for several in both if (system, at) in several))


def _cost(tables: Tables, names: Names, _: object) -> Iterator[str]:
    """What the fewest and the most directions cost on harmless prompts, refusal directions and random ones."""
    harmless = tables["survival"][tables["survival"]["label"] == "harmless"]
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
        random = kind == "random"
        what = number_of(int(str(directions)), "random direction" if random else "refusal direction")
        of = "systems and draws" if random else "systems"
        for column, measure, unit in measures:
            yield from ends_of(f"Without {what}", measure, rows, _draws(names), column, unit=unit, of=of)


def _draws(names: Names) -> Callable[[Mapping[Any, Any]], str]:
    def name(row: Mapping[Any, Any]) -> str:
        system = str(names.get(row["system"], row["system"]))
        return f"{system}, draw {row['draw']}" if row.get("draw") else system

    return name


def _pairs(names: Names) -> Callable[[Mapping[Any, Any]], str]:
    return lambda row: f"{names.get(row['a'], row['a'])} with {names.get(row['b'], row['b'])}"


def _ranks(tables: Tables, names: Names, _: object) -> Iterator[str]:
    table = tables["ranks"]
    what = "directions of the refusal subspace have, alone, an AUROC above 95 % of permuted labels"
    for system, rows in table.groupby("system", sort=False):
        yield from above(
            names.get(str(system), str(system)), rows, "auroc", "auroc_chance", what, chance=0.05
        )
    first = table[table["index"] == table["index"].min()]
    ends = ("auroc", "auroc_low", "auroc_high")
    yield from ends_of(
        *("The first direction alone", "AUROC on report prompts", first, _draws(names), *ends),
        unit="AUROC",
        of="systems",
    )


def _cosines(tables: Tables, names: Names, layer: int | None) -> Iterator[str]:
    at = tables["cosines"][tables["cosines"]["layer"] == layer]
    subject, ends = f"Refusal directions at layer {layer}", ("cosine", "low", "high")
    yield from ends_of(subject, "cosine", at, _pairs(names), *ends, unit="cosine", of="pairs of systems")
    known = at[at["low"].notna() & at["harmless_high"].notna()]
    if at["cosine"].notna().any():
        yield counted(
            subject,
            int((known["low"] > known["harmless_high"]).sum()),
            len(known),
            "pairs have a cosine whose 95 % interval lies above those of 95 % of directions between halves of the "
            "harmless prompts",
            unknown=len(at) - len(known),
        )


def _angles(tables: Tables, names: Names, layer: int | None) -> Iterator[str]:
    at = tables["angles"][(tables["angles"]["layer"] == layer) & (tables["angles"]["index"] == 1)]
    for column, what in (
        ("angle", "smallest principal angle"),
        ("ceiling_a", "smallest principal angle between halves of the prompts in the first system"),
        ("random_low", "angle that 95 % of random subspaces exceed"),
    ):
        if at["angle"].notna().any():
            yield extremes(
                *(f"Refusal subspaces at layer {layer}", what, named(at, _pairs(names), column)),
                unit="degrees",
                of="pairs of systems",
            )


def _links(tables: Tables, names: Names, _: object) -> Iterator[str]:
    """dW beside the refusal direction and the safety-critical weights, and what these wrote along the direction."""
    table = tables["links"][tables["links"]["value"].notna()]
    keys = ["system", "layer", "kind"]
    energy, random = (table[table["what"] == what] for what in ("energy", "energy_random"))
    what = "maps whose dW writes more along the refusal direction than along 97.5 % of random directions"
    for system, rows in energy.merge(random, on=keys, suffixes=("", "_random")).groupby("system", sort=False):
        yield from above(
            names.get(str(system), str(system)), rows, "value", "high_random", what, chance=1 / 40
        )
    for what, measure in (
        ("energy", "energy of dW along its refusal direction"),
        ("energy_base", "energy of the base's weights along the system's refusal direction"),
        *((kind, f"energy of dW in {weights}") for kind, weights in _SETS.items()),
    ):
        rows = table[table["what"] == what]
        ratios = (rows["value"] / rows["chance"]).groupby(rows["system"], sort=False).median()
        ratios = ratios.rename("ratio").reset_index()
        measure = f"{measure}, over chance, median over maps"
        yield from ends_of("Weights", measure, ratios, _draws(names), "ratio", unit="times", of="systems")
    removed = table[table["what"].str.startswith("removed_")]
    for (system, what), rows in removed.groupby(["system", "what"], sort=False):
        method, _, control = str(what).removeprefix("removed_").partition("_")
        weights = _DRAWN.get(control, f"the weights removed by {method}")
        measure = f"share of what {weights} wrote that lay on the refusal direction, median over maps"
        yield middle(names.get(str(system), str(system)), measure, rows["value"])


_SECTIONS: Mapping[str, tuple[str, Say]] = {
    "survival": ("survival", _survival),
    "cost": ("survival", _cost),
    "ranks": ("ranks", _ranks),
    "cosines": ("cosines", _cosines),
    "angles": ("angles", _angles),
    "transfer": ("transfer", lambda tables, names, _: transfer_findings(tables["transfer"], names)),
    "links": ("links", _links),
}
