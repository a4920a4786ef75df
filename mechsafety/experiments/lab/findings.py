"""What a run of the lab found, in sentences: which claims held, and which attacks get through."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from mechsafety.core.wording import span

TUNINGS: Mapping[str, str] = {
    "ssft": "supervised safety fine-tuning",
    "dpo": "DPO",
    "unlearn": "unlearning",
    "benign": "benign fine-tuning",
}
KINDS: Mapping[str, str] = {
    "safe": "safe",
    "unsafe": "unsafe",
    "co_task": "competing tasks",
    "co_text": "mixed texts",
    "misgen": "aliases",
    "ood": "random texts",
    "soft": "searched soft tokens",
    "random_soft": "random soft tokens",
}
_ATTACKS = ("co_task", "co_text", "misgen", "ood", "soft")


def lab_findings(cases: pd.DataFrame, held: pd.DataFrame) -> dict[str, list[str]]:
    """Sentences by section: ``claims`` and ``attacks``.

    ``cases`` has the columns of the run's ``cases``, ``held`` those of
    :func:`mechsafety.experiments.lab.thresholds.held_over_seeds`.
    """
    return {"claims": _claims(held), "attacks": _attacks(cases)}


def _claims(held: pd.DataFrame) -> list[str]:
    bounds = held[held["held"].notna()]
    seeds = int(held["seeds"].max())
    always, never = bounds["held"] == bounds["seeds"], bounds["held"] == 0
    sentences = [
        f"Of {len(bounds)} bounds, {int(always.sum())} were met in "
        f"{'every one of ' if seeds > 1 else ''}{seeds} seed{'s' if seeds > 1 else ''}, {int(never.sum())} in none."
    ]
    sentences += [
        f"Claim {row['number']}, {TUNINGS.get(row['model'], row['model'])}: {row['what']} was "
        f"{span([row['lowest'], row['highest']], '.3g')}, not {row['bound']}, in {int(row['seeds'] - row['held'])} of "
        f"{int(row['seeds'])} seeds."
        for row in bounds[~always].to_dict("records")
    ]
    return sentences


def _attacks(cases: pd.DataFrame) -> list[str]:
    sentences = []
    for model, name in TUNINGS.items():
        rows = cases[(cases["model"] == model) & cases["kind"].isin(_ATTACKS)]
        if model == "benign" or rows.empty:
            continue
        share = rows.groupby("kind")["correct"].mean().reindex(_ATTACKS)
        direct = cases[(cases["model"] == model) & (cases["kind"] == "unsafe")]["correct"].mean()
        shares = ", ".join(f"{KINDS[str(kind)]} {value:.0%}" for kind, value in share.items())
        sentences.append(
            f"After {name}, the model answers {direct:.0%} of direct unsafe inputs, and of attacks, averaged over "
            f"seeds and text classes: {shares}."
        )
    return sentences
