"""The page of a comparison: which checkpoints share a refusal, by four measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechsafety.experiments.comparison.comparison import Comparison, at_layer, read_comparison
from mechsafety.experiments.comparison.figures import comparison_figures
from mechsafety.pages.page import Block, Page
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BLOCKS = {
    "cosines": (
        "Do the directions agree?",
        "Cosine of the mean differences, with what the same checkpoint reaches against itself (ceiling) and what "
        "directions reach that have nothing to do with refusal (floors). A cosine at the harmless floor says no more "
        "than that the streams agree.",
        ("cosines-by-layer", "cosine-matrix"),
    ),
    "angles": (
        "Do the subspaces agree?",
        "Principal angles, smallest first: small is alike. Dotted: the same checkpoint against itself.",
        ("angles-by-layer",),
    ),
    "cka": (
        "Do the streams agree?",
        "Debiased linear CKA on the same prompts; it needs no shared basis, and is about the whole stream.",
        ("cka-by-layer",),
    ),
    "transfer": (
        "Does the direction carry over?",
        "Drop of the refusal score of held-out harmful prompts when the row's direction is projected out of the "
        "column's checkpoint. The checkpoint's own direction is the ceiling, random ones the floor.",
        ("transfer-matrix",),
    ),
}


def figures_of(run: RunFolder) -> dict[str, go.Figure]:
    """Every figure of a finished comparison, by file name."""
    found = read_comparison(run.path)
    return comparison_figures(found.tables, layer=found.layer)


def page_of(run: RunFolder) -> Page:
    found = read_comparison(run.path)
    figures = comparison_figures(found.tables, layer=found.layer)
    blocks = [
        Block(
            name=name,
            title=title,
            text=text,
            figures=[figures[key] for key in keys if key in figures],
            table=found.tables[name],
        )
        for name, (title, text, keys) in _BLOCKS.items()
        if name in found.tables
    ]
    return Page(
        title="Is it the same refusal?",
        subtitle=f"{' · '.join(found.names)} · matrices at layer {found.layer}",
        findings=[*found.notes, *_findings(found)],
        blocks=blocks,
        how=[basis.reason for basis in found.bases],
    )


def _findings(found: Comparison) -> list[str]:
    """One sentence a pair and measure, with numbers at the shown layer."""
    sentences: list[str] = []
    if found.cosines is not None:
        sentences += [
            f"{row['a']} and {row['b']}, layer {found.layer}: cosine {row['cosine']:.2f} "
            f"{_interval(row['low'], row['high'])}; directions between halves of the harmless prompts reach "
            f"{row['harmless_floor']:.2f}."
            for row in at_layer("cosines", found.cosines, found.layer).to_dict(orient="records")
        ]
    if found.transfer is not None:
        sentences += [
            f"Ablating {row['target']} along {row['source']}'s direction lowers its refusal score by "
            f"{row['drop']:.2f} {_interval(row['low'], row['high'])} from {row['base']:.2f}."
            for row in found.transfer.to_dict(orient="records")
            if row["source"] in found.names and row["source"] != row["target"]
        ]
    return sentences


def _interval(low: float, high: float) -> str:
    return "(no interval)" if low != low else f"[{low:.2f}, {high:.2f}]"
