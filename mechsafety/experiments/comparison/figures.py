"""Figures of a comparison of checkpoints: cosines, angles and CKA by layer, cosine and transfer matrices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import pandas as pd
import plotly.graph_objects as go

from mechsafety.plots.columns import Columns
from mechsafety.plots.lines import band, faded
from mechsafety.plots.look import Look, drawn_from
from mechsafety.plots.panels import size_text
from mechsafety.plots.style import COLOURS, DIVERGING, HEAT, require_rows, styled, system_names
from mechsafety.plots.traces import stacked

_PURPLE = "#CC79A7"
_GREY = "#8C8C8C"
_INDEX_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MOST_PAIRS = 10
_LARGE = 6
"""Systems from which on the cells of a matrix are smaller."""


def comparison_figures(tables: Mapping[str, pd.DataFrame], *, layer: int) -> dict[str, go.Figure]:
    """Every figure of a comparison, by file name; matrices are shown at ``layer``."""
    figures: dict[str, go.Figure] = {}
    if "cosines" in tables:
        figures["cosines-by-layer"] = cosines_by_layer(tables["cosines"], layer=layer)
        figures["cosine-matrix"] = cosine_matrix(tables["cosines"], layer=layer)
    if "angles" in tables:
        figures["angles-by-layer"] = angles_by_layer(tables["angles"], layer=layer)
    if "cka" in tables:
        figures["cka-by-layer"] = cka_by_layer(tables["cka"], layer=layer)
    if "transfer" in tables:
        figures["transfer-matrix"] = transfer_matrix(tables["transfer"])
    return figures


@drawn_from(
    table=Columns(
        keys="a b", places="layer", numbers="cosine low high ceiling corrected harmless_floor random_high"
    )
)
def cosines_by_layer(table: pd.DataFrame, *, layer: int | None = None, **_look: Unpack[Look]) -> go.Figure:
    """Cosine of the two refusal directions at every layer, one panel per pair, with its ceiling and its floors.

    Arguments:
        layer: Where a dashed line stands; None for none.

    Example:
        >>> run = ms.load_run("runs/comparison")
        >>> ms.plots.cosines_by_layer(run.tables["cosines"], layer=2).layout.title.text
        'Cosine of the refusal directions by layer'
    """
    beside = (
        ("ceiling", "same direction seen through separate prompts", COLOURS["ink"], "dot"),
        ("corrected", "cosine without sampling noise", _PURPLE, "dash"),
        ("harmless_floor", "floor: halves of the harmless prompts", COLOURS["harmless"], "dashdot"),
        ("random_high", "floor: random directions (95 %)", _GREY, "dot"),
    )
    figure, pairs = _measured(table, "cosine", "cosine", beside)
    return _finished(
        figure,
        table,
        pairs,
        "Cosine of the refusal directions by layer",
        layer,
        "Dotted black: ceiling from split halves; checkpoints that saw the same prompts share their errors and may lie "
        "above it.",
    )


@drawn_from(
    table=Columns(keys="a b", places="layer index", numbers="angle low high random_low ceiling_a ceiling_b")
)
def angles_by_layer(table: pd.DataFrame, *, layer: int | None = None, **_look: Unpack[Look]) -> go.Figure:
    """Principal angles between the refusal subspaces at every layer; one panel per pair and one colour per angle.

    Arguments:
        layer: Where a dashed line stands; None for none.

    Example:
        >>> run = ms.load_run("runs/comparison")
        >>> ms.plots.angles_by_layer(run.tables["angles"], layer=2).layout.title.text
        'Principal angles of refusal subspaces of 3 dimensions'
    """
    figure, pairs = _panels(table)
    for row, rows in enumerate(pairs, start=1):
        for index, one in rows.groupby("index"):
            number = int(str(index))
            colour = _INDEX_COLOURS[(number - 1) % len(_INDEX_COLOURS)]
            _band(figure, one, row, "angle", colour)
            one = one.assign(ceiling=one[["ceiling_a", "ceiling_b"]].mean(axis=1))
            for column, dash in (("ceiling", "dot"), ("random_low", "dash")):
                _line(
                    figure, one, row, column, name=column, colour=colour, dash=dash, width=1.3, legend=False
                )
            _line(figure, one, row, "angle", name=f"angle {number}", colour=colour, legend=row == 1)
    for name, dash in (
        ("halves of the prompts, same checkpoint", "dot"),
        ("random subspaces (lowest 5 %)", "dash"),
    ):
        figure.add_scatter(
            x=[None], y=[None], name=name, mode="lines", line={"color": COLOURS["ink"], "dash": dash, "width": 1.3}
        )  # fmt: skip
    figure.update_yaxes(title_text="degrees", range=[-3, 93], tickvals=[0, 30, 60, 90])
    k = int(table["index"].max())
    title = f"Principal angles of refusal subspaces of {k} dimension{'s' * (k > 1)}"
    return _finished(
        figure, table, pairs, title, layer, "Mean difference and the harmful prompts' leading components."
    )


@drawn_from(
    table=Columns(
        keys="a b", places="layer", numbers="cka low high next_layer_a next_layer_b class_floor floor_high"
    )
)
def cka_by_layer(table: pd.DataFrame, *, layer: int | None = None, **_look: Unpack[Look]) -> go.Figure:
    """Debiased linear CKA by layer, one panel per pair, with its floors and each model's step to its next layer.

    Arguments:
        layer: Where a dashed line stands; None for none.

    Example:
        >>> run = ms.load_run("runs/comparison")
        >>> ms.plots.cka_by_layer(run.tables["cka"], layer=2).layout.title.text
        'Representations of the same prompts: CKA by layer'
    """
    beside = (
        ("next_layer_a", "first checkpoint, own next layer", COLOURS["ink"], "dot"),
        ("next_layer_b", "second checkpoint, own next layer", _PURPLE, "dot"),
        ("class_floor", "floor: prompts permuted within class", COLOURS["harmless"], "dashdot"),
        ("floor_high", "floor: prompts permuted (95 %)", _GREY, "dot"),
    )
    figure, pairs = _measured(table, "cka", "CKA", beside)
    return _finished(
        figure,
        table,
        pairs,
        "Representations of the same prompts: CKA by layer",
        layer,
        "Debiased linear CKA. Dotted black and purple: how much one block changes.",
    )


@drawn_from(table=Columns(keys="a b", places="layer", numbers="cosine low high ceiling_a ceiling_b"))
def cosine_matrix(table: pd.DataFrame, *, layer: int | None = None, **_look: Unpack[Look]) -> go.Figure:
    """Cosines between all checkpoints at one layer; on the diagonal the split-half ceiling of each.

    Arguments:
        layer: The layer that is drawn, by default the one in the middle.

    Example:
        >>> run = ms.load_run("runs/comparison")
        >>> ms.plots.cosine_matrix(run.tables["cosines"], layer=2).layout.title.text
        'Cosines of the refusal directions at layer 2'
    """
    layer = middle_layer(table) if layer is None else layer
    at = require_rows(table[table["layer"] == layer], f"layer {layer}", table, "layer")
    names = list(dict.fromkeys([*at["a"], *at["b"]]))
    z = [[math.nan] * len(names) for _ in names]
    text = [[""] * len(names) for _ in names]
    for pair in at.to_dict(orient="records"):
        i, j = names.index(pair["a"]), names.index(pair["b"])
        shown = _cell(pair["cosine"], pair["low"], pair["high"])
        for row, column in ((i, j), (j, i)):
            z[row][column], text[row][column] = pair["cosine"], shown
        for place, ceiling in ((i, pair["ceiling_a"]), (j, pair["ceiling_b"])):
            z[place][place] = ceiling
            text[place][place] = "halves<br>undefined" if ceiling != ceiling else f"halves<br>{ceiling:.2f}"
    lowest = min((v for row in z for v in row if v == v), default=0.0)
    figure = _heat(z, text, list(_wrapped(names).values()), list(_wrapped(names).values()))
    figure.update_traces(
        zmin=min(0.0, lowest),
        zmax=1,
        colorscale=HEAT,
        colorbar={"title": {"text": "cosine"}, "thickness": 14},
    )
    return styled(
        figure,
        f"Cosines of the refusal directions at layer {layer}",
        f"Layer {layer}, 95 % bootstrap interval over prompts. Diagonal: directions of<br>two random "
        "halves of the prompts in the same checkpoint.",
        width=max(720, 330 + 130 * len(names)) if len(names) < _LARGE else 180 + 92 * len(names),
        height=250 + (95 if len(names) < _LARGE else 60) * len(names),
    )


@drawn_from(
    table=Columns(
        keys="source target",
        places="layer",
        numbers="drop low high kl base n harmless_floor harmless_max random_floor random_max",
    )
)
def transfer_matrix(table: pd.DataFrame, **_look: Unpack[Look]) -> go.Figure:
    """Fall of each target's refusal score with each source's direction projected out, above its controls.

    Example:
        >>> run = ms.load_run("runs/comparison")
        >>> ms.plots.transfer_matrix(run.tables["transfer"]).layout.title.text
        "Fall of the refusal score without each checkpoint's direction"
    """
    targets = list(dict.fromkeys(table["target"]))
    sources = [s for s in dict.fromkeys([*targets, *table["source"]]) if s in set(table["source"])]
    cells = {(row["source"], row["target"]): row for row in table.to_dict(orient="records")}
    of_target = {row["target"]: row for row in table.to_dict(orient="records")}
    z: list[list[float]] = []
    text: list[list[str]] = []
    for source in sources:
        found = [cells.get((source, target)) for target in targets]
        z.append([math.nan if row is None else float(row["drop"]) for row in found])
        text.append(["" if row is None else _drop_cell(row) for row in found])
    shown = _wrapped([*targets, *sources])
    labels = [shown[s] for s in sources]
    for kind, label in (("harmless", "control:<br>harmless halves"), ("random", "control:<br>random")):
        z.append([float(of_target[t][f"{kind}_floor"]) for t in targets])
        text.append(
            [
                f"mean {of_target[t][f'{kind}_floor']:.2f}<br>most {of_target[t][f'{kind}_max']:.2f}"
                for t in targets
            ]
        )
        labels.append(label)
    columns = [
        f"{shown[t]}<br>layer {of_target[t]['layer']}, score {of_target[t]['base']:.1f}" for t in targets
    ]
    figure = _heat(z, text, columns, labels)
    span = max((abs(v) for row in z for v in row if v == v), default=1.0) or 1.0
    figure.update_traces(
        zmin=-span,
        zmax=span,
        colorscale=DIVERGING,
        colorbar={"title": {"text": "fall of the score"}, "thickness": 14},
    )
    figure.update_yaxes(title_text="direction from")
    figure.update_xaxes(title_text="ablated in")
    return styled(
        figure,
        "Fall of the refusal score without each checkpoint's direction",
        f"Fall of the mean refusal score (logit) of {size_text(table, 'n')} held-out harmful prompts, 95 % interval; "
        "KL on harmless ones.<br>Whether a fall goes beyond the controls is tested in the findings.",
        width=max(780, 360 + 170 * len(targets)) if len(targets) < _LARGE else 180 + 92 * len(targets),
        height=330 + (85 if len(targets) < _LARGE else 60) * len(labels),
    )


def middle_layer(table: pd.DataFrame) -> int:
    """The layer in the middle of those of a table."""
    layers = sorted(table["layer"].unique())
    return int(layers[len(layers) // 2])


# -- parts ------------------------------------------------------------------------------------------


def _panels(table: pd.DataFrame) -> tuple[go.Figure, list[pd.DataFrame]]:
    """A figure with a panel for each pair (the first ten), and their rows in the order of layers."""
    pairs = [rows.sort_values("layer") for _, rows in table.groupby(["a", "b"], sort=False)][:_MOST_PAIRS]
    names = system_names([*table["a"], *table["b"]])
    figure = stacked(
        [f"{names[p['a'].iloc[0]]} and {names[p['b'].iloc[0]]}" for p in pairs],
        gap=min(0.06, 0.3 / len(pairs)),
    )
    return figure, pairs


def _measured(
    table: pd.DataFrame, measure: str, title: str, beside: Sequence[tuple[str, str, str, str]]
) -> tuple[go.Figure, list[pd.DataFrame]]:
    """The panels of one measure with its interval, and the lines (column, name, colour, dash) beside it."""
    figure, pairs = _panels(table)
    for row, rows in enumerate(pairs, start=1):
        _band(figure, rows, row, measure, COLOURS["line"])
        for column, name, colour, dash in beside:
            _line(figure, rows, row, column, name=name, colour=colour, dash=dash, legend=row == 1)
        own = f"{title}, 95 % interval"
        _line(figure, rows, row, measure, name=own, colour=COLOURS["line"], legend=row == 1)
    figure.update_yaxes(title_text=title)
    return figure, pairs


def _line(
    figure: go.Figure,
    rows: pd.DataFrame,
    panel: int,
    column: str,
    *,
    name: str,
    colour: str,
    legend: bool,
    dash: str = "solid",
    width: float = 2,
) -> None:
    if rows[column].isna().all():
        return
    figure.add_scatter(
        x=rows["layer"],
        y=rows[column],
        name=name,
        legendgroup=name,
        legendrank=1000 if dash != "solid" else 1,
        showlegend=legend,
        mode="lines" if dash != "solid" else "lines+markers",
        line={"color": colour, "dash": dash, "width": width},
        marker={"size": 5},
        hovertemplate="layer %{x}: %{y:.3f}<extra>" + name + "</extra>",
        row=panel,
        col=1,
    )


def _band(figure: go.Figure, rows: pd.DataFrame, panel: int, column: str, colour: str) -> None:
    known = rows[rows["low"].notna() & rows[column].notna()]
    if known.empty:
        return
    fill = faded(colour, 0.2)
    band(figure, known["layer"], known["low"], known["high"], fill, row=panel, col=1)


def _finished(
    figure: go.Figure,
    table: pd.DataFrame,
    pairs: Sequence[pd.DataFrame],
    title: str,
    layer: int | None,
    about: str,
) -> go.Figure:
    total = len(table[["a", "b"]].drop_duplicates())
    for panel in range(1, len(pairs) + 1) if layer is not None else ():
        figure.add_vline(
            x=layer, line={"color": COLOURS["ink"], "dash": "dash", "width": 1}, row=panel, col=1
        )  # fmt: skip
    figure.update_xaxes(title_text="layer (input of block)", row=len(pairs), col=1)
    height = 260 * len(pairs) + 250
    return styled(
        figure,
        title,
        about
        + ("" if layer is None else f"<br>Dashed line: layer {layer}.")
        + (f" The first {len(pairs)} of {total} pairs." if total > len(pairs) else ""),
        width=900,
        height=height,
    )


def _heat(z: list[list[float]], text: list[list[str]], x: list[str], y: list[str]) -> go.Figure:
    """A heat map with the first row on top; places are numbered, since names may be the same once shortened."""
    named = [[f"{row} → {column}".replace("<br>", " ") for column in x] for row in y]
    figure = go.Figure(
        go.Heatmap(
            z=z[::-1],
            text=text[::-1],
            customdata=named[::-1],
            texttemplate="%{text}",
            hovertemplate="%{customdata}: %{text}<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    figure.update_xaxes(showgrid=False, zeroline=False, tickangle=0, tickvals=list(range(len(x))), ticktext=x)
    figure.update_yaxes(showgrid=False, zeroline=False, tickvals=list(range(len(y))), ticktext=y[::-1])
    return figure


def _cell(value: float, low: float, high: float) -> str:
    if value != value:
        return "undefined"
    return f"{value:.2f}" if low != low else f"{value:.2f}<br>[{low:.2f}, {high:.2f}]"


def _drop_cell(row: Mapping[Any, Any]) -> str:
    return f"{_cell(row['drop'], row['low'], row['high'])}<br>KL {row['kl']:.2f}"


def _wrapped(systems: Sequence[str]) -> dict[str, str]:
    """Names over several lines: divided before + and @, and after every 18 characters."""
    return {system: _divided(name) for system, name in system_names(systems).items()}


def _divided(name: str) -> str:
    pieces = re.split(r"(?=[+@])", name)
    return "<br>".join(piece[i : i + 18] for piece in pieces for i in range(0, len(piece), 18))
