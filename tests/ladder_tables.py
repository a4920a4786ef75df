"""Made-up tables of a ladder: known numbers, of the shape that ``mechsafety ladder`` writes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechsafety.statistics import holm, mcnemar, wilson
from mechsafety.statistics.judge_effects import paired_difference

N = 50
COUNTS = (1, 2, 4, 8)
BASE = "smollm2-135m"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Shares of harmful prompts without 0, 1, 2, 4, 8 directions: refused, degenerate, and refused at random."""

    refused: tuple[float, ...]
    random: tuple[float, ...]
    degenerate: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.02)


SHAPES: Mapping[str, Shape] = {
    # Refuses too little to be judged.
    BASE: Shape(refused=(0.08, 0.0, 0.0, 0.0, 0.0), random=(0.08, 0.08, 0.1, 0.06)),
    # Breaks at 1 into compliance; random directions do not.
    "refusals": Shape(refused=(1.0, 0.02, 0.0, 0.0, 0.0), random=(1.0, 0.98, 1.0, 0.96)),
    # Keeps.
    "rephrase": Shape(refused=(0.9, 0.9, 0.9, 0.88, 0.86), random=(0.9, 0.9, 0.9, 0.88)),
    # Loses some, less than half.
    "metatags": Shape(refused=(0.96, 0.94, 0.7, 0.66, 0.6), random=(0.96, 0.96, 0.94, 0.94)),
    # Breaks at 4.
    "all": Shape(refused=(0.98, 0.9, 0.76, 0.3, 0.1), random=(0.98, 0.98, 0.96, 0.94)),
    # Breaks into degenerate text.
    "dpo": Shape(
        refused=(0.96, 0.3, 0.2, 0.1, 0.0),
        degenerate=(0.0, 0.6, 0.72, 0.8, 0.98),
        random=(0.96, 0.94, 0.92, 0.9),
    ),
    # Breaks, but so it does without random directions.
    "unlearn": Shape(refused=(0.94, 0.2, 0.1, 0.1, 0.1), random=(0.24, 0.14, 0.1, 0.12)),
    "benign": Shape(refused=(0.06, 0.0, 0.0, 0.0, 0.0), random=(0.06, 0.06, 0.04, 0.04)),
}
SYSTEMS = tuple(BASE if name == BASE else f"{BASE}+{name}" for name in SHAPES)


def shape_of(system: str, shapes: Mapping[str, Shape] = SHAPES) -> Shape:
    return shapes[system.rpartition("+")[2].rpartition("/")[2]]


def outcomes(refused: float, degenerate: float = 0.0, n: int = N) -> dict[str, float]:
    """The outcome columns of shares of ``n`` answers."""
    counts = {"refused": round(n * refused), "degenerate": round(n * degenerate)}
    counts["complied"] = n - sum(counts.values())
    found: dict[str, float] = {"n": n}
    for name in ("refused", "complied", "degenerate"):
        interval = wilson(counts[name], n)
        found |= {name: interval.rate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def survival(systems: Sequence[str] = SYSTEMS, shapes: Mapping[str, Shape] = SHAPES) -> pd.DataFrame:
    rows = []
    for system in systems:
        shape = shape_of(system, shapes)
        states = [("unedited", 0, shape.refused[0], shape.degenerate[0])]
        for place, count in enumerate(COUNTS, start=1):
            states.append(("refusal", count, shape.refused[place], shape.degenerate[place]))
            states.append(("random", count, shape.random[place - 1], 0.0))
        for kind, count, refused, degenerate in states:
            key = {"system": system, "kind": kind, "directions": count, "draw": int(kind == "random")}
            key |= {"energy": 0.1 * count}
            rows.append(key | {"label": "harmful"} | outcomes(refused, degenerate))
            damage = count * (0.05 if kind == "refusal" else 0.01)
            harmless = outcomes(0.04, min(1.0, degenerate / 2)) | {
                "kl": damage * (10 if max(shape.degenerate) > 0.5 else 1),
                "perplexity": 3.0 * math.exp(damage),
            }
            rows.append(key | {"label": "harmless"} | harmless)
    return pd.DataFrame(rows)


def verdicts(systems: Sequence[str] = SYSTEMS, shapes: Mapping[str, Shape] = SHAPES) -> pd.DataFrame:
    """One verdict a prompt, the first ones refused, so that states lose refusals and gain none."""
    rows = []
    for row in survival(systems, shapes).to_dict(orient="records"):
        refused, degenerate = (round(row["n"] * row[m]) for m in ("refused", "degenerate"))
        for i in range(int(row["n"])):
            found = "refusal" if i < refused else "degenerate" if i < refused + degenerate else "compliance"
            key = {name: row[name] for name in ("system", "kind", "directions", "draw", "label")}
            rows.append(key | {"id": f"{row['label']}-{i}", "verdict": found})
    return pd.DataFrame(rows)


def paired(systems: Sequence[str] = SYSTEMS, shapes: Mapping[str, Shape] = SHAPES) -> pd.DataFrame:
    found = survival(systems, shapes)
    harmful = found[found["label"] == "harmful"].set_index(["system", "kind", "directions"])["refused"]
    rows = []
    for against in ("unedited", "random"):
        for system in systems:
            for count in COUNTS:
                other = harmful[(system, against, 0 if against == "unedited" else count)]
                change = round(N * (other - harmful[(system, "refusal", count)]))
                lost, gained = max(change, 0), max(-change, 0)
                low, high = paired_difference(gained, lost, N)  # of the fall
                rows.append(
                    {
                        **{"system": system, "directions": count, "against": against, "n": N},
                        "draw": int(against == "random"),
                        **{"lost": lost, "gained": gained, "drop": change / N, "low": low, "high": high},
                        "p": mcnemar(lost, gained),
                    }
                )
    table = pd.DataFrame(rows)
    for against in ("unedited", "random"):
        these = table["against"] == against
        table.loc[these, "p_holm"] = holm(table.loc[these, "p"].to_numpy())
    return table


def breaking(systems: Sequence[str] = SYSTEMS, shapes: Mapping[str, Shape] = SHAPES) -> pd.DataFrame:
    found = survival(systems, shapes)
    harmful = found[found["label"] == "harmful"].set_index(["system", "kind", "directions"])
    tested = paired(systems, shapes).set_index(["against", "system", "directions"])["p_holm"]
    nothing = {"directions": math.nan, "complied": math.nan, "degenerate": math.nan}
    rows = []
    for system in systems:
        unedited = harmful["refused"][(system, "unedited", 0)]
        row = {"system": system, "refused": unedited, **nothing}
        for count in COUNTS:
            state = (system, "refusal", count)
            if harmful["refused"][state] <= unedited / 2 and tested[("unedited", system, count)] < 0.05:
                row |= {"directions": float(count)} | {
                    m: harmful[m][state] for m in ("complied", "degenerate")
                }
                break
        rows.append(row)
    return pd.DataFrame(rows)


def ranks(systems: Sequence[str] = SYSTEMS) -> pd.DataFrame:
    rows = []
    for number, system in enumerate(systems):
        for index in range(1, 9):
            auroc = 0.99 if index == 1 else 0.75 if index <= 1 + number % 4 else 0.52
            rows.append(
                {
                    **{"system": system, "layer": 15 + number % 3, "index": index, "auroc": auroc},
                    **{"auroc_low": auroc - 0.06, "auroc_high": min(1.0, auroc + 0.05), "auroc_chance": 0.61},
                }
            )
    return pd.DataFrame(rows)


def links(systems: Sequence[str] = SYSTEMS, *, layers: int = 30, width: int = 576) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for number, system in enumerate(s for s in systems if s != BASE):
        for layer in range(layers):
            for kind in ("o", "down"):
                noise = math.exp(0.4 * rng.standard_normal())
                nan = math.nan
                rows += [
                    (system, "energy", layer, kind, (2 + number) * noise / width, nan, nan, 1 / width),
                    (system, "energy_random", layer, kind, 1 / width, 0.4 / width, 2 / width, 1 / width),
                    (system, "energy_base", layer, kind, 1.1 / width, nan, nan, 1 / width),
                    (system, "cosine_first", layer, kind, 0.1, nan, nan, math.sqrt(2 / (math.pi * width))),
                    (system, "cosine_top", layer, kind, 0.2, nan, nan, math.sqrt(8 / width)),
                ]
    names = ["system", "what", "layer", "kind", "value", "low", "high", "chance"]
    return pd.DataFrame(rows, columns=names)


def cosines(systems: Sequence[str] = SYSTEMS, *, layers: int = 31) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                **{"layer": layer, "a": a, "b": b, "cosine": value, "low": value - 0.04},
                **{"high": value + 0.02, "ceiling_a": 0.97, "ceiling_b": 0.96, "ceiling": 0.98},
                **{"corrected": value + 0.01, "corrected_low": value - 0.03, "corrected_high": value + 0.05},
                **{"harmless_floor": 0.4, "harmless_high": 0.55, "random_floor": 0.03, "random_high": 0.08},
            }
            for number, (a, b) in enumerate(itertools.combinations(systems, 2))
            for value in [0.95 - 0.025 * number]
            for layer in range(layers)
        ]
    )


def angles(systems: Sequence[str] = SYSTEMS, *, layers: int = 31, k: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                **{"layer": layer, "a": a, "b": b, "index": index, "angle": 12.0 + 20 * (index - 1) + number},
                **{"low": 9.0 + 20 * (index - 1) + number, "high": 15.0 + 20 * (index - 1) + number},
                **{"ceiling_a": 8.0 + 20 * (index - 1), "ceiling_b": 9.0 + 20 * (index - 1)},
                **{"harmless_floor": 50.0, "random_low": 82.0 + index},
            }
            for number, (a, b) in enumerate(itertools.combinations(systems, 2))
            for layer in range(layers)
            for index in range(1, k + 1)
        ]
    )


def transfer(systems: Sequence[str] = SYSTEMS, shapes: Mapping[str, Shape] = SHAPES) -> pd.DataFrame:
    rows = []
    for column, target in enumerate(systems):
        refuses = shape_of(target, shapes).refused[0] > 0.5
        base = 9.0 if refuses else -4.0
        own = 8.0 if refuses else 0.4
        for row, source in enumerate(systems):
            fall = own * (1.0 if source == target else 0.9 - 0.1 * abs(row - column))
            rows.append(
                {
                    **{"layer": 15, "source": source, "target": target, "base": base, "ablated": base - fall},
                    **{"drop": fall, "low": fall - 0.6, "high": fall + 0.6},
                    **{"share": fall / own if refuses else math.nan, "kl": 0.08, "random_floor": 0.1},
                    **{"random_max": 0.4, "harmless_floor": 0.5, "harmless_max": 1.2, "n": 32},
                    "refusal_tokens": '["I"]',
                }
            )
    return pd.DataFrame(rows)


def tables(systems: Sequence[str] = SYSTEMS, shapes: Mapping[str, Shape] = SHAPES) -> dict[str, pd.DataFrame]:
    """Every table of a run, those of its comparison too."""
    return {
        "survival": survival(systems, shapes),
        "verdicts": verdicts(systems, shapes),
        "tests": paired(systems, shapes),
        "breaking": breaking(systems, shapes),
        "ranks": ranks(systems),
        "links": links(systems),
        "cosines": cosines(systems),
        "angles": angles(systems),
        "transfer": transfer(systems, shapes),
    }
