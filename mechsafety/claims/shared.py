"""Contrasts of a run are made once: its figures, its findings and its page ask for the same ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd

Tables = Mapping[str, pd.DataFrame]
P = ParamSpec("P")
T = TypeVar("T")


class RunTables(dict[str, pd.DataFrame]):
    """The tables of a run by name, with what was made of them; as with figures, a table is not to change after that."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self.made: dict[Hashable, tuple[Any, Any]] = {}

    def filled(self) -> RunTables:
        """Those that have rows; what is made of them is made of these."""
        found = RunTables(filled(dict(self)))
        found.made = self.made
        return found


def filled(tables: Tables) -> Tables:
    """The tables that have rows."""
    if isinstance(tables, RunTables):
        return tables.filled()
    return {name: table for name, table in tables.items() if len(table)}


def once(make: Callable[Concatenate[Tables, P], T]) -> Callable[Concatenate[Tables, P], T]:
    """A function of tables that is called once for the tables of a run and the same other arguments."""

    @wraps(make)
    def found(tables: Tables, *args: P.args, **kwargs: P.kwargs) -> T:
        if not isinstance(tables, RunTables):
            return make(tables, *args, **kwargs)
        key = (make, *map(_key, args), *((name, _key(value)) for name, value in kwargs.items()))
        if key not in tables.made:  # the arguments are kept, so that an id stays theirs
            tables.made[key] = (make(tables, *args, **kwargs), (args, kwargs))
        return tables.made[key][0]

    return found


def _key(argument: Any) -> Hashable:
    """What an argument is told by: itself, or the object that it is."""
    try:
        hash(argument)
    except TypeError:
        return id(argument)
    return argument
