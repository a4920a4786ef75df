"""The page of a lab run: which claims held, which attacks get through, and the anatomy of each tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mechsafety.core.places import packaged_words
from mechsafety.experiments.anatomy.experiment import read_anatomy
from mechsafety.experiments.anatomy.figures import anatomy_figures
from mechsafety.experiments.lab.config import SAFETY_TUNINGS
from mechsafety.experiments.lab.experiment import LabResult
from mechsafety.experiments.lab.findings import TUNINGS, lab_findings
from mechsafety.experiments.lab.thresholds import CLAIMS
from mechsafety.pages.page import Block, Page, page_blocks

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WORDS = packaged_words("mechsafety.experiments.lab", "page.toml")
_SHOWN = (
    "anatomy-tau-last-prompt",
    "anatomy-separation",
    "anatomy-sensitivity",
    "anatomy-alpha",
    "anatomy-spectrum",
)


def page(result: LabResult, figures: Mapping[str, go.Figure]) -> Page:
    """The page of a run of the lab."""
    cases, held, beyond = result.tables["cases"], result.held(), result.beyond()
    found, config = lab_findings(cases, held, beyond), result.config
    seeds = config["seeds"]
    return Page(
        title="Safety fine-tuning in the synthetic lab",
        subtitle=f"Preset {config['preset']} · seeds {', '.join(map(str, seeds))}",
        findings=[found["claims"][0], *_main(found["controls"]), *found["attacks"]],
        blocks=[
            *page_blocks(
                _WORDS["blocks"],
                {"claims": held, "controls": beyond, "cases": cases},
                figures,
                added={
                    "claims": [*(f"{n}. {claim}" for n, claim in CLAIMS.items()), *found["claims"][1:]],
                    "controls": [line for line in found["controls"] if line not in _main(found["controls"])],
                },
            ),
            *_anatomies(result, seeds[0]),
        ],
        how=[
            "One seed is one world (grammar, operators), one initialisation and one order of training.",
            f"The whole anatomy of each tuning: seed-{seeds[0]}/anatomy/{'|'.join(SAFETY_TUNINGS)}/report.html in this "
            "folder, and so for every seed.",
        ],
    )


def _main(controls: list[str]) -> list[str]:
    """Of the sentences about controls those that count readings."""
    return [line for line in controls if line.startswith("Lab:")]


def _anatomies(result: LabResult, seed: int) -> list[Block]:
    blocks = []
    for tuning in SAFETY_TUNINGS:
        names = {"base": "pretrained", "tuned": tuning, "control": "benign"}
        tables = read_anatomy(result.anatomy(seed, tuning)).tables
        figures = anatomy_figures(tables, names=names, only=_SHOWN)
        blocks.append(
            Block(
                name=f"anatomy-{tuning}",
                title=f"Anatomy of {TUNINGS[tuning]}, seed {seed}",
                figures=list(figures.values()),
            )
        )
    return blocks
