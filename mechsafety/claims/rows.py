"""What findings have in common: sentences on the columns of a table, and verdicts by the state of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mechsafety.claims.contrasts import Estimate
from mechsafety.claims.sentences import Named, counted, extremes, level

Name = str | Callable[[Mapping[Any, Any]], str]
Say = Callable[..., Iterable[str]]


def told(
    tables: Mapping[str, pd.DataFrame], sections: Mapping[str, tuple[str, Say]], *more: Any
) -> dict[str, list[str]]:
    """The sentences of each section whose table has rows, made of all tables and ``more``.

    A section that says nothing is left out.
    """
    found = {
        section: [*say(tables, *more)]
        for section, (table, say) in sections.items()
        if table in tables and len(tables[table])
    }
    return {section: said for section, said in found.items() if said}


def named(rows: pd.DataFrame, name: Name, value: str, *ends: str) -> list[Named]:
    """A column's values (as :meth:`Estimate.of_row` reads them) with their names, from a column or made of each row."""
    return [
        Named(
            name=str(row[name] if isinstance(name, str) else name(row)),
            estimate=Estimate.of_row(row, value, *ends),
        )
        for row in rows.to_dict(orient="records")
    ]


def ends_of(
    subject: str, measure: str, rows: pd.DataFrame, name: Name, value: str, *ends: str, unit: str, of: str
) -> Iterator[str]:
    """The lowest and the highest of a column (:func:`extremes`); nothing where no row has a value."""
    if value in rows and rows[value].notna().any():
        yield extremes(subject, measure, named(rows, name, value, *ends), unit=unit, of=of)


def above(
    subject: str, rows: pd.DataFrame, value: str, than: str | float, what: str, *, chance: float
) -> Iterator[str]:
    """In how many rows a column lies above another, or a number, beside how many do by ``chance``, a share of them.

    Rows that lack one of the two are unknown; nothing is said where all do.
    """
    columns = [value, than] if isinstance(than, str) else [value]
    known = rows.dropna(subset=columns) if {*columns} <= {*rows} else rows[:0]
    if len(known):
        hits = int((known[value] > (known[than] if isinstance(than, str) else than)).sum())
        expected, unknown = chance * len(known), len(rows) - len(known)
        yield counted(subject, hits, len(known), what, expected=expected, unknown=unknown)


def middle(subject: str, measure: str, values: pd.Series, *, unit: str = "share") -> str:
    """The median of a column, without an interval."""
    return level(subject, measure, Estimate(value=float(values.median())), unit=unit)


def counts_in(row: Mapping[Any, Any], share: str, n: str, unread: str = "") -> Estimate:
    """A share and its number of items, as tables hold these, as a count; unknown where one is."""
    known = int(row[n]) if row[n] == row[n] and row[share] == row[share] else 0
    hits = round(row[share] * known) if known else 0
    return Estimate.of_counts(hits, known, unread=int(row[unread]) if unread else 0)


def verdicts_by(
    table: pd.DataFrame | None, keys: Sequence[str], *, verdict: str = "verdict", **where: object
) -> dict[Any, dict[object, str]]:
    """The verdict on each item by its id, by the state that ``keys`` name, in the rows that ``where`` picks.

    One key is itself, several are a tuple. Empty without a table.
    """
    if table is None:
        return {}
    picked = [table[column] == value for column, value in where.items()]
    there: pd.DataFrame = table[np.logical_and.reduce(picked)] if picked else table
    groups = there.groupby(keys[0] if len(keys) == 1 else list(keys), sort=False, observed=True)
    return {key: dict(zip(rows["id"], rows[verdict], strict=True)) for key, rows in groups}
