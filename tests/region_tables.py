"""Made-up tables of a regions run: known numbers, of the shape that ``mechsafety regions`` writes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mechsafety.statistics import wilson

KINDS = ("q", "k", "v", "o", "gate", "up", "down")
N = 50
STATE = ("removal", "setting", "control", "draw")
SWEET_SPOT = {
    "removal": "set_difference",
    "setting": "p=1 q=1",
    "explanation": "Sweet spot: set_difference at p=1 q=1, the smallest removal whose refusals fall below half.",
}
_SETTINGS = ((0.5, 0.5), (1, 1), (3, 3), (5, 5), (8, 5), (4, 2), (7, 3))
_RANKS = ((0.85, 0.98), (0.95, 0.98), (0.98, 0.99))


def _rate(prefix: str, count: int, n: int = N) -> dict[str, float]:
    found = wilson(max(0, min(n, count)), n)
    return {prefix: found.rate, f"{prefix}_low": found.low, f"{prefix}_high": found.high}


def outcomes(
    refused: int, degenerate: int, *, harmless_refused: int = 4, harmless_degenerate: int = 0
) -> dict:
    """OUTCOMES of counts among 50 harmful and 50 harmless prompts."""
    return {
        "harmful_n": N,
        **_rate("refused", refused),
        **_rate("complied", N - refused - degenerate),
        **_rate("degenerate", degenerate),
        "harmless_n": N,
        **_rate("harmless_refused", harmless_refused),
        **_rate("harmless_degenerate", harmless_degenerate),
    }


def utility(perplexity: float, kl: float, correct: int) -> dict[str, float]:
    return {
        "perplexity": perplexity,
        "perplexity_low": perplexity * 0.93,
        "perplexity_high": perplexity * 1.08,
        "kl": kl,
        "kl_low": kl * 0.85,
        "kl_high": kl * 1.2,
        **_rate("accuracy", correct, 60),
        "accuracy_n": 60,
    }


def _state(removal: str, control: str, draw: int, share: float, **sizes: float) -> dict:
    setting = " ".join(f"{name}={value:g}" for name, value in sizes.items())
    return {
        "removal": removal,
        "setting": setting,
        "control": control,
        "draw": draw,
        **{name: sizes.get(name, math.nan) for name in ("p", "q", "r_u", "r_s")},
        "share": share,
        "mean_weight": math.nan if control == "model" else 0.09 if control == "random" else 0.15,
        "energy": share * (1 if control == "random" else 3),
    }


def tradeoff(*, draws: int = 3, grid: bool = False) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [_state("none", "model", 0, 0.0) | outcomes(50, 0) | utility(8.4, 0.0, 41)]

    def add(removal: str, control: str, count: int, share: float, hit: float, **sizes: float) -> None:
        for draw in range(count):
            shift = int(rng.integers(0, 3))
            removed = control == "removed"
            degenerate = round(N * (0.9 * hit**2 if removed else 0.3 * hit**2)) + shift
            refused = round(N * (0.06 * (1 - hit) if removed else 1 - 0.5 * hit)) - shift * (not removed)
            rows.append(
                _state(removal, control, draw, share, **sizes)
                | outcomes(
                    max(0, min(refused, N - degenerate)), degenerate,
                    harmless_refused=shift, harmless_degenerate=degenerate // 2,
                )
                | utility(8.4 * (1 + 6 * hit**2 * (1 if removed else 0.5)), 1.4 * hit + 0.02, 41 - round(14 * hit))
            )  # fmt: skip

    settings = tuple((p, q) for p in (1, 3, 5, 8) for q in (1, 3, 5)) if grid else _SETTINGS
    for p, q in settings:
        for control in ("removed", "random", "matched"):
            add("set_difference", control, draws, 0.0068 * q * (1.3 - 0.06 * p), 0.12 * q, p=p, q=q)
    for r_u, r_s in _RANKS:
        for control in ("removed", "random", "matched"):
            add("orthogonal_projection", control, draws, 1 - r_s, 0.3, r_u=r_u, r_s=r_s)
    for q in (1.0, 5.0):
        for control in ("removed", "random", "matched"):
            add("top_safety", control, draws, q / 100, 0.7 + 0.05 * q, q=q)
    return pd.DataFrame(rows)


def structure(*, layers: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    level = dict(zip(KINDS, (0.447, 0.427, 0.361, 0.372, 0.305, 0.353, 0.338), strict=True))
    table = pd.DataFrame(
        [
            {
                "method": method,
                "layer": layer,
                "kind": kind,
                "q": 5.0,
                "jaccard": float(np.clip(level[kind] * (1 + extra) + 0.06 * rng.standard_normal(), 0, 1)),
                "chance": 0.025641,
            }
            for method, extra in (("snip", 0.0), ("wanda", 0.6))
            for layer in range(layers)
            for kind in KINDS
        ]
    )
    return table.assign(excess=(table["jaccard"] - table["chance"]) / (1 - table["chance"]))


def subspaces(*, layers: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    chance = {kind: 100 / d for kind, d in zip(KINDS, (576, 192, 192, 576, 1536, 1536, 576), strict=True)}
    floor = {kind: 100 / (192 if kind in "kv" else 576) for kind in KINDS}
    table = pd.DataFrame(
        [
            {
                "layer": layer,
                "kind": kind,
                "rank": 100,
                "phi": float(np.clip(floor[kind] + 0.2 + 0.05 * rng.standard_normal(), 0, 1)),
                "chance": chance[kind],
                "chance_in_range": floor[kind],
            }
            for layer in range(layers)
            for kind in KINDS
        ]
    )
    return table.assign(excess=(table["phi"] - table["chance_in_range"]) / (1 - table["chance_in_range"]))


def heads(*, layers: int = 30, n_heads: int = 9) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = []
    for layer in range(layers):
        for head in range(n_heads):
            auroc = float(np.clip(0.6 + 0.4 * layer / max(1, layers) + 0.06 * rng.standard_normal(), 0.4, 1))
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "auroc": auroc,
                    "low": max(0.0, auroc - 0.09),
                    "high": min(1.0, auroc + 0.06),
                    "n": 160,
                }
            )
    return pd.DataFrame(rows)


def attacks() -> pd.DataFrame:
    rows = []
    for system, base, broken in (
        ("unedited", 0, 0.02),
        ("set_difference p=1 q=1", 44, 0.08),
        ("random control of set_difference p=1 q=1", 12, 0.06),
    ):
        for attack, measure, k, gain in (
            ("vanilla", "greedy", 1, 0),
            ("decoding", "any", 5, 13),
            ("decoding", "mean", 5, 7),
            ("suffix", "any", 2, 20),
        ):
            found = wilson(min(N - 4, base + gain), N)
            rows.append(
                {
                    "system": system,
                    "attack": attack,
                    "measure": measure,
                    "k": k,
                    "n": N,
                    "unread": 0,
                    "asr": found.rate,
                    "low": found.low,
                    "high": found.high,
                    "refused": max(0.0, 1 - found.rate - broken),
                    "degenerate": broken,
                }
            )
    return pd.DataFrame(rows)


def freezing(*, seeds: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    place = {"mode": "none", "frozen": "none", "frozen_share": 0.0, "n_examples": 0, "seed": pd.NA}
    untouched = (
        place | {"loss_first": math.nan, "loss_last": math.nan} | outcomes(50, 0) | utility(8.4, 0.0, 41)
    )
    rows = [untouched]
    for n_examples in (10, 50, 100):
        for mode, frozen, kept in (
            ("none", "none", 1.0),
            ("freeze", "safety", 0.9),
            ("freeze", "random of that size", 0.98),
            ("rewind", "safety", 0.45),
            ("rewind", "random of that size", 0.96),
        ):
            for seed in range(seeds):
                lost = round(N * min(0.95, 0.5 + 0.2 * math.log10(n_examples)) * kept) - int(
                    rng.integers(0, 4)
                )
                rows.append(
                    {
                        "mode": mode,
                        "frozen": frozen,
                        "frozen_share": 0.0 if mode == "none" else 0.05,
                        "n_examples": n_examples,
                        "seed": seed,
                        "loss_first": 2.4,
                        "loss_last": 1.1 + 0.3 * (mode == "freeze"),
                    }
                    | outcomes(N - lost - 1, 1)
                    | utility(8.4 + 0.02 * n_examples, 0.1, 41)
                )
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def links(*, layers: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    return pd.DataFrame(
        [
            {
                "removal": removal,
                "method": method,
                "layer": layer,
                "kind": kind,
                "share_removed_on_direction": float(level * np.exp(0.5 * rng.standard_normal())),
                "chance": 1 / 576,
                "random": float(0.004 * np.exp(0.3 * rng.standard_normal())),
                "whole": 0.004,
                "n": 2000,
            }
            for removal, method, level in (
                ("set difference p=1 q=1", "snip", 0.02),
                ("set difference p=1 q=1", "wanda", 0.006),
                ("orthogonal projection r_u=0.95 r_s=0.98", "actsvd", 0.03),
            )
            for layer in range(layers)
            for kind in ("o", "down")
        ]
    )


def link_effects() -> pd.DataFrame:
    rows = []
    for state, refused, degenerate, auroc in (
        ("model", 50, 0, 0.99),
        ("ablated", 1, 2, math.nan),
        ("removed", 2, 4, 0.93),
        ("removed then ablated", 0, 6, math.nan),
        ("random removed", 46, 1, 0.98),
        ("random removed then ablated", 1, 3, math.nan),
    ):
        place = {
            "auroc": auroc,
            "auroc_low": auroc - 0.04,
            "auroc_high": min(1.0, auroc + 0.01),
            "auroc_n": 160.0,
            "cosine": 0.8 * auroc,
            "relative_norm": 0.7 * auroc,
        }
        rows.append({"state": state} | outcomes(refused, degenerate) | place)
    return pd.DataFrame(rows)


def verdicts(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One verdict a prompt of every state of the tables: the first ones refused, the next ones degenerate."""
    states = [
        (("outcomes", row["removal"], row["setting"], row["control"], row["draw"]), row)
        for row in found["tradeoff"].to_dict(orient="records")
    ]
    states += [
        (("links", "set_difference", "p=1 q=1", row["state"], 0), row)
        for row in found["link_effects"].to_dict(orient="records")
    ]
    for row in found["freezing"].to_dict(orient="records"):
        setting = f"{row['frozen']} {row['mode']} n={row['n_examples']}"
        seed = 0 if row["seed"] is pd.NA else row["seed"]
        states.append((("freezing", "set_difference", setting, "fine-tuned", seed), row))
    rows = []
    for key, row in states:
        for label, before in (("harmful", ""), ("harmless", "harmless_")):
            refused, degenerate = (round(N * row[f"{before}{name}"]) for name in ("refused", "degenerate"))
            said = ["refusal"] * refused + ["degenerate"] * degenerate
            said += ["compliance"] * (N - len(said))
            rows += [(*key, f"{label}-{i}", label, verdict) for i, verdict in enumerate(said)]
    return pd.DataFrame(rows, columns=["part", *STATE, "id", "label", "verdict"])


def tables(*, layers: int = 30) -> dict[str, pd.DataFrame]:
    """Every table of a run."""
    found = {
        "structure": structure(layers=layers),
        "subspaces": subspaces(layers=layers),
        "heads": heads(layers=layers),
        "tradeoff": tradeoff(),
        "attacks": attacks(),
        "links": links(layers=layers),
        "link_effects": link_effects(),
        "freezing": freezing(),
    }
    return {**found, "verdicts": verdicts(found)}
