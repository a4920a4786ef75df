"""Small multiples of lines with their intervals as bands, beside what chance gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.plots.panels import WIDTH, log_axis
from mechsafety.plots.style import AROUND, COLOURS, styled

Form = Literal["plain", "rate", "log"]
_CHANCE = "3px,3px"
_ROW, _GAP = 165, 62  # pixels: a row of panels, and what stands between two


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line over ``rows`` (columns ``x``, ``y`` and, where there are intervals, ``low`` and ``high``)."""

    name: str
    rows: pd.DataFrame
    colour: str
    dash: str = "solid"


@dataclass(frozen=True, kw_only=True)
class LinePanel:
    """One small multiple. Panels with the same ``y_title`` share the range of their axes."""

    title: str
    lines: Sequence[Line]
    y_title: str
    form: Form = "plain"


def chance_line(values: pd.Series, name: str) -> Line:
    """What chance gives, by place on the x axis: thin and dashed, in ink."""
    rows = pd.DataFrame({"x": values.index, "y": values.to_numpy()})
    return Line(name=name, rows=rows, colour=COLOURS["ink"], dash=_CHANCE)


def faded(colour: str, alpha: float) -> str:
    """A colour such as ``#0072B2`` that lets through what is behind it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def band(
    figure: go.Figure, x: Iterable[Any], low: Iterable[float], high: Iterable[float], fill: str, **where: int
) -> None:
    """An interval around a line, filled and without an entry in the legend."""
    x, low, high = list(x), list(low), list(high)
    figure.add_scatter(
        **{"x": [*x, *x[::-1]], "y": [*high, *low[::-1]], "fill": "toself", "fillcolor": fill},
        **{"line": {"width": 0}, "mode": "lines", "showlegend": False, "hoverinfo": "skip"},
        **where,
    )


def columns_for(n: int) -> int:
    """How many panels stand in a row where ``n`` of them are to be wrapped."""
    return next((width for width in (3, 4) if n <= width or n % width == 0), 4 if n > 6 else 3)


def spread_out(layers: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of ``layers``, evenly spaced, the first and the last among them."""
    ordered = sorted(set(layers))
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def line_panels(
    panels: Sequence[LinePanel], *, x_title: str, title: str, subtitle: str, columns: int
) -> go.Figure:
    """Panels of lines with their intervals as bands, ``columns`` in a row; every name is in the legend once."""
    n_rows = math.ceil(len(panels) / columns)
    figure = make_subplots(
        rows=n_rows,
        cols=columns,
        subplot_titles=[panel.title for panel in panels],
        horizontal_spacing=0.16 / columns,
        vertical_spacing=gap(n_rows),
    )
    named: list[str] = []
    axes: dict[str, Any] = {}
    x_axis = _x_ticks([line for panel in panels for line in panel.lines])
    for place, panel in enumerate(panels):
        where = {"row": place // columns + 1, "col": place % columns + 1}
        for line in panel.lines:
            _draw(figure, line, where, new=line.name not in named)
            named += [] if line.name in named else [line.name]
        alike = [line for other in panels if other.y_title == panel.y_title for line in other.lines]
        follows = where["col"] > 1 and panels[place - 1].y_title == panel.y_title
        axes[f"yaxis{place + 1}"] = _axis(panel, alike) | (
            {"showticklabels": False} if follows else {"title": {"text": panel.y_title}}
        )
        lowest = place + columns >= len(panels)
        axes[f"xaxis{place + 1}"] = x_axis | ({"title": {"text": x_title}} if lowest else {})
    # All at once: plotly takes long over axes that are changed one by one.
    figure.update_layout(axes)
    return finished(figure, title, subtitle, rows=n_rows)


def by_kind(
    table: pd.DataFrame,
    lines: Callable[[pd.DataFrame], list[Line]],
    *,
    y_title: str,
    form: Form = "plain",
) -> list[LinePanel]:
    """One panel per kind of matrix; ``lines`` draws its rows."""
    return [
        LinePanel(title=str(kind), lines=lines(rows), y_title=y_title, form=form)
        for kind, rows in table.groupby("kind", sort=False)
    ]


def level(places: pd.Series, value: float, name: str) -> Line:
    """One value over all places on the x axis."""
    return chance_line(pd.Series(value, index=[places.min(), places.max()]), name)


def gap(n_rows: int) -> float:
    """The space between rows of panels as a share of the plot's height."""
    return _GAP / (n_rows * _ROW + (n_rows - 1) * _GAP)


def finished(
    figure: go.Figure, title: str, subtitle: str, *, rows: int = 1, area: int | None = None
) -> go.Figure:
    """The figure in the house style, high enough for its rows of panels, or with panels ``area`` pixels high."""
    look = {"zeroline": False, "tickfont": {"size": 11}, "title": {"font": {"size": 12}, "standoff": 6}}
    axes = (*figure.select_xaxes(), *figure.select_yaxes())
    figure.update_layout({axis.plotly_name: look for axis in axes})
    return styled(figure, title, subtitle, width=WIDTH, height=AROUND + (area or room(rows)))


def room(rows: int) -> int:
    """Pixels of so many rows of panels and of what stands between them."""
    return rows * _ROW + (rows - 1) * _GAP


def _draw(figure: go.Figure, line: Line, where: Mapping[str, int], *, new: bool) -> None:
    rows = line.rows.sort_values("x", kind="stable")
    if "low" in rows and len(banded := rows[rows[["y", "low", "high"]].notna().all(axis=1)]):
        figure.add_scatter(
            x=[*banded["x"], *banded["x"][::-1]],
            y=[*banded["high"], *banded["low"][::-1]],
            fill="toself",
            fillcolor=line.colour,
            opacity=0.16,
            mode="lines",
            line={"width": 0},
            hoverinfo="skip",
            legendgroup=line.name,
            showlegend=False,
            **where,
        )
    few = len(rows) <= 12 and line.dash != _CHANCE
    figure.add_scatter(
        x=rows["x"],
        y=rows["y"],
        name=line.name,
        legendgroup=line.name,
        showlegend=new,
        mode="lines+markers" if few else "lines",
        line={"color": line.colour, "dash": line.dash, "width": 1.2 if line.dash == _CHANCE else 1.9},
        marker={"size": 5},
        hovertemplate="%{x}: %{y:.3g}<extra>" + line.name + "</extra>",
        **where,
    )


def _axis(panel: LinePanel, lines: Sequence[Line]) -> dict[str, Any]:
    if panel.form == "rate":
        return {"range": [-0.05, 1.05], "tickformat": ".0%", "tickvals": [0, 0.5, 1]}
    names = ("y", "low", "high")
    values = [v for line in lines for name in names if name in line.rows for v in line.rows[name] if v == v]
    if panel.form == "log":
        return log_axis(values, percent=False)
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    return {"range": [low - pad, high + pad], "nticks": 6}


def _x_ticks(lines: Sequence[Line]) -> dict[str, Any]:
    """Every place of a few, whole numbers among many."""
    places = sorted({float(x) for line in lines for x in line.rows["x"]})
    if not places:
        return {}
    pad = 0.05 * (places[-1] - places[0]) or 0.5
    ticks: dict[str, Any] = {"range": [places[0] - pad, places[-1] + pad]}
    whole = [x for x in places if x == round(x)]
    step = max(1, math.ceil(len(whole) / 7))
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if s >= step)
    return ticks | {"tickvals": [x for x in whole if x % step == 0]}
