"""Where the text of a figure goes: within the picture, and none of it over another.

Plotly gives text no room of its own but to the labels of y axes; here titles, headings of panels, labels of x axes and
legends are wrapped, turned or cut for the width there is, and the margins made that they take.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mechsafety.plots.recolour import legend_names
from mechsafety.plots.text import LINE, cut, fitted, text_height, text_width

EDGE = 14  # pixels between text and the edge of the picture
_TICK = 11.0
_AXIS_TITLE = 12.0
_LEGEND = 13.0
_ENTRY = 46  # pixels of a legend's entry besides its text
_LEAST_CELL = 8  # the smallest letters of numbers in a map
_SHARE = 0.34  # of the width, at most, for the labels of a y axis
_TURNED_MOST = 190  # pixels of a label that is turned


def lay_out(
    figure: go.Figure, title: str, subtitle: str, *, width: int, area: int, height: int | None
) -> None:
    """Fit text into a figure ``width`` pixels wide, its panels ``area`` or all of it ``height`` pixels high."""
    _numbered_maps(figure)
    _named_rows(figure)
    area = area if height else _room_for_rows(figure, width, area)
    left, right = _y_labels(figure, width, area), _colour_bars(figure)
    inner = max(60.0, width - left - right)
    top = _title(figure, title, subtitle, width)
    above, below = _x_labels(figure, inner)
    for y, room in _panel_titles(figure, inner).items():
        above[y] = above.get(y, 0.0) + room
    legend = _legend(figure, width)
    ends = [end for _, end in _rows(figure)]
    top += above.get(ends[-1], 0.0)
    bottom = max(14.0, below.get(_rows(figure)[0][0], 0.0), _notes_below(figure)) + legend
    inside = float(area) if height is None else max(60.0, height - top - bottom)
    inside = _part_rows(figure, inside, above, below, grow=height is None)
    figure.update_layout(
        width=width,
        height=height or round(inside + top + bottom),
        margin={"l": left, "r": right, "t": round(top), "b": round(bottom)},
    )
    _scales(figure, inside)
    _cells(figure, inner, inside)


# -- above ------------------------------------------------------------------------------------------


def _title(figure: go.Figure, title: str, subtitle: str, width: int) -> float:
    """The title, as large as lets it stand in one line down to 13, and the subtitle; the room that they take."""
    room = width - 2 * EDGE - 26  # the mode bar stands at the right
    size = max(13, min(17, int(17 * room / max(text_width(title, 17), 1))))
    title, subtitle = fitted(title, room, size), fitted(subtitle, room, 12)
    figure.update_layout(
        title={
            "text": title,
            "subtitle": {"text": subtitle, "font": {"size": 12, "color": "#555555"}},
            **{"x": 0, "xref": "container", "xanchor": "left", "pad": {"l": EDGE, "t": EDGE}},
            **{"y": 1, "yref": "container", "yanchor": "top", "font": {"size": size}},
        }
    )
    return EDGE + text_height(title, size) + (text_height(subtitle, 12) + 8 if subtitle else 0) + 14


def _panel_titles(figure: go.Figure, inner: int | float) -> dict[float, float]:
    """Headings of panels, wrapped for their panel; the room that they take above each place on the paper."""
    found: dict[float, float] = {}
    for note in figure.layout.annotations:
        if note.xref != "paper" or note.yref != "paper" or note.yanchor != "bottom" or note.showarrow:
            continue
        size = note.font.size = min(note.font.size or 13, 13)
        note.text = fitted(note.text or "", _panel_width(figure, note.x) * inner - 6, size)
        place = round(float(note.y), 4)
        found[place] = max(found.get(place, 0.0), text_height(note.text, size) + 6)
    return found


def _panel_width(figure: go.Figure, x: int | float) -> float:
    """The share of the width of the panel whose middle is ``x``."""
    domains = [axis.domain or (0.0, 1.0) for axis in figure.select_xaxes()]
    near = [end - start for start, end in domains if abs((start + end) / 2 - x) < 0.01]
    return float(min(near, default=1.0))


# -- beside -----------------------------------------------------------------------------------------


def _room_for_rows(figure: go.Figure, width: int, area: int) -> int:
    """``area``, or up to three times as much where labels of the first column's y axes are taller than their rows."""
    needed = 0.0
    for axis in figure.select_yaxes():
        hidden = axis.showticklabels is False or axis.visible is False
        if hidden or not _first_column(figure, axis) or not (labels := _labels(figure, axis, "y")):
            continue
        size, (start, end) = axis.tickfont.size or 12, axis.domain or (0.0, 1.0)
        tallest = max(text_height(fitted(label, _SHARE * width, size), size) for label in labels)
        if tallest > 1.5 * LINE * size:  # labels of one line need not stand in a row of their own
            needed = max(needed, (tallest + 6) * len(labels) / (end - start))
    return max(area, min(math.ceil(needed), 3 * area))


def _y_labels(figure: go.Figure, width: int, area: int) -> int:
    """Labels of the first column's y axes, wrapped or cut to their rows; the room that they take."""
    widest = 40.0
    for axis in figure.select_yaxes():
        if axis.showticklabels is False or axis.visible is False:
            continue
        size = axis.tickfont.size or 12
        axis.ticklabelstandoff = axis.ticklabelstandoff or 4
        axis.title.font.size = axis.title.font.size or 12
        labels = _labels(figure, axis, "y")
        titled = 24 if axis.title.text else 0
        if labels:
            span = (axis.domain or (0.0, 1.0))[1] - (axis.domain or (0.0, 1.0))[0]
            pitch = span * area / len(labels)
            room = (
                _SHARE * width if _first_column(figure, axis) else _gap_left(figure, axis) * width * 0.8 - 12
            )
            shown = [_in_row(label, room, pitch, size) for label in labels]
            if shown != labels:
                _set_labels(axis, labels, shown)
            if _first_column(figure, axis):
                widest = max(widest, max(text_width(label, size) for label in shown) + 16 + titled)
        elif _first_column(figure, axis):
            widest = max(widest, 46 + titled)
        axis.update(automargin=True)
    return round(widest)


def _in_row(label: str, room: int | float, pitch: int | float, size: int | float) -> str:
    wrapped = fitted(label, room, size)
    lines_fit = text_height(wrapped, size) + 6 <= pitch or "<br>" not in wrapped
    return wrapped if lines_fit else cut(label, room, size)


def _first_column(figure: go.Figure, axis: Any) -> bool:
    anchor = figure.layout[_axis_name(axis.anchor or "x")]
    return (anchor.domain or (0.0, 1.0))[0] < 0.01


def _gap_left(figure: go.Figure, axis: Any) -> float:
    """The share of the paper between an axis and the panel to its left."""
    start = (figure.layout[_axis_name(axis.anchor or "x")].domain or (0.0, 1.0))[0]
    ends = [(other.domain or (0.0, 1.0))[1] for other in figure.select_xaxes()]
    return float(start - max((end for end in ends if end <= start), default=0.0))


def _axis_name(anchor: str) -> str:
    return f"{anchor[0]}axis{anchor[1:]}"


def _colour_bars(figure: go.Figure) -> int:
    """The room to the right: for the scales of maps, with their ticks and titles."""
    scales = [trace for trace in figure.data if trace.type == "heatmap" and trace.showscale is not False]
    if not scales:
        return 30
    ticks = [str(text) for trace in scales for text in trace.colorbar.ticktext or ("-0.00",)]
    titles = [trace.colorbar.title for trace in scales if trace.colorbar.title.text]
    for title in titles:
        title.side = "right"  # above, it would stand over the first tick of a low scale
    lines = max((title.text.count("<br>") + 1 for title in titles), default=0)
    return round(46 + max(text_width(text, 12) for text in ticks) + 17 * lines)


def _scales(figure: go.Figure, inside: float) -> None:
    """As many ticks on the scales of maps as have room."""
    for trace in figure.data:
        if trace.type == "heatmap" and trace.showscale is not False and trace.colorbar.tickvals is None:
            trace.colorbar.nticks = max(2, min(8, int((trace.colorbar.len or 1) * inside / 34)))


# -- below ------------------------------------------------------------------------------------------


def _x_labels(figure: go.Figure, inner: int | float) -> tuple[dict[float, float], dict[float, float]]:
    """Labels of x axes, turned where they are too wide for their place; the room they take above and below rows."""
    above: dict[float, float] = {}
    below: dict[float, float] = {}
    several = len({axis.domain for axis in figure.select_xaxes()}) > 1
    for axis in figure.select_xaxes():
        if axis.visible is False:
            continue
        domain, title = axis.domain or (0.0, 1.0), axis.title
        room = (domain[1] - domain[0]) * inner
        taken = 0.0
        if axis.showticklabels is not False:
            taken = _ticks(figure, axis, room)
            axis.ticklabelstandoff = axis.ticklabelstandoff or 3
            if several and axis.tickvals is None:
                axis.ticklabeloverflow = "hide past domain"  # else it may reach into the next panel's
        if title.text:
            size = title.font.size = title.font.size or 12
            title.text, title.standoff = fitted(title.text, room, size), 6
            taken += 8 + text_height(title.text, size)
        start, end = _row_of(figure, axis)
        if axis.side == "top":
            above[end] = max(above.get(end, 0.0), taken + 4)
        elif taken:
            below[start] = max(below.get(start, 0.0), taken + 12)
    return above, below


def _ticks(figure: go.Figure, axis: Any, room: int | float) -> float:
    """Lay out one axis's labels; the height that they take."""
    size = axis.tickfont.size = axis.tickfont.size or 12
    labels = _labels(figure, axis, "x")
    if not labels:
        return LINE * size + 4
    seen = _in_range(axis, labels)
    slot = room / len(seen)
    widest = max(text_width(label, size) for label in seen)
    if widest <= slot - 4:
        axis.tickangle = 0
        return max(text_height(label, size) for label in labels) + 4
    step = max(1, math.ceil((LINE * size) / slot))  # labels that are thinner than their lines are left out
    shown = [
        cut(label, _TURNED_MOST, size) if place % step == 0 else "" for place, label in enumerate(labels)
    ]
    angle = -90 if slot * step < 1.25 * LINE * size else -60
    _set_labels(axis, labels, shown)
    axis.tickangle = angle
    turn = math.radians(-angle)
    widest = max(text_width(label, size) for label in shown)
    return widest * math.sin(turn) + LINE * size * math.cos(turn) + 6


def _in_range(axis: Any, labels: list[str]) -> list[str]:
    """Those of an axis's labels that stand within its range; all where one of the two is not said."""
    if axis.range is None or axis.tickvals is None or axis.type == "category":
        return labels
    low, high = sorted(axis.range)
    places = [math.log10(v) if axis.type == "log" else float(v) for v in axis.tickvals]
    return [label for label, at in zip(labels, places, strict=True) if low <= at <= high] or labels


def _row_of(figure: go.Figure, axis: Any) -> tuple[float, float]:
    """Where the panel of an x axis begins and ends on the paper."""
    domain = figure.layout[_axis_name(axis.anchor or "y")].domain or (0.0, 1.0)
    return round(float(domain[0]), 4), round(float(domain[1]), 4)


def _rows(figure: go.Figure) -> list[tuple[float, float]]:
    """The rows of panels from below."""
    domains = [axis.domain or (0.0, 1.0) for axis in figure.select_yaxes()] or [(0.0, 1.0)]
    return sorted({(round(float(start), 4), round(float(end), 4)) for start, end in domains})


def _notes_below(figure: go.Figure) -> float:
    """The room of notes that hang below the panels."""
    notes = [n for n in figure.layout.annotations if n.yref == "paper" and n.y == 0 and n.yanchor == "top"]
    return max((text_height(n.text, n.font.size or 12) - (n.yshift or 0) + 8 for n in notes), default=0.0)


def _part_rows(
    figure: go.Figure, inside: float, above: dict[float, float], below: dict[float, float], *, grow: bool
) -> float:
    """Put so much between rows of panels as their text takes; the height inside, more where it may ``grow``."""
    rows = _rows(figure)
    if any(second[0] < first[1] for first, second in itertools.pairwise(rows)):
        return inside
    gaps = [(second[0] - first[1]) * inside for first, second in itertools.pairwise(rows)]
    needed = [
        above.get(first[1], 0.0) + below.get(second[0], 0.0) for first, second in itertools.pairwise(rows)
    ]
    wide = [max(gap, need + 4) for gap, need in zip(gaps, needed, strict=True)]
    if wide == gaps:
        return inside
    heights = [(end - start) * inside for start, end in rows]
    whole = sum(heights) + sum(wide) if grow else inside
    shrunk = max(0.2, (whole - sum(wide)) / sum(heights))
    old, new, at = [], [], 0.0
    for place, (start, end) in enumerate(rows):
        old += [start, end]
        new += [at, at + heights[place] * shrunk]
        at = new[-1] + (wide[place] if place < len(wide) else 0.0)
    _move(figure, old, [value / new[-1] for value in new])
    return whole


def _move(figure: go.Figure, old: Sequence[float], new: Sequence[float]) -> None:
    """Move what stands at ``old`` heights on the paper to ``new`` ones."""

    def to(value: int | float) -> float:
        return float(np.clip(np.interp(value, old, new), 0, 1))

    for axis in figure.select_yaxes():
        start, end = axis.domain or (0.0, 1.0)
        axis.domain = (to(round(start, 4)), to(round(end, 4)))
    for note in figure.layout.annotations:
        if note.yref == "paper" and 0 <= note.y <= 1:
            note.y = to(note.y)
    for trace in figure.data:
        bar = trace.colorbar if trace.type == "heatmap" and trace.showscale is not False else None
        if bar is not None and bar.y is not None and bar.len is not None:
            low, high = (to(bar.y + half * bar.len / 2) for half in (-1, 1))
            bar.update(y=(low + high) / 2, len=high - low, yanchor="middle")


def _labels(figure: go.Figure, axis: Any, letter: str) -> list[str]:
    """What an axis is labelled with, where it is not by numbers that plotly chooses."""
    if axis.ticktext is not None:
        return [str(text) for text in axis.ticktext]
    own = letter + axis.plotly_name.removeprefix(f"{letter}axis")
    found: dict[str, None] = {}
    for trace in figure.data:
        values = trace[letter]
        if (trace[f"{letter}axis"] or letter) != own or values is None or not len(values):
            continue
        if axis.type == "category" or isinstance(values[0], str):
            found |= dict.fromkeys(map(str, values))
    return list(found)


def _set_labels(axis: Any, labels: Sequence[str], shown: Sequence[str]) -> None:
    if axis.ticktext is None:
        axis.tickvals = list(labels)
    axis.ticktext = list(shown)


def _legend(figure: go.Figure, width: int) -> float:
    """The legend at the foot, below the axis titles whatever the height; the room that it takes."""
    names = legend_names(figure)
    if len(names) < 2 and not any(trace.showlegend for trace in figure.data):
        return 0.0
    room = width - 2 * EDGE
    for trace in figure.data:
        if trace.name and text_width(trace.name, _LEGEND) > room - _ENTRY:
            trace.name = cut(trace.name, room - _ENTRY, _LEGEND)
    widths = [text_width(name, _LEGEND) + _ENTRY for name in legend_names(figure)]
    in_row = len(widths) if sum(widths) <= room else max(1, int(room / max(widths)))
    figure.update_layout(
        legend={
            **{"orientation": "h", "font": {"size": _LEGEND}, "xref": "container", "x": EDGE / width},
            **{"xanchor": "left", "yref": "container", "y": 0.0, "yanchor": "bottom", "maxheight": 0.9},
        }
    )
    return math.ceil(len(widths) / in_row) * (LINE * _LEGEND + 3) + 14


# -- within -----------------------------------------------------------------------------------------


def _numbered_maps(figure: go.Figure) -> None:
    """The range of axes of maps whose places are numbered: plotly finds none where no number is known."""
    for trace in figure.data:
        if trace.type == "heatmap" and trace.z is not None and len(trace.z):
            for letter, n in (("x", len(trace.z[0])), ("y", len(trace.z))):
                axis = figure.layout[_axis_name(trace[f"{letter}axis"] or letter)]
                if trace[letter] is None and axis.range is None and axis.autorange is None:
                    axis.range = (-0.5, n - 0.5)


def row_range(n: int) -> tuple[float, float]:
    """The range of a y axis with ``n`` rows of marks: plotly's own leaves most of a row free at each end."""
    return -0.6, n - 0.4


def _named_rows(figure: go.Figure) -> None:
    """The range of y axes whose rows have names; where bars or maps stand in them, plotly leaves no more room."""
    for axis in figure.select_yaxes():
        own = "y" + axis.plotly_name.removeprefix("yaxis")
        kinds = {trace.type for trace in figure.data if (getattr(trace, "yaxis", None) or "y") == own}
        named = axis.ticktext is None and axis.range is None and kinds == {"scatter"}
        if named and (n := len(dict.fromkeys([*_labels(figure, axis, "y"), *(axis.categoryarray or ())]))):
            axis.range = row_range(n)[:: -1 if axis.autorange == "reversed" else 1]
            axis.autorange = None


def _cells(figure: go.Figure, inner: int | float, area: int | float) -> None:
    """Numbers in the cells of a map: in letters that fit, or on hovering alone where none do."""
    for trace in figure.data:
        if trace.type != "heatmap" or not trace.texttemplate:
            continue
        x, y = (
            figure.layout[_axis_name(trace[f"{letter}axis"] or letter)].domain or (0.0, 1.0)
            for letter in "xy"
        )
        across, down = len(trace.z[0]) or 1, len(trace.z) or 1
        cell = ((x[1] - x[0]) * inner / across - 4, (y[1] - y[0]) * area / down - 2)
        texts = [str(text) for row in trace.text for text in row if text]
        size = next(
            (
                size
                for size in range(trace.textfont.size or 12, _LEAST_CELL - 1, -1)
                if all(text_width(t, size) <= cell[0] and text_height(t, size) <= cell[1] for t in texts)
            ),
            None,
        )
        trace.update(textfont={"size": size} if size else {}, texttemplate=trace.texttemplate if size else "")
