"""Figures of what parts of a fine-tuning do, and of dW beside the refusal direction and safety-critical weights."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.experiments.anatomy.panels import (
    GROUP_NAMES,
    MODELS,
    UNSAFE,
    Line,
    LinePanel,
    Names,
    Tables,
    by_kind,
    chance_line,
    columns_for,
    finished,
    hue,
    line_panels,
    who,
)
from mechsafety.experiments.anatomy.weight_findings import SETS, energy_above, state_name
from mechsafety.experiments.regions.findings import pooled
from mechsafety.plots.panels import told_size
from mechsafety.plots.style import COLOURS, whiskers


def part_figures(tables: Tables, *, names: Names) -> dict[str, go.Figure]:
    """The figures of reversal, links and ablation that the tables allow, by file name."""
    figures = {}
    if "reversal" in tables:
        figures["anatomy-reversal"] = reversal_figure(tables["reversal"], names)
    if "links" in tables:
        figures |= link_figures(tables["links"], names)
    if "ablation" in tables:
        figures["anatomy-ablation"] = ablation_figure(tables["ablation"], names)
    return figures


def outcome_bars(table: pd.DataFrame, states: Sequence[str], *, title: str, subtitle: str) -> go.Figure:
    """Refused, answered and degenerate of every group as stacked bars, a row a state; whiskers: of refused.

    ``table`` has a column ``place`` with the state's index in ``states``, the first of which stands on top.
    """
    groups = [str(group) for group in dict.fromkeys(table["group"])]
    figure = make_subplots(
        rows=1,
        cols=len(groups),
        shared_yaxes=True,
        horizontal_spacing=0.12 / len(groups),
        subplot_titles=[GROUP_NAMES.get(group, group) for group in groups],
    )
    parts = (
        ("refused", "refusal", "refused"),
        ("answered coherently", "compliance", "complied"),
        ("degenerate", "degenerate", "degenerate"),
    )
    for column, group in enumerate(groups, start=1):
        rows = table[table["group"] == group]
        for name, colour, measure in parts:
            figure.add_bar(
                x=rows[measure],
                y=rows["place"],
                orientation="h",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                marker={"color": COLOURS[colour], "line": {"width": 0}},
                hovertemplate="%{x:.0%}<extra>" + name + "</extra>",
                row=1,
                col=column,
            )
        ends = (rows["refused"], rows["refused_low"], rows["refused_high"])
        # Marks of their own: the next bar of a stack hides the whiskers of the one before.
        figure.add_scatter(
            x=rows["refused"],
            y=rows["place"],
            error_x=whiskers(*ends, colour=COLOURS["ink"], thickness=1.3, width=3.0),
            mode="markers",
            marker={"opacity": 0},
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=column,
        )
    figure.update_layout(barmode="stack", bargap=0.3)
    # Without the end of the axis: it would run into the 0 of the next panel.
    figure.update_xaxes(range=[0, 1.04], tickvals=[0, 0.5], ticktext=["0", "50%"])
    figure.update_yaxes(
        tickvals=list(range(len(states))),
        ticktext=list(states),
        range=[len(states) - 0.4, -0.6],
        automargin=True,
        showgrid=False,
    )
    figure = finished(figure, title, subtitle, rows=1, named=[name for name, _, _ in parts], letters=112)
    margin = figure.layout.margin
    return figure.update_layout(height=margin.t + margin.b + 34 * len(states))


def reversal_figure(reversal: pd.DataFrame, names: Names) -> go.Figure:
    """What models with a part of dW answer, a row a state."""
    states = list(dict.fromkeys(zip(reversal["state"], reversal["r"].fillna(-1.0), strict=True)))
    places = {state: place for place, state in enumerate(states)}
    keys = zip(reversal["state"], reversal["r"].fillna(-1.0), strict=True)
    placed = reversal.assign(place=[places[key] for key in keys])
    unsafe = placed[placed["group"] == UNSAFE].set_index("state")
    said = [
        f"{what} {pooled(unsafe.loc[[state]], 'refused').value:.0%}"
        for state, what in (("tuned", "all"), ("mlp", "MLPs"), ("rest", "the rest"), ("random", "random"))
        if state in unsafe.index
    ]
    return outcome_bars(
        placed,
        [state_name(what, r) for what, r in states],
        title=f"Unsafe prompts refused with dW of: {', '.join(said)}",
        subtitle=f"{who('base', names)} and {who('tuned', names)}. {told_size(reversal, 'n')} prompts of a group at "
        "most. Whiskers: 95 % intervals of refused.",
    )


def ablation_figure(ablation: pd.DataFrame, names: Names) -> go.Figure:
    """What the tuned model answers without its refusal direction, and without a random one."""
    states = list(dict.fromkeys(ablation["state"]))
    placed = ablation.assign(place=[states.index(state) for state in ablation["state"]])
    unsafe = placed[placed["group"] == UNSAFE].set_index("state")
    said = [
        f"{what} {pooled(unsafe.loc[[state]], 'refused').value:.0%}"
        for state, what in (
            ("tuned", "as it is"),
            ("ablated", "direction ablated"),
            ("random_ablated", "random one ablated"),
        )
        if state in unsafe.index
    ]
    return outcome_bars(
        placed,
        [state_name(state, 0.0) for state in states],
        title=f"Unsafe prompts refused: {', '.join(said)}",
        subtitle=f"{who('tuned', names)}; the direction of layer {int(ablation['layer'].max())} projected out "
        f"everywhere. {told_size(ablation, 'n')} prompts of a group at most. Whiskers: 95 % intervals of refused.",
    )


def link_figures(links: pd.DataFrame, names: Names) -> dict[str, go.Figure]:
    """dW beside the refusal direction, and beside sets of safety-critical weights."""
    figures = {}
    if "energy" in set(links["what"]):
        figures["anatomy-direction"] = direction_figure(links, names)
    if len(held := links[links["what"].isin(SETS)]):
        figures["anatomy-weight-sets"] = sets_figure(held, names)
    return figures


def direction_figure(links: pd.DataFrame, names: Names) -> go.Figure:
    """Energy of dW along the refusal direction, and its cosines with dW's singular vectors, by layer."""
    rows_of = {what: links[links["what"] == what] for what in dict.fromkeys(links["what"])}
    looks = {
        "energy": ("dW", *MODELS["tuned"]),
        "energy_base": ("W of the base", *MODELS["base"]),
        "energy_random": ("dW, random directions (95 %)", *MODELS["random"]),
    }
    kinds = list(dict.fromkeys(rows_of["energy"]["kind"]))

    def line(what: str, kind: str, look: tuple[str, str, str]) -> Line:
        rows = rows_of[what]
        columns = {"layer": "x", "value": "y", "low": "low", "high": "high"}
        picked = rows[rows["kind"] == kind].rename(columns=columns)[list(columns.values())]
        return Line(name=look[0], rows=picked, colour=look[1], dash=look[2])

    panels = [
        LinePanel(
            title=f"{kind}: energy along the direction",
            lines=[line(what, kind, look) for what, look in looks.items() if what in rows_of],
            y_title="share of energy",
            form="log",
        )
        for kind in kinds
    ]
    for what, said in (
        ("cosine_first", "first left singular vector"),
        ("cosine_top", "top singular vectors"),
    ):
        for kind in kinds if what in rows_of else ():
            part = rows_of[what][rows_of[what]["kind"] == kind]
            panels.append(
                LinePanel(
                    title=f"{kind}: cosine with {said}",
                    lines=[
                        line(what, kind, looks["energy"]),
                        chance_line(part.set_index("layer")["chance"], "chance"),
                    ],
                    y_title="cosine",
                )
            )
    above, n = energy_above(links)
    return line_panels(
        panels,
        x_title="layer",
        title=f"dW along the refusal direction: above 97.5 % of random directions in {above} of {n} matrices",
        subtitle=f"{who('tuned', names)}. Matrices that write to the residual stream. Energy: ||u<sup>T</sup> dW||² / "
        "||dW||², logarithmic.",
        columns=len(kinds),
    )


def sets_figure(held: pd.DataFrame, names: Names) -> go.Figure:
    """How much of dW's energy the safety-critical weights hold, by layer and kind."""
    shown = {"snip": "SNIP", "wanda": "Wanda", "magnitude": "largest weights"}
    columns = {"layer": "x", "value": "y"}

    def lines(rows: pd.DataFrame) -> list[Line]:
        picked = rows.rename(columns=columns)
        found = [
            Line(name=name, rows=picked.loc[picked["what"] == what, ["x", "y"]], colour=hue(order))
            for order, (what, name) in enumerate(shown.items())
            if what in set(rows["what"])
        ]
        chance = rows.groupby("layer")["chance"].mean()
        return [*found, chance_line(chance, "as many weights by chance")]

    medians = held.groupby("what")["value"].median()
    said = [f"{name} {medians[what]:.0%}" for what, name in shown.items() if what in medians.index]
    panels = by_kind(held, lines, y_title="share of ||dW||²", form="log")
    return line_panels(
        panels,
        x_title="layer",
        title=f"Energy of dW in {held['chance'].median():.0%} of the weights (median): {', '.join(said)}",
        subtitle=f"{who('tuned', names)}. The weights of each matrix with the highest scores on the model's own "
        "refusals, and the largest ones. Logarithmic.",
        columns=columns_for(len(panels)),
    )
