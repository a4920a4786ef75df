"""What the sentences and figures of an anatomy share: names, colours, and numbers in words."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from mechsafety.plots.lines import Line
from mechsafety.plots.style import COLOURS, short_name

Tables = Mapping[str, pd.DataFrame]
"""The tables of an anatomy, by name."""
Names = Mapping[str, str]
"""The models of an anatomy, by their part: base, tuned, control."""
NO_NAMES: Names = {}

SAFE, UNSAFE = "safe", "unsafe"
MODELS: Mapping[str, tuple[str, str]] = {
    "base": ("#8C8C8C", "solid"),
    "tuned": ("#0072B2", "solid"),
    "control": ("#CC79A7", "dash"),
    "random": ("#E69F00", "dot"),
}
"""Colour and dash of each model, and of a random dW of the tuned one's norm."""
GROUPS: Mapping[str, str] = {
    SAFE: COLOURS["harmless"],
    UNSAFE: COLOURS["harmful"],
    "success": "#CC79A7",
    "failed": "#56B4E9",
}
GROUP_NAMES: Mapping[str, str] = {
    SAFE: "safe prompts",
    UNSAFE: "unsafe prompts",
    "success": "successful attacks",
    "failed": "failed attacks",
}
POSITIONS: Mapping[str, str] = {"output": "over the answer", "last_prompt": "last prompt token"}
WHERE: Mapping[str, str] = {"output": "over the answer", "last_prompt": "at the last prompt token"}
RANDOM_DW = "random dW"
STATE_NAMES: Mapping[str, str] = {
    "base": "base",
    "tuned": "tuned",
    "matrices": "base with dW of matrices",
    "others": "tuned without dW of matrices",
    "mlp": "base with dW of MLPs",
    "rest": "tuned without dW of MLPs",
    "random": "base with a random dW",
    "kept": "base with top {r} directions",
    "removed": "tuned without top {r}",
    "ablated": "refusal direction ablated",
    "random_ablated": "random direction ablated",
}
SETS = ("snip", "wanda", "magnitude")


def state_name(what: str, r: float) -> str:
    """``base with top 4 directions``: a state of the reversal or the ablation in words."""
    return STATE_NAMES.get(what, what).replace("{r}", f"{r:g}")


def who(role: str, names: Mapping[str, str]) -> str:
    """``tuned (its name)``: a model's part, and its name where there is one."""
    if role == "random":
        return RANDOM_DW
    return f"{role} ({short_name(names[role])})" if role in names else role


def models_in(table: pd.DataFrame) -> list[str]:
    """The models of a table in the order in which they are always shown."""
    there = set(table["model"])
    return [model for model in MODELS if model in there]


def families_in(table: pd.DataFrame) -> list[str]:
    """The families of attacks of a table, in its order."""
    return [str(group) for group in dict.fromkeys(table["group"]) if group not in (SAFE, UNSAFE)]


def along(place: str, measure: str) -> dict[str, str]:
    """The columns of a line of ``measure`` with its interval, for :func:`model_lines`."""
    return {place: "x", measure: "y", f"{measure}_low": "low", f"{measure}_high": "high"}


def model_lines(rows: pd.DataFrame, columns: Mapping[str, str], names: Names) -> list[Line]:
    """One line per model; ``columns`` names what goes along x and y, and the interval."""
    picked = rows.rename(columns=dict(columns))
    return [
        Line(
            name=who(model, names),
            rows=picked.loc[picked["model"] == model, list(columns.values())],
            colour=MODELS[model][0],
            dash=MODELS[model][1],
        )
        for model in models_in(rows)
    ]


def rows_of(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table
