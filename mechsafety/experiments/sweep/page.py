"""The page of a sweep: what was selected, how steadily, and what lies in which layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechsafety.core.places import packaged_words
from mechsafety.experiments.result import Result
from mechsafety.experiments.sweep.findings import sweep_findings
from mechsafety.pages.page import Block, Page, page_blocks
from mechsafety.sweeps.confirmation import confirmed_rows
from mechsafety.sweeps.measures import measure_lines

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_WORDS = packaged_words("mechsafety.experiments.sweep", "page.toml")


def page(result: Result, figures: Mapping[str, go.Figure]) -> Page:
    tables, manifest = result.tables, result.manifest
    selected, edit = manifest["selected"], manifest["edit"]
    model, used, score = (
        selected["model"],
        selected["validation_prompts_used"],
        selected["base_refusal_score"],
    )
    tokens = " ".join(repr(t) for t in selected["refusal_tokens"]["texts"])
    return Page(
        title=f"Refusal direction of {model.get('spec', 'the model')} by layer",
        subtitle=(
            f"{model.get('architecture', '')}, {model.get('n_layers', '?')} layers · "
            f"{used['harmful']} harmful and {used['harmless']} harmless validation prompts · rule "
            f"{result.config['rule']}"
        ),
        findings=sweep_findings(tables, manifest),
        blocks=_blocks(tables, figures),
        how=[
            f"Weights {model.get('fingerprint', '')[:16]}, {model.get('dtype')} on {model.get('device')}",
            *_overridden(selected),
            f"Tokens that all prompts begin with: {selected.get('shared_tokens', 'not recorded')}",
            f"First tokens of refusals ({selected['refusal_tokens']['source']}): {tokens}",
            *_fit_line(selected),
            *measure_lines(selected),
            f"Unedited refusal score: harmful {score['harmful']:.2f}, harmless {score['harmless']:.2f}",
            f"Edit saved in edit.safetensors: {edit['description']}, sha256 {edit['sha256'][:16]}",
        ],
    )


def _blocks(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, go.Figure]) -> list[Block]:
    """Blocks with figures, and the candidates whose answers were read."""
    drawn = page_blocks(_WORDS["blocks"], tables, figures, drawn=True)
    read = confirmed_rows(tables["sweep"])
    if not len(read):
        return drawn
    words = {"confirmation": _WORDS["blocks"]["confirmation"]}
    return [*drawn[:1], *page_blocks(words, {"confirmation": read}, {}), *drawn[1:]]


def _fit_line(selected: Mapping[str, Any]) -> list[str]:
    used = selected.get("fit_prompts_used")
    return (
        [f"Directions found on {used['harmful']} harmful and {used['harmless']} harmless prompts"]
        if used
        else []
    )


def _overridden(selected: Mapping[str, Any]) -> list[str]:
    asked = selected.get("overridden_generation_defaults")
    return [f"Of the checkpoint's generation defaults not followed: {json.dumps(asked)}"] if asked else []
