"""What lies in which layer: a line per position, and heat maps with layers along the x axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import pandas as pd
import plotly.graph_objects as go

from mechsafety.plots.look import Look, drawn, wanted
from mechsafety.plots.panels import HUES
from mechsafety.plots.style import AROUND, DIVERGING, styled
from mechsafety.plots.traces import in_legend, stacked


def layer_lines(
    table: pd.DataFrame,
    measures: Mapping[str, str],
    *,
    title: str,
    subtitle: str,
    width: int,
    height: int,
) -> go.Figure:
    """Columns of ``table`` by layer, a panel for each of ``measures`` (column: heading), a line per position."""
    figure = stacked(list(measures.values()), gap=0.09)
    for number, (position, rows) in enumerate(table.groupby("position", sort=False)):
        colour = HUES[number % len(HUES)]
        for row, column in enumerate(measures, start=1):
            figure.add_scatter(
                x=rows["layer"],
                y=rows[column],
                name=f"position {position}",
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 5},
                hovertemplate=f"position {position}, layer %{{x}}: %{{y:.3g}}<extra></extra>",
                **in_legend(f"position {position}", first=row == 1, row=row, col=1),
            )
    figure.update_xaxes(title_text="layer (input of block)", row=len(measures), col=1)
    return styled(figure, title, subtitle, width=width, height=height)


@drawn
def heat_map(
    values: Sequence[Sequence[float]],
    *,
    x: Sequence[int | str],
    y: Sequence[str],
    titles: tuple[str, str, str] = ("", "", ""),
    subtitle: str = "",
    bounds: tuple[float, float] | None = None,
    **_look: Unpack[Look],
) -> go.Figure:
    """Numbers by row and column, the first row on top; grey where there is none.

    ``titles`` are those of the x axis, the y axis and the scale. Without ``bounds`` the scale is symmetric around 0.

    Example:
        >>> figure = ms.plots.heat_map(
        ...     [[0.9, 0.1], [0.2, 0.8]], x=[1, 2], y=["harmful", "harmless"],
        ...     titles=("layer", "prompts", "projection"),
        ...     title="Projection", subtitle="two layers", width=420, height=300,
        ... )
        >>> figure.data[0].type, figure.layout.width
        ('heatmap', 420)
    """
    return number_map(values, x=x, y=y, titles=titles, title="", subtitle=subtitle, bounds=bounds)


def number_map(
    values: Sequence[Sequence[float]],
    *,
    x: Sequence[int | str],
    y: Sequence[str],
    titles: tuple[str, str, str],
    title: str,
    subtitle: str,
    width: int = 900,
    height: int | None = None,
    bounds: tuple[float, float] | None = None,
    shown: Sequence[Sequence[float]] | None = None,
) -> go.Figure:
    """:func:`heat_map` with a title of its own; ``shown`` are the numbers on hovering where not the ``values``."""
    widest = max((abs(v) for line in values for v in line if v == v), default=1.0) or 1.0
    low, high = bounds or (-widest, widest)
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(map(str, x)),
            y=list(range(len(y))),
            text=[[name] * len(x) for name in y],
            customdata=shown if shown is not None else values,
            zmin=low,
            zmax=high,
            colorscale=DIVERGING,
            colorbar={"title": {"text": titles[2], "side": "right"}, "thickness": 14},
            hovertemplate="%{text}, %{x}: %{customdata:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text=titles[0], type="category", showgrid=False, nticks=20)
    height = height or AROUND + max(60, min(26 * len(y), 1200))
    area = (wanted().get("height") or height) - AROUND
    step = max(1, -(-len(y) * 16 // max(area, 16)))  # a line of text takes 16 pixels
    ticks = list(range(0, len(y), step))
    figure.update_yaxes(
        title_text=titles[1],
        tickvals=ticks,
        ticktext=[y[row] for row in ticks],
        autorange="reversed",
        automargin=True,
        showgrid=False,
    )
    figure.update_layout(plot_bgcolor="#DDDDDD")
    return styled(figure, title, subtitle, width=width, height=height)
