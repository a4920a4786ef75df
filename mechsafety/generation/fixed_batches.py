"""Log-probabilities that do not depend on what else is asked for in the same call.

In bfloat16 a row's numbers change with the shape of its batch, because other shapes run other kernels. Here every
batch has one number of rows and a width that follows from the rows' own lengths, so that the same context meets the
same shapes in every call: the numbers are then equal bit for bit, whatever the other rows hold. Contexts of one item
that differ only in their ends (a question in two orders of its labels) share the keys of what they have in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.progress import bar
from mechsafety.generation.bodies import body_under
from mechsafety.generation.scoring import option_log_probs, padded_right
from mechsafety.models.chat import TokenBatch, device_of, pad_left, pad_token
from mechsafety.models.forward import Prefix, continued, forward, run_prefix
from mechsafety.models.loading import window
from mechsafety.models.prefixes import common_prefix, shared_prefix

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROWS = 8
"""Rows of every batch; where fewer items are left, the first one fills it up."""
STEP = 32
"""Widths are multiples of it."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


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
        return -(-len(self.shared) // STEP) * STEP, max(lengths), min(lengths)


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
    shapes: dict[tuple[int, int, int], list[_Item]] = defaultdict(list)
    with bar(label, total=len(items), unit="item") as progress:
        with torch.inference_mode(), body_under(model, None) as body:
            device = device_of(model)
            for row, contexts in enumerate(items):
                if item := _behind(body, row, contexts, beginning, device, more=longest):
                    shapes[item.shape].append(item)
            stored = run_prefix(body, beginning, device) if shapes else Prefix(n_tokens=0, cache=None)
            for several in shapes.values():
                for start in range(0, len(several), ROWS):
                    some = several[start : start + ROWS]
                    filled = [*some, *some[:1] * (ROWS - len(some))]
                    found = _scored(body, filled, options, stored, pad=pad_token(model), device=device)
                    for item, scores in zip(some, found, strict=False):
                        out[item.row] = scores
                    progress.update(len(some))
        done = {item.row for several in shapes.values() for item in several}
        for row in (row for row in range(len(items)) if row not in done):
            for place, context in enumerate(items[row]):
                out[row, place] = option_log_probs(
                    model, [context], options, batch_size=1, share_prefix=False, label=label
                )[0]
            progress.update(1)
    return out


def _behind(
    body: Any,
    row: int,
    contexts: Sequence[Sequence[int]],
    beginning: Sequence[int],
    device: torch.device,
    *,
    more: int,
) -> _Item | None:
    """The item behind ``beginning``, or None where it must run alone. Nothing here depends on the other items."""
    n = len(beginning)
    shared = shared_prefix(contexts)
    if not n or len(shared) <= n or shared[:n] != list(beginning):
        return None
    if any(getattr(body.config if hasattr(body, "config") else body.cfg, name, None) for name in _EXPERTS):
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
    width, _, shortest = items[0].shape
    batch = _wide(pad_left([item.shared for item in items], pad=pad), width, pad).to(device)
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
    for place, item in enumerate(items):
        scores = torch.empty(per_item, len(options), dtype=torch.float64)
        for context, end in enumerate(item.ends):
            for number, option in enumerate(options):
                line = (place * per_item + context) * len(heads) + heads.index(tuple(option[:-1]))
                begin = len(end) - 1 - first
                wide = logits[line, begin : begin + len(option)].double()
                target = torch.tensor(option, device=device)[:, None]
                log_probs = wide.gather(-1, target)[:, 0] - wide.logsumexp(-1)
                scores[context, number] = log_probs.sum().cpu()
        yield scores


def _wide(batch: TokenBatch, width: int, pad: int) -> TokenBatch:
    """``batch`` with padding before it, up to ``width`` columns."""
    n_rows, n = batch.ids.shape
    ids = torch.full((n_rows, width - n), pad)
    return TokenBatch(
        rows=batch.rows,
        ids=torch.cat([ids, batch.ids], dim=1),
        mask=torch.cat([torch.zeros_like(ids), batch.mask], dim=1),
    )
