"""How results compare and show themselves: equality of tensors and tables, a short line in text and in HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from html import escape
from typing import Any

from mechsafety.core.arguments import shown
from mechsafety.core.boundary import checked_methods
from mechsafety.core.errors import MechsafetyError


class Value:
    """A dataclass whose tensors and tables are compared by their entries, shown by what ``describe()`` says.

    Arguments of its public methods are checked (:func:`mechsafety.core.boundary.checked_methods`).

    A dataclass that inherits from it is declared with ``eq=False, repr=False``.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        checked_methods(cls)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(
            same(getattr(self, one.name), getattr(other, one.name))
            for one in fields(self)  # type: ignore[arg-type]
            if one.compare
        )

    def describe(self) -> str:
        """One to three lines that name what this holds."""
        held: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={short(value)}' for name, value in held.items())})"

    def __repr__(self) -> str:
        return self.describe()

    def _repr_html_(self) -> str:
        return "<br>".join(escape(line) for line in self.describe().splitlines())


def picked(items: tuple[Any, ...], index: Any, hint: str) -> Any:
    """One of ``items`` by its place; as a tuple those of a slice, of a list of places, or where a mask is true.

    Raises :class:`MechsafetyError`, which ends with ``hint``, for anything else.
    """
    if isinstance(index, slice):
        return items[index]
    places: Any = index.to_numpy() if hasattr(index, "to_numpy") else index
    if not _are_several(places):
        try:
            return items[places]
        except TypeError:
            raise MechsafetyError(
                f"index {shown(index)}: a place, a slice, a list of places or a mask is needed; {hint}"
            ) from None
    chosen = [one.item() if hasattr(one, "item") else one for one in places]
    if chosen and all(isinstance(one, bool) for one in chosen):
        if len(chosen) != len(items):
            raise MechsafetyError(f"a mask of {len(chosen)} for {len(items)}: one for each is needed")
        return tuple(item for item, taken in zip(items, chosen, strict=True) if taken)
    return tuple(picked(items, one, hint) for one in chosen)


def _are_several(places: object) -> bool:
    return isinstance(places, list | tuple) or getattr(places, "ndim", 0) == 1


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal entry by entry; NaN equals NaN, as in tables that were read back."""
    if a is b:
        return True
    if type(a) is not type(b):
        return isinstance(a, int | float) and isinstance(b, int | float) and a == b
    if isinstance(a, float):
        return a == b or (a != a and b != b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    names = _compared(a)
    if names is not None:
        return all(same(getattr(a, name), getattr(b, name)) for name in names)
    if hasattr(a, "equals"):  # a table
        return bool(a.equals(b))
    if hasattr(a, "dtype") and hasattr(a, "shape"):
        whole = a.shape == b.shape and a.dtype == b.dtype
        return whole and bool(((a == b) | ((a != a) & (b != b))).all())
    found = a == b
    return bool(found.all()) if hasattr(found, "all") else bool(found)


def _compared(a: Any) -> list[str] | None:
    """The fields by which a dataclass that does not compare itself entry by entry is compared."""
    plain = is_dataclass(a) and not isinstance(a, Value)
    return [one.name for one in fields(a) if one.compare] if plain else None


def as_array(tensor: Any, dtype: Any, copy: bool | None) -> Any:
    """``tensor`` as numpy asks for it (``__array__``), on the CPU; formats that numpy lacks in float32.

    It shares the memory of a result, which does not change, only where ``copy`` is False.
    """
    import numpy as np

    plain = tensor.detach().cpu()
    return np.array(
        (plain if plain.dtype.itemsize > 2 else plain.float()).numpy(), dtype=dtype, copy=copy is not False
    )


def short(value: Any, most: int = 60) -> str:
    """A value in at most about ``most`` characters; arrays and tables by their shape."""
    if hasattr(value, "shape"):
        return f"[{', '.join(map(str, value.shape))}]"
    text = repr(value)
    if len(text) <= most:
        return text
    many = isinstance(value, list | tuple | Mapping | set | frozenset)
    return f"<{len(value)} entries>" if many else f"{text[: most - 1]}…"
