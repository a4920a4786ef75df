"""The page of a regions run: where safety stands in the weights, and what the model does without it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.pages import Block, Page
from mechsafety.region_chapter import model_name, region_tables, sweet_spot
from mechsafety.region_figures import region_figures
from mechsafety.region_findings import main_findings, region_findings
from mechsafety.runs import RunFolder

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BLOCKS = {
    "tradeoff": (
        "What is lost with the weights?",
        "Each removal beside a random one of the same size in every matrix: where both do the same, nothing about "
        "safety was found. Degenerate answers (looped, empty, no language) count as neither refusal nor compliance. "
        "Set difference: the weights that safety needs most, less those that utility needs most. Orthogonal "
        "projection: the same with subspaces of each matrix's output.",
        ("region-tradeoff", "region-grid"),
    ),
    "structure": (
        "Do safety and utility stand in the same weights?",
        "Of every matrix, the weights with the highest scores on refusals and on ordinary answers: how many do both "
        "need? SNIP scores a weight by its value times its gradient, Wanda by its value times its input's size.",
        ("region-jaccard",),
    ),
    "subspaces": (
        "Do they write to the same subspaces?",
        "The leading output directions of every matrix on refusals and on ordinary answers. A small matrix has a "
        "high similarity by chance alone, so the lower map takes chance away.",
        ("region-subspaces",),
    ),
    "attacks": (
        "Do attacks succeed more easily?",
        "Success is a coherent answer that complies. vanilla: greedy, through the chat template; decoding: samples at "
        "temperature 1 without the template; suffix: text after the prompt, searched by gradient. any: one of k "
        "tries; mean: share of all tries.",
        ("region-attacks",),
    ),
    "links": (
        "Is it the refusal direction again?",
        "How much of what the removed weights wrote to the residual stream lay on the refusal direction.",
        ("region-links",),
    ),
    "link_effects": (
        "What does each leave to the other?",
        "The region removed, the direction ablated, and both. AUROC: how well the projection on the direction still "
        "tells harmful from harmless prompts; undefined where it is ablated.",
        ("region-link-effects",),
    ),
    "heads": (
        "Which heads tell harmful from harmless?",
        "A linear probe on the output of each attention head. That a head knows does not mean that refusals need it.",
        ("region-heads",),
    ),
    "freezing": (
        "Does keeping the region keep refusals?",
        "The model is fine-tuned on benign examples. frozen: these weights do not move in training; rewound: all "
        "move, and these get their first values back afterwards. Random weights of the same number are the control.",
        ("region-freezing",),
    ),
}
_HOW = {
    "examples": "Examples of each kind, whose answers are the model's own: {}",
    "response": "Refusals that are scored (full: whole; short: first sentence): {}",
    "method": "Scores of the removals: {}",
    "loss": "Loss of an answer over its tokens: {}",
    "positions": "Calibration positions: {}",
    "group": "Weights are ranked within each: {}",
    "draws": "Calibration draws: {}",
    "controls": "Random controls of each removal: {}",
    "max_new_tokens": "Tokens of an answer that is judged, at most: {}",
    "seed": "Seed: {}",
}


def figures_of(run: RunFolder) -> dict[str, go.Figure]:
    """Every figure of a finished regions run, by file name."""
    return region_figures(region_tables(run), name=model_name(run), sweet_spot=sweet_spot(run))


def page_of(run: RunFolder) -> Page:
    tables, figures = region_tables(run), figures_of(run)
    found = region_findings(tables, name=model_name(run), sweet_spot=sweet_spot(run))
    first = main_findings(found)
    return Page(
        title="Where does safety stand in the weights?",
        subtitle=_subtitle(run.manifest["config"], tables),
        findings=first,
        blocks=[
            Block(
                name=name.replace("_", "-"),
                title=title,
                text=" ".join([text, *(said for said in found[name] if said not in first)]),
                figures=[figure for key, figure in figures.items() if key.startswith(keys)],
                table=tables[name],
            )
            for name, (title, text, keys) in _BLOCKS.items()
            if name in tables and len(tables[name])
        ],
        how=_how(run.manifest["config"]),
    )


def _subtitle(config: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> str:
    said = str(config.get("model", "model"))
    if "tradeoff" in tables:
        states = tables["tradeoff"][["removal", "setting"]].drop_duplicates()
        said += f" · {int((states['removal'] != 'none').sum())} removals beside their random controls"
    return said


def _how(config: Mapping[str, Any]) -> list[str]:
    return [
        "Brackets: 95 % intervals; of several draws, the mean and the span from the lowest to the highest end. Two "
        "states are said to differ where these do not meet. A setting that sentences speak of was chosen on the "
        "prompts that it is judged on, which flatters it.",
        *(text.format(config[key]) for key, text in _HOW.items() if key in config),
    ]
