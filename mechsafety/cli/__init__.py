"""The command line: parse, call, save, print. One subcommand a stage."""

from __future__ import annotations

from mechsafety.cli import (
    agreement,
    anatomy,
    annotation,
    audits,
    checkpoints,
    directions,
    edits,
    integrations,
    judging,
    lab,
    ladder,
    models,
    regions,
    robustness,
    selfjudgement,
    studies,
)
from mechsafety.cli.base import main

__all__ = [
    "agreement",
    "anatomy",
    "annotation",
    "audits",
    "checkpoints",
    "directions",
    "edits",
    "integrations",
    "judging",
    "lab",
    "ladder",
    "main",
    "models",
    "regions",
    "robustness",
    "selfjudgement",
    "studies",
]
