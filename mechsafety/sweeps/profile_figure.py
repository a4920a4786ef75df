"""The picture of a layer profile."""

from __future__ import annotations

from typing import Unpack

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.core.errors import MechsafetyError
from mechsafety.plots.columns import Columns
from mechsafety.plots.look import Look, drawn_from
from mechsafety.plots.style import COLOURS, require_rows, require_single, styled

_ROUNDING = 1e-3


@drawn_from(
    profile=Columns(
        places="layer",
        numbers="relative_norm auroc auroc_low auroc_high cosine_previous cosine_selected explained_1 explained_2 "
        "explained_3 explained_4 explained_5",
    )
)
def profile_figure(
    profile: pd.DataFrame, *, name: str = "model", selected: int | None = None, **_look: Unpack[Look]
) -> go.Figure:
    """By layer: length, separation, steadiness and explained variance on held-out prompts.

    ``selected`` is the layer that the profile was made with, None for none.

    Raises :class:`MechsafetyError` for a layer that the profile lacks, and for a table of several profiles.

    Example:
        >>> run = ms.load_run("runs/sweep")
        >>> figure = ms.plots.profile_figure(run.tables["profile"], name="smollm2-135m")
        >>> figure.layout.title.text
        'smollm2-135m: profile of the direction by layer'
    """
    require_single(require_rows(profile, "a profile", profile), "layer")
    chosen = profile if selected is None else profile[profile["layer"] == selected]
    require_rows(chosen, f"layer {selected}", profile, "layer")
    if selected is not None and abs(float(chosen["cosine_selected"].iloc[0]) - 1) > _ROUNDING:
        raise MechsafetyError(
            f"this profile was not made with layer {selected}, whose direction would have cosine 1 with itself: name "
            "the layer that profile_layers was given as selected"
        )
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_xaxes=True,
        vertical_spacing=0.12,
        horizontal_spacing=0.11,
        subplot_titles=[
            "length of the direction, share of the stream's",
            "separation of held-out prompts",
            "cosine of directions",
            "variance along the first components",
        ],
    )
    x = profile["layer"]
    ink, blue, orange = COLOURS["ink"], COLOURS["line"], COLOURS["harmful"]

    def line(row: int, column: int, y: str, label: str, colour: str, dash: str = "solid") -> None:
        look = {"color": colour, "width": 2, "dash": dash}
        where = {
            "hovertemplate": "layer %{x}: %{y:.3f}<extra>" + label + "</extra>",
            "row": row,
            "col": column,
        }
        figure.add_scatter(x=x, y=profile[y], name=label, mode="lines", line=look, **where)

    line(1, 1, "relative_norm", "relative length", ink)
    band = profile.dropna(subset=["auroc"])
    figure.add_scatter(
        x=[*band["layer"], *band["layer"][::-1]],
        y=[*band["auroc_high"], *band["auroc_low"][::-1]],
        name="AUROC, 95 % interval",
        mode="lines",
        line={"width": 0},
        **{"fill": "toself", "fillcolor": "rgba(0,114,178,0.18)", "hoverinfo": "skip", "row": 1, "col": 2},
    )
    line(1, 2, "auroc", "AUROC", blue)
    line(2, 1, "cosine_previous", "with the layer before", orange)
    if selected is not None:
        line(2, 1, "cosine_selected", f"with layer {selected}", COLOURS["harmless"], "dash")
    shades = ["#08306B", "#2171B5", "#6BAED6", "#9ECAE1", "#C6DBEF"]
    for k, shade in enumerate(shades, start=1):
        line(2, 2, f"explained_{k}", f"component {k}", shade)
    if selected is not None:
        figure.add_vline(x=selected, line={"color": ink, "dash": "dash", "width": 1.1}, row="all", col="all")
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(range=[min(0.4, float(profile["auroc_low"].min()) - 0.02), 1.02], row=1, col=2)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=2, col=2)
    figure.update_xaxes(title_text="layer", row=2)
    return styled(
        figure,
        f"{name}: profile of the direction by layer",
        "Prompts the directions were not found on."
        + (" Dashed: selected layer." if selected is not None else ""),
        width=940,
        height=620,
    )
