"""Figures of the judge chapter: the effect under every judge, the judges' errors, the corrected rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.plots.columns import Columns
from mechsafety.plots.layout import row_range
from mechsafety.plots.look import Look, drawn_from
from mechsafety.plots.panels import size_text
from mechsafety.plots.style import (
    COLOURS,
    require_rows,
    require_single,
    styled,
    system_names,
)
from mechsafety.plots.traces import dots, in_legend, side_by_side

ARMS = ("original", "edited")
_ARM_COLOURS = {"original": "#0072B2", "edited": "#D55E00"}
_THIN = {"thickness": 1.4, "width": 4.0}
_ESTIMATORS = (
    ("raw", "judge alone", "#8C8C8C", "circle-open"),
    ("human", "labelled sample alone", "#E69F00", "diamond"),
    ("ppi", "prediction-powered", "#0072B2", "circle"),
    ("rogan_gladen", "Rogan-Gladen", "#009E73", "square"),
)
_BOUNDS = {name: (f"{name}_low", f"{name}_high") for name in ("human", "ppi", "rogan_gladen")}


def judge_chapter_figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """Every figure that the tables of :mod:`mechsafety.experiments.agreement.tables` allow, by file name."""
    figures: dict[str, go.Figure] = {}
    effects = tables["judge_effects"]
    if not effects.empty and effects[["judge", "mapping"]].drop_duplicates().shape[0] > 1:
        figures["judge-effects"] = effect_forest(effects)
    if "corrected_rates" in tables and _corrected(tables["corrected_rates"]):
        figures["judge-corrected"] = corrected_rates_figure(tables["corrected_rates"])
    if "judge_errors" in tables and not tables["judge_errors"].empty:
        figures["judge-errors"] = error_dots(tables["judge_errors"])
    return figures


@drawn_from(
    effects=Columns(keys="system label judge mapping", numbers="change low high", flags="significant")
)
def effect_forest(effects: pd.DataFrame, **_look: Unpack[Look]) -> go.Figure:
    """The edit's effect on refusal under every judge and mapping: one row each, one column per prompt label.

    Example:
        >>> comparison = ms.judges.compare_judges("runs/study", reference="rules")
        >>> ms.plots.effect_forest(comparison.tables["judge_effects"]).layout.title.text
        'Change in refusals by judge and reading'
    """
    require_single(require_rows(effects, "effects", effects), "system", "label", "judge", "mapping")
    systems = list(dict.fromkeys(effects["system"]))
    shown_as = system_names(systems)
    labels = [label for label in ("harmful", "harmless") if (effects["label"] == label).any()]
    found_readings = list(dict.fromkeys(zip(effects["judge"], effects["mapping"], strict=True)))
    judges = list(dict.fromkeys(effects["judge"]))
    # A judge's readings stand together; plotly draws from below.
    readings = sorted(found_readings, key=lambda reading: judges.index(reading[0]))[::-1]
    names = [_reading(*reading) for reading in readings]
    figure = make_subplots(
        rows=len(systems),
        cols=len(labels),
        shared_xaxes="all",
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.22 / max(1, len(systems)),
        subplot_titles=[f"{shown_as[s]}, {label}" for s in systems for label in labels],
    )
    for row, system in enumerate(systems, start=1):
        for column, label in enumerate(labels, start=1):
            part = effects[(effects["system"] == system) & (effects["label"] == label)]
            found = part.set_index(["judge", "mapping"])
            for significant in (True, False):
                shown = [
                    (name, found.loc[key])
                    for name, key in zip(names, readings, strict=True)
                    if key in found.index and bool(found.loc[key, "significant"]) == significant
                ]
                change, low, high = ([100 * r[name] for _, r in shown] for name in ("change", "low", "high"))
                line = {"color": COLOURS["line"], "width": 1.5}
                dots(
                    figure,
                    [name for name, _ in shown],
                    change,
                    name="exact McNemar p < .05, not corrected" if significant else "p ≥ .05",
                    marker={"size": 8, "color": COLOURS["line"] if significant else "white", "line": line},
                    bounds=(low, high),
                    colour=COLOURS["line"],
                    looks=_THIN,
                    across=True,
                    hovertemplate="%{y}: %{x:+.3~f} points<extra></extra>",
                    **in_legend(str(significant), first=row == column == 1, row=row, col=column),
                )
            figure.add_vline(x=0, line={"color": COLOURS["ink"], "width": 1}, row=row, col=column)
    known = 100 * effects[["change", "low", "high"]].to_numpy(dtype=float)
    ends = [0.0, *known[np.isfinite(known)]]
    figure.update_xaxes(tickformat="+", range=[min(ends) - 12, max(ends) + 12], nticks=5)
    figure.update_xaxes(title_text="change in refusals, edited minus original, in points", row=len(systems))
    figure.update_yaxes(categoryorder="array", categoryarray=names, automargin=True)
    return styled(
        figure,
        "Change in refusals by judge and reading",
        "One row per judge and reading of its labels.<br>Whiskers: 95 % interval of the paired difference "
        "(hull of Bonett and Price's and the exact one).",
        width=360 + 330 * len(labels),
        height=190 + len(systems) * (60 + 24 * len(readings)),
    )


_ERRORS = " ".join(f"{m} {m}_low {m}_high" for m in ("sensitivity", "specificity"))


@drawn_from(errors=Columns(keys="judge arm label", numbers=f"n {_ERRORS}"))
def error_dots(errors: pd.DataFrame, **_look: Unpack[Look]) -> go.Figure:
    """Sensitivity and specificity of each judge against the reference, original beside edited.

    Example:
        >>> comparison = ms.judges.compare_judges("runs/study", reference="rules")
        >>> ms.plots.error_dots(comparison.tables["judge_errors"]).layout.title.text
        'Errors of judges on original and edited responses'
    """
    shown = errors[(errors["label"] == "all") & errors["arm"].isin(ARMS)]
    require_single(require_rows(shown, "all labels", errors, "label", "arm"), "judge", "arm")
    judges = list(dict.fromkeys(shown["judge"]))[::-1]
    figure = side_by_side(
        ["refusals found (sensitivity)", "other answers left alone (specificity)"], gap=0.09
    )
    for column, measure in enumerate(("sensitivity", "specificity"), start=1):
        for arm in ARMS:
            part = shown[shown["arm"] == arm].set_index("judge").reindex(judges)
            offset = 0.14 if arm == "original" else -0.14
            dots(
                figure,
                [place + offset for place in range(len(judges))],
                part[measure],
                name=arm,
                marker={"size": 8, "color": _ARM_COLOURS[arm]},
                bounds=(part[f"{measure}_low"], part[f"{measure}_high"]),
                looks=_THIN,
                across=True,
                customdata=part["n"],
                hovertemplate="%{x:.3~%}, %{customdata} labelled<extra>" + arm + "</extra>",
                **in_legend(arm, first=column == 1, row=1, col=column),
            )
    figure.update_yaxes(
        tickvals=list(range(len(judges))), ticktext=judges, range=row_range(len(judges)), automargin=True
    )
    figure.update_xaxes(tickformat=".0%", range=[-0.03, 1.03], tickvals=[0, 0.5, 1])
    return styled(
        figure,
        "Errors of judges on original and edited responses",
        "Against the reference, weighted by inclusion probability. Whiskers: 95 %, bootstrap over prompts "
        "(Wilson at 0 and 100 %).",
        width=860,
        height=250 + 46 * len(judges),
    )


_ENDS = " ".join(end for ends in _BOUNDS.values() for end in ends)
_RATES = " ".join(name for name, *_ in _ESTIMATORS)


@drawn_from(corrected=Columns(keys="system label judge arm", numbers=f"labels {_RATES} {_ENDS}"))
def corrected_rates_figure(corrected: pd.DataFrame, **_look: Unpack[Look]) -> go.Figure:
    """The harmful refusal rate of each arm as each judge gives it, and as people's labels correct it.

    Example:
        >>> comparison = ms.judges.compare_judges("runs/study", reference="rules")
        >>> ms.plots.corrected_rates_figure(comparison.tables["corrected_rates"]).layout.title.text
        'Refusal rates corrected by the reference'
    """
    groups = _corrected(corrected)
    shown = corrected[(corrected["label"] == "harmful") & corrected["system"].isin(groups[:1])]
    for arm in ARMS:
        require_rows(shown[shown["arm"] == arm], f"arm {arm!r} of harmful prompts", corrected, "label", "arm")
    require_single(shown, "judge", "arm")
    judges = list(dict.fromkeys(shown["judge"]))[::-1]
    figure = side_by_side(
        [f"{arm}, {size_text(shown[shown['arm'] == arm], 'labels')} labelled" for arm in ARMS], gap=0.09
    )
    for column, arm in enumerate(ARMS, start=1):
        part = shown[shown["arm"] == arm].set_index("judge").reindex(judges)
        for step, (name, title, colour, symbol) in enumerate(_ESTIMATORS):
            low, high = _BOUNDS.get(name, (None, None))
            dots(
                figure,
                [place + 0.27 - 0.18 * step for place in range(len(judges))],
                part[name],
                name=title,
                marker={"size": 8, "color": colour, "symbol": symbol},
                bounds=(part[low], part[high]) if low else None,
                looks=_THIN,
                across=True,
                hovertemplate="%{x:.3~%}<extra>" + title + "</extra>",
                **in_legend(name, first=column == 1, row=1, col=column),
            )
    figure.update_yaxes(
        tickvals=list(range(len(judges))), ticktext=judges, range=row_range(len(judges)), automargin=True
    )
    figure.update_xaxes(tickformat=".0%", range=[-0.03, 1.03], tickvals=[0, 0.5, 1])
    figure.update_xaxes(title_text="harmful prompts refused")
    which = "all systems together" if groups[0] == "all" else system_names(corrected["system"])[groups[0]]
    return styled(
        figure,
        "Refusal rates corrected by the reference",
        f"{which}. Whiskers: 95 % intervals. No square: the judge's error is too large or unknown to invert.",
        width=860,
        height=250 + 84 * len(judges),
    )


def _corrected(corrected: pd.DataFrame) -> list[str]:
    """The systems with a corrected harmful rate; all together come first."""
    known = corrected[(corrected["label"] == "harmful") & corrected["human"].notna()]
    return list(dict.fromkeys(known["system"]))


def _reading(judge: str, mapping: str) -> str:
    return judge if mapping == "refusal" else f"{judge} · {mapping}"
