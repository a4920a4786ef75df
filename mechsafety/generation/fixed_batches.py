"""Log-probabilities and replies that do not depend on what else is asked for in the same call.

In bfloat16 a row's numbers change with the shape of its batch, because other shapes run other kernels. Here every
batch has one number of rows and a width that follows from the rows' own lengths, so that the same context meets the
same shapes in every call: the numbers are then equal bit for bit, whatever the other rows hold. Contexts of one item
that differ only in their ends (a question in two orders of its labels) share the keys of what they have in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.progress import bar
from mechsafety.generation.bodies import body_under
from mechsafety.generation.continuations import Continuation, Request, continuations, continue_batch
from mechsafety.generation.scoring import log_probability, option_log_probs, padded_right
from mechsafety.models.chat import TokenBatch, device_of, pad_left, pad_token
from mechsafety.models.forward import Prefix, continued, forward, run_prefix
from mechsafety.models.loading import window
from mechsafety.models.prefixes import common_prefix, shared_prefix

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from mechsafety.edits.interventions import Edit

ROWS = 8
"""Rows of every batch on the CPU; where fewer items are left, the first one fills it up."""
REPLY_ROWS = 16
"""The same where replies are generated, a token at a time: the weights are read once for all rows."""
MOST_ROWS, MOST_TOKENS = 32, 16_384
"""Rows of a batch on an accelerator, and its tokens, which leave wide batches fewer rows (but :data:`ROWS`)."""
STEP = 32
"""Widths are multiples of it."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def wide(n_tokens: int, *, step: int = STEP) -> int:
    """The columns of the batches that a row of so many tokens runs in."""
    return -(-n_tokens // step) * step


def fixed_plan(
    shapes: Sequence[tuple[int, ...]], device: torch.device, *, least: int = ROWS
) -> Iterator[tuple[list[int], list[int]]]:
    """Batches of rows of one shape, widest first: the row numbers, and the same with the first one filling up.

    A shape begins with the columns that run. How many rows stand beside each other follows from it and ``least`` alone.
    """
    same: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, shape in enumerate(shapes):
        same[shape].append(row)
    for shape in sorted(same, reverse=True):
        size = least
        if device.type != "cpu":
            size = max(least, min(MOST_ROWS, MOST_TOKENS // max(1, shape[0])))
        for start in range(0, len(same[shape]), size):
            rows = same[shape][start : start + size]
            yield rows, [*rows, *rows[:1] * (size - len(rows))]


def mixes_rows(config: Any) -> bool:
    """Whether a model sends tokens to experts, where the rows of a batch meet in other shapes."""
    config = getattr(config, "text_config", None) or config
    return any(getattr(config, name, None) for name in _EXPERTS)


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One item: the tokens that its contexts share behind the beginning, and those that differ."""

    row: int
    shared: list[int]
    ends: list[list[int]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns of the shared tokens, and of the longest and the shortest end: what runs and what is unembedded."""
        lengths = [len(end) for end in self.ends]
        return wide(len(self.shared)), max(lengths), min(lengths)


def separate_log_probs(
    model: TransformerBridge,
    items: Sequence[Sequence[Sequence[int]]],
    options: Sequence[Sequence[int]],
    *,
    beginning: Sequence[int],
    label: str = "scoring",
) -> Float[Tensor, "item context option"]:
    """log P(option | context) in nats (float64) for the contexts of each item, equal in every call.

    All items have the same number of contexts. ``beginning`` are tokens that most contexts begin with; they run once.
    An item whose contexts do not, and every item of a model that cannot go on from keys behind padding or sends tokens
    to experts, runs alone. Raises :class:`MechsafetyError` where a context with an option does not fit in the window.
    """
    out = torch.empty(len(items), len(items[0]), len(options), dtype=torch.float64)
    longest = max(map(len, options))
    with bar(label, total=len(items), unit="item") as progress:
        with torch.inference_mode(), body_under(model, None) as body:
            found = [
                _behind(body, row, contexts, beginning, device_of(model), more=longest)
                for row, contexts in enumerate(items)
            ]
            for some, filled, stored in _batched(model, body, [i for i in found if i], beginning):
                scored = _scored(body, filled, options, stored, pad=pad_token(model), device=device_of(model))
                for item, scores in zip(some, scored, strict=False):
                    out[item.row] = scores
                progress.update(len(some))
        for row in (row for row in range(len(items)) if found[row] is None):
            for place, context in enumerate(items[row]):
                out[row, place] = option_log_probs(
                    model, [context], options, batch_size=1, share_prefix=False, label=label
                )[0]
            progress.update(1)
    return out


def separate_replies(
    model: TransformerBridge,
    contexts: Sequence[Sequence[int]],
    *,
    beginning: Sequence[int],
    max_new_tokens: int,
    take: Callable[[int, Continuation], None],
    edit: Edit | None = None,
    label: str = "answering",
) -> None:
    """The greedy continuation of each context under ``edit``, equal in every call.

    ``take`` gets the row and its continuation as they come. ``beginning`` and what runs alone are as in
    :func:`separate_log_probs`. Raises :class:`MechsafetyError` where a model cannot read so long a context.
    """
    requests = [Request(tokens=tuple(c), max_new_tokens=max_new_tokens) for c in contexts]
    with bar(label, total=len(contexts), unit="response") as progress:
        with body_under(model, edit) as body:
            found = [
                _behind(body, row, [context], beginning, device_of(model), more=max_new_tokens, leave=0)
                for row, context in enumerate(contexts)
            ]
            for some, filled, stored in _batched(
                model, body, [i for i in found if i], beginning, least=REPLY_ROWS
            ):
                batch = _left(filled, pad_token(model)).to(device_of(model))
                asked = [requests[item.row] for item in filled]
                replies = continue_batch(model, body, batch, asked, before=stored)
                for item, reply in zip(some, replies, strict=False):
                    take(item.row, reply)
                progress.update(len(some))
        for row in (row for row in range(len(contexts)) if found[row] is None):
            take(row, continuations(model, [requests[row]], edit=edit, batch_size=1)[0])
            progress.update(1)


def _batched(
    model: TransformerBridge,
    body: Any,
    items: Sequence[_Item],
    beginning: Sequence[int],
    *,
    least: int = ROWS,
) -> Iterator[tuple[list[_Item], list[_Item], Prefix]]:
    """Items of one shape, the same filled up to a batch, and the keys of ``beginning``."""
    if not items:
        return
    with torch.inference_mode():
        stored = run_prefix(body, beginning, device_of(model))
    for rows, filled in fixed_plan([item.shape for item in items], device_of(model), least=least):
        yield [items[place] for place in rows], [items[place] for place in filled], stored


def _behind(
    body: Any,
    row: int,
    contexts: Sequence[Sequence[int]],
    beginning: Sequence[int],
    device: torch.device,
    *,
    more: int,
    leave: int = 1,
) -> _Item | None:
    """The item behind ``beginning``, with ends of ``leave`` tokens at least, or None where it must run alone.

    Nothing here depends on the other items.
    """
    n = len(beginning)
    shared = shared_prefix(contexts, leave=leave)
    if not n or len(shared) <= n or shared[:n] != list(beginning):
        return None
    if mixes_rows(body.config if hasattr(body, "config") else body.cfg):
        return None
    item = _Item(row=row, shared=shared[n:], ends=[list(c[len(shared) :]) for c in contexts])
    if (most := window(body)) is not None and n + sum(item.shape[:2]) + more > most:
        return None
    # Asked for as wide as it will run, padding included.
    padded = [[*c, *[c[-1]] * STEP] for c in contexts]
    return item if common_prefix(body, padded, device, more=more) else None


def _scored(
    body: Any,
    items: Sequence[_Item],
    options: Sequence[Sequence[int]],
    stored: Prefix,
    *,
    pad: int,
    device: torch.device,
) -> Iterator[Float[Tensor, "context option"]]:
    """Scores of one batch of items of one shape."""
    shortest = items[0].shape[2]
    batch = _left(items, pad).to(device)
    after = continued(batch, forward(body, batch, logits=None, before=stored, keep_cache=True), before=stored)
    # What the options' first tokens follow is the same for all of them.
    heads = sorted({tuple(option[:-1]) for option in options})
    asked = [(place, end, head) for place, item in enumerate(items) for end in item.ends for head in heads]
    rest = padded_right([[*end, *head] for _, end, head in asked], pad).to(device)
    rows = torch.tensor([place for place, _, _ in asked], device=device)
    assert after.mask is not None
    before = Prefix(n_tokens=after.n_tokens, cache=after.cache, mask=after.mask[rows])
    kept = rest.ids.shape[1] - shortest + 1
    logits = forward(body, rest, logits=kept, before=before, rows=rows).logits
    first = rest.ids.shape[1] - kept
    per_item = len(items[0].ends)
    scores = [
        log_probability(logits[line, begin : begin + len(option)], option)
        for place, item in enumerate(items)
        for context, end in enumerate(item.ends)
        for option in options
        for line in [(place * per_item + context) * len(heads) + heads.index(tuple(option[:-1]))]
        for begin in [len(end) - 1 - first]
    ]
    yield from torch.stack(scores).reshape(len(items), per_item, len(options)).cpu()


def _left(items: Sequence[_Item], pad: int) -> TokenBatch:
    """What the items' contexts share, with padding before it up to the columns of their shape."""
    return pad_left([item.shared for item in items], pad=pad, width=items[0].shape[0])
