"""Judges against published labels of people: ``python -m benchmarks.human_labels FILE... --judge NAME``.

Reads the answers of XSTest (github.com/paul-rottger/xstest, ``model_completions/*.csv``: two annotators) and tables of
the form of PyRIT's (``datasets/scorer_evals/refusal_scorer/*.csv``: 1 is a refusal), which are not kept here. Partial
refusals are in neither class and left out. The kappa of people with each other is the bound.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.markdown import markdown_table
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.judges.registry import judge_responses
from mechsafety.statistics.raters import kappa
from mechsafety.statistics.resampling import Estimate

HEAD = ["file", "judge", "annotator", "answers", "kappa", "refusals found", "false alarms", "people"]
_FIELDS = {
    "prompt": ("prompt", "objective"),
    "response": ("completion", "response", "assistant_response"),
    "first": ("annotation_1", "a1", "human_score", "human_score_1"),
    "second": ("annotation_2", "a2", "human_score_2"),
}
_CLASSES = {"1_full_compliance": False, "2_full_refusal": True, "0": False, "1": True}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """An answer and whether each annotator calls it a refusal; None for anything between."""

    response: Response
    labels: tuple[bool | None, ...]


def read(path: Path) -> list[Labelled]:
    """The rows of one file. Raises :class:`MechsafetyError` where a column is missing or nothing is labelled."""
    if not path.is_file():
        raise MechsafetyError(f"{str(path)!r} is no file")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = [*csv.DictReader(line for line in lines if not line.startswith("# "))]
    names = {field: _named(path, rows, field) for field in _FIELDS}
    if not all(names[field] for field in ("prompt", "response", "first")):
        raise MechsafetyError(f"{str(path)!r} lacks a column of prompts, responses or labels")
    raters = [name for field in ("first", "second") if (name := names[field])]
    return [
        Labelled(
            response=Response(
                id=f"{path}:{number}", prompt=row[names["prompt"]], text=row[names["response"]]
            ),
            labels=tuple(_CLASSES.get(row[name].strip().removesuffix(".0")) for name in raters),
        )
        for number, row in enumerate(rows)
    ]


def _named(path: Path, rows: Sequence[dict[str, str]], field: str) -> str:
    if not rows:
        raise MechsafetyError(f"{str(path)!r} holds no row")
    return next((name for name in _FIELDS[field] if name in rows[0]), "")


def compared(name: str, rows: Sequence[Labelled], judge: str) -> list[list[str]]:
    """A row of the table for each annotator."""
    verdicts = judge_responses([row.response for row in rows], (judge,))
    said = [verdict.label == "refusal" for verdict in verdicts]
    prompts = [row.response.prompt for row in rows]
    people = ""
    if len(rows[0].labels) > 1:
        first, second = zip(*(row.labels for row in rows), strict=True)
        people = f"{kappa(first, second, clusters=prompts).value:.2f}"
    lines = []
    for number in range(len(rows[0].labels)):
        truth = [row.labels[number] for row in rows]
        found = kappa(truth, said, clusters=prompts)
        refused = [guess for guess, right in zip(said, truth, strict=True) if right is True]
        answered = [guess for guess, right in zip(said, truth, strict=True) if right is False]
        counts = (f"{sum(part)} of {len(part)}" for part in (refused, answered))
        lines.append([name, judge, str(number + 1), str(found.n), _spelt(found), *counts, people])
    return lines


def _spelt(found: Estimate) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of all files, each alone and, where there are several, together."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.human_labels", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--judge", action="append", dest="judges", metavar="NAME", help="may be repeated")
    given = parser.parse_args(arguments)
    try:
        tables = {path.stem: read(path) for path in given.files}
        if len(tables) > 1 and len({len(rows[0].labels) for rows in tables.values()}) == 1:
            tables["together"] = [row for rows in tables.values() for row in rows]
        lines = [
            line
            for judge in given.judges or ("rules", "phrases:arditi")
            for name, rows in tables.items()
            for line in compared(name, rows, judge)
        ]
    except MechsafetyError as error:
        parser.error(str(error))
    print(markdown_table(HEAD, lines))


if __name__ == "__main__":
    main()
