"""Arguments that plainly fit, by their types alone: many small objects are made of them, in a microsecond or two."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mechsafety.core.fitting import imported

POSITIVE = ("batch_size",)
"""Arguments that must be above 0."""
_ACCEPTED = re.compile(r"\b(Prompts|Model|Edit|Vector|Judge|Judges|Answers|Numbers|Tokens)Like\b")
"""Annotations of what is understood where it is used."""


class PlainArguments:
    """Which arguments a constructor takes as they are, by their types alone."""

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(function).parameters.values())[1:]  # but self
        hints = hints_of(function)
        self.order = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        self.needed = {p.name for p in parameters if p.default is inspect.Parameter.empty}
        self.taken = {p.name: _taken_as_is(hints[p.name]) for p in parameters if p.name not in POSITIVE}

    def are(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if len(args) > len(self.order):
            return False
        given = dict(zip(self.order, args, strict=False))
        if not given.keys().isdisjoint(kwargs):
            return False
        given |= kwargs
        return given.keys() >= self.needed and all(
            name in self.taken and _is_taken(value, self.taken[name]) for name, value in given.items()
        )


_Plain = dict[type, frozenset[Any] | None]
"""Types of values that are taken unchanged: all of them (None), the words, or tuples of these types."""


def _is_taken(value: Any, plain: _Plain) -> bool:
    kind = type(value)
    if kind not in plain:
        return False
    allowed = plain[kind]
    return allowed is None or (
        value in allowed if kind is str else all(type(one) in allowed for one in value)
    )


def _taken_as_is(hint: Any) -> _Plain:
    origin, given = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {str: frozenset(given)}
    if origin in (Union, types.UnionType):
        found: _Plain = {}
        for one in map(_taken_as_is, given):
            before, after = found.get(str), one.get(str)
            both = before | after if before is not None and after is not None else None
            found |= {**one, str: both} if str in found and str in one else one
        return found
    if origin is tuple and given[1:] == (...,) and given[0] in (str, int, bool):
        return {tuple: frozenset(given[:1])}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {dict: None}  # what a mapping holds is understood where it is used
    if hint is None or hint in (str, bool, int, dict, types.NoneType):
        return {types.NoneType if hint is None else hint: None}
    return {float: None} if hint is float else {}


@functools.cache
def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the parameters; Any for those that :mod:`accepted` modules read, or that name nothing here."""
    found = dict.fromkeys(inspect.signature(function).parameters, Any)
    function = inspect.unwrap(function)
    names = {**getattr(function, "__globals__", {}), "pd": imported("pandas"), "np": imported("numpy")}
    for name, hint in getattr(function, "__annotations__", {}).items():
        if name not in found or (isinstance(hint, str) and _ACCEPTED.search(hint)):
            continue
        found[name] = _resolved(hint, names)
    return found


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    def annotated() -> None: ...

    annotated.__annotations__ = {"hint": hint}
    try:
        return get_type_hints(annotated, names, include_extras=True)["hint"]
    except Exception:  # a name that is imported for type checkers alone
        return Any
