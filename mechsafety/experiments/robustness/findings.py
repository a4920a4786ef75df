"""What attacks on a model found: levels of their success and of what the edit costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mechsafety.claims import Estimate
from mechsafety.claims.sentences import level
from mechsafety.plots.attacks import attack_name

_UNITS = {"perplexity": "", "kl": "nats per token"}
_NAMES = {"perplexity": "perplexity of", "kl": "KL from the unedited model on"}


def robustness_findings(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The success of each attack, the accuracy on benign questions, and the costs on benign text that were measured."""
    (cost,) = tables["utility"].to_dict("records")
    right, n, model = float(cost["accuracy"]), int(cost["accuracy_n"]), str(cost["system"])
    accuracy = Estimate.of_counts(round(right * n) if n else 0, n)
    measured = [name for name in _UNITS if name != "kl" or cost[name] == cost[name]]  # without an edit none
    return [
        *(
            level(model, f"attack success, {attack_name(row)}", _success(row))
            for row in tables["attacks"].to_dict("records")
        ),
        level(model, "accuracy on benign questions", accuracy),
        *(
            level(model, f"{_NAMES[name]} benign text", _measured(cost, name), unit=_UNITS[name])
            for name in measured
        ),
    ]


def _success(row: Mapping[Any, Any]) -> Estimate:
    """Coherent compliance: of prompts as counts, the mean over samples as a share."""
    if row["measure"] == "mean":
        return Estimate(value=row["asr"], low=row["low"], high=row["high"], unread=int(row["unparsed"]))
    unread = int(row["unparsed"]) if row["measure"] == "greedy" else 0
    return Estimate.of_counts(round(row["asr"] * row["n"]) if row["n"] else 0, int(row["n"]), unread=unread)


def _measured(cost: Mapping[Any, Any], name: str) -> Estimate:
    return Estimate(value=cost[name], low=cost[f"{name}_low"], high=cost[f"{name}_high"])
