"""Figures of an audit: which published differences survive."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechsafety.core.wording import span
from mechsafety.plots.panels import HUES
from mechsafety.plots.style import COLOURS, legend_at_foot, short_name, styled, system_names, whiskers

_LOOKS = {
    "survives": (COLOURS["harmful"], "circle", "survives correction"),
    "lost in correction": (COLOURS["compliance"], "diamond", "below alpha, lost in correction"),
    "not shown": (COLOURS["degenerate"], "circle-open", "not shown to differ"),
}


def audit_figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """A forest plot for each judge and label, and for each label with several judges one of all of them."""
    table = tables["comparisons"]
    figures = {}
    for (label, judge), part in table.groupby(["label", "judge"], sort=False):
        figures[_unused(f"differences-{label}-{judge}", figures)] = forest(
            part, label=str(label), judge=str(judge)
        )
    several = set(zip(tables["judges"]["system"], tables["judges"]["label"], strict=True))
    for label, part in table.groupby("label", sort=False):
        chosen = part[[(system, label) in several for system in part["system"]]]
        if len(chosen):
            figures[f"judges-{label}"] = judges_figure(chosen, label=str(label))
    return figures


def forest(rows: pd.DataFrame, *, label: str, judge: str) -> go.Figure:
    """Change in refusal of each system under one judge, with its interval, the widest drop on top."""
    rows = rows.sort_values("change", ascending=False, kind="stable").reset_index(drop=True)
    names = system_names(rows["system"])
    figure = go.Figure()
    for finding, (colour, symbol, name) in _LOOKS.items():
        part = rows[rows["finding"] == finding]
        figure.add_scatter(
            x=part["change"],
            y=part.index,
            name=name,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11},
            error_x=whiskers(part["change"], part["low"], part["high"], colour=colour),
            customdata=[_counts(row, names) for row in part.to_dict(orient="records")],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=bool(len(part)),
        )
    for row in rows[rows["change"].isna()].index:
        figure.add_annotation(x=0, y=row, text="no verdict in both arms", showarrow=False)
    _axes(figure, [_tick(row, names) for row in rows.to_dict(orient="records")])
    survivors = rows[rows["finding"] == "survives"]
    tested = rows[rows["p"].notna()]
    title = f"{len(survivors)} of {len(tested)} changes in refusal survive correction"
    return _finished(
        figure,
        title,
        f"{label.capitalize()} prompts, judge {_shown(judge)}. 95 % intervals; Holm's correction over "
        f"{span(tested['comparisons'] if len(tested) else [0], '.0f')} comparisons.",
        width=900,
        height=260 + 42 * len(rows),
    )


def judges_figure(rows: pd.DataFrame, *, label: str) -> go.Figure:
    """Change of each system under every judge: filled where it survives."""
    systems = list(dict.fromkeys(rows["system"]))[::-1]
    names = system_names(systems)
    judges = list(dict.fromkeys(rows["judge"]))
    figure = go.Figure()
    for number, judge in enumerate(judges):
        part = rows[(rows["judge"] == judge) & rows["change"].notna()]
        colour = HUES[number % len(HUES)]
        shift = (number - (len(judges) - 1) / 2) * 0.6 / len(judges)
        figure.add_scatter(
            x=part["change"],
            y=[systems.index(system) - shift for system in part["system"]],
            name=_shown(judge),
            mode="markers",
            marker={
                "color": colour,
                "size": 10,
                "symbol": ["circle" if f == "survives" else "circle-open" for f in part["finding"]],
                "line": {"width": 2, "color": colour},
            },
            error_x=whiskers(part["change"], part["low"], part["high"], colour=colour, thickness=1.0),
            customdata=[_counts(row, names) for row in part.to_dict(orient="records")],
            hovertemplate="%{customdata}<extra>" + _shown(judge) + "</extra>",
        )
    _axes(figure, [_plain(names[system]) for system in systems])
    survives = (rows["finding"] == "survives").groupby(rows["system"]).mean()
    changed = int(((survives > 0) & (survives < 1)).sum())
    return _finished(
        figure,
        f"{label.capitalize()} prompts: {changed} of {len(systems)} results survive under some judges only",
        "Filled: survives Holm's correction under that judge. 95 % intervals.",
        width=900,
        height=270 + (30 + 16 * len(judges)) * len(systems),
    )


def _axes(figure: go.Figure, names: list[str]) -> None:
    figure.add_vline(x=0, line={"color": COLOURS["ink"], "dash": "dot", "width": 1})
    figure.update_xaxes(title_text="change in refusal rate (edited less original)", tickformat="+.0%")
    # Places are numbered: one row per comparison, and a system may have several.
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[-0.6, len(names) - 0.4], automargin=True
    )


def _finished(figure: go.Figure, title: str, subtitle: str, *, width: int, height: int) -> go.Figure:
    styled(figure, title, subtitle, width=width, height=height)
    return legend_at_foot(figure).update_layout(margin={"t": 90})


def _tick(row: Mapping[Any, Any], names: Mapping[str, str]) -> str:
    name = _plain(names[row["system"]])
    return (
        f"{name}<br><span style='font-size:10px'>{row['refused_original']}/{row['n_original']} to "
        f"{row['refused_edited']}/{row['n_edited']}</span>"
    )


def _counts(row: Mapping[Any, Any], names: Mapping[str, str]) -> str:
    name = _plain(names[row["system"]])
    return (
        f"{name}: {row['change']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}], p {row['p']:.2g}, "
        f"Holm {row['p_holm']:.2g}"
    )


def _shown(name: str) -> str:
    return _plain(short_name(name))


def _plain(name: str) -> str:
    """A name from a file, without what plotly would read as markup."""
    return name.replace("<", "‹").replace(">", "›").replace("%{", "% {")


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    clean = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.").lower()[:100]
    return clean if clean not in taken else f"{clean}-{len(taken)}"
