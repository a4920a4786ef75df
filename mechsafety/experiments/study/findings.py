"""What a study found, in sentences, and which of its systems could be measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechsafety.core.wording import counted, listed, span
from mechsafety.experiments.agreement.findings import arm_error_sentences, corrected_sentences
from mechsafety.experiments.agreement.planning import plan_sentences
from mechsafety.judges.label_order import order_sentences
from mechsafety.plots.style import system_names

_ALPHA = 0.05
_LIKE = 1.5
_NAMED_DRAWS = 5


def measured_systems(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The systems of a study's manifest that have rows in its tables."""
    return {name: facts for name, facts in manifest.get("systems", {}).items() if "failed" not in facts}


def failed_systems(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Why the others have none."""
    return {name: facts["failed"] for name, facts in manifest.get("systems", {}).items() if "failed" in facts}


def failure_lines(failed: Mapping[str, str], names: Mapping[str, str] | None = None) -> list[str]:
    """A sentence for every system that could not be measured, under the names that are shown."""
    return [f"Not measured: {(names or {}).get(system, system)}: {why}" for system, why in failed.items()]


def headline(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> list[str]:
    """What the page begins with.

    A judge that errs differently in the two arms comes first, then rates and changes corrected by labels; the raw ones
    follow. Without labels the last sentence is how many it would take.
    """
    judge = manifest["config"]["judges"][0]
    raw = study_findings(tables, manifest)
    if "arm_errors" not in tables:
        return [*raw, *plan_sentences(tables["rates"], judge)]
    corrected = corrected_sentences(tables, primary=judge)
    if corrected:
        raw = [f"Raw, by {judge} alone: {text}" for text in raw]
    elif judge in set(tables["judge_errors"]["judge"]):
        raw += plan_sentences(tables["rates"], judge)
    return [*arm_error_sentences(tables["arm_errors"], primary=judge), *corrected, *raw]


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
        p = math.nan
        if (system, "harmful") in tests.index:
            p = float(tests.loc[(system, "harmful")]["p_holm"])
            text += " The change is not testable." if math.isnan(p) else f" {_verdict(p)}"
        if "controls" in tables:
            drawn = tables["controls"]
            of_system = drawn[(drawn["system"] == system) & (drawn["judge"] == judge)]
            text += control_sentences(of_system, before, after, p)
        if (system, "original", "harmless") in rates.index:
            text += f" It refuses {_share(rates.loc[(system, 'original', 'harmless')])} of harmless prompts."
        if (why := facts.get("no_gap")) is not None:
            read = facts["selection"].get("confirmed") is not None
            taken = (
                "the candidate was taken by what the model writes"
                if read
                else "the nearest candidate was removed"
            )
            text += f" By its scores {why}; {taken}."
        elif failed := facts["selection"].get("failed"):
            text += f" The candidate that was removed fails {listed(failed)}: read this arm with care."
        sentences.append(text)
    return sentences + (order_sentences(tables["label_order"]) if "label_order" in tables else [])


def control_sentences(drawn: pd.DataFrame, before: Any, after: Any, p: float) -> str:
    """What random directions do in the direction's place, and whether the edit does more than every one of them.

    ``drawn`` are the rows of one system, ``before`` and ``after`` its rates without and with the edit, ``p`` that of
    the change between them. A fall or a rise goes beyond the draws where the change itself is significant, and the
    edit's answers differ to the same side from those under every draw.
    """
    if drawn.empty:
        return ""
    n, known = len(drawn), drawn[drawn["refused"].notna()]
    draws = counted(n, "random direction")
    if known.empty:
        return f" Of its answers with {draws} removed instead none could be read."
    shares = _few_shares(known) if n <= _NAMED_DRAWS else f"{span(known['refused'], '.0%')}"
    of_draws = counted(n, "draw") + (f", {n - len(known)} of them not read" if n > len(known) else "")
    instead = f" With a random direction {_energy(drawn)} removed instead, it refuses {shares} ({of_draws})"
    return f"{instead}: {_beyond(drawn, before, after, p)}.{_rank(drawn)}"


def _few_shares(known: pd.DataFrame) -> str:
    return listed(
        [f"{r:.0%} [{low:.0%}, {high:.0%}]" for r, low, high in known[["refused", "low", "high"]].to_numpy()]
    )


def _energy(drawn: pd.DataFrame) -> str:
    """``of like energy``, where no draw has half as much again or two thirds of the direction's."""
    ratio = (drawn["energy"] / drawn["energy_direction"]).replace([math.inf, -math.inf], math.nan)
    if ratio.isna().any():
        return "of unknown energy"
    if ratio.min() >= 1 / _LIKE and ratio.max() <= _LIKE:
        return "of like energy"
    return f"of {span(ratio, '.2g')} times its energy"


def _beyond(drawn: pd.DataFrame, before: Any, after: Any, p: float) -> str:
    """What the tests against the draws show; ``p_beyond`` is of a difference from all of them to one side."""
    largest, draws = float(drawn["p_beyond"].iloc[0]), counted(len(drawn), "random draw")
    if math.isnan(largest):
        return f"whether the edit differs from {draws} is not testable"
    tested = f"largest {_p(largest)}, Holm over systems"
    if largest >= _ALPHA:
        return f"the edit is not shown to do more than {draws} ({tested})"
    fewer = bool((drawn["fell"] > drawn["rose"]).all())
    change = after["rate"] - before["rate"]
    if p < _ALPHA and change != 0 and fewer == (change < 0):
        return f"the {'fall' if fewer else 'rise'} goes beyond {draws} ({tested})"
    return f"the edited model refuses {'fewer' if fewer else 'more'} prompts than with each of {draws} ({tested})"


def _rank(drawn: pd.DataFrame) -> str:
    rank, n = float(drawn["p_rank"].iloc[0]), len(drawn)
    if math.isnan(rank):
        return ""
    as_few = round(rank * (n + 1)) - 1
    return f" {as_few or 'None'} of {n} draws leave{'s' * (as_few < 2)} as few refusals or fewer (rank {_p(rank)})."


def _share(row: Any) -> str:
    if row["rate"] != row["rate"]:
        return "an unknown share"
    return f"{row['rate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def _verdict(p: float) -> str:
    word = "significant" if p < _ALPHA else "not significant"
    return f"The change is {word} (exact McNemar, Holm over systems, {_p(p)})."


def _p(p: float) -> str:
    return "p < .0001" if p < 1e-4 else f"p = {p:.4f}"
