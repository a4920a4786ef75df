"""The command line: parse, call, save, print. One subcommand a stage."""

from __future__ import annotations

from mechsafety.cli import directions, judging, models, studies
from mechsafety.cli.base import main

__all__ = ["directions", "judging", "main", "models", "studies"]
