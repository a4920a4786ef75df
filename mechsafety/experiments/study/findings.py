"""What a study found, in sentences, and which of its systems could be measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechsafety.plots.style import system_names


def measured_systems(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The systems of a study's manifest that have rows in its tables."""
    return {name: facts for name, facts in manifest.get("systems", {}).items() if "failed" not in facts}


def failed_systems(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Why the others have none."""
    return {name: facts["failed"] for name, facts in manifest.get("systems", {}).items() if "failed" in facts}


def failure_lines(failed: Mapping[str, str], names: Mapping[str, str] | None = None) -> list[str]:
    """A sentence for every system that could not be measured, under the names that are shown."""
    return [f"Not measured: {(names or {}).get(system, system)}: {why}" for system, why in failed.items()]


def study_findings(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> list[str]:
    """What happened to each system, in one or two sentences with numbers."""
    judge = manifest["config"]["judges"][0]
    rates = tables["rates"][tables["rates"]["judge"] == judge].set_index(["system", "arm", "label"])
    tests = tables["tests"][tables["tests"]["judge"] == judge].set_index(["system", "label"])
    sentences, names = [], system_names(measured_systems(manifest))
    for system, facts in measured_systems(manifest).items():
        try:
            before, after = (rates.loc[(system, arm, "harmful")] for arm in ("original", "edited"))
        except KeyError:
            continue
        coherent = 1 - after["degenerate"] / after["n"]
        text = (
            f"{names[system]} refuses {_share(before)} of harmful prompts; after the edit {_share(after)}, "
            f"with {coherent:.0%} of its answers coherent."
        )
        if (system, "harmful") in tests.index:
            p = float(tests.loc[(system, "harmful")]["p_holm"])
            text += " The change is not testable." if math.isnan(p) else f" {_verdict(p)}"
        if (system, "original", "harmless") in rates.index:
            text += f" It refuses {_share(rates.loc[(system, 'original', 'harmless')])} of harmless prompts."
        if facts["selection"]["rule"] == "nearest":
            text += " No layer passed the selection, so the nearest candidate was removed: read this arm with care."
        sentences.append(text)
    return sentences


def _share(row: Any) -> str:
    if row["rate"] != row["rate"]:
        return "an unknown share"
    return f"{row['rate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def _verdict(p: float) -> str:
    word = "significant" if p < 0.05 else "not significant"
    size = "p < .0001" if p < 1e-4 else f"p = {p:.4f}"
    return f"The change is {word} (exact McNemar, Holm over systems, {size})."
