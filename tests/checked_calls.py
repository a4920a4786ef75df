"""Every call of the package is checked while tests run: shapes by jaxtyping, all other types by beartype alone.

jaxtyping makes two checking functions of each function that is defined and binds the arguments of each call, which took
a large part of the tests' time although most functions have no shapes in their signatures. Here a function is
looked at when it is first called, and only those with shapes are handed to jaxtyping.

Of the calls of one function within one test the first are checked, and of the others every hundredth: what is called a
million times is called with the same types. Counts begin again with each test, so what is checked does not depend on
which tests ran before.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import cache, partial, wraps
from types import CodeType, FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import beartype
from beartype.door import die_if_unbearable

FIRST, EVERY = 16, 100

_jaxtyped = jaxtyping.jaxtyped
_counts: list[list[int]] = []
_hints: dict[tuple[str, str, CodeType], dict[str, Any]] = {}


def begin_counts() -> None:
    """Count the calls of every function from none again."""
    for count in _counts:
        count[0] = 0
    _counts.clear()


def check_calls(package: str) -> Any:
    """Check the calls of what is imported from ``package`` from now on, until the returned hook is uninstalled."""
    jaxtyping.jaxtyped = _checked
    return jaxtyping.install_import_hook(package, "beartype.beartype")


def _checked(made: Any = None, *, typechecker: Any) -> Any:
    """What the import hook calls on every function and class, in the place of ``jaxtyping.jaxtyped``."""
    if made is None:
        return partial(_checked, typechecker=typechecker)
    if inspect.isclass(made):
        if dataclasses.is_dataclass(made) and "__init__" in vars(made):
            _check_construction(made, typechecker)
        return made
    checking: list[Callable[..., Any]] = []
    count = [0]

    @wraps(made)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        called = count[0]
        count[0] = called + 1
        if called >= FIRST and called % EVERY:
            return made(*args, **kwargs)
        if not called:
            _counts.append(count)
        if not checking:
            checking.append(_checking(made))
        return checking[0](*args, **kwargs)

    return call


def _check_construction(made: Any, typechecker: Any) -> None:
    """What a dataclass is made of: behind the package's own boundary, which takes more than the annotations say."""
    own = getattr(made.__init__, "__wrapped__", None)
    made.__init__ = _checked(own or made.__init__, typechecker=typechecker)
    if own is not None:
        from mechsafety.core.boundary import checked_construction

        checked_construction(made)


def _checking(function: FunctionType) -> Callable[..., Any]:
    """The function with its arguments and its result checked."""
    # A function within another is defined anew at every call, and its hints are the same.
    named = function.__module__, function.__qualname__, function.__code__
    if named not in _hints:
        _hints[named] = {name: _resolved(hint, function) for name, hint in function.__annotations__.items()}
    hints = _hints[named]
    if any(_has_shape(hint) for hint in hints.values()):
        return _jaxtyped(function, typechecker=beartype)
    if "<locals>" in function.__qualname__:
        return _bound(function, hints)
    plain = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    plain.__kwdefaults__, plain.__annotations__ = function.__kwdefaults__, hints
    plain.__qualname__, plain.__module__ = function.__qualname__, function.__module__
    return beartype(plain)


def _bound(function: FunctionType, hints: dict[str, Any]) -> Callable[..., Any]:
    """The same for a function within another, which is defined anew too often to compile a check each time."""
    names, result = _plain_arguments(function.__code__), hints.get("return", Any)

    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in hints:
                die_if_unbearable(value, hints[name])
        returned = function(*args, **kwargs)
        die_if_unbearable(returned, result)
        return returned

    return call


@cache
def _plain_arguments(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount]


def _resolved(hint: Any, function: FunctionType) -> Any:
    """An annotation as an object; Any for one whose names, or those in it, are imported for type checkers alone."""

    def annotated() -> None: ...

    annotated.__annotations__ = {"hint": hint}
    try:
        return get_type_hints(annotated, function.__globals__, include_extras=True)["hint"]
    except Exception:
        return Any


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_has_shape, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, get_args(hint)))
