"""Verdicts on responses that lie in a file, whoever generated them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mechsafety.errors import MechsafetyError
from mechsafety.judges.registry import judge_responses
from mechsafety.judges.verdict import LABELS, Response
from mechsafety.models import load_model
from mechsafety.prompts import cell, read_rows
from mechsafety.runs import neutralised

OUTPUTS = (".csv", ".jsonl", ".parquet")


def read_responses(path: Path) -> list[Response]:
    """Responses of a file with columns ``response`` and ``prompt`` or ``question``; ``id`` optional."""
    responses = []
    for number, (place, row) in enumerate(read_rows(path), start=1):
        prompt = next((row[c] for c in ("prompt", "question") if c in row), None)
        if "response" not in row or prompt is None:
            raise MechsafetyError(
                f"{path}, {place}: columns response and prompt (or question) are needed; have {', '.join(row)}"
            )
        responses.append(
            Response(id=cell(row.get("id")) or str(number), prompt=cell(prompt), text=cell(row["response"]))
        )
    if not responses:
        raise MechsafetyError(f"{path}: no responses in it")
    return responses


def judge_file(
    path: Path, *, judges: Sequence[str], out: Path | None
) -> tuple[dict[str, dict[str, int]], Path | None]:
    """Judge every response of ``path``: counts by judge and label, and where the verdicts were written."""
    if out is not None and out.suffix.lower() not in OUTPUTS:
        raise MechsafetyError(f"--out {str(out)!r} must end in {', '.join(OUTPUTS)}")
    if out is not None and not out.parent.is_dir():
        raise MechsafetyError(f"folder {str(out.parent)!r} does not exist")
    verdicts = judge_responses(read_responses(path), list(judges), models=load_model)
    table = pd.DataFrame(
        [
            {
                "id": v.id,
                "judge": v.judge,
                "label": v.label,
                "tags": " ".join(v.tags),
                "detail": json.dumps(dict(v.detail), sort_keys=True),
            }
            for v in verdicts
        ]
    )
    if out is not None:
        if out.suffix.lower() == ".csv":
            neutralised(table).to_csv(out, index=False, lineterminator="\n")
        elif out.suffix.lower() == ".jsonl":
            table.to_json(out, orient="records", lines=True)
        else:
            table.to_parquet(out, index=False)
    counted = {judge: Counter(group["label"]) for judge, group in table.groupby("judge", sort=False)}
    return {str(judge): {label: found[label] for label in LABELS} for judge, found in counted.items()}, out
