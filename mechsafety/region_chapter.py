"""The chapter on safety-critical regions in a study's report, and the tables of a regions run that it reads.

A study's folder holds its regions runs in ``regions/NAME/``; each that is finished has its findings and main figures
in the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechsafety.pages import Block
from mechsafety.plot_style import short_name, system_names
from mechsafety.region_figures import region_figures
from mechsafety.region_findings import main_findings, region_findings
from mechsafety.runs import MANIFEST, RunFolder, read_run

FOLDER = "regions"
TABLES = ("tradeoff", "structure", "subspaces", "attacks", "links", "link_effects", "heads", "freezing")
_TEXT = (
    "setting",
    "removal",
    "control",
    "system",
    "state",
    "mode",
    "frozen",
    "kind",
    "method",
    "attack",
    "measure",
)
_MAIN = ("region-tradeoff", "region-jaccard")


@dataclass(frozen=True, kw_only=True)
class RegionChapter:
    """One regions run in a study's report: its folder's name, its model, its findings, and its main figures."""

    name: str
    model: str
    findings: Sequence[str]
    block: Block


def region_tables(run: RunFolder) -> dict[str, pd.DataFrame]:
    """The tables that the run has, by name; a text that is empty stays a text."""
    found = {name: run.read_table(f"{name}.csv") for name in TABLES if (run.path / f"{name}.csv").is_file()}
    return {
        name: table.assign(**{c: table[c].fillna("").astype(str) for c in _TEXT if c in table})
        for name, table in found.items()
    }


def sweet_spot(run: RunFolder) -> dict[str, Any] | None:
    """The manifest's section on the sweet spot, where the sweep was run."""
    return run.manifest.get("sweet_spot") or None


def model_name(run: RunFolder) -> str:
    return short_name(_model(run))


def _model(run: RunFolder) -> str:
    return str(run.manifest["config"].get("model", "model"))


def region_chapters(study: RunFolder) -> list[RegionChapter]:
    """A chapter for each finished regions run in the study's folder, by name; empty where there is none."""
    folder = study.path / FOLDER
    if not folder.is_dir():
        return []
    runs = [read_run(path) for path in sorted(folder.iterdir()) if (path / MANIFEST).is_file()]
    runs = [run for run in runs if run.manifest["config"].get("kind") == "regions"]
    names = system_names([*study.manifest["config"].get("systems", []), *map(_model, runs)])
    chapters = [_chapter(run, names[_model(run)]) for run in runs]
    return [chapter for chapter in chapters if chapter is not None]


def _chapter(run: RunFolder, name: str) -> RegionChapter | None:
    # A run writes its tables when all are done.
    tables = region_tables(run)
    if not tables:
        return None
    spot = sweet_spot(run)
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
            "removal of the same size in every matrix is the control: what it does too is no sign of a safety region."
            if "tradeoff" in tables
            else "Overlap of the weights that safety and utility need most, in every matrix.",
            figures=[figure for key, figure in figures.items() if key.startswith(_MAIN)],
            table=tables.get("tradeoff"),
        ),
    )
