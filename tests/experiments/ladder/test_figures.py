"""Figures of a ladder: every share is drawn with its interval, the control too, and many systems stay legible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from mechsafety.experiments.ladder.contrasts import ladder_claims, rung_names
from mechsafety.experiments.ladder.figures import ladder_figures, overview_figure
from tests import ladder_tables as made

ALL = {
    f"ladder-{name}"
    for name in (
        *("overview", "survival", "answers", "cost", "ranks", "cosines", "angles", "transfer", "links"),
    )
}
FEW = ("smollm2-135m+refusals", "smollm2-135m+rephrase")
PANELS = len(made.SYSTEMS)


def traces(figure: go.Figure, name: str) -> list[Any]:
    return [t for t in figure.data if t.name == name and t.x is not None and t.x[0] is not None]


def harmful(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return tables["survival"][tables["survival"]["label"] == "harmful"]


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return made.tables()


@pytest.fixture(scope="module")
def figures(tables: dict[str, pd.DataFrame]) -> dict[str, go.Figure]:
    return ladder_figures(tables, layer=15)


@pytest.fixture(scope="module")
def few() -> dict[str, pd.DataFrame]:
    return made.tables(FEW)


def test_all_tables_give_all_figures_and_missing_ones_none(
    figures: dict[str, go.Figure], few: dict[str, pd.DataFrame]
) -> None:
    assert set(figures) == ALL
    bare = {name: few[name] for name in ("survival", "tests", "breaking")}
    first = {"ladder-overview", "ladder-survival", "ladder-answers", "ladder-cost"}
    assert set(ladder_figures(bare, layer=None)) == first
    empty = bare | {name: few[name].iloc[:0] for name in ("ranks", "links", "cosines", "angles", "transfer")}
    assert set(ladder_figures(empty, layer=15)) == first


def test_every_figure_has_a_title_a_caption_and_fits_the_page(figures: dict[str, go.Figure]) -> None:
    for name, figure in figures.items():
        layout = figure.to_dict()["layout"]
        assert 10 < len(layout["title"]["text"]) < 100, name
        assert len(layout["title"]["subtitle"]["text"]) > 10, name
        wide = name == "ladder-angles"  # two maps of eight systems side by side, which the page scrolls
        assert layout["width"] <= (1400 if wide else 1000), name


def test_survival_draws_every_share_with_its_wilson_band(
    figures: dict[str, go.Figure], tables: dict[str, pd.DataFrame]
) -> None:
    figure, rows = figures["ladder-survival"], harmful(tables)
    for kind, name, dash in (
        ("refusal", "refused, refusal directions removed", "solid"),
        ("random", "refused, random directions removed", "dash"),
    ):
        lines = traces(figure, name)
        assert len(lines) == PANELS
        assert {t.line.dash for t in lines} == {dash}
        for system, line in zip(made.SYSTEMS, lines, strict=True):
            wanted = rows[(rows["system"] == system) & rows["kind"].isin(["unedited", kind])]
            assert list(line.y) == list(wanted.sort_values("directions")["refused"])
    bands = [t for t in figure.data if t.fill == "toself"]
    assert len(bands) == 2 * PANELS
    first = rows[(rows["system"] == made.SYSTEMS[0]) & rows["kind"].isin(["unedited", "random"])]
    wanted = [*first["refused_high"], *first["refused_low"][::-1]]
    assert list(bands[0].y) == wanted
    assert {t.line.dash for t in traces(figure, "degenerate, refusal directions removed")} == {"dot"}


def test_answers_add_up_to_all(figures: dict[str, go.Figure]) -> None:
    figure = figures["ladder-answers"]
    stacks = [traces(figure, name) for name in ("refused", "answered coherently", "degenerate")]
    assert all(len(stack) == PANELS for stack in stacks)
    for bars in zip(*stacks, strict=True):
        assert [sum(parts) for parts in zip(*(b.y for b in bars), strict=True)] == pytest.approx([1] * 5)
    assert figure.layout.barmode == "stack"


def test_overview_marks_what_is_shown_and_what_goes_beyond_random(figures: dict[str, go.Figure]) -> None:
    (heat,) = figures["ladder-overview"].data
    cells = dict(zip(made.SHAPES, map(list, heat.text[::-1]), strict=True))
    assert cells["refusals"][:3] == ["100%", "2%↓°", "0%↓°"]
    assert cells["rephrase"][:5] == ["90%", "90%", "90%", "88%", "86%"]
    assert cells[made.BASE][1] == "0%"  # nothing can be told of four refusals
    assert cells["unlearn"][1] == "20%↓"
    assert cells["unlearn"][5:] == ["24%", "14%", "10%", "12%"]


def test_a_rise_is_marked_and_counted() -> None:
    """Case F3: refusals rise from 40 to 96 %."""
    rises = made.Shape(refused=(0.4, 0.96, 0.96, 0.96, 0.96), random=(0.4,) * 4, degenerate=(0.0,) * 5)
    tables = made.tables(["m+x"], {"x": rises})
    figure = ladder_figures(tables, layer=None)["ladder-overview"]
    assert figure.data[0].text[0][1] == "96%↑°"
    assert "1 of 1 systems show a rise" in figure.layout.title.subtitle.text


def test_titles_state_no_result(figures: dict[str, go.Figure]) -> None:
    """Cases L5 and K4, and all titles: what is plotted, whatever was measured."""
    opposite = {
        name: made.Shape(refused=shape.refused[::-1], random=shape.random, degenerate=(0.0,) * 5)
        for name, shape in made.SHAPES.items()
    }
    others = ladder_figures(made.tables(shapes=opposite), layer=15)
    for name, figure in figures.items():
        assert figure.layout.title.text == others[name].layout.title.text


def test_cost_is_drawn_for_every_system_beside_the_random_mean(figures: dict[str, go.Figure]) -> None:
    figure = figures["ladder-cost"]
    named = {t.name for t in figure.data if t.showlegend is not False and t.name}
    assert named == {*made.SHAPES, "random, mean of systems and draws"}
    hues = {t.line.color for t in figure.data if t.name in named and t.showlegend is not False}
    assert len(hues) == len(named)


def test_each_direction_stands_beside_chance(figures: dict[str, go.Figure]) -> None:
    figure = figures["ladder-ranks"]
    marks, chance = (
        traces(figure, "AUROC, 95 % interval"),
        traces(figure, "95 % of permuted labels lie below"),
    )
    assert len(marks) == len(chance) == PANELS
    assert all(len(t.y) == 8 and t.error_y.array is not None for t in marks)


def test_matrices_are_of_all_pairs(figures: dict[str, go.Figure], tables: dict[str, pd.DataFrame]) -> None:
    for name in ("ladder-cosines", "ladder-angles"):
        (heat,) = figures[name].data
        assert len(heat.z) == len(heat.z[0]) == PANELS
        z = [list(row) for row in heat.z[::-1]]
        assert all(z[i][j] == z[j][i] for i in range(PANELS) for j in range(PANELS))
    at = tables["angles"][(tables["angles"]["layer"] == 15) & (tables["angles"]["index"] == 1)]
    assert z[0][1] == at["angle"].iloc[0]
    assert heat.text[::-1][0][1] == "12 to 52°"
    assert figures["ladder-transfer"].data[0].z.__len__() == PANELS + 2


def test_links_are_medians_over_chance(
    figures: dict[str, go.Figure], tables: dict[str, pd.DataFrame]
) -> None:
    (line,) = traces(figures["ladder-links"], "dW")
    rows = tables["links"][tables["links"]["what"] == "energy"]
    wanted = (rows["value"] / rows["chance"]).groupby(rows["system"], sort=False).median()
    assert list(line.y) == pytest.approx(list(wanted))


def test_long_names_and_unknown_numbers(few: dict[str, pd.DataFrame]) -> None:
    names = {
        FEW[0]: "someone/a-checkpoint-with-a-name-that-is-long-to-read-and-longer-a",
        FEW[1]: "someone/a-checkpoint-with-a-name-that-is-long-to-read-and-longer-b",
    }
    columns = ("system", "a", "b", "source", "target")
    renamed = {
        key: table.assign(**{c: table[c].map(names) for c in columns if c in table})
        for key, table in few.items()
    }
    unknown = renamed["survival"].assign(kl=math.nan, perplexity=math.nan)
    unknown.loc[unknown["kind"] == "random", "refused"] = math.nan
    figures = ladder_figures({**renamed, "survival": unknown}, layer=15)
    assert set(figures) == ALL
    for title in figures["ladder-survival"].layout.annotations:
        assert max(len(line) for line in title.text.split("<br>")) <= 32
    cells = (
        overview_figure(
            harmful({"survival": unknown}), rung_names(list(names.values())), ladder_claims(renamed)
        )
        .data[0]
        .text
    )
    cells = [list(row) for row in cells]
    assert cells[0][5:] == [""] * 4
    angles = renamed["angles"].assign(angle=math.nan)
    assert "ladder-angles" in ladder_figures({**renamed, "angles": angles}, layer=15)


def test_one_system_alone() -> None:
    tables = made.tables(FEW[:1])
    alone = {name: tables[name] for name in ("survival", "tests", "ranks", "links")}
    assert set(ladder_figures(alone, layer=None)) == ALL - {
        *("ladder-cosines", "ladder-angles", "ladder-transfer")
    }
