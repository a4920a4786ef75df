"""What a study comes to: its tables, and the systems that could not be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A finished study: where it lies, and its tables of rates and tests.

    ``failed`` says of each system that could not be measured why; no table has rows of it, and where all failed the
    tables are empty.
    """

    path: Path
    rates: pd.DataFrame
    tests: pd.DataFrame
    failed: Mapping[str, str] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        table = self.rates.round(3).to_html(index=False, border=0)
        failed = "".join(f"<p>{escape(line)}</p>" for line in failure_lines(self.failed))
        return f"<b>Study</b> in {escape(str(self.path))}{failed}{table}"


def failure_lines(failed: Mapping[str, str]) -> list[str]:
    """A sentence for every system that could not be measured."""
    return [f"Not measured: {system}: {why}" for system, why in failed.items()]


def measured_systems(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The systems of a study's manifest that have rows in its tables."""
    return {name: facts for name, facts in manifest["systems"].items() if "failed" not in facts}


def failed_systems(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Why the others have none."""
    return {name: facts["failed"] for name, facts in manifest["systems"].items() if "failed" in facts}
