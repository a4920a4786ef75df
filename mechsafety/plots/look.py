"""The options that every figure takes: its title, its size, its colours.

A function that draws is marked :func:`drawn`, which takes the options out of its arguments; the last act of drawing,
:func:`mechsafety.plots.style.styled`, applies them. Nothing between the two knows of them.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypedDict, TypeVar, Unpack

from mechsafety.core.arguments import several, shown, whole_number
from mechsafety.core.docstrings import completed, with_returns
from mechsafety.core.errors import MechsafetyError
from mechsafety.plots.columns import Columns

Draws = TypeVar("Draws", bound=Callable[..., Any])
LEAST, MOST = 200, 20_000
"""Pixels of a side of a figure."""


class Look(TypedDict, total=False):
    """The options of a figure; those that are not given, and None, leave it as it is.

    - ``title``: text in place of the figure's own title.
    - ``width``, ``height``: pixels of the whole figure, 200 to 20,000. Text is wrapped to the width; without a height
      the figure grows by the lines that this takes.
    - ``colours``: colours that CSS knows, as ``"#0072B2"`` or ``"teal"``. Several replace the colours of the series in
      the order of the legend, as many as are given; a mapping from names in the legend those of these series alone.
      In a map of numbers two or more are its scale, from low to high. One of plotly's scales stands for its colours,
      ``"Viridis"``.
    """

    title: str | None
    width: int | None
    height: int | None
    colours: str | Sequence[str] | Mapping[str, str] | None


_OPTIONS = {
    name: inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=getattr(hint, "__forward_arg__", hint)
    )
    for name, hint in Look.__annotations__.items()
}
_WANTED: ContextVar[Look] = ContextVar("wanted", default=Look())  # noqa: B039 - never changed in place

_FOUND: ContextVar[set[str] | None] = ContextVar("found", default=None)


def drawn(function: Draws) -> Draws:
    """``function`` with the options of :class:`Look`, which its signature shows one by one."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]

    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Any:
        look = Look(**{name: kwargs.pop(name) for name in _OPTIONS if name in kwargs})  # type: ignore[typeddict-item]
        with looking(**look):
            return function(*args, **kwargs)

    draw.__doc__ = with_returns(function.__doc__ or "", "A plotly figure.")
    draw.__signature__ = signature.replace(parameters=[*own, *_OPTIONS.values()])  # type: ignore[attr-defined]
    return draw  # type: ignore[return-value]


def drawn_from(**tables: Columns) -> Callable[[Draws], Draws]:
    """:func:`drawn`, for a function whose arguments of these names are tables with these columns."""

    def mark(function: Draws) -> Draws:
        own = inspect.signature(function)

        @functools.wraps(function)
        def read(*args: Any, **kwargs: Any) -> Any:
            bound = own.bind(*args, **kwargs)
            for name, columns in tables.items():
                if bound.arguments.get(name) is not None:
                    bound.arguments[name] = columns.of(bound.arguments[name], name)
            return function(*bound.args, **bound.kwargs)

        about = {name: columns.described() for name, columns in tables.items()}
        read.__doc__ = completed(read.__doc__ or "", tables, about)
        return drawn(read)  # type: ignore[return-value]

    return mark


@contextmanager
def looking(**look: Unpack[Look]) -> Iterator[None]:
    """Figures that are drawn within look so. Raises :class:`MechsafetyError` for an option that cannot be."""
    given = {name: value for name, value in _checked(look).items() if value is not None}
    token = _WANTED.set(Look(**(_WANTED.get() | given)))  # type: ignore[typeddict-item]
    try:
        yield
    finally:
        _WANTED.reset(token)


@contextmanager
def looking_at_all(**look: Unpack[Look]) -> Iterator[None]:
    """:func:`looking` for all figures of a run: each takes the colours of the names that it has.

    Raises :class:`MechsafetyError` for a name that none of them has.
    """
    found: set[str] = set()
    token = _FOUND.set(found)
    try:
        with looking(**look):
            yield
            colours = wanted().get("colours")
            if isinstance(colours, Mapping) and (missed := [name for name in colours if name not in found]):
                raise MechsafetyError(f"colours: the legend of no figure has {missed[0]!r}")
    finally:
        _FOUND.reset(token)


def names_found() -> set[str] | None:
    """Of the names that colours were given for, those that some figure had; None where one figure is drawn."""
    return _FOUND.get()


def wanted() -> Look:
    """The options of the figure that is being drawn."""
    return _WANTED.get()


def _checked(look: Look) -> dict[str, Any]:
    found: dict[str, Any] = dict(look)
    if strange := [name for name in found if name not in _OPTIONS]:
        close = difflib.get_close_matches(strange[0], _OPTIONS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise MechsafetyError(
            f"{strange[0]!r} is not one of the options of a figure, {', '.join(_OPTIONS)}{hint}"
        )
    title = found.get("title")
    if title is not None and (not isinstance(title, str) or not title.strip()):
        raise MechsafetyError(f"title is {shown(title)}: a text is needed; leave it out for the figure's own")
    for side in ("width", "height"):
        if found.get(side) is not None:
            found[side] = whole_number(found[side], side)
            if not LEAST <= found[side] <= MOST:
                raise MechsafetyError(f"{side} is {found[side]}: {LEAST} to {MOST} pixels are needed")
    if found.get("colours") is not None:
        found["colours"] = _colours(found["colours"])
    return found


def _colours(given: object) -> tuple[str, ...] | dict[str, str]:
    if isinstance(given, Mapping):
        for colour in given.values():
            _require_colour(colour)
        return {str(name): str(colour) for name, colour in given.items()}
    colours = several(given)
    if isinstance(given, str) and not _is_colour(given):
        colours = _scale(given)
    if not colours:
        raise MechsafetyError(
            f"colours is {shown(given)}: a colour, a list of them, or a mapping from names in the legend is needed"
        )
    for colour in colours:
        _require_colour(colour)
    return tuple(map(str, colours))


def _scale(name: str) -> tuple[str, ...]:
    """The colours of one of plotly's scales, from low to high (``"Viridis"``); else ``name`` alone."""
    from plotly.colors import get_colorscale
    from plotly.exceptions import PlotlyError

    try:
        return tuple(str(colour) for _, colour in get_colorscale(name))
    except (PlotlyError, AttributeError, ValueError):
        return (name,)


def _is_colour(colour: object) -> bool:
    import plotly.graph_objects as go

    try:
        return isinstance(colour, str) and go.scatter.Line(color=colour).color == colour
    except ValueError:
        return False


def _require_colour(colour: object) -> None:
    if not _is_colour(colour):
        raise MechsafetyError(
            f"colours: {shown(colour)} is no colour; give one that CSS knows, such as '#0072B2' or 'teal', or the "
            "name of a scale, such as 'Viridis'"
        )
