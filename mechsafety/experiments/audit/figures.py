"""Figures of an audit: which published differences survive."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechsafety.claims.numbers import p_value
from mechsafety.core.wording import points, span
from mechsafety.plots.layout import row_range
from mechsafety.plots.style import (
    COLOURS,
    DIVERGING,
    short_name,
    styled,
    system_names,
    whiskers,
    wrapped,
)

_LOOKS = {
    "survives": (COLOURS["harmful"], "circle", "survives correction"),
    "lost in correction": (COLOURS["compliance"], "diamond", "below alpha, lost in correction"),
    "not shown": (COLOURS["degenerate"], "circle-open", "not shown to differ"),
}


_FORESTS = 4
"""Judges up to which each has a forest plot; of more the primary one alone has."""


def audit_figures(tables: Mapping[str, pd.DataFrame], *, primary: str, alpha: float) -> dict[str, go.Figure]:
    """Forest plots by judge and label, and by label the changes under every judge and how the judges correlate."""
    table, pairs = tables["comparisons"], tables["pairs"]
    figures = {}
    for (label, judge), part in table.groupby(["label", "judge"], sort=False):
        if judge == primary or table["judge"].nunique() <= _FORESTS:
            figures[_unused(f"differences-{label}-{judge}", figures)] = forest(
                part, label=str(label), judge=str(judge), alpha=alpha
            )
    several = set(zip(tables["judges"]["system"], tables["judges"]["label"], strict=True))
    for label, part in table.groupby("label", sort=False):
        chosen = part[[(system, label) in several for system in part["system"]]]
        if len(chosen):
            figures[f"judges-{label}"] = judges_figure(chosen, label=str(label))
    for label, part in pairs.groupby("label", sort=False):
        if part["pearson"].notna().any():
            figures[f"correlations-{label}"] = correlations(part, label=str(label))
    return figures


def forest(rows: pd.DataFrame, *, label: str, judge: str, alpha: float) -> go.Figure:
    """Change in refusal of each system under one judge, with its interval, the widest drop on top."""
    rows = rows.sort_values("change", ascending=False, kind="stable").reset_index(drop=True)
    names = system_names(rows["system"])
    figure = go.Figure()
    for finding, (colour, symbol, name) in _LOOKS.items():
        part = rows[rows["finding"] == finding]
        figure.add_scatter(
            x=100 * part["change"],
            y=part.index,
            name=name,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11},
            error_x=whiskers(*(100 * part[name] for name in ("change", "low", "high")), colour=colour),
            customdata=[_counts(row, names, alpha) for row in part.to_dict(orient="records")],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=bool(len(part)),
        )
    for row in rows[rows["change"].isna()].index:
        figure.add_annotation(x=0, y=row, text="no verdict in both arms", showarrow=False)
    _axes(figure, [_tick(row, names) for row in rows.to_dict(orient="records")])
    tested = rows[rows["p"].notna()]
    return _finished(
        figure,
        "Changes in refusals",
        f"{label.capitalize()} prompts, judge {_shown(judge)}. 95 % intervals; Holm's correction over "
        f"{span(tested['comparisons'] if len(tested) else [0], '.0f')} comparisons.",
        width=900,
        height=260 + 42 * len(rows),
    )


def judges_figure(rows: pd.DataFrame, *, label: str) -> go.Figure:
    """Change of each system under every judge, in points; bold where it survives."""
    systems, judges = (list(dict.fromkeys(rows[column])) for column in ("system", "judge"))
    names = system_names(systems)
    cells: dict[tuple[Any, Any], Any] = {(row.judge, row.system): row for row in rows.itertuples()}
    grid = [[cells.get((judge, system)) for system in systems] for judge in judges[::-1]]
    figure = _map(
        [[math.nan if cell is None else 100 * cell.change for cell in line] for line in grid],
        text=[["" if cell is None else _points(cell) for cell in line] for line in grid],
        x=[wrapped(_plain(names[system]), 14) for system in systems],
        y=[_shown(judge) for judge in judges[::-1]],
        most=max(1.0, 100 * float(rows["change"].abs().max())),
        scale="points",
    )
    figure.update_yaxes(title_text="judge").update_xaxes(title_text="system")
    return styled(
        figure,
        f"{label.capitalize()} prompts: change in refusals by judge",
        "Refusal rate after the edit less before, in points, by judge and system. Bold with a star: survives "
        "Holm's correction.",
        width=max(620, 280 + 74 * len(systems)),
        height=230 + 40 * len(judges),
    )


def correlations(pairs: pd.DataFrame, *, label: str) -> go.Figure:
    """Correlations of two judges: below the diagonal Pearson's, or phi of single verdicts, above it Kendall's tau.

    Judges without any are left out.
    """
    rows = pairs[pairs["pearson"].notna() | pairs["phi"].notna()]
    judges = list(dict.fromkeys([*rows["judge_a"], *rows["judge_b"]]))
    by_answer = bool(rows["phi"].notna().any())
    linear = "phi" if by_answer else "pearson"
    found: dict[tuple[str, str], float] = {}
    for row in rows.to_dict(orient="records"):
        first, second = sorted((row["judge_a"], row["judge_b"]), key=judges.index)
        found[second, first], found[first, second] = row[linear], row["tau"]
    grid = [[found.get((judge, other), math.nan) for other in judges] for judge in judges]
    shown = [_shown(judge) for judge in judges]
    figure = _map(
        grid[::-1],
        text=[["" if value != value else f"{value:.2f}" for value in line] for line in grid[::-1]],
        x=[wrapped(name, 14) for name in shown],
        y=shown[::-1],
        most=1.0,
        scale="correlation",
    )
    below = (
        "phi, of the verdicts on single answers" if by_answer else "Pearson's, of the models' refusal rates"
    )
    return styled(
        figure,
        f"{label.capitalize()} prompts: correlations of judges",
        f"Below the diagonal: {below}. Above: Kendall's tau-b of the refusal rates of "
        f"{int(rows['models'].max())} models, edited ones for themselves. Blank: a "
        "judge finds all equal, or fewer than three models are common to both.",
        width=max(620, 280 + 68 * len(judges)),
        height=250 + 40 * len(judges),
    )


def _map(
    z: list[list[float]], *, text: list[list[str]], x: list[str], y: list[str], most: float, scale: str
) -> go.Figure:
    """Numbers around 0 as a map, each with its text."""
    bar = {"title": {"text": scale, "side": "top"}, "thickness": 14}
    looks = {"colorscale": DIVERGING, "zmin": -most, "zmax": most, "xgap": 2, "ygap": 2}
    figure = go.Figure(go.Heatmap(z=z, text=text, texttemplate="%{text}", colorbar=bar, **looks))
    figure.update_traces(textfont={"size": 13})
    figure.update_traces(hovertemplate="%{z:.2f}<extra></extra>", hoverongaps=False)
    # Places are numbered: two names may read alike.
    for axis, ticks in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        axis(
            tickvals=list(range(len(ticks))), ticktext=ticks, showgrid=False, zeroline=False, automargin=True
        )
    return figure.update_xaxes(tickfont={"size": 11}, tickangle=0)


def _points(cell: Any) -> str:
    if math.isnan(cell.change):
        return ""
    text = points(cell.change) if cell.change else "0"
    return f"<b>{text}*</b>" if cell.finding == "survives" else text


def _axes(figure: go.Figure, names: list[str]) -> None:
    figure.add_vline(x=0, line={"color": COLOURS["ink"], "dash": "dot", "width": 1})
    figure.update_xaxes(title_text="change in refusal rate, edited less original, in points", tickformat="+")
    # Places are numbered: one row per comparison, and a system may have several.
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=row_range(len(names)), automargin=True
    )


def _finished(figure: go.Figure, title: str, subtitle: str, *, width: int, height: int) -> go.Figure:
    return styled(figure, title, subtitle, width=width, height=height)


def _tick(row: Mapping[Any, Any], names: Mapping[str, str]) -> str:
    name = _plain(names[row["system"]])
    return (
        f"{name}<br><span style='font-size:10px'>{row['refused_original']}/{row['n_original']} to "
        f"{row['refused_edited']}/{row['n_edited']}</span>"
    )


def _counts(row: Mapping[Any, Any], names: Mapping[str, str], alpha: float) -> str:
    name = _plain(names[row["system"]])
    return (
        f"{name}: {points(row['change'])} points [{points(row['low'])}, {points(row['high'])}], "
        f"{p_value(row['p'], alpha)}, Holm {p_value(row['p_holm'], alpha)}"
    )


def _shown(name: str) -> str:
    return _plain(short_name(name))


def _plain(name: str) -> str:
    """A name from a file, without what plotly would read as markup."""
    return name.replace("<", "‹").replace(">", "›").replace("%{", "% {")


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    clean = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.").lower()[:100]
    return clean if clean not in taken else f"{clean}-{len(taken)}"
