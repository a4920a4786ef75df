"""The page of a regions run, and its chapter in a study's report.

A study's folder holds its regions runs in ``regions/NAME/``; each that is finished has its findings and main figures in
the study's report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.experiments.base import Result
from mechsafety.experiments.regions.experiment import Regions, model_of, recorded_sweet_spot, shown_name
from mechsafety.experiments.regions.figures import region_figures
from mechsafety.experiments.regions.findings import main_findings, region_findings
from mechsafety.pages.page import Block, Page
from mechsafety.plots.style import system_names
from mechsafety.runs.folder import MANIFEST, RunFolder, read_run

if TYPE_CHECKING:
    import plotly.graph_objects as go

FOLDER = "regions"
_MAIN = ("region-tradeoff", "region-jaccard")
_BLOCKS = {
    "tradeoff": (
        "Refusals and utility after removal",
        "Each removal beside a random one of the same size in every matrix: where both do the same, nothing about "
        "safety was found. Degenerate answers (looped, empty, no language) count as neither refusal nor compliance. "
        "Set difference: the weights that safety needs most, less those that utility needs most. Orthogonal "
        "projection: the same with subspaces of each matrix's output.",
        ("region-tradeoff", "region-grid"),
    ),
    "structure": (
        "Overlap of safety and utility weights",
        "Of every matrix, the weights with the highest scores on refusals and on ordinary answers: how many are in "
        "both sets. SNIP scores a weight by its value times its gradient, Wanda by its value times its input's size.",
        ("region-jaccard",),
    ),
    "subspaces": (
        "Similarity of output subspaces",
        "The leading output directions of every matrix on refusals and on ordinary answers. A small matrix has a "
        "high similarity by chance alone, so the lower map takes chance away.",
        ("region-subspaces",),
    ),
    "attacks": (
        "Attack success after removal",
        "Success is a coherent answer that complies. vanilla: greedy, through the chat template; decoding: samples at "
        "temperature 1 without the template; suffix: text after the prompt, searched by gradient. any: one of k "
        "tries; mean: share of all tries.",
        ("region-attacks",),
    ),
    "links": (
        "Writes of the removed weights on the refusal direction",
        "The share of what the removed weights wrote to the residual stream that lay on the refusal direction.",
        ("region-links",),
    ),
    "link_effects": (
        "Removal and ablation, alone and together",
        "The region removed, the direction ablated, and both. AUROC: how well the projection on the direction still "
        "separates harmful from harmless prompts; undefined where it is ablated.",
        ("region-link-effects",),
    ),
    "heads": (
        "Probes of attention heads",
        "A linear probe on the output of each attention head. A head that "
        "separates the prompts is not necessarily one that refusals need.",
        ("region-heads",),
    ),
    "freezing": (
        "Refusals after fine-tuning with frozen weights",
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


def page(result: Result, figures: Mapping[str, go.Figure]) -> Page:
    tables = result.tables
    found = region_findings(tables, name=shown_name(result.run), sweet_spot=recorded_sweet_spot(result.run))
    first = main_findings(found)
    return Page(
        title="Safety-critical weights",
        subtitle=_subtitle(result.config, tables),
        findings=first,
        blocks=[
            Block(
                name=name.replace("_", "-"),
                title=title,
                text=" ".join([text, *(sentence for sentence in found[name] if sentence not in first)]),
                figures=[figure for key, figure in figures.items() if key.startswith(keys)],
                table=tables[name],
            )
            for name, (title, text, keys) in _BLOCKS.items()
            if name in tables and len(tables[name])
        ],
        how=_how(result.config),
    )


def _subtitle(config: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> str:
    subtitle = str(config.get("model", "model"))
    if "tradeoff" in tables:
        states = tables["tradeoff"][["removal", "setting"]].drop_duplicates()
        subtitle += f" · {int((states['removal'] != 'none').sum())} removals beside their random controls"
    return subtitle


def _how(config: Mapping[str, Any]) -> list[str]:
    return [
        "Brackets: 95 % intervals; of several draws, the mean and the span from the lowest to the highest end. Two "
        "states count as different where these do not meet. A setting named in sentences was chosen on the "
        "prompts that it is judged on, which flatters it.",
        *(text.format(config[key]) for key, text in _HOW.items() if key in config),
    ]


@dataclass(frozen=True, kw_only=True)
class RegionChapter:
    """One regions run in a study's report: its folder's name, its model, its findings, and its main figures."""

    name: str
    model: str
    findings: Sequence[str]
    block: Block


def region_chapters(study: RunFolder) -> list[RegionChapter]:
    """A chapter for each finished regions run in the study's folder, by name; empty where there is none."""
    folder = study.path / FOLDER
    if not folder.is_dir():
        return []
    runs = [read_run(path) for path in sorted(folder.iterdir()) if (path / MANIFEST).is_file()]
    runs = [run for run in runs if run.manifest["config"].get("kind") == "regions"]
    names = system_names([*study.manifest["config"].get("systems", []), *map(model_of, runs)])
    chapters = [_chapter(run, names[model_of(run)]) for run in runs]
    return [chapter for chapter in chapters if chapter is not None]


def _chapter(run: RunFolder, name: str) -> RegionChapter | None:
    # A run writes its tables when all are done.
    tables = Regions.read_tables(run)
    if not tables:
        return None
    spot = recorded_sweet_spot(run)
    main = {key: tables[key] for key in ("tradeoff", "structure") if key in tables}
    figures = region_figures(main, name=name, sweet_spot=spot)
    return RegionChapter(
        name=run.path.name,
        model=name,
        findings=main_findings(region_findings(tables, name=name, sweet_spot=spot)),
        block=Block(
            name=f"regions-{run.path.name}",
            title="",
            text="Weights are set to zero (or ranks projected out) by how much safety and utility need them. A random "
            "removal of the same size in every matrix is the control: an effect that it shares "
            "is no evidence of a safety region."
            if "tradeoff" in tables
            else "Overlap of the weights that safety and utility need most, in every matrix.",
            figures=[figure for key, figure in figures.items() if key.startswith(_MAIN)],
            table=tables.get("tradeoff"),
        ),
    )
