"""The page of an anatomy: what a fine-tuning did to a model, from its activations to its weights and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechsafety.core.places import packaged_words
from mechsafety.experiments.anatomy.controls import anatomy_controls
from mechsafety.experiments.anatomy.experiment import model_names
from mechsafety.experiments.anatomy.findings import anatomy_findings
from mechsafety.experiments.anatomy.naming import who
from mechsafety.experiments.result import Result
from mechsafety.pages.page import Page, page_blocks, setting_lines, under_headings

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WORDS = packaged_words("mechsafety.experiments.anatomy", "page.toml")


def page(result: Result, figures: Mapping[str, go.Figure]) -> Page:
    """The page of an anatomy."""
    tables, names = result.tables, model_names(result)
    found = anatomy_findings(tables, names=names)
    return Page(
        title="Anatomy of a fine-tuning",
        subtitle=" · ".join(who(role, names) for role in names),
        **under_headings({name: told[:1] for name, told in found.items()}, _WORDS["blocks"]),
        blocks=page_blocks(
            _WORDS["blocks"],
            {**tables, "controls": anatomy_controls(tables, names=names)},
            figures,
            added={name: told[1:] for name, told in found.items()},
        ),
        how=_how(result.config),
    )


def _how(config: Mapping[str, Any]) -> list[str]:
    return [
        "Brackets: 95 % intervals over prompts (Wilson's for shares, score intervals for AUROC, else bootstrap), not "
        "corrected. One fine-tuning was examined: another seed of it could differ by more.",
        *setting_lines(_WORDS["how"], config),
    ]
