"""Figures of a lab run: the claims with their numbers, and what every model answers to every kind of input."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.experiments.lab.findings import KINDS, TUNINGS
from mechsafety.plots.style import AROUND, COLOURS, styled
from mechsafety.plots.text import text_width

_STATES = {
    "met": COLOURS["refusal"],
    "not met": COLOURS["compliance"],
    "not measurable": COLOURS["degenerate"],
    "reported": "#D9D9D9",
}
_BEYOND = {"yes": COLOURS["refusal"], "no": COLOURS["compliance"], "not measurable": COLOURS["degenerate"]}
_READINGS = {"correct": ("answered correctly", "compliance"), "refused": ("refused", "refusal")}


def lab_figures(
    cases: pd.DataFrame, thresholds: pd.DataFrame, controls: pd.DataFrame
) -> dict[str, go.Figure]:
    """Every figure, by file name. The tables are those of :class:`LabResult`."""
    return {
        "lab-claims": claims_figure(thresholds),
        "lab-controls": controls_figure(controls),
        "lab-outcomes": outcomes_figure(cases),
    }


def claims_figure(thresholds: pd.DataFrame) -> go.Figure:
    """One row per bound, one column per seed: the number, coloured by the state of the bound."""
    names = [
        f"{n}  {_model(m)}: {what} ({bound})"
        for n, m, what, bound in thresholds[["number", "model", "what", "bound"]].itertuples(index=False)
    ]
    return _squares(
        thresholds.assign(name=names, text=[f"{value:.3g}" for value in thresholds["value"]]),
        _STATES,
        title="Numbers of the claims beside their bounds, by seed",
        subtitle="each square one number in one seed",
    )


def controls_figure(controls: pd.DataFrame) -> go.Figure:
    """One row per reading and control, one column per seed: the reading and the control's draws."""
    names = [
        f"{n}  {_model(m)}: {what} | {control}"
        for n, m, what, control in controls[["number", "model", "what", "control"]].itertuples(index=False)
    ]
    text = [
        f"{value:.3g} | {low:.3g} to {high:.3g}"
        for value, low, high in controls[["value", "low", "high"]].itertuples(index=False)
    ]
    return _squares(
        controls.assign(name=names, text=text, state=controls["beyond"]),
        _BEYOND,
        title="Readings of the claims beside their controls, by seed",
        subtitle="the reading | the middle 95 % of the control's draws; coloured by whether it goes beyond them",
    )


def _model(name: object) -> str:
    return TUNINGS.get(str(name), "pretrained")


def _squares(table: pd.DataFrame, states: Mapping[str, str], *, title: str, subtitle: str) -> go.Figure:
    """A square and a ``text`` for each ``name`` and seed, coloured by ``state``."""
    rows = table.sort_values("number", kind="stable")
    names, seeds = list(dict.fromkeys(rows["name"])), list(dict.fromkeys(rows["seed"]))
    figure = go.Figure()
    for state, colour in states.items():
        part = rows[rows["state"] == state]
        figure.add_scatter(
            x=[f"seed {s}" for s in part["seed"]],
            y=part["name"],
            mode="markers+text",
            marker={"symbol": "square", "size": 19, "color": colour},
            text=part["text"],
            textposition="middle right",
            textfont={"size": 12},
            name=state,
            hovertemplate="%{y}<br>%{x}: %{text}<extra></extra>",
        )
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
    row = 25 if max(text_width(name, 12) for name in names) < 330 else 38  # pixels, for one line or for two
    return styled(figure, title, subtitle, width=1000, height=AROUND + row * len(names))


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
        annotation.update(x=0, xanchor="left")
    return styled(
        figure,
        "Inputs answered correctly and refused, by model and kind of input",
        "share of inputs, one mark per seed; the class of the text in brackets; what is neither is something else",
        width=1000,
        height=190 + 165 * len(models),
    )


def _place(kind: str, text_class: str) -> str:
    return f"{KINDS[kind]} ({text_class})"
