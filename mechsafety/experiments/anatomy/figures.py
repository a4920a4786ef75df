"""Figures of an anatomy: clusters of activations, attacks, sensitivity of the first token, and the line to tuned."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from mechsafety.experiments.anatomy.findings import last_layer, of_alpha, told_alphas, told_primes
from mechsafety.experiments.anatomy.histograms import sensitivity_figure, tau_figure
from mechsafety.experiments.anatomy.panels import (
    GROUP_NAMES,
    GROUPS,
    POSITIONS,
    SAFE,
    UNSAFE,
    Line,
    LinePanel,
    Names,
    Tables,
    chance_line,
    columns_for,
    families_in,
    level,
    line_panels,
    model_line,
    models_in,
    rows_of,
    who,
)
from mechsafety.experiments.anatomy.part_figures import part_figures
from mechsafety.experiments.anatomy.weight_figures import weight_figures
from mechsafety.plots.panels import told_size

Draw = Callable[[pd.DataFrame, Names], go.Figure]


def anatomy_figures(tables: Tables, *, names: Names) -> dict[str, go.Figure]:
    """Every figure that the tables allow, by file name; ``names`` are the models' by their part."""
    there = {key: table for key, table in tables.items() if len(table)}
    figures: dict[str, go.Figure] = {}
    if "tau" in there:
        for positions in POSITIONS:
            rows = there["tau"][there["tau"]["positions"] == positions]
            if len(rows):
                figures[f"anatomy-tau-{positions.replace('_', '-')}"] = tau_figure(
                    rows, positions, separation=there.get("separation")
                )
    if "norms" in there:
        figures["anatomy-sensitivity"] = sensitivity_figure(
            there["norms"], names, medians=there.get("sensitivity")
        )
    drawn: tuple[tuple[str, str, Draw], ...] = (
        ("separation", "anatomy-separation", separation_figure),
        ("separation", "anatomy-cluster-rank", rank_figure),
        ("attack_tau", "anatomy-attacks", attack_figure),
        ("interpolation", "anatomy-alpha", alpha_figure),
    )
    for key, file, draw in drawn:
        if key in there:
            figures[file] = draw(there[key], names)
    return figures | weight_figures(there, names=names) | part_figures(there, names=names)


def separation_figure(separation: pd.DataFrame, names: Names) -> go.Figure:
    """d' and AUROC of tau by layer, with intervals, for every model and position."""
    positions = [p for p in POSITIONS if p in set(separation["positions"])]
    panels = []
    for measure, said in (("d_prime", "d'"), ("auroc", "AUROC")):
        for place in positions:
            rows = separation[separation["positions"] == place]
            lines = [
                model_line(_xy(rows[rows["model"] == model], measure), model, names)
                for model in models_in(rows)
            ]
            if measure == "auroc":
                chance = rows.groupby("layer")["auroc_chance"].max()
                lines.append(chance_line(chance, "95 % of permuted labels lie below"))
            panels.append(LinePanel(title=f"{said}, {POSITIONS[place]}", lines=lines, y_title=said))
    return line_panels(
        panels,
        x_title="layer",
        title=f"Safe against unsafe prompts, last layer: d' {told_primes(separation, positions[0])}",
        subtitle=f"tau of {told_size(separation, 'n_safe')} safe and {told_size(separation, 'n_unsafe')} unsafe "
        "prompts that the centroids were not fitted to. Bands: 95 % intervals over prompts.",
        columns=len(positions),
    )


def _xy(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    columns = {"layer": "x", measure: "y", f"{measure}_low": "low", f"{measure}_high": "high"}
    return rows.rename(columns=columns)[list(columns.values())]


def rank_figure(separation: pd.DataFrame, names: Names) -> go.Figure:
    """How much of each cluster's variance lies along one direction, by layer."""
    panels = []
    positions = [p for p in POSITIONS if p in set(separation["positions"])]
    for place in positions:
        rows = separation[separation["positions"] == place]
        for group in (SAFE, UNSAFE):
            lines = [
                model_line(pd.DataFrame({"x": part["layer"], "y": part[f"share_{group}"]}), model, names)
                for model in models_in(rows)
                for part in [rows[rows["model"] == model]]
            ]
            chance = rows.groupby("layer")[f"share_{group}_chance"].max()
            lines.append(chance_line(chance, "round cloud of as many points"))
            panels.append(
                LinePanel(
                    title=f"{group} cluster, {POSITIONS[place]}", lines=lines, y_title="share", form="rate"
                )
            )
    last = last_layer(separation, positions[0])
    said = [
        f"{model} {rows['share_unsafe'].iloc[0]:.0%}"
        for model in ("tuned", "base", "control")
        if len(rows := last[last["model"] == model])
    ]
    return line_panels(
        panels,
        x_title="layer",
        title=f"Variance of the unsafe cluster along one direction, last layer: {', '.join(said)}",
        subtitle="Share of a cluster's centred variance along its first singular direction; at 100 % it is a "
        "line.",
        columns=2,
    )


def attack_figure(attack_tau: pd.DataFrame, names: Names) -> go.Figure:
    """Mean tau of successful and of failed attacks on the tuned model by layer: a row a position, a column a family."""
    tuned = attack_tau[attack_tau["model"] == "tuned"]
    families = list(dict.fromkeys(tuned["family"]))
    families = [*(f for f in families if f == "all"), *(f for f in families if f != "all")]
    positions = [p for p in POSITIONS if p in set(tuned["positions"])]
    panels = [
        LinePanel(
            title=("all attacks" if family == "all" else str(family))
            + ("" if i else f"<br>{POSITIONS[place]}"),
            lines=[
                *(
                    Line(
                        name=GROUP_NAMES[outcome],
                        rows=part.rename(columns={"layer": "x", "tau": "y"})[["x", "y", "low", "high"]],
                        colour=GROUPS[outcome],
                    )
                    for outcome in ("success", "failed")
                    for part in [rows_of(tuned, positions=place, family=family, outcome=outcome)]
                ),
                level(tuned["layer"], 0.0, "as near to either centroid"),
            ],
            y_title=f"mean tau, {POSITIONS[place]}",
        )
        for place in positions
        for i, family in enumerate(families)
    ]
    last = last_layer(tuned, positions[0])
    sides = [
        f"{row['on_safe_side']:.0%} of {row['n']:g} {'successful' if row['outcome'] == 'success' else 'failed'}"
        for _, row in last[last["family"] == "all"].iterrows()
        if row["n"]
    ]
    return line_panels(
        panels,
        x_title="layer",
        title=f"Attacks on the safe side of tau, last layer: {' and '.join(sides) or 'none were made'}",
        subtitle=f"{who('tuned', names)}. Above the dashed line is the safe side. Bands: 95 % intervals of the mean.",
        columns=len(families),
    )


def alpha_figure(interpolation: pd.DataFrame, names: Names) -> go.Figure:
    """Outcomes on the line from base to tuned and beyond: refused by group, and degenerate."""
    groups = [g for g in (UNSAFE, SAFE) if g in set(interpolation["group"])]
    wanted = [(group, "refused") for group in (*groups, *families_in(interpolation))]
    wanted[len(groups) : len(groups)] = [(group, "degenerate") for group in groups]
    panels = [
        LinePanel(
            title=f"{GROUP_NAMES.get(group, group)}: {measure}",
            lines=[
                model_line(_along(rows_of(interpolation, model=model, group=group), measure), model, names)
                for model in models_in(interpolation)
            ],
            y_title="share",
            form="rate",
        )
        for group, measure in wanted
    ]
    shares = [
        f"{of_alpha(interpolation, 'tuned', UNSAFE, alpha, 'refused').value:.0%} at {alpha:g}"
        for alpha in told_alphas(interpolation["alpha"])
    ]
    return line_panels(
        panels,
        x_title="alpha",
        title=f"Unsafe prompts refused along base + alpha dW: {', '.join(shares)}",
        subtitle=f"alpha 0 is the base and 1 the fine-tuned model. {told_size(interpolation, 'n')} prompts of a group "
        "at most. Bands: 95 % Wilson intervals. Dashed: the control.",
        columns=columns_for(len(panels)),
    )


def _along(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    columns = {"alpha": "x", measure: "y", f"{measure}_low": "low", f"{measure}_high": "high"}
    return rows.rename(columns=columns)[list(columns.values())]
