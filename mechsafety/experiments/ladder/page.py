"""The page of a ladder: refusals after the removal of directions, by rung, beside the published claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.claims.tables import claim_table
from mechsafety.core.places import packaged_words
from mechsafety.experiments.audit.tables import published_counts
from mechsafety.experiments.ladder.contrasts import ladder_claims, rung_names
from mechsafety.experiments.ladder.experiment import LadderResult, ladder_names, ladders, prefixes
from mechsafety.experiments.ladder.findings import ladder_findings, summary
from mechsafety.experiments.ladder.paper import (
    joint_table,
    net_losses,
    paper_claims,
    paper_findings,
    paper_table,
)
from mechsafety.pages.page import Block, Page, page_blocks, setting_lines, under_headings

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from mechsafety.experiments.result import Result

_WORDS = packaged_words("mechsafety.experiments.ladder", "page.toml")
_PAPER = "Comparison with the paper"
_CAVEAT = (
    "The paper's systems are 1.7B models pretrained on 600B tokens, read by another judge on other prompts, with one "
    "direction taken out of their weights: what becomes of a rung can be compared, not by how much. Two systems "
    "are compared by the difference of their losses on the same prompts."
)


@dataclass(frozen=True, kw_only=True)
class _Ladder:
    """One ladder as the page shows it; ``name`` is empty where the page has no other."""

    name: str
    run: LadderResult
    figures: Mapping[str, go.Figure]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.run.config

    def named(self, sentences: Sequence[str]) -> list[str]:
        """Sentences with the ladder's name before them where there are several."""
        return [f"{self.name}: {sentence}" if self.name else sentence for sentence in sentences]


def page(result: Result, figures: Mapping[str, go.Figure]) -> Page:
    """The page of a ladder and of those beside it; ``figures`` are those of all."""
    shown = [
        _Ladder(
            name=name,
            run=run,
            figures={
                key.removeprefix(prefix): figure for key, figure in figures.items() if key.startswith(prefix)
            },
        )
        for name, prefix, run in zip(ladder_names(result), prefixes(result), ladders(result), strict=True)
    ]
    published = pd.read_csv(published_counts())
    first = [
        said for one in shown for said in one.named([*summary(one.run.tables), *net_losses(one.run.tables)])
    ]
    paper = [said for one in shown for said in one.named(paper_findings(paper_claims(one.run.tables)))]
    return Page(
        title="Refusal after ablation, by rung",
        subtitle=" — ".join(
            one.named([" · ".join(rung_names(list(one.config["systems"])).values())])[0] for one in shown
        ),
        **under_headings(
            {"survival": first, "paper": paper}, _WORDS["blocks"] | {"paper": {"title": _PAPER}}
        ),
        blocks=[
            *(block for one in shown for block in _chapter(one)),
            *_paper_blocks(shown, published),
            *_joint_blocks(shown),
        ],
        how=[line for one in shown for line in one.named(_how(one))],
    )


def _chapter(ladder: _Ladder) -> list[Block]:
    tables = ladder.run.tables
    both = [ladder_claims(tables, label) for label in ("harmful", "harmless")]
    claims = claim_table([claim for claims in both for claim in claims.values()])
    found = ladder_findings(tables, layer=ladder.run.layer)
    prefix = f"{ladder.name.replace('/', '-')}-" if ladder.name else ""
    return [
        replace(block, name=f"{prefix}{block.name}", title=ladder.named([block.title])[0])
        for block in page_blocks(
            _WORDS["blocks"], {**tables, "claims": claims}, ladder.figures, added=found, drawn=True
        )
    ]


def _paper_blocks(ladders: Sequence[_Ladder], published: pd.DataFrame) -> list[Block]:
    """The published claims and counts beside each ladder's; nothing where no rung is in both."""
    blocks: list[Block] = []
    for ladder in ladders:
        table = paper_table(ladder.run.tables, published)
        if table.empty:
            continue
        first = not blocks
        name = "paper" if first else f"paper-{ladder.name}"
        blocks.append(
            Block(
                name=name,
                title=_PAPER if first else "",
                text=_CAVEAT if first else "",
                table=table.assign(ladder=ladder.name) if ladder.name else table,
            )
        )
        pairs = [claim for several in paper_claims(ladder.run.tables).values() for claim in several]
        if pairs:
            blocks.append(Block(name=f"{name}-pairs", title="", table=claim_table(pairs)))
    return blocks


def _joint_blocks(ladders: Sequence[_Ladder]) -> list[Block]:
    """The rungs that several ladders have, side by side."""
    table = joint_table({ladder.name: ladder.run.tables for ladder in ladders}) if len(ladders) > 1 else ()
    return (
        [Block(name="ladders", title="The same rungs in several ladders", table=table)] if len(table) else []
    )


def _how(ladder: _Ladder) -> list[str]:
    config, systems = ladder.config, ladder.run.record["systems"]
    settings = setting_lines(_WORDS["how"], config)
    chosen = [
        f"{name}: {systems[system]['explanation']}"
        for system, name in rung_names(list(config["systems"])).items()
        if systems.get(system, {}).get("explanation")
    ]
    return ["Brackets: 95 % intervals, not corrected.", *settings, *chosen, *ladder.run.notes]
