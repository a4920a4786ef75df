"""Tables to plotly figures: colours that colour-blind readers can distinguish, titles that say what is plotted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

import pandas as pd
import plotly.graph_objects as go

from mechsafety.core.wording import percent_cell
from mechsafety.experiments.study.outcome_bars import LABELS, outcome_bars
from mechsafety.plots.columns import Columns
from mechsafety.plots.look import Look, drawn_from
from mechsafety.plots.panels import WIDTH
from mechsafety.plots.style import (
    COLOURS,
    file_names,
    require_rows,
    require_single,
    short_name,
    styled,
    system_names,
)
from mechsafety.plots.titles import (
    arm_names,
    cell,
    count_title,
)
from mechsafety.plots.traces import dots, shares_map, side_by_side, signed_map
from mechsafety.sweeps.figures import SweepLike, layer_sweep, layer_sweep_table, named_layer_sweep

__all__ = [
    "SweepLike",
    "judge_agreement",
    "layer_sweep",
    "layer_sweep_table",
    "outcome_bars",
    "pca_scatter",
    "refusal_heatmap",
    "self_judgement",
    "study_figures",
]


@drawn_from(rates=Columns(keys="system arm label judge", numbers="rate n"))
def refusal_heatmap(rates: pd.DataFrame, **_look: Unpack[Look]) -> go.Figure:
    """Refusal rate by judge (rows) and system and arm (columns), harmful and harmless prompts.

    Example:
        >>> study = ms.load_run("runs/study")
        >>> ms.plots.refusal_heatmap(study.tables["rates"]).layout.title.text
        'Refusal rates by judge'
    """
    readable = require_rows(rates[rates["rate"].notna()], "rates", rates, "judge", "label")
    require_single(readable, "judge", "system", "arm", "label")
    judges = list(dict.fromkeys(readable["judge"]))[::-1]
    keys = list(dict.fromkeys(zip(readable["system"], readable["arm"], strict=True)))
    names = arm_names([s for s, _ in keys], [arm for _, arm in keys])
    figure = side_by_side([count_title(readable, label) for label in LABELS], gap=0.03)
    for column, label in enumerate(LABELS, start=1):
        table = readable[readable["label"] == label].set_index(["judge", "system", "arm"])["rate"]
        z = [[float(table.get((judge, *key), math.nan)) for key in keys] for judge in judges]
        cells = shares_map(
            z,
            title="refused",
            text=[list(map(percent_cell, row)) for row in z],
            colorbar={"tickformat": ".0%"},
            y=judges,
            showscale=column == 2,
            customdata=[names] * len(judges),
            hovertemplate="%{y}<br>%{customdata}: %{text}<extra></extra>",
        )
        figure.add_trace(cells, row=1, col=column)
    # Places are numbered: names over several lines need not stay distinct.
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, showgrid=False, zeroline=False)
    figure.update_xaxes(tickfont={"size": 11})
    figure.update_yaxes(showgrid=False)
    return styled(
        figure,
        "Refusal rates by judge",
        "Share of responses that each judge calls a refusal (unparsed ones left out of the denominator).",
        width=min(max(760, 260 + 150 * len(keys)), max(WIDTH, 200 + 60 * len(keys))),
        height=290 + 48 * len(judges),
    )


@drawn_from(points=Columns(keys="id label", numbers="pc1 pc2 explained1 explained2"))
def pca_scatter(
    points: pd.DataFrame,
    *,
    name: str = "model",
    layer: int | None = None,
    position: int = -1,
    **_look: Unpack[Look],
) -> go.Figure:
    """Validation prompts in the plane of the first two principal components at the selected place.

    Arguments:
        layer: The layer, in the title.

    Example:
        >>> study = ms.load_run("runs/study")
        >>> figure = ms.plots.pca_scatter(study.tables["scatter"], name="smollm2-135m", layer=2)
        >>> figure.layout.title.text
        'smollm2-135m, layer 2: harmful and harmless prompts'
    """
    return _pca_scatter(points, short_name(name), layer=layer, position=position)


def _pca_scatter(points: pd.DataFrame, shown: str, *, layer: int | None, position: int) -> go.Figure:
    require_single(require_rows(points, "prompts", points), "id")
    token = "the last token" if position == -1 else f"token {position}, counted from the end,"
    figure = go.Figure()
    for label, symbol in (("harmful", "circle"), ("harmless", "diamond")):
        rows = points[points["label"] == label]
        looks = {"color": COLOURS[label], "symbol": symbol, "size": 9, "opacity": 0.85}
        dots(
            figure,
            rows["pc1"],
            rows["pc2"],
            name=f"{label} (n = {len(rows)})",
            marker=looks | {"line": {"color": "white", "width": 0.8}},
            text=rows["id"],
            hovertemplate="%{text}<extra>" + label + "</extra>",
        )
    first, second = points[["explained1", "explained2"]].iloc[0]
    figure.update_xaxes(title_text=f"first component ({percent_cell(first)} of variance)", zeroline=True)
    figure.update_yaxes(title_text=f"second component ({percent_cell(second)} of variance)", zeroline=True)
    return styled(
        figure,
        f"{shown}{'' if layer is None else f', layer {layer}'}: harmful and harmless prompts",
        f"Residual stream at {token} of validation prompts.",
        width=700,
        height=520,
    )


@drawn_from(agreement=Columns(keys="arm judge_a judge_b", numbers="n kappa low high"))
def judge_agreement(agreement: pd.DataFrame, *, arm: str | None = None, **_look: Unpack[Look]) -> go.Figure:
    """Cohen's kappa between every two judges, with its 95 % interval.

    ``arm`` is by default ``all``, or the only one that the table holds.

    Example:
        >>> study = ms.load_run("runs/study")
        >>> ms.plots.judge_agreement(study.tables["agreement"]).layout.title.text
        'Agreement between judges'
    """
    arms = list(dict.fromkeys(agreement["arm"]))
    chosen = arm or (arms[0] if len(arms) == 1 else "all")
    rows = require_rows(agreement[agreement["arm"] == chosen], f"arm {chosen!r}", agreement, "arm")
    require_single(rows, "judge_a", "judge_b")
    judges = list(dict.fromkeys([*rows["judge_a"], *rows["judge_b"]]))
    cells: dict[Any, Any] = {frozenset((r.judge_a, r.judge_b)): r for r in rows.itertuples()}
    pairs = [[cells.get(frozenset((a, b))) for b in judges] for a in judges[::-1]]
    own = [[a == b for b in judges] for a in judges[::-1]]
    z = [
        [
            1.0 if same else math.nan if pair is None else float(pair.kappa)
            for pair, same in zip(*line, strict=True)
        ]
        for line in zip(pairs, own, strict=True)
    ]
    text = [
        ["" if same else cell(pair) for pair, same in zip(*line, strict=True)]
        for line in zip(pairs, own, strict=True)
    ]
    hover = "%{y} and %{x}: %{text}<extra></extra>"
    figure = go.Figure(signed_map(z, title="kappa", text=text, x=judges, y=judges[::-1], hovertemplate=hover))
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    return styled(
        figure,
        "Agreement between judges",
        f"Cohen's kappa on refusal or not, {'both arms' if chosen == 'all' else f'{chosen} responses'}. 95 % bootstrap "
        "interval clustered by prompt.",
        width=420 + 130 * len(judges),
        height=230 + 90 * len(judges),
    )


def self_judgement(summary: pd.DataFrame) -> go.Figure:
    """How well each model separates its own refusals from its other answers, against two controls."""
    require_single(require_rows(summary, "self-judgement", summary), "system", "arm")
    figure = go.Figure()
    names = arm_names(list(summary["system"]), list(summary["arm"]))
    places = list(range(len(names)))
    bounds, looks = (summary["low"], summary["high"]), {"color": COLOURS["refusal"], "size": 12}
    dots(figure, places, summary["auc"], name="own answer", marker=looks, bounds=bounds)
    for column, label, symbol, colour in (
        ("auc_shuffled", "control: same answer, another prompt", "x", COLOURS["compliance"]),
        ("auc_length", "control: short answers are refusals", "diamond-open", COLOURS["ink"]),
    ):
        marker = {"color": colour, "symbol": symbol, "size": 10}
        dots(figure, places, summary[column], name=label, marker=marker)
    chance = {"annotation": {"text": "chance"}, "annotation_position": "bottom left"}
    figure.add_hline(y=0.5, line={"color": "#999999", "dash": "dot"}, **chance)
    missing = [place for place, v in zip(places, summary["auc"], strict=True) if v != v]
    for place in missing:
        figure.add_annotation(x=place, y=0.1, text="unknown", showarrow=False)
    figure.update_yaxes(range=[0, 1.05], title_text="AUC against the primary judge")
    figure.update_xaxes(tickvals=places, ticktext=names, range=[-0.5, len(names) - 0.5], zeroline=False)
    return styled(
        figure,
        "Recognition of own refusals",
        "Log-probability of Yes against No, asked whether it declined; 95 % interval over prompts.",
        width=max(640, 280 + 140 * len(names)),
        height=480,
    )


def study_figures(tables: Mapping[str, pd.DataFrame], systems: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure of a study, by file name.

    ``tables`` are the run's by name (rates, tests, agreement, sweep, scatter and, where asked, controls, selfjudge);
    ``systems`` is the manifest's section of that name.
    """
    rates = tables["rates"]
    judges = [j for j in dict.fromkeys(rates["judge"]) if rates[rates["judge"] == j]["rate"].notna().any()]
    figures: dict[str, go.Figure] = {}
    if judges:
        figures["outcomes"] = outcome_bars(
            rates, tables["tests"], judge=judges[0], controls=tables.get("controls")
        )
        figures["refusal-heatmap"] = refusal_heatmap(rates)
    names, files = system_names(systems), file_names(systems)
    for system, facts in systems.items():
        base, place = facts["base_refusal_score"], facts["selection"]
        figures[f"layer-sweep-{files[system]}"] = named_layer_sweep(
            _of(tables["sweep"], system),
            names[system],
            selected=place["layer"],
            base=(base["harmful"], base["harmless"]),
            position=place["position"],
        )
        figures[f"pca-{files[system]}"] = _pca_scatter(
            _of(tables["scatter"], system), names[system], layer=place["layer"], position=place["position"]
        )
    if len(judges) > 1:
        figures["judge-agreement"] = judge_agreement(tables["agreement"])
    if "selfjudge" in tables:
        figures["self-judgement"] = self_judgement(tables["selfjudge"])
    return figures


def _of(table: pd.DataFrame, system: str) -> pd.DataFrame:
    return table[table["system"] == system]
