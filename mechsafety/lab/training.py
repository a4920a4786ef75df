"""Pretraining and safety tuning of the lab's models: plain loops, the same seed giving the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPTNeoXForCausalLM

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.generation.answers import AnswerBatch, answer_logits, answer_loss
from mechsafety.lab.mixtures import Pairs, Rung, Tuning, answer_batch, pretraining_pairs, tuning_pairs
from mechsafety.lab.networks import copied, save_network
from mechsafety.lab.vocabulary import Vocabulary
from mechsafety.tuning.objectives import answer_log_likelihoods, dpo_loss, unlearning_loss

PROMPT_WEIGHT = 1.0
"""What a token of the prompt counts in pretraining: the grammar that it teaches is how unsafe texts are recognised."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """AdamW with a linear warm-up over ``warmup`` steps and a cosine to 0, gradients clipped to norm 1."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 20
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or not self.learning_rate > 0:
            raise MechsafetyError(f"{self}: steps and batch_size must be 1 at least, the rate above 0")

    def factor(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """What the safety tunings share: a fifth of unsafe inputs; ``beta`` of DPO; the share of what is unlearned.

    DPO adds ``preferred_weight`` times the cross-entropy of the preferred answers (Pang et al. 2024, arXiv 2404.19733).
    Without it the model forgets how to answer: refusals are a token that pretraining never wrote, and a pair's margin
    grows as well by making both answers less likely.
    """

    unsafe_share: float = 0.2
    beta: float = 0.1
    preferred_weight: float = 1.0
    unlearning_weight: float = 0.1


Loss = Callable[[GPTNeoXForCausalLM, int], torch.Tensor]


def pretrain(
    model: GPTNeoXForCausalLM,
    vocabulary: Vocabulary,
    *,
    rung: Rung,
    schedule: Schedule,
    seed: int,
    checkpoints: Path | None = None,
    every: int | None = None,
) -> tuple[float, ...]:
    """Train ``model`` in place on a rung's stream; the losses of every step, in nats per token.

    With ``checkpoints`` the model is saved there as ``step-NNNNNN`` before the first step, after every ``every`` steps
    and at the end.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = vocabulary.rules.size.grammar.length

    def loss(network: GPTNeoXForCausalLM, _step: int) -> torch.Tensor:
        length = int(torch.randint(lengths[0], lengths[1] + 1, (), generator=generator))
        prompts, answers = pretraining_pairs(
            vocabulary, rung, schedule.batch_size, length=length, generator=generator
        )
        batch = answer_batch(prompts, answers, prompt_weight=PROMPT_WEIGHT).to(network.device)
        return answer_loss(answer_logits(network, batch), batch)

    def save(step: int) -> None:
        if checkpoints is not None and (step in (0, schedule.steps) or (every and step % every == 0)):
            save_network(model, vocabulary, checkpoints / f"step-{step:06d}")

    return _descend(model, loss, schedule, label=f"pretraining {rung}", after=save)


def tune_network(
    model: GPTNeoXForCausalLM,
    vocabulary: Vocabulary,
    *,
    tuning: Tuning,
    schedule: Schedule,
    settings: TuningSettings,
    seed: int,
) -> tuple[float, ...]:
    """Tune ``model`` in place by one objective; the losses of every step."""
    generator = torch.Generator().manual_seed(seed)
    lengths = vocabulary.rules.size.grammar.length
    reference = copied(model).requires_grad_(False) if tuning == "dpo" else None

    def loss(network: GPTNeoXForCausalLM, _step: int) -> torch.Tensor:
        length = int(torch.randint(lengths[0], lengths[1] + 1, (), generator=generator))
        pairs = tuning_pairs(
            vocabulary,
            tuning,
            schedule.batch_size,
            unsafe_share=settings.unsafe_share,
            length=length,
            generator=generator,
        )
        preferred = answer_batch(pairs.prompts, pairs.preferred).to(network.device)
        logits = answer_logits(network, preferred)
        wanted = answer_loss(logits, preferred)
        if reference is not None:
            margin = _dpo(network, reference, preferred, logits, pairs, beta=settings.beta)
            return margin + settings.preferred_weight * wanted
        if tuning != "unlearn":
            return wanted
        rows = pairs.unsafe
        unwanted = answer_batch(pairs.prompts[rows], pairs.dispreferred[rows]).to(network.device)
        away = answer_loss(answer_logits(network, unwanted), unwanted)
        return unlearning_loss(wanted, away, weight=settings.unlearning_weight)

    return _descend(model, loss, schedule, label=f"tuning {tuning}")


def _dpo(
    network: GPTNeoXForCausalLM,
    reference: GPTNeoXForCausalLM,
    preferred: AnswerBatch,
    logits: torch.Tensor,
    pairs: Pairs,
    *,
    beta: float,
) -> torch.Tensor:
    """DPO of the pairs; ``logits`` are the network's of the preferred answers."""
    dispreferred = answer_batch(pairs.prompts, pairs.dispreferred).to(network.device)
    with torch.no_grad():
        before = [
            answer_log_likelihoods(answer_logits(reference, batch), batch)
            for batch in (preferred, dispreferred)
        ]
    return dpo_loss(
        preferred=answer_log_likelihoods(logits, preferred),
        dispreferred=answer_log_likelihoods(answer_logits(network, dispreferred), dispreferred),
        reference_preferred=before[0],
        reference_dispreferred=before[1],
        beta=beta,
    )


def _descend(
    model: GPTNeoXForCausalLM,
    loss: Loss,
    schedule: Schedule,
    *,
    label: str,
    after: Callable[[int], None] = lambda _: None,
) -> tuple[float, ...]:
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=schedule.weight_decay
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule.factor)
    model.requires_grad_(True).train()
    losses: list[float] = []
    after(0)
    with bar(label, total=schedule.steps, unit="step") as progress:
        for step in range(schedule.steps):
            value = loss(model, step)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            rate.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                raise MechsafetyError(
                    f"{label}: the loss is {losses[-1]} at step {step + 1}; lower the learning rate"
                )
            progress.set_postfix(loss=f"{losses[-1]:.3f}")
            progress.update(1)
            after(step + 1)
    model.requires_grad_(False).eval()
    return tuple(losses)
