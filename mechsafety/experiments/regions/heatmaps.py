"""Heat maps of safety-critical regions: overlap of weights, similarity of subspaces, heads, and the sweep's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.core.wording import percent_cell
from mechsafety.experiments.regions.contrasts import REMOVAL_NAMES
from mechsafety.experiments.regions.findings import METHOD_NAMES, times_chance
from mechsafety.plots.columns import Columns
from mechsafety.plots.look import Look, drawn_from
from mechsafety.plots.panels import WIDTH
from mechsafety.plots.style import COLOURS, DIVERGING, HEAT, require_rows, styled
from mechsafety.plots.traces import side_by_side

_EMPTY = "#DDDDDD"
_GRID = (
    ("refused", "harmful refused"),
    ("complied", "harmful answered coherently"),
    ("degenerate", "harmful degenerate"),
    ("accuracy", "multiple choice: right"),
)


@dataclass(frozen=True, kw_only=True)
class _Map:
    """One layer x kind heat map: the column drawn, its heading, its scale, and the text at its edge by kind."""

    rows: pd.DataFrame
    column: str
    title: str
    scale: dict[str, Any]
    edge: dict[str, str]


@drawn_from(structure=Columns(keys="method kind", places="layer", numbers="q jaccard chance"))
def jaccard_heatmap(structure: pd.DataFrame, method: str | None = None, **_look: Unpack[Look]) -> go.Figure:
    """Jaccard index of the top sets of safety and utility, layer x kind, one map per q; the scale marks chance.

    Example:
        >>> run = ms.load_run("runs/regions")
        >>> ms.plots.jaccard_heatmap(run.tables["structure"], "snip").layout.title.text
        'SNIP: overlap of safety and utility weights'
    """
    method = str(structure["method"].iloc[0]) if method is None else method
    found = structure[(structure["method"] == method) & structure["q"].notna()]
    require_rows(found, f"method {method!r}", structure, "method", "q")
    maps = []
    for q, rows in found.groupby("q", sort=True):
        chance, top = float(rows["chance"].mean()), float(rows["jaccard"].max())
        known = chance == chance and top == top
        share = f"{chance:.3f}" if known else "unknown"
        kinds = {str(kind): part for kind, part in rows.groupby("kind", sort=False)}
        maps.append(
            _Map(
                rows=rows,
                column="jaccard",
                title=f"Jaccard index of the top {q:g} % sets; chance {share}",
                scale={
                    "colorscale": HEAT,
                    "zmin": 0,
                    "zmax": max(top, chance) if known else 1.0,
                    "colorbar": _chance_bar(chance, top) if known else {},
                },
                edge={k: f"{_number(v['jaccard'].mean())} ({_times(v)})" for k, v in kinds.items()},
            )
        )
    return _layer_maps(
        maps,
        f"{METHOD_NAMES.get(method, method)}: overlap of safety and utility weights",
        f"{len(found)} matrices. 0: no common weight, 1: the same weights. In brackets: shared weights, times chance.",
    )


def subspace_heatmap(subspaces: pd.DataFrame) -> go.Figure:
    """Similarity phi of the top output subspaces, layer x kind: raw above, and against chance below."""
    means = subspaces.groupby("kind", sort=False)[["phi", "chance", "excess"]].mean()
    span = max(float(subspaces["excess"].abs().max()), 0.05) if subspaces["excess"].notna().any() else 1.0
    rank = subspaces["rank"].max()
    maps = [
        _Map(
            rows=subspaces,
            column="phi",
            title="phi; mean over layers, and what random subspaces would have",
            scale={
                "colorscale": HEAT,
                "zmin": 0,
                "zmax": 1,
                "colorbar": {"tickvals": [0, 0.25, 0.5, 0.75, 1]},
            },
            edge={k: f"{row['phi']:.2f} (chance {row['chance']:.2f})" for k, row in means.iterrows()},
        ),
        _Map(
            rows=subspaces,
            column="excess",
            title="against chance: 0 is unrelated, 1 identical; chance within the map's range",
            scale={"colorscale": DIVERGING, "zmin": -span, "zmax": span, "colorbar": {}},
            edge={k: _number(row["excess"]) for k, row in means.iterrows()},
        ),
    ]
    return _layer_maps(
        maps,
        "Similarity of output subspaces of safety and utility",
        f"Top subspaces of W X, rank at most {rank:g}. phi: mean squared cosine of the principal angles.",
    )


def head_heatmap(heads: pd.DataFrame) -> go.Figure:
    """AUROC of a linear probe on each head's output, layer x head; a ring marks the best."""
    table = heads.pivot_table(index="head", columns="layer", values="auroc", dropna=False)
    ends = {
        end: heads.pivot_table(index="head", columns="layer", values=end, dropna=False)
        for end in ("low", "high")
    }
    text = [
        [
            f"{_number(v)} [{_number(a)}, {_number(b)}]"
            for v, a, b in zip(table.loc[h], ends["low"].loc[h], ends["high"].loc[h], strict=True)
        ]
        for h in table.index
    ]
    figure = go.Figure(
        go.Heatmap(
            z=table.to_numpy(),
            x=list(table.columns),
            y=list(table.index),
            text=text,
            zmin=0.5,
            zmax=1,
            colorscale=HEAT,
            xgap=1,
            ygap=1,
            colorbar={
                "title": {"text": "AUROC"},
                "thickness": 14,
                "tickvals": [0.5, 0.6, 0.7, 0.8, 0.9, 1],
                "ticktext": ["chance 0.5", "0.6", "0.7", "0.8", "0.9", "1"],
            },
            hovertemplate="layer %{x}, head %{y}: %{text}<extra></extra>",
        )
    )
    known = heads[heads["auroc"].notna()]
    if len(known):
        best = known.loc[known["auroc"].idxmax()]
        figure.add_scatter(
            x=[best["layer"]],
            y=[best["head"]],
            mode="markers",
            marker={"symbol": "circle-open", "size": 16, "color": COLOURS["harmful"], "line": {"width": 2.5}},
            showlegend=False,
            hoverinfo="skip",
        )
    count = len(table.index)
    figure.update_xaxes(title_text="layer", showgrid=False, zeroline=False)
    figure.update_xaxes(range=[min(table.columns) - 0.5, max(table.columns) + 0.5])
    figure.update_yaxes(range=[min(table.index) - 0.5, max(table.index) + 0.5], dtick=1 if count <= 16 else 4)
    figure.update_yaxes(title_text="head", showgrid=False, zeroline=False)
    figure.update_layout(plot_bgcolor=_EMPTY)
    return styled(
        figure,
        "AUROC of a linear probe on each head",
        f"Linear probes, harmful against harmless prompts held out (n = {_most(heads['n'])}). "
        "Ring: the best of all, which flatters it.",
        width=WIDTH,
        height=250 + count * max(10, min(28, 640 // max(1, count))),
    )


def grid_sizes(tradeoff: pd.DataFrame, removal: str) -> tuple[str, str] | None:
    """The two columns that a removal's settings vary independently, or None: then there is no grid to draw."""
    rows = tradeoff[(tradeoff["removal"] == removal) & (tradeoff["control"] == "removed")]
    for pair in (("p", "q"), ("r_u", "r_s")):
        known = rows[[*pair]].dropna().drop_duplicates()
        if min(known[name].nunique() for name in pair) > 1 and len(known) > max(
            known[n].nunique() for n in pair
        ):
            return pair
    return None


def grid_figure(tradeoff: pd.DataFrame, removal: str) -> go.Figure:
    """What a removal with two independent sizes does, as a small map a measure; means over draws, empty: not run."""
    sizes = grid_sizes(tradeoff, removal) or ("p", "q")
    rows = tradeoff[(tradeoff["removal"] == removal) & (tradeoff["control"] == "removed")]
    shown = [part for part in _GRID if rows[part[0]].notna().any()]
    figure = side_by_side([title for _, title in shown], gap=0.03)
    for column, (measure, _) in enumerate(shown, start=1):
        table = rows.pivot_table(
            index=sizes[1], columns=sizes[0], values=measure, aggfunc="mean", dropna=False
        )
        figure.add_heatmap(
            z=table.to_numpy(),
            x=[f"{v:g}" for v in table.columns],
            y=[f"{v:g}" for v in table.index],
            text=[list(map(percent_cell, line)) for line in table.to_numpy()],
            texttemplate="%{text}",
            hovertemplate=f"{sizes[0]} %{{x}}, {sizes[1]} %{{y}}: %{{text}}<extra></extra>",
            zmin=0,
            zmax=1,
            colorscale=HEAT,
            showscale=column == len(shown),
            colorbar={"tickformat": ".0%", "thickness": 12},
            xgap=2,
            ygap=2,
            row=1,
            col=column,
        )
    figure.update_xaxes(type="category", showgrid=False, title_text=_size_name(sizes[0]))
    figure.update_yaxes(type="category", showgrid=False)
    figure.update_yaxes(title_text=_size_name(sizes[1]), col=1)
    figure.update_layout(plot_bgcolor=_EMPTY)
    return styled(
        figure,
        f"{REMOVAL_NAMES.get(removal, removal).capitalize()}: every size that was measured",
        f"Means over draws; intervals and random controls are in the trade-off figure. Grey: {sizes[0]} and {sizes[1]} "
        "not run together.",
        width=WIDTH,
        height=260 + 44 * rows[sizes[1]].nunique(),
    )


# -- parts ------------------------------------------------------------------------------------------


def _layer_maps(maps: Sequence[_Map], title: str, subtitle: str) -> go.Figure:
    figure = make_subplots(
        rows=len(maps),
        cols=2,
        shared_xaxes=True,
        column_widths=[0.84, 0.16],
        horizontal_spacing=0.008,
        vertical_spacing=0.1,
        subplot_titles=[text for one in maps for text in (one.title, "mean of layers")],
    )
    room = 0.9 / len(maps) - 0.03
    for row, one in enumerate(maps, start=1):
        table = one.rows.pivot_table(index="kind", columns="layer", values=one.column, dropna=False)
        kinds = [kind for kind in dict.fromkeys(one.rows["kind"]) if kind in table.index]
        table = table.reindex(kinds)
        scale = one.scale | {
            "colorbar": one.scale["colorbar"]
            | {"thickness": 12, "len": room, "yanchor": "middle", "y": 1 - (row - 0.5) / len(maps), "x": 1.0}
        }
        figure.add_heatmap(
            z=table.to_numpy(),
            x=list(table.columns),
            y=kinds,
            xgap=1,
            ygap=1,
            hovertemplate="layer %{x}, %{y}: %{z:.3f}<extra>" + one.column + "</extra>",
            row=row,
            col=1,
            **scale,
        )
        figure.add_scatter(
            x=[0] * len(kinds),
            y=kinds,
            text=[one.edge[kind] for kind in kinds],
            mode="text",
            textposition="middle right",
            textfont={"size": 12},
            showlegend=False,
            hoverinfo="skip",
            row=row,
            col=2,
        )
        figure.add_shape(
            type="rect", x0=0, x1=1, y0=0, y1=1, xref="x domain", yref="y domain", fillcolor=_EMPTY, line_width=0,
            layer="below", row=row, col=1,
        )  # fmt: skip
        # A given range: left alone, the column of text would stand a little off the rows it belongs to.
        order = {"type": "category", "categoryorder": "array", "categoryarray": kinds}
        figure.update_yaxes(order, range=[len(kinds) - 0.5, -0.5], row=row)
    figure.update_yaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(showticklabels=False, col=2)
    figure.update_xaxes(showgrid=False, zeroline=False, showticklabels=True)
    figure.update_xaxes(visible=False, range=[-0.02, 1], col=2)
    figure.update_xaxes(title_text="layer", row=len(maps), col=1)
    count = max(one.rows["kind"].nunique() for one in maps)
    return styled(figure, title, subtitle, width=WIDTH, height=210 + len(maps) * (60 + 27 * count))


def _chance_bar(chance: float, top: float) -> dict[str, Any]:
    """Ticks at round values, and one at chance; round ones too near to it are left out."""
    step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if top / s <= 6 or s == 0.5)
    round_ones = [round(step * i, 2) for i in range(int(top / step) + 1)]
    kept = [v for v in round_ones if abs(v - chance) > max(top, chance) / 10]
    return {"tickvals": [chance, *kept], "ticktext": ["chance", *(f"{v:g}" for v in kept)]}


def _size_name(size: str) -> str:
    return {"p": "p, % kept for utility", "q": "q, % taken of safety"}.get(size, size)


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.2f}"


def _times(structure: pd.DataFrame) -> str:
    found = times_chance(structure)
    return "–" if found != found else f"{found:.0f}×"


def _most(values: pd.Series) -> str:
    known = values.dropna()
    return f"{int(known.max())}" if len(known) else "unknown"
