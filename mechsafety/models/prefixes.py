"""Tokens that many sequences begin with, run once: where a model allows it, and the plain way where it does not.

Rows of unlike length stand behind shared tokens as [shared][padding][rest]. That is what the model would do without
padding only if (1) its cache is a list of keys and values to which tokens are appended, and (2) its attention goes by
position ids, so that columns of padding in between are nowhere. Recurrent and convolutional layers fail the first;
sliding windows, and distances that are counted in columns (ALiBi), fail the second. Neither is looked up by name: the
cache is inspected, and the padding is tried.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.models.chat import TokenBatch, batches, device_of
from mechsafety.models.faithful import made_up_tokens
from mechsafety.models.forward import (
    OWN_HOOKS,
    Prefix,
    forward,
    keeps_keys,
    only_trying,
    run_prefix,
    same_but_rounding,
)
from mechsafety.models.hooked_transformers import has_cache
from mechsafety.models.loading import body_of, embedding_rows, is_hooked_transformer, plain_tree, window
from mechsafety.models.rope_lengths import may_read_in_parts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_LEAST = 8  # shorter ones are not worth a cache
_SHORT_GAP = 16
_TRIED = "_mechsafety_prefix_gaps"
_WAYS = "_mechsafety_prefix_ways"
_ONCE, _EACH = "run once", "run with every prompt (padding after them would count)"


def shared_prefix(sequences: Sequence[Sequence[int]], *, leave: int = 1) -> list[int]:
    """The first tokens that all sequences share, at least ``leave`` being left for each; empty when short."""
    ordered = sorted(list(s) for s in sequences)
    first, last = ordered[0], ordered[-1]
    most = min(len(s) for s in ordered) - leave
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), most)
    n = min(n, most)
    return first[:n] if n >= _LEAST else []


def common_prefix(
    body: Any, sequences: Sequence[Sequence[int]], device: torch.device, *, leave: int = 1, more: int = 0
) -> list[int]:
    """:func:`shared_prefix` where ``body`` gives the same after it as without it; nothing where it does not.

    ``more`` tokens at the most will follow the sequences. It may be asked with hooks on: the passes that try the
    model feel none.
    """
    shared = shared_prefix(sequences, leave=leave)
    if not shared:
        return []
    width = max(len(s) for s in sequences) + more
    if not may_read_in_parts(body, width):
        return []
    once = ignores_gaps(body, width, device)
    body.__dict__.setdefault(_WAYS, set()).add(_ONCE if once else _EACH)
    return shared if once else []


def ignores_gaps(body: Any, width: int, device: torch.device) -> bool:
    """Whether padding between tokens changes nothing, in sequences of up to ``width`` columns with the padding.

    Tried once per model for each power of 2, with made-up tokens: eight, a gap of keys that the mask hides, one more.
    The gap is as wide as the widest sequence, so that a window that any row would leave is left here.
    """
    if is_hooked_transformer(body) and not has_cache(body):
        return False
    body = _unhooked(body)
    tried: dict[int, bool] = body.__dict__.setdefault(_TRIED, {})
    bucket = 1 << max(width - 1, _SHORT_GAP).bit_length()
    if bucket not in tried:
        if has_strange_hooks(body):
            return False  # they would feel these passes; the plain way is right for every model
        with only_trying():
            # The short gap first: where distances are columns, it shows, and a model may have no wider ones.
            tried[bucket] = all(_gap_is_nothing(body, gap, device) for gap in (_SHORT_GAP, bucket))
    return tried[bucket]


def goes_on(body: Any, device: torch.device) -> bool:
    """Whether ``body`` can go on from the keys of earlier tokens with several at a time, none of them padding."""
    with only_trying():
        before = run_prefix(body, _made_up(body), device)
    return keeps_keys(before.cache, before.n_tokens)


def has_strange_hooks(body: Any) -> bool:
    """Whether the user has hooks on TransformerLens' hook points, beside those that this package has put there."""
    points = [m for m in body.modules() if hasattr(m, "fwd_hooks")]
    return sum(len(p.fwd_hooks) + len(p.bwd_hooks) for p in points) > body.__dict__.get(OWN_HOOKS, 0)


def prefix_note(model: Any) -> str:
    """How the first tokens that prompts share have been run on ``model`` so far, for the record."""
    ways = body_of(model).__dict__.get(_WAYS, set()) | (plain_tree(model) or model).__dict__.get(_WAYS, set())
    if not ways:
        return "none were shared"
    return " or ".join(sorted(ways))


def _unhooked(body: Any) -> Any:
    """The same weights without hooks of the user's, where there are such."""
    return body if is_hooked_transformer(body) else plain_tree(body) or body


def _gap_is_nothing(body: Any, gap: int, device: torch.device) -> bool:
    ids = _made_up(body)
    before = run_prefix(body, ids[:-1], device)
    if (room := window(body)) is not None:
        gap = min(gap, room - len(ids))
    if not keeps_keys(before.cache, before.n_tokens) or not _takes_gap(before.cache, gap + len(ids)):
        return False
    last = torch.tensor([ids[-1:]], device=device)
    rest = TokenBatch(rows=(0,), ids=last, mask=torch.ones_like(last))
    hidden = torch.zeros((1, before.n_tokens), dtype=torch.long, device=device)
    near = _last_logits(body, rest, before)
    far = _last_logits(body, rest, _with_gap(before, gap, device))
    lost = _last_logits(body, rest, replace(before, mask=hidden))
    return same_but_rounding(far, near, control=lost)


def _made_up(body: Any) -> list[int]:
    rows = embedding_rows(body)
    assert rows is not None
    return made_up_tokens(rows, _LEAST + 1)[0].tolist()


def _last_logits(body: Any, rest: TokenBatch, before: Prefix) -> Float[Tensor, "1 vocabulary"]:
    return forward(body, rest, logits=1, before=before).logits[0]


def _takes_gap(cache: Any, width: int) -> bool:
    """Whether the layers are lists of keys, none with a window narrower than ``width``."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if not hasattr(cache, "layers"):
        return True
    return all(
        type(layer) is DynamicLayer
        or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > width)
        for layer in cache.layers
    )


def _with_gap(before: Prefix, gap: int, device: torch.device) -> Prefix:
    """``before`` followed by ``gap`` columns of padding that nothing was computed for."""
    cache = copy.deepcopy(before.cache)
    if hasattr(cache, "layers"):
        for layer in cache.layers:
            _widen(layer, "keys", gap, axis=-2)
            _widen(layer, "values", gap, axis=-2)
            if layer.is_sliding:
                layer.cumulative_length += gap
    else:
        for entry in cache.entries:
            _widen(entry, "past_keys", gap, axis=1)
            _widen(entry, "past_values", gap, axis=1)
    real = torch.ones((1, before.n_tokens), dtype=torch.long, device=device)
    mask = torch.cat([real, torch.zeros((1, gap), dtype=torch.long, device=device)], dim=1)
    if not hasattr(cache, "layers"):
        cache.previous_attention_mask = mask.to(cache.previous_attention_mask)
    return Prefix(n_tokens=before.n_tokens + gap, cache=cache, mask=mask)


def _widen(holder: Any, name: str, gap: int, *, axis: int) -> None:
    stored = getattr(holder, name)
    if stored is not None:  # a layer that reads another's keys has none
        shape = list(stored.shape)
        shape[axis] = gap
        setattr(holder, name, torch.cat([stored, stored.new_zeros(shape)], dim=axis))


def all_last_logits(
    model: TransformerBridge, body: Any, sequences: Sequence[Sequence[int]], *, batch_size: int
) -> Float[Tensor, "sequence vocabulary"]:
    """Last-token logits of many sequences on ``body``, in float32 on the CPU.

    The tokens that all sequences begin with (the template's system prompt) run once where the model allows it.
    """
    shared = common_prefix(body, sequences, device_of(model))
    before = run_prefix(body, shared, device_of(model))
    rests = [list(s[len(shared) :]) for s in sequences]
    parts: list[tuple[TokenBatch, Tensor]] = []
    for batch in batches(model, rests, batch_size=batch_size):
        logits = forward(body, batch, logits=1, before=before).logits
        parts.append((batch, logits[:, -1].float().cpu()))
    out = torch.empty(len(sequences), parts[0][1].shape[-1], dtype=torch.float32)
    for batch, logits in parts:
        out[list(batch.rows)] = logits
    return out
