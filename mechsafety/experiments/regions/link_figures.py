"""Figures of safety regions and the refusal direction: what removed weights wrote on it, and both edits together."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.experiments.regions.findings import METHOD_NAMES
from mechsafety.plots.panels import HARMFUL, HARMLESS, HUES, PROJECTION, WIDTH, log_axis, told_size
from mechsafety.plots.style import COLOURS, legend_at_foot, styled, whiskers, wrapped


def links_figure(links: pd.DataFrame) -> go.Figure:
    """How much of what was removed wrote on the refusal direction, by layer; a panel a removal, random ones dotted."""
    groups = list(links.groupby(["removal", "method"], sort=False))
    kinds = list(dict.fromkeys(links["kind"]))
    figure = make_subplots(
        rows=len(groups),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=min(0.09, 0.3 / len(groups)),
        subplot_titles=[
            f"{removal} ({METHOD_NAMES.get(str(method), method)})" for (removal, method), _ in groups
        ],
    )

    def line(row: int, x: pd.Series, y: pd.Series, name: str, colour: str, dash: str) -> None:
        figure.add_scatter(
            x=x,
            y=y,
            name=name,
            legendgroup=name,
            showlegend=row == 1,
            mode="lines+markers" if dash == "solid" else "lines",
            line={"color": colour, "width": 1.8 if dash == "solid" else 1.3, "dash": dash},
            marker={"size": 5},
            hovertemplate="layer %{x}: %{y:.3%}<extra>" + name + "</extra>",
            row=row,
            col=1,
        )

    for row, (_, part) in enumerate(groups, start=1):
        for kind, colour in zip(kinds, HUES, strict=False):
            rows = part[part["kind"] == kind].sort_values("layer")
            line(row, rows["layer"], rows["share_removed_on_direction"], kind, colour, "solid")
            line(row, rows["layer"], rows["random"], f"{kind}, random removal", colour, "dot")
        layers = part.drop_duplicates("layer").sort_values("layer")
        line(row, layers["layer"], layers["chance"], "random direction", COLOURS["ink"], "dash")
    drawn = [v for name in ("share_removed_on_direction", "random", "chance") for v in links[name]]
    figure.update_yaxes(log_axis(drawn, percent=True))
    figure.update_yaxes(title_text="share", title_font={"size": 12})
    figure.update_xaxes(title_text="layer", row=len(groups), col=1)
    middle = links["share_removed_on_direction"].median() / links["random"].median()
    title = "What the removed weights write on the refusal direction"
    if middle == middle:
        title = f"Removed weights write {middle:.1f} times as much on the refusal direction as random ones (median)"
    return legend_at_foot(
        styled(
            figure,
            title,
            "Share of the removed output's energy that lies on the direction; logarithmic. Dotted: matched random "
            "removals.",
            width=WIDTH,
            height=240 + 190 * len(groups),
        )
    ).update_annotations(font_size=13)


def link_effects_figure(link_effects: pd.DataFrame) -> go.Figure:
    """What the model does with the region removed, the direction ablated, and both; a row a state."""
    states = list(dict.fromkeys(link_effects["state"]))[::-1]
    panels = [p for p in (*HARMFUL, *HARMLESS, PROJECTION) if link_effects[p.column].notna().any()]
    figure = make_subplots(
        rows=1,
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.02,
        subplot_titles=[panel.title.replace(": ", ":<br>") for panel in panels],
    )
    for column, panel in enumerate(panels, start=1):
        colour = COLOURS["harmful" if panel in HARMFUL else "harmless" if panel in HARMLESS else "ink"]
        ends = (link_effects[f"{panel.column}_{end}"] for end in ("low", "high"))
        figure.add_scatter(
            x=link_effects[panel.column],
            y=[states.index(s) for s in link_effects["state"]],
            error_x=whiskers(link_effects[panel.column], *ends, colour=colour, thickness=1.4, width=3.0),
            mode="markers",
            marker={"color": colour, "size": 8},
            customdata=link_effects["state"],
            hovertemplate="%{customdata}: %{x:.0%}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
    figure.update_xaxes(
        range=[-0.06, 1.06],
        zeroline=False,
        tickvals=[0, 0.5, 1],
        ticktext=["0", "50%", "100%"],
        tickfont={"size": 11},
    )
    if PROJECTION in panels:
        figure.update_xaxes(ticktext=["0", "0.5", "1"], col=len(panels))
    figure.update_yaxes(
        tickvals=list(range(len(states))),
        ticktext=[wrapped(s) for s in states],
        range=[-0.6, len(states) - 0.4],
        automargin=True,
        zeroline=False,
    )
    refused = link_effects.groupby("state", sort=False)["refused"].mean().dropna()
    said = f": refusals from {refused.min():.0%} to {refused.max():.0%}" if len(refused) else ""
    figure = styled(
        figure,
        f"Region removed, direction ablated, and both{said}",
        f"{told_size(link_effects, 'harmful_n')} harmful and {told_size(link_effects, 'harmless_n')} harmless prompts. "
        "Whiskers: 95 % intervals. AUROC: of the projection on the direction.",
        width=WIDTH,
        height=230 + 44 * len(states),
    )
    return figure.update_layout(margin={"b": 50}).update_annotations(font_size=13)
