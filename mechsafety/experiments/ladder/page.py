"""The page of a ladder: which rungs survive the removal of directions, and what that says of the published claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.experiments.audit.tables import published_counts
from mechsafety.experiments.ladder.figures import ladder_figures
from mechsafety.experiments.ladder.findings import ladder_findings, summary
from mechsafety.experiments.ladder.paper import joint_findings, most_fragile, paper_findings, paper_table
from mechsafety.experiments.ladder.runs import LadderRun, read_ladder
from mechsafety.experiments.ladder.verdicts import Verdict, ladder_verdicts, system_names
from mechsafety.pages.page import Block, Page
from mechsafety.runs.folder import RunFolder, read_run

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BLOCKS = {
    "survival": (
        "Which survive?",
        "Each system's own refusal directions are projected out of every layer; as many random ones are the control. "
        "Tests are exact McNemar tests on the same prompts, with Holm's correction over all systems and numbers.",
        ("ladder-overview", "ladder-survival"),
    ),
    "answers": (
        "What is said instead?",
        "A loss of refusals is a jailbreak only where the answers are coherent. Degenerate text counts as neither.",
        ("ladder-answers",),
    ),
    "cost": ("What does the removal cost?", "", ("ladder-cost",)),
    "ranks": ("How many directions are there?", "", ("ladder-ranks",)),
    "cosines": (
        "Is it the same direction?",
        "A cosine no higher than that of a contrast without refusal says only that the systems are alike.",
        ("ladder-cosines",),
    ),
    "angles": ("Is it the same subspace?", "", ("ladder-angles",)),
    "transfer": ("Does one system's direction break another?", "", ("ladder-transfer",)),
    "links": (
        "Is it what training changed?",
        "dW is a system's weights less the base's.",
        ("ladder-links",),
    ),
}
_TABLES = {"answers": "breaking", "cost": "survival", "survival": "tests"}
"""The table that is shown with a block, where it has another name."""
_CAVEAT = (
    "The paper's systems are 1.7B models pretrained on 600B tokens, read by another judge on other prompts, with one "
    "direction taken out of their weights: what becomes of a rung can be compared, not by how much. Two systems are "
    "said to lose differently only where the 95 % intervals of their falls do not meet."
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
    """One finished ladder as the page tells it; ``name`` is empty where the page has no other."""

    name: str
    run: LadderRun
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    layer: int | None
    verdicts: list[Verdict]

    def figures(self) -> dict[str, go.Figure]:
        return ladder_figures(self.run.tables, layer=self.layer)

    def said(self, sentences: Sequence[str]) -> list[str]:
        """Sentences with the ladder's name before them where there are several."""
        return [f"{self.name}: {said}" if self.name else said for said in sentences]


def figures_of(run: RunFolder) -> dict[str, go.Figure]:
    """Every figure of a finished ladder by file name, and those of the ladders beside it after their names."""
    first, *others = _ladders(run)
    return first.figures() | {
        f"{other.name.replace('/', '-')}-{key}": figure
        for other in others
        for key, figure in other.figures().items()
    }


def page_of(run: RunFolder) -> Page:
    ladders = _ladders(run)
    published = pd.read_csv(published_counts())
    several = {ladder.name: ladder.verdicts for ladder in ladders} if len(ladders) > 1 else {}
    findings = joint_findings(several)
    for ladder in ladders:
        findings += ladder.said([*summary(ladder.verdicts), *most_fragile(ladder.verdicts)])
    for ladder in ladders:
        findings += ladder.said(paper_findings(ladder.verdicts, published)[:1])
    blocks = [block for ladder in ladders for block in _chapter(ladder)]
    blocks += _paper_blocks(ladders, published)
    return Page(
        title="Which rungs survive ablation?",
        subtitle=_subtitle(ladders),
        findings=findings,
        blocks=blocks,
        how=[line for ladder in ladders for line in ladder.said(_how(ladder))],
    )


def _ladders(run: RunFolder) -> list[_Ladder]:
    """The run's own ladder, then those beside it."""
    beside = [read_run(Path(path)) for path in run.manifest["config"].get("beside", ())]
    folders = [run, *beside]
    names = _run_names([folder.path for folder in folders]) if beside else [""]
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: RunFolder, name: str) -> _Ladder:
    found = read_ladder(folder.path)
    return _Ladder(
        **{"name": name, "run": found, "config": folder.manifest["config"]},
        facts=folder.manifest["ladder"]["systems"],
        layer=found.layer,
        verdicts=ladder_verdicts(found.tables),
    )


def _run_names(paths: Sequence[Path]) -> list[str]:
    """The folders' names; with their parents' where these do not tell them apart."""
    whole = [path.resolve() for path in paths]
    names = [path.name for path in whole]
    return names if len(set(names)) == len(names) else [f"{path.parent.name}/{path.name}" for path in whole]


def _chapter(ladder: _Ladder) -> list[Block]:
    tables, figures = ladder.run.tables, ladder.figures()
    found = ladder_findings(tables, layer=ladder.layer)
    prefix = f"{ladder.name.replace('/', '-')}-" if ladder.name else ""
    blocks = []
    for name, (title, text, keys) in _BLOCKS.items():
        drawn = [figures[key] for key in keys if key in figures]
        if not drawn:
            continue
        # One sentence a system is a list, not a paragraph.
        apart = found.get(name, []) if name == "survival" else []
        said = [] if apart else found.get(name, [])
        blocks.append(
            Block(
                name=f"{prefix}{name}",
                title=f"{ladder.name}: {title}" if ladder.name else title,
                text=" ".join([text, *said]).strip(),
                figures=drawn,
                table=tables[_TABLES.get(name, name)],
            )
        )
        blocks += _paragraphs(f"{prefix}{name}", apart)
    return blocks


def _paragraphs(name: str, sentences: Sequence[str]) -> list[Block]:
    return [Block(name=f"{name}-{n}", title="", text=said) for n, said in enumerate(sentences, start=1)]


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
                title="Against the paper" if first else "",
                text=_CAVEAT if first else "",
                table=table.assign(ladder=ladder.name) if ladder.name else table,
            )
        )
        blocks += _paragraphs(name, ladder.said(paper_findings(ladder.verdicts, published)))
    return blocks


def _subtitle(ladders: Sequence[_Ladder]) -> str:
    named = [" · ".join(system_names(list(ladder.config["systems"])).values()) for ladder in ladders]
    return " — ".join(
        f"{ladder.name}: {n}" if ladder.name else n for ladder, n in zip(ladders, named, strict=True)
    )


def _how(ladder: _Ladder) -> list[str]:
    config = ladder.config
    said = [text.format(config[key]) for key, text in _HOW.items() if config.get(key) is not None]
    names = system_names(list(config["systems"]))
    chosen = [
        f"{name}: {facts['explanation']}"
        for system, name in names.items()
        if (facts := ladder.facts.get(system, {})).get("explanation")
    ]
    return ["Brackets: 95 % intervals.", *said, *chosen, *ladder.run.notes]
