"""Verdicts on responses that lie in a file, whoever generated them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import LABELS, Judge, Response
from mechsafety.judges.asking import AskingJudge, Usage
from mechsafety.judges.cache import VerdictCache, open_cache
from mechsafety.judges.kinds.endpoint import EndpointJudge
from mechsafety.judges.label_order import label_order
from mechsafety.judges.registry import judge_responses, load_judge
from mechsafety.models.loading import load_model
from mechsafety.prompts.files import cell_text, read_rows
from mechsafety.runs.folder import neutralised

OUTPUTS = (".csv", ".jsonl", ".parquet")


def read_responses(path: str | Path) -> list[Response]:
    """Responses of a file with columns ``response`` and ``prompt`` or ``question``; ``id`` optional."""
    path = Path(path)
    responses = []
    for number, (place, row) in enumerate(read_rows(path), start=1):
        prompt = next((row[c] for c in ("prompt", "question") if c in row), None)
        if "response" not in row or prompt is None:
            raise MechsafetyError(
                f"{path}, {place}: columns response and prompt (or question) are needed; have {', '.join(row)}"
            )
        responses.append(
            Response(
                id=cell_text(row.get("id")) or str(number),
                prompt=cell_text(prompt),
                text=cell_text(row["response"]),
            )
        )
    if not responses:
        raise MechsafetyError(f"{path}: no responses in it")
    return responses


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Counts by judge and label, what the order of labels changes, what the judges that ask a model have spent, and
    where the verdicts lie."""

    counts: dict[str, dict[str, int]]
    usage: dict[str, Usage]
    order: pd.DataFrame
    """:func:`label_order` of the judges that see both orders of their labels."""
    out: Path | None


def judge_file(
    path: str | Path,
    *,
    judges: Sequence[str],
    out: str | Path | None,
    max_calls: int | None = None,
    cache: str | Path | None = None,
    no_cache: bool = False,
) -> Judged:
    """Judge every response of ``path`` and write the verdicts to ``out``: id, judge, label, tags, detail (JSON).

    Verdicts of judges that ask a model are kept in ``cache`` (by default a file in the user's cache folder), so that
    an interrupted run goes on where it stopped. ``max_calls`` caps the calls of each endpoint judge.
    """
    path = Path(path)
    out = None if out is None else Path(out)
    cache = None if cache is None else Path(cache)
    require_output(out)
    responses = read_responses(path)
    with loaded_judges(judges, max_calls=max_calls, cache=cache, no_cache=no_cache) as (loaded, kept):
        verdicts = judge_responses(responses, loaded, cache=kept)
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
    write_table(table, out)
    counted = {judge: Counter(group["label"]) for judge, group in table.groupby("judge", sort=False)}
    return Judged(
        counts={str(judge): {label: found[label] for label in LABELS} for judge, found in counted.items()},
        order=label_order(table.rename(columns={"label": "verdict"}), []),
        usage={judge.name: judge.usage for judge in loaded if isinstance(judge, AskingJudge)},
        out=out,
    )


@contextmanager
def loaded_judges(
    specs: Sequence[str], *, max_calls: int | None, cache: str | Path | None, no_cache: bool
) -> Iterator[tuple[list[Judge], VerdictCache | None]]:
    """The judges, and the open cache if one of them can use it or a file is named."""
    cache = None if cache is None else Path(cache)
    if cache is not None and no_cache:
        raise MechsafetyError("--cache names a file and --no-cache forbids one: give one of them")
    # A cache of the wrong kind is reported before a model is loaded for nothing.
    with nullcontext(None) if cache is None else open_cache(cache) as named:
        judges = [load_judge(spec, models=load_model) for spec in specs]
        if max_calls is not None:
            _limit(judges, max_calls)
        asking = any(isinstance(judge, AskingJudge) for judge in judges)
        if named is not None or no_cache or not asking:
            yield judges, named
        else:
            with open_cache(None) as default:
                yield judges, default


def _limit(judges: Sequence[Judge], max_calls: int) -> None:
    endpoints = [judge for judge in judges if isinstance(judge, EndpointJudge)]
    if not endpoints:
        raise MechsafetyError(
            "--max-calls caps the calls of endpoint judges, and none is named: leave it out"
        )
    for judge in endpoints:
        judge.limit(max_calls=max_calls)


def require_output(out: str | Path | None) -> None:
    """Raise MechsafetyError unless :func:`write_table` can write ``out``."""
    out = None if out is None else Path(out)
    if out is not None and out.suffix.lower() not in OUTPUTS:
        raise MechsafetyError(f"--out {str(out)!r} must end in {', '.join(OUTPUTS)}")
    if out is not None and not out.parent.is_dir():
        raise MechsafetyError(f"folder {str(out.parent)!r} does not exist")


def write_table(table: pd.DataFrame, out: str | Path | None) -> None:
    """Write ``table`` as CSV, JSON lines or Parquet, by the ending of ``out``."""
    out = None if out is None else Path(out)
    if out is None:
        return
    if out.suffix.lower() == ".csv":
        neutralised(table).to_csv(out, index=False, lineterminator="\n")
    elif out.suffix.lower() == ".jsonl":
        table.to_json(out, orient="records", lines=True, double_precision=15)
    else:
        table.to_parquet(out, index=False)
