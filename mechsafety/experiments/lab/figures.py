"""Figures of a lab run: the claims with their numbers, and what every model answers to every kind of input."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.experiments.lab.findings import KINDS, TUNINGS
from mechsafety.plots.style import COLOURS, legend_at_foot, styled

_HELD = {"held": COLOURS["refusal"], "not held": COLOURS["compliance"], "reported": "#D9D9D9"}
_READINGS = {"correct": ("answered correctly", "compliance"), "refused": ("refused", "refusal")}


def lab_figures(cases: pd.DataFrame, thresholds: pd.DataFrame) -> dict[str, go.Figure]:
    """Every figure, by file name. The tables are those of :class:`LabResult`."""
    return {"lab-claims": claims_figure(thresholds), "lab-outcomes": outcomes_figure(cases)}


def claims_figure(thresholds: pd.DataFrame) -> go.Figure:
    """One row per bound, one column per seed: the number, coloured by whether the bound was met."""
    rows = thresholds.assign(
        name=[
            f"{n}  {TUNINGS.get(m, 'pretrained')}: {what} ({bound})"
            for n, m, what, bound in thresholds[["number", "model", "what", "bound"]].itertuples(index=False)
        ],
        state=[_state(held) for held in thresholds["held"]],
    ).sort_values("number", kind="stable")
    names = list(dict.fromkeys(rows["name"]))
    seeds = list(dict.fromkeys(rows["seed"]))
    figure = go.Figure()
    for state, colour in _HELD.items():
        part = rows[rows["state"] == state]
        figure.add_scatter(
            x=[f"seed {s}" for s in part["seed"]],
            y=part["name"],
            mode="markers+text",
            marker={"symbol": "square", "size": 19, "color": colour},
            text=[f"{value:.3g}" for value in part["value"]],
            textposition="middle right",
            textfont={"size": 12},
            name=state,
            hovertemplate="%{y}<br>%{x}: %{text}<extra></extra>",
        )
    bounds = rows[rows["state"] != "reported"]
    met = int((bounds["state"] == "held").sum())
    figure.update_xaxes(
        type="category",
        categoryorder="array",
        categoryarray=[f"seed {s}" for s in seeds],
        side="top",
        range=[-0.3, len(seeds) - 0.3],
    )
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=names[::-1], ticklabelstandoff=8, showgrid=True
    )
    styled(
        figure,
        f"{met} of {len(bounds)} bounds on safety fine-tuning were met",
        "each square one bound in one seed, the measured number beside it",
        width=1000,
        height=170 + 25 * len(names),
    )
    figure.update_yaxes(range=[-0.6, len(names) - 0.4])
    # The names take half of the width, so that the title begins at the edge of the picture.
    figure.update_layout(margin={"l": 520, "t": 120, "b": 60}, title={"xref": "container", "x": 0.02})
    return legend_at_foot(figure)


def outcomes_figure(cases: pd.DataFrame) -> go.Figure:
    """One panel per model, one place per kind of input and text class: shares answered and refused in every seed."""
    models = [name for name in ("base", "benign", "ssft", "dpo", "unlearn") if name in set(cases["model"])]
    titles = [TUNINGS.get(name, "pretrained").capitalize().replace("Dpo", "DPO") for name in models]
    figure = make_subplots(
        rows=len(models), cols=1, shared_xaxes=True, vertical_spacing=0.035, subplot_titles=titles
    )
    known = cases[cases["kind"].isin(KINDS)]
    places = [
        _place(kind, text_class)
        for kind in KINDS
        for text_class in dict.fromkeys(known.loc[known["kind"] == kind, "text_class"])
    ]
    for number, model in enumerate(models, start=1):
        rows = known[known["model"] == model]
        for reading, (label, colour) in _READINGS.items():
            figure.add_scatter(
                x=[_place(k, c) for k, c in zip(rows["kind"], rows["text_class"], strict=True)],
                y=rows[reading],
                mode="markers",
                marker={
                    "size": 9,
                    "color": COLOURS[colour],
                    "symbol": "circle" if reading == "correct" else "x",
                },
                opacity=0.75,
                name=label,
                legendgroup=reading,
                showlegend=number == 1,
                row=number,
                col=1,
            )
        figure.update_yaxes(range=[-0.06, 1.06], tickformat=".0%", tickvals=[0, 0.5, 1], row=number, col=1)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=places, showgrid=True)
    figure.update_xaxes(tickangle=-35, row=len(models), col=1)
    for annotation in figure.layout.annotations:
        annotation.update(x=0, xanchor="left", font={"size": 13})
    direct = cases[cases["model"].isin(["ssft", "dpo", "unlearn"]) & (cases["kind"] == "unsafe")]["correct"]
    through = cases[
        cases["model"].isin(["ssft", "dpo", "unlearn"]) & cases["kind"].isin(["co_task", "co_text"])
    ]
    styled(
        figure,
        f"Direct unsafe inputs are answered {direct.mean():.0%} of the time, attacks that compete "
        f"{through['correct'].mean():.0%}",
        "share of inputs, one mark per seed; the class of the text in brackets; what is neither answered nor "
        "refused is something else",
        width=1000,
        height=190 + 165 * len(models),
    )
    return legend_at_foot(figure.update_layout(margin={"b": 190}))


def _state(held: object) -> str:
    if held is None or pd.isna(held):  # type: ignore[arg-type]
        return "reported"
    return "held" if bool(held) else "not held"


def _place(kind: str, text_class: str) -> str:
    return f"{KINDS[kind]} ({text_class})"
