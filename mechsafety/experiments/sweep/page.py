"""The page of a sweep: what was selected, how steadily, and what lies in which layer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.sweep.figures import sweep_figures
from mechsafety.pages.page import Block, Page
from mechsafety.runs.folder import RunFolder

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
    ("layers", "Layer by layer", "", None),
    ("methods", "Methods compared", "", None),
    (
        "stability",
        "How steady is the selection?",
        "A layer that is picked in few resamples is one of several that do as well, or luck.",
        "stability",
    ),
    (
        "profile",
        "Where harmful and harmless part",
        "Separation alone shows that the model tells the prompts apart, not that it refuses because of it.",
        "profile",
    ),
    (
        "lens",
        "What the direction says",
        "Tokens whose logits the direction raises or lowers when it is read by the final norm and the unembedding.",
        "lens",
    ),
    (
        "doses",
        "Where removal ends and damage begins",
        "The control projects out random directions in the same way: what it does not do, the direction does.",
        "doses",
    ),
)


def figures_of(run: RunFolder) -> dict[str, go.Figure]:
    """Every figure of a finished sweep, by file name."""
    return sweep_figures(_tables(run), _selected(run))


def page_of(run: RunFolder) -> Page:
    tables, selected = _tables(run), _selected(run)
    figures = figures_of(run)
    blocks = []
    for name, title, text, table in _BLOCKS:
        drawn = [figure for key, figure in figures.items() if key == name or key.startswith(f"{name}-")]
        if drawn:
            blocks.append(
                Block(name=name, title=title, text=text, figures=drawn, table=tables.get(table or ""))
            )
    model = selected["model"]
    used = selected["validation_prompts_used"]
    tokens = " ".join(repr(t) for t in selected["refusal_tokens"]["texts"])
    return Page(
        title=f"Where does {model.get('spec', 'the model')} keep its refusal?",
        subtitle=(
            f"{model.get('architecture', '')}, {model.get('n_layers', '?')} layers · "
            f"{used['harmful']} harmful and {used['harmless']} harmless validation prompts · rule "
            f"{run.manifest['config']['rule']}"
        ),
        findings=_findings(run, tables, selected),
        blocks=blocks,
        how=[
            f"Weights {model.get('fingerprint', '')[:16]}, {model.get('dtype')} on {model.get('device')}",
            *_overridden(selected),
            f"Tokens that all prompts begin with: {selected.get('shared_tokens', 'not recorded')}",
            f"First tokens of refusals ({selected['refusal_tokens']['source']}): {tokens}",
            f"Unedited refusal score: harmful {selected['base_refusal_score']['harmful']:.2f}, harmless "
            f"{selected['base_refusal_score']['harmless']:.2f}",
            f"Edit saved in edit.safetensors: {run.manifest['edit']['description']}, sha256 "
            f"{run.manifest['edit']['sha256'][:16]}",
        ],
    )


def _overridden(selected: dict[str, Any]) -> list[str]:
    asked = selected.get("overridden_generation_defaults")
    return [f"Of the checkpoint's generation defaults not followed: {json.dumps(asked)}"] if asked else []


def _findings(run: RunFolder, tables: dict[str, pd.DataFrame], selected: dict[str, Any]) -> list[str]:
    place = selected["selection"]
    sentences = [f"{selected['explanation']}."]
    others = {m: f for m, f in run.manifest["selections"].items() if m != selected["method"]}
    sentences += [f"{method}: {facts['explanation']}." for method, facts in others.items()]
    stability = tables["stability"]
    picked = stability[(stability["layer"] == place["layer"]) & (stability["position"] == place["position"])][
        "share"
    ].sum()
    nothing = stability[stability["layer"].isna()]["share"].sum()
    sentences.append(
        f"When the validation prompts are drawn again, this candidate is picked in {picked:.0%} of resamples, and "
        f"none passes in {nothing:.0%}."
    )
    row = tables["profile"].set_index("layer").loc[place["layer"]]
    sentences.append(
        f"The projection separates held-out prompts with AUROC {row['auroc']:.2f} [{row['auroc_low']:.2f}, "
        f"{row['auroc_high']:.2f}]."
    )
    if "doses" in tables:
        sentences += _dose_findings(tables["doses"])
    return sentences


def _dose_findings(doses: pd.DataFrame) -> list[str]:
    unedited = doses[doses["dose"] == "unedited"].iloc[0]
    full = doses[(doses["family"] == "alpha") & (doses["dose"] == "1")]
    sentences = []
    for control, who in ((False, "the direction"), (True, "a random direction")):
        one = full[full["control"] == control]
        if len(one):
            row = one.iloc[0]
            sentences.append(
                f"Projecting {who} out takes refusal of harmful report prompts from {unedited['refused']:.0%} to "
                f"{row['refused']:.0%} [{row['low']:.0%}, {row['high']:.0%}] (n = {int(row['n'])}), with "
                f"{row['degenerate']:.0%} of answers degenerate and perplexity x "
                f"{row['perplexity'] / unedited['perplexity']:.2f}."
            )
    return sentences


def _tables(run: RunFolder) -> dict[str, pd.DataFrame]:
    tables = {
        "sweep": run.read_table("sweep.parquet"),
        "profile": run.read_table("profile.csv"),
        "lens": run.read_table("lens.parquet"),
        "stability": run.read_table("stability.csv").astype({"position": "Int64", "layer": "Int64"}),
    }
    if (run.path / "doses.csv").is_file():
        tables["doses"] = run.read_table("doses.csv")
    return tables


def _selected(run: RunFolder) -> dict[str, Any]:
    if "selected" not in run.manifest:
        raise MechsafetyError(f"run {str(run.path)!r} is not finished: run the sweep again")
    return run.manifest["selected"]
