"""The command line: parse, call, save, print. One subcommand a stage."""

from __future__ import annotations

from mechsafety.cli.base import main

__all__ = ["main"]
