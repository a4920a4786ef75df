"""What a study costs on GPUs, from arithmetic alone: tokens read and written, weights, keys and values.

Reading takes 2 x parameters operations a token; writing reads, at each token of a batch, all weights and the batch's
keys and values, or takes the operations or the launches of its kernels where these take longer. Each at a stated share
of the GPU's peak. Everything here is an estimate; every answer is counted at its full length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mechsafety.edits.recipes import Recipe
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.models.facts import ModelFacts
from mechsafety.models.placing import gpus_needed, value_bytes
from mechsafety.sweeps.openings import ANSWER_TOKENS
from mechsafety.sweeps.ranking import first_late_layer

TEMPLATE_POSITIONS = 5
"""Tokens after the instruction at which directions compete: 4 to 7 in the templates of the paper's systems."""
LAUNCH_MS = 0.8
"""Of one block at one token, whatever the batch: kernels are launched from Python. Assumed, not measured."""
QUESTION_TOKENS = 300.0
"""A judge's question about one answer, or a model's about its own, with as much of the answer as is shown."""
_REPLY_TOKENS = 32
_OWN_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What one GPU has, and the share of its peak that is reached. The numbers are an A100's with 80 GB."""

    memory_gb: float = 80.0
    tflops: float = 312.0
    bandwidth_tb: float = 2.0
    share: float = 0.3

    def seconds_of(self, *, operations: float) -> float:
        return operations / (self.tflops * 1e12 * self.share)

    def seconds_to_read(self, n_bytes: float) -> float:
        return n_bytes / (self.bandwidth_tb * 1e12 * self.share)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """``rows`` answers of ``new`` tokens each to prompts of ``prompt`` tokens."""

    rows: int
    prompt: float
    new: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """Tokens that are read, and answers that are written."""

    read: float = 0.0
    written: tuple[Answers, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many prompts a study has, and the mean tokens of one in its chat template."""

    harmful: int
    harmless: int
    fit: int
    validation_harmful: int
    validation_harmless: int
    prompt_tokens: float

    @property
    def report(self) -> int:
        return self.harmful + self.harmless


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a system's weights, of its keys and values in one batch, and of judges that stay loaded beside it."""

    weights: float
    cache: float
    judges: float = 0.0

    def devices(self, gpu: Gpu) -> int:
        total = self.weights + self.cache + self.judges
        return gpus_needed(0, dtype="auto", memory_gb=gpu.memory_gb, beside=total)


def memory(
    facts: ModelFacts, sizes: Sizes, config: StudyConfig, *, dtype: str, judges: float = 0.0
) -> Memory:
    """What a system takes while a batch of answers of full length is written."""
    rows = min(config.batch_size, max(sizes.report, config.controls * sizes.harmful))
    tokens = rows * (sizes.prompt_tokens + config.max_new_tokens + _thought(config))
    size = value_bytes(dtype)
    return Memory(weights=facts.n_parameters * size, cache=tokens * facts.cache_values * size, judges=judges)


def seconds(work: Work, facts: ModelFacts, gpu: Gpu, *, batch: int, dtype: str) -> float:
    """How long a model takes for ``work``; parts of it that lie on several GPUs take turns."""
    read = work.read + sum(a.rows * a.prompt for a in work.written)
    reading = gpu.seconds_of(operations=2 * facts.n_parameters * read)
    return reading + sum(_writing(a, facts, gpu, batch=batch, dtype=dtype) for a in work.written)


def _writing(answers: Answers, facts: ModelFacts, gpu: Gpu, *, batch: int, dtype: str) -> float:
    """Seconds of writing: each step reads weights and half of the final keys on average, or computes, if longer."""
    if not answers.rows:
        return 0.0
    size, n_batches = value_bytes(dtype), math.ceil(answers.rows / batch)
    rows = answers.rows / n_batches
    kept = rows * (answers.prompt + answers.new / 2) * facts.cache_values
    moved = gpu.seconds_to_read((facts.n_parameters + kept) * size)
    computed = gpu.seconds_of(operations=2 * facts.n_parameters * rows)
    launched = facts.n_layers * LAUNCH_MS / 1e3
    return n_batches * answers.new * max(moved, computed, launched)


# -- the stages of a study ------------------------------------------------------------------------------


def stages(config: StudyConfig, recipe: Recipe, sizes: Sizes, *, n_layers: int) -> dict[str, Work]:
    """What one system does in each stage, its judges left out."""
    return {
        "directions": _directions(recipe, sizes),
        "sweep": _sweep(config, recipe, sizes, n_layers=n_layers),
        "confirmation": _confirmation(config, recipe, sizes, n_layers=n_layers),
        "original": _generation(config, sizes, rows=sizes.report),
        "edited": _generation(config, sizes, rows=sizes.report),
        "random": _generation(config, sizes, rows=config.controls * sizes.harmful),
        "self-judgement": _self_judgement(config, sizes),
    }


def _thought(config: StudyConfig) -> int:
    """Tokens of the longest thought before an answer, as if every system that is left thinking took them all."""
    return config.chat.max_thought_tokens if config.chat.thinking == "model" else 0


def _validation(sizes: Sizes) -> int:
    return sizes.validation_harmful + sizes.validation_harmless


def _directions(recipe: Recipe, sizes: Sizes) -> Work:
    """The fit prompts' residual stream, and before it their scores where behaviour counts."""
    passes = 2 if recipe.fit_on == "behaviour" else 1
    return Work(read=passes * sizes.fit * sizes.prompt_tokens)


def _sweep(config: StudyConfig, recipe: Recipe, sizes: Sizes, *, n_layers: int) -> Work:
    """Own refusals, unedited passes, and three passes a candidate: bypass, KL, induce. Racing takes less."""
    candidates = _candidates(config, recipe, n_layers=n_layers)
    passes = 2 * _validation(sizes) + candidates * (sizes.validation_harmful + 2 * sizes.validation_harmless)
    new = ANSWER_TOKENS + _thought(config)
    own = Answers(rows=sizes.validation_harmful, prompt=sizes.prompt_tokens, new=new)
    return Work(read=passes * sizes.prompt_tokens, written=(own,))


def _candidates(config: StudyConfig, recipe: Recipe, *, n_layers: int) -> int:
    if recipe.layer_of(n_layers) is not None:
        return 1
    positions = TEMPLATE_POSITIONS if recipe.positions == "post_instruction" else 1
    racing = config.search == "race" and (config.selection or recipe.rule) == "auto"
    return positions * (first_late_layer(n_layers) if racing else n_layers + 1)


def _confirmation(config: StudyConfig, recipe: Recipe, sizes: Sizes, *, n_layers: int) -> Work:
    """Harmful validation prompts answered under each candidate, and the likelihood of own harmless answers."""
    rule = config.selection or recipe.rule
    if not config.confirm or rule != "auto" or recipe.layer_of(n_layers) is not None:
        return Work()
    thought, prompt = _thought(config), sizes.prompt_tokens
    own = Answers(rows=sizes.validation_harmless, prompt=prompt, new=_OWN_TOKENS + thought)
    rows = config.confirm * sizes.validation_harmful
    answers = Answers(rows=rows, prompt=prompt, new=config.max_new_tokens + thought)
    scored = config.confirm * sizes.validation_harmless * (prompt + thought + _OWN_TOKENS)
    return Work(read=scored, written=(own, answers))


def _generation(config: StudyConfig, sizes: Sizes, *, rows: int) -> Work:
    """Answers, and their likelihood under the unedited model."""
    new = config.max_new_tokens + _thought(config)
    read = rows * (sizes.prompt_tokens + new) if config.nll else 0.0
    return Work(read=read, written=(Answers(rows=rows, prompt=sizes.prompt_tokens, new=new),))


def _self_judgement(config: StudyConfig, sizes: Sizes) -> Work:
    """Of both arms, each answer after its prompt and after another one."""
    return Work(read=4 * sizes.report * QUESTION_TOKENS if config.selfjudge else 0.0)


def judging(kind: str, config: StudyConfig, sizes: Sizes, *, primary: bool) -> Work:
    """What a judge that is a model reads and writes on the answers of one system."""
    rows = 2 * sizes.report + (config.controls * sizes.harmful if primary else 0)
    if kind == "logit":  # the labels in both orders
        return Work(read=2 * rows * QUESTION_TOKENS)
    question = QUESTION_TOKENS + min(config.max_new_tokens, 1000)
    return Work(written=(Answers(rows=rows, prompt=question, new=_REPLY_TOKENS),))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one system: memory, GPUs held, and GPU hours by stage."""

    memory: Memory
    devices: int
    hours: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return float(sum(self.hours.values()))
