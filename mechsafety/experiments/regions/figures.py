"""Figures of a regions run: trade-off of removals, attacks, fine-tuning with weights kept."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechsafety.experiments.regions.findings import (
    REMOVAL_NAMES,
    mode_name,
    pooled,
    removals_of,
    told_setting,
)
from mechsafety.experiments.regions.heatmaps import (
    grid_figure,
    grid_sizes,
    head_heatmap,
    jaccard_heatmap,
    subspace_heatmap,
)
from mechsafety.experiments.regions.link_figures import link_effects_figure, links_figure
from mechsafety.plots.attacks import attack_figure
from mechsafety.plots.panels import (
    HARMFUL,
    HARMLESS,
    HUES,
    LOSS,
    RANKS,
    SYMBOLS,
    UTILITY,
    WEIGHTS,
    WIDTH,
    Series,
    outcome_panels,
    panel_height,
    told_size,
)
from mechsafety.plots.style import (
    COLOURS,
    legend_at_foot,
    short_name,
    styled,
)


def region_figures(
    tables: Mapping[str, pd.DataFrame], *, name: str = "model", sweet_spot: Mapping[str, Any] | None = None
) -> dict[str, go.Figure]:
    """Every figure that the run's tables allow, by file name; tables that are missing or empty are left out.

    ``name`` is the model's as it is shown.
    """
    there = {key: table for key, table in tables.items() if len(table)}
    figures: dict[str, go.Figure] = {}
    if "tradeoff" in there:
        table = there["tradeoff"]
        for removal in removals_of(table):
            figures[f"region-tradeoff-{_file(removal)}"] = _tradeoff(table, removal, name, sweet_spot)
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


def tradeoff_figure(
    tradeoff: pd.DataFrame,
    removal: str,
    *,
    name: str = "model",
    sweet_spot: Mapping[str, Any] | None = None,
) -> go.Figure:
    """Refusal, coherence and utility at every setting of one removal, beside its matched random control.

    Settings stand in the order of the share that they remove. Every draw is a mark with its 95 % interval.
    """
    return _tradeoff(tradeoff, removal, short_name(name), sweet_spot)


def _tradeoff(
    tradeoff: pd.DataFrame, removal: str, name: str, sweet_spot: Mapping[str, Any] | None
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
    series = [
        Series(
            name=REMOVAL_NAMES.get(removal, removal),
            rows=rows[rows["control"] == "removed"],
            colour=COLOURS["harmful"],
            offset=-0.15,
        ),
        Series(
            name="random control of the same size",
            rows=rows[rows["control"] == "random"],
            colour=COLOURS["degenerate"],
            symbol="square",
            dash="dot",
            offset=0.15,
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
        _tradeoff_title(tradeoff, removal, name, sweet_spot),
        f"{told_size(tradeoff, 'harmful_n')} harmful and {told_size(tradeoff, 'harmless_n')} harmless prompts. "
        "Marks: single draws with 95 % intervals; lines: their means.",
    )


def freezing_figure(freezing: pd.DataFrame) -> go.Figure:
    """Outcomes and utility after benign fine-tuning, by number of examples; nothing, the region or random weights kept.

    The row of no examples is the model as it is, drawn dashed.
    """
    before, rows = (freezing[(freezing["n_examples"] > 0) == is_after] for is_after in (False, True))
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
    refused = {named: part[part["n_examples"] == counts[-1]]["refused"].mean() for named, part in groups}
    kept = {named: v for named, v in refused.items() if v == v and named != "nothing kept"}
    title = f"Refusals after fine-tuning on {counts[-1]:g} benign examples: "
    title += f"{refused['nothing kept']:.0%}" if "nothing kept" in refused else "see below"
    if kept:
        best = max(kept, key=lambda named: kept[named])
        title += f"; at most {kept[best]:.0%} ({short_name(best)})"
    return _finished(
        figure,
        title,
        f"{told_size(rows, 'harmful_n')} harmful prompts. Marks: single seeds with 95 % intervals; lines: their means. "
        "Rewound: first values put back afterwards.",
    )


# -- parts ------------------------------------------------------------------------------------------


def _finished(figure: go.Figure, title: str, subtitle: str) -> go.Figure:
    height = panel_height(figure)
    figure = legend_at_foot(styled(figure, title, subtitle, width=WIDTH, height=height))
    return figure.update_annotations(font_size=13)


def _tradeoff_title(
    tradeoff: pd.DataFrame, removal: str, name: str, sweet_spot: Mapping[str, Any] | None
) -> str:
    setting = told_setting(tradeoff, removal, sweet_spot)
    rows = tradeoff[(tradeoff["removal"] == removal) & (tradeoff["setting"] == setting)]
    values = {
        key: pooled(part, "refused").value
        for key, part in (
            ("before", tradeoff[tradeoff["control"] == "model"]),
            ("after", rows[rows["control"] == "removed"]),
            ("random", rows[rows["control"] == "random"]),
        )
    }
    said = f"{name}, {REMOVAL_NAMES.get(removal, removal)} {setting}: refusals "
    if values["before"] == values["before"]:
        said += f"{values['before']:.0%} to "
    said += f"{values['after']:.0%}"
    return said if values["random"] != values["random"] else f"{said}; random control {values['random']:.0%}"


def _file(name: str) -> str:
    return name.replace("_", "-")
