"""One forward pass, of whichever kind of hooked model: no more logits than are read, shared tokens once.

The *body* of a model is what is called: the Hugging Face module inside a ``TransformerBridge`` (or its plain
twin), or a ``HookedTransformer`` itself.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.models import body_of, is_hooked_transformer
from mechsafety.tokens import TokenBatch, batches, device_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_LEAST_PREFIX = 8  # shorter ones are not worth a cache


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Tokens that have been run already: their keys and values (one row, or a row a candidate)."""

    n_tokens: int
    cache: Any

    def rows(self, index: Int[Tensor, " row"] | int) -> Any:
        """The cache for a batch: the rows named by ``index``, or so many copies of the only row."""
        return _cache_rows(self.cache, index)


NOTHING = Prefix(n_tokens=0, cache=None)


def forward(
    body: Any,
    batch: TokenBatch,
    *,
    logits: int | None,
    before: Prefix = NOTHING,
    rows: Int[Tensor, " row"] | int | None = None,
    keep_cache: bool = False,
) -> Any:
    """Run ``body`` on ``batch`` (padded on the left) as the continuation of ``before``.

    ``logits`` last positions are unembedded; None stops before the unembedding. ``rows`` names the row of
    ``before`` that each row of the batch continues (default: its only one). Returns an object with ``logits``
    and ``past_key_values`` as far as asked for. Position ids count real tokens only.
    """
    if is_hooked_transformer(body):
        return _forward_hooked_transformer(body, batch, logits=logits, before=before)
    cache = before.rows(len(batch.ids) if rows is None else rows) if before.cache is not None else None
    accepts = _accepted(body)
    arguments: dict[str, Any] = {
        "input_ids": batch.ids,
        "attention_mask": mask_after(batch, before.n_tokens),
        "use_cache": keep_cache or cache is not None,
    }
    if cache is not None:
        arguments["past_key_values"] = cache
    if "position_ids" in accepts:
        arguments["position_ids"] = batch.positions + before.n_tokens
    if logits is not None and "logits_to_keep" in accepts:
        arguments["logits_to_keep"] = logits
    with torch.inference_mode():
        return (body.base_model if logits is None else body)(**arguments)


def _accepted(body: Any) -> frozenset[str]:
    return frozenset(inspect.signature(body.forward).parameters)


def _forward_hooked_transformer(
    model: Any, batch: TokenBatch, *, logits: int | None, before: Prefix
) -> SimpleNamespace:
    if before.cache is not None:
        raise ValueError("a HookedTransformer runs whole prompts: it shares no prefix")
    with torch.inference_mode():
        stream = model(
            batch.ids, attention_mask=batch.mask, stop_at_layer=model.cfg.n_layers, prepend_bos=False
        )
        if logits is None:
            return SimpleNamespace(logits=None, past_key_values=None)
        kept = stream[:, -logits:].contiguous() if logits else stream
        if model.cfg.normalization_type is not None:
            kept = model.ln_final(kept)
        out = model.unembed(kept)
        cap = float(model.cfg.output_logits_soft_cap)
        return SimpleNamespace(logits=cap * torch.tanh(out / cap) if cap > 0 else out, past_key_values=None)


def run_blocks(model: TransformerBridge, batch: TokenBatch) -> None:
    """Run every block, so that the hooks fire, without unembedding anything."""
    forward(body_of(model), batch, logits=None)


def last_logits(model: TransformerBridge, batch: TokenBatch) -> Float[Tensor, "row vocabulary"]:
    """Float32 logits at each row's last token. ``batch`` is padded on the left."""
    return forward(body_of(model), batch, logits=1).logits[:, -1, :].float()


def all_last_logits(
    model: TransformerBridge, body: Any, sequences: Sequence[Sequence[int]], *, batch_size: int
) -> Float[Tensor, "sequence vocabulary"]:
    """Last-token logits of many sequences on ``body``, in float32 on the CPU.

    The tokens that all sequences begin with (the template's system prompt) run once.
    """
    shared = shared_prefix(sequences) if shares_prefixes(body) else []
    before = run_prefix(body, shared, device_of(model))
    rests = [list(s[len(shared) :]) for s in sequences]
    parts: list[tuple[TokenBatch, Tensor]] = []
    for batch in batches(model, rests, batch_size=batch_size):
        logits = forward(body, batch, logits=1, before=before).logits
        parts.append((batch, logits[:, -1].float().cpu()))
    out = torch.empty(len(sequences), parts[0][1].shape[-1])
    for batch, logits in parts:
        out[list(batch.rows)] = logits
    return out


def shares_prefixes(body: Any) -> bool:
    """Whether ``body`` can go on from stored keys and values of tokens that all prompts share."""
    return not is_hooked_transformer(body)


def shared_prefix(sequences: Sequence[Sequence[int]], *, leave: int = 1) -> list[int]:
    """The first tokens that all sequences share, at least ``leave`` being left for each; empty when short."""
    ordered = sorted(list(s) for s in sequences)
    first, last = ordered[0], ordered[-1]
    most = min(len(s) for s in ordered) - leave
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), most)
    n = min(n, most)
    return first[:n] if n >= _LEAST_PREFIX else []


def run_prefix(body: Any, tokens: Sequence[int], device: torch.device, *, rows: int = 1) -> Prefix:
    """Keys and values of ``tokens``, in ``rows`` equal rows (which edits may then treat differently)."""
    if not tokens:
        return NOTHING
    ids = torch.tensor([list(tokens)] * rows, device=device)
    with torch.inference_mode():
        cache = body.base_model(input_ids=ids, use_cache=True).past_key_values
    return Prefix(n_tokens=len(tokens), cache=cache)


def mask_after(batch: TokenBatch, n_prefix: int) -> Int[Tensor, "row token"]:
    """The batch's attention mask with ``n_prefix`` real tokens before it."""
    if not n_prefix:
        return batch.mask
    ones = torch.ones((len(batch.ids), n_prefix), dtype=torch.long, device=batch.ids.device)
    return torch.cat([ones, batch.mask], dim=1)


def _cache_rows(cache: Any, index: Tensor | int) -> Any:
    from transformers.cache_utils import DynamicLayer

    if not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        # State that is written in place (convolutions, recurrences) must be copied whole.
        copied = copy.deepcopy(cache)
        if isinstance(index, int):
            copied.batch_repeat_interleave(index)
        else:
            copied.batch_select_indices(index)
        return copied
    # A dynamic layer grows by concatenation, so that views of the stored keys are never written to.
    taken = copy.copy(cache)
    taken.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in taken.layers:
        if not layer.is_initialized:
            continue
        for name in ("keys", "values"):
            stored = getattr(layer, name)
            wanted = stored.expand(index, -1, -1, -1) if isinstance(index, int) else stored[index]
            setattr(layer, name, wanted)
    return taken
