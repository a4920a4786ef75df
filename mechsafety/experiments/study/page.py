"""One self-contained HTML page of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.experiments.agreement.chapter import chapter_blocks, chapter_figures, load_chapter
from mechsafety.experiments.regions.page import RegionChapter, region_chapters
from mechsafety.experiments.study import figures as draw
from mechsafety.experiments.study.results import failed_systems, failure_lines, measured_systems
from mechsafety.pages.page import fed_parts, plotly_script, rendered_blocks, rounded, template
from mechsafety.plots.style import system_names
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHOWN_RESPONSES = 100
_SHOWN_CHARACTERS = 700
_FIGURE_TITLES = {
    "outcomes": "What the systems answer, before and after",
    "refusal-heatmap": "Who judges decides",
    "layer-sweep": "Where the direction lives",
    "pca": "Harmful and harmless prompts at the selected layer",
    "judge-agreement": "Do the judges agree?",
    "self-judgement": "Does the model see its own refusals?",
}


def load_tables(run: RunFolder) -> dict[str, pd.DataFrame]:
    """The finished run's tables by name."""
    tables = {
        "rates": run.read_table("rates.csv"),
        "tests": run.read_table("tests.csv"),
        "agreement": run.read_table("agreement.csv"),
        "sweep": run.read_table("sweep.parquet"),
        "scatter": run.read_table("scatter.parquet"),
    }
    if (run.path / "selfjudge.csv").is_file():
        tables["selfjudge"] = run.read_table("selfjudge.csv")
    return tables


def study_run_figures(run: RunFolder) -> dict[str, go.Figure]:
    """Every figure of a finished study, by file name."""
    return draw.study_figures(load_tables(run), measured_systems(run.manifest)) | chapter_figures(run)


def write_report(run: RunFolder) -> Path:
    """Write ``report.html``: one file, no network, every response escaped."""
    tables = load_tables(run)
    manifest = run.manifest
    names = system_names(measured_systems(manifest))
    of_all = system_names(manifest["systems"])
    page = template("report.html").render(
        config=manifest["config"],
        systems=measured_systems(manifest),
        failures=failure_lines({of_all[s]: why for s, why in failed_systems(manifest).items()}),
        sessions=manifest.get("sessions", []),
        repeated=manifest.get("repeated_prompts", 0),
        versions=manifest["versions"],
        timings=manifest.get("timings", {}),
        primary=manifest["config"]["judges"][0],
        rates=_rate_rows(tables["rates"]),
        findings=_findings(tables, manifest),
        figures=_figure_blocks(tables, measured_systems(manifest)),
        chapter=rendered_blocks(chapter_blocks(load_chapter(run))),
        regions=[_region_chapter(chapter) for chapter in region_chapters(run)],
        exchanges=_exchanges(run, manifest),
        selfjudge=rounded(tables["selfjudge"]) if "selfjudge" in tables else None,
        fed=fed_parts(manifest["systems"]),
        script=plotly_script(),
        names=names,
    )
    return run.write_text("report.html", page)


def _region_chapter(chapter: RegionChapter) -> dict[str, Any]:
    return {
        "name": chapter.name,
        "model": chapter.model,
        "findings": chapter.findings,
        "block": rendered_blocks([chapter.block])[0],
    }


def _rate_rows(rates: pd.DataFrame) -> list[dict[str, Any]]:
    return rates.to_dict(orient="records")


def _figure_blocks(tables: Mapping[str, pd.DataFrame], systems: Mapping[str, Any]) -> list[dict[str, str]]:
    """Figures as HTML fragments in reading order, with a heading where a new kind begins."""
    blocks: list[dict[str, str]] = []
    drawn = draw.study_figures(dict(tables), systems)
    seen: set[str] = set()
    for kind, title in _FIGURE_TITLES.items():
        for name, figure in drawn.items():
            if not name.startswith(kind):
                continue
            fragment = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
            blocks.append({"title": "" if kind in seen else title, "html": fragment, "kind": kind})
            seen.add(kind)
    return blocks


def _findings(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any]) -> list[str]:
    """What happened to each system, in one or two sentences with numbers."""
    judge = manifest["config"]["judges"][0]
    rates = tables["rates"][tables["rates"]["judge"] == judge].set_index(["system", "arm", "label"])
    tests = tables["tests"][tables["tests"]["judge"] == judge].set_index(["system", "label"])
    sentences, names = [], system_names(measured_systems(manifest))
    for system in measured_systems(manifest):
        try:
            before, after = (rates.loc[(system, arm, "harmful")] for arm in ("original", "edited"))
        except KeyError:
            continue
        coherent = 1 - after["degenerate"] / after["n"]
        text = (
            f"{names[system]} refuses {_share(before)} of harmful prompts; after the edit {_share(after)}, "
            f"with {coherent:.0%} of its answers coherent."
        )
        if (system, "harmful") in tests.index:
            p = float(tests.loc[(system, "harmful")]["p_holm"])
            text += " The change is not testable." if math.isnan(p) else f" {_verdict(p)}"
        if (system, "original", "harmless") in rates.index:
            text += f" It refuses {_share(rates.loc[(system, 'original', 'harmless')])} of harmless prompts."
        if manifest["systems"][system]["selection"]["rule"] == "nearest":
            text += " No layer passed the selection, so the nearest candidate was removed: read this arm with care."
        sentences.append(text)
    return sentences


def _share(row: Any) -> str:
    if row["rate"] != row["rate"]:
        return "an unknown share"
    return f"{row['rate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def _verdict(p: float) -> str:
    word = "significant" if p < 0.05 else "not significant"
    size = "p < .0001" if p < 1e-4 else f"p = {p:.4f}"
    return f"The change is {word} (exact McNemar, Holm over systems, {size})."


def _exchanges(run: RunFolder, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For every system, its first prompts with both arms' responses and verdicts."""
    responses = run.read_table("responses.parquet")
    verdicts = run.read_table("verdicts.parquet")
    primary = verdicts[verdicts["judge"] == manifest["config"]["judges"][0]]
    labels = primary.set_index(["system", "arm", "id"])["verdict"].to_dict()
    shown = []
    for system in measured_systems(manifest):
        rows = responses[responses["system"] == system]
        by_key = {(r.arm, r.id): r for r in rows.itertuples()}
        items = []
        for identity in list(dict.fromkeys(rows["id"]))[:_SHOWN_RESPONSES]:
            original: Any = by_key[("original", identity)]
            items.append(
                {
                    "label": original.label,
                    "prompt": original.prompt,
                    "arms": [
                        {
                            "arm": arm,
                            "text": str(by_key[(arm, identity)].response)[:_SHOWN_CHARACTERS],  # type: ignore[attr-defined]
                            "verdict": labels[(system, arm, identity)],
                        }
                        for arm in ("original", "edited")
                    ],
                }
            )
        shown.append({"system": system, "items": items, "total": int(rows["id"].nunique())})
    return shown
