"""The options of every figure: title, width, height and colours, on each function and each method that draws."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import mechsafety as ms
from mechsafety import plots
from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.projections import CosineMatrix, Projections
from mechsafety.experiments.result import Result
from mechsafety.generation.token_projections import TokenProjections
from mechsafety.plots.look import Look, looking
from mechsafety.plots.recolour import legend_names
from mechsafety.statistics import refusal_rates
from mechsafety.sweeps.layer_profile import LayerProfile
from mechsafety.sweeps.sweep import Sweep
from tests.plots.awkward import CASES, drawings
from tests.plots.test_names import verdicts

PUBLIC = {name: draw for name, draw in drawings(CASES["plain"]).items() if name in plots.__all__}
DRAWING = (Result, ms.Directions, Projections, CosineMatrix, TokenProjections, Sweep, LayerProfile)
RATES = refusal_rates(verdicts(["org/a", "org/b"], refused=(9, 3)))


@pytest.mark.parametrize("name", plots.__all__)
def test_every_figure_takes_the_options(name: str) -> None:
    known = inspect.signature(getattr(plots, name)).parameters
    assert all(known[option].kind is inspect.Parameter.KEYWORD_ONLY for option in Look.__annotations__)
    with looking(title="Own title", width=640, height=777, colours=("#123456", "#654321")):
        layout = (figure := PUBLIC[name]()).layout
    assert (layout.title.text, layout.width, layout.height) == ("Own title", 640, 777)
    assert "#123456" in figure.to_json()
    plain = PUBLIC[name]()
    assert plain.layout.title.text != "Own title"
    assert "#123456" not in plain.to_json()


@pytest.mark.parametrize("kind", DRAWING)
def test_so_does_every_method_that_draws(kind: Any) -> None:
    assert set(Look.__annotations__) <= set(inspect.signature(kind.plot).parameters)


def test_colours_follow_the_legend_and_its_names() -> None:
    plain = plots.outcome_bars(RATES)
    assert legend_names(plain) == ["refusal", "compliance", "degenerate"]

    def of(figure: Any) -> dict[str, str]:
        return {bar.name: bar.marker.color for bar in figure.data if bar.type == "bar"}

    first = of(plots.outcome_bars(RATES, colours=["teal", "#ABCDEF"]))
    assert first == of(plain) | {"refusal": "teal", "compliance": "#ABCDEF"}
    assert of(plots.outcome_bars(RATES, colours="teal")) == of(plain) | {"refusal": "teal"}
    named = of(plots.outcome_bars(RATES, colours={"degenerate": "rgb(1, 2, 3)"}))
    assert named == of(plain) | {"degenerate": "rgb(1, 2, 3)"}


def test_bands_and_whiskers_take_the_colour_of_their_series() -> None:
    with looking(colours={"cosine, 95 % interval": "purple"}):
        figure = PUBLIC["cosines_by_layer"]()
    (fill,) = {trace.fillcolor for trace in figure.data if trace.fill}
    assert fill == "purple"
    assert all(0 < trace.opacity < 0.5 for trace in figure.data if trace.fill)
    with looking(colours=["purple"]):
        dots = PUBLIC["error_dots"]()
    assert {trace.error_x.color for trace in dots.data if trace.name == "original"} == {"purple"}


def test_a_map_of_numbers_takes_a_scale() -> None:
    scale = (
        plots.heat_map([[0.0, 1.0]], x=[0, 1], y=["a"], title="Two", colours=["white", "navy"])
        .data[0]
        .colorscale
    )
    assert [list(step) for step in scale] == [[0.0, "white"], [1.0, "navy"]]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("title", "  ", "title is ' ' \\(str\\): a text is needed"),
        ("title", 3, "title is 3 \\(int\\): a text is needed"),
        ("width", -5, "width is -5: 200 to 20000 pixels"),
        ("height", 100_000, "height is 100000: 200 to 20000 pixels"),
        ("width", "wide", "width is 'wide' \\(str\\): a whole number"),
        ("colours", "reddish", "'reddish' \\(str\\) is no colour"),
        ("colours", ["#0072B2", 7], "7 \\(int\\) is no colour"),
        ("colours", [], "colours is .*: a colour, a list of them, or a mapping"),
        ("colours", {"refused": "red"}, "the legend has no 'refused'; did you mean 'refusal'\\?"),
        ("colour", "red", "no argument 'colour'; did you mean colours\\?"),
    ],
)
def test_an_option_that_cannot_be_is_one_error(option: str, value: Any, message: str) -> None:
    with pytest.raises(MechsafetyError, match=message):
        plots.outcome_bars(RATES, **{option: value})


@pytest.mark.parametrize("colours", ["red", {"refused": "red"}])
def test_a_scale_needs_two_colours(colours: Any) -> None:
    with pytest.raises(MechsafetyError, match="give two or more, from low to high"):
        plots.refusal_heatmap(RATES, colours=colours)


def test_options_end_with_the_figure() -> None:
    with pytest.raises(MechsafetyError):
        plots.outcome_bars(RATES, width=500, judge="nobody")
    assert plots.outcome_bars(RATES).layout.width == 760


def test_figures_of_a_run_take_the_colours_that_fit_them() -> None:
    import plotly.graph_objects as go

    from mechsafety.plots.look import looking_at_all
    from mechsafety.plots.style import styled

    def lines() -> go.Figure:
        figure = go.Figure()
        for name, colour in (("one", "#111111"), ("two", "#222222")):
            figure.add_scatter(x=[0, 1], y=[0, 1], name=name, line={"color": colour})
        return styled(figure, "Lines of two", "two lines", width=600, height=400)

    def numbers() -> go.Figure:
        return styled(go.Figure(go.Heatmap(z=[[1.0, 2.0]])), "A map of two", "two", width=600, height=400)

    with looking_at_all(colours={"two": "teal"}):
        drawn_lines, drawn_map = lines(), numbers()
    assert [trace.line.color for trace in drawn_lines.data] == ["#111111", "teal"]
    assert drawn_map.data[0].colorscale == numbers().data[0].colorscale
    with (
        pytest.raises(MechsafetyError, match="no figure has 'three'"),
        looking_at_all(colours={"three": "teal"}),
    ):
        lines()
