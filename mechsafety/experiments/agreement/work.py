"""What ``mechsafety agree`` does: a finished study's judges against people or against one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from mechsafety.annotation.labels import read_human_labels
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.agreement.tables import (
    REFERENCE_TABLES,
    judge_as_reference,
    judge_tables,
    people_tables,
    reference_tables,
)
from mechsafety.runs.folder import RunFolder, read_run


@dataclass(frozen=True, kw_only=True)
class JudgeComparison:
    """The tables that were written into the run, by name."""

    path: Path
    primary: str
    tables: Mapping[str, pd.DataFrame]

    def _repr_html_(self) -> str:
        shown = [
            self.tables[n] for n in ("judge_flips", "judge_errors", "corrected_rates") if n in self.tables
        ]
        tables = "".join(table.round(3).to_html(index=False, border=0) for table in shown)
        return f"<b>Judges of {escape(str(self.path))}</b>{tables}"


def compare_judges(
    path: str | Path, *, human: str | Path | None = None, reference: str | None = None, seed: int = 0
) -> JudgeComparison:
    """Write the judge tables of the study in ``path``; with ``human`` or ``reference`` also the judges' errors.

    ``human`` is a file of labels (:mod:`mechsafety.annotation.labels`), ``reference`` a judge of the run taken for the
    truth. Tables of an earlier comparison with people are replaced, or removed where this one has none.
    """
    path = Path(path)
    human = None if human is None else Path(human)
    if human is not None and reference is not None:
        raise MechsafetyError("--human and --reference exclude each other: one reference at a time")
    run = read_run(path)
    if run.manifest["config"].get("kind", "study") != "study":
        raise MechsafetyError(f"run {str(path)!r} is not a study: it has no verdicts to compare")
    verdicts = _nonempty(run, "verdicts.parquet")
    primary = run.manifest["config"]["judges"][0]
    tables = judge_tables(verdicts, primary=primary, seed=seed)
    if human is not None:
        labels = read_human_labels(human, responses=_nonempty(run, "responses.parquet"))
        tables |= people_tables(verdicts, labels, seed=seed)
    elif reference is not None:
        others, truth = judge_as_reference(verdicts, reference)
        tables |= reference_tables(others, truth, seed=seed)
    for name in REFERENCE_TABLES:
        if name not in tables:
            (run.path / f"{name}.csv").unlink(missing_ok=True)
    for name, table in tables.items():
        run.write_table(table, f"{name}.csv")
    reference_name = human.name if human is not None else reference
    of_labels = hashlib.sha256(human.read_bytes()).hexdigest() if human is not None else None
    run.record("agree", {"reference": reference_name, "labels_sha256": of_labels, "seed": seed})
    return JudgeComparison(path=path, primary=primary, tables=tables)


def _nonempty(run: RunFolder, name: str) -> pd.DataFrame:
    table = run.read_table(name)
    if table.empty:
        raise MechsafetyError(f"run {str(run.path)!r} is empty: {name} has no rows")
    return table
