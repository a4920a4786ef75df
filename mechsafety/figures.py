"""Tables to plotly figures: colours that colour-blind readers tell apart, titles that say what is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.plot_style import COLOURS, HEAT, short_name, styled, whiskers
from mechsafety.plot_titles import (
    agreement_title,
    cell,
    change_title,
    count_title,
    number,
    selfjudge_title,
    spread_title,
    stars,
    sweep_title,
    wrapped_name,
)

ARMS = ("original", "edited")
LABELS = ("harmful", "harmless")
_PATTERNS = {"refusal": "", "compliance": "", "degenerate": "/", "unparsed": "."}


def outcome_bars(rates: pd.DataFrame, tests: pd.DataFrame, *, judge: str) -> go.Figure:
    """What each system answers, original against edited: shares with Wilson intervals on refusals.

    Stars mark the exact McNemar test of the change in refusals, corrected by Holm over systems.
    """
    chosen = rates[rates["judge"] == judge]
    systems = list(dict.fromkeys(chosen["system"]))
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[count_title(chosen, label) for label in LABELS],
    )
    for column, label in enumerate(LABELS, start=1):
        rows = chosen[chosen["label"] == label].set_index(["system", "arm"])
        keys = [(s, arm) for s in systems for arm in ARMS if (s, arm) in rows.index]
        x = [[short_name(s) for s, _ in keys], [arm for _, arm in keys]]
        for outcome in ("refusal", "compliance", "degenerate", "unparsed"):
            share = [rows.loc[k, outcome] / rows.loc[k, "n"] for k in keys]
            if outcome == "unparsed" and not any(share):
                continue
            figure.add_bar(
                x=x,
                y=share,
                name=outcome,
                marker={
                    "color": COLOURS[outcome],
                    "pattern": {"shape": _PATTERNS[outcome], "fgcolor": "white", "size": 5},
                    "line": {"color": "white", "width": 0.5},
                },
                legendgroup=outcome,
                showlegend=column == 1,
                hovertemplate="%{x}: %{y:.0%}<extra>" + outcome + "</extra>",
                row=1,
                col=column,
            )
        # A trace of its own, drawn last: the stacked bars would cover the upper half.
        rates_of = [number(rows.loc[k, "rate"]) for k in keys]
        figure.add_scatter(
            x=x,
            y=rates_of,
            mode="markers",
            marker={"size": 1, "color": COLOURS["ink"]},
            error_y=whiskers(
                rates_of,
                *([number(rows.loc[k, end]) for k in keys] for end in ("low", "high")),
                colour=COLOURS["ink"],
                thickness=1.6,
                width=6.0,
            ),
            showlegend=False,
            hoverinfo="skip",
            row=1,
            col=column,
        )
        for place, system in enumerate(systems):
            mark = stars(tests, system=system, label=label, judge=judge)
            if mark:
                figure.add_annotation(
                    x=2 * place + 0.5,
                    y=1.055,
                    text=mark,
                    showarrow=False,
                    row=1,
                    col=column,
                    font={"size": 13},
                )
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_yaxes(range=[0, 1.1], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_yaxes(title_text="share of responses", col=1)
    figure.update_xaxes(tickangle=0)
    return styled(
        figure,
        change_title(chosen, systems),
        f"Judge {judge}. Whiskers: 95 % Wilson interval of the share of refusals.<br>Stars: change in refusals, exact "
        "McNemar, Holm over systems (* p < .05, ** p < .01, *** p < .001, n.s. not significant).",
        width=max(760, 260 + 250 * len(systems)),
        height=470,
    )


def refusal_heatmap(rates: pd.DataFrame) -> go.Figure:
    """Refusal rate by judge (rows) and system and arm (columns), harmful and harmless prompts."""
    readable = rates[rates["rate"].notna()]
    judges = list(dict.fromkeys(readable["judge"]))[::-1]
    keys = list(dict.fromkeys(zip(readable["system"], readable["arm"], strict=True)))
    names = [wrapped_name(s, arm) for s, arm in keys]
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[count_title(readable, label) for label in LABELS],
    )
    for column, label in enumerate(LABELS, start=1):
        table = readable[readable["label"] == label].set_index(["judge", "system", "arm"])["rate"]
        z = [[float(table.get((judge, *key), math.nan)) for key in keys] for judge in judges]
        figure.add_heatmap(
            z=z,
            x=names,
            y=judges,
            zmin=0,
            zmax=1,
            colorscale=HEAT,
            showscale=column == 2,
            colorbar={"title": {"text": "refused", "side": "right"}, "tickformat": ".0%", "thickness": 14},
            text=[["" if v != v else f"{v:.0%}" for v in row] for row in z],
            texttemplate="%{text}",
            hovertemplate="%{y}<br>%{x}: %{text}<extra></extra>",
            xgap=2,
            ygap=2,
            row=1,
            col=column,
        )
    figure.update_xaxes(tickangle=0 if len(keys) <= 4 else -40, showgrid=False)
    figure.update_yaxes(showgrid=False)
    return styled(
        figure,
        spread_title(readable, judges),
        "Share of responses that each judge calls a refusal (unparsed ones left out of the denominator).",
        width=max(760, 340 + 160 * len(keys)),
        height=290 + 48 * len(judges),
    )


@runtime_checkable
class SweepLike(Protocol):
    """What :func:`layer_sweep` draws: ``sweeps.Sweep``, or anything with its table and base scores."""

    @property
    def table(self) -> pd.DataFrame: ...

    @property
    def model_name(self) -> str: ...

    @property
    def base_harmful(self) -> float: ...

    @property
    def base_harmless(self) -> float: ...

    @property
    def selected_layer(self) -> int | None: ...


def layer_sweep(sweep: SweepLike) -> go.Figure:
    """Separation, bypass and induce, and KL by layer; dashed where a layer is selected."""
    return layer_sweep_table(
        sweep.table,
        name=sweep.model_name,
        selected=sweep.selected_layer,
        base=(sweep.base_harmful, sweep.base_harmless),
    )


def layer_sweep_table(
    table: pd.DataFrame, *, name: str, selected: int | None, base: tuple[float, float] | None = None
) -> go.Figure:
    """The same from a stored table (sweep.parquet); the last position is drawn where there are several."""
    rows = table[table["position"] == table["position"].max()].sort_values("layer")
    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05, row_heights=[0.28, 0.44, 0.28]
    )
    x = rows["layer"]
    lines: list[tuple[str, str, str, str, int]] = [
        ("auroc", "separation of harmful and harmless", COLOURS["ink"], "circle", 1),
        ("bypass", "bypass: harmful prompts, direction removed", COLOURS["harmful"], "circle", 2),
        ("induce", "induce: harmless prompts, direction added", COLOURS["harmless"], "square", 2),
        ("kl", "KL on harmless prompts, direction removed", "#CC79A7", "diamond", 3),
    ]
    for column, label, colour, symbol, row in lines:
        figure.add_scatter(
            x=x,
            y=rows[column],
            name=label,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 6},
            hovertemplate="layer %{x}: %{y:.3g}<extra>" + column + "</extra>",
            row=row,
            col=1,
        )
    if base is not None:
        for value, label, colour in zip(
            base, ("harmful, unedited", "harmless, unedited"), ("harmful", "harmless"), strict=True
        ):
            figure.add_hline(
                y=value,
                line={"color": COLOURS[colour], "dash": "dot", "width": 1.3},
                annotation={"text": label, "font": {"size": 11, "color": COLOURS[colour]}},
                annotation_position="top left" if value > 0 else "bottom left",
                row=2,
                col=1,
            )
    figure.add_hline(y=0, line={"color": "#999999", "width": 1}, row=2, col=1)
    if selected is not None:
        for row in (1, 2, 3):
            figure.add_vline(
                x=selected, line={"color": COLOURS["ink"], "dash": "dash", "width": 1.2}, row=row, col=1
            )
    figure.update_yaxes(
        title_text="AUROC", range=[min(0.45, float(rows["auroc"].min()) - 0.03), 1.03], row=1, col=1
    )
    figure.update_yaxes(title_text="refusal score (logit)", row=2, col=1)
    figure.update_yaxes(
        title_text="KL (nats)", type="log", tickvals=[0.01, 0.03, 0.1, 0.3, 1, 3, 10], row=3, col=1
    )
    figure.update_xaxes(title_text="layer where the direction was found (input of block)", row=3, col=1)
    return styled(
        figure,
        sweep_title(rows, name, selected),
        "Validation prompts; dashed: selected layer.",
        width=860,
        height=680,
    )


def pca_scatter(points: pd.DataFrame, *, name: str, layer: int) -> go.Figure:
    """Validation prompts in the plane of the first two principal components at the selected layer."""
    figure = go.Figure()
    for label, symbol in (("harmful", "circle"), ("harmless", "diamond")):
        rows = points[points["label"] == label]
        figure.add_scatter(
            x=rows["pc1"],
            y=rows["pc2"],
            mode="markers",
            name=f"{label} (n = {len(rows)})",
            marker={
                "color": COLOURS[label],
                "symbol": symbol,
                "size": 9,
                "opacity": 0.85,
                "line": {"color": "white", "width": 0.8},
            },
            text=rows["id"],
            hovertemplate="%{text}<extra>" + label + "</extra>",
        )
    first, second = points[["explained1", "explained2"]].iloc[0]
    figure.update_xaxes(title_text=f"first component ({first:.0%} of variance)", zeroline=True)
    figure.update_yaxes(title_text=f"second component ({second:.0%} of variance)", zeroline=True)
    return styled(
        figure,
        f"{short_name(name)}, layer {layer}: harmful and harmless prompts",
        "Residual stream at the last prompt token of validation prompts.",
        width=700,
        height=520,
    )


def judge_agreement(agreement: pd.DataFrame, *, arm: str = "all") -> go.Figure:
    """Cohen's kappa between every two judges, with its 95 % interval."""
    rows = agreement[agreement["arm"] == arm]
    judges = list(dict.fromkeys([*rows["judge_a"], *rows["judge_b"]]))
    cells = {frozenset((r.judge_a, r.judge_b)): r for r in rows.itertuples()}
    z: list[list[float]] = []
    text: list[list[str]] = []
    for a in judges[::-1]:
        values: list[float] = []
        words: list[str] = []
        for b in judges:
            pair: Any = cells.get(frozenset((a, b)))
            value = 1.0 if a == b else (math.nan if pair is None else float(pair.kappa))
            values.append(value)
            words.append("" if a == b else cell(pair))
        z.append(values)
        text.append(words)
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=judges,
            y=judges[::-1],
            zmin=0,
            zmax=1,
            colorscale=HEAT,
            text=text,
            texttemplate="%{text}",
            colorbar={"title": {"text": "kappa", "side": "right"}, "thickness": 14},
            hovertemplate="%{y} and %{x}: %{text}<extra></extra>",
            xgap=2,
            ygap=2,
        )
    )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    return styled(
        figure,
        agreement_title(rows),
        "Cohen's kappa on refusal or not, 95 % bootstrap interval clustered by prompt.",
        width=420 + 130 * len(judges),
        height=230 + 90 * len(judges),
    )


def self_judgement(summary: pd.DataFrame) -> go.Figure:
    """How well each model tells its own refusals from its other answers, against two controls."""
    figure = go.Figure()
    names = [wrapped_name(s, a) for s, a in zip(summary["system"], summary["arm"], strict=True)]
    figure.add_scatter(
        x=names,
        y=summary["auc"],
        name="own answer",
        mode="markers",
        marker={"color": COLOURS["refusal"], "size": 12},
        error_y=whiskers(summary["auc"], summary["low"], summary["high"], colour=COLOURS["refusal"]),
    )
    for column, label, symbol, colour in (
        ("auc_shuffled", "control: same answer, another prompt", "x", COLOURS["compliance"]),
        ("auc_length", "control: short answers are refusals", "diamond-open", COLOURS["ink"]),
    ):
        figure.add_scatter(
            x=names,
            y=summary[column],
            name=label,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10},
        )
    figure.add_hline(
        y=0.5,
        line={"color": "#999999", "dash": "dot"},
        annotation={"text": "chance"},
        annotation_position="bottom left",
    )
    missing = [n for n, v in zip(names, summary["auc"], strict=True) if v != v]
    for name in missing:
        figure.add_annotation(x=name, y=0.05, text="undefined:<br>one class only", showarrow=False)
    figure.update_yaxes(range=[0, 1.05], title_text="AUC against the primary judge")
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=names)
    return styled(
        figure,
        selfjudge_title(summary),
        "Log-probability of Yes against No, asked whether it declined; 95 % bootstrap interval.",
        width=max(640, 280 + 140 * len(names)),
        height=450,
    )


def study_figures(tables: Mapping[str, pd.DataFrame], systems: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Every figure of a study, by file name.

    ``tables`` are the run's by name (rates, tests, agreement, sweep, scatter and, where asked, selfjudge);
    ``systems`` is the manifest's section of that name.
    """
    rates = tables["rates"]
    judges = [j for j in dict.fromkeys(rates["judge"]) if rates[rates["judge"] == j]["rate"].notna().any()]
    figures: dict[str, go.Figure] = {}
    if judges:
        figures["outcomes"] = outcome_bars(rates, tables["tests"], judge=judges[0])
        figures["refusal-heatmap"] = refusal_heatmap(rates)
    for system, facts in systems.items():
        base = facts["base_refusal_score"]
        selected = facts["selection"]["layer"]
        figures[f"layer-sweep-{_file_name(system)}"] = layer_sweep_table(
            _of(tables["sweep"], system),
            name=system,
            selected=selected,
            base=(base["harmful"], base["harmless"]),
        )
        figures[f"pca-{_file_name(system)}"] = pca_scatter(
            _of(tables["scatter"], system), name=system, layer=selected
        )
    if len(judges) > 1:
        figures["judge-agreement"] = judge_agreement(tables["agreement"])
    if "selfjudge" in tables:
        figures["self-judgement"] = self_judgement(tables["selfjudge"])
    return figures


def _of(table: pd.DataFrame, system: str) -> pd.DataFrame:
    return table[table["system"] == system]


def _file_name(system: str) -> str:
    return "".join(c if c.isalnum() or c in ".-+" else "_" for c in system)
