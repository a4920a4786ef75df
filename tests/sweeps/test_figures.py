"""Figures show what they are given, under its own name; what they cannot show is an error."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.agreement.figures import corrected_rates_figure, effect_forest, error_dots
from mechsafety.experiments.selfjudgement.figures import two_by_two_figure
from mechsafety.experiments.study.figures import (
    judge_agreement,
    layer_sweep,
    layer_sweep_table,
    outcome_bars,
    pca_scatter,
    refusal_heatmap,
    self_judgement,
    study_figures,
)
from mechsafety.experiments.sweep.figures import method_lines, score_heatmap, sweep_figures
from mechsafety.statistics import agreement, paired_tests, refusal_rates
from mechsafety.sweeps.profile_figure import profile_figure
from tests.plots.test_names import verdicts

POSITIONS, LAYERS = (-3, -2, -1), range(4)
AUROC = {(-3, 2): 0.99, (-1, 2): 0.55}  # the same layer at the position selected, and at the last


def scores() -> pd.DataFrame:
    rows = [
        {"position": p, "layer": n, "auroc": AUROC.get((p, n), 0.7), "bypass": -n + p / 10, "induce": n / 10}
        | {"kl": 0.1}
        for p in POSITIONS
        for n in LAYERS
    ]
    return pd.DataFrame(rows).astype({"bypass": float})


def bold(figure: object) -> list[float]:
    """The bypass that is drawn with markers."""
    (line,) = [t for t in figure.data if t.name.startswith("bypass: ") and "markers" in t.mode]  # type: ignore[attr-defined]
    return list(line.y)


def caption(figure: go.Figure) -> str:
    """The subtitle in one line."""
    return figure.layout.title.subtitle.text.replace("<br>", " ")


# -- several positions -------------------------------------------------------------------------------


@pytest.mark.parametrize("position", POSITIONS)
def test_a_sweep_is_drawn_at_the_position_that_was_selected(position: int) -> None:
    table = scores()
    figure = layer_sweep_table(table, name="m", selected=2, position=position)
    assert bold(figure) == list(table[table["position"] == position]["bypass"])
    at = AUROC.get((position, 2), 0.7)
    assert f"layer 2, position {position}, AUROC {at:.2f}" in caption(figure)
    faint = [t for t in figure.data if t.mode == "lines"]
    assert len(faint) == 4 * (len(POSITIONS) - 1)


def test_the_plot_of_a_sweep_takes_its_own_selection() -> None:
    table = scores()
    facts = {"to_frame": lambda: table, "model_name": "m", "base_harmful": 1.0, "base_harmless": -1.0}
    chosen = SimpleNamespace(**facts, selected_layer=2, selected_position=-3)
    assert "position -3, AUROC 0.99" in caption(layer_sweep(chosen))
    with pytest.raises(MechsafetyError, match="position="):
        layer_sweep(SimpleNamespace(**facts, selected_layer=2))
    nothing = layer_sweep(SimpleNamespace(**facts, selected_layer=None))
    assert bold(nothing) == list(table[table["position"] == -1]["bypass"])
    assert "position -1" in caption(nothing)


@pytest.mark.parametrize(
    "given",
    [
        {"selected": 2},
        {"selected": 9, "position": -1},
        {"selected": 2, "position": -7},
        {"selected": None, "position": -7},
    ],
)
def test_a_candidate_that_is_not_in_the_table_is_an_error(given: dict[str, int | None]) -> None:
    with pytest.raises(MechsafetyError):
        layer_sweep_table(scores(), name="m", **given)  # type: ignore[arg-type]


def test_a_table_of_two_methods_or_systems_is_no_single_curve() -> None:
    two = pd.concat([scores().assign(method=m) for m in ("mean_difference", "pca")])
    for draw in (
        lambda: layer_sweep_table(two, name="m", selected=2, position=-1),
        lambda: score_heatmap(two, name="m", selected=None),
        lambda: method_lines(pd.concat([two, two]), name="m"),
    ):
        with pytest.raises(MechsafetyError, match="several rows"):
            draw()
    lines = method_lines(two, name="m", position=-3)
    assert {t.y[2] for t in lines.data if t.yaxis == "y"} == {-2.3}
    assert "position -3" in lines.layout.title.subtitle.text


def test_the_page_of_a_sweep_draws_the_selected_position() -> None:
    table = pd.concat([scores().assign(method=m) for m in ("mean_difference", "pca")], ignore_index=True)
    stability = pd.DataFrame({"position": [-3], "layer": [2], "share": [1.0]})
    lens = pd.DataFrame(
        {"side": ["suppressed", "promoted"], "rank": [1, 1], "token": "a", "logit": [-1.0, 1.0]}
    )
    tables = {"sweep": table, "stability": stability, "profile": profile(2), "lens": lens}
    selected = {
        "model": {"spec": "m"},
        "selection": {"position": -3, "layer": 2},
        "base_refusal_score": {"harmful": 1.0, "harmless": -1.0},
        "method": "pca",
    }
    figures = sweep_figures(tables, selected)
    assert "layer 2, position -3, AUROC 0.99" in caption(figures["layers-pca"])
    assert bold(figures["layers-mean_difference"]) == bold(figures["layers-pca"])


def test_a_study_draws_the_position_that_its_recipe_selected() -> None:
    answers = verdicts(["m"], refused=(9,))
    points = pd.DataFrame({"system": "m", "id": ["a", "b"], "label": ["harmful", "harmless"], "pc1": 1.0})
    tables = {
        "rates": refusal_rates(answers),
        "tests": paired_tests(answers),
        "sweep": scores().assign(system="m"),
        "scatter": points.assign(pc2=1.0, explained1=0.5, explained2=0.2),
    }
    facts = {
        "base_refusal_score": {"harmful": 1.0, "harmless": -1.0},
        "selection": {"layer": 2, "position": -3},
    }
    figures = study_figures(tables, {"m": facts})
    assert "position -3, AUROC 0.99" in caption(figures["layer-sweep-m"])
    assert "token -3" in figures["pca-m"].layout.title.subtitle.text


def profile(selected: int | None) -> pd.DataFrame:
    layers = np.arange(4)
    with_it = np.where(layers == selected, 1.0, 0.3) if selected is not None else np.full(4, np.nan)
    table = pd.DataFrame({"layer": layers, "relative_norm": 0.1, "auroc": [0.5, 0.6, 0.8, 0.9]})
    return table.assign(
        auroc_low=table["auroc"] - 0.1,
        auroc_high=table["auroc"] + 0.1,
        cosine_previous=0.5,
        cosine_selected=with_it,
        **{f"explained_{k}": 0.1 for k in range(1, 6)},
    )


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
def test_the_comparison_of_methods_is_titled_alike_whatever_it_shows(slope: float) -> None:
    """Case W2: bypass falls, is flat or rises."""
    table = scores().assign(method="pca", bypass=lambda rows: slope * rows["layer"])
    assert method_lines(table, name="m").layout.title.text == "m: scores of every method by layer"


def test_a_profile_is_of_the_layer_it_was_made_with() -> None:
    assert profile_figure(profile(2), name="m", selected=2).layout.shapes
    assert not profile_figure(profile(None), name="m", selected=None).layout.shapes
    for layer in (1, 7):
        with pytest.raises(MechsafetyError):
            profile_figure(profile(2), name="m", selected=layer)


def test_points_name_their_token_and_are_of_one_system() -> None:
    points = pd.DataFrame({"id": ["a", "b"], "label": ["harmful", "harmless"], "pc1": 1.0, "pc2": 1.0})
    points = points.assign(explained1=0.5, explained2=0.2)
    assert "the last token" in pca_scatter(points, name="m", layer=1).layout.title.subtitle.text
    for wrong in (points[:0], pd.concat([points.assign(system=s) for s in "ab"])):
        with pytest.raises(MechsafetyError):
            pca_scatter(wrong, name="m", layer=1)


# -- filtered tables ---------------------------------------------------------------------------------


def test_agreement_of_one_arm_is_drawn_under_its_name() -> None:
    table = verdicts(["m"], refused=(5,))
    table = pd.concat([table.assign(judge=j) for j in ("a", "b")], ignore_index=True)
    found = agreement(table, seed=0, resamples=20)
    edited = judge_agreement(found[found["arm"] == "edited"])
    assert "edited responses" in edited.layout.title.subtitle.text
    assert "both arms" in judge_agreement(found).layout.title.subtitle.text
    for wrong in (found[found["arm"] != "all"], found[:0]):
        with pytest.raises(MechsafetyError, match="nothing to draw"):
            judge_agreement(wrong)
    with pytest.raises(MechsafetyError, match="nothing to draw"):
        judge_agreement(found[found["arm"] == "edited"], arm="original")


def test_empty_selections_are_errors_and_not_findings() -> None:
    rates = refusal_rates(verdicts(["m"], refused=(5,)))
    tests = pd.DataFrame({"system": [], "label": [], "judge": [], "p_holm": []})
    cells = pd.DataFrame({name: [] for name in ("system", "arm", "auc", "form", "judge_arm", "response_arm")})
    errors = pd.DataFrame({"label": ["harmful"], "arm": ["edited"], "judge": ["a"]})
    corrected = pd.DataFrame({"label": ["harmless"], "human": [0.5], "system": ["m"], "arm": ["edited"]})
    effects = pd.DataFrame({name: [] for name in ("system", "label", "judge", "mapping")})
    for draw in (
        lambda: outcome_bars(rates, tests, judge="rule"),
        lambda: outcome_bars(rates.assign(rate=np.nan), tests, judge="rules"),
        lambda: refusal_heatmap(rates[:0]),
        lambda: refusal_heatmap(pd.concat([rates, rates])),
        lambda: self_judgement(cells),
        lambda: two_by_two_figure(cells),
        lambda: error_dots(errors),
        lambda: corrected_rates_figure(corrected),
        lambda: effect_forest(effects),
    ):
        with pytest.raises(MechsafetyError):
            draw()


# -- one denominator ---------------------------------------------------------------------------------


def test_bars_and_whiskers_are_of_the_answers_that_were_read() -> None:
    rates = refusal_rates(verdicts(["m"], refused=(6,), unparsed=3))
    figure = outcome_bars(rates, paired_tests(verdicts(["m"], refused=(6,), unparsed=3)), judge="rules")
    bars = {t.name: t for t in figure.data if t.type == "bar" and t.xaxis == "x"}
    (whisker,) = [t for t in figure.data if t.type == "scatter" and t.xaxis == "x"]
    assert list(bars["refusal"].y) == pytest.approx([6 / 10, 6 / 7])
    assert list(whisker.y) == list(bars["refusal"].y)
    wilson = rates[rates["label"] == "harmful"]
    assert whisker.y + whisker.error_y.array == pytest.approx(wilson["high"].to_numpy())
    assert whisker.y - whisker.error_y.arrayminus == pytest.approx(wilson["low"].to_numpy())
    assert [sum(t.y[i] for t in bars.values()) for i in (0, 1)] == pytest.approx([1.0, 1.0])
    assert list(figure.layout.xaxis.ticktext) == ["original", "edited<br>7 of 10 read"]


def test_an_arm_of_which_nothing_was_read_has_no_bar_and_no_whisker() -> None:
    table = verdicts(["m"], refused=(6,), unparsed=10)
    figure = outcome_bars(refusal_rates(table), paired_tests(table), judge="rules")
    bars = [t for t in figure.data if t.type == "bar" and t.xaxis == "x"]
    (whisker,) = [t for t in figure.data if t.type == "scatter" and t.xaxis == "x"]
    assert sum(t.y[1] for t in bars) == 0
    assert np.isnan(whisker.y[1])
    assert figure.layout.xaxis.ticktext[1] == "edited<br>0 of 10 read"


def test_a_star_stands_over_its_own_system_where_another_lacks_an_arm() -> None:
    table = verdicts(["a", "b"], refused=(9, 9))
    table.loc[
        (table["system"] == "b") & (table["arm"] == "edited") & (table["label"] == "harmful"), "verdict"
    ] = "compliance"
    cut = table[(table["system"] != "a") | (table["arm"] == "original")]
    tests = paired_tests(table)
    figure = outcome_bars(refusal_rates(cut), tests, judge="rules")
    marks = [a for a in figure.layout.annotations if a.text == "**" and a.xref == "x"]
    bar = next(trace for trace in figure.data if trace.type == "bar")
    of_b = [x for x, (system, _) in zip(bar.x, bar.customdata, strict=True) if system == "b"]
    assert len(of_b) == 2
    assert [mark.x for mark in marks] == [sum(of_b) / 2]
