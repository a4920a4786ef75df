"""Answers before and after the edit, as stacked bars: side by side, or, of many systems, one below the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import pandas as pd
import plotly.graph_objects as go

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.wording import counted
from mechsafety.plots.columns import Columns
from mechsafety.plots.look import Look, drawn_from, wanted
from mechsafety.plots.panels import WIDTH
from mechsafety.plots.style import AROUND, COLOURS, require_rows, require_single, styled, system_names
from mechsafety.plots.text import fitted, text_width
from mechsafety.plots.titles import count_title, read_arm, stars
from mechsafety.plots.traces import dots, in_legend, side_by_side

ARMS = ("original", "edited")
LABELS = ("harmful", "harmless")
_STATES = (*ARMS, "random")
_PATTERNS = {"refusal": "", "compliance": "", "degenerate": "/"}
_BETWEEN = 0.4  # of a bar: the gap between two systems
_MOST_BESIDE = 5  # systems


@drawn_from(
    rates=Columns(
        keys="system arm label judge", numbers="rate low high n unparsed refusal compliance degenerate"
    ),
    tests=Columns(keys="system label judge", numbers="p_holm"),
    controls=Columns(keys="system", numbers="refused complied degenerate", may_be_empty=True),
)
def outcome_bars(
    rates: pd.DataFrame,
    tests: pd.DataFrame | None = None,
    *,
    judge: str | None = None,
    controls: pd.DataFrame | None = None,
    **_look: Unpack[Look],
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
    panels = [_arm_bars(chosen[chosen["label"] == label], systems) for label in LABELS]
    if controls is not None:
        panels[0] += [bar for s in systems if (bar := _random_bar(controls[controls["system"] == s], s))]
    everywhere = _placed([bar for bars in panels for bar in bars], systems)
    widest = max((text_width(bar.name, 12) for bars in panels for bar in bars), default=0.0) + 6
    slots = sum(len(bars) + _BETWEEN * len(systems) for bars in panels)
    width = max(760, 260 + (320 if random else 250) * len(systems), math.ceil(140 + widest * slots))
    slot = ((wanted().get("width") or width) - 130) / slots
    across = len(systems) > _MOST_BESIDE or slot < widest
    widths = {"column_widths": [3, 2]} if random and not across else {}
    figure = side_by_side(
        [count_title(chosen, label) for label in LABELS], gap=0.07 if across else 0.04, **widths
    )
    for column, (label, bars) in enumerate(zip(LABELS, panels, strict=True), start=1):
        marks = {
            s: "" if tests is None else stars(tests, system=s, label=label, judge=judge) for s in systems
        }
        places = everywhere if across else _placed(bars, systems)
        _draw_bars(figure, bars, places, marks, column=column, across=across)
        if not across and bars:
            _label_below(figure, bars, places, slot=slot, column=column)
    figure.update_layout(barmode="stack", bargap=0.25)
    shares = {"tickformat": ".0%", "title_text": "share of readable responses"}
    if across:
        _label_across(figure, panels, everywhere)
        figure.update_xaxes(range=[0, 1.16], tickvals=[0, 0.5, 1], **shares)
    else:
        figure.update_yaxes(range=[0, 1.1], tickvals=[0, 0.25, 0.5, 0.75, 1], tickformat=".0%")
        figure.update_yaxes(title_text="share of readable responses", col=1)
    return styled(
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
        width=WIDTH if across else width,
        height=AROUND + (26 * len(everywhere) + 12 * len(systems) if across else 300),
    )


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
    state: str
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
            state=arm,
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
        state="random",
        name="random",
        shares={outcome: float(known[column].mean()) for outcome, column in columns.items()},
        **{"rate": float(refused.mean()), "low": float(refused.min()), "high": float(refused.max())},
        starred=False,
    )


def _placed(bars: Sequence[_Bar], systems: Sequence[str]) -> dict[tuple[str, str], float]:
    """The place of each bar on the axis by system and state: those of a system side by side."""
    states = sorted({bar.state for bar in bars}, key=_STATES.index)
    there = {(bar.system, bar.state) for bar in bars}
    found: dict[tuple[str, str], float] = {}
    at = 0.0
    for system in systems:
        for state in states:
            if (system, state) in there:
                found[system, state] = at
                at += 1
        at += _BETWEEN
    return found


def _draw_bars(
    figure: go.Figure,
    bars: Sequence[_Bar],
    places: Mapping[tuple[str, str], float],
    marks: Mapping[str, str],
    *,
    column: int,
    across: bool,
) -> None:
    """The bars, whiskers and stars of one label; ``across``: along the x axis."""
    at = [places[bar.system, bar.state] for bar in bars]
    where = {"row": 1, "col": column}
    for outcome, shape in _PATTERNS.items():
        pattern = {"shape": shape, "fgcolor": "white", "size": 5}
        shares = [bar.shares[outcome] for bar in bars]
        figure.add_bar(
            x=shares if across else at,
            y=at if across else shares,
            orientation="h" if across else "v",
            name=outcome,
            customdata=[(bar.system, bar.state) for bar in bars],
            marker={"color": COLOURS[outcome], "pattern": pattern, "line": {"color": "white", "width": 0.5}},
            hovertemplate="%{customdata[0]}, %{customdata[1]}: %{"
            + ("x" if across else "y")
            + ":.3~%}<extra>"
            + outcome
            + "</extra>",
            **in_legend(outcome, first=column == 1, **where),
        )
    # A trace of its own, drawn last: the stacked bars would cover the upper half.
    looks = {"marker": {"size": 1, "color": COLOURS["ink"]}, "looks": {"thickness": 1.6, "width": 6.0}}
    quiet = {"showlegend": False, "hoverinfo": "skip", **where}
    bounds = ([bar.low for bar in bars], [bar.high for bar in bars])
    keys = [(bar.system, bar.state) for bar in bars]
    refused = [bar.rate for bar in bars]
    dots(figure, at, refused, name=None, bounds=bounds, across=across, customdata=keys, **looks, **quiet)
    for system, mark in marks.items():
        tested = [place for place, bar in zip(at, bars, strict=True) if bar.system == system and bar.starred]
        if mark and tested:
            middle = sum(tested) / len(tested)
            end = {"x": 1.02, "xanchor": "left", "y": middle} if across else {"x": middle, "y": 1.055}
            figure.add_annotation(text=mark, showarrow=False, font={"size": 13}, **end, **where)


def _label_across(
    figure: go.Figure, panels: Sequence[Sequence[_Bar]], places: Mapping[tuple[str, str], float]
) -> None:
    """A label a bar beside the y axis, which the panels share: its system, its state, and what was not read."""
    first = {(bar.system, bar.state): bar for bars in reversed(panels) for bar in bars}
    names = system_names(dict.fromkeys(system for system, _ in places))
    figure.update_yaxes(
        tickvals=list(places.values()),
        ticktext=[f"{names[key[0]]}, {first[key].name}" for key in places],
        range=[max(places.values()) + 0.6, -0.6],
        showgrid=False,
        zeroline=False,
    )


def _label_below(
    figure: go.Figure,
    bars: Sequence[_Bar],
    places: Mapping[tuple[str, str], float],
    *,
    slot: float,
    column: int,
) -> None:
    """A label a bar below the x axis, and under those the name of each system."""
    shown = {(bar.system, bar.state): bar.name for bar in bars}
    here = {key: place for key, place in places.items() if key in shown}
    where = {"row": 1, "col": column}
    figure.update_xaxes(
        tickvals=list(here.values()),
        ticktext=[shown[key] for key in here],
        range=[-0.6, max(here.values()) + 0.6],
        showgrid=False,
        zeroline=False,
        **where,
    )
    lines = max(name.count("<br>") + 1 for name in shown.values())
    for system, name in system_names(dict.fromkeys(system for system, _ in here)).items():
        at = [place for (of, _), place in here.items() if of == system]
        figure.add_annotation(
            text=fitted(name.replace("+", " +"), slot * len(at) - 6, 12),
            **{"x": sum(at) / len(at), "y": 0, "xref": "x" if column == 1 else f"x{column}", "yref": "paper"},
            **{"yanchor": "top", "yshift": -10 - 16 * lines, "showarrow": False, "font": {"size": 12}},
        )
