"""Verdicts on responses that lie in a file, whoever generated them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.progress import Progress
from mechsafety.core.verdict import LABELS, Judge, Response
from mechsafety.judges.accepted import as_answers
from mechsafety.judges.asking import MISSING, AskingJudge, Usage
from mechsafety.judges.batches import Expected, batch_lines, expected, read_batch
from mechsafety.judges.budget import Budget
from mechsafety.judges.cache import VerdictCache, open_cache
from mechsafety.judges.endpoint_spec import caps_of_environment, require_own_keys
from mechsafety.judges.kinds.endpoint import EndpointJudge
from mechsafety.judges.label_order import label_order
from mechsafety.judges.panel import members_of
from mechsafety.judges.registry import (
    judge_responses,
    load_judge,
    require_known_judge,
    shared_cache,
    single_judges,
)
from mechsafety.runs.folder import neutralised

OUTPUTS = (".csv", ".jsonl", ".parquet")


def read_responses(path: str | Path) -> list[Response]:
    """Responses of a file with columns ``response`` and ``prompt`` or ``question``; ``id`` optional."""
    return [each.response for each in as_answers(as_path(path))]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Counts by judge and label, what is missing, what the order of labels changes, what the judges that ask a model
    have spent, and where the verdicts lie."""

    counts: dict[str, dict[str, int]]
    usage: dict[str, Usage]
    missing: dict[str, dict[str, int]]
    """How many verdicts there are not yet, by judge and reason; the same command asks for these again."""
    unread: dict[str, dict[str, int]]
    """What the other ``unparsed`` verdicts are for, by judge and reason."""
    not_english: dict[str, int]
    """Answers called compliance by a judge that reads English, and that do not look it."""
    stopped: tuple[str, ...]
    """What ended the work of judges before all was asked."""
    damaged: tuple[str, ...]
    """What of the cache was found damaged and left out."""
    order: pd.DataFrame
    """:func:`label_order` of the judges that see both orders of their labels."""
    out: Path | None


def judge_file(
    path: str | Path,
    *,
    judges: Sequence[str],
    out: str | Path | None,
    max_calls: int | None = None,
    max_tokens: int | None = None,
    max_cost: float | None = None,
    cache: str | Path | None = None,
    no_cache: bool = False,
    batch_in: str | Path | None = None,
    say: Progress = lambda _: None,
) -> Judged:
    """Judge every response of ``path`` and write the verdicts to ``out``: id, judge, label, tags, detail (JSON).

    Verdicts of judges that ask a model are kept in ``cache`` (by default a file in the user's cache folder), so that
    an interrupted run goes on where it stopped. The caps hold for all endpoint judges together, members of panels too;
    what each will cost about is said first. ``batch_in`` is a file of results (:mod:`mechsafety.judges.batches`), which
    are kept first; nothing more is asked then, unless ``max_calls`` says how much.
    """
    path = as_path(path)
    out = None if out is None else as_path(out)
    cache = None if cache is None else as_path(cache)
    require_output(out, inputs=(path, batch_in))
    responses = read_responses(path)
    if batch_in is not None and max_calls is None:
        max_calls = 0
    caps = {"max_calls": max_calls, "max_tokens": max_tokens, "max_cost": max_cost}
    with loaded_judges(judges, caps=caps, cache=cache, no_cache=no_cache) as (loaded, kept):
        if batch_in is not None:
            say(read_batch(batch_in, _endpoints(loaded), responses, kept))
        for judge in _endpoints(loaded):
            say(str(expected(judge, responses, kept)))
        verdicts = judge_responses(responses, loaded, cache=kept, partial=True)
        damaged = tuple(kept.damaged) if kept is not None else ()
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
    missing = Counter((v.judge, tag) for v in verdicts for tag in MISSING & set(v.tags))
    unread = Counter(
        (v.judge, tag)
        for v in verdicts
        if v.label == "unparsed" and not MISSING & set(v.tags)
        for tag in v.tags
    )
    foreign = Counter(v.judge for v in verdicts if "not_english" in v.tags)
    asking = [judge for judge in single_judges(loaded) if isinstance(judge, AskingJudge)]
    return Judged(
        counts={str(judge): {label: found[label] for label in LABELS} for judge, found in counted.items()},
        order=label_order(table.rename(columns={"label": "verdict"}), []),
        usage={judge.name: judge.usage for judge in asking},
        missing=_by_judge(missing),
        unread=_by_judge(unread),
        not_english=dict(foreign),
        stopped=tuple(str(judge.stopped) for judge in asking if judge.stopped is not None),
        damaged=damaged,
        out=out,
    )


def _by_judge(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    return {
        judge: {tag: n for (name, tag), n in counts.items() if name == judge}
        for judge in dict.fromkeys(name for name, _ in counts)
    }


@contextmanager
def loaded_judges(
    specs: Sequence[str], *, caps: Mapping[str, int | float | None], cache: str | Path | None, no_cache: bool
) -> Iterator[tuple[list[Judge], VerdictCache | None]]:
    """The judges, and the open cache if one of them can use it or a file is named."""
    cache = None if cache is None else as_path(cache)
    if cache is not None and no_cache:
        raise MechsafetyError(
            f"{way('--cache', 'cache')} names a file and {way('--no-cache', 'no_cache')} forbids one: give one of them"
        )
    # A cache of the wrong kind is reported before a model is loaded for nothing.
    with nullcontext(None) if cache is None else open_cache(cache) as named:
        require_own_keys([member for spec in specs for member in members_of(spec)])
        judges = [load_judge(spec) for spec in specs]
        if given := {name: cap for name, cap in caps.items() if cap is not None}:
            _limit(judges, given)
        if named is not None or no_cache:
            yield judges, named
        else:
            with shared_cache(judges) as default:
                yield judges, default


def write_batch(
    path: str | Path,
    batch: str | Path,
    *,
    judges: Sequence[str],
    cache: str | Path | None = None,
    no_cache: bool = False,
) -> dict[str, int]:
    """Write to ``batch`` what the endpoint judges would be asked about the responses of ``path``; nothing is sent.

    Returns how many questions there are by judge. Those whose verdicts are kept are left out.
    """
    path, batch = as_path(path), as_path(batch)
    require_output(batch, endings=(".jsonl",), option="batch_out", inputs=(path,))
    responses = read_responses(path)
    with loaded_judges(judges, caps={}, cache=cache, no_cache=no_cache) as (loaded, kept):
        endpoints = _endpoints(loaded)
        if not endpoints:
            raise MechsafetyError("--batch-out writes the questions of endpoint judges, and none is named")
        lines = {judge.name: batch_lines(judge, responses, kept) for judge in endpoints}
    batch.write_text("".join(f"{line}\n" for several in lines.values() for line in several), encoding="utf-8")
    return {judge: len(several) for judge, several in lines.items()}


def plan_judging(
    responses: Sequence[Response],
    *,
    judges: Sequence[str],
    cache: str | Path | None = None,
    no_cache: bool = False,
) -> list[Expected]:
    """What endpoint judges, members of panels too, would be asked about ``responses``; nothing is sent or loaded.

    Raises MechsafetyError for a judge that could be made nowhere.
    """
    for spec in judges:
        require_known_judge(spec)
    members = dict.fromkeys(member for spec in judges for member in members_of(spec))
    asked = [member for member in members if member.startswith("endpoint:")]
    with loaded_judges(asked, caps={}, cache=cache, no_cache=no_cache) as (loaded, kept):
        return [expected(judge, responses, kept) for judge in _endpoints(loaded)]


def _endpoints(judges: Sequence[Judge]) -> list[EndpointJudge]:
    return [judge for judge in single_judges(judges) if isinstance(judge, EndpointJudge)]


def _limit(judges: Sequence[Judge], caps: Mapping[str, int | float]) -> None:
    if not (endpoints := _endpoints(judges)):
        cap = next(iter(caps))
        option = f"--{cap.replace('_', '-')}"
        raise MechsafetyError(
            f"{way(option, cap)} caps the calls of endpoint judges, and none is named: leave it out"
        )
    own = {cap.removeprefix("max_"): value for cap, value in caps.items()}
    budget = Budget(**(caps_of_environment() | own))  # type: ignore[arg-type]
    for judge in endpoints:
        judge.limit(budget)


def require_output(
    out: str | Path | None,
    *,
    endings: Sequence[str] = OUTPUTS,
    option: str = "out",
    inputs: Sequence[str | Path | None] = (),
) -> None:
    """Raise MechsafetyError unless ``out`` can be written, ends in one of ``endings`` and is none of ``inputs``."""
    if out is None:
        return
    out = as_path(out)
    named = f"{way('--' + option.replace('_', '-'), option)} {str(out)!r}"
    if out.suffix.lower() not in endings:
        raise MechsafetyError(f"{named} must end in {', '.join(endings)}")
    if not out.parent.is_dir():
        raise MechsafetyError(f"folder {str(out.parent)!r} does not exist")
    there = out.exists()
    if there and any(
        one is not None and as_path(one).exists() and out.samefile(as_path(one)) for one in inputs
    ):
        raise MechsafetyError(f"{named} is the file that is read, and would replace it: name another file")
    try:
        with out.open("ab"):
            pass
        if not there:
            out.unlink()
    except OSError as error:
        raise MechsafetyError(f"{named} cannot be written ({error.strerror}): name another file") from None


def write_table(table: pd.DataFrame, out: str | Path | None) -> None:
    """Write ``table`` as CSV, JSON lines or Parquet, by the ending of ``out``."""
    out = None if out is None else as_path(out)
    if out is None:
        return
    if out.suffix.lower() == ".csv":
        neutralised(table).to_csv(out, index=False, lineterminator="\n")
    elif out.suffix.lower() == ".jsonl":
        table.to_json(out, orient="records", lines=True, double_precision=15)
    else:
        table.to_parquet(out, index=False)
