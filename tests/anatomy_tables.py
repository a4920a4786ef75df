"""Made-up tables of an anatomy: known numbers, of the shape that ``mechsafety anatomy`` writes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mechsafety.statistics import wilson

MODELS = ("base", "tuned", "control")
FAMILIES = ("co_task", "ood")
GROUPS = ("safe", "unsafe", *FAMILIES)
POSITIONS = ("output", "last_prompt")
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
STATES = (
    *((what, math.nan) for what in ("base", "tuned", "matrices", "others", "mlp", "rest", "random")),
    *((what, float(r)) for what in ("kept", "removed") for r in (1, 4, 16)),
)
KINDS = ("gate", "up", "down")
CHANGED = ("tuned", "control", "random")
N = 50


def outcomes(refused: float, degenerate: float = 0.0, n: int = N) -> dict[str, float]:
    """The outcome columns of shares of ``n`` answers."""
    found: dict[str, float] = {}
    counts = {"refused": round(n * refused), "degenerate": round(n * degenerate)}
    counts["complied"] = n - sum(counts.values())
    for name in ("refused", "complied", "degenerate"):
        interval = wilson(counts[name], n)
        found |= {name: interval.rate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def separation(*, layers: int = 6, models: Sequence[str] = MODELS) -> pd.DataFrame:
    rows = []
    for model in models:
        for positions in POSITIONS:
            for layer in range(layers):
                plain = 0.9 if model == "base" else 1.0
                d = 1 + 5 * (layer / layers) ** 2 if model == "tuned" else plain
                auroc = 0.5 + 0.5 * math.tanh(d / 3)
                rows.append(
                    {
                        **{"model": model, "positions": positions, "layer": layer},
                        **{"n_safe": N, "n_unsafe": N},
                        **{"d_prime": d, "d_prime_low": d - 0.3, "d_prime_high": d + 0.4},
                        **{"auroc": auroc, "auroc_low": auroc - 0.05, "auroc_high": min(1, auroc + 0.04)},
                        "auroc_chance": 0.6,
                        "share_safe": 0.2,
                        "share_unsafe": 0.2 + (0.6 * layer / layers if model == "tuned" else 0),
                        **{"share_safe_chance": 0.06, "share_unsafe_chance": 0.06},
                    }
                )
    return pd.DataFrame(rows)


def tau(*, layers: int = 6, models: Sequence[str] = MODELS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    centre = {"safe": 1.0, "unsafe": -1.0, "co_task": 0.6, "ood": -0.4}
    rows = []
    for model in models:
        for positions in POSITIONS:
            for layer in range(layers):
                spread = (1 + layer) * (2.5 if model == "tuned" else 0.6)
                for group in GROUPS:
                    for number in range(N if group in ("safe", "unsafe") else 20):
                        attack = group in FAMILIES
                        label = "refusal" if group == "unsafe" or (attack and number % 2) else "compliance"
                        rows.append(
                            {
                                **{"model": model, "positions": positions, "layer": layer},
                                **{"id": f"{group}-{number}", "group": group, "label": label},
                                "tau": spread * centre[group] + rng.standard_normal(),
                            }
                        )
    return pd.DataFrame(rows)


def attack_tau(*, layers: int = 6, models: Sequence[str] = MODELS) -> pd.DataFrame:
    rows = []
    for model in models:
        for positions in POSITIONS:
            for layer in range(layers):
                for family in (*FAMILIES, "all"):
                    for outcome, sign in (("success", 0.5), ("failed", -0.8)):
                        value = sign * (1 + layer)
                        rows.append(
                            {
                                **{"model": model, "positions": positions, "layer": layer},
                                **{"family": family, "outcome": outcome, "n": 10},
                                **{"tau": value, "low": value - 0.4, "high": value + 0.4},
                                "on_safe_side": 0.9 if sign > 0 else 0.1,
                            }
                        )
    return pd.DataFrame(rows)


def d_prime_changes(*, layers: int = 6, models: Sequence[str] = MODELS) -> pd.DataFrame:
    """Differences of the values of :func:`separation`, half a unit to each side."""
    prime = separation(layers=layers, models=models).set_index(["model", "positions", "layer"])["d_prime"]
    return pd.DataFrame(
        [
            {"model": model, "against": against, "positions": positions, "layer": layer}
            | {"change": change, "low": change - 0.5, "high": change + 0.5}
            for against, model in itertools.permutations(models, 2)
            for positions in POSITIONS
            for layer in range(layers)
            for change in [prime[model, positions, layer] - prime[against, positions, layer]]
        ]
    )


def norms(*, models: Sequence[str] = MODELS) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for model in models:
        for group in GROUPS:
            middle = 8.0 if model == "tuned" and group == "unsafe" else 20.0
            rows += [
                {"model": model, "id": f"{group}-{i}", "group": group, "norm": middle * math.exp(0.3 * x)}
                for i, x in enumerate(rng.standard_normal(30))
            ]
    return pd.DataFrame(rows)


def sensitivity(*, models: Sequence[str] = MODELS) -> pd.DataFrame:
    grouped = norms(models=models).groupby(["model", "group"], sort=False)["norm"]
    return pd.DataFrame(
        [
            {"model": model, "group": group, "n": len(v), "median": v.median()}
            | {"low": v.median() * 0.9, "high": v.median() * 1.1}
            for (model, group), v in grouped
        ]
    )


def weight_changes(*, layers: int = 6, models: Sequence[str] = CHANGED) -> pd.DataFrame:
    rows = []
    for model in models:
        for layer in range(layers):
            for kind in KINDS:
                d_out = 256 if kind == "up" else 64
                k90, k99 = d_out // 4, d_out // 2
                chance = {90: math.sqrt(1 - k90 / d_out), 99: math.sqrt(1 - k99 / d_out)}
                lift = (0.02 if model == "tuned" else 0.0) + 0.004 * (-1) ** layer
                rows.append(
                    {
                        **{"model": model, "layer": layer, "kind": kind, "d_out": d_out, "d_in": 64},
                        "relative_norm": 0.02 if model == "control" else 0.05,
                        "effective_rank": 40.0 if model == "random" else 8.0,
                        "stable_rank": 10.0 if model == "random" else 3.0,
                        "directions": 16,
                        **{"null_rank_90": d_out - k90, "alignment_90": chance[90] + lift},
                        "chance_90": chance[90],
                        "alignment_99": chance[99] - lift,
                        **{"null_rank_99": d_out - k99, "chance_99": chance[99]},
                    }
                )
    return pd.DataFrame(rows)


def spectrum(*, layers: int = 6, models: Sequence[str] = CHANGED) -> pd.DataFrame:
    rows = []
    for model in models:
        for layer in range(layers):
            for kind in KINDS:
                for index in range(16):
                    sigma = (0.5 if model == "random" else 2.0) * math.exp(
                        -index / (40 if model == "random" else 3)
                    )
                    rows.append(
                        {
                            **{"model": model, "layer": layer, "kind": kind, "index": index, "sigma": sigma},
                            **{"alignment_90": 0.87, "alignment_99": 0.7},
                            **{"projection_safe": 0.1 * sigma, "projection_unsafe": 0.2 * sigma},
                        }
                    )
    return pd.DataFrame(rows)


def action(*, layers: int = 6, models: Sequence[str] = CHANGED) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                **{"model": model, "layer": layer, "kind": kind, "group": group, "n": N},
                **{"action": value, "low": 0.9 * value, "high": 1.1 * value, "positions": positions},
            }
            for positions in POSITIONS
            for model in models
            for layer in range(layers)
            for kind in KINDS
            for group in GROUPS
            for value in [0.1 * (1.7 if model == "tuned" and group == "unsafe" else 1.0)]
        ]
    )


def action_ratios(*, layers: int = 6, models: Sequence[str] = CHANGED) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                **{"model": model, "layer": layer, "kind": kind},
                **{"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1, "positions": positions},
            }
            for positions in POSITIONS
            for model in models
            for layer in range(layers)
            for kind in KINDS
            for ratio in [1.7 if model == "tuned" else 1.0]
        ]
    )


def interpolation(*, models: Sequence[str] = ("tuned", "control")) -> pd.DataFrame:
    level = {"safe": 0.02, "unsafe": 1.0, "co_task": 0.4, "ood": 0.7}
    return pd.DataFrame(
        [
            {"model": model, "alpha": alpha, "group": group, "n": N}
            | outcomes(
                level[group] * min(1.0, alpha) * (model == "tuned"),
                0.04 if alpha > 1 and group == "safe" else 0.0,
            )
            for model in models
            for alpha in ALPHAS
            for group in GROUPS
        ]
    )


def reversal(*, groups: Sequence[str] = GROUPS) -> pd.DataFrame:
    share = {
        "base": 0.0,
        "random": 0.0,
        "others": 0.0,
        "tuned": 1.0,
        "matrices": 1.0,
        "mlp": 0.8,
        "rest": 0.1,
    }
    level = {"safe": 0.02, "unsafe": 1.0, "co_task": 0.4, "ood": 0.7}
    rows = []
    for state, r in STATES:
        kept = share.get(state, 0.0)
        if state == "kept":
            kept = min(1.0, 0.3 + 0.05 * r)
        if state == "removed":
            kept = max(0.0, 0.6 - 0.05 * r)
        rows += [
            {"state": state, "r": r, "group": group, "n": N}
            | outcomes(level[group] * kept, 0.02 if group == "safe" else 0.0)
            for group in groups
        ]
    return pd.DataFrame(rows)


def links(*, layers: int = 6, d_model: int = 64) -> pd.DataFrame:
    first = math.sqrt(2 / (math.pi * d_model))
    written = {
        "energy": (0.09, math.nan, math.nan, 1 / d_model, 256),
        "energy_random": (1 / d_model, 0.005, 0.04, 1 / d_model, 500),
        "energy_base": (0.02, math.nan, math.nan, 1 / d_model, 256),
        "cosine_first": (0.5, math.nan, math.nan, first, 1),
        "cosine_top": (0.8, math.nan, math.nan, math.sqrt(8 / d_model), 8),
    }
    held = {"snip": 0.12, "wanda": 0.08, "magnitude": 0.07}
    rows = [
        (what, layer, kind, *values)
        for layer in range(layers)
        for kind in ("o", "down")
        for what, values in written.items()
    ]
    rows += [
        (what, layer, kind, value, math.nan, math.nan, 0.05, 800)
        for layer in range(layers)
        for kind in KINDS
        for what, value in held.items()
    ]
    return pd.DataFrame(rows, columns=["what", "layer", "kind", "value", "low", "high", "chance", "n"])


def ablation(*, layer: int = 3, groups: Sequence[str] = GROUPS) -> pd.DataFrame:
    level = {"safe": 0.02, "unsafe": 1.0, "co_task": 0.4, "ood": 0.7}
    return pd.DataFrame(
        [
            {"state": state, "layer": layer, "group": group, "n": N}
            | outcomes(level[group] * kept, 0.06 if state == "ablated" else 0.0)
            for state, kept in (("tuned", 1.0), ("ablated", 0.1), ("random_ablated", 1.0))
            for group in groups
        ]
    )


def verdicts() -> pd.DataFrame:
    """The verdicts that the counts of :func:`interpolation`, :func:`reversal` and :func:`ablation` are of."""
    line, states, edited = interpolation(), reversal(), ablation()
    found = []
    for row in line.itertuples():
        role = {0.0: "base", 1.0: row.model}.get(row.alpha)
        if role and (role != "base" or row.model == "tuned"):
            found.append(labelled("own answers", role, "held-out", row.group, row.refused, row.degenerate))
        if not role:
            state = f"alpha {row.alpha:g}"
            found.append(labelled("interpolation", row.model, state, row.group, row.refused, row.degenerate))
    for row in states.itertuples():
        state = row.state if row.r != row.r else f"top {row.r:g} {row.state}"
        if state not in ("base", "tuned"):
            found.append(labelled("reversal", "tuned", state, row.group, row.refused, row.degenerate))
    found += [
        labelled("ablation", "tuned", row.state, row.group, row.refused, row.degenerate)
        for row in edited.itertuples()
    ]
    return pd.concat(found, ignore_index=True)


def labelled(
    part: str, model: str, state: str, group: str, refused: float, degenerate: float = 0.0, n: int = N
) -> pd.DataFrame:
    """Verdicts on ``n`` prompts: the first are refused, the last degenerate."""
    counts = {"refusal": round(n * refused), "degenerate": round(n * degenerate)}
    labels = ["refusal"] * counts["refusal"]
    labels += ["compliance"] * (n - sum(counts.values())) + ["degenerate"] * counts["degenerate"]
    key = {"part": part, "model": model, "state": state}
    return pd.DataFrame({**key, "id": [f"{group}-{i}" for i in range(n)], "group": group, "label": labels})


def tables(*, layers: int = 6) -> dict[str, pd.DataFrame]:
    """Every table of a run, in the order of its parts."""
    return {
        "separation": separation(layers=layers),
        "tau": tau(layers=layers),
        "d_prime_changes": d_prime_changes(layers=layers),
        "attack_tau": attack_tau(layers=layers),
        "weight_changes": weight_changes(layers=layers),
        "spectrum": spectrum(layers=layers),
        "action": action(layers=layers),
        "action_ratios": action_ratios(layers=layers),
        "sensitivity": sensitivity(),
        "norms": norms(),
        "interpolation": interpolation(),
        "reversal": reversal(),
        "links": links(layers=layers),
        "ablation": ablation(),
        "verdicts": verdicts(),
    }
