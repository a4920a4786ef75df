"""The sweep as the reference project does it: one candidate, one prompt, full logits at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from mechsafety.models.chat import tokenize_prompts


def _hooked(module: Any, replace: Callable[[Tensor], Tensor], *, before: bool) -> Any:
    if before:
        return module.register_forward_pre_hook(lambda m, args: (replace(args[0]), *args[1:]))

    def after(m: Any, args: Any, out: Any) -> Any:
        return (replace(out[0]), *out[1:]) if isinstance(out, tuple) else replace(out)

    return module.register_forward_hook(after)


def refusal_score(logits: Tensor, tokens: tuple[int, ...]) -> float:
    p = sum(math.exp(float(torch.log_softmax(logits.double(), -1)[t])) for t in tokens)
    return math.log(p + 1e-8) - math.log(1 - p + 1e-8)


def kl(base: Tensor, other: Tensor) -> float:
    p, q = torch.softmax(base.double(), -1), torch.softmax(other.double(), -1)
    return float(
        sum(
            a * (math.log(a + 1e-6) - math.log(b + 1e-6)) for a, b in zip(p.tolist(), q.tolist(), strict=True)
        )
    )


def plain_llama_scores(
    model: Any,
    harmful: list[str],
    harmless: list[str],
    vector: Tensor,
    layer: int,
    tokens: tuple[int, ...],
    covector: Tensor | None = None,
) -> dict[str, float]:
    """bypass, induce and KL of one candidate on a Hugging Face Llama, by hooks written out by hand.

    ``covector`` reads what is removed along ``vector`` (an oblique projection).
    """
    plain = model.__dict__["_mechsafety_twin"]
    unit = vector / vector.norm()

    def last(text: str) -> Tensor:
        with torch.inference_mode():
            return plain(input_ids=torch.tensor([tokenize_prompts(model, [text])[0]])).logits[0, -1]

    def remove(x: Tensor) -> Tensor:
        if covector is not None:
            return x - (x @ covector)[..., None] * vector / (covector @ vector)
        return x - (x @ unit)[..., None] * unit

    def add(x: Tensor) -> Tensor:
        return x + vector

    base = [last(text) for text in harmless]
    with ExitStack() as stack:
        for block in plain.model.layers:
            for module, before in ((block, True), (block.self_attn, False), (block.mlp, False)):
                stack.callback(_hooked(module, remove, before=before).remove)
        bypass = [refusal_score(last(text), tokens) for text in harmful]
        divergence = [kl(b, last(text)) for b, text in zip(base, harmless, strict=True)]
    with ExitStack() as stack:
        stack.callback(_hooked(plain.model.layers[layer], add, before=True).remove)
        induce = [refusal_score(last(text), tokens) for text in harmless]
    return {
        "bypass": sum(bypass) / len(bypass),
        "induce": sum(induce) / len(induce),
        "kl": sum(divergence) / len(divergence),
    }
