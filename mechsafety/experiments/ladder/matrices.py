"""Figures of how a ladder's systems lie to each other (cosines, angles, transfer), and to what training changed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.experiments.comparison.figures import cosine_matrix, transfer_matrix
from mechsafety.plots.panels import WIDTH, log_axis
from mechsafety.plots.style import COLOURS, HEAT, styled, whiskers, wrapped

_LINKS = (
    (
        "share of energy along the direction",
        (
            ("energy", "dW", COLOURS["line"], "circle"),
            ("energy_base", "weights of the base", COLOURS["compliance"], "diamond"),
        ),
    ),
    (
        "length within singular vectors of dW",
        (
            ("cosine_first", "first singular vector", COLOURS["harmless"], "square"),
            ("cosine_top", "top singular vectors", COLOURS["harmful"], "triangle-up"),
        ),
    ),
)
_GREY = "#8C8C8C"
_RANDOM = "dW along random directions, 95 %"
_LARGE = 5  # systems from which a matrix is drawn with smaller cells and text


def ladder_matrices(
    tables: Mapping[str, pd.DataFrame], names: Mapping[str, str], *, layer: int | None
) -> dict[str, go.Figure]:
    """Cosines, principal angles and transfer between all systems under their short names."""
    figures: dict[str, go.Figure] = {}
    if len(tables.get("cosines", ())) and layer is not None:
        figures["ladder-cosines"] = cosine_matrix(_renamed(tables["cosines"], names, "a", "b"), layer=layer)
    if len(tables.get("angles", ())) and layer is not None:
        at = _renamed(tables["angles"], names, "a", "b")
        figures["ladder-angles"] = angle_matrix(at[at["layer"] == layer], layer=layer)
    if len(tables.get("transfer", ())):
        figures["ladder-transfer"] = transfer_matrix(_renamed(tables["transfer"], names, "source", "target"))
    return figures


def angle_matrix(at: pd.DataFrame, *, layer: int) -> go.Figure:
    """Smallest and largest principal angle of each pair of refusal subspaces; on the diagonal halves of the prompts."""
    names = list(dict.fromkeys([*at["a"], *at["b"]]))
    k = int(at["index"].max())
    z = [[math.nan] * len(names) for _ in names]
    text = [[""] * len(names) for _ in names]
    for (a, b), rows in at.groupby(["a", "b"], sort=False):
        i, j = names.index(str(a)), names.index(str(b))
        for row, column, measure in (
            (i, j, "angle"),
            (j, i, "angle"),
            (i, i, "ceiling_a"),
            (j, j, "ceiling_b"),
        ):
            first, last = (float(rows.loc[rows["index"] == index, measure].iloc[0]) for index in (1, k))
            z[row][column] = first
            shown = f"{first:.0f}°" if k == 1 else f"{first:.0f} to {last:.0f}°"
            text[row][column] = ("halves<br>" if row == column else "") + shown
    figure = go.Figure(
        go.Heatmap(
            **{"z": z[::-1], "text": text[::-1], "texttemplate": "%{text}", "xgap": 2, "ygap": 2},
            **{"zmin": 0, "zmax": 90, "colorscale": HEAT, "reversescale": True},
            hovertemplate="%{text}<extra></extra>",
            colorbar={"title": {"text": "smallest"}, "ticksuffix": "°", "thickness": 14},
        )
    )
    places, ticks = list(range(len(names))), [wrapped(name, 16) for name in names]
    figure.update_xaxes(tickvals=places, ticktext=ticks, showgrid=False, zeroline=False, tickangle=0)
    figure.update_yaxes(tickvals=places, ticktext=ticks[::-1], showgrid=False, zeroline=False)
    return styled(
        figure,
        f"Principal angles of refusal subspaces of {k} dimension{'s' * (k > 1)}",
        f"Smallest to largest principal angle at layer {layer}. Random subspaces: the smallest is above "
        f"{at.loc[at['index'] == 1, 'random_low'].min():.0f}° in 95 %.<br>Diagonal: two random halves of the prompts "
        "in the same system.",
        width=max(720, 330 + 130 * len(names)),
        height=230 + 62 * len(names),
    )


def link_figure(links: pd.DataFrame, names: Mapping[str, str]) -> go.Figure:
    """What dW and the base's weights write along the refusal direction, over chance: medians over maps, and spans."""
    systems = [str(s) for s in dict.fromkeys(links["system"])]
    places = list(range(len(systems)))
    figure = make_subplots(
        rows=2, cols=1, subplot_titles=[title for title, _ in _LINKS], vertical_spacing=0.2, shared_xaxes=True
    )
    ratio = links.assign(**{name: links[name] / links["chance"] for name in ("value", "low", "high")})
    of_what = {str(what): rows for what, rows in ratio.groupby("what", sort=False)}
    random = of_what.get("energy_random")
    for row, (_, measures) in enumerate(_LINKS, start=1):
        where, values = {"row": row, "col": 1}, [1.0]
        if random is not None and row == 1:
            band = random.groupby("system")[["low", "high"]].median().reindex(systems)
            middle = (band["low"] * band["high"]) ** 0.5
            looks = {"colour": _GREY, "thickness": 7.0, "width": 0.0}
            figure.add_scatter(
                **{"x": places, "y": middle, "mode": "markers", "name": _RANDOM, "showlegend": False},
                **{"error_y": whiskers(middle, band["low"], band["high"], **looks)},
                marker={"color": "rgba(0,0,0,0)"},
                **where,
            )
            values += [v for v in (*band["low"], *band["high"]) if v == v]
        for number, (what, name, colour, symbol) in enumerate(measures):
            part = of_what.get(what, ratio.iloc[:0]).dropna(subset=["value"])
            if part.empty:
                continue
            found = part.groupby("system")["value"].quantile([0.25, 0.5, 0.75]).unstack().reindex(systems)
            looks = {"colour": colour, "thickness": 1.5, "width": 4.0}
            figure.add_scatter(
                **{"x": [place + 0.16 * (number + 0.5) for place in places], "y": found[0.5]},
                **{"error_y": whiskers(found[0.5], found[0.25], found[0.75], **looks)},
                **{"mode": "markers", "marker": {"color": colour, "symbol": symbol, "size": 9}, "name": name},
                hovertemplate="%{y:.2f} times chance<extra>" + name + "</extra>",
                **where,
            )
            values += [float(v) for v in found.to_numpy().ravel() if v == v]
        figure.add_hline(y=1, line={"color": COLOURS["ink"], "dash": "dash", "width": 1}, **where)
        figure.update_yaxes(log_axis(values, percent=False), title_text="times chance", **where)
    if random is not None:
        line = {"color": _GREY, "width": 7}
        figure.add_scatter(x=[None], y=[None], name=_RANDOM, mode="lines", line=line)
    figure.update_xaxes(
        **{"tickvals": places, "ticktext": [wrapped(names.get(s, s), 14) for s in systems], "tickangle": 0},
        **{"range": [-0.5, len(systems) - 0.5], "showgrid": False, "zeroline": False},
        **{"showticklabels": True, "tickfont": {"size": 11}},
    )
    energy = of_what.get("energy", ratio.iloc[:0])
    return styled(
        figure,
        "Weight changes beside the refusal direction, over chance",
        f"dW is a system less the base. Medians and quartiles over the "
        f"{len(energy[['layer', 'kind']].drop_duplicates())} maps that write to the residual stream; 1 is chance.",
        width=WIDTH,
        height=660,
    )


def _renamed(table: pd.DataFrame, names: Mapping[str, str], *columns: str) -> pd.DataFrame:
    return table.assign(**{c: [names.get(str(v), str(v)) for v in table[c]] for c in columns})
