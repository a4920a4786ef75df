"""Contrasts of a run are made once: its figures, its findings and its page ask for the same ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd

from mechsafety.core.errors import MechsafetyError

Tables = Mapping[str, pd.DataFrame]
P = ParamSpec("P")
T = TypeVar("T")


class NoTableError(MechsafetyError, KeyError):
    """A run lacks a table."""

    __str__ = Exception.__str__  # KeyError shows the repr of its message


class RunTables(dict[str, pd.DataFrame]):
    """The tables of a run by name, with what was made of them.

    What was made goes with a table that is replaced or left out; one that is changed in place leaves it as it was.
    """

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self.made: dict[Hashable, tuple[Any, Any]] = tables.made if isinstance(tables, RunTables) else {}

    def __missing__(self, name: str) -> pd.DataFrame:
        raise NoTableError(f"the run has no table {name!r}: it has {', '.join(self) or 'none'}")

    def __setitem__(self, name: str, table: pd.DataFrame) -> None:
        super().__setitem__(name, table)
        self.made = {}

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self.made = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RunTables, (dict(self),)

    def without(self, names: Iterable[str]) -> RunTables:
        """The others; nothing that was made with these."""
        left_out = set(names)
        return RunTables({name: table for name, table in self.items() if name not in left_out})


def filled(tables: Tables) -> Tables:
    """The tables that have rows; what is made of these is made of all."""
    found = RunTables({name: table for name, table in tables.items() if len(table)})
    if isinstance(tables, RunTables):
        found.made = tables.made
    return found


def once(make: Callable[Concatenate[Tables, P], T]) -> Callable[Concatenate[Tables, P], T]:
    """A function of tables that is called once for the tables of a run and the same other arguments."""

    form = signature(make)

    @wraps(make)
    def found(tables: Tables, *args: P.args, **kwargs: P.kwargs) -> T:
        if not isinstance(tables, RunTables):
            return make(tables, *args, **kwargs)
        given = form.bind(tables, *args, **kwargs)
        given.apply_defaults()
        key = (make, *map(_key, [*given.arguments.values()][1:]))
        if key not in tables.made:  # the arguments are kept, so that an id stays theirs
            tables.made[key] = (make(tables, *args, **kwargs), (args, kwargs))
        return tables.made[key][0]

    return found


def _key(argument: Any) -> Hashable:
    """What an argument is told by: itself or its entries, else the object that it is."""
    told = tuple(argument.items()) if isinstance(argument, Mapping) else argument
    try:
        hash(told)
    except TypeError:
        return id(argument)
    return told
