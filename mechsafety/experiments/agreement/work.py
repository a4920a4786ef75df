"""What ``mechsafety agree`` does: a finished study's judges against people or against one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from mechsafety.annotation.export import load_annotations
from mechsafety.annotation.labels import read_human_labels
from mechsafety.annotation.sampling import KEY, Plan, draw_sample
from mechsafety.annotation.store import STORE
from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.values import Value
from mechsafety.core.verdict import Response
from mechsafety.experiments.agreement.tables import (
    REFERENCE_TABLES,
    judge_as_reference,
    judge_tables,
    people_tables,
    reference_tables,
)
from mechsafety.experiments.judging import ask
from mechsafety.judges.registry import available_judges, load_judge, redacted
from mechsafety.runs.folder import RunFolder, read_run
from mechsafety.statistics.tables import ABSTAINING_JUDGES


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class JudgeComparison(Value):
    """The tables that were written into the run, by name."""

    path: Path
    primary: str
    tables: Mapping[str, pd.DataFrame]

    def describe(self) -> str:
        return (
            f"JudgeComparison({str(self.path)!r}, primary judge {self.primary!r}: {', '.join(self.tables)})"
        )

    def to_frame(self, name: str | None = None) -> pd.DataFrame:
        """One table, by default the first."""
        return self.tables[next(iter(self.tables)) if name is None else name]

    def _repr_html_(self) -> str:
        shown = [
            self.tables[n] for n in ("judge_flips", "arm_errors", "corrected_changes") if n in self.tables
        ]
        tables = "".join(table.round(3).to_html(index=False, border=0) for table in shown)
        return f"<b>Judges of {escape(str(self.path))}</b>{tables}"


def compare_judges(
    path: str | Path,
    *,
    human: str | Path | None = None,
    reference: str | None = None,
    labels: int | None = None,
    seed: int = 0,
) -> JudgeComparison:
    """Write the judge tables of the study in ``path``; with labels also the judges' errors and the corrected rates.

    ``human`` is a file of labels (:mod:`mechsafety.annotation.labels`); without it, the labels that the run holds.
    ``reference`` is a judge of the run taken for the truth, or, with ``labels``, any judge, which then reads a random
    sample of that many responses. Tables of an earlier comparison are replaced, or removed where this one has none.

    Raises :class:`MechsafetyError` for two references at once, and for a folder that holds no study.

    Returns:
        The tables that were written into the run, by name.

    Example:
        >>> comparison = ms.judges.compare_judges("runs/study", reference="rules")
        >>> comparison.tables["judge_errors"]["judge"].unique().tolist()
        ['phrases:arditi']
    """
    path = as_path(path)
    human = None if human is None else as_path(human)
    if human is not None and reference is not None:
        raise MechsafetyError(
            f"{way('--human', 'human')} and {way('--reference', 'reference')} exclude each "
            "other: one reference at a time"
        )
    if labels is not None and reference is None:
        raise MechsafetyError(
            f"{way('--labels', 'labels')} says how many responses the judge "
            f"{way('--reference', 'reference')} reads: name one"
        )
    run = read_run(path)
    if run.manifest["config"].get("kind", "study") != "study":
        raise MechsafetyError(f"run {str(path)!r} is not a study: it has no verdicts to compare")
    verdicts = _nonempty(run, "verdicts.parquet")
    primary = run.manifest["config"]["judges"][0]
    tables = judge_tables(verdicts, primary=primary, seed=seed)
    people = None
    if human is not None:
        people = read_human_labels(human, responses=_nonempty(run, "responses.parquet"))
    elif reference is None:
        people = own_labels(run)
    elif labels is None:
        _require_read(verdicts, reference, path)
        tables |= reference_tables(*judge_as_reference(verdicts, reference), seed=seed)
    else:
        others = verdicts[(verdicts["judge"] != reference).to_numpy()]
        truth = sampled_reference(run, verdicts, reference, labels=labels, seed=seed)
        tables |= reference_tables(others, truth, seed=seed)
    if people is not None:
        tables |= people_tables(verdicts, people, seed=seed)
    for name in REFERENCE_TABLES:
        if name not in tables:
            (run.path / f"{name}.csv").unlink(missing_ok=True)
    for name, table in tables.items():
        run.write_table(table, f"{name}.csv")
    reference_name = human.name if human is not None else STORE if people is not None else reference
    of_labels = hashlib.sha256(human.read_bytes()).hexdigest() if human is not None else None
    asked = {"reference": reference_name, "labels": labels, "labels_sha256": of_labels, "seed": seed}
    run.record("agree", asked)
    return JudgeComparison(path=path, primary=primary, tables=tables)


def _require_read(verdicts: pd.DataFrame, judge: str, path: Path) -> None:
    """Raise :class:`MechsafetyError` where ``judge`` has not read the run, with the command by which it does."""
    known = {*verdicts["judge"], *ABSTAINING_JUDGES}
    if judge in known or judge.partition(":")[0] not in available_judges():
        return
    every = way(f'mechsafety judge {path} --judge "{redacted(judge)}"', "run.judge(name)")
    raise MechsafetyError(
        f"judge {redacted(judge)!r} has not read this run, which has {', '.join(dict.fromkeys(verdicts['judge']))}: "
        f"let it read all answers first, {every}, or a random sample now, {way('--labels N', 'labels=N')}"
    )


def own_labels(run: RunFolder) -> pd.DataFrame | None:
    """The labels that people gave to the run's responses with ``mechsafety annotate``; None where there are none."""
    if not (run.path / STORE).is_file():
        return None
    table = load_annotations(run).to_frame()
    return table if len(table) else None


def sampled_reference(
    run: RunFolder, verdicts: pd.DataFrame, judge: str, *, labels: int, seed: int
) -> pd.DataFrame:
    """The verdicts of ``judge`` on ``labels`` random responses, as many of every system and arm, with their weights.

    A judge that asks a model is asked nothing twice.
    """
    if judge in ABSTAINING_JUDGES:
        raise MechsafetyError(f"judge {judge!r} reads no refusal or compliance: it cannot be the reference")
    responses = _nonempty(run, "responses.parquet").astype(dict.fromkeys(KEY, str))
    drawn = draw_sample(responses, verdicts, plan=Plan(labels=labels, seed=seed, balanced=True)).items
    shown = drawn.merge(responses[[*KEY, "prompt", "response"]], on=KEY)
    asked = [
        Response(id=str(row.item), prompt=str(row.prompt), text=str(row.response))
        for row in shown.itertuples()
    ]
    found = ask(load_judge(judge), asked)
    return shown[[*KEY, "stratum"]].assign(
        verdict=[verdict.label for verdict in found], weight=1 / shown["inclusion_probability"]
    )


def _nonempty(run: RunFolder, name: str) -> pd.DataFrame:
    table = run.read_table(name)
    if table.empty:
        raise MechsafetyError(f"run {str(run.path)!r} is empty: {name} has no rows")
    return table
