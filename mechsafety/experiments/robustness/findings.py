"""What attacks on a model found: levels of their success and of what the edit costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from mechsafety.claims import Estimate
from mechsafety.claims.rows import counts_in
from mechsafety.claims.sentences import level
from mechsafety.plots.attacks import attack_name

_COSTS = {"perplexity": ("perplexity of", ""), "kl": ("KL from the unedited model on", "nats per token")}


def robustness_findings(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The success of each attack, the accuracy on benign questions, and the costs on benign text that were measured."""
    (cost,) = tables["utility"].to_dict("records")
    model = str(cost["system"])
    said = [*attack_sentences(tables["attacks"])]
    said.append(level(model, "accuracy on benign questions", counts_in(cost, "accuracy", "accuracy_n")))
    for name, (measure, unit) in _COSTS.items():
        if name != "kl" or cost[name] == cost[name]:  # without an edit there is no KL
            found = Estimate.of_row(cost, name, f"{name}_low", f"{name}_high")
            said.append(level(model, f"{measure} benign text", found, unit=unit))
    return said


def attack_sentences(attacks: pd.DataFrame) -> Iterator[str]:
    """How often each attack succeeds; ``attacks`` has the columns of an attack table."""
    for row in attacks.to_dict("records"):
        subject = f"{row['system']} under {attack_name(row)}"
        yield level(subject, "harmful prompts answered coherently", _success(row))


def _success(row: Mapping[Any, Any]) -> Estimate:
    """Coherent compliance: of prompts as counts, the mean over samples as a share."""
    if row["measure"] == "mean":
        return Estimate.of_row(row, "asr", "low", "high", unread=int(row["unread"]))
    return counts_in(row, "asr", "n", "unread")
