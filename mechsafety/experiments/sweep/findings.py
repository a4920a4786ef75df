"""What a sweep found, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechsafety.core.wording import counted, span


def sweep_findings(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> list[str]:
    """What was selected by every method, how steadily, how well it separates, and what its dose curves show."""
    selected = manifest["selected"]
    place = selected["selection"]
    sentences = [f"{selected['explanation']}."]
    others = {m: f for m, f in manifest["selections"].items() if m != selected["method"]}
    sentences += [f"{method}: {facts['explanation']}." for method, facts in others.items()]
    stability = tables["stability"]
    here = (stability["layer"] == place["layer"]) & (stability["position"] == place["position"])
    picked = stability[here]["share"].sum()
    sentences.append(
        f"When the validation prompts are drawn again, this candidate is picked in {picked:.0%} of resamples, and "
        f"none passes in {none_passed(stability):.0%}."
    )
    row = tables["profile"].set_index("layer").loc[place["layer"]]
    sentences.append(
        f"The projection separates held-out prompts with AUROC {row['auroc']:.2f} [{row['auroc_low']:.2f}, "
        f"{row['auroc_high']:.2f}]."
    )
    return sentences + (_dose_findings(tables["doses"]) if "doses" in tables else [])


def none_passed(stability: pd.DataFrame) -> float:
    """The share of resamples in which no candidate passed."""
    return float(stability[stability["layer"].isna()]["share"].sum())


def drawn_again(stability: pd.DataFrame) -> str:
    """The candidates that are selected most often when the prompts are drawn again."""
    steady = stability.dropna(subset=["layer"]).head(3)
    shares = ", ".join(
        f"layer {layer} at {position} in {share:.0%}"
        for position, layer, share in steady.itertuples(index=False, name=None)
    )
    return f"drawn again: {shares or 'no candidate'}; none passed in {none_passed(stability):.0%}"


def _dose_findings(doses: pd.DataFrame) -> list[str]:
    """What the whole direction and random ones of like energy take away; the span over the draws."""
    unedited = doses[doses["dose"] == "unedited"].iloc[0]
    full = doses[(doses["family"] == "alpha") & (doses["dose"] == "1")]
    full = full.assign(ratio=full["perplexity"] / unedited["perplexity"])
    sentences = []
    for row in full[~full["control"]].to_dict(orient="records"):
        end = f"{row['refused']:.0%} [{row['low']:.0%}, {row['high']:.0%}] (n = {int(row['n'])})"
        sentences.append(
            f"Projecting the direction out takes refusal of harmful report prompts from {unedited['refused']:.0%} to "
            f"{end}, with {row['degenerate']:.0%} of answers degenerate and perplexity x {row['ratio']:.2f}."
        )
    random = full[full["control"]]
    if len(random):
        draws = (
            f"{counted(len(random), 'random direction')}, one at a time"
            if len(random) > 1
            else "a random direction"
        )
        sentences.append(
            f"Projecting out {draws} takes it to {span(random['refused'], '.0%')}, with "
            f"{span(random['degenerate'], '.0%')} of answers degenerate and perplexity x "
            f"{span(random['ratio'], '.2f')}."
        )
    return sentences
