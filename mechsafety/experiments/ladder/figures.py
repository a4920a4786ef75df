"""Figures of a ladder: refusals against directions removed, answers that replace them, cost, and subspaces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.claims import Claim
from mechsafety.claims.sentences import NO_VERDICTS
from mechsafety.core.wording import percent_cell, span
from mechsafety.experiments.ladder.contrasts import Claims, ladder_claims, ladder_systems, rung_names
from mechsafety.experiments.ladder.findings import tallied
from mechsafety.experiments.ladder.matrices import ladder_matrices, link_figure
from mechsafety.plots.columns import Columns
from mechsafety.plots.lines import band, faded
from mechsafety.plots.look import Look, drawn_from
from mechsafety.plots.panels import HUES, WIDTH, Panel, Series, outcome_panels, panel_height
from mechsafety.plots.style import COLOURS, HEAT, require_rows, styled, whiskers, wrapped
from mechsafety.statistics.pooled import pooled

_COLUMNS = 4
_RANDOM = COLOURS["ink"]
# Two of Tol's muted colours in place of black and grey, which are the controls'.
_HUES = (*HUES[:6], "#999933", "#882255")
_SHOWN = (
    ("refused", "refused", COLOURS["refusal"]),
    ("complied", "answered coherently", COLOURS["compliance"]),
    ("degenerate", "degenerate", COLOURS["degenerate"]),
)
_COST = (
    (
        Panel(column="kl", title="KL of the next token (nats)", form="kl"),
        Panel(column="ratio", title="perplexity, times unedited", form="kl"),
    ),
    (
        Panel(column="refused", title="harmless prompts: refused"),
        Panel(column="degenerate", title="harmless prompts: degenerate"),
    ),
)


def ladder_figures(tables: Mapping[str, pd.DataFrame], *, layer: int | None) -> dict[str, go.Figure]:
    """Every figure of a ladder by file name; ``layer`` is the one at which its comparison shows matrices."""
    names = rung_names(ladder_systems(tables))
    harmful, harmless = (
        tables["survival"][tables["survival"]["label"] == name] for name in ("harmful", "harmless")
    )
    figures = {
        "ladder-overview": overview_figure(harmful, names, ladder_claims(tables)),
        "ladder-survival": survival_figure(harmful, names),
        "ladder-answers": answers_figure(harmful, names),
    }
    if len(harmless):
        figures["ladder-cost"] = cost_figure(harmless)
    if len(tables.get("ranks", ())):
        figures["ladder-ranks"] = ranks_figure(tables["ranks"], names)
    figures |= ladder_matrices(tables, names, layer=layer)
    if len(tables.get("links", ())):
        figures["ladder-links"] = link_figure(tables["links"], names)
    return figures


def overview_figure(harmful: pd.DataFrame, names: Mapping[str, str], claims: Claims) -> go.Figure:
    """Refused harmful prompts, one row per system: unedited, without refusal directions, and without random ones.

    Cells mark which changes are shown, and which go beyond random directions.
    """
    counts = [k for k in _counts(harmful) if k]
    shares = harmful.groupby(["system", "kind", "directions"])["refused"].mean()
    states = [("unedited", 0), *(("refusal", k) for k in counts), *(("random", k) for k in counts)]

    def cell(system: str, kind: str, directions: int) -> tuple[float, str]:
        value = float(shares.get((system, kind, directions), math.nan))
        marked = claims.get((system, directions)) if kind == "refusal" else None
        return value, percent_cell(value) + (_marks(marked) if marked else "")

    systems = list(names)[::-1]
    rows = [[cell(system, *state) for state in states] for system in systems]
    z, text = ([[cell[part] for cell in row] for row in rows] for part in (0, 1))
    ticks = ["unedited", *(str(k) for k in counts), *(f"{k} " for k in counts)]
    figure = go.Figure(
        go.Heatmap(
            **{"z": z, "text": text, "texttemplate": "%{text}", "xgap": 2, "ygap": 2},
            **{"zmin": 0, "zmax": 1, "colorscale": HEAT, "hoverongaps": False},
            customdata=[[f"{names[s]}, {tick}" for tick in ticks] for s in systems],
            hovertemplate="%{customdata}: %{z:.3~%}<extra></extra>",
            colorbar={"title": {"text": "refused"}, "tickformat": ".0%", "thickness": 14},
        )
    )
    places = list(range(len(ticks)))
    figure.update_xaxes(tickvals=places, ticktext=ticks, showgrid=False, zeroline=False, side="top")
    figure.update_yaxes(
        tickvals=list(range(len(systems))),
        ticktext=[wrapped(names[s], 20) for s in systems],
        showgrid=False,
        zeroline=False,
    )
    for first, name in ((1, "refusal directions removed"), (1 + len(counts), "random directions removed")):
        figure.add_annotation(
            **{"text": name, "x": first - 0.5 + len(counts) / 2, "y": 0, "yref": "paper", "yanchor": "top"},
            **{"yshift": -6, "showarrow": False, "font": {"size": 12}},
        )
    for place in (0.5, 0.5 + len(counts)):
        figure.add_vline(x=place, line={"color": COLOURS["ink"], "width": 1.5})
    return styled(
        figure,
        "Harmful prompts refused, by directions removed",
        "<br>".join(
            [
                f"{_number(harmful)} harmful prompts. ↓ a fall and ↑ a rise that is shown (McNemar, Holm); ° beyond "
                "every random draw.",
                *(
                    tallied(claims, list(names), "harmful")
                    if claims
                    else [f"Changes are not tested ({NO_VERDICTS})."]
                ),
            ]
        ),
        width=WIDTH,
        height=240 + 46 * len(systems),
    )


@drawn_from(
    harmful=Columns(
        keys="system kind",
        places="directions",
        numbers="refused degenerate n",
        extra="refused_low refused_high degenerate_low degenerate_high",
    )
)
def survival_figure(
    harmful: pd.DataFrame, names: Mapping[str, str] | None = None, **_look: Unpack[Look]
) -> go.Figure:
    """Refused harmful prompts by directions removed, one panel per system, with 95 % Wilson bands.

    Of random directions the mean over draws is drawn, with the span of their intervals.

    Arguments:
        names: The systems that are drawn, with their names in the figure; None draws all.

    Example:
        >>> run = ms.load_run("runs/ladder")
        >>> harmful = run.tables["survival"].query("label == 'harmful'")
        >>> ms.plots.survival_figure(harmful, {"smollm2-135m": "SmolLM2"}).layout.title.text
        'Harmful prompts refused and degenerate answers, by directions removed'
    """
    systems = list(dict.fromkeys(harmful["system"]))
    names = names or rung_names(systems)
    for system in names:
        require_rows(harmful[harmful["system"] == system], f"system {system!r}", harmful, "system")
    figure, places = _grid(list(names.values()))
    ticks = _counts(harmful)
    curves = (
        ("random", "refused", "refused, random directions removed", _RANDOM, "dash", "circle"),
        (
            *("refusal", "refused", "refused, refusal directions removed"),
            *(COLOURS["refusal"], "solid", "circle"),
        ),
        (
            *("refusal", "degenerate", "degenerate, refusal directions removed"),
            *(COLOURS["degenerate"], "dot", "x"),
        ),
    )
    for number, (system, where) in enumerate(zip(names, places, strict=True)):
        rows = harmful[harmful["system"] == system].sort_values("directions")
        for kind, measure, name, colour, dash, symbol in curves:
            part = rows[rows["kind"].isin(["unedited", kind])]
            shares = {int(str(k)): pooled(of, measure) for k, of in part.groupby("directions")}
            x = [ticks.index(k) for k in shares]
            if measure == "refused":
                low, high = ([getattr(one, end) for one in shares.values()] for end in ("low", "high"))
                band(figure, x, low, high, faded(colour, 0.15), **where)
            figure.add_scatter(
                **_named(name, number == 0),
                **{"x": x, "y": [one.value for one in shares.values()], "mode": "lines+markers", **where},
                line={"color": colour, "dash": dash, "width": 2},
                marker={"color": colour, "symbol": symbol, "size": 6},
            )
    _rates(figure, [str(k) for k in ticks])
    return _panels_styled(
        figure,
        "Harmful prompts refused and degenerate answers, by directions removed",
        f"Greedy answers to {_number(harmful)} harmful prompts; bands: 95 % Wilson intervals, of random directions "
        "their span over draws, around the mean.",
        "directions removed",
    )


def answers_figure(harmful: pd.DataFrame, names: Mapping[str, str]) -> go.Figure:
    """What harmful prompts get instead of a refusal: shares of all answers, one panel per system."""
    figure, places = _grid(list(names.values()))
    ticks = _counts(harmful)
    edited = harmful[harmful["kind"].isin(["unedited", "refusal"])].sort_values("directions", kind="stable")
    for number, (system, where) in enumerate(zip(names, places, strict=True)):
        rows = edited[edited["system"] == system]
        x = [ticks.index(k) for k in rows["directions"]]
        for measure, name, colour in _SHOWN:
            figure.add_bar(
                x=x, y=rows[measure], marker={"color": colour}, **_named(name, number == 0), **where
            )
    figure.update_layout(barmode="stack", bargap=0.15)
    _rates(figure, [str(k) for k in ticks])
    return _panels_styled(
        figure,
        "What harmful prompts are answered, by directions removed",
        f"Shares of the answers to {_number(harmful)} harmful prompts. Degenerate: looped, empty, or no language.",
        "refusal directions removed",
    )


def cost_figure(harmless: pd.DataFrame) -> go.Figure:
    """What the removal costs on harmless prompts: KL, perplexity, over-refusal and degenerate text."""
    names = rung_names(list(dict.fromkeys(harmless["system"])))
    ticks = _counts(harmless)
    base = harmless[harmless["kind"] == "unedited"].set_index("system")["perplexity"]
    rows = harmless.assign(
        place=[ticks.index(k) for k in harmless["directions"]],
        ratio=harmless["perplexity"].to_numpy() / base.reindex(harmless["system"]).to_numpy(),
    )
    edited, random = rows[rows["kind"] != "random"], rows[rows["kind"] == "random"]
    series = [
        Series(
            name=name,
            rows=edited[edited["system"] == system],
            colour=_HUES[number % len(_HUES)],
            symbol="circle" if number < len(_HUES) else "diamond",
            offset=0.07 * (number - (len(names) - 1) / 2),
        )
        for number, (system, name) in enumerate(names.items())
    ]
    measured = ["kl", "ratio", "refused", "degenerate"]
    control = random.groupby("place")[measured].mean().reset_index()
    series.append(
        Series(
            name="random, mean of systems and draws", rows=control, colour=_RANDOM, symbol="x", dash="dash"
        )
    )
    figure = outcome_panels(series, _COST, ticks=[str(k) for k in ticks], base=None)
    figure.update_xaxes(title={"text": "directions removed", "font": {"size": 12}, "standoff": 4})
    return styled(
        figure,
        "What the removal costs on harmless prompts",
        f"{_number(harmless)} harmless prompts; whiskers: 95 % Wilson intervals. Perplexity: of the unedited "
        "system's own answers.<br>KL below 0.01 nats, as of the unedited system, is drawn at 0.01.",
        width=WIDTH,
        height=panel_height(figure),
    )


def ranks_figure(ranks: pd.DataFrame, names: Mapping[str, str]) -> go.Figure:
    """AUROC of each direction of the refusal subspace alone, on held-out prompts, against permuted labels."""
    groups = {str(system): rows.sort_values("index") for system, rows in ranks.groupby("system", sort=False)}
    figure, places = _grid(
        [f"{names.get(s, s)}, layer {span(rows['layer'], '.0f')}" for s, rows in groups.items()]
    )
    for number, (rows, where) in enumerate(zip(groups.values(), places, strict=True)):
        shared = {"x": rows["index"], "showlegend": number == 0, **where}
        figure.add_scatter(
            y=rows["auroc"],
            error_y=whiskers(rows["auroc"], rows["auroc_low"], rows["auroc_high"], thickness=1.2, width=3.0),
            mode="markers",
            marker={"color": COLOURS["line"], "size": 7},
            name="AUROC, 95 % interval",
            **shared,
        )
        figure.add_scatter(
            y=rows["auroc_chance"],
            mode="lines",
            line={"color": _RANDOM, "dash": "dash", "width": 1.4},
            name="95 % of permuted labels lie below",
            **shared,
        )
    low = min(0.45, float(ranks[["auroc", "auroc_low"]].min(axis=None)) - 0.03)
    figure.update_yaxes(range=[low, 1.03], tickfont={"size": 11}, zeroline=False)
    top = int(ranks["index"].max())
    figure.update_xaxes(
        tickvals=list(range(1, top + 1)), range=[0.4, top + 0.6], tickfont={"size": 11}, showgrid=False
    )
    return _panels_styled(
        figure,
        "AUROC of each direction of the refusal subspace alone",
        "Each direction alone, on report prompts: 1 is the mean difference, the others the leading "
        "components of harmful prompts.",
        "direction of the subspace",
    )


# -- parts ------------------------------------------------------------------------------------------


def _marks(claim: Claim) -> str:
    if not claim.shown:
        return ""
    return ("↓" if claim.direction == "down" else "↑") + ("°" if claim.beyond == "yes" else "")


def _number(rows: pd.DataFrame) -> str:
    known = rows["n"].dropna()
    return span(known, ".0f") if len(known) else "an unknown number of"


def _counts(rows: pd.DataFrame) -> list[int]:
    return sorted({0, *(int(k) for k in rows["directions"])})


def _grid(titles: Sequence[str]) -> tuple[go.Figure, list[dict[str, int]]]:
    """Panels in rows of four, and the place of each."""
    columns = min(_COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[wrapped(title, 32) for title in titles],
        horizontal_spacing=0.045,
        vertical_spacing=0.22 / max(1, rows - 1) if rows > 1 else 0.1,
    )
    return figure, [{"row": k // columns + 1, "col": k % columns + 1} for k in range(len(titles))]


def _rates(figure: go.Figure, ticks: Sequence[str]) -> None:
    figure.update_yaxes(
        range=[-0.05, 1.05], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1], tickfont={"size": 11}
    )
    figure.update_yaxes(zeroline=False)
    figure.update_xaxes(
        tickvals=list(range(len(ticks))),
        ticktext=list(ticks),
        range=[-0.6, len(ticks) - 0.4],
        tickfont={"size": 11},
        zeroline=False,
        showgrid=False,
    )


def _panels_styled(figure: go.Figure, title: str, subtitle: str, x: str) -> go.Figure:
    rows = len({axis.domain for axis in figure.select_yaxes()})
    figure.update_xaxes(title={"text": x, "font": {"size": 11}, "standoff": 2})
    return styled(figure, title, subtitle, width=WIDTH, height=190 + 215 * rows)


def _named(name: str, first: bool) -> dict[str, Any]:
    """A trace of shares that stands in the legend once, however many panels have it."""
    template = "%{y:.3~%}<extra>" + name + "</extra>"
    return {"name": name, "legendgroup": name, "showlegend": first, "hovertemplate": template}
