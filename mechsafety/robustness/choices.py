"""Accuracy on multiple-choice questions, by the likelihood of each choice after its question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.edits.interventions import Edit
from mechsafety.generation.bodies import body_under
from mechsafety.generation.scoring import Asked, continuation_logits
from mechsafety.models.chat import TokenBatch, batches, pad_token, tokenize_prompts
from mechsafety.robustness.benign import Choice
from mechsafety.statistics.rates import Interval, wilson

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BATCH = 64


def accuracy(model: TransformerBridge, choices: Sequence[Choice], *, edit: Edit | None = None) -> Interval:
    """Share of questions whose right choice has the largest log-likelihood per byte, as lm-eval's ``acc_norm``.

    A question is bare text and each choice its continuation after a space. A tie is no right answer, nor is a
    score that is not a number, which a broken model gives.
    """
    right = 0
    for item, found in zip(choices, choice_log_probs(model, choices, edit=edit), strict=True):
        scores = [score / len(choice.encode()) for score, choice in zip(found, item.choices, strict=True)]
        own = scores.pop(item.answer)
        right += not math.isnan(own) and all(math.isnan(other) or other < own for other in scores)
    return wilson(right, len(choices))


def choice_log_probs(
    model: TransformerBridge, choices: Sequence[Choice], *, edit: Edit | None = None
) -> list[list[float]]:
    """For each question the log-probability of each of its choices, summed over tokens, in nats.

    A question runs once for all its choices. Raises :class:`MechsafetyError` where a choice adds no token to its
    question.
    """
    encoded = [_encoded(model, item) for item in choices]
    out: dict[int, list[float]] = {}
    with (
        torch.inference_mode(),
        body_under(model, edit) as body,
        bar("questions", total=len(choices), unit="question") as progress,
    ):
        # A batch asks each of its questions equally often.
        for count in sorted({len(item.choices) for item in choices}):
            members = [i for i, item in enumerate(choices) if len(item.choices) == count]
            for batch in batches(model, [encoded[i][0] for i in members], batch_size=BATCH):
                rows = [members[row] for row in batch.rows]
                asked = [(place, option) for place, i in enumerate(rows) for option in encoded[i][1]]
                scores = _scores(body, batch, asked, pad=pad_token(model))
                for place, i in enumerate(rows):
                    out[i] = scores[place * count : (place + 1) * count]
                progress.update(len(rows))
    return [out[i] for i in range(len(choices))]


def _encoded(model: TransformerBridge, item: Choice) -> tuple[list[int], list[list[int]]]:
    wholes = [f"{item.question} {choice}" for choice in item.choices]
    context, *rows = tokenize_prompts(model, [item.question, *wholes], rendering="text")
    options = [row[len(context) :] for row in rows]
    if not all(options):
        raise MechsafetyError(f"question {item.id!r}: a choice adds no token to the question")
    return context, options


def _scores(body: Any, batch: TokenBatch, asked: Sequence[Asked], *, pad: int) -> list[float]:
    scores = [math.nan] * len(asked)
    for number, logits in continuation_logits(body, batch, asked, pad=pad, batch_size=len(batch.rows)):
        target = torch.tensor(asked[number][1], device=logits.device)[:, None]
        scores[number] = float(torch.log_softmax(logits.float(), dim=-1).gather(-1, target).sum())
    return scores
