"""Attack success by system, attack and measure: the rows of ``attacks.csv`` as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import pandas as pd
import plotly.graph_objects as go

from mechsafety.plots.columns import Columns
from mechsafety.plots.look import Look, drawn_from
from mechsafety.plots.panels import HUES, SYMBOLS, footed, size_text
from mechsafety.plots.style import whiskers, wrapped
from mechsafety.plots.traces import side_by_side


@drawn_from(attacks=Columns(keys="system attack measure", numbers="k asr low high refused degenerate n"))
def attack_figure(attacks: pd.DataFrame, **_look: Unpack[Look]) -> go.Figure:
    """Attack success (coherent compliance) of every attack and measure by system, beside refused and degenerate.

    Example:
        >>> run = ms.load_run("runs/regions")
        >>> ms.plots.attack_figure(run.tables["attacks"]).layout.title.text
        'Attack success by system and attack'
    """
    shown = attacks.assign(series=[attack_name(row) for row in attacks.to_dict(orient="records")])
    systems = list(dict.fromkeys(shown["system"]))
    names = list(dict.fromkeys(shown["series"]))
    figure = side_by_side(
        ["attack success: answered coherently", "refused", "degenerate"],
        gap=0.045,
        column_widths=[0.5, 0.25, 0.25],
    )
    step = 0.76 / max(1, len(names))
    for order, series in enumerate(names):
        rows = shown[shown["series"] == series]
        colour, symbol = HUES[order % len(HUES)], SYMBOLS[order % len(SYMBOLS)]
        # The first system and the first attack stand on top.
        places = [
            len(systems) - 1 - systems.index(s) + step * ((len(names) - 1) / 2 - order)
            for s in rows["system"]
        ]
        # Refused and degenerate are shares of answers: of all attempts at a prompt together there is no other.
        single = (rows["measure"] != "any").all()
        for column, measure in enumerate(("asr", "refused", "degenerate")[: 3 if single else 1], start=1):
            figure.add_scatter(
                x=rows[measure],
                y=places,
                error_x=whiskers(
                    rows["asr"], rows["low"], rows["high"], colour=colour, thickness=1.4, width=3.0
                )
                if measure == "asr"
                else None,
                name=series,
                legendgroup=series,
                showlegend=column == 1,
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 8},
                customdata=rows["system"],
                hovertemplate="%{customdata}: %{x:.3~%}<extra>" + series + "</extra>",
                row=1,
                col=column,
            )
    for line in range(len(systems) - 1):
        figure.add_hline(y=line + 0.5, line={"color": "#CCCCCC", "width": 1})
    figure.update_xaxes(
        tickformat=".0%", range=[-0.03, 1.05], zeroline=False, tickvals=[0, 0.25, 0.5, 0.75, 1]
    )
    figure.update_xaxes(tickvals=[0, 0.5, 1], col=2)
    figure.update_xaxes(tickvals=[0, 0.5, 1], col=3)
    figure.update_xaxes(title_text="share of harmful prompts", col=1)
    figure.update_xaxes(title_text="share of answers", col=2)
    figure.update_xaxes(title_text="share of answers", col=3)
    figure.update_yaxes(
        tickvals=list(range(len(systems)))[::-1],
        ticktext=[wrapped(s) for s in systems],
        range=[-0.55, len(systems) - 0.45],
        automargin=True,
        showgrid=False,
        zeroline=False,
    )
    prompts = attacks[attacks["measure"] != "mean"]  # mean rows count answers
    return footed(
        figure,
        "Attack success by system and attack",
        f"{size_text(prompts, 'n')} harmful prompts. Only coherent compliance counts as success; degenerate text "
        "does not. Whiskers: 95 % intervals.",
        height=230 + len(systems) * (40 + 16 * len(names)),
    )


def attack_name(row: Mapping[Any, Any]) -> str:
    """``decoding, any of 5``: an attack and what counts as its success."""
    if row["measure"] == "greedy":
        return str(row["attack"])
    return f"{row['attack']}, {row['measure']} of {row['k']:g}"
