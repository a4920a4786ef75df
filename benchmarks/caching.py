"""Caching residual streams against a bare pass of the plain model that keeps nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.options import MODEL, Options
from benchmarks.sections import Check, Section, table
from benchmarks.timing import Turns, in_turns
from mechsafety.directions.activations import DEFAULT_BATCH, residual_stream
from mechsafety.models.chat import batches, device_of, tokenize_prompts
from mechsafety.models.forward import forward, run_prefix
from mechsafety.models.loading import generation_twin, load_model
from mechsafety.models.prefixes import shared_prefix
from mechsafety.prompts.prompt_set import Prompt, load_prompts

OURS, BARE, SHARED = (
    "residual_stream, all layers, last token",
    "plain module, blocks only, nothing read",
    "the same, shared prompt prefix run once",
)
_WANTED = 0.9


def many_prompts(n: int) -> list[Prompt]:
    """``n`` packaged prompts, evenly through the sets; repeated with a number after them where ``n`` is more."""
    held = [*load_prompts("default"), *load_prompts("contrast")]
    if n <= len(held):
        return [held[i * len(held) // n] for i in range(n)]
    return repeated(held, n)


def repeated(prompts: list[Prompt], n: int) -> list[Prompt]:
    """``n`` prompts from few: each round adds its number, so that no two are the same text."""
    rounds = [(p, i // len(prompts)) for i, p in ((i, prompts[i % len(prompts)]) for i in range(n))]
    return [dataclasses.replace(p, id=f"{p.id}-{k}", text=f"{p.text} ({k % 10})") for p, k in rounds]


def race(model: Any, prompts: list[Prompt], *, rounds: int) -> Turns:
    """Prompts per second; all from text, in the same length-sorted batches."""
    texts = [p.text for p in prompts]

    def ours() -> float:
        return len(residual_stream(model, prompts).ids)

    return in_turns({OURS: ours, BARE: bare(model, texts), SHARED: bare_shared(model, texts)}, rounds=rounds)


def bare(model: Any, texts: list[str]) -> Callable[[], float]:
    """Hugging Face's own way: mask and tokens in, blocks run, no unembedding, no cache, nothing read."""
    plain: Any = generation_twin(model)

    def job() -> float:
        for batch in batches(model, tokenize_prompts(model, texts), batch_size=DEFAULT_BATCH):
            with torch.inference_mode():
                plain.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        return len(texts)

    return job


def bare_shared(model: Any, texts: list[str]) -> Callable[[], float]:
    """The same with the tokens that all prompts begin with run once: what is left is the price of reading."""
    plain: Any = generation_twin(model)

    def job() -> float:
        sequences = tokenize_prompts(model, texts)
        shared = shared_prefix(sequences)
        before = run_prefix(plain, shared, device_of(model))
        for batch in batches(model, [s[len(shared) :] for s in sequences], batch_size=DEFAULT_BATCH):
            forward(plain, batch, logits=None, before=before)
        return len(texts)

    return job


def section(options: Options) -> Section:
    """Speed of ``residual_stream`` on the packaged model."""
    model = load_model(MODEL, device="cpu")
    prompts = many_prompts(options.size(500, 70))
    race(model, prompts[:DEFAULT_BATCH], rounds=1)  # warm
    turns = race(model, prompts, rounds=options.rounds)
    ratio, reading = turns.ratio(OURS, BARE), turns.ratio(OURS, SHARED)
    rows = [[name, f"{turns.rate(name):.0f}"] for name in turns.rates]
    return Section(
        name="caching",
        title="Caching residual streams",
        quick=options.quick,
        body="\n\n".join(
            [
                f"{len(prompts)} packaged prompts, {model.cfg.n_layers + 1} layers, from text to the finished cache; "
                f"batches of {DEFAULT_BATCH}, sorted by length, in all jobs.",
                table(["job", "prompts/s"], rows),
                f"Against the bare pass **{ratio}**; against a bare pass that shares the prefix as well {reading}: "
                "what reading, checking for NaN and keeping costs.",
            ]
        ),
        checks=(
            Check(
                what=f"caching {len(prompts)} prompts against a bare pass",
                wanted=f"{_WANTED}x or more",
                found=str(ratio),
                met=ratio.median >= _WANTED,
            ),
        ),
    )
