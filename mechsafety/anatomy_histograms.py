"""Histograms of an anatomy: tau of every prompt by layer, and the sensitivity of the first token."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.anatomy_findings import told_primes
from mechsafety.anatomy_panels import (
    GROUP_NAMES,
    GROUPS,
    MODELS,
    POSITIONS,
    SAFE,
    UNSAFE,
    columns_for,
    digits,
    finished,
    gap,
    models_in,
    rows_of,
    spread_out,
    who,
)
from mechsafety.plot_style import COLOURS
from mechsafety.region_panels import log_axis

_BINS = 26


def tau_figure(tau: pd.DataFrame, positions: str, *, separation: pd.DataFrame | None = None) -> go.Figure:
    """Histograms of tau: a row a model, a column a layer (six of many), safe and unsafe prompts and attacks."""
    models, layers = models_in(tau), spread_out(list(tau["layer"]), 6)
    figure = make_subplots(
        rows=len(models),
        cols=len(layers),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.012,
        vertical_spacing=0.05,
        column_titles=[f"layer {layer}" for layer in layers],
        row_titles=models,
    )
    kinds = _kinds(tau)
    seen: list[str] = []
    for column, layer in enumerate(layers, start=1):
        here = tau["layer"] == layer
        edges = np.histogram_bin_edges(tau.loc[here, "tau"], bins=_BINS)
        for row, model in enumerate(models, start=1):
            rows = here & (tau["model"] == model)
            for kind, colour in GROUPS.items():
                values = tau.loc[rows & (kinds == kind), "tau"]
                if len(values):
                    _steps(
                        figure, values, edges, GROUP_NAMES[kind], colour, row, column,
                        filled=kind in (SAFE, UNSAFE), new=kind not in seen,
                    )  # fmt: skip
                    seen.append(kind)
            figure.add_vline(
                x=0, line={"color": COLOURS["ink"], "width": 1, "dash": "dot"}, row=row, col=column
            )  # pyright: ignore[reportArgumentType]
        figure.update_xaxes(title_text="tau", nticks=4, row=len(models), col=column)
    figure.update_yaxes(tickformat=".0%", nticks=4, rangemode="tozero")
    figure.update_yaxes(title_text="share of group", col=1)
    title = f"tau {POSITIONS[positions]}: how far safe and unsafe prompts lie apart"
    if separation is not None and len(separation):
        title = f"tau {POSITIONS[positions]}, last layer: d' {told_primes(separation, positions)}"
    where = "answer tokens" if positions == "output" else "the last prompt token"
    return finished(
        figure,
        title,
        f"Activations at {where}. tau = distance to the unsafe centroid less that to the safe one; right of 0 is the "
        "safe side.<br>A column shares its axis. Attacks are parted by what the model in the row answered.",
        rows=len(models),
        named=[GROUP_NAMES[kind] for kind in dict.fromkeys(seen)],
    )


def _kinds(tau: pd.DataFrame) -> pd.Series:
    """``safe``, ``unsafe``, and attacks as ``success`` or ``failed``; unparsed answers are neither."""
    outcome = tau["label"].map({"compliance": "success", "refusal": "failed", "degenerate": "failed"})
    return tau["group"].where(tau["group"].isin([SAFE, UNSAFE]), outcome)


def _steps(
    figure: go.Figure,
    values: pd.Series,
    edges: np.ndarray,
    name: str,
    colour: str,
    row: int,
    column: int,
    *,
    filled: bool,
    new: bool,
    dash: str = "solid",
) -> None:
    """The outline of a histogram as shares; ``filled`` below."""
    shares = np.histogram(values, edges)[0] / len(values)
    looks = {"fill": "tozeroy", "fillcolor": _pale(colour)} if filled else {}
    figure.add_scatter(
        x=np.repeat(edges, 2)[1:-1] if len(edges) > 1 else edges,
        y=np.repeat(shares, 2),
        mode="lines",
        line={"color": colour, "width": 1.3, "dash": dash},
        name=name,
        legendgroup=name,
        showlegend=new,
        hovertemplate="%{x:.3g}: %{y:.0%}<extra>" + name + "</extra>",
        row=row,
        col=column,
        **looks,
    )


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.28)"


def sensitivity_figure(norms: pd.DataFrame, names: Names) -> go.Figure:
    """Histograms of the local Lipschitz constant, a panel a group, on a logarithmic axis, with medians below."""
    groups, models = list(dict.fromkeys(norms["group"])), models_in(norms)
    known = norms[norms["norm"] > 0]
    columns = columns_for(len(groups))
    n_rows = math.ceil(len(groups) / columns)
    figure = make_subplots(
        rows=n_rows,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=gap(n_rows),
        subplot_titles=[GROUP_NAMES.get(g, f"attacks: {g}") for g in groups],
    )
    edges = np.geomspace(known["norm"].min() * 0.999, known["norm"].max() * 1.001, _BINS)
    medians = known.groupby(["model", "group"])["norm"].median()
    for place, group in enumerate(groups):
        row, column = place // columns + 1, place % columns + 1
        for order, model in enumerate(models):
            values = rows_of(known, model=model, group=group)["norm"]
            if values.empty:
                continue
            colour, dash = MODELS[model]
            _steps(
                figure, values, edges, who(model, names), colour, row, column,
                filled=model != "control", new=place == 0, dash=dash,
            )  # fmt: skip
            figure.add_scatter(
                x=[medians[(model, group)]],
                y=[-0.045 * (order + 1)],
                mode="markers",
                marker={"color": colour, "symbol": "diamond", "size": 8},
                showlegend=False,
                hovertemplate="median %{x:.3g}<extra>" + model + "</extra>",
                row=row,
                col=column,
            )
        if place + columns >= len(groups):
            figure.update_xaxes(title_text="gradient norm (logits per unit)", row=row, col=column)
    figure.update_xaxes(log_axis([float(edges[0]), float(edges[-1])], percent=False))
    figure.update_yaxes(tickformat=".0%", nticks=5)
    figure.update_yaxes(title_text="share of prompts", col=1)
    said = [
        f"{m} {digits(float(medians[(m, UNSAFE)]))}"
        for m in ("tuned", "base", "control")
        if (m, UNSAFE) in medians
    ]
    return finished(
        figure,
        f"Sensitivity of the first token, median over unsafe prompts: {', '.join(said) or 'none'}",
        "Norm of the gradient of the largest logit with respect to the prompt's embeddings. Diamonds below the axis: "
        "medians.",
        rows=n_rows,
        named=[who(model, names) for model in models],
    )
