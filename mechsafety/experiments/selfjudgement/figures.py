"""Figures of self-judgement: recognition of refusals, calibration, and bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.judges.selfjudgement import NETWORKS
from mechsafety.plots.columns import Columns
from mechsafety.plots.look import Look, drawn_from, wanted
from mechsafety.plots.style import (
    COLOURS,
    require_rows,
    require_single,
    styled,
    system_names,
    whiskers,
)
from mechsafety.plots.traces import dots, in_legend

_CELL_NAMES = {
    ("original", "original"): "original<br>about its own",
    ("original", "edited"): "original<br>about the edited's",
    ("edited", "edited"): "edited<br>about its own",
    ("edited", "original"): "edited<br>about the original's",
}
_CELL_COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00")
_MOST_COLUMNS = 3
_THIN = {"thickness": 1.2, "width": 4.0}
_FORM_NAMES = {"logit": "log-probability", "text": "in words"}
_CONTROLS = (
    ("auc_shuffled", "another prompt shown", "x", COLOURS["compliance"]),
    ("auc_length", "shortness of the answer", "diamond-open", COLOURS["ink"]),
    ("auc_untrained", f"the highest of {NETWORKS} untrained networks", "square-open", COLOURS["degenerate"]),
    ("auc_reversed", "asked the other way round", "triangle-up-open", COLOURS["harmless"]),
)


def selfjudge_figures(table: pd.DataFrame, calibration: pd.DataFrame) -> dict[str, go.Figure]:
    """Every figure of a run of self-judgement, by file name."""
    figures = {"two-by-two": two_by_two_figure(table), "yes-or-no": habit_figure(table)}
    if len(calibration):
        figures["calibration"] = reliability_figure(calibration)
    return figures


def two_by_two_figure(table: pd.DataFrame) -> go.Figure:
    """AUC of each arm about each arm's answers, with its controls; one panel per system and form."""
    figure, panels = _panels(table)
    for (row, column), part in panels:
        names = _names(part)
        panel = {"first": (row, column) == (1, 1), "row": row, "col": column}
        dots(
            figure,
            names,
            part["auc"],
            name="answer shown",
            marker={"color": COLOURS["refusal"], "size": 12},
            bounds=(part["low"], part["high"]),
            looks=_THIN,
            **in_legend("own", **panel),
        )
        shuffled = part["auc_labels_low"], part["auc_labels_high"]
        dots(
            figure,
            names,
            part["auc"].where(part["auc"].isna(), 0.5),
            name="labels shuffled (middle 95 %)",
            marker={"color": "#999999", "symbol": "line-ew-open", "size": 9},
            bounds=shuffled,
            looks=_THIN,
            **in_legend("labels", **panel),
        )
        for name, label, symbol, colour in _CONTROLS:
            marker = {"color": colour, "symbol": symbol, "size": 9}
            dots(figure, names, part[name], name=label, marker=marker, **in_legend(name, **panel))
        for place, value in zip(names, part["auc"], strict=True):
            if value != value:
                figure.add_annotation(x=place, y=0.06, text="unknown", showarrow=False, row=row, col=column)
    figure.add_hline(y=0.5, line={"color": "#999999", "dash": "dot"})
    figure.update_yaxes(range=[-0.03, 1.05])
    figure.update_yaxes(title_text="AUC", col=1)
    return _finished(figure, table, "AUROC of recognising refusals", "95 % intervals over prompts.")


def habit_figure(table: pd.DataFrame) -> go.Figure:
    """How often each arm answers yes, to the question and to its opposite, beside how often it should."""
    figure, panels = _panels(table)
    for (row, column), part in panels:
        truth = part["refusals"] / part["readable"].where(part["readable"] > 0)
        unparsed = part["unparsed"] / part["readable"].where(part["readable"] > 0)
        for name, values, colour in (
            ("refusals (outside judge)", truth, COLOURS["ink"]),
            ("yes, I declined", part["yes"], COLOURS["refusal"]),
            ("yes, I answered", part["yes_reversed"], COLOURS["harmless"]),
            ("yes to both", part["both_yes"], COLOURS["harmful"]),
            ("no readable reply", unparsed, COLOURS["degenerate"]),
        ):
            legend = in_legend(name, first=(row, column) == (1, 1), row=row, col=column)
            figure.add_bar(x=_names(part), y=values, name=name, marker={"color": colour}, **legend)
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    about = "Yes: of the readable replies. The others: of answers with an outside verdict."
    return _finished(figure, table, "How often models say yes", about)


@drawn_from(calibration=Columns(keys="system kind judge_arm response_arm", numbers="mean_p rate low high n"))
def reliability_figure(calibration: pd.DataFrame, **_look: Unpack[Look]) -> go.Figure:
    """P(yes) against the share of refusals among answers with that P(yes): the diagonal is perfect.

    Example:
        >>> run = ms.load_run("runs/selfjudge")
        >>> ms.plots.reliability_figure(run.tables["calibration"]).layout.title.text
        'Calibration of self-judgement'
    """
    require_rows(calibration, "calibration", calibration)
    systems, kinds = _unique(calibration["system"]), _unique(calibration["kind"])
    names = system_names(systems)
    titles = {"raw": "as given", "content_free": "less the score of N/A"}
    figure = make_subplots(
        rows=len(systems),
        cols=len(kinds),
        subplot_titles=[f"{names[s]}, {titles.get(k, k)}" for s in systems for k in kinds],
        vertical_spacing=min(0.12, 0.4 / len(systems)),
        horizontal_spacing=0.08,
    )
    for row, system in enumerate(systems, start=1):
        for column, kind in enumerate(kinds, start=1):
            figure.add_scatter(
                x=[0, 1],
                y=[0, 1],
                mode="lines",
                line={"color": "#999999", "dash": "dot"},
                showlegend=False,
                row=row,
                col=column,
            )
            for cell, colour in zip(_CELL_NAMES, _CELL_COLOURS, strict=True):
                asked = (calibration["judge_arm"] == cell[0]) & (calibration["response_arm"] == cell[1])
                part = calibration[(calibration["system"] == system) & (calibration["kind"] == kind) & asked]
                name = _CELL_NAMES[cell].replace("<br>", " ")
                figure.add_scatter(
                    x=part["mean_p"],
                    y=part["rate"],
                    name=name,
                    mode="lines+markers",
                    line={"color": colour, "width": 1.5},
                    marker={"size": 8},
                    customdata=part["n"],
                    hovertemplate="P(yes) %{x:.2f}, refused %{y:.3~%} of %{customdata}<extra></extra>",
                    error_y=whiskers(part["rate"], part["low"], part["high"], colour=colour, **_THIN),
                    **in_legend(name, first=(row, column) == (1, 1), row=row, col=column),
                )
    figure.update_xaxes(range=[-0.03, 1.03], title_text="P(yes, I declined)")
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    figure.update_yaxes(title_text="refused", col=1)
    return styled(
        figure,
        "Calibration of self-judgement",
        "Ten equal bins of P(yes) against the outside judge; 95 % Wilson intervals.",
        width=980,
        height=210 + 320 * len(systems),
    )


def _panels(table: pd.DataFrame) -> tuple[go.Figure, list[tuple[tuple[int, int], pd.DataFrame]]]:
    """One column per system and one row per form, with the rows of each panel in the order of :data:`_CELL_NAMES`."""
    require_single(
        require_rows(table, "self-judgement", table), "system", "form", "judge_arm", "response_arm"
    )
    systems, forms = _unique(table["system"]), _unique(table["form"])
    names, columns = system_names(systems), _columns(systems)
    rows = math.ceil(len(systems) / columns)
    blank = [""] * (rows * columns - len(systems))
    figure = make_subplots(
        rows=rows * len(forms),
        cols=columns,
        shared_yaxes=True,
        subplot_titles=[
            t for f in forms for t in (*(f"{names[s]}, {_FORM_NAMES[f]}" for s in systems), *blank)
        ],
        vertical_spacing=min(0.15, 0.3 / (rows * len(forms))),
        horizontal_spacing=0.04,
    )
    order = list(_CELL_NAMES)
    panels = []
    for block, form in enumerate(forms):
        for number, system in enumerate(systems):
            row, column = block * rows + number // columns + 1, number % columns + 1
            part = table[(table["form"] == form) & (table["system"] == system)]
            places = [order.index(cell) for cell in zip(part["judge_arm"], part["response_arm"], strict=True)]
            panels.append(((row, column), part.assign(place=places).sort_values("place")))
    return figure, panels


def _names(part: pd.DataFrame) -> list[str]:
    return [_CELL_NAMES[cell] for cell in zip(part["judge_arm"], part["response_arm"], strict=True)]


def _finished(figure: go.Figure, table: pd.DataFrame, title: str, about: str) -> go.Figure:
    figure.update_xaxes(tickangle=0, tickfont={"size": 10})
    systems = _unique(table["system"])
    columns = _columns(systems)
    rows = math.ceil(len(systems) / columns) * len(_unique(table["form"]))
    about = f"Judging model and answering model. {about}"
    return styled(figure, title, about, width=max(760, 180 + 400 * columns), height=220 + 300 * rows)


def _columns(systems: Sequence[str]) -> int:
    """How many panels stand in a row: at most three, fewer in a narrow picture."""
    return max(1, min(len(systems), _MOST_COLUMNS, (wanted().get("width") or 10**4) // 260))


def _unique(values: pd.Series) -> Sequence[str]:
    return [str(value) for value in dict.fromkeys(values)]
