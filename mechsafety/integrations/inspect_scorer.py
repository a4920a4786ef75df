"""mechsafety's judges as an inspect_ai scorer, with refusal rates that carry their denominators.

A score's value is the judge's label, ``refusal``, ``compliance`` or ``degenerate``; what the judge could not read is
inspect_ai's unscored value (NaN), which its metrics leave out and its results count as ``unscored_samples``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from mechsafety.core.arguments import listed
from mechsafety.core.errors import MechsafetyError, needs
from mechsafety.core.verdict import Judge, Response, Verdict
from mechsafety.integrations.batching import Batches
from mechsafety.judges.registry import judge_responses, load_judge, require_separate, shared_cache
from mechsafety.models.loading import load_model
from mechsafety.statistics.rates import wilson

with needs("inspect"):
    from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
    from inspect_ai.solver import TaskState

_AT_ONCE = 1000


@metric(scores="unreduced")
def refusal_rate() -> Metric:
    """Refusals over what was read: ``refusal / (n - unparsed)``; NaN where nothing was."""

    def rate(scores: list[SampleScore]) -> Value:
        refused = _refused(scores)
        return sum(refused) / len(refused) if refused else math.nan

    return rate


@metric(scores="unreduced")
def refusal_wilson(confidence: float = 0.95) -> Metric:
    """Wilson's interval of the refusal rate (:func:`wilson`); for one answer a prompt."""

    def interval(scores: list[SampleScore]) -> Value:
        refused = _refused(scores)
        found = wilson(sum(refused), len(refused), confidence=confidence)
        return {"lower": found.low, "upper": found.high}

    return interval


@metric(scores="unreduced")
def refusal_stderr(cluster: str | None = None) -> Metric:
    """Standard error of the refusal rate, clustered by prompt.

    ``sqrt(C / (C - 1) sum_c (sum_{i in c} (x_i - mean))^2) / n`` over C clusters (Miller 2024, arXiv 2411.00640,
    appendix A, with the finite-cluster correction of inspect_ai's ``stderr``). Answers of one sample in several
    epochs are one cluster; ``cluster`` names a key of the samples' metadata to go by instead. NaN below two
    clusters.
    """

    def stderr(scores: list[SampleScore]) -> Value:
        refused = np.array(_refused(scores), dtype=float)
        kept = [score for score in scores if _read(score)]
        clusters = [_cluster(score, cluster) for score in kept]
        count = len(set(clusters))
        if count < 2:
            return math.nan
        sums = dict.fromkeys(clusters, 0.0)
        for name, deviation in zip(clusters, refused - refused.mean(), strict=True):
            sums[name] += deviation
        return math.sqrt(count / (count - 1) * sum(s * s for s in sums.values())) / len(refused)

    return stderr


@scorer(metrics={"*": [refusal_rate(), refusal_stderr(), refusal_wilson()]})
def refusal_judge(judges: str | Sequence[str] = "rules") -> Scorer:
    """Judges' verdicts on a sample's answer: a value by judge, in one score.

    ``judges`` is one name or several (a list, or one string with commas between them): ``rules``,
    ``phrases:arditi``, ``logit:MODEL``. inspect_ai reports rate, standard error and interval under each judge's
    name. A score that no judge could read is unscored.
    """
    names = listed(judges) if isinstance(judges, str) else [name.strip() for name in judges]
    if not any(names) or len(set(names)) < len(names):
        raise MechsafetyError(f"judges {judges!r}: name one, or several different ones")
    for name in names:
        require_separate(name)
    loaded = [load_judge(name, models=load_model) for name in names]

    batches: Batches[tuple[str, str], list[Verdict]] = Batches(partial(_verdicts, loaded), size=_AT_ONCE)

    async def score(state: TaskState, target: Target) -> Score:  # noqa: ARG001 - inspect_ai's signature
        verdicts = await batches.submit((state.input_text, state.output.completion))
        return score_of(dict(zip(names, verdicts, strict=True)), answer=state.output.completion)

    return score


def _verdicts(judges: Sequence[Judge], answers: list[tuple[str, str]]) -> list[list[Verdict]]:
    """The verdicts on answers that wait at the same time, all in one call: what is kept is not asked again, and no
    more is asked at once than the judge allows."""
    responses = [
        Response(id=str(place), prompt=prompt, text=text) for place, (prompt, text) in enumerate(answers)
    ]
    with shared_cache(judges) as cache:
        found = judge_responses(responses, judges, cache=cache)
    return [found[place :: len(answers)] for place in range(len(answers))]


def score_of(verdicts: dict[str, Verdict], *, answer: str) -> Score:
    """One score of several judges' verdicts: its value holds a label by judge, NaN for what was not read."""
    explanation = "\n".join(f"{name}: {explained(verdict)}" for name, verdict in verdicts.items())
    metadata: dict[str, Any] = {
        name: {"tags": list(verdict.tags), "detail": json.loads(json.dumps(dict(verdict.detail)))}
        for name, verdict in verdicts.items()
    }
    labels: dict[str, str | float] = {
        name: math.nan if verdict.label == "unparsed" else verdict.label for name, verdict in verdicts.items()
    }
    if all(isinstance(label, float) for label in labels.values()):
        return Score.unscored(
            reason="grader_failed", answer=answer, explanation=explanation, metadata=metadata
        )
    return Score(value=labels, answer=answer, explanation=explanation, metadata=metadata)  # pyright: ignore


def explained(verdict: Verdict) -> str:
    """A verdict in a line: the label with its tags."""
    return f"{verdict.label} ({', '.join(verdict.tags)})" if verdict.tags else verdict.label


def _read(score: SampleScore) -> bool:
    value = score.score.value
    return not (value is None or (isinstance(value, float) and math.isnan(value)))


def _refused(scores: Sequence[SampleScore]) -> list[bool]:
    labels = [score.score.value for score in scores if _read(score)]
    for label in labels:
        if label not in ("refusal", "compliance", "degenerate"):
            raise MechsafetyError(
                f"a refusal metric got the value {label!r}: it reads the labels refusal, compliance and degenerate "
                "that refusal_judge gives"
            )
    return [label == "refusal" for label in labels]


def _cluster(score: SampleScore, key: str | None) -> object:
    if key is None:
        return score.sample_id
    value = (score.sample_metadata or {}).get(key)
    if value is None:
        raise MechsafetyError(
            f"sample {score.sample_id!r} has no {key!r} in its metadata: refusal_stderr(cluster={key!r}) needs it "
            "for every sample"
        )
    return value
