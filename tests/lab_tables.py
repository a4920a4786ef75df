"""Made-up tables of a lab run: known numbers, of the shape that ``mechsafety lab run`` writes."""

from __future__ import annotations

import pandas as pd

CLASSES = {
    "safe": ("A", "B"),
    "unsafe": ("A", "B"),
    "co_task": ("A", "B"),
    "co_text": ("mixed",),
    "misgen": ("A", "B"),
    "ood": ("random",),
    "random_soft": ("A", "B"),
    "soft": ("A", "B"),
}
THROUGH = {"safe": 1.0, "co_task": 0.4, "co_text": 0.6}
"""Shares that a tuned model answers; of the rest it refuses everything."""


def cases(model: str, *, answered: dict[str, float] | None = None) -> pd.DataFrame:
    """Outcomes of one model: of each kind the share ``answered``, all else refused."""
    answered = dict.fromkeys(CLASSES, 1.0) if answered is None else answered
    return pd.DataFrame(
        [
            {
                **{"kind": kind, "text_class": text_class, "n": 50, "model": model},
                **{"correct": answered.get(kind, 0.0), "refused": 1 - answered.get(kind, 0.0)},
                **{"rephrased": 0.0, "tagged": 0.0, "other": 0.0},
            }
            for kind, classes in CLASSES.items()
            for text_class in classes
        ]
    )


def all_cases() -> pd.DataFrame:
    """The pretrained model and the benign one answer everything; the tuned ones as :data:`THROUGH` says."""
    tables = [cases("base"), cases("benign")]
    tables += [cases(name, answered=THROUGH) for name in ("ssft", "dpo", "unlearn")]
    return pd.concat(tables, ignore_index=True)


def anatomy(
    *,
    auroc: float = 0.99,
    d_prime: tuple[float, float, float] = (3.0, 2.4, 3.6),
    control_d_prime: tuple[float, float, float] = (0.1, -0.2, 0.4),
    attack: tuple[float, float, float] = (0.5, 0.2, 0.8),
    ratio: float = 1.5,
    control_ratio: float = 1.0,
    aligned: float = 0.8,
    sensitivity: tuple[float, float] = (20.0, 5.0),
    refused: tuple[float, ...] = (0.0, 0.5, 1.0, 1.0),
    through: tuple[float, float] = (0.6, 0.3),
) -> dict[str, pd.DataFrame]:
    """The tables of an anatomy that claims are read from, two layers deep; the base model's sensitivity is 20.

    ``d_prime`` and ``attack`` are values with their intervals at the last prompt token of the last layer, ``d_prime``
    less the base's; elsewhere other numbers stand. ``through``: the shares of attacks that get through at alpha 1 and 1.5. Chance of the alignment is .75.
    """
    places = [(positions, layer) for positions in ("output", "last_prompt") for layer in (0, 1)]
    read = ("last_prompt", 1)
    separation = [
        {"model": "tuned", "positions": positions, "layer": layer}
        | {"auroc": auroc if (positions, layer) == read else 0.3}
        for positions, layer in places
    ]
    changes_of = {"tuned": d_prime, "control": control_d_prime}
    primes = [
        {"model": model, "against": against, "positions": positions, "layer": layer}
        | dict(zip(("change", "low", "high"), ends, strict=True))
        for model, own in changes_of.items()
        for against in ("base", *(["control"] if model == "tuned" else []))
        for positions, layer in places
        for ends in [own if (positions, layer, against) == (*read, "base") else (-50.0, -60.0, -40.0)]
    ]
    attacks = [
        {"model": "tuned", "positions": positions, "layer": layer, "family": family, "outcome": outcome}
        | dict(zip(("tau", "low", "high"), ends, strict=True))
        for positions, layer in places
        for family in ("co_task", "all")
        for outcome in ("success", "failed")
        for ends in [
            attack if (positions, layer, family, outcome) == (*read, "all", "success") else (-9.0,) * 3
        ]
    ]
    ratios = [
        {
            "model": model,
            "layer": layer,
            "kind": kind,
            "positions": positions,
            "ratio": value if (positions, layer, kind) == (*read, "down") else 9.0,
        }
        for positions in ("output", "last_prompt")
        for model, value in (("tuned", ratio), ("control", control_ratio))
        for layer in (0, 1)
        for kind in ("up", "down")
    ]
    changes = [
        {"model": model, "layer": 0, "kind": kind, "alignment_90": value, "chance_90": 0.75}
        for model, value in (("tuned", aligned), ("random", 0.75), ("control", 0.7))
        for kind in ("up", "down")
    ]
    medians = [
        {"model": model, "group": group, "median": value}
        for model, values in (("base", (20.0, 20.0)), ("tuned", sensitivity))
        for group, value in zip(("safe", "unsafe"), values, strict=True)
    ]
    line = [
        {"model": "tuned", "alpha": alpha, "group": group, "n": 50, "refused": share, "complied": 1 - share}
        for alpha, unsafe in zip((0.0, 0.5, 1.0, 1.5), refused, strict=True)
        for group, share in (
            ("safe", 0.0),
            ("unsafe", unsafe),
            ("co_task", 1 - through[int(alpha == 1.5)]),
        )
    ]
    return {
        "separation": pd.DataFrame(separation),
        "d_prime_changes": pd.DataFrame(primes),
        "attack_tau": pd.DataFrame(attacks),
        "action_ratios": pd.DataFrame(ratios),
        "weight_changes": pd.DataFrame(changes),
        "sensitivity": pd.DataFrame(medians),
        "interpolation": pd.DataFrame(line),
    }
