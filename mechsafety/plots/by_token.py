"""Numbers along the tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from mechsafety.plots.panels import HUES
from mechsafety.plots.style import COLOURS, styled

_MOST_TICKS = 40


def token_curves(
    curves: Mapping[str, Sequence[float]],
    *,
    tokens: Sequence[str],
    positions: Sequence[int],
    title: str,
) -> go.Figure:
    """One curve per entry of ``curves`` over the tokens; a line stands where the answer begins."""
    figure = go.Figure()
    for number, (name, values) in enumerate(curves.items()):
        figure.add_scatter(
            x=positions,
            y=values,
            name=name,
            text=[repr(token)[1:-1] for token in tokens],
            mode="lines+markers",
            line={"color": HUES[number % len(HUES)], "width": 2},
            marker={"size": 5},
            hovertemplate="%{text} (%{x}): %{y:.3g}<extra>" + name + "</extra>",
        )
    figure.add_hline(y=0, line={"color": "#999999", "width": 1})
    if positions[-1] >= 0:
        figure.add_vline(x=-0.5, line={"color": COLOURS["ink"], "dash": "dash", "width": 1.1})
    step = -(-len(tokens) // _MOST_TICKS)
    ticks = range(0, len(tokens), step)
    figure.update_xaxes(
        title_text="token",
        tickvals=[positions[at] for at in ticks],
        ticktext=[repr(tokens[at])[1:-1][:12] for at in ticks],
        tickangle=-60,
        automargin=True,
    )
    figure.update_yaxes(title_text="projection")
    where = " Dashed: the answer begins." if positions[-1] >= 0 else ""
    return styled(figure, title, f"In the activations' own units.{where}", width=900, height=460)
