"""The page of a lab run: which claims held, which attacks get through, and the anatomy of each tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechsafety.experiments.anatomy.figures import anatomy_figures
from mechsafety.experiments.anatomy.runs import read_anatomy
from mechsafety.experiments.lab.config import SAFETY_TUNINGS
from mechsafety.experiments.lab.findings import TUNINGS, lab_findings
from mechsafety.experiments.lab.thresholds import CLAIMS
from mechsafety.experiments.lab.work import LabRun, read_lab
from mechsafety.pages.page import Block, Page
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import plotly.graph_objects as go


def figures_of(run: RunFolder) -> dict[str, go.Figure]:
    """Every figure of a finished lab run, by file name."""
    return read_lab(run.path).figures()


def page_of(run: RunFolder) -> Page:
    made = read_lab(run.path)
    held = made.held()
    found, figures = lab_findings(made.cases, held), made.figures()
    config = run.manifest["config"]
    seeds = config["seeds"]
    return Page(
        title="What does safety fine-tuning do to a model?",
        subtitle=f"Preset {config['preset']} · seeds {', '.join(map(str, seeds))}",
        findings=[found["claims"][0], *found["attacks"]],
        blocks=[
            Block(
                name="claims",
                title="Which claims held?",
                text=" ".join(
                    [*(f"{number}. {claim}" for number, claim in CLAIMS.items()), *found["claims"][1:]]
                ),
                figures=[figures["lab-claims"]],
                table=held,
            ),
            Block(
                name="outcomes",
                title="What does every model answer?",
                text="Answers are greedy and free-running, compared exactly with what the rules of the world say. A "
                "and B are the harmless and the dangerous class of texts.",
                figures=[figures["lab-outcomes"]],
                table=made.cases,
            ),
            *_anatomies(made, seeds[0]),
        ],
        how=[
            "One seed is one world (grammar, operators), one initialisation and one order of training.",
            f"The whole anatomy of each tuning: seed-{seeds[0]}/anatomy/{'|'.join(SAFETY_TUNINGS)}/report.html in this "
            "folder, and so for every seed.",
        ],
    )


def _anatomies(made: LabRun, seed: int) -> list[Block]:
    blocks = []
    for tuning in SAFETY_TUNINGS:
        names = {"base": "pretrained", "tuned": tuning, "control": "benign"}
        figures = anatomy_figures(read_anatomy(made.anatomy(seed, tuning)).tables, names=names)
        blocks.append(
            Block(
                name=f"anatomy-{tuning}",
                title=f"Anatomy of {TUNINGS[tuning]}, seed {seed}",
                figures=[figure for name, figure in figures.items() if name.startswith(_SHOWN)],
            )
        )
    return blocks


_SHOWN = (
    "anatomy-tau-output",
    "anatomy-separation",
    "anatomy-sensitivity",
    "anatomy-alpha",
    "anatomy-spectrum",
)
