"""The boundary of the public functions: their arguments are checked against their signatures before any work.

Prompts, models, edits, vectors, judges and answers are understood where they are used (``accepted.py`` of their
packages); here is what all functions have in common: names of arguments, numbers, words of a list, and objects that
another function makes.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mechsafety.core.arguments import shown
from mechsafety.core.docstrings import completed
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.fitting import (
    UnfitError,
    fitted,
    fitted_or_missing,
    fitted_or_passed,
    require,
    require_same_sizes,
)
from mechsafety.core.plain_arguments import POSITIVE, PlainArguments, hints_of
from mechsafety.core.signatures import readable

Class = TypeVar("Class", bound=type)
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_INSTEAD = {
    **{one: ("sampling", f"give sampling=ms.Sampling({one}=...)") for one in ("temperature", "top_p")},
    "do_sample": ("sampling", "give sampling=ms.Sampling(temperature=1.0); without it answers are greedy"),
    "tokenizer": (
        "spec",
        "save it beside the model, tokenizer.save_pretrained(folder) and model.save_pretrained(folder), and load the "
        "folder",
    ),
}
"""Arguments of transformers that stand elsewhere here: in functions that take the first of the two, the second says
where.
"""
_SHOWN = 12  # names of arguments in a message


def public(
    function: Callable[..., Any], package: str, name: str, *, missing: bool = False
) -> Callable[..., Any]:
    """``function`` under its public name, its arguments checked; where they may be ``missing``, NaN is no error."""
    signature = inspect.signature(function)
    call = _checked(function, name, fitted_or_missing if missing else fitted)
    call.__module__, call.__qualname__ = package, name  # so that it can be pickled
    call.__doc__ = completed(function.__doc__ or "", signature.parameters)
    call.__signature__ = readable(function)  # type: ignore[attr-defined]
    return call


def checked_methods(cls: Class) -> Class:
    """``cls`` with the arguments of its public methods checked, but for arrays and what is missing (NaN)."""
    for name, found in list(vars(cls).items()):
        if name.startswith("_"):
            continue
        if isinstance(found, types.FunctionType):
            setattr(cls, name, _checked_method(found, f"{cls.__name__}.{name}"))
        elif isinstance(found, classmethod):
            setattr(cls, name, classmethod(_checked_method(found.__func__, f"{cls.__name__}.{name}")))
    return cls


def _checked_method(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    call = _checked(function, name, fitted_or_passed)
    if function.__doc__:
        call.__doc__ = completed(function.__doc__, [*inspect.signature(function).parameters][1:])
    call.__signature__ = readable(function)  # type: ignore[attr-defined]
    return call


def checked_construction(cls: Class) -> Class:
    """``cls`` with the arguments that it is made of checked in the same way.

    Many small objects are made of what plainly fits: that takes a microsecond or two to see.
    """
    made = cls.__init__
    cls.__doc__ = completed(cls.__doc__ or "", [*inspect.signature(made).parameters][1:])
    checking = _checked(made, cls.__name__, fitted_or_passed)
    plain: list[PlainArguments] = []

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        if not plain:
            plain.append(PlainArguments(made))
        (made if plain[0].are(args, kwargs) else checking)(self, *args, **kwargs)

    setattr(cls, "__init__", init)  # noqa: B010 - type checkers refuse the assignment
    shown_as = readable(made)
    own = [p for name, p in shown_as.parameters.items() if name != "self"]
    setattr(cls, "__signature__", shown_as.replace(parameters=own, return_annotation=inspect.Signature.empty))  # noqa: B010
    return cls


def _checked(function: Callable[..., Any], name: str, fit: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    signatures: list[inspect.Signature] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not signatures:
            signatures.append(inspect.signature(function))
        bound = _bound(signatures[0], name, args, kwargs)
        hints = hints_of(function)
        sizes: dict[str, tuple[int, str]] = {}
        for parameter, value in bound.arguments.items():
            if signatures[0].parameters[parameter].kind in _ANY_NUMBER:
                continue
            if type(value) is hints[parameter] and hints[parameter] in (str, bool):
                continue  # the most of what dataclasses with many rows are made of
            try:
                bound.arguments[parameter] = found = fit(value, hints[parameter])
                require_same_sizes(found, hints[parameter], parameter, sizes)
                require(found, parameter not in POSITIVE or found is None or found > 0, "a number above 0")
            except UnfitError as wanted:
                raise MechsafetyError(
                    f"{name}(): {parameter} is {shown(value)}; {wanted} is needed"
                ) from None
        return function(*bound.args, **bound.kwargs)

    return call


def _bound(
    signature: inspect.Signature, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    known = [p for p, one in signature.parameters.items() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    open_ended = len(known) < len(signature.parameters)
    known = [name for name in known if name not in ("self", "cls")]
    if not open_ended and (strange := [key for key in kwargs if key not in known]):
        close = difflib.get_close_matches(strange[0], known, n=1)
        beside, instead = _INSTEAD.get(strange[0], ("", ""))
        if beside in known:
            raise MechsafetyError(f"{name}() has no argument {strange[0]!r}: {instead}")
        hint = f"; did you mean {close[0]}?" if close else ";"
        raise MechsafetyError(
            f"{name}() has no argument {strange[0]!r}{hint} it takes {', '.join(known[:_SHOWN])}"
            + (", ..." if len(known) > _SHOWN else "")
        )
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        first = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        first = [one for one in first if one in known]
        by_name = f" ({', '.join(first) or 'none'} without a name, the others as name=value)"
        told = str(error)
        many = by_name if "too many" in told or "multiple values" in told else ""
        raise MechsafetyError(f"{name}(): {error}{many}; it takes {', '.join(known)}") from None
