"""Block-wise choice of weights: a block's scores are measured with all earlier blocks pruned already.

By Wanda the hidden states of all batches are carried from block to block: each block runs once to measure its
inputs and once more, pruned, to make the next one's; with the pass that records how the model calls its blocks
that is three forward passes in all. By SNIP the gradients of the whole model are needed anew for every block, which
takes as many full passes, forward and backward, as there are blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import track
from mechsafety.generation.answers import Example, collate, encode
from mechsafety.models.chat import device_of, pad_token, plan_batches
from mechsafety.models.forward import evaluating
from mechsafety.models.handles import attached
from mechsafety.models.loading import architecture
from mechsafety.regions.attribution import DEFAULT_BATCH, score_weights
from mechsafety.regions.maps import LinearMap, block_module, linear_maps, routed_to, running_body
from mechsafety.regions.pruning import (
    Group,
    Percent,
    Places,
    difference_places,
    lowest_places,
    require_percent,
    shapes_of,
)
from mechsafety.regions.removal import Pruning, removed
from mechsafety.regions.score_files import Attribution, Loss, Method, Positions

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Choose = Callable[[LinearMap, Sequence[Attribution]], Places]


def prune_blockwise(
    model: TransformerBridge,
    examples: Sequence[Example],
    *,
    method: Method,
    percent: Percent,
    group: Group = "row",
    loss: Loss = "mean",
    positions: Positions = "paper",
    batch_size: int = DEFAULT_BATCH,
) -> Pruning:
    """The ``percent`` of weights with the lowest scores, block by block: Wanda's and SNIP's own procedure.

    ``model`` is as before afterwards. Raises as :func:`mechsafety.regions.pruning.prune` and
    :func:`mechsafety.regions.attribution.score_weights` do.

    Arguments:
        examples: Prompts with answers, of examples_from_model.
        percent: Share of the weights of each ``group``, 0 < x <= 100.
        loss: What SNIP's gradients are of, and at which ``positions``, as score_weights takes them.

    Returns:
        The weights that are removed.

    Example:
        >>> low = ms.regions.prune_blockwise(model, examples, method="wanda", percent=25, group="matrix")
        >>> round(low.sparsity, 2)
        0.25
    """
    require_percent("percent", percent)
    return _blockwise(
        model,
        [examples],
        lambda m, scores: lowest_places(m, scores[0], method=method, percent=percent, group=group),
        label=f"block-wise lowest {percent:g} % by {method} per {group}",
        method=method,
        loss=loss,
        positions=positions,
        batch_size=batch_size,
    )


def set_difference_blockwise(
    model: TransformerBridge,
    safety: Sequence[Example],
    utility: Sequence[Example],
    *,
    method: Method,
    p: Percent,
    q: Percent,
    group: Group = "matrix",
    loss: Loss = "mean",
    positions: Positions = "paper",
    batch_size: int = DEFAULT_BATCH,
) -> Pruning:
    """The set difference S(p, q) block by block: both scores are measured with the earlier blocks' taken out.

    ``model`` is as before afterwards. Raises as :func:`mechsafety.regions.pruning.set_difference` and
    :func:`mechsafety.regions.attribution.score_weights` do.

    Arguments:
        safety: Harmful prompts with refusals, of examples_from_model.
        utility: Harmless prompts with answers.
        p: Percentage of the weights that utility keeps, 0 < x <= 100.
        q: Percentage of the weights that safety is looked for in, 0 < x <= 100.
        loss: What SNIP's gradients are of, and at which ``positions``, as score_weights takes them.

    Returns:
        The weights that are removed.

    Example:
        >>> region = ms.regions.set_difference_blockwise(model, examples, examples, method="wanda", p=5, q=20)
        >>> round(region.sparsity, 2)  # the top 20 % but for the top 5 %
        0.15
    """
    require_percent("p", p)
    require_percent("q", q)
    return _blockwise(
        model,
        [safety, utility],
        lambda m, scores: difference_places(m, *scores, method=method, p=p, q=q, group=group),
        label=f"block-wise set difference p={p:g} q={q:g} by {method} per {group}",
        method=method,
        loss=loss,
        positions=positions,
        batch_size=batch_size,
    )


def _blockwise(
    model: TransformerBridge,
    sets: Sequence[Sequence[Example]],
    choose: Choose,
    *,
    label: str,
    method: Method,
    loss: Loss,
    positions: Positions,
    batch_size: int,
) -> Pruning:
    maps = linear_maps(model)
    shapes = shapes_of(maps)
    if method == "wanda":
        scored = _streamed(model, maps, sets, positions=positions, batch_size=batch_size)
    else:
        scored = _rerun(model, sets, loss=loss, positions=positions, batch_size=batch_size)
    entries: dict[str, Places] = {}
    with ExitStack() as pruned:
        for layer, scores in enumerate(
            track(scored, "pruning blocks", total=model.cfg.n_layers, unit="block")
        ):
            found = {m.name: choose(m, scores) for m in maps if m.layer == layer}
            entries |= found
            if any(len(places) for places in found.values()):
                block = Pruning(label=label, entries=found, shapes=shapes)
                pruned.enter_context(removed(model, block, maps=maps))
    return Pruning(label=label, entries=entries, shapes=shapes)


def _rerun(
    model: TransformerBridge,
    sets: Sequence[Sequence[Example]],
    *,
    loss: Loss,
    positions: Positions,
    batch_size: int,
) -> Iterator[list[Attribution]]:
    """For each block the scores of every map as the model is when the block's turn comes."""
    for _ in range(model.cfg.n_layers):
        yield [
            score_weights(model, examples, loss=loss, positions=positions, batch_size=batch_size)
            for examples in sets
        ]


def _streamed(
    model: TransformerBridge,
    maps: Sequence[LinearMap],
    sets: Sequence[Sequence[Example]],
    *,
    positions: Positions,
    batch_size: int,
) -> Iterator[list[Attribution]]:
    """For each block the norms of its inputs; whoever iterates prunes the block before asking for the next."""
    body = running_body(model)
    blocks = [block_module(model, body, layer) for layer in range(model.cfg.n_layers)]
    streams = [_begin(model, body, blocks, s, positions=positions, batch_size=batch_size) for s in sets]
    for layer, block in enumerate(blocks):
        own = [m for m in maps if m.layer == layer]
        yield [
            _measured(stream, block, layer, own, n_examples=len(examples), positions=positions)
            for stream, examples in zip(streams, sets, strict=True)
        ]
        for stream in streams:
            for batch in stream:
                batch.hidden = batch.run(block, layer)


@dataclass(kw_only=True, eq=False)
class _Batch:
    """A batch between two blocks, and how the model calls each block, which no earlier block's output changes."""

    hidden: Float[Tensor, "row token d_model"]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    chosen: Bool[Tensor, "row token"]

    def run(self, block: nn.Module, layer: int) -> Float[Tensor, "row token d_model"]:
        args, kwargs = self.calls[layer]
        if args:
            args = (self.hidden, *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": self.hidden}
        with torch.no_grad(), evaluating(block):
            output = block(*args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


def _begin(
    model: TransformerBridge,
    body: Any,
    blocks: Sequence[nn.Module],
    examples: Sequence[Example],
    *,
    positions: Positions,
    batch_size: int,
) -> list[_Batch]:
    """Every batch before the first block."""
    if not examples:
        raise MechsafetyError("no examples to score the weights with")
    encoded = encode(model, examples)
    plan = plan_batches([len(prompt) + len(answer) for prompt, answer in encoded], batch_size=batch_size)
    found = []
    for rows in plan:
        batch = collate([encoded[row] for row in rows], pad=pad_token(model)).to(device_of(model))
        answers = batch.weights > 0
        hidden, calls = _recorded(model, body, blocks, batch.ids, batch.mask)
        chosen = answers if positions == "paper" else answers.roll(-1, dims=-1)
        found.append(_Batch(hidden=hidden, calls=calls, chosen=chosen))
    return found


def _recorded(
    model: TransformerBridge, body: Any, blocks: Sequence[nn.Module], ids: Tensor, mask: Tensor
) -> tuple[Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The first block's input, and each block's other arguments."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    first: list[Tensor] = []

    def before(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if not first:
            first.append(hidden)
        others = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        calls.append(((None, *args[1:]) if args else (), others))  # hidden states are made anew

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    with attached(handles), torch.no_grad(), evaluating(body):
        body.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    if len(calls) != len(blocks):
        raise MechsafetyError(
            f"{len(blocks)} blocks of {architecture(model)} ran {len(calls)} times: they are not one chain, so that "
            "they cannot be pruned one after the other; choose the weights at once (prune, set_difference)"
        )
    return first[0], calls


def _measured(
    stream: Sequence[_Batch],
    block: nn.Module,
    layer: int,
    maps: Sequence[LinearMap],
    *,
    n_examples: int,
    positions: Positions,
) -> Attribution:
    """The norms of the block's inputs over the chosen tokens, as an attribution that holds only these."""
    squares: dict[str, Tensor] = {
        m.site: m.weight().new_zeros(m.d_in, dtype=torch.float32) for m in maps if m.expert is not None
    }
    chosen: list[Tensor] = []

    def add(site: str, x: Tensor) -> None:
        squares[site] = squares.get(site, 0) + x.float().square().sum(0)

    routed = routed_to(maps, add)

    def watch(m: LinearMap) -> Callable[..., None]:
        def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if not routed.busy:
                rows, tokens = chosen[0].shape
                x = args[0].reshape(rows, tokens, m.d_in)
                add(m.site, x[chosen[0].to(x.device)])

        return before

    readers = {m.site: m for m in reversed(maps) if m.expert is None}.values()
    handles = [m.module.register_forward_pre_hook(watch(m)) for m in readers]
    with attached(handles), routed.watching():
        for batch in stream:
            chosen[:], routed.chosen = [batch.chosen], batch.chosen
            batch.run(block, layer)
    return Attribution(
        shapes=shapes_of(maps),
        sites={m.name: m.site for m in maps},
        n_examples=n_examples,
        n_tokens=sum(int(batch.chosen.sum()) for batch in stream),
        loss="mean",
        positions=positions,
        tensors={f"gram/{site}": torch.diag(value) for site, value in squares.items()},
    )
