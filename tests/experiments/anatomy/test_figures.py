"""Figures of an anatomy: every row of a table is drawn, beside chance and control, and what is missing is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from mechsafety.experiments.anatomy.figures import (
    alpha_figure,
    anatomy_figures,
    attack_tau_figure,
    rank_figure,
    sensitivity_figure,
    separation_figure,
    tau_figure,
)
from mechsafety.experiments.anatomy.weight_figures import (
    ablation_figure,
    action_figure,
    direction_figure,
    null_space_figure,
    reversal_figure,
    sets_figure,
    size_figure,
    spectrum_figure,
)
from mechsafety.plots.lines import columns_for, spread_out
from tests import anatomy_tables as made

NAMES = {"base": "tiny", "tuned": "owner/tiny-tuned", "control": "tiny-benign"}
CALLED = {"base": "base (tiny)", "tuned": "tuned (tiny-tuned)", "control": "control (tiny-benign)"}
FILES = {
    "separation": {"anatomy-separation", "anatomy-cluster-rank"},
    "tau": {"anatomy-tau-output", "anatomy-tau-last-prompt"},
    "d_prime_changes": set(),
    "attack_tau": {"anatomy-attacks"},
    "weight_changes": {"anatomy-size", "anatomy-null-space-90", "anatomy-null-space-99"},
    "spectrum": {"anatomy-spectrum"},
    "action": set(),
    "action_ratios": {"anatomy-action"},
    "sensitivity": set(),
    "norms": {"anatomy-sensitivity"},
    "interpolation": {"anatomy-alpha"},
    "reversal": {"anatomy-reversal"},
    "links": {"anatomy-direction", "anatomy-weight-sets"},
    "ablation": {"anatomy-ablation"},
    "verdicts": set(),
}
_Figures = dict[int, dict[str, go.Figure]]


@pytest.fixture(scope="module")
def figures() -> _Figures:
    return {layers: anatomy_figures(made.tables(layers=layers), names=NAMES) for layers in (1, 30)}


def cells(figure: go.Figure) -> dict[str, tuple[str, str]]:
    """By panel heading (with a number where it comes again): the axes of the panel."""
    headings = [a.text for a in figure.layout.annotations]
    axes = list(dict.fromkeys((t.xaxis or "x", t.yaxis or "y") for t in figure.data))
    axes.sort(key=lambda pair: int(pair[1][1:] or 1))
    seen: dict[str, tuple[str, str]] = {}
    for heading, pair in zip(headings, axes, strict=False):
        seen[heading if heading not in seen else f"{heading} 2"] = pair
    return seen


def lines(figure: go.Figure, cell: tuple[str, str], name: str) -> Any:
    """The line of ``name`` in a panel."""
    (found,) = (
        t
        for t in figure.data
        if (t.xaxis or "x", t.yaxis or "y") == cell
        and t.name == name
        and t.fill is None
        and "lines" in t.mode
    )
    return found


def bands(figure: go.Figure, cell: tuple[str, str]) -> list[Any]:
    return [t for t in figure.data if (t.xaxis or "x", t.yaxis or "y") == cell and t.fill == "toself"]


def only(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


# -- all of them ------------------------------------------------------------------------------------


def test_all_tables_give_all_figures(figures: _Figures) -> None:
    for layers in figures:
        assert set(figures[layers]) == set().union(*FILES.values())


@pytest.mark.parametrize("name", list(FILES))
def test_each_table_gives_its_own_figures_and_an_empty_one_none(name: str) -> None:
    table = made.tables(layers=1)[name]
    assert set(anatomy_figures({name: table}, names=NAMES)) == FILES[name]
    assert anatomy_figures({name: table.iloc[:0]}, names=NAMES) == {}


@pytest.mark.parametrize("layers", [1, 30])
def test_every_figure_has_a_title_a_caption_labels_and_fits_the_page(figures: _Figures, layers: int) -> None:
    for name, figure in figures[layers].items():
        layout = figure.to_dict()["layout"]
        assert 10 < len(layout["title"]["text"]) < 97, (name, layout["title"]["text"])
        caption = layout["title"]["subtitle"]["text"].split("<br>")
        assert 1 <= len(caption) <= 2, name
        assert all(10 <= len(line) <= 160 for line in caption), name
        assert layout["width"] <= 1000, name
        if name not in ("anatomy-reversal", "anatomy-ablation"):  # bars, whose rows are named
            assert any(axis.title.text for axis in figure.select_yaxes()), name
            assert any(axis.title.text for axis in figure.select_xaxes()), name
        named = [t.name for t in figure.data if t.showlegend is not False]
        assert len(named) == len(set(named)), name


def test_panels_of_one_measure_share_their_range(figures: _Figures) -> None:
    for name in ("anatomy-action", "anatomy-null-space-90", "anatomy-weight-sets"):
        ranges = {tuple(axis.range) for axis in figures[30][name].select_yaxes() if axis.range}
        assert len(ranges) == 1, name
    # The control: d' and AUROC are of different sizes.
    assert len({tuple(a.range) for a in figures[30]["anatomy-separation"].select_yaxes()}) == 2


def test_without_a_control_and_without_attacks_the_rest_is_drawn() -> None:
    def alone(table: pd.DataFrame) -> pd.DataFrame:
        table = table[table["model"] != "control"] if "model" in table else table
        return table[table["group"].isin(["safe", "unsafe"])] if "group" in table else table

    tables = {name: alone(table) for name, table in made.tables(layers=2).items()}
    tables["attack_tau"] = tables["attack_tau"].iloc[:0]
    found = anatomy_figures(tables, names={"base": "a", "tuned": "b"})
    assert set(found) == set().union(*FILES.values()) - {"anatomy-attacks"}
    for name, figure in found.items():
        assert not any("control" in str(t.name) or "attack" in str(t.name) for t in figure.data), name


def test_few_layers_of_many_are_evenly_spaced_with_both_ends() -> None:
    assert spread_out(range(30), 6) == [0, 6, 12, 17, 23, 29]
    assert spread_out([4, 2, 2, 7], 6) == [2, 4, 7]
    for n in range(1, 60):
        found = spread_out(range(n), 6)
        assert found[0] == 0
        assert found[-1] == n - 1
        assert len(set(found)) == min(n, 6)


def test_panels_fill_their_rows() -> None:
    assert [columns_for(n) for n in (1, 2, 3, 4, 6, 7, 8, 9)] == [3, 3, 3, 4, 3, 4, 4, 3]


# -- activations ------------------------------------------------------------------------------------


def test_histograms_hold_every_prompt_once_and_part_attacks_by_their_outcome() -> None:
    tau = only(made.tau(layers=8), positions="output")
    tau.loc[tau["id"] == "ood-1", "label"] = "unparsed"
    figure = tau_figure(tau, "output")
    names = {t.name for t in figure.data}
    assert names == {"safe prompts", "unsafe prompts", "successful attacks", "failed attacks"}
    assert len(figure.data) == 3 * 6 * 4
    for trace in figure.data:
        assert sum(trace.y[1:-1:2]) == pytest.approx(1)
        assert trace.y[0] == trace.y[-1] == 0
    headings = [a.text for a in figure.layout.annotations]
    assert headings[:6] == [f"layer {i}" for i in (0, 1, 3, 4, 6, 7)]
    # Every model and layer has the border between the sides.
    zeros = [s for s in figure.layout.shapes if s.x0 == s.x1 == 0]
    assert len({(s.xref, s.yref) for s in zeros}) == 18


def test_unparsed_attacks_are_in_no_histogram() -> None:
    tau = only(made.tau(layers=2), positions="output")
    attack = tau["group"].isin(made.FAMILIES)
    figure = tau_figure(tau.assign(label=tau["label"].where(~attack, "unparsed")), "output")
    assert {t.name for t in figure.data} == {"safe prompts", "unsafe prompts"}


def test_separation_draws_each_model_its_interval_and_chance() -> None:
    table = made.separation(layers=5)
    figure = separation_figure(table, NAMES)
    where = cells(figure)
    for heading, measure, positions in (
        ("d', over the answer", "d_prime", "output"),
        ("d', last prompt token", "d_prime", "last_prompt"),
        ("AUROC, over the answer", "auroc", "output"),
        ("AUROC, last prompt token", "auroc", "last_prompt"),
    ):
        ends = []
        for model in made.MODELS:
            rows = only(table, model=model, positions=positions)
            assert list(lines(figure, where[heading], CALLED[model]).y) == list(rows[measure])
            ends.append((*rows[f"{measure}_high"], *rows[f"{measure}_low"][::-1]))
        assert sorted(tuple(band.y) for band in bands(figure, where[heading])) == sorted(ends)
    chance = lines(figure, where["AUROC, over the answer"], "95 % of permuted labels lie below")
    assert list(chance.y) == [0.6] * 5


def test_values_without_an_interval_have_no_band() -> None:
    table = made.separation(layers=3).assign(d_prime_low=math.nan)
    figure = separation_figure(table, NAMES)
    where = cells(figure)
    assert bands(figure, where["d', over the answer"]) == []
    assert len(bands(figure, where["AUROC, over the answer"])) == 3


def test_rank_of_both_clusters_stands_beside_a_round_cloud() -> None:
    table = made.separation(layers=4)
    figure = rank_figure(table, NAMES)
    where = cells(figure)["unsafe cluster, over the answer"]
    rows = only(table, model="tuned", positions="output")
    assert list(lines(figure, where, CALLED["tuned"]).y) == list(rows["share_unsafe"])
    assert list(lines(figure, where, "round cloud of as many points").y) == [0.06] * 4


def test_attacks_are_of_the_tuned_model_and_all_come_first() -> None:
    table = made.attack_tau(layers=4)
    figure = attack_tau_figure(table, NAMES)
    where = cells(figure)
    assert list(where)[:3] == ["all attacks<br>over the answer", "co_task", "ood"]
    rows = only(table, model="tuned", positions="output", family="ood", outcome="success")
    found = lines(figure, where["ood"], "successful attacks")
    assert list(found.y) == list(rows["tau"])


def test_sensitivity_shows_medians_with_their_intervals() -> None:
    norms, medians = made.norms(), made.sensitivity()
    figure = sensitivity_figure(norms, NAMES, medians=medians)
    assert len([axis for axis in figure.select_xaxes() if axis.type == "log"]) == 4
    marks = [t for t in figure.data if t.mode == "markers"]
    assert sorted(t.x[0] for t in marks) == pytest.approx(sorted(medians["median"]))
    spans = sorted((t.x[0] - t.error_x.arrayminus[0], t.x[0] + t.error_x.array[0]) for t in marks)
    assert np.allclose(spans, sorted(zip(medians["low"], medians["high"], strict=True)))
    # Nothing below nothing is labelled.
    assert min(t for axis in figure.select_yaxes() for t in axis.tickvals) == 0
    assert all(t.error_x.array is None for t in sensitivity_figure(norms, NAMES).data)


def test_every_point_on_the_line_is_drawn_for_both_dw() -> None:
    table = made.interpolation()
    figure = alpha_figure(table, NAMES)
    where = cells(figure)
    assert list(where) == [
        *("unsafe prompts: refused", "safe prompts: refused"),
        *("unsafe prompts: degenerate", "safe prompts: degenerate", "co_task: refused", "ood: refused"),
    ]
    for heading, group, measure in (
        ("unsafe prompts: refused", "unsafe", "refused"),
        ("ood: refused", "ood", "refused"),
        ("safe prompts: degenerate", "safe", "degenerate"),
    ):
        for model in ("tuned", "control"):
            rows = only(table, model=model, group=group)
            found = lines(figure, where[heading], CALLED[model])
            assert (list(found.x), list(found.y)) == (list(made.ALPHAS), list(rows[measure]))
    dashes = {t.name: t.line.dash for t in figure.data if t.showlegend}
    assert dashes[CALLED["tuned"]] == "solid"
    assert dashes[CALLED["control"]] == "dash"


# -- weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [90, 99])
def test_null_space_alignment_is_drawn_less_chance(energy: int) -> None:
    table = made.weight_changes(layers=4)
    figure = null_space_figure(table, energy, NAMES)
    where = cells(figure)
    for kind in made.KINDS:
        for model, name in (("tuned", CALLED["tuned"]), ("random", "random dW")):
            rows = only(table, model=model, kind=kind)
            over = rows[f"alignment_{energy}"] - rows[f"chance_{energy}"]
            assert list(lines(figure, where[kind], name).y) == list(over)
        assert list(lines(figure, where[kind], "chance").y) == [0, 0]


def test_size_and_rank_of_dw_are_drawn_and_a_random_dw_has_a_rank_only() -> None:
    table = made.weight_changes(layers=4)
    figure = size_figure(table, NAMES)
    where = cells(figure)
    rows = only(table, model="control", kind="up")
    assert list(lines(figure, where["up"], CALLED["control"]).y) == list(100 * rows["relative_norm"])
    assert list(lines(figure, where["up 2"], CALLED["control"]).y) == list(rows["effective_rank"])
    assert list(lines(figure, where["up 2"], "random dW").y) == [40.0] * 4
    with pytest.raises(ValueError, match="not enough values"):
        lines(figure, where["up"], "random dW")


def test_spectra_are_medians_over_layers_within_their_extremes() -> None:
    table = made.spectrum(layers=5)
    table["sigma"] *= 1 + 0.1 * table["layer"]
    figure = spectrum_figure(table, NAMES)
    where = cells(figure)["down"]
    over = only(table, model="tuned", kind="down").groupby("index")["sigma"]
    assert list(lines(figure, where, CALLED["tuned"]).y) == pytest.approx(list(over.median()))
    found = [tuple(b.y) for b in bands(figure, where) if b.legendgroup == CALLED["tuned"]]
    assert found == [pytest.approx((*over.max(), *over.min()[::-1]))]
    ratio = lines(figure, cells(figure)["down 2"], CALLED["tuned"])
    assert list(ratio.y) == pytest.approx([2.0] * 16)
    # Nothing read, nothing drawn of it.
    unread = spectrum_figure(table.assign(projection_safe=math.nan, projection_unsafe=math.nan), NAMES)
    assert list(cells(unread)) == list(made.KINDS)


def test_action_ratios_stand_beside_control_random_and_one() -> None:
    table = made.action_ratios(layers=4)
    figure = action_figure(table, NAMES)
    assert len(cells(figure)) == 6
    where = cells(figure)["gate, last prompt token"]
    assert list(lines(figure, where, CALLED["tuned"]).y) == [1.7] * 4
    assert list(lines(figure, where, "random dW").y) == [1.0] * 4
    assert list(lines(figure, where, "safe and unsafe alike").y) == [1, 1]
    assert len(bands(figure, where)) == 3


def bars(figure: go.Figure, column: int) -> dict[str, Any]:
    axis = "x" if column == 1 else f"x{column}"
    return {t.name: t for t in figure.data if t.type == "bar" and t.xaxis == axis}


@pytest.mark.parametrize("which", ["reversal", "ablation"])
def test_every_state_is_a_stack_of_its_outcomes_with_its_interval(which: str) -> None:
    table = {"reversal": made.reversal, "ablation": made.ablation}[which]()
    figure = {"reversal": reversal_figure, "ablation": ablation_figure}[which](table, NAMES)
    for column, group in enumerate(made.GROUPS, start=1):
        rows = only(table, group=group)
        stack = bars(figure, column)
        assert list(stack["refused"].x) == list(rows["refused"])
        assert list(stack["answered coherently"].x) == list(rows["complied"])
        assert np.allclose(sum(np.asarray(part.x) for part in stack.values()), 1)
        marks = [t for t in figure.data if t.type == "scatter" and t.xaxis == stack["refused"].xaxis]
        assert np.allclose(np.asarray(marks[0].x) + marks[0].error_x.array, rows["refused_high"])
        assert np.allclose(np.asarray(marks[0].x) - marks[0].error_x.arrayminus, rows["refused_low"])
    ticks = list(figure.layout.yaxis.ticktext)
    assert len(ticks) == len(set(ticks)) == len(only(table, group="safe"))
    top, bottom = figure.layout.yaxis.range
    assert top > bottom  # the first state stands on top


def test_states_are_named_by_what_they_have() -> None:
    ticks = list(reversal_figure(made.reversal(), NAMES).layout.yaxis.ticktext)
    assert ticks[0] == "base"
    assert {
        "base with dW of MLPs",
        "tuned without dW of MLPs",
        "base with top 4 directions",
        "tuned without top 16",
    } <= set(ticks)


def test_links_show_dw_random_directions_base_and_chance() -> None:
    table = made.links(layers=4)
    figure = direction_figure(table, NAMES)
    where = cells(figure)
    first = where["down: energy along the direction"]
    assert list(lines(figure, first, "dW").y) == [0.09] * 4
    assert list(lines(figure, first, "W of the base").y) == [0.02] * 4
    assert list(lines(figure, first, "dW, random directions (95 %)").y) == [1 / 64] * 4
    assert [tuple(b.y) for b in bands(figure, first)] == [(0.04,) * 4 + (0.005,) * 4]
    cosine = where["o: cosine with first left singular vector"]
    assert list(lines(figure, cosine, "chance").y) == pytest.approx([math.sqrt(2 / (math.pi * 64))] * 4)


def test_weight_sets_stand_beside_the_largest_weights_and_chance() -> None:
    table = made.links(layers=4)
    held = table[table["what"].isin(["snip", "wanda", "magnitude"])]
    figure = sets_figure(held, NAMES)
    where = cells(figure)["up"]
    found: Mapping[str, float] = {"SNIP": 0.12, "Wanda": 0.08, "largest weights": 0.07}
    for name, value in found.items():
        assert list(lines(figure, where, name).y) == [value] * 4
    assert list(lines(figure, where, "as many weights by chance").y) == pytest.approx([0.05] * 4)
    # Where no safety set was scored, the direction is drawn alone.
    alone = table[~table["what"].isin(["snip", "wanda", "magnitude"])]
    assert set(anatomy_figures({"links": alone}, names=NAMES)) == {"anatomy-direction"}
