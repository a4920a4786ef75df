"""Figures of a fine-tuning's weights: spectra, null space, action, states that keep a part, links to other findings."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from mechsafety.experiments.anatomy.panels import (
    Names,
    Tables,
    by_kind,
    columns_for,
    digits,
    level,
    line_panels,
    of_models,
)
from mechsafety.experiments.anatomy.weight_findings import excesses, ratio_summary


def weight_figures(tables: Tables, *, names: Names) -> dict[str, go.Figure]:
    """Every figure of weights that the tables allow, by file name."""
    drawn: tuple[tuple[str, str, Callable[[pd.DataFrame, Names], go.Figure]], ...] = (
        ("weight_changes", "anatomy-size", size_figure),
        ("spectrum", "anatomy-spectrum", spectrum_figure),
        ("weight_changes", "anatomy-null-space-90", lambda t, n: null_space_figure(t, 90, n)),
        ("weight_changes", "anatomy-null-space-99", lambda t, n: null_space_figure(t, 99, n)),
        ("action_ratios", "anatomy-action", action_figure),
    )
    return {file: draw(tables[key], names) for key, file, draw in drawn if key in tables}


def size_figure(changes: pd.DataFrame, names: Names) -> go.Figure:
    """How large dW is beside W, and its effective rank, by layer and kind."""
    sized = changes[changes["model"] != "random"].assign(percent=lambda t: 100 * t["relative_norm"])
    panels = [
        *by_kind(
            sized,
            lambda rows: of_models(rows, {"layer": "x", "percent": "y"}, names),
            y_title="||dW|| / ||W||, %",
            form="log",
        ),
        *by_kind(
            changes,
            lambda rows: of_models(rows, {"layer": "x", "effective_rank": "y"}, names),
            y_title="effective rank",
            form="log",
        ),
    ]
    medians = changes.groupby("model")[["relative_norm", "effective_rank"]].median()
    said = [
        f"{model} {medians.loc[model, 'relative_norm']:.1%}"
        for model in ("tuned", "control")
        if model in medians.index
    ]
    return line_panels(
        panels,
        x_title="layer",
        title=f"Size of dW beside the base's weights (median): {', '.join(said)}",
        subtitle="Top: Frobenius norms. Below: effective rank of dW (exponential of the entropy of its energies). "
        "Logarithmic.",
        columns=len(panels) // 2,
    )


def spectrum_figure(spectrum: pd.DataFrame, names: Names) -> go.Figure:
    """Singular values of dW, median over layers, and how much its input directions read of unsafe prompts."""
    over = spectrum.groupby(["model", "kind", "index"], sort=False)
    sigma = over["sigma"].quantile([0.0, 0.5, 1.0]).unstack().reset_index()
    sigma = sigma.rename(columns={0.0: "low", 0.5: "y", 1.0: "high"}).assign(x=lambda t: t["index"] + 1)
    panels = by_kind(
        sigma,
        lambda rows: of_models(rows, {"x": "x", "y": "y", "low": "low", "high": "high"}, names),
        y_title="singular value",
        form="log",
    )
    read = over[["projection_safe", "projection_unsafe"]].median().reset_index()
    read = read.assign(x=read["index"] + 1, y=read["projection_unsafe"] / read["projection_safe"])
    if read["y"].notna().any():
        panels += by_kind(
            read,
            lambda rows: [
                *of_models(rows, {"x": "x", "y": "y"}, names),
                level(rows["x"], 1.0, "safe and unsafe alike"),
            ],
            y_title="read: unsafe / safe",
        )
    top = spectrum[spectrum["index"] == 0].groupby("model")["sigma"].median()
    ratio = ""
    if {"tuned", "random"} <= set(top.index) and top["random"] > 0:
        ratio = f": the first is {digits(top['tuned'] / top['random'])} times that of a random dW (median)"
    kinds = spectrum["kind"].nunique()
    return line_panels(
        panels,
        x_title="place of the singular direction",
        title=f"Spectra of dW{ratio}",
        subtitle="Top: median over layers; bands: lowest to highest layer. Below: sigma |&lt;a, v>| / ||a||, unsafe "
        "over safe prompts. Only what lies above the rounding of the weights. Random dW: of the tuned one's norm.",
        columns=kinds,
    )


def null_space_figure(changes: pd.DataFrame, energy: int, names: Names) -> go.Figure:
    """Alignment of dW's top directions with the left null space of W, less chance, by layer and kind."""
    over = changes.assign(y=changes[f"alignment_{energy}"] - changes[f"chance_{energy}"])
    panels = by_kind(
        over,
        lambda rows: [
            *of_models(rows, {"layer": "x", "y": "y"}, names),
            level(rows["layer"], 0.0, "chance"),
        ],
        y_title="excess over chance",
    )
    found = excesses(changes, energy)
    said = [
        f"{model} {found[model].median:+.3f}" for model in ("tuned", "control", "random") if model in found
    ]
    chance = changes[f"chance_{energy}"]
    return line_panels(
        panels,
        x_title="layer",
        title=f"Null-space alignment of dW above chance (median): {', '.join(said)}",
        subtitle=f"Outputs beyond those that hold {energy} % of W's energy. Root mean square of ||P u|| over dW's top "
        f"left singular vectors, less what chance gives ({chance.min():.2f} to {chance.max():.2f}).",
        columns=columns_for(len(panels)),
    )


def action_figure(ratios: pd.DataFrame, names: Names) -> go.Figure:
    """How much more dW acts on unsafe than on safe prompts, by layer and kind."""
    columns = {"layer": "x", "ratio": "y", "low": "low", "high": "high"}
    panels = by_kind(
        ratios,
        lambda rows: [*of_models(rows, columns, names), level(rows["layer"], 1.0, "safe and unsafe alike")],
        y_title="unsafe / safe",
    )
    found = ratio_summary(ratios)
    said = [
        f"{model} {digits(found[model][0])}" for model in ("tuned", "control", "random") if model in found
    ]
    return line_panels(
        panels,
        x_title="layer",
        title=f"dW acts on unsafe against safe prompts (median ratio): {', '.join(said)}",
        subtitle="||dW a|| / ||a||, mean over unsafe prompts over mean over safe ones; a: what the matrix reads over "
        "the answer. Bands: 95 % intervals over prompts.",
        columns=columns_for(len(panels)),
    )
