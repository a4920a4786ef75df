"""The page of a sweep: what was selected, how steadily, and what lies in which layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechsafety.experiments.base import Result
from mechsafety.experiments.sweep.findings import sweep_findings
from mechsafety.pages.page import Block, Page

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BLOCKS = (
    (
        "scores",
        "Scores by position and layer",
        "Bypass: mean refusal score of harmful prompts with the direction projected out everywhere. Induce: that of "
        "harmless prompts with the direction added at its own layer. KL: what the projection changes on harmless "
        "prompts.",
        "sweep",
    ),
    ("layers", "Scores by layer", "", None),
    ("methods", "Comparison of methods", "", None),
    (
        "stability",
        "Stability of the selection",
        "A layer that is picked in few resamples is one of several that do as well, or luck.",
        "stability",
    ),
    (
        "profile",
        "Separation of harmful and harmless prompts by layer",
        "Separation alone shows that the model distinguishes the prompts, not that it refuses because of it.",
        "profile",
    ),
    (
        "lens",
        "Tokens that the direction raises and lowers",
        "Tokens whose logits the direction raises or lowers when it is read by the final norm and the unembedding.",
        "lens",
    ),
    (
        "doses",
        "Removal and damage by dose",
        "The control projects out random directions in the same way: an effect beyond it is the direction's.",
        "doses",
    ),
)


def page(result: Result, figures: Mapping[str, go.Figure]) -> Page:
    tables, manifest = result.tables, result.manifest
    selected, edit = manifest["selected"], manifest["edit"]
    blocks = []
    for name, title, text, table in _BLOCKS:
        drawn = [figure for key, figure in figures.items() if key == name or key.startswith(f"{name}-")]
        if drawn:
            blocks.append(
                Block(name=name, title=title, text=text, figures=drawn, table=tables.get(table or ""))
            )
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
        blocks=blocks,
        how=[
            f"Weights {model.get('fingerprint', '')[:16]}, {model.get('dtype')} on {model.get('device')}",
            *_overridden(selected),
            f"Tokens that all prompts begin with: {selected.get('shared_tokens', 'not recorded')}",
            f"First tokens of refusals ({selected['refusal_tokens']['source']}): {tokens}",
            f"Unedited refusal score: harmful {score['harmful']:.2f}, harmless {score['harmless']:.2f}",
            f"Edit saved in edit.safetensors: {edit['description']}, sha256 {edit['sha256'][:16]}",
        ],
    )


def _overridden(selected: Mapping[str, Any]) -> list[str]:
    asked = selected.get("overridden_generation_defaults")
    return [f"Of the checkpoint's generation defaults not followed: {json.dumps(asked)}"] if asked else []
