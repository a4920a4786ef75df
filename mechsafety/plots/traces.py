"""What figures of several experiments have: panels in a line, marks with intervals, maps with numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.plots.style import DIVERGING, HEAT, whiskers

Values = Sequence[Any] | pd.Series
NO_LOOKS: Mapping[str, float] = {}


def side_by_side(titles: Sequence[str], *, gap: float, **more: Any) -> go.Figure:
    """Panels beside each other that share the y axis."""
    shape = {"rows": 1, "cols": len(titles), "subplot_titles": list(titles)}
    return make_subplots(**shape, shared_yaxes=True, horizontal_spacing=gap, **more)


def stacked(titles: Sequence[str], *, gap: float) -> go.Figure:
    """Panels above each other that share the x axis."""
    shape = {"rows": len(titles), "cols": 1, "subplot_titles": list(titles)}
    return make_subplots(**shape, shared_xaxes=True, vertical_spacing=gap)


def dots(
    figure: go.Figure,
    places: Sequence[Any] | pd.Series,
    values: Values,
    *,
    name: str | None,
    marker: Mapping[str, Any],
    bounds: tuple[Values, Values] | None = None,
    across: bool = False,
    looks: Mapping[str, float] = NO_LOOKS,
    colour: str | None = None,
    **more: Any,
) -> None:
    """Marks at ``values``, with whiskers from ``bounds``; with ``across`` the values lie along the x axis.

    ``looks`` are the whiskers' thickness and width, ``colour`` their colour where it is not the marker's.
    """
    x, y = (values, places) if across else (places, values)
    if bounds is not None:
        bars = whiskers(values, *bounds, colour=colour or marker.get("color"), **looks)
        more["error_x" if across else "error_y"] = bars
    figure.add_scatter(x=x, y=y, mode="markers", name=name, marker=marker, **more)


def in_legend(group: str, *, first: bool, row: int, col: int) -> dict[str, Any]:
    """One panel's trace of those that stand in the legend once, under ``group``."""
    return {"legendgroup": group, "showlegend": first, "row": row, "col": col}


def shares_map(
    z: Sequence[Sequence[float]], *, title: str, text: Sequence[Sequence[str]], **more: Any
) -> go.Heatmap:
    """Numbers from 0 to 1 as a map with the text of every cell; ``title`` stands above its scale."""
    bar = {"title": {"text": title, "side": "top"}, "thickness": 14, **more.pop("colorbar", {})}
    looks = {"zmin": 0, "zmax": 1, "colorscale": HEAT, "xgap": 2, "ygap": 2, "texttemplate": "%{text}"}
    return go.Heatmap(z=z, text=text, colorbar=bar, **looks, **more)


def signed_map(
    z: Sequence[Sequence[float]], *, title: str, text: Sequence[Sequence[str]], **more: Any
) -> go.Heatmap:
    """The same for numbers from -1 to 1: red above 0, blue below."""
    return shares_map(z, title=title, text=text, **more).update(zmin=-1, zmax=1, colorscale=DIVERGING)
