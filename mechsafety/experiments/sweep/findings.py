"""What a sweep found: what was selected, as recorded, and the contrasts of its dose curves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from mechsafety.claims import (
    Claim,
    Estimate,
    corrected_over,
    decide,
    paired_binary,
    paired_control,
    sentences,
)
from mechsafety.claims.rows import named, verdicts_by
from mechsafety.claims.sentences import NO_VERDICTS, extremes, level, missing, series
from mechsafety.core import wording
from mechsafety.statistics.tables import PROMPT_LABELS
from mechsafety.sweeps.confirmation import confirmed_rows


def sweep_findings(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> list[str]:
    """What was selected by every method, how steadily, how well it separates, and what its dose curves show."""
    selected = manifest["selected"]
    place = selected["selection"]
    others = {m: f for m, f in manifest["selections"].items() if m != selected["method"]}
    row = tables["profile"].set_index("layer").loc[place["layer"]].to_dict()
    return [
        f"{selected['explanation']}.",
        *(f"{method}: {facts['explanation']}." for method, facts in others.items()),
        *_steadiness(tables, place),
        level(
            f"Direction of layer {place['layer']}, position {place['position']}",
            "AUROC of its projection on held-out prompts",
            Estimate.of_row(row, "auroc", "auroc_low", "auroc_high"),
            unit="AUROC",
        ),
        *(_dose_findings(tables) if "doses" in tables else []),
    ]


def _steadiness(tables: Mapping[str, pd.DataFrame], place: Mapping[str, Any]) -> Iterator[str]:
    """How often scores of prompts drawn again pick the candidate, and, where answers decided, one of those read."""
    stability, subject = tables["stability"], "Selection by scores alone, validation prompts drawn again"
    picked = stability.dropna(subset=["layer"]).set_index(["position", "layer"])["share"]

    def share(places: Iterable[tuple[int, int]]) -> Estimate:
        return Estimate(value=float(sum(picked.get(one, 0.0) for one in places)))

    at = (int(place["position"]), int(place["layer"]))
    if place.get("confirmed") is not None:
        read = confirmed_rows(tables["sweep"])
        places = {(int(p), int(layer)) for p, layer in zip(read["position"], read["layer"], strict=True)}
        what = wording.counted(len(places), "candidate")
        yield level(subject, f"resamples that pick one of the {what} whose answers were read", share(places))
        yield level(
            subject, f"resamples that pick layer {at[1]} at position {at[0]} as answers did", share([at])
        )
    else:
        yield level(subject, f"resamples that pick layer {at[1]} at position {at[0]}", share([at]))
    yield level(subject, "resamples in which no candidate passes", Estimate(value=none_passed(stability)))


def none_passed(stability: pd.DataFrame) -> float:
    """The share of resamples in which no candidate passed."""
    return float(stability[stability["layer"].isna()]["share"].sum())


def drawn_again(stability: pd.DataFrame) -> str:
    """The candidates that are selected most often when the prompts are drawn again."""
    steady = stability.dropna(subset=["layer"]).head(3)
    shares = ", ".join(
        f"layer {layer} at {position} in {wording.percent(share)}"
        for position, layer, share in steady.itertuples(index=False, name=None)
    )
    none = wording.percent(none_passed(stability))
    return f"by scores, drawn again: {shares or 'no candidate'}; none passed in {none}"


def dose_claims(tables: Mapping[str, pd.DataFrame], label: str) -> dict[str, Claim]:
    """Refusals under each strength of the direction's projection, by strength; corrected over these.

    The control is every random direction at that strength. Empty where the run holds no verdicts by prompt.
    """
    states = verdicts_by(tables.get("verdicts"), ("family", "dose", "direction"), label=label)
    before = states.get(("none", "unedited", "none"), {})
    found = {}
    for (family, dose, direction), after in states.items():
        if (family, direction) != ("alpha", "refusal"):
            continue
        random = [v for (f, d, who), v in states.items() if (f, d) == (family, dose) and who != direction]
        contrast = paired_binary(
            before,
            after,
            subject=f"Projection at alpha {dose}",
            measure=f"refusals of {label} prompts",
            states=("unedited", "projected"),
        )
        control = paired_control("random directions of like energy", after, random) if random else None
        found[dose] = replace(contrast, control=control)
    order = sorted(found, key=float)
    return dict(zip(order, map(decide, corrected_over([found[d] for d in order], "strengths")), strict=True))


def _dose_findings(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    for label in PROMPT_LABELS:
        claims = dose_claims(tables, label)
        alone = [
            (dose, replace(c, contrast=replace(c.contrast, subject="Projection")))
            for dose, c in claims.items()
        ]
        yield from [series(alone, of="strengths alpha")] if alone else []
        yield from sentences(*(c for dose, c in claims.items() if dose == "1"))
    if "verdicts" not in tables:
        yield missing("Change of refusals by dose", NO_VERDICTS)
    doses = tables["doses"]
    full = doses[(doses["family"] == "alpha") & (doses["dose"] == "1")]
    unedited = doses[doses["dose"] == "unedited"].iloc[0]
    full = full.assign(ratio=full["perplexity"] / unedited["perplexity"])
    measure = "perplexity of the unedited model's own answers, over that unedited"
    for control, rows in full.groupby("control", sort=False):
        names = [f"draw {n}" if control else "refusal direction" for n in range(1, len(rows) + 1)]
        values = named(rows.assign(name=names), "name", "ratio")
        what = "random directions" if control else "refusal direction"
        yield extremes("Projection at alpha 1", measure, values, unit="times", of=what)
