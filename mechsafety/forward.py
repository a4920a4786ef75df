"""One forward pass, of whichever kind of hooked model: no more logits than are read, shared tokens once.

The *body* of a model is what is called: the Hugging Face module inside a ``TransformerBridge`` (or its plain
twin), or a ``HookedTransformer`` itself. Both go on from stored keys and values.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety import hooked_transformers
from mechsafety.models import body_of, is_hooked_transformer
from mechsafety.tokens import TokenBatch, batches, device_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_LEAST_PREFIX = 8  # shorter ones are not worth a cache


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Tokens that have been run already: their keys and values (one row, or a row a candidate).

    ``mask`` says which are real where rows are padded; without it all are.
    """

    n_tokens: int
    cache: Any
    mask: Int[Tensor, "row token"] | None = None

    def rows(self, index: Int[Tensor, " row"] | int) -> Any:
        """The cache for a batch: the rows named by ``index``, or so many copies of the only row."""
        return _cache_rows(self.cache, index)


NOTHING = Prefix(n_tokens=0, cache=None)

_columns: ContextVar[int | None] = ContextVar("columns of the prompt", default=None)


def prompt_columns() -> int | None:
    """How many columns the prompt of the running pass has, where it runs in parts: edits are told by this which
    column is its last. None where the pass does not say."""
    return _columns.get()


@contextmanager
def _prompt_of(columns: int | None) -> Iterator[None]:
    token = _columns.set(columns)
    try:
        yield
    finally:
        _columns.reset(token)


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
    cache = before.rows(len(batch.ids) if rows is None else rows) if before.cache is not None else None
    # What follows a shared prefix is the rest of the prompt; what follows padded rows goes on from their prompts.
    in_parts = cache is not None and before.mask is None
    columns = before.n_tokens + batch.ids.shape[1] if in_parts else None
    if is_hooked_transformer(body):
        with _prompt_of(columns):
            return hooked_transformers.run(body, batch, logits=logits, cache=cache, keep_cache=keep_cache)
    accepts = _accepted(body)
    arguments: dict[str, Any] = {
        "input_ids": batch.ids,
        "attention_mask": _mask_after(batch, before),
        "use_cache": keep_cache or cache is not None,
    }
    if cache is not None:
        arguments["past_key_values"] = cache
    if "position_ids" in accepts:
        n_real = before.n_tokens if before.mask is None else before.mask.sum(-1, keepdim=True)
        arguments["position_ids"] = batch.positions + n_real
    if logits is not None and "logits_to_keep" in accepts:
        arguments["logits_to_keep"] = logits
    with torch.inference_mode(), _prompt_of(columns):
        return (body.base_model if logits is None else body)(**arguments)


def _accepted(body: Any) -> frozenset[str]:
    return frozenset(inspect.signature(body.forward).parameters)


def continued(batch: TokenBatch, out: Any, *, before: Prefix = NOTHING) -> Prefix:
    """What ``forward(..., keep_cache=True)`` gave for ``batch``, as the prefix of further tokens of its rows."""
    return Prefix(
        n_tokens=before.n_tokens + batch.ids.shape[1],
        cache=out.past_key_values,
        mask=_mask_after(batch, before),
    )


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
    shared = shared_prefix(sequences)
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
    # One column more than these at least: the prompt's last is not among them.
    with torch.inference_mode(), _prompt_of(len(tokens) + 1):
        if is_hooked_transformer(body):
            batch = TokenBatch(rows=tuple(range(rows)), ids=ids, mask=torch.ones_like(ids))
            cache = hooked_transformers.run(body, batch, logits=None, keep_cache=True).past_key_values
        else:
            cache = body.base_model(input_ids=ids, use_cache=True).past_key_values
    return Prefix(n_tokens=len(tokens), cache=cache)


def _mask_after(batch: TokenBatch, before: Prefix) -> Int[Tensor, "row token"]:
    """The batch's attention mask with the prefix's before it."""
    if not before.n_tokens:
        return batch.mask
    earlier = before.mask
    if earlier is None:
        earlier = torch.ones((len(batch.ids), before.n_tokens), dtype=torch.long, device=batch.ids.device)
    return torch.cat([earlier, batch.mask], dim=1)


def _cache_rows(cache: Any, index: Tensor | int) -> Any:
    from transformers.cache_utils import DynamicLayer

    if not hasattr(cache, "layers"):
        return hooked_transformers.cache_rows(cache, index)
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
