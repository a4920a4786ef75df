"""The command line: parse, call, save, print. One subcommand a stage."""

from __future__ import annotations

from mechsafety.cli import (
    agreement,
    annotation,
    audits,
    checkpoints,
    directions,
    edits,
    integrations,
    judging,
    models,
    regions,
    robustness,
    selfjudgement,
    studies,
)
from mechsafety.cli.base import main

__all__ = [
    "agreement",
    "annotation",
    "audits",
    "checkpoints",
    "directions",
    "edits",
    "integrations",
    "judging",
    "main",
    "models",
    "regions",
    "robustness",
    "selfjudgement",
    "studies",
]
