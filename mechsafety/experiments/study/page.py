"""The page of a study: its template ``report.html`` has the responses besides what every page has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.claims import decide
from mechsafety.claims.sentences import change, missing
from mechsafety.core.places import packaged_words
from mechsafety.experiments.agreement.chapter import chapter_blocks
from mechsafety.experiments.agreement.findings import disagreement_sentences
from mechsafety.experiments.regions.page import region_chapters
from mechsafety.experiments.result import Result
from mechsafety.experiments.study.findings import (
    failed_systems,
    failure_lines,
    headline,
    measured_systems,
    refusal_contrasts,
)
from mechsafety.pages.page import Block, Page, render_page, rendered_blocks
from mechsafety.plots.style import system_names
from mechsafety.sweeps.confirmation import confirmed_rows
from mechsafety.sweeps.measures import measure_lines

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHOWN_RESPONSES = 100
_SHOWN_CHARACTERS = 700
_KINDS = packaged_words("mechsafety.experiments.study", "page.toml")["blocks"]
"""By the beginning of the file's name, or the table's, in reading order: a heading and an explanation."""
_UNTRAINED = "this control and its test are made by mechsafety selfjudge RUN"
_TABLES = {"self-judgement": "selfjudge"}
"""The tables behind figures."""


def page(result: Result, figures: Mapping[str, go.Figure]) -> Page:
    config, n = result.config, len(measured_systems(result.manifest))
    return Page(
        title="Refusal rates before and after the edit",
        subtitle=f"{n} system{'s' if n != 1 else ''}, each original and with its refusal direction removed · recipe "
        f"{config['recipe']} · {config['max_new_tokens']} tokens · primary judge {config['judges'][0]}",
        findings=headline(result.tables, result.manifest),
        subjects=["all systems", *system_names(measured_systems(result.manifest)).values()],
        others="Judges and labels",
        blocks=[
            *_figure_blocks(result, figures),
            *chapter_blocks(result.tables, figures),
            *_stage_block(result.manifest),
        ],
    )


def _stage_block(manifest: Mapping[str, Any]) -> list[Block]:
    """Seconds by stage and system, summed over sessions; the timings are by system, and then by stage."""
    systems = system_names(measured_systems(manifest))
    timings = {s: t for s, t in manifest.get("timings", {}).items() if s in systems and isinstance(t, dict)}
    if not timings:
        return []
    table = pd.DataFrame({systems[system]: stages for system, stages in timings.items()}).fillna(0.0)
    table.loc["all stages"] = table.sum()
    table = table.round(1).rename_axis("stage").reset_index()
    return [Block(name="seconds", title="Seconds by stage", table=table)]


def html(result: Result) -> str:
    """The page as one file: no network, every response escaped."""
    manifest = result.manifest
    measured = measured_systems(manifest)
    return render_page(
        result.page(),
        manifest,
        fed="systems",
        form="report.html",
        systems=measured,
        measures={system: measure_lines(facts) for system, facts in measured.items()},
        failures=failure_lines(failed_systems(manifest), system_names(manifest["systems"])),
        primary=manifest["config"]["judges"][0],
        corrected=_corrected(result),
        rates=result.tables["rates"].to_dict(orient="records"),
        regions=[(chapter, rendered_blocks([chapter.block])[0]) for chapter in region_chapters(result.run)],
        exchanges=[_exchanges(result, system) for system in measured],
        names=system_names(measured),
    )


def _corrected(result: Result) -> list[dict[str, Any]]:
    """Corrected and raw rates of the primary judge, one row per system and prompt label; none without labels."""
    if "corrected_changes" not in result.tables:
        return []
    table = result.tables["corrected_changes"]
    names = {"all": "all systems", **system_names(measured_systems(result.manifest))}
    mine = table[(table["judge"] == result.config["judges"][0]).to_numpy()]
    return [{**row, "name": names[row["system"]]} for row in mine.to_dict(orient="records")]


def _figure_blocks(result: Result, figures: Mapping[str, go.Figure]) -> list[Block]:
    """Figures in reading order, with a heading where a new kind begins."""
    blocks: list[Block] = []
    claims = _claims(result)
    for kind, head in _KINDS.items():
        of_kind = [(name, figure) for name, figure in figures.items() if name.startswith(kind)]
        table = result.tables.get(_TABLES.get(kind, ""))
        for number, (name, figure) in enumerate(of_kind):
            first = {} if number else {**head, "claims": claims.get(kind, ()), "table": table}
            blocks.append(Block(name=name, figures=[figure], **{"title": "", **first}))
        if kind in result.tables and not of_kind:
            blocks.append(Block(name=kind, **head, table=result.tables[kind]))
        if kind == "confirmation" and len(read := confirmed_rows(result.tables["sweep"])):
            blocks.append(Block(name=kind, **head, table=read))
    return blocks


def _claims(result: Result) -> dict[str, list[str]]:
    """What figures show, in the sentences of the page's head."""
    tables, manifest = result.tables, result.manifest
    if "verdicts" not in tables:
        return {}
    changes = refusal_contrasts(tables, manifest, label="harmful").values()
    found = {"outcomes": [change(decide(contrast)) for contrast in changes]}
    if "selfjudge" in tables:
        found["self-judgement"] = [missing("Recognition of refusals by untrained networks", _UNTRAINED)]
    if "agreement" in tables:
        judge = manifest["config"]["judges"][0]
        found["judge-agreement"] = disagreement_sentences(
            tables["verdicts"], tables["agreement"], primary=judge
        )
    return found


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
