"""Every figure in a real browser: no text outside the picture, none over another, by data that are awkward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from mechsafety.pages.page import find_chromium
from mechsafety.plots.style import styled
from tests.plots.awkward import CASES, drawn
from tests.plots.boxes import faults

pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.allow_hosts(["127.0.0.1", "localhost"]),
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine; .ci/run installs one"),
]
SIZES = (700, 1200, None)
"""Pixels of a figure's width; None: its own."""


def test_texts_of_every_public_figure_stand_apart(browser: Any, tmp_path: Path) -> None:
    figures = drawn(CASES["long names"], runs=False, width=700)
    found = [str(fault) for fault in faults(browser, figures, tmp_path / "page.html")]
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_texts_of_every_figure_stand_apart(
    browser: Any, tmp_path: Path, case: str, width: int | None
) -> None:
    found = [str(fault) for fault in faults(browser, drawn(CASES[case], width=width), tmp_path / "page.html")]
    assert found == []


def test_texts_that_do_not_are_found(browser: Any, tmp_path: Path) -> None:
    """The control: two notes in one place, one at the edge, one turned over another; and two that only come near."""

    def noted(*notes: dict[str, Any]) -> go.Figure:
        figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], showlegend=False))
        for note in notes:
            figure.add_annotation(showarrow=False, xref="paper", yref="paper", **note)
        return styled(figure, "Two points", "", width=500, height=400)

    figures = {
        "over": noted(
            {"text": "first note", "x": 0.5, "y": 0.5}, {"text": "second note", "x": 0.52, "y": 0.51}
        ),
        "outside": noted({"text": "a note at the edge", "x": 1.1, "y": 0.5}),
        "turned": noted(
            {"text": "a long note that is turned", "x": 0.5, "y": 0.5, "textangle": -60},
            {"text": "beneath", "x": 0.5, "y": 0.5},
        ),
        # Upright boxes around the two overlap; the texts do not.
        "near": noted(
            {"text": "a long note that is turned", "x": 0.4, "y": 0.5, "textangle": -60},
            {"text": "another that is turned too", "x": 0.5, "y": 0.5, "textangle": -60},
        ),
    }
    found = faults(browser, figures, tmp_path / "page.html")
    assert {fault.figure for fault in found} == {"over", "outside", "turned"}
    assert {fault.text for fault in found if fault.figure == "outside"} == {"a note at the edge"}
