"""Prompt and answer pairs as token batches, and the cross-entropy of the answers alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechsafety.models.chat import Asked, tokenize_answer, tokenize_prompts, without_prefix
from mechsafety.models.handles import attached
from mechsafety.models.turn_ends import end_of_turn

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, kw_only=True)
class Example:
    """One pair; ``whole`` means that the answer ends its turn (it was not cut)."""

    prompt: Asked
    answer: str
    whole: bool


Encoded = tuple[list[int], list[int]]
"""The token ids of a prompt, in the chat template, and those of its answer."""


def encode(model: TransformerBridge, examples: Sequence[Example]) -> list[Encoded]:
    """Prompt ids and answer ids; a whole answer ends with the model's :func:`end_of_turn`.

    An answer prefix is among the prompt's.
    """
    end = end_of_turn(model)
    prompts = tokenize_prompts(model, [e.prompt for e in examples])
    return [
        (prompt, tokenize_answer(model, without_prefix(model, e.answer)) + ([end] if e.whole else []))
        for prompt, e in zip(prompts, examples, strict=True)
    ]


def shuffled(
    encoded: Sequence[Encoded], *, epochs: int, batch_size: int, seed: int
) -> Iterator[list[Encoded]]:
    """Batches of ``epochs`` passes, each in an order of its own."""
    generator = random.Random(seed)
    for _ in range(epochs):
        order = generator.sample(range(len(encoded)), len(encoded))
        for start in range(0, len(order), batch_size):
            yield [encoded[i] for i in order[start : start + batch_size]]


@dataclass(frozen=True, kw_only=True)
class AnswerBatch:
    """Right-padded ids, mask and labels, and the weight of each label: 0 outside the answers.

    ``weights[r, t]`` belongs to the token at column t, which is predicted from column t - 1.
    """

    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]
    labels: Int[Tensor, "row token"]
    weights: Float[Tensor, "row token"]

    def to(self, device: torch.device) -> AnswerBatch:
        return AnswerBatch(
            ids=self.ids.to(device),
            mask=self.mask.to(device),
            labels=self.labels.to(device),
            weights=self.weights.to(device),
        )


def collate(
    batch: Sequence[Encoded], *, pad: int, opening_tokens: int = 0, opening_weight: float = 1.0
) -> AnswerBatch:
    """One batch; the first ``opening_tokens`` of every answer weigh ``opening_weight``, the others 1."""
    width = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids = torch.full((len(batch), width), pad)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    labels = torch.zeros((len(batch), width), dtype=torch.long)
    weights = torch.zeros((len(batch), width), dtype=torch.float32)
    for row, (prompt, answer) in enumerate(batch):
        start, end = len(prompt), len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        mask[row, :end] = 1
        labels[row, start:end] = torch.tensor(answer)
        weights[row, start:end] = 1.0
        weights[row, start : min(end, start + opening_tokens)] = opening_weight
    return AnswerBatch(ids=ids, mask=mask, labels=labels, weights=weights)


def answer_logits(
    module: Any, batch: AnswerBatch, *, cache: Any = None, n_cached: int = 0
) -> Float[Tensor, "answer_token vocabulary"]:
    """Logits that predict the answers' tokens, row by row; nothing else is unembedded.

    ``module`` is a Hugging Face causal model, or a peft model around one. Its own forward unembeds, so that what some
    models do to their logits (a scale, a cap, a bias) is done. ``cache`` holds the keys and values of ``n_cached``
    tokens that stand before every row.
    """
    model = module.get_base_model() if hasattr(module, "get_base_model") else module
    kept = batch.weights[:, 1:] > 0
    earlier = batch.mask.new_ones((len(batch.mask), n_cached))
    given: dict[str, Any] = {
        "input_ids": batch.ids,
        "attention_mask": torch.cat([earlier, batch.mask], dim=1),
        "use_cache": cache is not None,
    }
    if cache is not None:
        given["past_key_values"] = cache
    with _unembedding_only(model, kept):
        logits = model(**given).logits
    # An unembedding that is no module of its own has seen every position.
    return logits[0] if logits.shape[:2] == (1, int(kept.sum())) else logits[:, :-1][kept]


@contextmanager
def _unembedding_only(model: Any, kept: Bool[Tensor, "row token"]) -> Iterator[None]:
    """Hand the unembedding the positions of ``kept`` alone, as one row: those of all rows are many more."""
    head = model.get_output_embeddings()
    if head is None:
        yield
        return

    def keep(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs[0][:, :-1][kept.to(inputs[0].device)][None], *inputs[1:]

    handle = head.register_forward_pre_hook(keep)
    with attached([handle]):
        yield


def answer_loss(logits: Float[Tensor, "answer_token vocabulary"], batch: AnswerBatch) -> Float[Tensor, ""]:
    """Weighted mean cross-entropy of the answers' tokens, each predicted from the position before it."""
    kept = batch.weights[:, 1:] > 0
    loss = torch.nn.functional.cross_entropy(logits.float(), batch.labels[:, 1:][kept], reduction="none")
    weight = batch.weights[:, 1:][kept]
    return (loss * weight).sum() / weight.sum()
