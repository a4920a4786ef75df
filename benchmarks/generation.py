"""Edited generation against plain Hugging Face ``generate``."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.options import MODEL, Options
from benchmarks.sections import Check, Section, table
from benchmarks.timing import in_turns
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import find_directions
from mechsafety.edits.interventions import Ablate
from mechsafety.generation.completions import generate
from mechsafety.models.chat import device_of, pad_left, pad_token, tokenize_prompts
from mechsafety.models.hooking import attach
from mechsafety.models.loading import generation_twin, load_model
from mechsafety.prompts.prompt_set import load_prompts

OURS, PLAIN, SLOW = (
    "mechsafety, edited, auto dtype, batch 50",
    "Hugging Face, unedited, same dtype, batch 50",
    "Hugging Face + hooks, float32, batch 8, prompt order",
)
_WANTED, _WANTED_SLOW = 1.0, 2.0


def hugging_face(model: Any, texts: list[str], *, batch_size: int, new_tokens: int, **more: Any) -> int:
    """Plain ``generate`` of the plain module in prompt order; the number of tokens made."""
    plain: Any = generation_twin(model)
    assert plain is not None
    sequences = tokenize_prompts(model, texts)
    made = 0
    for start in range(0, len(sequences), batch_size):
        batch = pad_left(sequences[start : start + batch_size], pad=pad_token(model)).to(device_of(model))
        with torch.inference_mode():
            out = plain.generate(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=pad_token(model),
                **more,
            )
        new = out[:, batch.ids.shape[1] :]
        made += int((new != pad_token(model)).sum())
    return made


def edited_hugging_face(
    model: Any, edit: Ablate, texts: list[str], *, batch_size: int, new_tokens: int
) -> int:
    """The same with the edit's hooks on the plain module."""
    targets = edit.targets(model.cfg.n_layers)
    with attach(model, targets, positions="all", prompt_length=None, twin=generation_twin(model)):
        return hugging_face(model, texts, batch_size=batch_size, new_tokens=new_tokens)


def section(options: Options) -> Section:
    """Tokens per second of edited generation and of its baselines, on the report split."""
    prompts = load_prompts("default")
    half = max(1, options.prompts // 2)
    report = [*prompts.report.harmful[:half], *prompts.report.harmless[:half]]
    texts = [p.text for p in report]
    fast, slow = load_model(MODEL, device="cpu"), load_model(MODEL, dtype="float32", device="cpu")
    found = find_directions(residual_stream(fast, prompts.fit.sample(32, seed=0)), seed=0, resamples=1)
    edit = Ablate(found.at(layer=20))
    n = options.new_tokens

    def ours() -> int:
        done = generate(fast, report, edit=edit, max_new_tokens=n, seed=0, batch_size=50)
        return sum(c.n_tokens for c in done)

    turns = in_turns(
        {
            OURS: ours,
            PLAIN: lambda: hugging_face(fast, texts, batch_size=50, new_tokens=n),
            SLOW: lambda: edited_hugging_face(slow, edit, texts, batch_size=8, new_tokens=n),
        },
        rounds=options.rounds,
    )
    plain, float32 = turns.ratio(OURS, PLAIN), turns.ratio(OURS, SLOW)
    return Section(
        name="generation",
        title=f"Generation on {MODEL}",
        quick=options.quick,
        body="\n\n".join(
            [
                f"{len(report)} report prompts, {n} new tokens, one direction projected out everywhere, end to end.",
                table(["job", "tokens/s"], [[name, f"{turns.rate(name):.0f}"] for name in turns.rates]),
            ]
        ),
        checks=(
            Check(
                what="edited generation against unedited Hugging Face `generate`, same dtype and batch",
                wanted=f"{_WANTED:.1f}x or more",
                found=str(plain),
                met=plain.median >= _WANTED,
            ),
            Check(
                what="edited generation against the same job in float32 at batch 8 in prompt order",
                wanted=f"{_WANTED_SLOW:.0f}x or more",
                found=str(float32),
                met=float32.median >= _WANTED_SLOW,
            ),
        ),
    )
