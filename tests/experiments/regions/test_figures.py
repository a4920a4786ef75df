"""Figures of a regions run: every row of a table is drawn, with its interval, and what is missing is left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from mechsafety.experiments.regions.contrasts import mode_name
from mechsafety.experiments.regions.figures import (
    attack_figure,
    freezing_figure,
    link_effects_figure,
    links_figure,
    region_figures,
    tradeoff_figure,
)
from mechsafety.experiments.regions.heatmaps import (
    grid_figure,
    grid_sizes,
    head_heatmap,
    jaccard_heatmap,
    subspace_heatmap,
)
from mechsafety.plots.attacks import attack_name
from tests import region_tables as made

ALL = {
    *(
        "region-tradeoff-set-difference",
        "region-tradeoff-orthogonal-projection",
        "region-tradeoff-top-safety",
    ),
    *("region-jaccard-snip", "region-jaccard-wanda", "region-subspaces", "region-attacks", "region-links"),
    *("region-link-effects", "region-heads", "region-freezing"),
}
RATES = ("refused", "complied", "degenerate", "harmless_refused", "harmless_degenerate", "accuracy")


def marks(figure: go.Figure, name: str | None = None) -> list[Any]:
    """The traces of single draws: those with whiskers."""
    return [
        t
        for t in figure.data
        if t.type == "scatter" and t.error_y.array is not None and name in (None, t.name)
    ]


def drawn(traces: list[Any], axis: str = "y") -> list[tuple[float, ...]]:
    """Value and both ends of every whisker, rounded, sorted."""
    found = []
    for t in traces:
        bars = t.error_y if axis == "y" else t.error_x
        found += [
            (round(v, 6), round(v - below, 6), round(v + above, 6))
            for v, below, above in zip(t[axis], bars.arrayminus, bars.array, strict=True)
            if v == v
        ]
    return sorted(found)


def expected(rows: pd.DataFrame, column: str, *, scale: float = 1.0) -> list[tuple[float, ...]]:
    ends = rows[[column, f"{column}_low", f"{column}_high"]].dropna() / scale
    return sorted(tuple(round(float(v), 6) for v in row) for row in ends.to_numpy())


@pytest.fixture(scope="module")
def figures() -> dict[str, go.Figure]:
    return region_figures(made.tables(layers=30), name="m")


def test_all_tables_give_all_figures(figures: dict[str, go.Figure]) -> None:
    assert set(figures) == ALL


@pytest.mark.parametrize("name", list(made.tables(layers=2)))
def test_each_table_gives_its_own_figures_and_an_empty_one_none(name: str) -> None:
    table = made.tables(layers=2)[name]
    start = {"structure": "region-jaccard"}.get(name, f"region-{name.replace('_', '-')}")
    assert set(region_figures({name: table})) == {f for f in ALL if f.startswith(start)}
    assert region_figures({name: table.iloc[:0]}) == {}


def test_a_grid_is_drawn_where_both_sizes_vary() -> None:
    grid = made.tradeoff(draws=1, grid=True)
    shown = region_figures({"tradeoff": grid[grid["removal"] == "set_difference"]})
    assert set(shown) == {"region-tradeoff-set-difference", "region-grid-set-difference"}


def test_every_figure_has_a_title_a_caption_and_fits_the_page(figures: dict[str, go.Figure]) -> None:
    for name, figure in figures.items():
        layout = figure.to_dict()["layout"]
        assert 10 < len(layout["title"]["text"]) < 100, name
        assert len(layout["title"]["subtitle"]["text"]) > 10, name
        assert layout["width"] <= 1000, name


def test_every_state_and_its_interval_is_in_the_tradeoff() -> None:
    table = made.tradeoff()
    figure = tradeoff_figure(table, "set_difference", sweet_spot=made.SWEET_SPOT)
    rows = table[table["removal"] == "set_difference"]
    base = float(table.loc[table["control"] == "model", "perplexity"].iloc[0])
    shown = drawn(marks(figure))
    for column in RATES:
        assert set(expected(rows, column)) <= set(shown), column
    assert set(expected(rows, "perplexity", scale=base)) <= set(shown)
    # The control: another removal's rows are not in this figure.
    other = expected(table[table["removal"] == "top_safety"], "degenerate")
    assert not set(other) <= set(shown)
    # One mark a row and measured panel (9 with the share).
    assert sum(len(t.y) for t in marks(figure)) == 9 * len(rows)


def test_unedited_model_and_sweet_spot_are_in_every_panel() -> None:
    table = made.tradeoff()
    figure = tradeoff_figure(table, "set_difference", sweet_spot=made.SWEET_SPOT)
    dashed = [s for s in figure.layout.shapes if s.type == "line"]
    # Not in the panels of the share and of KL, where the unedited model is 0.
    assert len(dashed) == 7
    assert sorted(s.y0 for s in dashed)[-1] == 1.0
    spots = [s for s in figure.layout.shapes if s.type == "rect" and s.fillcolor == "#F0E442"]
    assert len(spots) == 9
    ticks = figure.layout.xaxis.ticktext
    assert ticks[round((spots[0].x0 + spots[0].x1) / 2)].replace("<br>", " ") == "p=1 q=1"
    elsewhere = tradeoff_figure(table, "top_safety", sweet_spot=made.SWEET_SPOT)
    assert not [s for s in elsewhere.layout.shapes if s.fillcolor == "#F0E442"]


def test_settings_stand_in_the_order_of_what_they_remove() -> None:
    table = made.tradeoff()
    rows = table[(table["removal"] == "set_difference") & (table["control"] == "removed")]
    order = rows.groupby("setting")["share"].mean().sort_values().index
    figure = tradeoff_figure(table, "set_difference")
    assert [t.replace("<br>", " ") for t in figure.layout.xaxis.ticktext] == list(order)


def test_measures_that_were_not_taken_are_reported_or_left_out() -> None:
    table = made.tradeoff()
    bare = table.assign(**{c: math.nan for c in table if c.startswith(("accuracy", "perplexity", "kl"))})
    titles = {a.text for a in tradeoff_figure(bare, "set_difference").layout.annotations}
    assert not titles & {"multiple choice: right", "KL from unedited (nats)"}
    some = table.assign(accuracy=math.nan)
    figure = tradeoff_figure(some, "set_difference")
    assert "not measured" in {a.text for a in figure.layout.annotations}
    without = tradeoff_figure(table.drop(columns=["kl", "kl_low", "kl_high"]), "set_difference")
    assert "not measured" in {a.text for a in without.layout.annotations}
    # The control: with everything measured nothing is missing.
    whole = {a.text for a in tradeoff_figure(table, "set_difference").layout.annotations}
    assert "not measured" not in whole
    assert "KL from unedited (nats)" in whole


def test_a_tradeoff_without_controls_or_model_is_drawn() -> None:
    table = made.tradeoff()
    alone = table[table["control"] == "removed"]
    figure = tradeoff_figure(alone, "set_difference")
    assert not figure.layout.shapes
    names = {t.name for t in figure.data if t.name}
    assert names == {"set difference"}
    assert {"perplexity"} <= {a.text for a in figure.layout.annotations}


def test_without_the_unedited_perplexity_it_is_drawn_as_it_is() -> None:
    table = made.tradeoff(draws=1)
    table.loc[table["control"] == "model", "perplexity"] = math.nan
    figure = tradeoff_figure(table, "top_safety")
    rows = table[table["removal"] == "top_safety"]
    assert set(expected(rows, "perplexity")) <= set(drawn(marks(figure)))
    titles = {a.text for a in figure.layout.annotations}
    assert "perplexity" in titles
    assert "perplexity, times unedited" not in titles


def test_a_table_of_nothing_measured_reports_it() -> None:
    table = made.freezing()
    keep = ["mode", "frozen", "frozen_share", "n_examples", "seed", "harmful_n", "harmless_n"]
    figure = freezing_figure(table.assign(**{c: math.nan for c in table if c not in keep}))
    assert [a.text for a in figure.layout.annotations].count("not measured") == 3


def test_grid_only_where_both_sizes_vary() -> None:
    grid = made.tradeoff(grid=True)
    assert grid_sizes(grid, "set_difference") == ("p", "q")
    assert grid_sizes(grid, "top_safety") is None
    diagonal = grid[(grid["p"] == grid["q"]) & (grid["removal"] == "set_difference")]
    assert grid_sizes(diagonal, "set_difference") is None
    figure = grid_figure(grid, "set_difference")
    first = figure.data[0]
    rows = grid[(grid["removal"] == "set_difference") & (grid["control"] == "removed")]
    means = rows.groupby(["q", "p"])["refused"].mean()
    for i, q in enumerate(first.y):
        for j, p in enumerate(first.x):
            assert first.z[i][j] == pytest.approx(means[(float(q), float(p))])


@pytest.mark.parametrize("method", ["snip", "wanda"])
def test_jaccard_map_holds_every_matrix_and_marks_chance(method: str) -> None:
    table = made.structure(layers=5).iloc[:-1]  # the last matrix of wanda is missing
    figure = jaccard_heatmap(table, method)
    heat = next(t for t in figure.data if t.type == "heatmap")
    rows = table[table["method"] == method]
    cells = {
        (int(layer), kind): heat.z[i][j]
        for i, kind in enumerate(heat.y)
        for j, layer in enumerate(heat.x)
        if heat.z[i][j] == heat.z[i][j]
    }
    assert len(cells) == len(rows)
    for row in rows.to_dict(orient="records"):
        assert cells[(row["layer"], row["kind"])] == row["jaccard"]
    assert "chance" in heat.colorbar.ticktext
    assert heat.colorbar.tickvals[0] == pytest.approx(0.025641)
    edge = next(t for t in figure.data if t.type == "scatter" and t.mode == "text")
    index = rows[rows["kind"] == "q"]["jaccard"]
    shared = (2 * index / (1 + index)).mean()
    assert edge.text[0] == f"{index.mean():.2f} ({shared / 0.05:.0f}×)"


def test_several_q_are_maps_of_their_own() -> None:
    table = pd.concat([made.structure(layers=3), made.structure(layers=3).assign(q=1.0, chance=0.005)])
    figure = jaccard_heatmap(table, "snip")
    assert len([t for t in figure.data if t.type == "heatmap"]) == 2


def test_subspace_map_shows_raw_and_against_chance() -> None:
    table = made.subspaces(layers=3)
    table.loc[0, "excess"] = math.nan
    raw, excess = (t for t in subspace_heatmap(table).data if t.type == "heatmap")
    pivot = table.pivot_table(index="kind", columns="layer", values="phi")
    assert np.allclose(np.asarray(raw.z, dtype=float), pivot.reindex(list(raw.y)).to_numpy())
    assert np.isnan(np.asarray(excess.z, dtype=float)).sum() == 1
    # Zero is the middle of the scale: below chance and above look different.
    assert excess.zmin == -excess.zmax
    edge = next(t for t in subspace_heatmap(table).data if t.type == "scatter" and t.mode == "text")
    assert "chance 0.52" in edge.text[list(edge.y).index("k")]
    undefined = subspace_heatmap(table.assign(excess=math.nan))
    assert {t.text for t in undefined.data if t.type == "scatter" and t.mode == "text" and "–" in t.text}


def test_heads_ring_the_best() -> None:
    table = made.heads(layers=4, n_heads=3)
    figure = head_heatmap(table)
    best = table.loc[table["auroc"].idxmax()]
    ring = figure.data[1]
    assert (ring.x[0], ring.y[0]) == (best["layer"], best["head"])
    nothing = head_heatmap(table.assign(auroc=math.nan, low=math.nan, high=math.nan))
    assert len(nothing.data) == 1
    assert nothing.layout.title.text == figure.layout.title.text


def test_every_attack_is_drawn_with_its_interval() -> None:
    table = made.attacks()
    figure = attack_figure(table)
    whiskers = [t for t in figure.data if t.error_x.array is not None]
    rows = table.rename(columns={"low": "asr_low", "high": "asr_high"})
    assert drawn(whiskers, "x") == expected(rows, "asr")
    garbage = [t for t in figure.data if t.xaxis == "x3"]
    # All attempts at a prompt together have no degenerate share of their own.
    assert sorted(v for t in garbage for v in t.x) == sorted(table[table["measure"] != "any"]["degenerate"])
    assert len(garbage) < len(whiskers)
    assert {t.name for t in whiskers} == {attack_name(r) for r in table.to_dict(orient="records")}
    undefined = attack_figure(table.assign(asr=math.nan, low=math.nan, high=math.nan))
    assert undefined.layout.title.text == figure.layout.title.text


def test_every_mode_seed_and_interval_of_freezing_is_drawn() -> None:
    table = made.freezing()
    figure = freezing_figure(table)
    after = table[table["n_examples"] > 0]
    assert set(expected(after, "refused")) <= set(drawn(marks(figure)))
    assert sum(len(t.y) for t in marks(figure)) == 9 * len(after)
    modes = {mode_name(m, f) for m, f in zip(after["mode"], after["frozen"], strict=True)}
    assert modes == {
        *("nothing kept", "safety frozen", "safety rewound"),
        *("random of that size frozen", "random of that size rewound"),
    }
    assert modes <= {t.name for t in figure.data}
    # The model before fine-tuning is the dashed line.
    dashed = [s.y0 for s in figure.layout.shapes if s.type == "line"]
    assert float(table["refused"].iloc[0]) in dashed
    assert not freezing_figure(after).layout.shapes


def test_links_show_removed_random_and_chance_by_layer() -> None:
    table = made.links(layers=4)
    figure = links_figure(table)
    shown = sorted(v for t in figure.data for v in t.y)
    wanted = [*table["share_removed_on_direction"], *table["random"]]
    chance = table.drop_duplicates(["removal", "method", "layer"])["chance"]
    assert shown == pytest.approx(sorted([*wanted, *chance]))
    assert figure.layout.yaxis.type == "log"
    low, high = figure.layout.yaxis.range
    assert low < math.log10(min(wanted))
    assert high > math.log10(max(wanted))
    sized = links_figure(table.assign(matched=0.9))
    assert sum(v == 0.9 for t in sized.data for v in t.y) == len(table)
    assert sized.layout.yaxis.range[1] > math.log10(0.9)


def test_link_effects_draw_every_state() -> None:
    table = made.link_effects()
    figure = link_effects_figure(table)
    assert drawn([t for t in figure.data if t.xaxis == "x"], "x") == expected(table, "refused")
    assert len(figure.data) == 6
    without = link_effects_figure(table.assign(auroc=math.nan))
    assert len(without.data) == 5


def test_systems_of_any_name_stay_apart_and_unbroken_words_are_wrapped() -> None:
    table = made.attacks().assign(system="x" * 90)
    labels = attack_figure(table).layout.yaxis.ticktext
    assert max(len(line) for line in labels[0].split("<br>")) <= 26
    assert labels[0].replace("<br>", "") == "x" * 90
