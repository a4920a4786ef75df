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

from mechsafety.core.errors import MechsafetyError
from mechsafety.models import hooked_transformers
from mechsafety.models.chat import TokenBatch
from mechsafety.models.finite import require_finite
from mechsafety.models.loading import body_of, is_hooked_transformer
from mechsafety.models.placing import Copies
from mechsafety.models.rope_lengths import length_matters, require_own_length

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Tokens that have been run already: their keys and values (one row, or one per candidate).

    ``mask`` marks which are real where rows are padded; without it all are.
    """

    n_tokens: int
    cache: Any
    mask: Int[Tensor, "row token"] | None = None

    def rows(self, index: Int[Tensor, " row"] | int) -> Any:
        """The cache for a batch: the rows named by ``index``, or so many copies of the only row."""
        return _cache_rows(self.cache, index)


NO_PREFIX = Prefix(n_tokens=0, cache=None)

OWN_HOOKS = "_mechsafety_hooks"
"""Where a model's body keeps how many hooks on its hook points are this package's."""

_columns: ContextVar[int | None] = ContextVar("columns of the prompt", default=None)


_trying: ContextVar[bool] = ContextVar("a pass that only tries the model", default=False)


def trying() -> bool:
    """Whether the running pass only tries out what the model does: hooks then read, change and count nothing."""
    return _trying.get()


@contextmanager
def only_trying() -> Iterator[None]:
    token = _trying.set(True)
    try:
        yield
    finally:
        _trying.reset(token)


def prompt_columns() -> int | None:
    """How many columns the prompt of the running pass has, where it runs in parts: edits learn from this which
    column is its last. None where the pass does not record it."""
    return _columns.get()


@contextmanager
def _prompt_of(columns: int | None) -> Iterator[None]:
    token = _columns.set(columns)
    try:
        yield
    finally:
        _columns.reset(token)


@contextmanager
def evaluating(body: Any) -> Iterator[None]:
    """Dropout off while the block runs, in whatever mode the user has the model; each module's is as before then."""
    training = [module for module in body.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def forward(
    body: Any,
    batch: TokenBatch,
    *,
    logits: int | None,
    before: Prefix = NO_PREFIX,
    rows: Int[Tensor, " row"] | int | None = None,
    keep_cache: bool = False,
    prompt_columns: int | None = None,
) -> Any:
    """Run ``body`` on ``batch`` (padded on the left) as the continuation of ``before``.

    ``logits`` last positions are unembedded; None stops before the unembedding. ``rows`` names the row of
    ``before`` that each row of the batch continues (default: its only one). Returns an object with ``logits``
    and ``past_key_values`` as far as asked for. Position ids count real tokens only. ``prompt_columns`` passes to
    edits how many columns are prompt where an answer runs along with it.
    """
    assert before.cache is not None or not before.n_tokens, "earlier tokens without their keys"
    require_paddable(body, batch)
    require_same_lengths(body, batch, before=before)

    def once() -> Any:
        return _pass(
            body,
            batch,
            logits=logits,
            before=before,
            rows=len(batch.ids) if rows is None else rows,
            keep_cache=keep_cache,
            prompt_columns=prompt_columns,
        )

    out = once()
    if logits is not None and not trying():
        real = batch.mask[:, -out.logits.shape[1] :].bool()
        require_finite(body, out.logits, once, real)
    return out


def _pass(
    body: Any,
    batch: TokenBatch,
    *,
    logits: int | None,
    before: Prefix,
    rows: Int[Tensor, " row"] | int,
    keep_cache: bool,
    prompt_columns: int | None,
) -> Any:
    cache = before.rows(rows) if before.cache is not None else None
    # What follows a shared prefix is the rest of the prompt; what follows padded rows goes on from their prompts.
    in_parts = cache is not None and before.mask is None
    columns = before.n_tokens + batch.ids.shape[1] if in_parts else prompt_columns
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
    with torch.inference_mode(), _prompt_of(columns), evaluating(body):
        return (body.base_model if logits is None else body)(**arguments)


def _accepted(body: Any) -> frozenset[str]:
    return frozenset(inspect.signature(body.forward).parameters)


def continued(batch: TokenBatch, out: Any, *, before: Prefix = NO_PREFIX) -> Prefix:
    """What ``forward(..., keep_cache=True)`` gave for ``batch``, as the prefix of further tokens of its rows."""
    return Prefix(
        n_tokens=before.n_tokens + batch.ids.shape[1],
        cache=getattr(out, "past_key_values", None),
        mask=_mask_after(batch, before),
    )


def last_logits(model: TransformerBridge, batch: TokenBatch) -> Float[Tensor, "row vocabulary"]:
    """Float32 logits at each row's last token. ``batch`` is padded on the left."""
    return forward(body_of(model), batch, logits=1).logits[:, -1, :].float()


def run_prefix(body: Any, tokens: Sequence[int], device: torch.device, *, rows: int = 1) -> Prefix:
    """Keys and values of ``tokens``, in ``rows`` equal rows (which edits may then treat differently).

    Whether the model may go on from there is what :func:`mechsafety.models.prefixes.common_prefix` answers.
    """
    if not tokens:
        return NO_PREFIX
    ids = torch.tensor([list(tokens)] * rows, device=device)
    # One column more than these at least: the prompt's last is not among them.
    with torch.inference_mode(), _prompt_of(len(tokens) + 1), evaluating(body):
        if is_hooked_transformer(body):
            batch = TokenBatch(rows=tuple(range(rows)), ids=ids, mask=torch.ones_like(ids))
            cache = hooked_transformers.run(body, batch, logits=None, keep_cache=True).past_key_values
        else:
            cache = getattr(body.base_model(input_ids=ids, use_cache=True), "past_key_values", None)
    return Prefix(n_tokens=len(tokens), cache=cache)


def keeps_keys(cache: Any, n_tokens: int) -> bool:
    """Whether ``cache`` is all that later tokens need of ``n_tokens`` earlier ones, and takes several at a time.

    So it is with keys and values that grow by appending. A recurrent or convolutional state is not: models that have
    one take a single token after it, or begin anew without a word.
    """
    from transformers.cache_utils import DynamicLayer

    if cache is None:
        return False
    if not hasattr(cache, "layers"):
        return hasattr(cache, "entries")
    if not _is_layers_alone(cache):
        return False
    # A layer that reads another's keys (as in Gemma 4) never has any of its own.
    kept = [layer for layer in cache.layers if not isinstance(layer, DynamicLayer) or layer.is_initialized]
    return bool(kept) and all(_is_keys(layer) and layer.get_seq_length() == n_tokens for layer in kept)


def _is_layers_alone(cache: Any) -> bool:
    """Whether a cache is its layers and nothing else: a class of a model's own may keep a state beside (MiniMax)."""
    from transformers.cache_utils import DynamicCache

    return type(cache) is DynamicCache


def _is_keys(layer: Any) -> bool:
    """Whether a layer of a cache is a list of keys and values, and no subclass that keeps a state beside it."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)


_PADDABLE = "_mechsafety_paddable"


def require_paddable(body: Any, batch: TokenBatch) -> None:
    """Raise for a model to which padding on the left is text, where rows of ``batch`` have any.

    Tried once for each model that keeps a state; attention leaves out what the mask excludes.
    """
    if not getattr(body, "_is_stateful", False) or trying() or bool(batch.mask[:, 0].all()):
        return
    if _PADDABLE not in body.__dict__:
        with only_trying():
            body.__dict__[_PADDABLE] = _ignores_padding(body, batch)
    if not body.__dict__[_PADDABLE]:
        raise MechsafetyError(
            f"{type(body).__name__} takes padding for text, so that prompts of different lengths cannot share a batch: "
            "use a batch size of 1"
        )


def require_same_lengths(
    body: Any, batch: TokenBatch, *, before: Prefix = NO_PREFIX, new_tokens: int = 0
) -> None:
    """Raise where the length of one row would change how another is read (:mod:`mechsafety.models.rope_lengths`)."""
    if trying() or not length_matters(body):  # which is known without a look at the batch
        return
    rows = len(batch.ids)
    starts = [before.n_tokens] * rows if before.mask is None else before.mask.sum(-1).tolist()
    ends = [start + n for start, n in zip(starts, batch.mask.sum(-1).tolist(), strict=True)]
    require_own_length(body, ends, starts=starts, new_tokens=new_tokens)


def _ignores_padding(body: Any, batch: TokenBatch) -> bool:
    """Whether a row with padding gives the logits that it gives without."""
    row = int((batch.mask[:, 0] == 0).nonzero()[0, 0])
    ids, mask = batch.ids[row : row + 1], batch.mask[row : row + 1]
    real = mask[0].bool()
    cases = {
        "padded": (ids, mask),
        "bare": (ids[:, real], mask[:, real]),
        "text": (ids, torch.ones_like(mask)),
    }
    n = int(real.sum())
    found = {
        name: forward(body, TokenBatch(rows=(0,), ids=i, mask=m), logits=n).logits[0, -n:]
        for name, (i, m) in cases.items()
    }
    return same_but_rounding(found["padded"], found["bare"], control=found["text"])


def same_but_rounding(
    one: Float[Tensor, "token vocabulary"],
    other: Float[Tensor, "token vocabulary"],
    *,
    control: Float[Tensor, "token vocabulary"],
) -> bool:
    """Whether two ways to the same logits agree at the median token.

    Up to 1e-4 of their norm; in half precision up to a sixth of what the ``control`` moves them, a way that is known to
    be another. Where they are broken it is reported later, with the layer.
    """
    apart = _median_distance(one, other)
    if one.dtype.itemsize < 4:
        return not bool(apart > _median_distance(control, other) / 6)
    return not bool(apart > 1e-4 * _median_distance(other, torch.zeros_like(other)))


def _median_distance(
    one: Float[Tensor, "token vocabulary"], other: Float[Tensor, "token vocabulary"]
) -> Float[Tensor, ""]:
    return (one.float() - other.float()).norm(dim=-1).median()


def _mask_after(batch: TokenBatch, before: Prefix) -> Int[Tensor, "row token"]:
    """The batch's attention mask with the prefix's before it."""
    if not before.n_tokens:
        return batch.mask
    earlier = before.mask
    if earlier is None:
        earlier = torch.ones((len(batch.ids), before.n_tokens), dtype=torch.long, device=batch.ids.device)
    return torch.cat([earlier, batch.mask], dim=1)


def _cache_rows(cache: Any, index: Tensor | int) -> Any:
    if not hasattr(cache, "layers"):
        return hooked_transformers.cache_rows(cache, index)
    if not _is_layers_alone(cache) or not all(_is_keys(layer) for layer in cache.layers):
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
    wanted = Copies(index) if isinstance(index, Tensor) else None
    for layer in taken.layers:
        if not layer.is_initialized:
            continue
        for name in ("keys", "values"):
            stored = getattr(layer, name)
            rows = stored.expand(index, -1, -1, -1) if wanted is None else stored[wanted.on(stored.device)]
            setattr(layer, name, rows)
    return taken
