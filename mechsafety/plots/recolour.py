"""Other colours for a figure that is drawn: of its series, or of its scale."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from mechsafety.core.errors import MechsafetyError

_RGBA = re.compile(r"rgba\((\d+),\s*(\d+),\s*(\d+),\s*([\d.]+)\)")
Colours = tuple[str, ...] | dict[str, str]


def recolour(figure: go.Figure, colours: Colours, *, found: set[str] | None = None) -> None:
    """Give the figure's series, or the scales of its maps, ``colours`` (:class:`~mechsafety.plots.look.Look`).

    Raises :class:`MechsafetyError` for a name that is not in the legend, and one colour for a scale. With ``found``
    the figure is one of several: what does not fit it leaves it as it is, and names that it has are added.
    """
    maps = [trace for trace in figure.data if trace.type == "heatmap"]
    if maps:
        if found is None or not (isinstance(colours, Mapping) or len(colours) < 2):
            _scale(maps, colours)
        return
    series = _series(figure)
    if isinstance(colours, Mapping):
        if found is not None:
            colours = {name: colours[name] for name in dict.fromkeys(n for n, _ in series) if name in colours}
            found.update(colours)
        _by_name(figure, series, colours)
    else:
        old = list(dict.fromkeys(colour for _, colour in series))
        _replace(figure, dict(zip(old, colours, strict=False)), {})


def legend_names(figure: go.Figure) -> list[str]:
    """The names that the legend shows, in its order."""
    shown = sorted(
        (trace for trace in figure.data if trace.name and trace.showlegend is not False),
        key=lambda trace: trace.legendrank if trace.legendrank is not None else 1000,
    )
    return list(dict.fromkeys(str(trace.name) for trace in shown))


def _scale(maps: list[Any], colours: Colours) -> None:
    if isinstance(colours, Mapping) or len(colours) < 2:
        raise MechsafetyError(
            "colours of a map of numbers are those of its scale: give two or more, from low to high"
        )
    steps = [[place / (len(colours) - 1), colour] for place, colour in enumerate(colours)]
    for trace in maps:
        trace.update(colorscale=steps, reversescale=False)


def _series(figure: go.Figure) -> list[tuple[str, str]]:
    """Name and colour of each series in the legend's order; of all traces where no legend names any."""
    names = legend_names(figure)
    order = {name: place for place, name in enumerate(names)}
    found = [
        (str(trace.name), colour)
        for trace in figure.data
        if not names or (trace.name in order and trace.showlegend is not False)
        for colour in _own(trace)
    ]
    return sorted(found, key=lambda one: order.get(one[0], 0))


def _own(trace: Any) -> list[str]:
    """The colours of a trace that stand for its series: of its marks, or of its line."""
    for part in (trace.marker, getattr(trace, "line", None)):
        colour = None if part is None else part.color
        given = [colour] if isinstance(colour, str) else list(colour if colour is not None else ())
        solid = [c for c in dict.fromkeys(given) if isinstance(c, str) and _key(c) is not None]
        if solid:
            return solid
    return []


def _by_name(figure: go.Figure, series: list[tuple[str, str]], colours: Mapping[str, str]) -> None:
    names = list(dict.fromkeys(name for name, _ in series))
    for name in colours:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise MechsafetyError(
                f"colours: the legend has no {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names) or 'no names'}")
            )
    taken = {colour: [name for name, own in series if own == colour] for _, colour in series}
    # What has no name of its own (bands, lines of axes) follows a colour that one series alone has.
    alone = {
        colour: colours[names_of[0]]
        for colour, names_of in taken.items()
        if set(names_of) == {names_of[0]} and names_of[0] in colours
    }
    own = {name: {old: colours[name]} for name, old in series if name in colours}
    _replace(figure, alone, own)


def _replace(
    figure: go.Figure, everywhere: Mapping[str, str], of_name: Mapping[str, Mapping[str, str]]
) -> None:
    def keyed(found: Mapping[str, str]) -> dict[Any, str]:
        return {_key(old): new for old, new in found.items()}

    shared, single = keyed(everywhere), {name: keyed(found) for name, found in of_name.items()}
    for trace in figure.data:
        found = single.get(str(trace.name or trace.legendgroup), {} if trace.name and single else shared)
        if trace.type == "scatter" and trace.fill and trace.fillcolor is not None:
            _refill(trace, found)
        trace.update(_changed(trace.to_plotly_json(), found))
    for part in ("shapes", "annotations"):
        for one in figure.layout[part]:
            one.update(_changed(one.to_plotly_json(), shared))


def _refill(trace: Any, found: Mapping[Any, str]) -> None:
    """A filled area in its new colour, as much of what is behind it showing as before."""
    new, faint = found.get(_key(trace.fillcolor)), _RGBA.fullmatch(trace.fillcolor)
    if new is None:
        return
    if faint and trace.line.width == 0:
        trace.update(fillcolor=new, opacity=float(faint[4]))
    elif faint:  # plotly's own filling is the line's colour, half let through
        trace.fillcolor = None
    else:
        trace.fillcolor = new


def _changed(part: Mapping[str, Any], found: Mapping[Any, str]) -> dict[str, Any]:
    """The entries of a trace, a shape or an annotation that have other colours now."""
    changes: dict[str, Any] = {}
    for name, value in part.items():
        if isinstance(value, Mapping):
            if inner := _changed(value, found):
                changes[name] = inner
        elif name == "color" and isinstance(value, str):
            if (new := found.get(_key(value))) is not None:
                changes[name] = new
        elif name == "color" and isinstance(value, list | tuple):
            changes[name] = [found.get(_key(each), each) for each in value]
    return changes


def _key(colour: object) -> tuple[int, int, int] | str | None:
    """What makes two ways of writing a colour one; None for one that is not seen."""
    if not isinstance(colour, str):
        return None
    if faint := _RGBA.fullmatch(colour):
        return (int(faint[1]), int(faint[2]), int(faint[3])) if float(faint[4]) else None
    if re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
    return colour
