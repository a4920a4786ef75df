"""Figures of an anatomy: clusters of activations, attacks, sensitivity of the first token, and the line to tuned."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.anatomy.naming import (
    GROUP_NAMES,
    GROUPS,
    MODELS,
    NO_NAMES,
    POSITIONS,
    SAFE,
    UNSAFE,
    Names,
    Tables,
    along,
    families_in,
    model_lines,
    models_in,
    rows_of,
    who,
)
from mechsafety.experiments.anatomy.weight_figures import weight_figures
from mechsafety.plots.columns import Columns
from mechsafety.plots.lines import (
    Line,
    LinePanel,
    chance_line,
    columns_for,
    faded,
    finished,
    gap,
    level,
    line_panels,
    spread_out,
)
from mechsafety.plots.look import Look, drawn_from
from mechsafety.plots.panels import log_axis, size_text
from mechsafety.plots.style import COLOURS, require_rows, whiskers

_BINS = 26


def anatomy_figures(tables: Tables, *, names: Names, only: tuple[str, ...] = ("",)) -> dict[str, go.Figure]:
    """Every figure that the tables allow, by file name; ``names`` are the models' by their part.

    ``only`` are the beginnings of the names of figures that are wanted.
    """
    there = {key: table for key, table in tables.items() if len(table)}
    medians = there.get("sensitivity")
    figures: dict[str, go.Figure] = {}
    for positions in _positions(there["tau"]) if "tau" in there else ():
        file = f"anatomy-tau-{positions.replace('_', '-')}"
        if file.startswith(only):
            figures[file] = tau_figure(rows_of(there["tau"], positions=positions), positions)
    drawn: tuple[tuple[str, str, Callable[[pd.DataFrame, Names], go.Figure]], ...] = (
        ("norms", "anatomy-sensitivity", lambda t, n: sensitivity_figure(t, n, medians=medians)),
        ("separation", "anatomy-separation", separation_figure),
        ("separation", "anatomy-cluster-rank", rank_figure),
        ("attack_tau", "anatomy-attacks", attack_tau_figure),
        ("interpolation", "anatomy-alpha", alpha_figure),
    )
    figures |= {
        file: draw(there[key], names) for key, file, draw in drawn if key in there and file.startswith(only)
    }
    return figures | weight_figures(there, names=names, only=only)


def _positions(table: pd.DataFrame) -> list[str]:
    return [p for p in POSITIONS if p in set(table["positions"])]


def _known(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of models and positions that are drawn. Raises :class:`MechsafetyError` for others beside them."""
    known = table["positions"].isin(list(POSITIONS)) & table["model"].isin(list(MODELS))
    if known.any() and not known.all():
        other = table[~known].iloc[0]
        raise MechsafetyError(
            f"model {other['model']!r} at positions {other['positions']!r} is not drawn: models are "
            f"{', '.join(MODELS)}, positions {', '.join(POSITIONS)}; leave its rows out"
        )
    return require_rows(
        table[known],
        f"models {', '.join(MODELS)} at positions {', '.join(POSITIONS)}",
        table,
        "model",
        "positions",
    )


@drawn_from(
    separation=Columns(
        keys="model positions",
        places="layer",
        numbers="d_prime d_prime_low d_prime_high auroc auroc_low auroc_high auroc_chance n_safe n_unsafe",
    )
)
def separation_figure(separation: pd.DataFrame, names: Names = NO_NAMES, **_look: Unpack[Look]) -> go.Figure:
    """d' and AUROC of tau by layer, with intervals, for every model and position.

    Arguments:
        names: Names of the models by their part: base, tuned, control.

    Example:
        >>> run = ms.load_run("runs/anatomy")
        >>> names = {"smollm2-135m": "base", "my-model": "tuned"}
        >>> ms.plots.separation_figure(run.tables["separation"], names).layout.title.text
        'How far tau sets safe and unsafe prompts apart, by layer'
    """
    separation = _known(separation)
    positions, panels = _positions(separation), []
    for measure, name in (("d_prime", "d'"), ("auroc", "AUROC")):
        for place in positions:
            rows = separation[separation["positions"] == place]
            lines = model_lines(rows, along("layer", measure), names)
            if measure == "auroc":
                chance = rows.groupby("layer")["auroc_chance"].max()
                lines.append(chance_line(chance, "95 % of permuted labels lie below"))
            panels.append(LinePanel(title=f"{name}, {POSITIONS[place]}", lines=lines, y_title=name))
    return line_panels(
        panels,
        x_title="layer",
        title="How far tau sets safe and unsafe prompts apart, by layer",
        subtitle=f"tau of {size_text(separation, 'n_safe')} safe and {size_text(separation, 'n_unsafe')} unsafe "
        "prompts that the centroids were not fitted to. Bands: 95 % intervals over prompts.",
        columns=len(positions),
    )


@drawn_from(
    separation=Columns(
        keys="model positions",
        places="layer",
        numbers="share_safe share_unsafe share_safe_chance share_unsafe_chance",
    )
)
def rank_figure(separation: pd.DataFrame, names: Names = NO_NAMES, **_look: Unpack[Look]) -> go.Figure:
    """How much of each cluster's variance lies along one direction, by layer.

    Arguments:
        names: Names of the models by their part: base, tuned, control.

    Example:
        >>> run = ms.load_run("runs/anatomy")
        >>> names = {"smollm2-135m": "base", "my-model": "tuned"}
        >>> ms.plots.rank_figure(run.tables["separation"], names).layout.title.text
        'Variance of each cluster along one direction, by layer'
    """
    separation = _known(separation)
    panels, positions = [], _positions(separation)
    for place in positions:
        rows = separation[separation["positions"] == place]
        for group in (SAFE, UNSAFE):
            chance = rows.groupby("layer")[f"share_{group}_chance"].max()
            lines = [
                *model_lines(rows, {"layer": "x", f"share_{group}": "y"}, names),
                chance_line(chance, "round cloud of as many points"),
            ]
            title = f"{group} cluster, {POSITIONS[place]}"
            panels.append(LinePanel(title=title, lines=lines, y_title="share", form="rate"))
    return line_panels(
        panels,
        x_title="layer",
        title="Variance of each cluster along one direction, by layer",
        subtitle="Share of a cluster's centred variance along its first singular direction; at 100 % it is a "
        "line.",
        columns=2,
    )


def attack_tau_figure(attack_tau: pd.DataFrame, names: Names) -> go.Figure:
    """Mean tau of successful and of failed attacks on the tuned model by layer: one row per position."""
    tuned = attack_tau[attack_tau["model"] == "tuned"]
    families = sorted(dict.fromkeys(tuned["family"]), key=lambda family: family != "all")
    positions = _positions(tuned)
    nearer = level(tuned["layer"], 0.0, "as near to either centroid")

    def mean(place: str, family: str, outcome: str) -> Line:
        part = rows_of(tuned, positions=place, family=family, outcome=outcome)
        rows = part.rename(columns={"layer": "x", "tau": "y"})[["x", "y", "low", "high"]]
        return Line(name=GROUP_NAMES[outcome], rows=rows, colour=GROUPS[outcome])

    panels = [
        LinePanel(
            title=("all attacks" if family == "all" else str(family))
            + ("" if i else f"<br>{POSITIONS[place]}"),
            lines=[*(mean(place, family, outcome) for outcome in ("success", "failed")), nearer],
            y_title=f"mean tau, {POSITIONS[place]}",
        )
        for place in positions
        for i, family in enumerate(families)
    ]
    return line_panels(
        panels,
        x_title="layer",
        title="Mean tau of successful and of failed attacks, by layer",
        subtitle=f"{who('tuned', names)}. Above the dashed line is the safe side. Bands: 95 % intervals of the mean.",
        columns=len(families),
    )


def alpha_figure(interpolation: pd.DataFrame, names: Names) -> go.Figure:
    """Outcomes on the line from base to tuned and beyond: refused by group, and degenerate."""
    groups = [g for g in (UNSAFE, SAFE) if g in set(interpolation["group"])]
    wanted = [(group, "refused") for group in (*groups, *families_in(interpolation))]
    wanted[len(groups) : len(groups)] = [(group, "degenerate") for group in groups]
    panels = [
        LinePanel(
            title=f"{GROUP_NAMES.get(group, group)}: {measure}",
            lines=model_lines(rows_of(interpolation, group=group), along("alpha", measure), names),
            y_title="share",
            form="rate",
        )
        for group, measure in wanted
    ]
    return line_panels(
        panels,
        x_title="alpha",
        title="Answers along base + alpha dW, by group of prompts",
        subtitle=f"alpha 0 is the base and 1 the fine-tuned model. {size_text(interpolation, 'n')} prompts of a group "
        "at most. Bands: 95 % Wilson intervals. Dashed: the control.",
        columns=columns_for(len(panels)),
    )


# -- histograms -------------------------------------------------------------------------------------


def tau_figure(tau: pd.DataFrame, positions: str) -> go.Figure:
    """Histograms of tau: rows of models, columns of layers (six of many), safe and unsafe prompts and attacks."""
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
    where = "answer tokens" if positions == "output" else "the last prompt token"
    return finished(
        figure,
        f"tau of each prompt, {POSITIONS[positions]}, by model and layer",
        f"Activations at {where}. tau = distance to the unsafe centroid less that to the safe one; right of 0 is the "
        "safe side. A column shares its axis. Attacks are parted by what the model in the row answered.",
        rows=len(models),
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
    looks = {"fill": "tozeroy", "fillcolor": faded(colour, 0.28)} if filled else {}
    figure.add_scatter(
        x=np.repeat(edges[first : last + 2], 2),
        y=[0.0, *np.repeat(shares[first : last + 1], 2), 0.0],
        mode="lines",
        line={"color": colour, "width": 1.3, "dash": dash},
        name=name,
        legendgroup=name,
        showlegend=new,
        hovertemplate="%{x:.3g}: %{y:.3~%}<extra>" + name + "</extra>",
        **where,
        **looks,
    )


def sensitivity_figure(
    norms: pd.DataFrame, names: Names, *, medians: pd.DataFrame | None = None
) -> go.Figure:
    """Histograms of the local Lipschitz constant, one panel per group, on a logarithmic axis, with medians below.

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
    return finished(
        figure,
        "Sensitivity of the first token to the prompt, by group of prompts",
        "Norm of the gradient of the largest logit with respect to the prompt's embeddings, in logits per unit. "
        "Diamonds below: medians with 95 % intervals.",
        rows=n_rows,
    )


def _interval(
    medians: pd.DataFrame | None, model: str, group: str, middle: float, colour: str
) -> dict[str, Any] | None:
    if medians is None:
        return None
    rows = rows_of(medians, model=model, group=group)
    return whiskers([middle] * len(rows), rows["low"], rows["high"], colour=colour, thickness=1.4, width=3.0)
