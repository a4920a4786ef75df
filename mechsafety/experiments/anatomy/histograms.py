"""Histograms of an anatomy: tau of every prompt by layer, and the sensitivity of the first token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.experiments.anatomy.findings import told_primes
from mechsafety.experiments.anatomy.panels import (
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
from mechsafety.plots.panels import log_axis
from mechsafety.plots.style import COLOURS, whiskers

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
    zeros: list[dict[str, Any]] = []
    for column, layer in enumerate(layers, start=1):
        here = tau["layer"] == layer
        edges = np.histogram_bin_edges(tau.loc[here, "tau"], bins=_BINS)
        for row, model in enumerate(models, start=1):
            rows = here & (tau["model"] == model)
            for kind, colour in GROUPS.items():
                values = tau.loc[rows & (kinds == kind), "tau"]
                if len(values):
                    _steps(
                        figure, values, edges, GROUP_NAMES[kind], colour, {"row": row, "col": column},
                        filled=kind in (SAFE, UNSAFE), new=kind not in seen,
                    )  # fmt: skip
                    seen.append(kind)
            cell: Any = figure.get_subplot(row, column)
            x, y = (axis.plotly_name.replace("axis", "") for axis in (cell.xaxis, cell.yaxis))
            zeros.append(
                {"type": "line", "xref": x, "yref": f"{y} domain", "x0": 0, "x1": 0, "y0": 0, "y1": 1}
            )
        pad = 0.04 * (edges[-1] - edges[0])
        figure.update_xaxes(range=[edges[0] - pad, edges[-1] + pad], nticks=5, col=column)
        figure.update_xaxes(title_text="tau", row=len(models), col=column)
    # All at once: plotly takes long over shapes that are added one by one.
    ink = {"color": COLOURS["ink"], "width": 1, "dash": "dot"}
    figure.update_layout(shapes=[shape | {"line": ink} for shape in zeros])
    # Said, because plotly's own range reaches far beyond shares where an area is filled to zero.
    highest = max(max(trace["y"]) for trace in figure.data)
    figure.update_yaxes(tickformat=".0%", nticks=5, range=[0, 1.06 * highest])
    figure.update_yaxes(title_text="share of group", col=1)
    title = f"tau {POSITIONS[positions]}: how far safe and unsafe prompts lie apart"
    if separation is not None and len(separation):
        title = f"tau {POSITIONS[positions]}, last layer: d' {told_primes(separation, positions)}"
    where = "answer tokens" if positions == "output" else "the last prompt token"
    return finished(
        figure,
        title,
        f"Activations at {where}. tau = distance to the unsafe centroid less that to the safe one; right of 0 is the "
        "safe side. A column shares its axis. Attacks are parted by what the model in the row answered.",
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
    where: Mapping[str, int],
    *,
    filled: bool,
    new: bool,
    dash: str = "solid",
) -> None:
    """The outline of a histogram as shares; ``filled`` below."""
    shares = np.histogram(values, edges)[0] / len(values)
    there = np.flatnonzero(shares)
    first, last = int(there[0]), int(there[-1])
    looks = {"fill": "tozeroy", "fillcolor": _pale(colour)} if filled else {}
    figure.add_scatter(
        x=np.repeat(edges[first : last + 2], 2),
        y=[0.0, *np.repeat(shares[first : last + 1], 2), 0.0],
        mode="lines",
        line={"color": colour, "width": 1.3, "dash": dash},
        name=name,
        legendgroup=name,
        showlegend=new,
        hovertemplate="%{x:.3g}: %{y:.0%}<extra>" + name + "</extra>",
        **where,
        **looks,
    )


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.28)"


def sensitivity_figure(
    norms: pd.DataFrame, names: Mapping[str, str], *, medians: pd.DataFrame | None = None
) -> go.Figure:
    """Histograms of the local Lipschitz constant, a panel a group, on a logarithmic axis, with medians below.

    ``medians`` is the table with their intervals.
    """
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
    panels = known.groupby(["group", "model"])["norm"]
    highest = max(float(np.histogram(v, edges)[0].max()) / len(v) for _, v in panels)
    found = panels.median()
    for place, group in enumerate(groups):
        where = {"row": place // columns + 1, "col": place % columns + 1}
        for order, model in enumerate(m for m in models if (group, m) in found.index):
            colour, dash = MODELS[model]
            _steps(
                figure, panels.get_group((group, model)), edges, who(model, names), colour, where,
                filled=model != "control", new=place == 0, dash=dash,
            )  # fmt: skip
            middle = found[(group, model)]
            figure.add_scatter(
                x=[middle],
                y=[-0.11 * highest * (order + 1)],
                error_x=_interval(medians, model, group, middle, colour),
                mode="markers",
                marker={"color": colour, "symbol": "diamond", "size": 7},
                showlegend=False,
                hovertemplate="median %{x:.3g}<extra>" + model + "</extra>",
                **where,
            )
        if place + columns >= len(groups):
            figure.update_xaxes(title_text="gradient norm", **where)
    step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.5) if highest / s <= 5)
    figure.update_xaxes(log_axis([float(edges[0]), float(edges[-1])], percent=False))
    figure.update_yaxes(
        range=[-0.11 * highest * (len(models) + 0.8), 1.06 * highest],
        tickvals=np.arange(0, highest, step),
        tickformat=".0%",
    )
    figure.update_yaxes(title_text="share of prompts", col=1)
    said = [
        f"{model} {digits(float(found[(UNSAFE, model)]))}"
        for model in ("tuned", "base", "control")
        if (UNSAFE, model) in found.index
    ]
    return finished(
        figure,
        f"Sensitivity of the first token, median over unsafe prompts: {', '.join(said) or 'none'}",
        "Norm of the gradient of the largest logit with respect to the prompt's embeddings, in logits per unit. "
        "Diamonds below: medians with 95 % intervals.",
        rows=n_rows,
        named=[who(model, names) for model in models],
    )


def _interval(
    medians: pd.DataFrame | None, model: str, group: str, middle: float, colour: str
) -> dict[str, Any] | None:
    if medians is None:
        return None
    rows = rows_of(medians, model=model, group=group)
    return whiskers([middle] * len(rows), rows["low"], rows["high"], colour=colour, thickness=1.4, width=3.0)
