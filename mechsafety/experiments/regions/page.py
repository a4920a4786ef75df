"""The page of a regions run, and its chapter in a study's report.

A study's folder holds its regions runs in ``regions/NAME/``; each that is finished has its findings and main figures in
the study's report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.claims.shared import RunTables
from mechsafety.claims.tables import claim_table
from mechsafety.core.places import packaged_words
from mechsafety.experiments.regions.contrasts import (
    REMOVAL_NAMES,
    freezing_claims,
    link_claims,
    removal_claims,
)
from mechsafety.experiments.regions.experiment import Regions, model_of, recorded_sweet_spot, shown_name
from mechsafety.experiments.regions.figures import region_figures
from mechsafety.experiments.regions.findings import main_findings, region_findings
from mechsafety.experiments.result import Result
from mechsafety.pages.page import Block, Page, page_blocks, setting_lines
from mechsafety.plots.style import system_names
from mechsafety.runs.folder import MANIFEST, RunFolder, read_run

if TYPE_CHECKING:
    import plotly.graph_objects as go

FOLDER = "regions"
_MAIN = ("region-tradeoff", "region-jaccard")
_WORDS = packaged_words("mechsafety.experiments.regions", "page.toml")


def page(result: Result, figures: Mapping[str, go.Figure]) -> Page:
    tables = result.tables
    found = region_findings(tables, name=shown_name(result.run), sweet_spot=recorded_sweet_spot(result.run))
    first = main_findings(found)
    return Page(
        title="Safety-critical weights",
        subtitle=_subtitle(result.config, tables),
        findings=first,
        subjects=list(REMOVAL_NAMES.values()),
        others="The model and its weights",
        blocks=[
            *page_blocks(
                _WORDS["blocks"],
                tables,
                figures,
                added={name: [said for said in told if said not in first] for name, told in found.items()},
            ),
            *_claim_blocks(tables),
        ],
        how=_how(result.config),
    )


def _claim_blocks(tables: Mapping[str, pd.DataFrame]) -> list[Block]:
    """Every claim about refusals beside its control, a row each."""
    claims = [
        claim
        for label in ("harmful", "harmless")
        for several in removal_claims(tables, label).values()
        for claim in several
    ]
    claims += [claim for several in (*link_claims(tables), *freezing_claims(tables)) for claim in several]
    return [Block(name="claims", title="Claims and controls", table=claim_table(claims))] if claims else []


def _subtitle(config: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> str:
    subtitle = str(config.get("model", "model"))
    if "tradeoff" in tables:
        states = tables["tradeoff"][["removal", "setting"]].drop_duplicates()
        subtitle += f" · {int((states['removal'] != 'none').sum())} removals beside their random controls"
    return subtitle


def _how(config: Mapping[str, Any]) -> list[str]:
    return [
        "Brackets: 95 % intervals, not corrected. Of several calibration draws the one with the largest p is told, "
        "and a change goes beyond random removals where each draw differs from each of them. A setting named in "
        "sentences was chosen on the prompts that it is judged on, which flatters it.",
        *setting_lines(_WORDS["how"], config),
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
    tables = RunTables(Regions.read_tables(run))
    if not tables:
        return None
    spot = recorded_sweet_spot(run)
    main = tables.without(tables.keys() - {"tradeoff", "structure", "verdicts"})
    figures = region_figures(main, name=name, sweet_spot=spot)
    return RegionChapter(
        name=run.path.name,
        model=name,
        findings=main_findings(region_findings(tables, name=name, sweet_spot=spot)),
        block=Block(
            name=f"regions-{run.path.name}",
            title="",
            text="Weights are set to zero (or ranks projected out) by how much safety and utility need them. A random "
            "removal of as many weights of every matrix, and one of as many and as large weights, are the controls: an "
            "effect that they share is no evidence of a safety region."
            if "tradeoff" in tables
            else "Overlap of the weights that safety and utility need most, in every matrix.",
            figures=[figure for key, figure in figures.items() if key.startswith(_MAIN)],
            table=tables.get("tradeoff"),
        ),
    )
