"""What the sentences and figures of an anatomy share: names, colours, and numbers in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from mechsafety.core.wording import counted
from mechsafety.plots.lines import Line
from mechsafety.plots.style import COLOURS, short_name
from mechsafety.statistics.pooled import Pooled

Tables = Mapping[str, pd.DataFrame]
"""The tables of an anatomy, by name."""
Names = Mapping[str, str]
"""The models of an anatomy, by their part: base, tuned, control."""

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
RANDOM_DW = "random dW"


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


def measured(row: pd.Series, column: str) -> Pooled:
    """One row's value with the interval in its columns ``low`` and ``high``."""
    value, low, high = (float(row[name]) for name in (column, "low", "high"))
    return Pooled(value=value, low=low, high=high, draws=1)


def spelt(found: Pooled) -> str:
    """A number that is no share, with its interval: ``5.1 [4.8, 5.5]``."""
    if found.value != found.value:
        return "undefined"
    value = digits(found.value)
    return value if found.low != found.low else f"{value} [{digits(found.low)}, {digits(found.high)}]"


def digits(value: float) -> str:
    """Three significant digits, two decimals at most from 0.1 on."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:.2f}" if 0.1 <= abs(rounded) < 10 else f"{rounded:g}"


def counted_of(n: int, of: int, what: str) -> str:
    """``4 of 6 layers``, ``1 of 1 layer``."""
    return f"{n} of {counted(of, what)}"


def by_model(values: Mapping[str, float], form: Callable[[float], str], *roles: str) -> str:
    """``tuned 5.1, base 0.9``: the part of a title about those of ``roles`` that there are."""
    return ", ".join(f"{role} {form(values[role])}" for role in roles if role in values)


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
