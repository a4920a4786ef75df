"""The page of a study: its template ``report.html`` has the responses besides what every page has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechsafety.experiments.agreement.chapter import chapter_blocks
from mechsafety.experiments.base import Result
from mechsafety.experiments.regions.page import region_chapters
from mechsafety.experiments.study.findings import (
    failed_systems,
    failure_lines,
    measured_systems,
    study_findings,
)
from mechsafety.pages.page import Block, Page, fed_parts, plotly_script, rendered_blocks, template
from mechsafety.plots.style import system_names

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHOWN_RESPONSES = 100
_SHOWN_CHARACTERS = 700
_FIGURES = {
    "outcomes": ("Answers before and after the edit", ""),
    "refusal-heatmap": ("Refusal rate by judge", ""),
    "layer-sweep": (
        "Scores of directions by layer",
        "Bypass: mean refusal score of harmful prompts with the direction projected out everywhere (low is removed). "
        "Induce: mean refusal score of harmless prompts with the direction added at its layer (high is induced). KL: "
        "what the projection changes on harmless prompts.",
    ),
    "pca": ("Harmful and harmless prompts at the selected layer", ""),
    "judge-agreement": ("Agreement between judges", ""),
    "self-judgement": (
        "Recognition of own refusals",
        "agreement: share of answers on which “log P(Yes) > log P(No)” equals the primary judge's verdict. auc needs "
        "no threshold. auc_shuffled: the same answer shown after another prompt. auc_length: shortness alone.",
    ),
}
"""By the beginning of the file's name, in reading order: a heading and an explanation."""


def page(result: Result, figures: Mapping[str, go.Figure]) -> Page:
    config, n = result.config, len(measured_systems(result.manifest))
    return Page(
        title="Refusal rates before and after the edit",
        subtitle=f"{n} system{'s' if n != 1 else ''}, each original and with its refusal direction removed · recipe "
        f"{config['recipe']} · {config['max_new_tokens']} tokens · primary judge {config['judges'][0]}",
        findings=study_findings(result.tables, result.manifest),
        blocks=[*_figure_blocks(result, figures), *chapter_blocks(result.tables, figures)],
    )


def html(result: Result) -> str:
    """The page as one file: no network, every response escaped."""
    page, manifest = result.page(), result.manifest
    failed, measured = failed_systems(manifest), measured_systems(manifest)
    judges = [block.name for block in page.blocks if not block.name.startswith(tuple(_FIGURES))]
    return template("report.html").render(
        page=page,
        blocks=rendered_blocks(page.blocks),
        judges=judges[:1],
        config=manifest["config"],
        systems=measured,
        failures=failure_lines(failed, system_names(manifest["systems"])),
        sessions=manifest.get("sessions", []),
        repeated=manifest.get("repeated_prompts", 0),
        versions=manifest["versions"],
        timings=manifest.get("timings", {}),
        primary=manifest["config"]["judges"][0],
        rates=result.tables["rates"].to_dict(orient="records"),
        regions=[(chapter, rendered_blocks([chapter.block])[0]) for chapter in region_chapters(result.run)],
        exchanges=[_exchanges(result, system) for system in measured],
        fed=fed_parts(manifest["systems"]),
        script=plotly_script(),
        names=system_names(measured),
    )


def _figure_blocks(result: Result, figures: Mapping[str, go.Figure]) -> list[Block]:
    """Figures in reading order, with a heading where a new kind begins."""
    blocks: list[Block] = []
    for kind, (title, text) in _FIGURES.items():
        of_kind = [(name, figure) for name, figure in figures.items() if name.startswith(kind)]
        table = result.tables.get("selfjudge") if kind == "self-judgement" else None
        for number, (name, figure) in enumerate(of_kind):
            head = {} if number else {"title": title, "text": text, "table": table}
            blocks.append(Block(name=name, figures=[figure], **{"title": "", **head}))
    return blocks


def _exchanges(result: Result, system: str) -> dict[str, Any]:
    """A system's first prompts with both arms' responses and verdicts."""
    responses, verdicts = result.tables["responses"], result.tables["verdicts"]
    primary = verdicts[(verdicts["judge"] == result.config["judges"][0]) & (verdicts["system"] == system)]
    rows = responses[responses["system"] == system].merge(primary[["arm", "id", "verdict"]], on=["arm", "id"])
    shown = []
    for identity in list(dict.fromkeys(rows["id"]))[:_SHOWN_RESPONSES]:
        arms = rows[rows["id"] == identity].set_index("arm").loc[["original", "edited"]]
        first = arms.iloc[0]
        answers = [
            {"arm": arm, "text": str(row["response"])[:_SHOWN_CHARACTERS], "verdict": row["verdict"]}
            for arm, row in arms.iterrows()
        ]
        shown.append({"label": first["label"], "prompt": first["prompt"], "arms": answers})
    return {"system": system, "items": shown, "total": int(rows["id"].nunique())}
