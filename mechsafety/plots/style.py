"""How every figure looks: colours, fonts, and the place of titles and legends."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from mechsafety.core.errors import MechsafetyError
from mechsafety.plots.layout import lay_out
from mechsafety.plots.look import names_found, wanted
from mechsafety.plots.recolour import recolour

# Okabe and Ito's palette (jfly.uni-koeln.de/color), which survives grey printing better than hues alone.
COLOURS = {
    "refusal": "#0072B2",
    "compliance": "#E69F00",
    "degenerate": "#8C8C8C",
    "unparsed": "#E5E5E5",
    "harmful": "#D55E00",
    "harmless": "#009E73",
    "line": "#0072B2",
    "ink": "#222222",
}
FONT = "Inter, Helvetica Neue, Arial, DejaVu Sans, sans-serif"
HEAT = [[0.0, "#F7FBFF"], [0.5, "#6BAED6"], [1.0, "#08306B"]]
AROUND = 200  # pixels of a figure's height that are not its panels'
_LONGEST_FILE = 180  # bytes; file systems take 255, with what stands before and after
_LAYOUT = (
    *("annotationdefaults", "autotypenumbers", "colorway", "font", "hoverlabel", "hovermode"),
    *("paper_bgcolor", "plot_bgcolor", "shapedefaults", "title", "xaxis", "yaxis"),
)
DIVERGING = [[0.0, "#2166AC"], [0.5, "#F7F7F7"], [1.0, "#B2182B"]]


def whiskers(
    value: Sequence[float] | pd.Series,
    low: Sequence[float] | pd.Series,
    high: Sequence[float] | pd.Series,
    *,
    colour: str | None = None,
    **looks: float,
) -> dict[str, Any]:
    """An interval around each value as plotly's ``error_x`` or ``error_y``; ``looks`` are thickness and width.

    An interval that ends on the far side of its value (of a clipped estimate) has no length there.
    """
    middle, below, above = (np.asarray(ends, dtype=float) for ends in (value, low, high))
    bars: dict[str, Any] = {
        "type": "data",
        "symmetric": False,
        "array": np.maximum(above - middle, 0),
        "arrayminus": np.maximum(middle - below, 0),
        **looks,
    }
    return bars if colour is None else bars | {"color": colour}


def short_name(spec: str) -> str:
    """A system's name without its owner or folder, at most 32 characters."""
    whole = " ".join(spec.split()).rstrip("/") or spec
    return _cut(whole.rpartition("/")[2] if _is_path(whole) else whole)


def _is_path(name: str) -> bool:
    """Whether a slash parts folders or owners: not in an expression of edits, nor in markup."""
    return "+" not in name and "<" not in name


def system_names(systems: Iterable[str]) -> dict[str, str]:
    """Names under which systems stand side by side: short, and as much longer as keeps them apart."""
    return distinct({system: name_forms(system) for system in systems})


def name_forms(system: str) -> list[str]:
    """A system's name from short to whole: its last part, then with more of its path."""
    parts = system.rstrip("/").split("/") if _is_path(system) else []
    longer = ["/".join(parts[-n:]) for n in range(2, len(parts) + 1)]
    return [short_name(system), *map(_cut, longer), system]


def distinct(forms: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each key the first of its forms that no other key is shown under; its last form is the key itself."""
    at = dict.fromkeys(forms, 0)
    while True:
        named = {key: forms[key][place] for key, place in at.items()}
        counts = Counter(named.values())
        longer = [key for key, place in at.items() if counts[named[key]] > 1 and place + 1 < len(forms[key])]
        if not longer:
            return named
        for key in longer:
            at[key] += 1


def file_names(systems: Iterable[str]) -> dict[str, str]:
    """What stands for each system in the names of files: safe, and distinct also where capitals do not count."""
    plain = {system: "".join(c if c.isalnum() or c in ".-+" else "_" for c in system) for system in systems}
    counts = Counter(name.casefold() for name in plain.values())
    return {
        system: name
        if counts[name.casefold()] == 1 and len(name.encode()) <= _LONGEST_FILE
        else f"{name[-40:]}-{hashlib.sha256(system.encode()).hexdigest()[:8]}"
        for system, name in plain.items()
    }


def _cut(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:14]}…{name[-17:]}"


def wrapped(text: str, width: int = 26) -> str:
    """Text over several lines of at most ``width`` characters, broken at spaces where there are any."""
    lines = [""]
    for word in text.split():
        for piece in (word[i : i + width] for i in range(0, len(word), width)):
            if lines[-1] and len(lines[-1]) + 1 + len(piece) > width:
                lines.append(piece)
            else:
                lines[-1] = f"{lines[-1]} {piece}".strip()
    return "<br>".join(lines)


def require_rows(rows: pd.DataFrame, wanted: str, table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """``rows`` unless there are none; the error lists what ``columns`` of the table hold."""
    if len(rows):
        return rows
    held = (f"{name}: {', '.join(map(str, table[name].unique())) or 'nothing'}" for name in columns)
    raise MechsafetyError(
        f"there is nothing to draw of {wanted}; the table holds {'; '.join(held) or 'no rows'}"
    )


def require_single(rows: pd.DataFrame, *key: str) -> pd.DataFrame:
    """``rows`` unless two of them have the same ``key``: a line through both would be nobody's."""
    double = rows[rows.duplicated(list(key))]
    if double.empty:
        return rows
    where = ", ".join(f"{name} {double[name].iloc[0]}" for name in key)
    apart = [name for name in ("system", "method", "judge") if name in rows and len(set(rows[name])) > 1]
    raise MechsafetyError(
        f"the table has several rows of {where}: filter it by {' and '.join(apart) or 'their source'}"
    )


@cache
def _white() -> go.layout.Template:
    """What these figures have of plotly's white template.

    All of it would be most of a small figure, and is copied anew each time that one is read or written.
    """
    whole = pio.templates["plotly_white"].to_plotly_json()
    return go.layout.Template(
        layout={name: whole["layout"][name] for name in _LAYOUT},
        data={name: whole["data"][name] for name in ("bar", "heatmap", "scatter")},
    )


def styled(figure: go.Figure, title: str, subtitle: str, *, width: int, height: int) -> go.Figure:
    """The last act of drawing: the house style, and the options that were asked for (:mod:`.look`).

    ``height`` is that of the panels and of one line of each text around them, 200 pixels; more lines take more.
    """
    look = wanted()
    figure.update_layout(
        template=_white(),
        font={"family": FONT, "size": 13, "color": COLOURS["ink"]},
        modebar={"orientation": "v"},
    )
    figure.update_annotations(font_family=FONT)
    if colours := look.get("colours"):
        recolour(figure, colours, found=names_found())  # type: ignore[arg-type]
    lay_out(
        figure,
        look.get("title") or title,
        subtitle,
        width=look.get("width") or width,
        area=height - AROUND,
        height=look.get("height"),
    )
    return figure
