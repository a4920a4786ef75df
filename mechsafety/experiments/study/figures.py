"""Tables to plotly figures: colours that colour-blind readers can distinguish, titles that say what is plotted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.wording import counted
from mechsafety.plots.style import (
    COLOURS,
    file_names,
    legend_at_foot,
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
    read_arm,
    stars,
)
from mechsafety.plots.traces import dots, in_legend, shares_map, side_by_side, signed_map
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

ARMS = ("original", "edited")
LABELS = ("harmful", "harmless")
_PATTERNS = {"refusal": "", "compliance": "", "degenerate": "/"}


def outcome_bars(
    rates: pd.DataFrame,
    tests: pd.DataFrame | None = None,
    *,
    judge: str | None = None,
    controls: pd.DataFrame | None = None,
) -> go.Figure:
    """What each system answers, original against edited: shares of the readable answers, Wilson intervals on refusals.

    With ``controls`` (a study's) a third bar has the mean over random draws of the edit, and its
    whisker goes from the draw with the fewest refusals to that with the most.

    Where the judge could not read every answer, the axis gives how many it read. Stars mark the exact McNemar test of
    the change in refusals, corrected by Holm over systems; without ``tests`` there are none. Without ``judge`` it is
    the first one in the table. Raises :class:`MechsafetyError` for a judge that has no rates there, because it is not
    in the table or abstains, and for tests of other systems.

    Example:
        >>> study = ms.load_run("runs/study")
        >>> figure = ms.plots.outcome_bars(study.tables["rates"], study.tables["tests"], judge="rules")
        >>> figure.layout.title.text
        'Answers before and after the edit'
    """
    readable = rates[rates["rate"].notna()]
    if judge is None:
        judge = "" if readable.empty else str(readable["judge"].iloc[0])
    require_rows(readable[readable["judge"] == judge], f"judge {judge!r}", readable, "judge")
    chosen = rates[rates["judge"] == judge]
    systems = list(dict.fromkeys(chosen["system"]))
    if tests is not None:
        _require_tested(chosen, tests, judge)
    if controls is not None and "judge" in controls:  # else of the primary judge alone, as it was before
        controls = controls[controls["judge"] == judge]
    random = (
        0 if controls is None or controls.empty else int(controls.groupby("system")["refused"].count().max())
    )
    widths = {"column_widths": [3, 2]} if random else {}
    figure = side_by_side([count_title(chosen, label) for label in LABELS], gap=0.04, **widths)
    for column, label in enumerate(LABELS, start=1):
        part = chosen[chosen["label"] == label]
        marks = {
            s: "" if tests is None else stars(tests, system=s, label=label, judge=judge) for s in systems
        }
        bars = _arm_bars(part, systems)
        if label == "harmful" and controls is not None:
            bars += [bar for s in systems if (bar := _random_bar(controls[controls["system"] == s], s))]
        _draw_bars(figure, bars, system_names(systems), marks, column=column)
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_yaxes(range=[0, 1.1], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_yaxes(title_text="share of readable responses", col=1)
    figure.update_xaxes(tickangle=0)
    styled(
        figure,
        "Answers before and after the edit",
        f"Judge {judge}. Bars and whiskers: of the responses that it could read; whiskers: 95 % Wilson interval of "
        "refusals."
        + ("" if tests is None else _STARS)
        + (
            f" Random: mean over {counted(random, 'matched random direction')} removed instead, whisker from the "
            "lowest to the highest."
            if random
            else ""
        ),
        width=max(760, 260 + (320 if random else 250) * len(systems)),
        height=520 if random else 500,
    )
    return legend_at_foot(figure).update_layout(margin={"b": 120, "t": 128 if random else 110})


_STARS = (
    " Stars: change in refusals, exact McNemar, Holm over systems (* p < .05, ** p < .01, *** p < .001, n.s. not "
    "significant)."
)


def _require_tested(rates: pd.DataFrame, tests: pd.DataFrame, judge: str) -> None:
    """Raise :class:`MechsafetyError` where a system with both arms is in no test: its stars would be lost."""
    arms = rates.groupby("system", sort=False, observed=True)["arm"].nunique()
    tested = list(dict.fromkeys(tests[tests["judge"] == judge]["system"]))
    lost = [str(system) for system, n in arms.items() if n > 1 and system not in tested]
    if lost:
        raise MechsafetyError(
            f"the tests hold no system {lost[0]!r} of the rates, only {', '.join(map(repr, tested)) or 'none'}: make "
            "both from one table of verdicts, verdict_table(arms, system=...)"
        )


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """One stacked bar: shares by outcome, and the whisker of the refusals. ``starred``: one of the two arms tested."""

    system: str
    name: str
    shares: Mapping[str, float]
    rate: float
    low: float
    high: float
    starred: bool


def _arm_bars(part: pd.DataFrame, systems: Sequence[str]) -> list[_Bar]:
    rows = require_single(part, "system", "arm").set_index(["system", "arm"])
    found = [(s, arm, rows.loc[(s, arm)]) for s in systems for arm in ARMS if (s, arm) in rows.index]
    return [
        _Bar(
            system=system,
            name=read_arm(row, arm),
            shares={outcome: row[outcome] / max(1, row["n"] - row["unparsed"]) for outcome in _PATTERNS},
            **{"rate": row["rate"], "low": row["low"], "high": row["high"]},
            starred=True,
        )
        for system, arm, row in found
    ]


def _random_bar(drawn: pd.DataFrame, system: str) -> _Bar | None:
    """The mean over a system's random draws that could be read; None where none could."""
    known = drawn[drawn["refused"].notna()]
    if known.empty:
        return None
    columns = {"refusal": "refused", "compliance": "complied", "degenerate": "degenerate"}
    refused = known["refused"]
    return _Bar(
        system=system,
        name="random",
        shares={outcome: float(known[column].mean()) for outcome, column in columns.items()},
        **{"rate": float(refused.mean()), "low": float(refused.min()), "high": float(refused.max())},
        starred=False,
    )


def _draw_bars(
    figure: go.Figure,
    bars: Sequence[_Bar],
    names: Mapping[str, str],
    marks: Mapping[str, str],
    *,
    column: int,
) -> None:
    """The bars, whiskers and stars of one label; random ones come last in ``bars``, so that they stand last in all."""
    x = [[names[bar.system] for bar in bars], [bar.name for bar in bars]]
    for outcome, shape in _PATTERNS.items():
        pattern = {"shape": shape, "fgcolor": "white", "size": 5}
        figure.add_bar(
            x=x,
            y=[bar.shares[outcome] for bar in bars],
            name=outcome,
            marker={"color": COLOURS[outcome], "pattern": pattern, "line": {"color": "white", "width": 0.5}},
            hovertemplate="%{x}: %{y:.0%}<extra>" + outcome + "</extra>",
            **in_legend(outcome, first=column == 1, row=1, col=column),
        )
    # A trace of its own, drawn last: the stacked bars would cover the upper half.
    looks = {"marker": {"size": 1, "color": COLOURS["ink"]}, "looks": {"thickness": 1.6, "width": 6.0}}
    quiet = {"showlegend": False, "hoverinfo": "skip", "row": 1, "col": column}
    bounds = ([bar.low for bar in bars], [bar.high for bar in bars])
    dots(figure, x, [bar.rate for bar in bars], name=None, bounds=bounds, **looks, **quiet)
    # An axis of two levels has its groups, and the bars within each, in the order in which their names first come.
    order = list(dict.fromkeys(bar.name for bar in bars))
    shown = sorted(bars, key=lambda bar: (list(names).index(bar.system), order.index(bar.name)))
    for system, mark in marks.items():
        places = [place for place, bar in enumerate(shown) if bar.system == system and bar.starred]
        if mark and places:
            where = {"x": sum(places) / len(places), "y": 1.055, "row": 1, "col": column}
            figure.add_annotation(text=mark, showarrow=False, font={"size": 13}, **where)


def refusal_heatmap(rates: pd.DataFrame) -> go.Figure:
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
            text=[["" if v != v else f"{v:.0%}" for v in row] for row in z],
            colorbar={"tickformat": ".0%"},
            y=judges,
            showscale=column == 2,
            customdata=[names] * len(judges),
            hovertemplate="%{y}<br>%{customdata}: %{text}<extra></extra>",
        )
        figure.add_trace(cells, row=1, col=column)
    # Places are numbered: names over several lines need not stay distinct.
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, showgrid=False, zeroline=False)
    figure.update_xaxes(tickangle=0 if len(keys) <= 4 else -40, tickfont={"size": 11})
    figure.update_yaxes(showgrid=False)
    return styled(
        figure,
        "Refusal rates by judge",
        "Share of responses that each judge calls a refusal (unparsed ones left out of the denominator).",
        width=max(760, 300 + 220 * len(keys)) if len(keys) <= 4 else 340 + 160 * len(keys),
        height=290 + 48 * len(judges),
    )


def pca_scatter(points: pd.DataFrame, *, name: str, layer: int, position: int = -1) -> go.Figure:
    """Validation prompts in the plane of the first two principal components at the selected place.

    Example:
        >>> study = ms.load_run("runs/study")
        >>> figure = ms.plots.pca_scatter(study.tables["scatter"], name="smollm2-135m", layer=2)
        >>> figure.layout.title.text
        'smollm2-135m, layer 2: harmful and harmless prompts'
    """
    return _pca_scatter(points, short_name(name), layer=layer, position=position)


def _pca_scatter(points: pd.DataFrame, shown: str, *, layer: int, position: int) -> go.Figure:
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
    figure.update_xaxes(title_text=f"first component ({first:.0%} of variance)", zeroline=True)
    figure.update_yaxes(title_text=f"second component ({second:.0%} of variance)", zeroline=True)
    return styled(
        figure,
        f"{shown}, layer {layer}: harmful and harmless prompts",
        f"Residual stream at {token} of validation prompts.",
        width=700,
        height=520,
    )


def judge_agreement(agreement: pd.DataFrame, *, arm: str | None = None) -> go.Figure:
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
    styled(
        figure,
        "Recognition of own refusals",
        "Log-probability of Yes against No, asked whether it declined; 95 % bootstrap interval.",
        width=max(640, 280 + 140 * len(names)),
        height=480,
    )
    return legend_at_foot(figure).update_layout(margin={"b": 120})


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
