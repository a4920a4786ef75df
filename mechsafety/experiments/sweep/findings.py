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
from mechsafety.claims.sentences import NO_VERDICTS, extremes, level, missing, named, series
from mechsafety.core import wording
from mechsafety.sweeps.confirmation import confirmed_rows


def sweep_findings(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> list[str]:
    """What was selected by every method, how steadily, how well it separates, and what its dose curves show."""
    selected = manifest["selected"]
    place = selected["selection"]
    others = {m: f for m, f in manifest["selections"].items() if m != selected["method"]}
    row = tables["profile"].set_index("layer").loc[place["layer"]]
    auroc = Estimate(value=float(row["auroc"]), low=float(row["auroc_low"]), high=float(row["auroc_high"]))
    return [
        f"{selected['explanation']}.",
        *(f"{method}: {facts['explanation']}." for method, facts in others.items()),
        *_steadiness(tables, place),
        level(
            f"Direction of layer {place['layer']}, position {place['position']}",
            "AUROC of its projection on held-out prompts",
            auroc,
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
    if "verdicts" not in tables:
        return {}
    table = tables["verdicts"]
    states = {
        key: dict(zip(rows["id"], rows["verdict"], strict=True))
        for key, rows in table[table["label"] == label].groupby(["family", "dose", "direction"], sort=False)
    }
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
    doses = tables["doses"]
    for label in ("harmful", "harmless"):
        claims = dose_claims(tables, label)
        if claims:
            alone = [
                (dose, replace(c, contrast=replace(c.contrast, subject="Projection")))
                for dose, c in claims.items()
            ]
            yield series(alone, of="strengths alpha")
        if "1" in claims:
            yield from sentences(claims["1"])
    if "verdicts" not in tables:
        yield missing("Change of refusals by dose", NO_VERDICTS)
    unedited = doses[doses["dose"] == "unedited"].iloc[0]
    full = doses[(doses["family"] == "alpha") & (doses["dose"] == "1")]
    full = full.assign(ratio=full["perplexity"] / unedited["perplexity"])
    for control, rows in full.groupby("control", sort=False):
        rows = rows.assign(
            name=[f"draw {n}" if control else "refusal direction" for n in range(1, len(rows) + 1)]
        )
        what = "random directions" if control else "refusal direction"
        measure = "perplexity of the unedited model's own answers, over that unedited"
        yield extremes("Projection at alpha 1", measure, named(rows, "name", "ratio"), unit="times", of=what)
