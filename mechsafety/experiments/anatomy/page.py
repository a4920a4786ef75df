"""The page of an anatomy: what a fine-tuning did to a model, from its activations to its weights and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mechsafety.experiments.anatomy.findings import anatomy_findings
from mechsafety.experiments.anatomy.naming import Names, Tables, who
from mechsafety.pages.page import Block, Page

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BLOCKS: Mapping[str, tuple[str, str, tuple[str, ...], str]] = {
    "clusters": (
        "Clusters of safe and unsafe prompts",
        "What the output matrix of each MLP reads, averaged over the answer or at the last prompt token. tau is the "
        "distance to the centroid of unsafe prompts less that to the centroid of safe ones; the centroids come from "
        "prompts of their own. Answers differ where one model refuses, so that clusters over the answer show what is "
        "answered as well as what is recognised; the last prompt token comes before any of it.",
        ("anatomy-tau", "anatomy-separation", "anatomy-cluster-rank"),
        "separation",
    ),
    "attacks": (
        "Attacks relative to the two clusters",
        "An attack is an unsafe request in disguise. Success is a coherent answer that complies.",
        ("anatomy-attacks",),
        "attack_tau",
    ),
    "sensitivity": (
        "Sensitivity of the first token to the prompt",
        "The norm of the gradient of the largest logit at the first place of the answer with respect to the "
        "embeddings of the prompt: the local Lipschitz constant of the model.",
        ("anatomy-sensitivity",),
        "sensitivity",
    ),
    "interpolation": (
        "Answers along the line from base to tuned",
        "Models on the straight line from the base to the tuned one, W + alpha dW, answer for themselves. Degenerate "
        "answers (looped, empty, no language) count as neither refused nor answered.",
        ("anatomy-alpha",),
        "interpolation",
    ),
    "weights": (
        "Size, spectrum and null-space alignment of dW",
        "dW is the difference of the weights, matrix by matrix. Directions of no preference lie in the left null space "
        "of W to the degree that is reported as chance, and a random dW of the same norm shows how much that varies.",
        ("anatomy-size", "anatomy-spectrum", "anatomy-null-space"),
        "weight_changes",
    ),
    "action": (
        "Action of dW on unsafe and safe prompts",
        "||dW a|| / ||a|| over what the matrix reads: unsafe prompts over safe ones. A random dW acts on both alike "
        "but for the shape of the activations.",
        ("anatomy-action",),
        "action_ratios",
    ),
    "reversal": (
        "Refusals with parts of dW",
        "Models that have some of dW only, or all but some of it. Biases, norms and embeddings are those of the model "
        "that a state is made from.",
        ("anatomy-reversal",),
        "reversal",
    ),
    "links": (
        "dW along the refusal direction and in safety-critical weights",
        "The refusal direction is the difference of the means of harmful and harmless prompts in the tuned model. What "
        "dW writes along it is compared with random directions and with what W writes there anyway.",
        ("anatomy-direction", "anatomy-weight-sets"),
        "links",
    ),
    "ablation": (
        "Refusals after ablation of the direction",
        "The tuned model with the direction projected out of every layer; a random direction is the control.",
        ("anatomy-ablation",),
        "ablation",
    ),
}
_HOW = {
    "prompts": "Prompts: {}",
    "attacks": "Attacks: {}",
    "judge": "Answers are read by the judge {}; no verdict is a person's",
    "maps": "Matrices whose dW is taken apart: {}",
    "limit": "Prompts of each label in each split, and of each family of attacks, at most: {}",
    "max_new_tokens": "Tokens of an answer, at most: {}",
    "seed": "Seed: {}",
}


def anatomy_page(
    tables: Tables, figures: Mapping[str, go.Figure], *, config: Mapping[str, Any], names: Names
) -> Page:
    """The page of an anatomy; ``names`` are the models' by their part."""
    found = anatomy_findings(tables, names=names)
    return Page(
        title="Anatomy of a fine-tuning",
        subtitle=" · ".join(who(role, names) for role in names),
        findings=[sentences[0] for sentences in found.values()],
        blocks=[
            Block(
                name=name,
                title=title,
                text=" ".join([text, *found.get(name, [])[1:]]),
                figures=[figure for key, figure in figures.items() if key.startswith(keys)],
                table=tables[table],
            )
            for name, (title, text, keys, table) in _BLOCKS.items()
            if table in tables and len(tables[table])
        ],
        how=_how(config),
    )


def _how(config: Mapping[str, Any]) -> list[str]:
    return [
        "Brackets: 95 % intervals over prompts (Wilson's for shares, else bootstrap). Two values count as different "
        "where these do not meet. One fine-tuning was examined: another seed of it could differ by more.",
        *(text.format(config[key]) for key, text in _HOW.items() if config.get(key) is not None),
    ]
