"""Figures of a regions run: trade-off of removals, links with the refusal direction, fine-tuning with weights kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any, Unpack

import pandas as pd
import plotly.graph_objects as go

from mechsafety.claims.shared import filled
from mechsafety.experiments.regions.contrasts import (
    REMOVAL_NAMES,
    controls_of,
    mode_name,
    removal_claims,
    removals_of,
)
from mechsafety.experiments.regions.findings import METHOD_NAMES, tallied
from mechsafety.experiments.regions.heatmaps import (
    grid_figure,
    grid_sizes,
    head_heatmap,
    jaccard_heatmap,
    subspace_heatmap,
)
from mechsafety.plots.attacks import attack_figure
from mechsafety.plots.columns import Columns
from mechsafety.plots.look import Look, drawn_from
from mechsafety.plots.panels import (
    EXTRA,
    HARMFUL,
    HARMLESS,
    HUES,
    LOSS,
    PROJECTION,
    RANKS,
    SYMBOLS,
    UTILITY,
    WEIGHTS,
    WIDTH,
    Series,
    footed,
    log_axis,
    outcome_panels,
    panel_height,
    size_text,
)
from mechsafety.plots.style import (
    COLOURS,
    require_rows,
    short_name,
    styled,
    whiskers,
    wrapped,
)
from mechsafety.plots.traces import side_by_side, stacked


def region_figures(
    tables: Mapping[str, pd.DataFrame], *, name: str = "model", sweet_spot: Mapping[str, Any] | None = None
) -> dict[str, go.Figure]:
    """Every figure that the run's tables allow, by file name; tables that are missing or empty are left out.

    ``name`` is the model's as it is shown.
    """
    there = filled(tables)
    figures: dict[str, go.Figure] = {}
    if "tradeoff" in there:
        table, claims = there["tradeoff"], removal_claims(there, "harmful")
        for removal in removals_of(table):
            figures[f"region-tradeoff-{_file(removal)}"] = _tradeoff(
                table, removal, name, sweet_spot, tallied(claims, removal, "harmful") if claims else ()
            )
            if grid_sizes(table, removal):
                figures[f"region-grid-{_file(removal)}"] = grid_figure(table, removal)
    if "structure" in there:
        for method in dict.fromkeys(there["structure"]["method"]):
            figures[f"region-jaccard-{_file(method)}"] = jaccard_heatmap(there["structure"], method)
    for key, file, draw in (
        ("subspaces", "region-subspaces", subspace_heatmap),
        ("attacks", "region-attacks", attack_figure),
        ("links", "region-links", links_figure),
        ("link_effects", "region-link-effects", link_effects_figure),
        ("heads", "region-heads", head_heatmap),
        ("freezing", "region-freezing", freezing_figure),
    ):
        if key in there:
            figures[file] = draw(there[key])
    return figures


@drawn_from(
    tradeoff=Columns(
        keys="removal control setting", numbers="draw share r_s harmful_n harmless_n refused", extra=EXTRA
    )
)
def tradeoff_figure(
    tradeoff: pd.DataFrame,
    removal: str | None = None,
    *,
    name: str = "model",
    sweet_spot: Mapping[str, Any] | None = None,
    **_look: Unpack[Look],
) -> go.Figure:
    """Refusal, coherence and utility at every setting of one removal, beside its random and its matched control.

    Settings stand in the order of the share that they remove. Every draw is a mark with its 95 % interval.

    Arguments:
        removal: What was removed, such as set_difference; None takes the first.
        sweet_spot: The removal and setting that is marked, of a run's facts.

    Example:
        >>> run = ms.load_run("runs/regions")
        >>> figure = ms.plots.tradeoff_figure(run.tables["tradeoff"], "set_difference")
        >>> figure.layout.title.text
        'model, set difference: refusals, degenerate text and utility'
    """
    known = removals_of(tradeoff)
    removal = known[0] if removal is None and known else str(removal)
    require_rows(tradeoff[tradeoff["removal"] == removal], f"removal {removal!r}", tradeoff, "removal")
    return _tradeoff(tradeoff, removal, short_name(name), sweet_spot, ())


def _tradeoff(
    tradeoff: pd.DataFrame,
    removal: str,
    name: str,
    sweet_spot: Mapping[str, Any] | None,
    said: Iterable[str],
) -> go.Figure:
    rows = tradeoff[tradeoff["removal"] == removal]
    shares = rows[rows["control"] == "removed"].groupby("setting", sort=False)["share"].mean()
    settings = list(shares.sort_values(kind="stable").index)
    settings += [s for s in dict.fromkeys(rows["setting"]) if s not in settings]
    rows = rows.assign(place=[settings.index(s) for s in rows["setting"]]).sort_values(
        ["place", "draw"], kind="stable"
    )
    model = tradeoff[tradeoff["control"] == "model"]
    base = model.iloc[0] if len(model) else None
    controls = controls_of(removal)
    series = [
        Series(
            name=REMOVAL_NAMES.get(removal, removal),
            rows=rows[rows["control"] == "removed"],
            colour=COLOURS["harmful"],
            offset=-0.25,
        ),
        Series(
            name=controls["random"],
            rows=rows[rows["control"] == "random"],
            colour=COLOURS["degenerate"],
            symbol="square",
            dash="dot",
        ),
        Series(
            name=controls["matched"],
            rows=rows[rows["control"] == "matched"],
            colour=COLOURS["line"],
            symbol="diamond",
            dash="dashdot",
            offset=0.25,
        ),
    ]
    spot = sweet_spot or {}
    marked = (
        settings.index(spot["setting"])
        if spot.get("removal") == removal and spot.get("setting") in settings
        else None
    )
    figure = outcome_panels(
        [one for one in series if len(one.rows)],
        [HARMFUL, [*HARMLESS, RANKS if rows["r_s"].notna().any() else WEIGHTS], UTILITY],
        ticks=[s.replace(" ", "<br>") or "as is" for s in settings],
        base=base,
        marked=marked,
    )
    return _finished(
        figure,
        f"{name}, {REMOVAL_NAMES.get(removal, removal)}: refusals, degenerate text and utility",
        "<br>".join(
            [
                f"{size_text(tradeoff, 'harmful_n')} harmful and {size_text(tradeoff, 'harmless_n')} harmless "
                "prompts. Marks: single draws with 95 % intervals; lines: their means.",
                *said,
            ]
        ),
    )


@drawn_from(
    freezing=Columns(keys="mode frozen", places="n_examples", numbers="seed harmful_n refused", extra=EXTRA)
)
def freezing_figure(freezing: pd.DataFrame, **_look: Unpack[Look]) -> go.Figure:
    """Outcomes and utility after benign fine-tuning, by number of examples; nothing, the region or random weights kept.

    The row of no examples is the model as it is, drawn dashed.

    Example:
        >>> run = ms.load_run("runs/regions")
        >>> ms.plots.freezing_figure(run.tables["freezing"]).layout.title.text
        'Refusals and utility after fine-tuning on benign examples'
    """
    before, rows = (freezing[(freezing["n_examples"] > 0) == is_after] for is_after in (False, True))
    require_rows(rows, "a model after fine-tuning (n_examples above 0)", freezing, "n_examples")
    counts = sorted(rows["n_examples"].unique())
    rows = rows.assign(place=[counts.index(n) for n in rows["n_examples"]])
    groups = [
        (mode_name(str(mode), str(frozen)), part)
        for (mode, frozen), part in rows.groupby(["mode", "frozen"], sort=False)
    ]
    series = [
        Series(
            name=named,
            rows=part.sort_values(["place", "seed"], kind="stable"),
            colour=colour,
            symbol=symbol,
            offset=0.8 * ((order + 0.5) / len(groups) - 0.5),
        )
        for order, ((named, part), colour, symbol) in enumerate(
            zip(groups, cycle(HUES), cycle(SYMBOLS), strict=False)
        )
    ]
    figure = outcome_panels(
        series,
        [HARMFUL, [*HARMLESS, LOSS], UTILITY],
        ticks=[f"{n:g}" for n in counts],
        base=before.iloc[0] if len(before) else None,
    )
    figure.update_xaxes(title_text="fine-tuning examples", title_font={"size": 12}, title_standoff=4)
    return _finished(
        figure,
        "Refusals and utility after fine-tuning on benign examples",
        f"{size_text(rows, 'harmful_n')} harmful prompts. Marks: single seeds with 95 % intervals; lines: their means. "
        "Rewound: first values put back afterwards.",
    )


# -- parts ------------------------------------------------------------------------------------------


def _finished(figure: go.Figure, title: str, subtitle: str) -> go.Figure:
    return footed(figure, title, subtitle, height=panel_height(figure))


def _file(name: str) -> str:
    return name.replace("_", "-")


@drawn_from(
    links=Columns(
        keys="removal method kind",
        places="layer",
        numbers="share_removed_on_direction random chance",
        extra="matched",
    )
)
def links_figure(links: pd.DataFrame, **_look: Unpack[Look]) -> go.Figure:
    """Share of what was removed that wrote on the refusal direction, by layer and removal; random ones dotted.

    Example:
        >>> run = ms.load_run("runs/regions")
        >>> ms.plots.links_figure(run.tables["links"]).layout.title.text
        'Share of what removed weights write that lies on the refusal direction'
    """
    groups = list(links.groupby(["removal", "method"], sort=False))
    kinds = list(dict.fromkeys(links["kind"]))
    figure = stacked(
        [f"{removal} ({METHOD_NAMES.get(str(method), method)})" for (removal, method), _ in groups],
        gap=min(0.09, 0.3 / len(groups)),
    )

    def line(row: int, x: pd.Series, y: pd.Series, name: str, colour: str, dash: str) -> None:
        figure.add_scatter(
            x=x,
            y=y,
            name=name,
            legendgroup=name,
            showlegend=row == 1,
            mode="lines+markers" if dash == "solid" else "lines",
            line={"color": colour, "width": 1.8 if dash == "solid" else 1.3, "dash": dash},
            marker={"size": 5},
            hovertemplate="layer %{x}: %{y:.3%}<extra>" + name + "</extra>",
            row=row,
            col=1,
        )

    for row, (_, part) in enumerate(groups, start=1):
        for kind, colour in zip(kinds, HUES, strict=False):
            rows = part[part["kind"] == kind].sort_values("layer")
            line(row, rows["layer"], rows["share_removed_on_direction"], kind, colour, "solid")
            line(row, rows["layer"], rows["random"], f"{kind}, random removal", colour, "dot")
            if "matched" in rows:
                name = f"{kind}, random removal of like size"
                line(row, rows["layer"], rows["matched"], name, colour, "dashdot")
        layers = part.drop_duplicates("layer").sort_values("layer")
        line(row, layers["layer"], layers["chance"], "random direction", COLOURS["ink"], "dash")
    drawn = [
        v
        for name in ("share_removed_on_direction", "random", "matched", "chance")
        for v in links.get(name, [])
    ]
    figure.update_yaxes(log_axis(drawn, percent=True))
    figure.update_yaxes(title_text="share", title_font={"size": 12})
    figure.update_xaxes(title_text="layer", row=len(groups), col=1)
    return footed(
        figure,
        "Share of what removed weights write that lies on the refusal direction",
        "Share of the removed output's energy that lies on the direction; logarithmic. Dotted: as many random weights"
        f"{'; dashes and dots: as many and as large ones' if 'matched' in links else ''}.",
        height=240 + 190 * len(groups),
    )


def link_effects_figure(link_effects: pd.DataFrame) -> go.Figure:
    """What the model does with the region removed, the direction ablated, and both; one row per state."""
    states = list(dict.fromkeys(link_effects["state"]))[::-1]
    panels = [p for p in (*HARMFUL, *HARMLESS, PROJECTION) if link_effects[p.column].notna().any()]
    figure = side_by_side([panel.title.replace(": ", ":<br>") for panel in panels], gap=0.02)
    for column, panel in enumerate(panels, start=1):
        colour = COLOURS["harmful" if panel in HARMFUL else "harmless" if panel in HARMLESS else "ink"]
        ends = (link_effects[f"{panel.column}_{end}"] for end in ("low", "high"))
        figure.add_scatter(
            x=link_effects[panel.column],
            y=[states.index(s) for s in link_effects["state"]],
            error_x=whiskers(link_effects[panel.column], *ends, colour=colour, thickness=1.4, width=3.0),
            mode="markers",
            marker={"color": colour, "size": 8},
            customdata=link_effects["state"],
            hovertemplate="%{customdata}: %{x:.3~%}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
    figure.update_xaxes(
        range=[-0.06, 1.06],
        zeroline=False,
        tickvals=[0, 0.5, 1],
        ticktext=["0", "50%", "100%"],
        tickfont={"size": 11},
    )
    if PROJECTION in panels:
        figure.update_xaxes(ticktext=["0", "0.5", "1"], col=len(panels))
    figure.update_yaxes(
        tickvals=list(range(len(states))),
        ticktext=[wrapped(s) for s in states],
        range=[-0.6, len(states) - 0.4],
        automargin=True,
        zeroline=False,
    )
    return styled(
        figure,
        "Region removed, direction ablated, and both",
        f"{size_text(link_effects, 'harmful_n')} harmful and {size_text(link_effects, 'harmless_n')} harmless prompts. "
        "Whiskers: 95 % intervals. AUROC: of the projection on the direction.",
        width=WIDTH,
        height=230 + 44 * len(states),
    )
