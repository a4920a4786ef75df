"""Scores of a layer sweep, layer by layer: the selected position's curves, the others faintly."""

from __future__ import annotations

from typing import Any, Protocol, Unpack, runtime_checkable

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsafety.claims.numbers import number
from mechsafety.core.errors import MechsafetyError
from mechsafety.plots.columns import Columns
from mechsafety.plots.look import Look, drawn, drawn_from
from mechsafety.plots.panels import log_axis
from mechsafety.plots.style import COLOURS, require_rows, require_single, short_name, styled

KL_TICKS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10]


def kl_axis(values: pd.Series) -> dict[str, Any]:
    """A logarithmic axis that holds KL divergences, also where all of them are 0 or unknown."""
    return log_axis(list(values), percent=False) | {
        "tickvals": KL_TICKS,
        "ticktext": [f"{t:g}" for t in KL_TICKS],
    }


@runtime_checkable
class SweepLike(Protocol):
    """What :func:`layer_sweep` draws: ``sweeps.Sweep``, or anything with its frame and base scores."""

    def to_frame(self) -> pd.DataFrame: ...

    @property
    def model_name(self) -> str: ...

    @property
    def base_harmful(self) -> float: ...

    @property
    def base_harmless(self) -> float: ...

    @property
    def selected_layer(self) -> int | None: ...


@drawn
def layer_sweep(sweep: SweepLike, *, position: int | None = None, **_look: Unpack[Look]) -> go.Figure:
    """Separation, bypass and induce, and KL by layer; dashed where a layer is selected, at the position selected.

    ``position`` draws another one boldly, which the dashed line is then left out of.

    Arguments:
        sweep: What ms.sweep returned.

    Example:
        >>> swept = ms.sweep(model, directions, prompts.validation, layers=(1, 2), progress=False)
        >>> ms.plots.layer_sweep(swept).layout.title.text
        'smollm2-135m: scores of directions by layer'
    """
    chosen = getattr(sweep, "selected_position", None)
    here = position is None or chosen is None or position == chosen
    return layer_sweep_table(
        sweep.to_frame(),
        name=sweep.model_name,
        selected=sweep.selected_layer if here else None,
        base=(sweep.base_harmful, sweep.base_harmless),
        position=chosen if position is None else position,
    )


@drawn_from(table=Columns(places="position layer", numbers="auroc bypass induce kl"))
def layer_sweep_table(
    table: pd.DataFrame,
    *,
    name: str = "model",
    selected: int | None = None,
    base: tuple[float, float] | None = None,
    position: int | None = None,
    **_look: Unpack[Look],
) -> go.Figure:
    """The same from a stored table (sweep.parquet) of one model and method.

    The curves are those of ``position``, that of the selected candidate; the other positions are drawn faintly. Where
    nothing is selected it is the last by default. Raises :class:`MechsafetyError` where it is not given and the table
    holds several, and for a candidate that the table does not hold.

    Arguments:
        selected: The selected layer; None for none.

    Example:
        >>> run = ms.load_run("runs/sweep")
        >>> figure = ms.plots.layer_sweep_table(run.tables["sweep"], name="smollm2-135m", selected=2)
        >>> figure.layout.title.text
        'smollm2-135m: scores of directions by layer'
    """
    system, comma, method = name.partition(", ")
    return named_layer_sweep(
        table, f"{short_name(system)}{comma}{method}", selected=selected, base=base, position=position
    )


def named_layer_sweep(
    table: pd.DataFrame,
    shown: str,
    *,
    selected: int | None,
    base: tuple[float, float] | None,
    position: int | None,
) -> go.Figure:
    """:func:`layer_sweep_table` under a name that is shown as it is."""
    rows = _curve(table, selected, position)
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
    dropped = _dropped(rows)
    sizes = [3 if small else 7 for small in dropped]
    others = table[table["position"] != rows["position"].iloc[0]].sort_values("layer")
    for column, label, colour, symbol, row in lines:
        for place, other in others.groupby("position"):
            figure.add_scatter(
                x=other["layer"],
                y=other[column],
                name=f"{label}, position {place}",
                mode="lines",
                line={"color": colour, "width": 1},
                opacity=0.25,
                showlegend=False,
                hovertemplate=f"position {place}, layer %{{x}}: %{{y:.3g}}<extra>{column}</extra>",
                row=row,
                col=1,
            )
        figure.add_scatter(
            x=x,
            y=rows[column],
            name=label,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": sizes},
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
        title_text="AUROC", range=[min(0.45, float(table["auroc"].min()) - 0.03), 1.03], row=1, col=1
    )
    figure.update_yaxes(title_text="refusal score (logit)", row=2, col=1)
    figure.update_yaxes(kl_axis(table["kl"]), title_text="KL (nats)", row=3, col=1)
    figure.update_xaxes(title_text="layer where the direction was found (input of block)", row=3, col=1)
    return styled(
        figure,
        f"{shown}: scores of directions by layer",
        f"Validation prompts. {_selected_text(rows, selected)}"
        + (
            f" Bold: position {int(rows['position'].iloc[0])}; faint: {_places(others)}."
            if len(others)
            else ""
        )
        + (" Small: dropped by racing, scored on fewer prompts." if any(dropped) else ""),
        width=860,
        height=680,
    )


def _places(others: pd.DataFrame) -> str:
    places = sorted(set(others["position"]))
    return f"position{'s' if len(places) > 1 else ''} {', '.join(map(str, places))}"


def _dropped(rows: pd.DataFrame) -> list[bool]:
    """Which candidates racing dropped before they were scored on every prompt."""
    if "n_harmful" not in rows.columns:
        return [False] * len(rows)
    return list(rows["n_harmful"] < rows["n_harmful"].max())


def _curve(table: pd.DataFrame, selected: int | None, position: int | None) -> pd.DataFrame:
    """The rows of one position by layer, the selected candidate among them."""
    require_single(require_rows(table, "scores", table), "position", "layer")
    positions = sorted(table["position"].unique())
    if position is None and selected is not None and len(positions) > 1:
        raise MechsafetyError(
            f"layer {selected} is selected of a table with positions {', '.join(map(str, positions))}: "
            "name one with position="
        )
    chosen = positions[-1] if position is None else position
    rows = table[table["position"] == chosen].sort_values("layer")
    require_rows(rows, f"position {chosen}", table, "position")
    if selected is not None:
        require_rows(rows[rows["layer"] == selected], f"layer {selected}, position {chosen}", rows, "layer")
    return rows


def _selected_text(rows: pd.DataFrame, selected: int | None) -> str:
    """Which candidate the dashed line marks, with its AUROC at its own position."""
    if selected is None:
        return "No candidate is selected."
    row = rows[rows["layer"] == selected].iloc[0]
    auroc = number(float(row["auroc"]), "AUROC")
    return (
        f"Dashed: the selected candidate, layer {selected}, position {int(row['position'])}, AUROC {auroc}."
    )
