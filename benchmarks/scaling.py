"""What the sweep costs by number of layers and of prompts, as a table and a figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.options import MODEL, Options
from benchmarks.sections import Section, table
from benchmarks.subjects import random_llama, random_subject, tuned_subject
from benchmarks.sweeps import OURS, THEIRS, race, spread_layers
from benchmarks.timing import Ratio
from mechsafety.models.loading import load_model
from mechsafety.pages.page import write_figures
from mechsafety.plots.style import COLOURS, styled
from mechsafety.prompts.prompt_set import load_prompts

FIGURE = "sweep-scaling"
_LAYERS, _PROMPTS = (8, 16, 24), (8, 16, 32, 64)
_FEW = 3  # candidates of the reference: each costs the same


@dataclass(frozen=True, kw_only=True)
class Point:
    """Seconds a candidate of both loops at one size."""

    size: int
    ours: float
    theirs: float
    ratio: Ratio


def by_layers(options: Options) -> Iterator[Point]:
    """Random weights of SmolLM2-135M's width; 32 + 32 prompts."""
    for n in _LAYERS[: options.size(len(_LAYERS), 2)]:
        with random_llama(dtype="auto", device="cpu", num_hidden_layers=n) as model:
            subject = random_subject(model, per_label=options.size(32, 4))
            layers = spread_layers(n, 4)
            turns = race(subject, subject.prompts, layers=layers, few=_FEW, rounds=options.rounds)
        yield _point(n, turns.rate(OURS), turns.rate(THEIRS), turns.ratio(OURS, THEIRS))


def by_prompts(options: Options) -> Iterator[Point]:
    """The packaged model; so many prompts of each label."""
    model = load_model(MODEL, device="cpu")
    sizes = _PROMPTS[: options.size(len(_PROMPTS), 2)]
    subject = tuned_subject(model, load_prompts("default"), per_label=max(sizes))
    for n in sizes:
        layers = spread_layers(model.cfg.n_layers, options.size(10, 15))
        turns = race(subject, subject.first(n), layers=layers, few=_FEW, rounds=options.rounds)
        yield _point(n, turns.rate(OURS), turns.rate(THEIRS), turns.ratio(OURS, THEIRS))


def _point(size: int, ours: float, theirs: float, ratio: Ratio) -> Point:
    return Point(size=size, ours=1 / ours, theirs=1 / theirs, ratio=ratio)


def figure(layers: list[Point], prompts: list[Point]) -> go.Figure:
    """Seconds a candidate against size, both loops; one panel for layers, one for prompts."""
    made = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    loops = ((THEIRS, "theirs", COLOURS["harmful"]), (OURS, "ours", COLOURS["line"]))
    for column, points in enumerate((layers, prompts), start=1):
        for name, side, colour in loops:
            made.add_scatter(
                x=[p.size for p in points],
                y=[getattr(p, side) for p in points],
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                line={"color": colour, "width": 2.5},
                marker={"size": 8, "symbol": "circle" if side == "ours" else "square"},
                row=1,
                col=column,
            )
        made.update_xaxes(tickvals=[p.size for p in points], row=1, col=column)
    made.update_xaxes(title_text="layers of the model", row=1, col=1)
    made.update_xaxes(title_text="prompts of each label", row=1, col=2)
    made.update_yaxes(rangemode="tozero", title_standoff=8)
    made.update_yaxes(title_text="seconds a candidate", row=1, col=1)
    styled(
        made,
        "What a candidate of the sweep costs",
        "Left: random weights as wide as SmolLM2-135M. Right: smollm2-135m+refusals, 30 layers.",
        width=860,
        height=430,
    )
    made.update_xaxes(title_font_size=13).update_yaxes(title_font_size=13)
    return made.update_layout(legend={"y": -0.2}, margin={"t": 90})


def section(options: Options) -> Section:
    """Both series, and the figure."""
    layers, prompts = list(by_layers(options)), list(by_prompts(options))
    folder = Path("runs/benchmarks" if options.quick else "figures")
    write_figures({FIGURE: figure(layers, prompts)}, folder, form="png")
    head = [f"{OURS}, seconds a candidate", THEIRS, "ratio"]

    def rows(points: list[Point]) -> list[list[str]]:
        return [[str(p.size), f"{p.ours:.3f}", f"{p.theirs:.3f}", str(p.ratio)] for p in points]

    return Section(
        name="scaling",
        title="Scaling of the sweep",
        quick=options.quick,
        body="\n\n".join(
            [
                "Candidates of evenly spread layers at every post-instruction position, end to end, in turns as "
                f"above; of the reference {_FEW} candidates, because each costs the same.",
                f"![Seconds a candidate by layers and by prompts](../figures/{FIGURE}.png)",
                table(["layers", *head], rows(layers)),
                table(["prompts of each label", *head], rows(prompts)),
            ]
        ),
    )
