"""The sweep in the order of work of the released code of Arditi et al. 2024 (select_direction.py).

One candidate at a time, three passes each over batches of 32 prompts in the order given: KL and bypass with the
direction projected out at every block's input, attention output and MLP output, induce with the vector added at
one block's input. Every pass tokenises its prompts, pads them to the longest, runs the plain Hugging Face module
and unembeds every position. In its favour, only the last position is then turned into float64; the released
code turns all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.subjects import Subject
from mechsafety.models.chat import device_of, pad_left, pad_token, tokenize_prompts
from mechsafety.models.loading import generation_twin
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.sweeps.refusal_scores import kl_divergence, refusal_scores

if TYPE_CHECKING:
    import pandas as pd

BATCH = 32
Place = tuple[int, int]  # position, layer
Change = Callable[[Tensor], Tensor]


def released_order(subject: Subject, prompts: PromptSet, places: Sequence[Place]) -> pd.DataFrame:
    """Columns position, layer, bypass, induce, kl: means over the prompts, a row a place."""
    import pandas as pd

    model, vectors = subject.model, subject.directions.vectors
    plain: Any = generation_twin(model)
    blocks = list(plain.base_model.layers)
    outputs = [m for block in blocks for m in (block.self_attn, block.mlp)]
    harmful, harmless = ([p.text for p in some] for some in (prompts.harmful, prompts.harmless))
    ids = subject.tokens.ids

    def vector(place: Place) -> Float[Tensor, " d_model"]:
        position, layer = place
        return vectors[subject.directions.positions.index(position), layer].to(device_of(model))

    for texts in (harmful, harmless):
        refusal_scores(_last_logits(model, plain, texts), ids)
    base = _last_logits(model, plain, harmless)
    kl, bypass, induce = [], [], []
    for place in places:
        with _changed(inputs=blocks, outputs=outputs, change=_projecting(vector(place))):
            kl.append(float(kl_divergence(base, _last_logits(model, plain, harmless)).mean()))
    for place in places:
        with _changed(inputs=blocks, outputs=outputs, change=_projecting(vector(place))):
            bypass.append(float(refusal_scores(_last_logits(model, plain, harmful), ids).mean()))
    for place in places:
        with _changed(inputs=[blocks[place[1]]], outputs=[], change=_adding(vector(place))):
            induce.append(float(refusal_scores(_last_logits(model, plain, harmless), ids).mean()))
    columns = ["position", "layer"]
    return pd.DataFrame(places, columns=columns).assign(bypass=bypass, induce=induce, kl=kl)


def _last_logits(model: Any, plain: Any, texts: Sequence[str]) -> Float[Tensor, "prompt vocabulary"]:
    parts = []
    for start in range(0, len(texts), BATCH):
        sequences = tokenize_prompts(model, texts[start : start + BATCH])
        batch = pad_left(sequences, pad=pad_token(model)).to(device_of(model))
        with torch.inference_mode():
            logits = plain(input_ids=batch.ids, attention_mask=batch.mask).logits
            parts.append(logits[:, -1].double())
    return torch.cat(parts)


def _projecting(vector: Float[Tensor, " d_model"]) -> Change:
    # The released hooks normalise at every call, compute in the model's own dtype and write in place.
    def change(x: Tensor) -> Tensor:
        direction = (vector / (vector.norm() + 1e-8)).to(x)
        x -= (x @ direction).unsqueeze(-1) * direction
        return x

    return change


def _adding(vector: Float[Tensor, " d_model"]) -> Change:
    def change(x: Tensor) -> Tensor:
        x += vector.to(x)
        return x

    return change


@contextmanager
def _changed(*, inputs: Sequence[nn.Module], outputs: Sequence[nn.Module], change: Change) -> Iterator[None]:
    def before(_m: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(args[0]), *args[1:])

    def after(_m: nn.Module, _a: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    handles = [module.register_forward_pre_hook(before) for module in inputs]
    handles += [module.register_forward_hook(after) for module in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
