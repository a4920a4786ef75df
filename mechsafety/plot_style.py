"""How every figure looks: colours, fonts, and the place of titles and legends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

# Okabe and Ito's palette (jfly.uni-koeln.de/color), which survives grey printing better than hues alone.
COLOURS = {
    "refusal": "#0072B2",
    "compliance": "#E69F00",
    "degenerate": "#8C8C8C",
    "unparsed": "#E5E5E5",
    "harmful": "#D55E00",
    "harmless": "#009E73",
    "line": "#0072B2",
    "ink": "#222222",
}
FONT = "Inter, Helvetica Neue, Arial, DejaVu Sans, sans-serif"
HEAT = [[0.0, "#F7FBFF"], [0.5, "#6BAED6"], [1.0, "#08306B"]]
DIVERGING = [[0.0, "#2166AC"], [0.5, "#F7F7F7"], [1.0, "#B2182B"]]


def whiskers(
    value: Sequence[float] | pd.Series,
    low: Sequence[float] | pd.Series,
    high: Sequence[float] | pd.Series,
    *,
    colour: str | None = None,
    **looks: float,
) -> dict[str, Any]:
    """An interval around each value as plotly's ``error_x`` or ``error_y``; ``looks`` are thickness and width.

    An interval that ends on the far side of its value (of a clipped estimate) has no length there.
    """
    middle, below, above = (np.asarray(ends, dtype=float) for ends in (value, low, high))
    bars: dict[str, Any] = {
        "type": "data",
        "symmetric": False,
        "array": np.maximum(above - middle, 0),
        "arrayminus": np.maximum(middle - below, 0),
        **looks,
    }
    return bars if colour is None else bars | {"color": colour}


def legend_at_foot(figure: go.Figure) -> go.Figure:
    """Put the legend at the foot of the picture, below the axis titles, whatever its height."""
    return figure.update_layout(legend={"yref": "container", "y": 0.01, "yanchor": "bottom"})


def short_name(spec: str) -> str:
    """A system's name without its owner, at most 32 characters."""
    name = spec.rpartition("/")[2] if "/" in spec and "+" not in spec else spec
    return name if len(name) <= 32 else f"{name[:14]}…{name[-17:]}"


def styled(figure: go.Figure, title: str, subtitle: str, *, width: int, height: int) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        title={
            "text": title,
            "subtitle": {"text": subtitle, "font": {"size": 12, "color": "#555555"}},
            "x": 0.0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 14},
            "font": {"size": 17},
        },
        font={"family": FONT, "size": 13, "color": COLOURS["ink"]},
        legend={"orientation": "h", "yanchor": "top", "y": -0.14, "x": 0, "xanchor": "left"},
        margin={"l": 70, "r": 30, "t": 110, "b": 90},
        modebar={"orientation": "v"},
        width=width,
        height=height,
    )
    figure.update_annotations(font_family=FONT)
    return figure
