"""Small multiples of what a state of a model does: outcomes on harmful and harmless prompts, and utility.

One place on the x axis is one state; each draw is a mark with its 95 % interval, and a line joins the means of draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.plots.style import COLOURS, styled, whiskers

# Okabe and Ito's colours, for what has no colour of its own.
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8C8C8C")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down", "pentagon")
"""One more than hues, so that no pair of the two comes twice before the seventy-third series."""
WIDTH = 940  # pixels: the room that a page has
LEAST_KL = 0.01  # nats: smaller values are drawn here on the logarithmic axis
_SPOT = "#F0E442"
_TICKS = [0.00001, 0.0001, 0.001, 0.01, 0.1, 1, 10, 100, 1000, 10000, 100000]
_TIGHT = [v * k for v in _TICKS for k in (1, 2, 5)]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One measure: its column, its heading, and how its axis runs (``ratio``: over the unedited model's value)."""

    column: str
    title: str
    form: Literal["rate", "ratio", "kl", "share", "plain"] = "rate"


@dataclass(frozen=True, kw_only=True)
class Series:
    """Rows of one kind; their column ``place`` is the place on the x axis, ``offset`` sets the series aside."""

    name: str
    rows: pd.DataFrame
    colour: str
    symbol: str = "circle"
    dash: str = "solid"
    offset: float = 0.0


HARMFUL = (
    Panel(column="refused", title="harmful prompts: refused"),
    Panel(column="complied", title="harmful prompts: answered coherently"),
    Panel(column="degenerate", title="harmful prompts: degenerate"),
)
HARMLESS = (
    Panel(column="harmless_refused", title="harmless prompts: refused"),
    Panel(column="harmless_degenerate", title="harmless prompts: degenerate"),
)
UTILITY = (
    Panel(column="accuracy", title="multiple choice: right"),
    Panel(column="perplexity", title="perplexity, times unedited", form="ratio"),
    Panel(column="kl", title="KL from unedited (nats)", form="kl"),
)
WEIGHTS = Panel(column="share", title="weights removed", form="share")
RANKS = Panel(column="share", title="ranks removed", form="share")
PROJECTION = Panel(column="auroc", title="harmful from harmless: AUROC")
LOSS = Panel(column="loss_last", title="loss on the examples, at the end", form="plain")
EXTRA = " ".join(
    f"{panel.column}{end}" for panel in (*HARMFUL, *HARMLESS, *UTILITY, LOSS) for end in ("", "_low", "_high")
)
"""The columns that :func:`outcome_panels` draws where there are such."""


def outcome_panels(
    series: Sequence[Series],
    grid: Sequence[Sequence[Panel]],
    *,
    ticks: Sequence[str],
    base: pd.Series | None,
    marked: int | None = None,
) -> go.Figure:
    """A panel a measure, in the rows of ``grid``; rows of it in which nothing was measured are left out.

    ``base`` is the unedited model's row, drawn dashed with its interval as a band; ``marked`` the place of the
    sweet spot. Without ``base`` ratios are drawn as they are.
    """
    shown = [line for line in grid if any(_known(series, panel.column) for panel in line)] or [grid[0]]
    wide = max(len(line) for line in shown)
    cells = [[line[i] if i < len(line) else None for i in range(wide)] for line in shown]
    figure = make_subplots(
        rows=len(cells),
        cols=wide,
        specs=[[{} if cell else None for cell in line] for line in cells],
        subplot_titles=[_heading(cell, base) for line in cells for cell in line if cell],
        horizontal_spacing=0.075,
        vertical_spacing=0.19 / max(1, len(cells) - 1) if len(cells) > 1 else 0.1,
    )
    shapes: list[dict[str, Any]] = []
    for row, line in enumerate(cells, start=1):
        for column, panel in enumerate(line, start=1):
            if panel is not None:
                shapes += _fill(figure, row, column, panel, series, base, marked)
    # All at once: plotly takes long over shapes that are added one by one.
    figure.update_layout(shapes=shapes)
    turned = len(ticks) > 8
    figure.update_xaxes(
        tickvals=list(range(len(ticks))),
        ticktext=[t.replace("<br>", " ") for t in ticks] if turned else list(ticks),
        tickangle=-60 if turned else 0,
        tickfont={"size": 11},
        range=[-0.6, len(ticks) - 0.4],
        zeroline=False,
        showgrid=False,
    )
    figure.update_yaxes(tickfont={"size": 11}, zeroline=False)
    _explain(figure, series, base, marked)
    return figure


def footed(figure: go.Figure, title: str, subtitle: str, *, height: int) -> go.Figure:
    """The figure as wide as a page, with its titles, and its legend at the foot."""
    return styled(figure, title, subtitle, width=WIDTH, height=height)


def panel_height(figure: go.Figure) -> int:
    """A height that gives every row of panels the same room, the title and the legend theirs."""
    rows = len({axis.domain for axis in figure.select_yaxes()})
    turned = any(axis.tickangle for axis in figure.select_xaxes())
    return 210 + rows * (250 if turned else 215)


def _known(series: Sequence[Series], column: str) -> bool:
    return any(column in one.rows and one.rows[column].notna().any() for one in series)


def _unit(panel: Panel, base: pd.Series | None) -> float | None:
    """The unedited model's value of a measure; None where there is none to compare with."""
    if base is None or panel.column not in base or base[panel.column] != base[panel.column]:
        return None
    return float(base[panel.column])


def _heading(panel: Panel, base: pd.Series | None) -> str:
    return "perplexity" if panel.form == "ratio" and _unit(panel, base) is None else panel.title


def _fill(
    figure: go.Figure,
    row: int,
    column: int,
    panel: Panel,
    series: Sequence[Series],
    base: pd.Series | None,
    marked: int | None,
) -> list[dict[str, Any]]:
    """Draw one panel; returns its shapes: the unedited model's line and band, and the sweet spot."""
    where = {"row": row, "col": column}
    if not _known(series, panel.column):
        figure.add_scatter(x=[0], y=[None], showlegend=False, **where)
        figure.update_yaxes(visible=False, **where)
        figure.add_annotation(
            text="not measured", x=0.5, y=0.5, xref="x domain", yref="y domain", showarrow=False, **where
        )
        return []
    spans = [value for one in series for value in _draw(figure, panel, one, base, where)]
    _axis(figure, panel, spans, where, based=_unit(panel, base) is not None)
    cell: Any = figure.get_subplot(row, column)
    x, y = (axis.plotly_name.replace("axis", "") for axis in (cell.xaxis, cell.yaxis))
    shapes = [shape | {"xref": f"{x} domain", "yref": y, "x0": 0, "x1": 1} for shape in _base(panel, base)]
    if marked is not None:
        spot = {"type": "rect", "fillcolor": _SPOT, "opacity": 0.35, "line": {"width": 0}, "layer": "below"}
        span = {"x0": marked - 0.48, "x1": marked + 0.48, "y0": 0, "y1": 1}
        shapes.append(spot | span | {"xref": x, "yref": f"{y} domain"})
    return shapes


def _scaled(values: pd.Series, panel: Panel, base: pd.Series | None) -> pd.Series:
    if panel.form == "ratio":
        return values / (_unit(panel, base) or 1.0)
    return values.clip(lower=LEAST_KL) if panel.form == "kl" else values


def _draw(
    figure: go.Figure, panel: Panel, one: Series, base: pd.Series | None, where: dict[str, int]
) -> list[float]:
    """One series' marks with whiskers and the line of its means; what the axis must hold."""
    if panel.column not in one.rows:
        return []
    rows = one.rows
    value = _scaled(rows[panel.column], panel, base)
    low, high = (
        _scaled(rows[name], panel, base) if (name := f"{panel.column}_{end}") in rows else value * math.nan
        for end in ("low", "high")
    )
    means = pd.DataFrame({"place": rows["place"], "value": value}).groupby("place")["value"].mean().dropna()
    figure.add_scatter(
        x=means.index + one.offset,
        y=means,
        mode="lines",
        line={"color": one.colour, "dash": one.dash, "width": 1.6},
        showlegend=False,
        hoverinfo="skip",
        **where,
    )
    figure.add_scatter(
        x=rows["place"] + one.offset + _aside(rows["place"]),
        y=value,
        error_y=whiskers(value, low, high, colour=one.colour, thickness=1.0, width=2.0),
        name=one.name,
        mode="markers",
        showlegend=False,
        marker={"color": one.colour, "symbol": one.symbol, "size": 6},
        hovertemplate="%{y:.3g}<extra>" + one.name + "</extra>",
        **where,
    )
    return [v for part in (value, low, high) for v in part if v == v]


def _aside(place: pd.Series) -> np.ndarray:
    """Draws of one place side by side, in the order of the rows, within a fifth of a place."""
    order = place.groupby(place).cumcount().to_numpy(dtype=float)
    number = place.map(place.value_counts()).to_numpy(dtype=float)
    return (order - (number - 1) / 2) * np.minimum(0.07, 0.2 / np.maximum(number - 1, 1))


def _base(panel: Panel, base: pd.Series | None) -> list[dict[str, Any]]:
    """The unedited model's line, and the band of its interval, by height alone; none where it is 0 by definition."""
    value = _unit(panel, base)
    if value is None or base is None or panel.form in ("kl", "share"):
        return []
    scale = (value or 1.0) if panel.form == "ratio" else 1.0
    at = value / scale
    ink = COLOURS["ink"]
    shapes: list[dict[str, Any]] = [
        {"type": "line", "y0": at, "y1": at, "line": {"color": ink, "dash": "dash", "width": 1.2}}
    ]
    low, high = (float(base.get(f"{panel.column}_{end}", math.nan)) / scale for end in ("low", "high"))
    if low == low and high == high:
        band = {"type": "rect", "fillcolor": ink, "opacity": 0.08, "line": {"width": 0}, "layer": "below"}
        shapes.append(band | {"y0": low, "y1": high})
    return shapes


def _axis(
    figure: go.Figure, panel: Panel, values: Sequence[float], where: dict[str, int], *, based: bool
) -> None:
    if panel.form == "rate":
        figure.update_yaxes(range=[-0.05, 1.05], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1], **where)
    elif panel.form == "plain":
        figure.update_yaxes(range=[0, 1.15 * max(values, default=1.0)], **where)
    else:
        with_one = [*values, 1.0] if panel.form == "ratio" and based else values
        figure.update_yaxes(log_axis(with_one, percent=panel.form == "share"), **where)


def log_axis(values: Sequence[float], *, percent: bool) -> dict[str, Any]:
    """A logarithmic axis that holds ``values``, labelled at 1, 2, 5 (wide ones at powers of ten)."""
    positive = [v for v in values if v > 0]
    low, high = (math.log10(end) for end in (min(positive, default=1.0), max(positive, default=1.0)))
    ticks = _TICKS if high - low > 1.5 else _TIGHT
    return {
        "type": "log",
        "range": [low - 0.12, max(high, low + 0.5) + 0.12],
        "tickvals": ticks,
        "ticktext": [f"{100 * t:g}%" if percent else f"{t:g}" for t in ticks],
    }


def _explain(figure: go.Figure, series: Sequence[Series], base: pd.Series | None, marked: int | None) -> None:
    """Legend entries that belong to no panel: one a series, the unedited model, the sweet spot."""
    for one in series:
        figure.add_scatter(
            x=[None],
            y=[None],
            name=one.name,
            mode="lines+markers",
            line={"color": one.colour, "dash": one.dash, "width": 1.6},
            marker={"color": one.colour, "symbol": one.symbol, "size": 7},
        )
    if base is not None:
        figure.add_scatter(
            x=[None], y=[None], name="unedited, 95 %", mode="lines",
            line={"color": COLOURS["ink"], "dash": "dash", "width": 1.2},
        )  # fmt: skip
    if marked is not None:
        figure.add_scatter(
            x=[None], y=[None], name="sweet spot", mode="markers",
            marker={"color": _SPOT, "symbol": "square", "size": 12},
        )  # fmt: skip


def size_text(table: pd.DataFrame, column: str) -> str:
    """The largest number in a column of denominators, in words where there is none."""
    known = table[column].dropna()
    return f"{int(known.max())}" if len(known) else "an unknown number of"
