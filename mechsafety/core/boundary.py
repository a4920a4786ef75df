"""The boundary of the public functions: their arguments are checked against their signatures before any work.

Prompts, models, edits, vectors, judges and answers are understood where they are used (``accepted.py`` of their
packages); here is what all functions have in common: names of arguments, numbers, words of a list, and objects that
another function makes.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mechsafety.core.arguments import number, shown, whole_number
from mechsafety.core.docstrings import completed
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.signatures import readable

Class = TypeVar("Class", bound=type)
MAKERS = {
    "Directions": "ms.find_directions",
    "Direction": "directions.at",
    "ResidualCache": "ms.residual_stream",
    "Attribution": "ms.regions.score_weights",
    "LinearMap": "ms.regions.linear_maps",
    "Example": "ms.regions.examples_from_model",
    "Pruning": "ms.regions.top_pruning",
    "LowRank": "ms.regions.remove_top_ranks",
    "Dose": "ms.anatomy.plan_doses",
    "Sampling": "ms.Sampling",
    "Verdicts": "ms.judge",
    "VerdictCache": "ms.judges.VerdictCache",
}
"""What makes the objects that arguments are."""
_ACCEPTED = re.compile(r"\b(Prompts|Model|Edit|Vector|Judge|Judges|Answers|Numbers|Tokens)Like\b")
"""Annotations of what is understood where it is used."""
_POSITIVE = ("batch_size",)
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_WITHIN = {
    **{one: f"ms.Sampling({one}=...)" for one in ("temperature", "top_p")},
    "do_sample": "ms.Sampling(temperature=1.0), None for greedy answers",
}
"""Arguments that transformers takes beside those that stand in one here."""
_SHOWN = 12  # names of arguments in a message


class _UnfitError(Exception):
    """What is needed in the place of a value."""


def public(
    function: Callable[..., Any], package: str, name: str, *, missing: bool = False
) -> Callable[..., Any]:
    """``function`` under its public name, its arguments checked; where they may be ``missing``, NaN is no error."""
    signature = inspect.signature(function)
    call = _checked(function, name, _fitted_or_missing if missing else _fitted)
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
    call = _checked(function, name, _fitted_or_passed)
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
    checking = _checked(made, cls.__name__, _fitted_or_passed)
    plain: list[_PlainArguments] = []

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        if not plain:
            plain.append(_PlainArguments(made))
        (made if plain[0].are(args, kwargs) else checking)(self, *args, **kwargs)

    setattr(cls, "__init__", init)  # noqa: B010 - type checkers refuse the assignment
    shown_as = readable(made)
    own = [p for name, p in shown_as.parameters.items() if name != "self"]
    setattr(cls, "__signature__", shown_as.replace(parameters=own, return_annotation=inspect.Signature.empty))  # noqa: B010
    return cls


class _PlainArguments:
    """Which arguments a constructor takes as they are, by their types alone."""

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(function).parameters.values())[1:]  # but self
        hints = _hints(function)
        self.order = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        self.needed = {p.name for p in parameters if p.default is inspect.Parameter.empty}
        self.taken = {p.name: _taken_as_is(hints[p.name]) for p in parameters if p.name not in _POSITIVE}

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


_ANY, _OBJECTS = (str, Any), (str, object)
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
        return {dict: None} if given in (_ANY, _OBJECTS) else {}
    if hint is None or hint in (str, bool, int, types.NoneType):
        return {types.NoneType if hint is None else hint: None}
    return {float: None} if hint is float else {}


def _checked(
    function: Callable[..., Any], name: str, fitted: Callable[[Any, Any], Any]
) -> Callable[..., Any]:
    signatures: list[inspect.Signature] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if not signatures:
            signatures.append(inspect.signature(function))
        bound = _bound(signatures[0], name, args, kwargs)
        hints = _hints(function)
        sizes: dict[str, tuple[int, str]] = {}
        for parameter, value in bound.arguments.items():
            if signatures[0].parameters[parameter].kind in _ANY_NUMBER:
                continue
            if type(value) is hints[parameter] and hints[parameter] in (str, bool):
                continue  # the most of what dataclasses with many rows are made of
            try:
                bound.arguments[parameter] = found = fitted(value, hints[parameter])
                _same_sizes(found, hints[parameter], parameter, sizes)
                _require(found, parameter not in _POSITIVE or found is None or found > 0, "a number above 0")
            except _UnfitError as wanted:
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
        if strange[0] in _WITHIN and "sampling" in known:
            raise MechsafetyError(
                f"{name}() has no argument {strange[0]!r}: give sampling={_WITHIN[strange[0]]}"
            )
        hint = f"; did you mean {close[0]}?" if close else ";"
        raise MechsafetyError(
            f"{name}() has no argument {strange[0]!r}{hint} it takes {', '.join(known[:_SHOWN])}"
            + (", ..." if len(known) > _SHOWN else "")
        )
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise MechsafetyError(f"{name}(): {error}; it takes {', '.join(known)}") from None


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the parameters; Any for those that :mod:`accepted` modules read, or that name nothing here."""
    found = dict.fromkeys(inspect.signature(function).parameters, Any)
    function = inspect.unwrap(function)
    names = {**getattr(function, "__globals__", {}), "pd": _imported("pandas"), "np": _imported("numpy")}
    for name, hint in getattr(function, "__annotations__", {}).items():
        if name not in found or (isinstance(hint, str) and _ACCEPTED.search(hint)):
            continue
        found[name] = _resolved(hint, names)
    return found


def _same_sizes(value: Any, hint: Any, parameter: str, sizes: dict[str, tuple[int, str]]) -> None:
    """Dimensions of one name have one size in all arguments; ``sizes`` holds those that were met."""
    for one in get_args(hint) or (hint,):
        names = one.dim_str.split() if _is_array(one) else []
        if len(names) != getattr(value, "ndim", -1) or not all(map(str.isidentifier, names)):
            continue
        for name, size in zip(names, value.shape, strict=True):
            known, of = sizes.setdefault(name, (int(size), parameter))
            _require(value, size == known, f"one of [{' '.join(names)}] with the {name} {known} of {of}")


def _imported(name: str) -> types.ModuleType:
    import importlib

    return importlib.import_module(name)


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    def annotated() -> None: ...

    annotated.__annotations__ = {"hint": hint}
    try:
        return get_type_hints(annotated, names, include_extras=True)["hint"]
    except Exception:  # a name that is imported for type checkers alone
        return Any


def _fitted(value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` asks for it. Raises :class:`_UnfitError` where it is something else."""
    origin, given = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fitted(value, given[0])
    if origin in (Union, types.UnionType):
        return _one_of(value, given)
    if origin is Literal:
        if not isinstance(value, str | int | bool) or value not in given:
            words = ", ".join(str(g) or "an empty text" for g in given)
            raise _UnfitError(f"{'one of ' if len(given) > 1 else ''}{words}{_nearest(value, given)}")
        return value
    if origin is Callable or hint is Callable:
        return _require(value, callable(value), "a function")
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _require(value, isinstance(value, Mapping), "a mapping (dict)")
    if origin is tuple and given and given[-1] is not Ellipsis:
        return _tuple(value, given)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Iterable) and given:
        return _many(value, origin, given[0])
    return _single(value, hint)


def _fitted_or_missing(value: Any, hint: Any) -> Any:
    """As :func:`_fitted`, for statistics: arrays and columns are taken as they are, and NaN is what is missing."""
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    columns = tuple(
        h for h in hints if isinstance(h, type) and h.__module__.split(".")[0] in ("numpy", "pandas")
    )
    if isinstance(value, columns) or (isinstance(value, float) and value != value and float in hints):
        return value
    elements = [get_args(h)[0] for h in hints if get_origin(h) is Sequence]
    if not elements:
        listed = (isinstance(value, list | tuple) or hasattr(value, "to_numpy")) and any(
            h.__name__ == "ndarray" for h in columns
        )
        return _imported("numpy").asarray(value) if listed else _fitted(value, hint)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _UnfitError("a list, an array or a column")
    rows: Any = value
    if hasattr(rows, "itertuples"):  # a data frame has its rows, not its columns' names
        rows = rows.to_numpy().tolist()
    return [each if _holds_nan(each) else _one_of(each, elements) for each in rows]


def _fitted_or_passed(value: Any, hint: Any) -> Any:
    """As :func:`_fitted`, for methods: arrays, which the package hands on itself, and numbers that are not finite are
    passed as they are.
    """
    if isinstance(value, float) and not math.isfinite(value) and float in (hint, *get_args(hint)):
        return value
    if (isinstance(value, list | tuple) and _holds_nan(value)) or any(
        map(_is_array, (hint, *get_args(hint)))
    ):
        return value
    return _fitted(value, hint)


def _holds_nan(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(part, float) and part != part for part in parts)


def _single(value: Any, hint: Any) -> Any:
    if hint is None or hint is type(None):
        return _require(value, value is None, "None")
    if hint in (int, float):
        try:
            return whole_number(value, "it") if hint is int else number(value, "it")
        except MechsafetyError as error:
            raise _UnfitError(
                str(error).rpartition(": ")[2].removesuffix(" is needed").rpartition("; ")[2]
            ) from None
    if hint is bool:
        return bool(_require(value, type(value).__name__ in ("bool", "bool_"), "True or False"))
    if hint is str:
        return _text(value)
    if hint is Path:
        return Path(_require(value, isinstance(value, str | Path), "a path (str or Path)"))
    if _is_array(hint):
        return _array(value, hint)
    if hint is Any or not isinstance(hint, type) or hint is object:
        return value
    if getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False):
        members = [
            name
            for name in {**vars(hint), **getattr(hint, "__annotations__", {})}
            if not name.startswith("_")
        ]
        return _require(
            value, all(hasattr(value, n) for n in members), f"an object with {', '.join(members)}"
        )
    maker = f" ({MAKERS[hint.__name__]} makes one)" if hint.__name__ in MAKERS else ""
    return _require(value, isinstance(value, hint), f"a {hint.__name__}{maker}")


def _text(value: Any) -> str:
    """A text; a path, a number format and a device of torch by their names."""
    if isinstance(value, Path) or (
        type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device")
    ):
        return str(value).removeprefix("torch.")
    saved = hasattr(value, "save_pretrained")  # a model of transformers
    wanted = (
        "the name or folder of a model (its save_pretrained(folder) writes one)" if saved else "a text (str)"
    )
    return _require(value, isinstance(value, str), wanted)


def _require(value: Any, holds: bool, wanted: str) -> Any:
    if not holds:
        raise _UnfitError(wanted)
    return value


def _one_of(value: Any, hints: Sequence[Any]) -> Any:
    wanted: list[str] = []
    # A number where one stands before several is itself, not a list of one.
    for hint in hints:
        try:
            return _fitted(value, hint)
        except _UnfitError as error:
            wanted.append(str(error))
    if "a path (str or Path)" in wanted:
        wanted = [one for one in wanted if one != "a text (str)"]
    raise _UnfitError(" or ".join(dict.fromkeys(wanted)))


def _many(value: Any, origin: type, hint: Any) -> Any:
    """A sequence or collection: one thing alone is taken as one, the rows of a data frame as lists."""
    if hasattr(value, "itertuples"):
        value = value.to_numpy().tolist()
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        value = (value,)
    if isinstance(value, Mapping):
        raise _UnfitError("a list")
    if not isinstance(value, Sequence | set | frozenset) and not hasattr(value, "__len__"):
        return value  # an iterator is walked through once
    found = [_fitted(each, hint) for each in value]
    if all(a is b for a, b in zip(found, value, strict=True)) and isinstance(value, origin):
        return value
    return tuple(found)


def _tuple(value: Any, hints: Sequence[Any]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) != len(hints):
        raise _UnfitError(f"a tuple of {len(hints)}")
    return tuple(_fitted(each, hint) for each, hint in zip(value, hints, strict=True))


def _nearest(value: Any, allowed: Sequence[Any]) -> str:
    close = difflib.get_close_matches(str(value), [str(each) for each in allowed], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _is_array(hint: Any) -> bool:
    from jaxtyping import AbstractArray

    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _array(value: Any, hint: Any) -> Any:
    """A tensor, or an array, of the shape in the signature, all finite; what numpy or a list holds is taken over."""
    import torch

    shape = f"{hint.dtype.__name__.lower()} numbers [{hint.dim_str}]"
    if isinstance(value, TypeVar) or hint.array_type is not torch.Tensor:
        return _require(value, isinstance(value, hint), shape)
    try:
        found = getattr(value, "vector", value)
        tensor = torch.as_tensor(found.to_numpy() if hasattr(found, "to_numpy") else found)
    except (TypeError, ValueError, RuntimeError):
        raise _UnfitError(shape) from None
    tensor = tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.float()
    _require(tensor, isinstance(tensor, hint) and tensor.numel() > 0, shape)
    return _require(tensor, bool(torch.isfinite(tensor).all()), f"{shape}, all finite,")
