"""Boxes of the texts of figures, as a browser draws them: which are outside the picture, and which over another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from mechsafety.pages.page import plotly_script

SLACK = 2.0
"""Pixels by which a text may reach beyond the picture, or two into each other: a font's boxes are higher than letters."""
WAIT = 240_000
"""Milliseconds that a machine may take for all figures, however busy it is."""
_DRAW = """
Promise.all([FIGURES].map((figure, place) => Plotly.newPlot(`figure-${place}`, figure.data, figure.layout)))
  .then(() => { window.drawn = true; });
"""
_READ = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => {
  const frame = plot.querySelector('svg.main-svg').getBoundingClientRect();
  const seen = [...plot.querySelectorAll('svg text')].filter(node => {
    const style = getComputedStyle(node), box = node.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && style.visibility !== 'hidden' && style.display !== 'none'
      && +style.opacity > 0 && !node.closest('.modebar, .hoverlayer') && node.textContent.trim();
  });
  // Of a text that is turned the browser gives the upright box around it; its corners are those of its own box.
  return {id: plot.id, width: frame.width, height: frame.height, texts: seen.map(node => {
    const own = node.getBBox(), to = node.getScreenCTM();
    const corner = (x, y) => { const p = new DOMPoint(x, y).matrixTransform(to); return [p.x - frame.x, p.y - frame.y]; };
    return {text: node.textContent, corners: [corner(own.x, own.y), corner(own.x + own.width, own.y),
      corner(own.x + own.width, own.y + own.height), corner(own.x, own.y + own.height)]};
  })};
})"""


@dataclass(frozen=True)
class Fault:
    """A text that reaches outside its picture, or over another."""

    figure: str
    text: str
    over: str = ""

    def __str__(self) -> str:
        return f"{self.figure}: {self.text!r} " + (
            f"over {self.over!r}" if self.over else "outside the picture"
        )


def faults(browser: Any, figures: Mapping[str, go.Figure], page: Path) -> list[Fault]:
    """Draw all figures on one page, read the boxes of their texts once, and report what is wrong."""
    drawn = ",".join(figure.to_json() for figure in figures.values()).replace("</", "<\\/")
    places = "".join(f"<div id='figure-{number}'></div>" for number in range(len(figures)))
    script = _DRAW.replace("FIGURES", drawn)
    page.write_text(
        f"<html><meta charset='utf-8'><body>{places}<script>{plotly_script()}</script><script>{script}</script></body>",
        encoding="utf-8",
    )
    tab = browser.new_page(viewport={"width": 1300, "height": 900})
    tab.set_default_timeout(WAIT)
    tab.goto(page.as_uri())
    tab.wait_for_function("window.drawn")
    read = tab.evaluate(_READ)
    tab.close()
    names = list(figures)
    assert [one["id"] for one in read] == [f"figure-{number}" for number in range(len(names))]
    return [fault for name, one in zip(names, read, strict=True) for fault in _of_one(name, one)]


def _of_one(name: str, read: Mapping[str, Any]) -> list[Fault]:
    found = []
    texts = [(one["text"], one["corners"]) for one in read["texts"]]
    for text, corners in texts:
        if any(
            not (-SLACK <= x <= read["width"] + SLACK and -SLACK <= y <= read["height"] + SLACK)
            for x, y in corners
        ):
            found.append(Fault(name, text))
    for place, (text, corners) in enumerate(texts):
        found += [Fault(name, text, other) for other, theirs in texts[:place] if _overlap(corners, theirs)]
    return found


def _overlap(first: list[list[float]], second: list[list[float]]) -> bool:
    """Whether two boxes, turned or not, share more than the slack: no line parts them (separating axes)."""
    for box in (first, second):
        for (x0, y0), (x1, y1) in itertools.pairwise(box[:3]):
            length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 or 1.0
            along = ((x1 - x0) / length, (y1 - y0) / length)
            ends = [sorted(x * along[0] + y * along[1] for x, y in corners) for corners in (first, second)]
            if min(ends[0][-1], ends[1][-1]) - max(ends[0][0], ends[1][0]) <= SLACK:
                return False
    return True
