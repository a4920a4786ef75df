"""The command line: parse, call, save, print. One subcommand a stage."""

from __future__ import annotations

from mechsafety.cli import annotation, audits, checkpoints, directions, edits, judging, models, studies
from mechsafety.cli.base import main

__all__ = ["annotation", "audits", "checkpoints", "directions", "edits", "judging", "main", "models", "studies"]
