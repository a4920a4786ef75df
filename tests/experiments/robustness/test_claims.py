"""What attacks on a model say of drawn tables: nothing false, and every attack and cost that there is."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from mechsafety.experiments.robustness.findings import robustness_findings
from tests.claims.evaluator import refuted
from tests.claims.facts import Facts, Items, Value

ATTACKS = {
    "none": (0, 50, 0),
    "all": (50, 50, 0),
    "one": (1, 1, 0),
    "some": (249, 250, 3),
    "unread": (0, 0, 20),
}


def tables_of(hits: int, n: int, unread: int, cost: float) -> dict[str, pd.DataFrame]:
    rate = hits / n if n else math.nan
    attacks = [
        {
            "system": "m",
            "attack": "vanilla",
            "measure": "greedy",
            "k": 1,
            "n": n,
            "asr": rate,
            "unparsed": unread,
        },
        {
            "system": "m",
            "attack": "decoding",
            "measure": "mean",
            "k": 5,
            "n": n,
            "asr": rate,
            "unparsed": unread,
        },
        {
            "system": "m",
            "attack": "decoding",
            "measure": "any",
            "k": 5,
            "n": n,
            "asr": rate,
            "unparsed": unread,
        },
    ]
    bounds = {"low": rate - 0.01, "high": rate + 0.01}
    utility = {"system": "m", "accuracy": rate, "accuracy_n": n}
    for name in ("perplexity", "kl"):
        utility |= {name: cost, f"{name}_low": cost - 0.1, f"{name}_high": cost + 0.1}
    return {"attacks": pd.DataFrame(attacks).assign(**bounds), "utility": pd.DataFrame([utility])}


def _items(hits: int, n: int, unread: int = 0) -> Items:
    return {i: None if i >= n else i < hits for i in range(n + unread)}


@pytest.mark.parametrize("cost", [3.0, 0.0004, math.nan])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_and_cost(name: str, cost: float) -> None:
    hits, n, unread = ATTACKS[name]
    said = robustness_findings(tables_of(hits, n, unread, cost))
    measured = Value(cost, cost - 0.1, cost + 0.1, plain=True) if cost == cost else None
    levels: dict[tuple[str, str], Items | Value | None] = {
        ("m", "attack success, vanilla"): _items(hits, n, unread),
        ("m", "attack success, decoding, any of 5"): _items(hits, n),
        ("m", "accuracy on benign questions"): _items(hits, n),
    }
    levels["m", "perplexity of benign text"] = measured
    per_token = None if measured is None else replace(measured, unit="nats per token")
    levels["m", "KL from the unedited model on benign text"] = per_token
    told = [s for s in said if "mean of 5" not in s]
    assert refuted(told, Facts(levels=levels)) == []
    assert len(said) == 3 + 1 + (2 if cost == cost else 1)
    (mean,) = [s for s in said if "mean of 5" in s]
    assert ("unknown" in mean) == (n == 0)
    assert (f"{unread} not read" in mean) == bool(unread)
