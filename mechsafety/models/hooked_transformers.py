"""A user's own ``HookedTransformer`` (transformer-lens 3.9; removed in 4.0): its passes, its cache, its answers.

It is brought ready made, with a tokenizer that has a chat template::

    model = HookedTransformer.from_pretrained_no_processing("gpt2", hf_model=hf, tokenizer=tokenizer)
    cache = ms.residual_stream(model, prompts.fit)

Functions that take a model take it as it is, compiled or not; regions, anatomy, suffix search and the fine-tuning
attack go by module and refuse it. ``from_pretrained`` folds the norms and centres the weights that write to the
residual stream: its logits are Hugging Face's up to a constant, but its residual streams, and so the directions in
them, are others than those of the unprocessed weights that :func:`load_model` gives wherever a LayerNorm is
folded: what writes to the stream is then centred. With RMS norms nothing is centred, and the residual streams of the
two are the same. No :class:`LoadRecord` is left on such a model; its fingerprint and
its name are of its own weights, so that directions of the raw model count as another model's for the processed one,
whichever the norm. Where their streams are the same, ``any_weights=true`` in an edit's expression and
``allow_other_weights`` carry them over.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.models.chat import TokenBatch
from mechsafety.models.finite import require_finite


@dataclass(frozen=True, kw_only=True)
class HookedPass:
    """What a pass gives, under the names that Hugging Face's output has."""

    logits: Float[Tensor, "row token vocabulary"] | None
    past_key_values: Any


def run(
    model: Any, batch: TokenBatch, *, logits: int | None, cache: Any = None, keep_cache: bool = False
) -> HookedPass:
    """Run ``batch`` (padded on the left) after what ``cache`` holds, which grows by it.

    ``keep_cache`` begins one where the model has any (:func:`has_cache`).

    ``logits`` last positions are unembedded; None stops before the unembedding.
    """
    with torch.inference_mode():
        if cache is None and keep_cache and has_cache(model):
            cache = empty_cache(model, len(batch.ids))
        # The mask is named: left to itself the model takes leading tokens for padding wherever they look like it.
        stream = model(
            batch.ids,
            attention_mask=batch.mask,
            past_kv_cache=cache,
            stop_at_layer=model.cfg.n_layers,
            prepend_bos=False,
        )
        if logits is None:
            return HookedPass(logits=None, past_key_values=cache)
        kept = stream[:, -logits:].contiguous() if logits else stream
        return HookedPass(logits=read_out(model, kept), past_key_values=cache)


def read_out(model: Any, stream: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row token vocabulary"]:
    """Logits of a residual stream behind the last block, by the model's own final norm and unembedding."""
    return model(stream, start_at_layer=model.cfg.n_layers, return_type="logits")


def empty_cache(model: Any, rows: int) -> Any:
    """A TransformerLens cache of keys and values that holds nothing yet."""
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, rows)


def has_cache(model: Any) -> bool:
    """Whether the model can keep keys: the class refuses a cache while its grouped heads are taken apart."""
    return not getattr(model.cfg, "ungroup_grouped_query_attention", False)


def cache_rows(cache: Any, index: Int[Tensor, " row"] | int) -> Any:
    """A cache for other rows: those named by ``index``, or so many copies of the only row."""

    def taken(stored: Tensor) -> Tensor:
        if isinstance(index, int):
            return stored.expand(index, *stored.shape[1:])
        return stored[index.to(stored.device)]

    # The model's cache grows by concatenation, so that views of the stored keys are never written to.
    chosen = copy.copy(cache)
    chosen.entries = [copy.copy(entry) for entry in cache.entries]
    for entry in chosen.entries:
        entry.past_keys, entry.past_values = taken(entry.past_keys), taken(entry.past_values)
    chosen.previous_attention_mask = taken(cache.previous_attention_mask)
    return chosen


Pick = Callable[[Float[Tensor, "row vocabulary"]], Int[Tensor, " row"]]


def answer(
    model: Any,
    batch: TokenBatch,
    *,
    max_new_tokens: int,
    pick: Pick,
    stops: Collection[int],
    pad: int,
    cached: bool,
) -> Int[Tensor, "row token"]:
    """New tokens, one per step, until every row has met a token of ``stops``; what follows one is ``pad``.

    ``pick`` chooses among float32 logits. ``cached=False`` runs the whole sequence at every step: slow, plain,
    and what the cached path is compared with.
    """
    endings = torch.tensor(sorted(stops), dtype=torch.long, device=batch.ids.device)
    finished = torch.zeros(len(batch.ids), dtype=torch.bool, device=batch.ids.device)
    given: list[Tensor] = []
    whole = part = batch
    cached = cached and has_cache(model)
    cache: Any = None
    while len(given) < max_new_tokens and not bool(finished.all()):
        made = run(model, part if cached else whole, logits=1, cache=cache, keep_cache=cached)
        assert made.logits is not None
        cache = made.past_key_values
        require_finite(model, made.logits[:, -1:], lambda whole=whole: run(model, whole, logits=1))
        token = torch.where(finished, pad, pick(made.logits[:, -1].float()).to(finished.device))
        finished = finished | torch.isin(token, endings)
        given.append(token)
        part = TokenBatch(rows=batch.rows, ids=token[:, None], mask=torch.ones_like(token)[:, None])
        whole = whole.followed_by(part)
    return torch.stack(given, dim=1)
