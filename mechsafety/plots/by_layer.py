"""What lies in which layer: a line per position, and heat maps with layers along the x axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, Union, Unpack, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechsafety.core.arguments import several, shown
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.wording import counted
from mechsafety.plots.look import Look, drawn, wanted
from mechsafety.plots.panels import HUES
from mechsafety.plots.style import AROUND, DIVERGING, styled
from mechsafety.plots.traces import in_legend, stacked

if TYPE_CHECKING:
    from torch import Tensor

NumbersLike: TypeAlias = Union[Sequence[Sequence[float | None]], np.ndarray, pd.DataFrame, "Tensor"]
"""Numbers [row, column]."""

_MOST_TICKS = 20


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
    values: NumbersLike,
    *,
    x: Sequence[int | str] | None = None,
    y: Sequence[int | str] | None = None,
    titles: tuple[str, str, str] = ("", "", ""),
    subtitle: str = "",
    bounds: tuple[float, float] | None = None,
    **_look: Unpack[Look],
) -> go.Figure:
    """Numbers by row and column, the first row on top; grey where there is none.

    Arguments:
        values: Numbers [row, column]: lists, an array, a tensor or a data frame; NaN and None are missing.
        x: Name of each column, by default those of a data frame, else 0, 1, ...
        y: Name of each row, likewise.
        titles: Those of the x axis, the y axis and the scale.
        subtitle: Text under the title.
        bounds: Lowest and highest number of the scale, by default symmetric around 0.

    Returns:
        A plotly figure.

    Raises:
        MechsafetyError: For what is no table of numbers, and for names that are more or fewer than rows and columns.

    Example:
        >>> figure = ms.plots.heat_map(
        ...     [[0.9, 0.1], [0.2, 0.8]], x=[1, 2], y=["harmful", "harmless"],
        ...     titles=("layer", "prompts", "projection"),
        ...     title="Projection", subtitle="two layers", width=420, height=300,
        ... )
        >>> figure.data[0].type, figure.layout.width
        ('heatmap', 420)
    """
    numbers = _numbers(values)
    frame = cast("pd.DataFrame", values) if isinstance(values, pd.DataFrame) else pd.DataFrame(numbers)
    across = _named(frame.columns if x is None else x, numbers.shape[1], "x", "column")
    down = _named(frame.index if y is None else y, numbers.shape[0], "y", "row")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise MechsafetyError(f"bounds are {bounds[0]:g} and {bounds[1]:g}: the lower one comes first")
    return number_map(
        numbers.tolist(), x=across, y=down, titles=titles, title="", subtitle=subtitle, bounds=bounds
    )


def _numbers(values: object) -> np.ndarray:
    """Numbers [row, column]; NaN where one is missing or infinite."""
    wanted = "numbers [row, column] are needed: lists of equal length, an array, a tensor or a data frame"
    plain = values.detach().cpu().double().numpy() if hasattr(values, "detach") else values  # type: ignore[attr-defined]
    try:
        found = np.array(plain, dtype=float)
    except (TypeError, ValueError):
        raise MechsafetyError(f"values is {shown(values)}; {wanted}") from None
    if found.ndim != 2 or not found.size:
        raise MechsafetyError(f"values is {shown(values)}; {wanted}")
    return np.where(np.isfinite(found), found, np.nan)


def _named(names: Iterable[object], size: int, what: str, of: str) -> list[str]:
    found = [str(name) for name in several(names)]
    if len(found) != size:
        raise MechsafetyError(f"{what} has {counted(len(found), 'name')} for {counted(size, of)}")
    return found


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
            x=list(range(len(x))),
            y=list(range(len(y))),
            text=[[f"{name}, {column}" for column in x] for name in y],
            customdata=shown if shown is not None else values,
            zmin=low,
            zmax=high,
            colorscale=DIVERGING,
            colorbar={"title": {"text": titles[2], "side": "right"}, "thickness": 14},
            hovertemplate="%{text}: %{customdata:.3f}<extra></extra>",
        )
    )
    every = max(1, -(-len(x) // _MOST_TICKS))
    figure.update_xaxes(
        title_text=titles[0],
        tickvals=list(range(0, len(x), every)),
        ticktext=[str(column) for column in x[::every]],
        range=[-0.5, len(x) - 0.5],  # also where no number is known
        showgrid=False,
    )
    height = height or AROUND + max(60, min(26 * len(y), 1200))
    area = (wanted().get("height") or height) - AROUND
    step = max(1, -(-len(y) * 16 // max(area, 16)))  # a line of text takes 16 pixels
    ticks = list(range(0, len(y), step))
    figure.update_yaxes(
        title_text=titles[1],
        tickvals=ticks,
        ticktext=[y[row] for row in ticks],
        range=[len(y) - 0.5, -0.5],
        automargin=True,
        showgrid=False,
    )
    figure.update_layout(plot_bgcolor="#DDDDDD")
    return styled(figure, title, subtitle, width=width, height=height)
