"""Batch files of the common format: questions for an endpoint as lines of JSON, and its results read back.

A line of questions has ``custom_id``, ``method``, ``url`` and ``body``; one of results ``custom_id`` and ``response``
with ``status_code`` and ``body``. The id is the verdict's key in the cache, so that results find their place whatever
their order, and what is missing is asked for like anything else that is not kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.judges.answers import SHOWN, Failure, read_body
from mechsafety.judges.asking import TRANSIENT, Usage
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


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a judge will about be asked: questions, tokens, and what they cost where it has prices.

    ``kept`` answers are judged already, or occur twice.
    """

    judge: str
    questions: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    kept: int = 0

    @classmethod
    def of(cls, judge: str, about: Usage, *, kept: int = 0) -> Expected:
        return cls(
            judge=judge,
            questions=about.calls,
            prompt_tokens=about.prompt_tokens,
            completion_tokens=about.completion_tokens,
            cost=about.cost,
            kept=kept,
        )

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", cost {self.cost:.4f}"
        kept = f"; {self.kept} answers are judged already or occur twice" if self.kept else ""
        tokens = self.prompt_tokens + self.completion_tokens
        return f"{self.judge}: {self.questions} questions, about {tokens} tokens{cost}{kept}"


def expected(judge: EndpointJudge, responses: Sequence[Response], cache: VerdictCache | None) -> Expected:
    """What ``judge`` will be asked about ``responses``."""
    todo = list(_open(judge, responses, cache).values())
    return Expected.of(judge.name, judge.estimate(todo), kept=len(responses) - len(todo))


def read_batch(
    path: str | Path,
    judges: Sequence[EndpointJudge],
    responses: Sequence[Response],
    cache: VerdictCache | None,
) -> str:
    """Keep the verdicts of a file of results; says how many, and how many lines gave none.

    The first verdict of an id that comes twice stays. Raises MechsafetyError without a cache, and for a file without
    results.
    """
    if cache is None or not judges:
        raise MechsafetyError("--batch-in needs an endpoint judge, and a cache to keep its verdicts in")
    wanted = {key: (j, r) for j in judges for key, r in _open(j, responses, None).items()}
    try:
        lines = as_path(path).read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise MechsafetyError(f"--batch-in {str(path)!r} cannot be read: {error}") from None
    kept: set[str] = set()
    other, twice = 0, 0
    without: list[str] = []
    results = [(number, _result(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    if not any(result for _, result in results):
        raise MechsafetyError(f"--batch-in {str(path)!r}, line 1: no result with custom_id and response")
    for number, result in results:
        key = str(result.get("custom_id", ""))
        if not result:  # of a file that was cut, say
            without.append(f"line {number} is no result with custom_id and response")
        elif key not in wanted:
            other += 1
        elif key in kept:
            twice += 1
        elif why := _keep(*wanted[key], key, result, cache):
            without.append(why)
        else:
            kept.add(key)
    shown = f"{path}: {len(kept)} verdicts, {len(without)} lines without one, {other} that were not asked for"
    shown += f", {twice} that came twice" if twice else ""
    return shown + (f"; the first without one: {without[0]}" if without else "")


def _result(line: str) -> dict[str, Any]:
    """One line; empty where it is no result."""
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        result = None
    return result if isinstance(result, dict) and isinstance(result.get("custom_id"), str) else {}


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
