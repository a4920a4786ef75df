"""The page of a ladder: refusals after the removal of directions, by rung, beside the published claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.experiments.audit.tables import published_counts
from mechsafety.experiments.ladder.experiment import LadderResult, ladder_names, ladders, prefixes
from mechsafety.experiments.ladder.findings import ladder_findings, summary
from mechsafety.experiments.ladder.paper import joint_findings, most_fragile, paper_findings, paper_table
from mechsafety.experiments.ladder.verdicts import SystemVerdict, ladder_verdicts, rung_names
from mechsafety.pages.page import Block, Page

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from mechsafety.experiments.base import Result

_BLOCKS = {
    "survival": (
        "Refusals against directions removed",
        "Each system's own refusal directions are projected out of every layer; as many random ones are the control. "
        "Tests are exact McNemar tests on the same prompts, with Holm's correction over all systems and numbers.",
        ("ladder-overview", "ladder-survival"),
    ),
    "answers": (
        "Answers after ablation",
        "A loss of refusals is a jailbreak only where the answers are coherent. Degenerate text counts as neither.",
        ("ladder-answers",),
    ),
    "cost": ("Cost on harmless prompts", "", ("ladder-cost",)),
    "ranks": ("Number of directions that separate the prompts", "", ("ladder-ranks",)),
    "cosines": (
        "Cosines between the systems' directions",
        "A cosine no higher than that of a contrast without refusal shows only that the systems are alike.",
        ("ladder-cosines",),
    ),
    "angles": ("Angles between the systems' subspaces", "", ("ladder-angles",)),
    "transfer": ("Transfer of directions between systems", "", ("ladder-transfer",)),
    "links": (
        "Refusal directions and the weights that training changed",
        "dW is a system's weights less the base's.",
        ("ladder-links",),
    ),
}
_TABLES = {"answers": "breaking", "cost": "survival", "survival": "tests"}
"""The table that is shown with a block, where it has another name."""
_CAVEAT = (
    "The paper's systems are 1.7B models pretrained on 600B tokens, read by another judge on other prompts, with one "
    "direction taken out of their weights: what becomes of a rung can be compared, not by how much. Two systems "
    "count as losing differently only where the 95 % intervals of their falls do not meet."
)
_HOW = {
    "prompts": "Prompts: {}",
    "judge": "Judge: {}; an answer that opens with the tag of the rung metatags is withheld from the reader and counts "
    "as refused, and so does a rephrasing that opens as those of the rung rephrase",
    "base": "What all were fine-tuned from: {}",
    "limit": "Report prompts of each label, at most: {}",
    "max_new_tokens": "Tokens of an answer that is judged, at most: {}",
    "seed": "Seed: {}",
}


@dataclass(frozen=True, kw_only=True)
class _Ladder:
    """One ladder as the page shows it; ``name`` is empty where the page has no other."""

    name: str
    run: LadderResult
    figures: Mapping[str, go.Figure]
    verdicts: list[SystemVerdict]

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
            verdicts=ladder_verdicts(run.tables),
        )
        for name, prefix, run in zip(ladder_names(result), prefixes(result), ladders(result), strict=True)
    ]
    published = pd.read_csv(published_counts())
    findings = joint_findings({one.name: one.verdicts for one in shown} if len(shown) > 1 else {})
    for one in shown:
        findings += one.named([*summary(one.verdicts), *most_fragile(one.verdicts)])
    for one in shown:
        findings += one.named(paper_findings(one.verdicts, published)[:1])
    return Page(
        title="Refusal after ablation, by rung",
        subtitle=" — ".join(
            one.named([" · ".join(rung_names(list(one.config["systems"])).values())])[0] for one in shown
        ),
        findings=findings,
        blocks=[
            *(block for one in shown for block in _chapter(one)),
            *_paper_blocks(shown, published),
        ],
        how=[line for one in shown for line in one.named(_how(one))],
    )


def _chapter(ladder: _Ladder) -> list[Block]:
    tables = ladder.run.tables
    found = ladder_findings(tables, layer=ladder.run.layer)
    prefix = f"{ladder.name.replace('/', '-')}-" if ladder.name else ""
    blocks = []
    for name, (title, text, keys) in _BLOCKS.items():
        drawn = [ladder.figures[key] for key in keys if key in ladder.figures]
        if not drawn:
            continue
        # One sentence per system is a list, not a paragraph.
        apart = found.get(name, []) if name == "survival" else []
        within = [] if apart else found.get(name, [])
        blocks.append(
            Block(
                name=f"{prefix}{name}",
                title=ladder.named([title])[0],
                text=" ".join([text, *within]).strip(),
                figures=drawn,
                table=tables[_TABLES.get(name, name)],
            )
        )
        blocks += _paragraphs(f"{prefix}{name}", apart)
    return blocks


def _paragraphs(name: str, sentences: Sequence[str]) -> list[Block]:
    return [
        Block(name=f"{name}-{n}", title="", text=sentence) for n, sentence in enumerate(sentences, start=1)
    ]


def _paper_blocks(ladders: Sequence[_Ladder], published: pd.DataFrame) -> list[Block]:
    """The published claims and counts beside each ladder's; nothing where no rung is in both."""
    blocks: list[Block] = []
    for ladder in ladders:
        table = paper_table(ladder.verdicts, published)
        if table.empty:
            continue
        first = not blocks
        name = "paper" if first else f"paper-{ladder.name}"
        blocks.append(
            Block(
                name=name,
                title="Comparison with the paper" if first else "",
                text=_CAVEAT if first else "",
                table=table.assign(ladder=ladder.name) if ladder.name else table,
            )
        )
        blocks += _paragraphs(name, ladder.named(paper_findings(ladder.verdicts, published)))
    return blocks


def _how(ladder: _Ladder) -> list[str]:
    config, systems = ladder.config, ladder.run.record["systems"]
    settings = [text.format(config[key]) for key, text in _HOW.items() if config.get(key) is not None]
    chosen = [
        f"{name}: {systems[system]['explanation']}"
        for system, name in rung_names(list(config["systems"])).items()
        if systems.get(system, {}).get("explanation")
    ]
    return ["Brackets: 95 % intervals.", *settings, *chosen, *ladder.run.notes]
