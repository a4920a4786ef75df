"""Figures of a layer sweep: scores over (position, layer), profile, lens, stability and dose curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.core.wording import counted, percent_cell
from mechsafety.plots.columns import Columns
from mechsafety.plots.lines import band, faded
from mechsafety.plots.look import Look, drawn_from
from mechsafety.plots.panels import size_text
from mechsafety.plots.style import COLOURS, DIVERGING, HEAT, require_rows, require_single, styled, whiskers
from mechsafety.plots.traces import dots, in_legend, stacked
from mechsafety.sweeps.figures import kl_axis, layer_sweep_table
from mechsafety.sweeps.profile_figure import profile_figure

# Okabe and Ito's remaining colours, for methods.
_METHOD_COLOURS = {
    "mean_difference": COLOURS["line"],
    "pca": COLOURS["harmful"],
    "leace": COLOURS["harmless"],
    "probe": "#CC79A7",
}
_NICE = {
    "mean_difference": "mean difference",
    "pca": "PCA",
    "leace": "LEACE",
    "probe": "logistic probe",
}
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
_DOSE_LINES = {
    False: {"color": COLOURS["line"], "dash": "solid"},
    True: {"color": COLOURS["degenerate"], "dash": "dot"},
}


@drawn_from(table=Columns(places="position layer", numbers="bypass induce kl"))
def score_heatmap(
    table: pd.DataFrame,
    *,
    name: str = "model",
    selected: tuple[int, int] | None = None,
    **_look: Unpack[Look],
) -> go.Figure:
    """bypass, induce and KL of one method's candidates over position (rows) and layer (columns).

    A ring marks the selected (position, layer). Grey cells hold no score.

    Arguments:
        selected: (position, layer) of the selected candidate; None for none.

    Example:
        >>> run = ms.load_run("runs/sweep")
        >>> figure = ms.plots.score_heatmap(run.tables["sweep"], name="smollm2-135m", selected=(-1, 2))
        >>> figure.layout.title.text
        'smollm2-135m: scores of every candidate'
    """
    require_single(require_rows(table, "scores", table), "position", "layer")
    if selected is not None:
        at = table[(table["position"] == selected[0]) & (table["layer"] == selected[1])]
        require_rows(at, f"position {selected[0]}, layer {selected[1]}", table, "position", "layer")
    positions = sorted(table["position"].unique())
    layers = sorted(table["layer"].unique())
    figure = stacked(
        [
            "bypass: refusal score of harmful prompts, direction removed (low: removed)",
            "induce: refusal score of harmless prompts, direction added (high: induced)",
            "KL on harmless prompts, direction removed (nats, logarithmic; low: little changed)",
        ],
        gap=0.09,
    )
    height = 1 / 3 - 0.06
    for row, column in enumerate(("bypass", "induce", "kl"), start=1):
        values = table.pivot_table(index="position", columns="layer", values=column, dropna=False)
        z = [[float(values.loc[p, layer]) for layer in layers] for p in positions]
        span = max((abs(v) for line in z for v in line if v == v), default=1.0)
        scale: dict[str, Any] = {"z": z, "colorscale": DIVERGING, "zmin": -span, "zmax": span}
        bar: dict[str, Any] = {"thickness": 12, "len": height, "yanchor": "middle"}
        bar["y"] = 1 - (row - 1) * (1 / 3 + 0.03) - height / 2
        if column == "kl":
            logarithms = [[math.log10(max(v, 1e-4)) for v in line] for line in z]
            scale = {"z": logarithms, "colorscale": HEAT, "zmin": -2, "zmax": 1}
            bar |= {"tickvals": [-2, -1, 0, 1], "ticktext": ["0.01", "0.1", "1", "10"]}
        hover = "position %{y}, layer %{x}: %{customdata:.3f}<extra>" + column + "</extra>"
        names = {"x": layers, "y": [str(p) for p in positions], "customdata": z, "hovertemplate": hover}
        figure.add_heatmap(colorbar=bar, xgap=1, ygap=1, row=row, col=1, **names, **scale)
        if selected is not None:
            ring = {"symbol": "circle-open", "size": 15, "color": COLOURS["ink"], "line": {"width": 2.5}}
            quiet = {"showlegend": False, "hoverinfo": "skip", "row": row, "col": 1}
            dots(figure, [selected[1]], [str(selected[0])], name=None, marker=ring, **quiet)
    figure.update_yaxes(type="category", title_text="template token", showgrid=False)
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_xaxes(title_text="layer (input of block)", row=3, col=1)
    figure.update_layout(plot_bgcolor="#DDDDDD")
    return styled(
        figure,
        f"{name}: scores of every candidate",
        "Position: offset from the end of the prompt. Ring: selected. Grey: no score.",
        width=940,
        height=300 + 3 * max(110, 34 * len(positions)),
    )


@drawn_from(table=Columns(keys="method", places="position layer", numbers="bypass induce kl"))
def method_lines(
    table: pd.DataFrame, *, name: str = "model", position: int | None = None, **_look: Unpack[Look]
) -> go.Figure:
    """bypass, induce and KL by layer, one line per method, at one position, by default the last.

    Example:
        >>> run = ms.load_run("runs/sweep")
        >>> figure = ms.plots.method_lines(run.tables["sweep"], name="smollm2-135m")
        >>> figure.layout.title.text
        'smollm2-135m: scores of every method by layer'
    """
    require_single(require_rows(table, "scores", table), "method", "position", "layer")
    at = int(table["position"].max()) if position is None else position
    rows = require_rows(table[table["position"] == at], f"position {at}", table, "position")
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for method in dict.fromkeys(rows["method"]):
        one = rows[rows["method"] == method].sort_values("layer")
        for row, column in enumerate(("bypass", "induce", "kl"), start=1):
            figure.add_scatter(
                x=one["layer"],
                y=one[column],
                name=_NICE.get(method, method),
                mode="lines+markers",
                line={"color": _METHOD_COLOURS.get(method, COLOURS["ink"]), "width": 2},
                marker={"size": 5},
                hovertemplate="layer %{x}: %{y:.3g}<extra>" + method + "</extra>",
                **in_legend(method, first=row == 1, row=row, col=1),
            )
    for row in (1, 2):
        figure.add_hline(y=0, line={"color": "#999999", "width": 1}, row=row, col=1)
    for row, label in enumerate(("bypass", "induce", "KL (nats)"), start=1):
        figure.update_yaxes(title_text=label, row=row, col=1)
    figure.update_yaxes(kl_axis(rows["kl"]), row=3, col=1)
    figure.update_xaxes(title_text="layer (input of block)", row=3, col=1)
    return styled(
        figure,
        f"{name}: scores of every method by layer",
        f"Directions of position {at}. Refusal scores with the direction removed (bypass, harmful prompts) or added "
        "(induce, harmless prompts).",
        width=860,
        height=720,
    )


@drawn_from(lens=Columns(keys="side token", places="rank", numbers="logit"))
def lens_figure(
    lens: pd.DataFrame, *, name: str = "model", layer: int | None = None, **_look: Unpack[Look]
) -> go.Figure:
    """The tokens that the selected direction promotes and suppresses when it is unembedded.

    Arguments:
        layer: The layer of the direction, in the title.

    Example:
        >>> run = ms.load_run("runs/sweep")
        >>> figure = ms.plots.lens_figure(run.tables["lens"], name="smollm2-135m", layer=2)
        >>> figure.layout.title.text
        'smollm2-135m, layer 2: tokens that the direction raises and lowers'
    """
    require_single(require_rows(lens, "tokens", lens), "side", "rank")
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.22, subplot_titles=["suppressed", "promoted"])
    for column, (side, colour) in enumerate(
        (("suppressed", COLOURS["harmless"]), ("promoted", COLOURS["harmful"])), start=1
    ):
        rows = lens[lens["side"] == side].sort_values("rank", ascending=False)
        tokens = zip(rows["token"].astype(str), rows["rank"], strict=True)
        figure.add_bar(
            x=rows["logit"].abs(),
            y=[f"{token!r} {rank:>2}" for token, rank in tokens],  # ranks keep apart tokens that print alike
            orientation="h",
            marker={"color": colour},
            **{
                "hovertemplate": "%{y}: %{x:.2f}<extra></extra>",
                "showlegend": False,
                "row": 1,
                "col": column,
            },
        )
    figure.update_xaxes(title_text="|logit|, spreads of all tokens", rangemode="tozero")
    return styled(
        figure,
        f"{name}{'' if layer is None else f', layer {layer}'}: tokens that the direction raises and lowers",
        "Logit lens: final norm and unembedding applied to the unit direction.",
        width=860,
        height=200 + 26 * max(1, int(lens["rank"].max())),
    )


@drawn_from(stability=Columns(numbers="position layer share"))
def stability_bars(
    stability: pd.DataFrame, *, name: str = "model", most: int = 10, **_look: Unpack[Look]
) -> go.Figure:
    """How often each candidate is selected by its scores when the validation prompts are drawn again.

    Arguments:
        most: Number of candidates that are drawn.

    Example:
        >>> run = ms.load_run("runs/sweep")
        >>> figure = ms.plots.stability_bars(run.tables["stability"], name="smollm2-135m")
        >>> figure.layout.title.text
        'smollm2-135m: how often each candidate is selected'
    """
    require_single(require_rows(stability, "resamples", stability), "position", "layer")
    rows = stability.sort_values("share", ascending=False).head(most)
    names = [
        "none passes" if pd.isna(layer) else f"layer {layer:g}, position {position:g}"
        for position, layer in zip(rows["position"], rows["layer"], strict=True)
    ]
    colours = [COLOURS["degenerate"] if n == "none passes" else COLOURS["line"] for n in names]
    text = {"text": list(map(percent_cell, rows["share"])), "textposition": "outside", "cliponaxis": False}
    hover = "%{y}: %{x:.3~%}<extra></extra>"
    figure = go.Figure()
    figure.add_bar(
        x=rows["share"], y=names, orientation="h", marker={"color": colours}, hovertemplate=hover, **text
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(tickformat=".0%", range=[0, min(1.12, float(rows["share"].max()) * 1.2 + 0.02)])
    figure.update_xaxes(title_text="share of resamples of the validation prompts")
    return styled(
        figure,
        f"{name}: how often each candidate is selected",
        "Prompts of each class drawn again with replacement, then selected by the same rule from their scores alone.",
        width=760,
        height=250 + 30 * len(rows),
    )


@drawn_from(
    doses=Columns(
        keys="family dose",
        numbers="refused low high degenerate kl perplexity n n_harmless",
        flags="control",
    )
)
def dose_figure(doses: pd.DataFrame, *, name: str = "model", **_look: Unpack[Look]) -> go.Figure:
    """Refusal, degenerate share, KL and perplexity against the dose, with the span of the random controls as a band.

    Example:
        >>> run = ms.load_run("runs/sweep")
        >>> figure = ms.plots.dose_figure(run.tables["doses"], name="smollm2-135m")
        >>> figure.layout.title.text
        'smollm2-135m: refusal against how much is removed'
    """
    families = list(dict.fromkeys(doses["family"]))
    figure = make_subplots(
        rows=len(_DOSE_MEASURES),
        cols=len(families),
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.045,
        horizontal_spacing=0.04,
        subplot_titles=[_DOSE_TITLES.get(f, f) for f in families],
    )
    unedited = require_rows(doses[doses["dose"] == "unedited"], "dose 'unedited'", doses, "dose").iloc[0]
    drawn = doses.assign(perplexity=doses["perplexity"] / unedited["perplexity"]).assign(
        kl=doses["kl"].clip(lower=_LEAST_KL)
    )
    draws = _draws(doses)
    for column, family in enumerate(families, start=1):
        for control in (False, True):
            rows = drawn[(drawn["family"] == family) & (drawn["control"] == control)]
            rows = rows[rows["dose"] != "unedited"]
            if family != "layers":
                start = drawn[(drawn["family"] == family) & (drawn["dose"] == "unedited")]
                rows = pd.concat([start, rows]) if len(rows) else rows
            for row, (measure, _) in enumerate(_DOSE_MEASURES, start=1):
                _dose_line(
                    figure,
                    rows,
                    measure,
                    control=control,
                    lines=family != "layers",
                    place={"row": row, "col": column},
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
    controls = f" Random: mean of {counted(draws, 'draw')}, with the lowest and the highest." if draws else ""
    return styled(
        figure,
        f"{name}: refusal against how much is removed",
        f"{size_text(doses, 'n')} harmful and {size_text(doses, 'n_harmless')} harmless report prompts; whiskers of "
        f"the direction: 95 % Wilson intervals.{controls}",
        width=340 + 300 * len(families),
        height=860,
    )


def _draws(doses: pd.DataFrame) -> int:
    """How many random draws stand beside each dose; one in tables of earlier versions, which do not number them."""
    controls = doses[doses["control"]]
    return int(controls.groupby(["family", "dose"]).size().max()) if len(controls) else 0


def _dose_line(
    figure: go.Figure,
    rows: pd.DataFrame,
    measure: str,
    *,
    control: bool,
    lines: bool,
    place: Mapping[str, int],
) -> None:
    """One measure of one family: the direction with its intervals, or the mean of the draws with their span."""
    if rows.empty:
        return
    found = rows.groupby("dose", sort=False)[measure].agg(["mean", "min", "max"])
    x = ["0" if d == "unedited" else str(d).replace(" ", "<br>", 1) for d in found.index]
    bars = {}
    if control and lines:
        fill = faded(COLOURS["degenerate"], 0.25)
        band(figure, x, found["min"], found["max"], fill, **place)
    elif control:
        bars = {"error_y": whiskers(found["mean"], found["min"], found["max"], thickness=1.2, width=4.0)}
    elif measure == "refused":
        bars = {"error_y": whiskers(rows[measure], rows["low"], rows["high"], thickness=1.2, width=4.0)}
    figure.add_scatter(
        x=x,
        y=found["mean"],
        name="random control" if control else "refusal direction",
        mode="lines+markers" if lines else "markers",
        line={"width": 2, **_DOSE_LINES[control]},
        marker={"symbol": "x" if control else "circle", "size": 8},
        hovertemplate="%{x}: %{y:.3g}<extra></extra>",
        **in_legend(
            str(control), first=place["row"] == place["col"] == 1, row=place["row"], col=place["col"]
        ),
        **bars,
    )


def sweep_figures(tables: Mapping[str, pd.DataFrame], selected: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure of a sweep's run, by file name.

    ``tables`` are the run's by name (sweep, profile, lens, stability and, where asked, doses); ``selected`` is
    the manifest's section of that name.
    """
    name = str(selected["model"].get("spec", "model"))
    place = selected["selection"]
    at = (int(place["position"]), int(place["layer"]))
    base = selected["base_refusal_score"]
    figures: dict[str, go.Figure] = {}
    scores = tables["sweep"]
    for method in dict.fromkeys(scores["method"]):
        rows = scores[scores["method"] == method]
        ring = at if method == selected["method"] else None
        title = f"{name}, {_NICE.get(method, method)}"
        if len(set(rows["position"])) > 1:
            figures[f"scores-{method}"] = score_heatmap(rows, name=title, selected=ring)
        figures[f"layers-{method}"] = layer_sweep_table(
            rows,
            name=title,
            selected=at[1] if ring else None,
            base=(base["harmful"], base["harmless"]),
            position=at[0],
        )
    if len(set(scores["method"])) > 1:
        figures["methods"] = method_lines(scores, name=name, position=at[0])
    figures["stability"] = stability_bars(tables["stability"], name=name)
    figures["profile"] = profile_figure(tables["profile"], name=name, selected=at[1])
    figures["lens"] = lens_figure(tables["lens"], name=name, layer=at[1])
    if "doses" in tables:
        figures["doses"] = dose_figure(tables["doses"], name=name)
    return figures
