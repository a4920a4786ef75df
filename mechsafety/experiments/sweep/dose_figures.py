"""The figure of dose curves: refusal and damage side by side."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.plots.style import COLOURS, styled, whiskers

_LEAST_KL = 0.01  # nats: the unedited model's 0 is drawn here on the logarithmic axis
_TICKS = [0.01, 0.1, 1, 3, 10, 30, 100, 1000, 10000]
_DOSE_MEASURES = (
    ("refused", "harmful refused"),
    ("degenerate", "degenerate answers"),
    ("kl", "KL (nats)"),
    ("perplexity", "perplexity, times unedited"),
)
_DOSE_TITLES = {
    "alpha": "strength alpha",
    "directions": "number of directions",
    "layers": "layers edited",
}


def dose_figure(doses: pd.DataFrame, *, name: str) -> go.Figure:
    """Refusal, degenerate share, KL and perplexity against the dose, with a random control."""
    families = list(dict.fromkeys(doses["family"]))
    figure = make_subplots(
        rows=len(_DOSE_MEASURES),
        cols=len(families),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.045,
        horizontal_spacing=0.04,
        subplot_titles=[_DOSE_TITLES[f] for f in families],
    )
    unedited = doses[doses["dose"] == "unedited"].iloc[0]
    for column, family in enumerate(families, start=1):
        for control in (False, True):
            rows = doses[(doses["family"] == family) & (doses["control"] == control)]
            rows = rows[rows["dose"] != "unedited"]
            if family != "layers":
                rows = pd.concat([doses[(doses["family"] == family) & (doses["dose"] == "unedited")], rows])
            x = ["0" if d == "unedited" else d.replace(" ", "<br>", 1) for d in rows["dose"]]
            for row, (measure, _) in enumerate(_DOSE_MEASURES, start=1):
                y = rows[measure] / unedited["perplexity"] if measure == "perplexity" else rows[measure]
                intervals = (
                    whiskers(rows["refused"], rows["low"], rows["high"], thickness=1.2, width=4.0)
                    if measure == "refused" and not control
                    else None
                )
                figure.add_scatter(
                    x=x,
                    y=y.clip(lower=_LEAST_KL) if measure == "kl" else y,
                    error_y=intervals,
                    name="random control" if control else "refusal direction",
                    legendgroup=str(control),
                    showlegend=row == 1 and column == 1,
                    mode="markers" if family == "layers" else "lines+markers",
                    line={
                        "color": COLOURS["degenerate"] if control else COLOURS["line"],
                        "dash": "dot" if control else "solid",
                        "width": 2,
                    },
                    marker={"symbol": "x" if control else "circle", "size": 8},
                    hovertemplate="%{x}: %{y:.3g}<extra></extra>",
                    row=row,
                    col=column,
                )
    for row, (measure, label) in enumerate(_DOSE_MEASURES, start=1):
        figure.update_yaxes(title_text=label, title_font={"size": 12}, row=row, col=1)
        if measure in ("refused", "degenerate"):
            figure.update_yaxes(range=[-0.05, 1.05], tickformat=".0%", row=row)
        else:
            values = doses[measure] / (unedited["perplexity"] if measure == "perplexity" else 1.0)
            least = _LEAST_KL if measure == "kl" else 1.0
            low, high = (math.log10(max(v, least)) for v in (values.min(), values.max()))
            figure.update_yaxes(
                type="log", range=[low - 0.15, max(high, low + 1) + 0.15], tickvals=_TICKS, row=row
            )
    figure.update_xaxes(type="category", tickfont={"size": 11})
    full = doses[(doses["family"] == "alpha") & (doses["dose"] == "1")].set_index("control")
    title = f"{name}: refusal against how much is removed"
    if len(full):
        title = (
            f"{name}: refusal {unedited['refused']:.0%}, {full.loc[False, 'refused']:.0%} without the direction, "
            f"{full.loc[True, 'refused']:.0%} without a random one"
        )
    return styled(
        figure,
        title,
        f"{int(unedited['n'])} harmful and {int(unedited['n_harmless'])} harmless report prompts; whiskers: 95 % "
        "Wilson intervals.",
        width=340 + 300 * len(families),
        height=860,
    )
