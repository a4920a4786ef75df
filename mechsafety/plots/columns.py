"""What of a table a figure reads: its columns are there, and hold what is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from mechsafety.core.arguments import require_columns, shown
from mechsafety.core.errors import MechsafetyError

_MAKERS = {
    "rates": "ms.refusal_rates(verdicts)",
    "tests": "ms.statistics.paired_tests(verdicts)",
    "agreement": "ms.statistics.agreement(verdicts)",
    "effects": "ms.statistics.judge_effects(verdicts)",
}
"""What makes the tables that arguments of these names are."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that a figure needs, by what they hold; each is one text of names with spaces between.

    ``keys`` are texts, ``places`` whole numbers (layers, positions), ``numbers`` numbers or NaN (which is
    not drawn), ``flags`` True or False. ``extra`` are numbers that are drawn where the table has
    them. ``may_be_empty``: the table need not have rows.
    """

    keys: str = ""
    places: str = ""
    numbers: str = ""
    flags: str = ""
    extra: str = ""
    may_be_empty: bool = False

    @property
    def names(self) -> list[str]:
        return [name for part in (self.keys, self.places, self.numbers, self.flags) for name in part.split()]

    def described(self) -> str:
        """What help() says of the table."""
        return f"Table with the columns {', '.join(self.names)}."

    def of(self, table: pd.DataFrame, what: str) -> pd.DataFrame | None:
        """The table as it is drawn; None for one that may be empty and is.

        Raises :class:`MechsafetyError` for columns that are missing, that stand twice or that hold something else, and
        for a table without rows.
        """
        if self.may_be_empty and table.empty:
            return None
        made = f" ({_MAKERS[what]} makes one)" if what in _MAKERS else ""
        require_columns(table, self.names, f"table {what!r}{made}")
        if table.empty:
            raise MechsafetyError(f"the table {what!r} has no rows: there is nothing to draw")
        double = [name for name in self.names if isinstance(table[name], pd.DataFrame)]
        if double:
            raise MechsafetyError(f"the table {what!r} has several columns {double[0]}: leave one")
        read = {name: _keys(table[name]) for name in self.keys.split()}
        read |= {name: _places(table[name]) for name in self.places.split()}
        numbers = (*self.numbers.split(), *(name for name in self.extra.split() if name in table))
        read |= {name: _numbers(table[name]) for name in numbers}
        read |= {name: _flags(table[name]) for name in self.flags.split()}
        changed = {name: column for name, column in read.items() if column is not table[name]}
        return table.assign(**changed) if changed else table


def _keys(column: pd.Series) -> pd.Series:
    known = list(column.unique())
    if all(isinstance(each, str) for each in known):
        return column
    _require(column, column.isna(), "a text")
    return column.astype(str)


def _places(column: pd.Series) -> pd.Series:
    found = _numbers(column)
    _require(column, found.isna() | (found % 1 != 0), "a whole number")
    return found.astype(int)


def _numbers(column: pd.Series) -> pd.Series:
    """As floats; what is infinite has no place on an axis and is drawn as what is missing."""
    found = pd.to_numeric(column, errors="coerce")
    _require(column, found.isna() & column.notna(), "a number")
    return found.astype(float).where(lambda known: known.abs() != math.inf)


def _flags(column: pd.Series) -> pd.Series:
    if pd.api.types.is_bool_dtype(column) and not column.isna().any():
        return column
    _require(column, ~column.isin([True, False]), "True or False")
    return column.astype(bool)


def _require(column: pd.Series, wrong: pd.Series, wanted: str) -> None:
    if wrong.any():
        first = column[wrong].iloc[0]
        raise MechsafetyError(f"column {column.name} holds {shown(first)}; {wanted} is needed")
