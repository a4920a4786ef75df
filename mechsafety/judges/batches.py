"""Batch files of the common format: questions for an endpoint as lines of JSON, and its results read back.

A line of questions has ``custom_id``, ``method``, ``url`` and ``body``; one of results ``custom_id`` and ``response``
with ``status_code`` and ``body``. The id is the verdict's key in the cache, so that results find their place whatever
their order, and what is missing is asked for like anything else that is not kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.judges.answers import SHOWN, Failure, read_body
from mechsafety.judges.asking import TRANSIENT
from mechsafety.judges.cache import VerdictCache, cache_key
from mechsafety.judges.kinds.endpoint import EndpointJudge
from mechsafety.judges.reading import decide

_URL = "/v1/chat/completions"


def batch_lines(judge: EndpointJudge, responses: Sequence[Response], cache: VerdictCache | None) -> list[str]:
    """The questions of ``judge`` about ``responses`` whose verdicts are not kept."""
    return [
        json.dumps(
            {
                "custom_id": key,
                "method": "POST",
                "url": _URL,
                "body": judge.calls.body(judge.messages(response)),
            }
        )
        for key, response in _open(judge, responses, cache).items()
    ]


def expected(judge: EndpointJudge, responses: Sequence[Response], cache: VerdictCache | None) -> str:
    """What ``judge`` will be asked about ``responses``, in a line: questions, tokens, and cost where it has prices."""
    todo = list(_open(judge, responses, cache).values())
    about = judge.estimate(todo)
    cost = "" if about.cost is None else f", cost {about.cost:.4f}"
    return (
        f"{judge.name}: {len(todo)} questions, about {about.prompt_tokens + about.completion_tokens} tokens{cost}; "
        f"{len(responses) - len(todo)} answers are judged already or occur twice"
    )


def read_batch(
    path: str | Path,
    judges: Sequence[EndpointJudge],
    responses: Sequence[Response],
    cache: VerdictCache | None,
) -> str:
    """Keep the verdicts of a file of results; says how many, and how many lines gave none.

    Raises MechsafetyError without a cache, and for a file that is no such.
    """
    if cache is None or not judges:
        raise MechsafetyError("--batch-in needs an endpoint judge, and a cache to keep its verdicts in")
    wanted = {key: (j, r) for j in judges for key, r in _open(j, responses, None).items()}
    try:
        lines = as_path(path).read_text(encoding="utf-8").split("\n")  # JSON may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise MechsafetyError(f"--batch-in {str(path)!r} cannot be read: {error}") from None
    kept, other = 0, 0
    without: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, result = _result(line, where=f"--batch-in {str(path)!r}, line {number}")
        if key not in wanted:
            other += 1
        elif why := _keep(*wanted[key], key, result, cache):
            without.append(why)
        else:
            kept += 1
    shown = f"{path}: {kept} verdicts, {len(without)} lines without one, {other} that were not asked for"
    return shown + (f"; the first without one: {without[0]}" if without else "")


def _result(line: str, *, where: str) -> tuple[str, dict[str, Any]]:
    """Id and all of one line."""
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        result = None
    if not isinstance(result, dict) or not isinstance(key := result.get("custom_id"), str):
        raise MechsafetyError(f"{where}: no result with custom_id and response")
    return key, result


def _keep(
    judge: EndpointJudge, response: Response, key: str, result: Mapping[str, Any], cache: VerdictCache
) -> str:
    """Keep the verdict of a result; why there is none, or nothing."""
    got = result.get("response")
    body = got.get("body") if isinstance(got, dict) else None
    try:
        answer, _ = read_body(
            json.dumps(body if body is not None else {"error": result.get("error")}).encode()
        )
    except Failure as failure:
        return failure.says
    verdict = decide(response, judge=judge.name, answers=[answer])
    if verdict is None:
        return f"no verdict in {answer.text.strip()[:SHOWN]!r}"
    if TRANSIENT & set(verdict.tags):
        return " ".join(verdict.tags)
    cache.put(key, verdict)
    return ""


def _open(
    judge: EndpointJudge, responses: Sequence[Response], cache: VerdictCache | None
) -> dict[str, Response]:
    """By key, the responses on which no verdict is kept."""
    keys = {cache_key(judge.fingerprint, response): response for response in responses}
    found = {} if cache is None else cache.get(list(keys), judge=judge.name)
    return {key: response for key, response in keys.items() if key not in found}
