"""A value as an annotation asks for it: what is plainly meant is taken over, what else there is says what is needed."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from mechsafety.core.arguments import nearest, number, whole_number
from mechsafety.core.errors import MechsafetyError

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


class UnfitError(Exception):
    """What is needed in the place of a value."""


def fitted(value: Any, hint: Any) -> Any:
    """``value`` as ``hint`` asks for it. Raises :class:`UnfitError` where it is something else."""
    origin, given = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fitted(value, given[0])
    if origin in (Union, types.UnionType):
        return _one_of(value, given)
    if origin is Literal:
        if not isinstance(value, str | int | bool) or value not in given:
            words = ", ".join(str(g) or "an empty text" for g in given)
            raise UnfitError(f"{'one of ' if len(given) > 1 else ''}{words}{nearest(value, given)}")
        return value
    if origin is Callable or hint is Callable:
        return require(value, callable(value), "a function")
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return require(value, isinstance(value, Mapping), "a mapping (dict)")
    if origin is tuple and given and given[-1] is not Ellipsis:
        return _tuple(value, given)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Iterable) and given:
        return _many(value, origin, given[0])
    return _single(value, hint)


def fitted_or_missing(value: Any, hint: Any) -> Any:
    """As :func:`fitted`, for statistics: arrays and columns are taken as they are, and NaN is what is missing."""
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
        return imported("numpy").asarray(value) if listed else fitted(value, hint)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise UnfitError("a list, an array or a column")
    rows: Any = value
    if hasattr(rows, "itertuples"):  # a data frame has its rows, not its columns' names
        rows = rows.to_numpy().tolist()
    return [each if _holds_nan(each) else _one_of(each, elements) for each in rows]


def fitted_or_passed(value: Any, hint: Any) -> Any:
    """As :func:`fitted`, for methods: arrays, which the package hands on itself, and numbers that are not finite are
    passed as they are.
    """
    if isinstance(value, float) and not math.isfinite(value) and float in (hint, *get_args(hint)):
        return value
    if (isinstance(value, list | tuple) and _holds_nan(value)) or any(
        map(_is_array, (hint, *get_args(hint)))
    ):
        return value
    return fitted(value, hint)


def _holds_nan(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(part, float) and part != part for part in parts)


def _single(value: Any, hint: Any) -> Any:
    if hint is None or hint is type(None):
        return require(value, value is None, "None")
    if hint in (int, float):
        try:
            return whole_number(value, "it") if hint is int else number(value, "it")
        except MechsafetyError as error:
            raise UnfitError(
                str(error).rpartition(": ")[2].removesuffix(" is needed").rpartition("; ")[2]
            ) from None
    if hint is bool:
        return bool(require(value, type(value).__name__ in ("bool", "bool_"), "True or False"))
    if hint is str:
        return _text(value)
    if hint is Path:
        return Path(require(value, isinstance(value, str | Path), "a path (str or Path)"))
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
        return require(value, all(hasattr(value, n) for n in members), f"an object with {', '.join(members)}")
    if hint.__name__ == "DataFrame" and hasattr(value, "to_frame"):
        raise UnfitError("a DataFrame (its to_frame() is one)")
    maker = f" ({MAKERS[hint.__name__]} makes one)" if hint.__name__ in MAKERS else ""
    return require(value, isinstance(value, hint), f"a {hint.__name__}{maker}")


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
    return require(value, isinstance(value, str), wanted)


def require(value: Any, holds: bool, wanted: str) -> Any:
    if not holds:
        raise UnfitError(wanted)
    return value


def _one_of(value: Any, hints: Sequence[Any]) -> Any:
    wanted: list[str] = []
    # A number where one stands before several is itself, not a list of one.
    for hint in hints:
        try:
            return fitted(value, hint)
        except UnfitError as error:
            wanted.append(str(error))
    if "a path (str or Path)" in wanted:
        wanted = [one for one in wanted if one != "a text (str)"]
    raise UnfitError(" or ".join(dict.fromkeys(wanted)))


def _many(value: Any, origin: type, hint: Any) -> Any:
    """A sequence or collection: one thing alone is taken as one, the rows of a data frame as lists."""
    if hasattr(value, "itertuples"):
        value = value.to_numpy().tolist()
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        value = (value,)
    if isinstance(value, Mapping):
        raise UnfitError("a list")
    if not isinstance(value, Sequence | set | frozenset) and not hasattr(value, "__len__"):
        return value  # an iterator is walked through once
    found = [fitted(each, hint) for each in value]
    if all(a is b for a, b in zip(found, value, strict=True)) and isinstance(value, origin):
        return value
    return tuple(found)


def _tuple(value: Any, hints: Sequence[Any]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) != len(hints):
        raise UnfitError(f"a tuple of {len(hints)}")
    return tuple(fitted(each, hint) for each, hint in zip(value, hints, strict=True))


def _is_array(hint: Any) -> bool:
    from jaxtyping import AbstractArray

    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _array(value: Any, hint: Any) -> Any:
    """A tensor, or an array, of the shape in the signature, all finite; what numpy or a list holds is taken over."""
    import torch

    shape = f"{hint.dtype.__name__.lower()} numbers [{hint.dim_str}]"
    if isinstance(value, TypeVar) or hint.array_type is not torch.Tensor:
        return require(value, isinstance(value, hint), shape)
    try:
        found = getattr(value, "vector", value)
        tensor = torch.as_tensor(found.to_numpy() if hasattr(found, "to_numpy") else found)
    except (TypeError, ValueError, RuntimeError):
        raise UnfitError(shape) from None
    tensor = tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.float()
    require(tensor, isinstance(tensor, hint) and tensor.numel() > 0, shape)
    return require(tensor, bool(torch.isfinite(tensor).all()), f"{shape}, all finite,")


def require_same_sizes(value: Any, hint: Any, parameter: str, sizes: dict[str, tuple[int, str]]) -> None:
    """Dimensions of one name have one size in all arguments; ``sizes`` holds those that were met."""
    for one in get_args(hint) or (hint,):
        names = one.dim_str.split() if _is_array(one) else []
        if len(names) != getattr(value, "ndim", -1) or not all(map(str.isidentifier, names)):
            continue
        for name, size in zip(names, value.shape, strict=True):
            known, of = sizes.setdefault(name, (int(size), parameter))
            require(value, size == known, f"one of [{' '.join(names)}] with the {name} {known} of {of}")


def imported(name: str) -> types.ModuleType:
    import importlib

    return importlib.import_module(name)
