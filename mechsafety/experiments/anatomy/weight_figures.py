"""Figures of a fine-tuning's weights: what dW is, what parts of it do, and dW beside directions and weight sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go

from mechsafety.experiments.anatomy.naming import (
    GROUP_NAMES,
    MODELS,
    POSITIONS,
    SETS,
    Names,
    Tables,
    model_lines,
    rows_of,
    state_name,
    who,
)
from mechsafety.plots.lines import (
    Line,
    LinePanel,
    by_kind,
    chance_line,
    columns_for,
    finished,
    level,
    line_panels,
)
from mechsafety.plots.panels import HUES, size_text
from mechsafety.plots.style import COLOURS, whiskers
from mechsafety.plots.traces import side_by_side


def weight_figures(tables: Tables, *, names: Names, only: tuple[str, ...]) -> dict[str, go.Figure]:
    """Every figure of weights and of their parts that the tables allow and whose name begins as ``only``."""
    drawn: tuple[tuple[str, str, Callable[[pd.DataFrame, Names], go.Figure]], ...] = (
        ("weight_changes", "anatomy-size", size_figure),
        ("spectrum", "anatomy-spectrum", spectrum_figure),
        ("weight_changes", "anatomy-null-space-90", lambda t, n: null_space_figure(t, 90, n)),
        ("weight_changes", "anatomy-null-space-99", lambda t, n: null_space_figure(t, 99, n)),
        ("action_ratios", "anatomy-action", action_figure),
        ("reversal", "anatomy-reversal", reversal_figure),
        ("directions", "anatomy-direction", direction_figure),
        ("sets", "anatomy-weight-sets", sets_figure),
        ("ablation", "anatomy-ablation", ablation_figure),
    )
    there = dict(tables)
    if "links" in tables:
        what = tables["links"]["what"]
        there["sets"] = tables["links"][what.isin(SETS)]
        there["directions"] = tables["links"] if "energy" in set(what) else tables["links"].iloc[:0]
    return {
        file: draw(there[key], names)
        for key, file, draw in drawn
        if key in there and len(there[key]) and file.startswith(only)
    }


def size_figure(changes: pd.DataFrame, names: Names) -> go.Figure:
    """How large dW is beside W, and its effective rank, by layer and kind."""
    sized = changes[changes["model"] != "random"].assign(percent=lambda t: 100 * t["relative_norm"])

    def panels(table: pd.DataFrame, column: str, title: str) -> list[LinePanel]:
        lines = {"layer": "x", column: "y"}
        return by_kind(table, lambda rows: model_lines(rows, lines, names), y_title=title, form="log")

    both = [
        *panels(sized, "percent", "||dW|| / ||W||, %"),
        *panels(changes, "effective_rank", "effective rank"),
    ]
    return line_panels(
        both,
        x_title="layer",
        title="Size of dW beside the base's weights, and its effective rank, by layer",
        subtitle="Top: Frobenius norms. Below: effective rank of dW (exponential of the entropy of its energies). "
        "Logarithmic.",
        columns=len(both) // 2,
    )


def spectrum_figure(spectrum: pd.DataFrame, names: Names) -> go.Figure:
    """Singular values of dW, median over layers, and how much its input directions read of unsafe prompts."""
    over = spectrum.groupby(["model", "kind", "index"], sort=False)
    sigma = over["sigma"].quantile([0.0, 0.5, 1.0]).unstack().reset_index()
    sigma = sigma.rename(columns={0.0: "low", 0.5: "y", 1.0: "high"}).assign(x=lambda t: t["index"] + 1)
    panels = by_kind(
        sigma,
        lambda rows: model_lines(rows, {"x": "x", "y": "y", "low": "low", "high": "high"}, names),
        y_title="singular value",
        form="log",
    )
    read = over[["projection_safe", "projection_unsafe"]].median().reset_index()
    read = read.assign(x=read["index"] + 1, y=read["projection_unsafe"] / read["projection_safe"])
    if read["y"].notna().any():
        panels += by_kind(
            read,
            lambda rows: [
                *model_lines(rows, {"x": "x", "y": "y"}, names),
                level(rows["x"], 1.0, "safe and unsafe alike"),
            ],
            y_title="read: unsafe / safe",
        )
    kinds = spectrum["kind"].nunique()
    return line_panels(
        panels,
        x_title="place of the singular direction",
        title="Spectra of dW, and what its input directions read",
        subtitle="Top: median over layers; bands: lowest to highest layer. Below: sigma |&lt;a, v>| / ||a||, unsafe "
        "over safe prompts. Only what lies above the rounding of the weights. Random dW: of the tuned one's norm.",
        columns=kinds,
    )


def null_space_figure(changes: pd.DataFrame, energy: int, names: Names) -> go.Figure:
    """Alignment of dW's top directions with the left null space of W, less chance, by layer and kind."""
    over = changes.assign(y=changes[f"alignment_{energy}"] - changes[f"chance_{energy}"])
    panels = by_kind(
        over,
        lambda rows: [
            *model_lines(rows, {"layer": "x", "y": "y"}, names),
            level(rows["layer"], 0.0, "chance"),
        ],
        y_title="excess over chance",
    )
    chance = changes[f"chance_{energy}"]
    return line_panels(
        panels,
        x_title="layer",
        title="Alignment of dW with the left null space of W, less chance, by layer",
        subtitle=f"Outputs beyond those that hold {energy} % of W's energy. Root mean square of ||P u|| over dW's top "
        f"left singular vectors, less what chance gives ({chance.min():.2f} to {chance.max():.2f}).",
        columns=columns_for(len(panels)),
    )


def action_figure(ratios: pd.DataFrame, names: Names) -> go.Figure:
    """How much more dW acts on unsafe than on safe prompts, by layer and kind."""
    columns = {"layer": "x", "ratio": "y", "low": "low", "high": "high"}
    panels = [
        replace(panel, title=f"{panel.title}, {name}")
        for positions, name in POSITIONS.items()
        if len(at := rows_of(ratios, positions=positions))
        for panel in by_kind(
            at,
            lambda rows: [
                *model_lines(rows, columns, names),
                level(rows["layer"], 1.0, "safe and unsafe alike"),
            ],
            y_title="unsafe / safe",
        )
    ]
    return line_panels(
        panels,
        x_title="layer",
        title="Action of dW on unsafe over safe prompts, by layer and place",
        subtitle="||dW a|| / ||a||, mean over unsafe prompts over mean over safe ones; a: what the matrix "
        "reads. Bands: 95 % intervals over prompts.",
        columns=columns_for(len(panels)),
    )


def state_bars(table: pd.DataFrame, *, title: str, subtitle: str) -> go.Figure:
    """Refused, answered and degenerate of every group as stacked bars, one row per state; whiskers: of refused."""
    ranks = table["r"].fillna(-1.0) if "r" in table else [0.0] * len(table)
    keys = list(zip(table["state"], ranks, strict=True))
    places = {state: place for place, state in enumerate(dict.fromkeys(keys))}
    states = [state_name(what, r) for what, r in places]
    table = table.assign(place=[places[key] for key in keys])
    groups = [str(group) for group in dict.fromkeys(table["group"])]
    figure = side_by_side([GROUP_NAMES.get(group, group) for group in groups], gap=0.12 / len(groups))
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
                hovertemplate="%{x:.3~%}<extra>" + name + "</extra>",
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
    return finished(figure, title, subtitle, area=34 * len(states))


def reversal_figure(reversal: pd.DataFrame, names: Names) -> go.Figure:
    """What models with a part of dW answer, one row per state."""
    return state_bars(
        reversal,
        title="Answers of models with parts of dW, by group of prompts",
        subtitle=f"{who('base', names)} and {who('tuned', names)}. {size_text(reversal, 'n')} prompts of a group at "
        "most. Whiskers: 95 % intervals of refused.",
    )


def ablation_figure(ablation: pd.DataFrame, names: Names) -> go.Figure:
    """What the tuned model answers without its refusal direction, and without a random one."""
    return state_bars(
        ablation,
        title="Answers with the refusal direction ablated, by group of prompts",
        subtitle=f"{who('tuned', names)}; the direction of layer {int(ablation['layer'].max())} projected out "
        f"everywhere. {size_text(ablation, 'n')} prompts of a group at most. Whiskers: 95 % intervals of refused.",
    )


def direction_figure(links: pd.DataFrame, names: Names) -> go.Figure:
    """Energy of dW along the refusal direction, and its cosines with dW's singular vectors, by layer."""
    of_what = {str(what): rows for what, rows in links.groupby("what", sort=False)}
    looks = {
        "energy": ("dW", *MODELS["tuned"]),
        "energy_base": ("W of the base", *MODELS["base"]),
        "energy_random": ("dW, random directions (95 %)", *MODELS["random"]),
    }
    kinds = list(dict.fromkeys(of_what["energy"]["kind"]))

    def line(what: str, kind: str, look: tuple[str, str, str]) -> Line:
        rows = of_what[what]
        columns = {"layer": "x", "value": "y", "low": "low", "high": "high"}
        picked = rows[rows["kind"] == kind].rename(columns=columns)[list(columns.values())]
        return Line(name=look[0], rows=picked, colour=look[1], dash=look[2])

    panels = [
        LinePanel(
            title=f"{kind}: energy along the direction",
            lines=[line(what, kind, look) for what, look in looks.items() if what in of_what],
            y_title="share of energy",
            form="log",
        )
        for kind in kinds
    ]
    for what, sentence in (
        ("cosine_first", "first left singular vector"),
        ("cosine_top", "top singular vectors"),
    ):
        for kind in kinds if what in of_what else ():
            part = of_what[what][of_what[what]["kind"] == kind]
            panels.append(
                LinePanel(
                    title=f"{kind}: cosine with {sentence}",
                    lines=[
                        line(what, kind, looks["energy"]),
                        chance_line(part.set_index("layer")["chance"], "chance"),
                    ],
                    y_title="cosine",
                )
            )
    return line_panels(
        panels,
        x_title="layer",
        title="Energy of dW along the refusal direction, and cosines with it, by layer",
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
            Line(
                name=name, rows=picked.loc[picked["what"] == what, ["x", "y"]], colour=HUES[order % len(HUES)]
            )
            for order, (what, name) in enumerate(shown.items())
            if what in set(rows["what"])
        ]
        chance = rows.groupby("layer")["chance"].mean()
        return [*found, chance_line(chance, "as many weights by chance")]

    panels = by_kind(held, lines, y_title="share of ||dW||²", form="log")
    return line_panels(
        panels,
        x_title="layer",
        title="Energy of dW in the weights with the highest scores, by layer",
        subtitle=f"{who('tuned', names)}. The weights of each matrix with the highest scores on the model's own "
        "refusals, and the largest ones. Logarithmic.",
        columns=columns_for(len(panels)),
    )
