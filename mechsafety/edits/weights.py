"""Writing a projection into the maps that write to the residual stream, and taking it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.values import as_hooks
from mechsafety.edits.writing_maps import Writing, writings_of
from mechsafety.models.chat import TokenBatch, device_of
from mechsafety.models.forward import evaluating, last_logits
from mechsafety.models.hooking import Target, attach, observed
from mechsafety.models.loading import architecture, body_of, is_hooked_transformer
from mechsafety.models.one_thread import in_one_thread
from mechsafety.models.projection import project_out

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# How far baked and hooked logits may lie apart on the probe, as a share of the logits' spread.
# In half precision logits cannot be compared: the rounding of the weights alone comes to 0.3 after 30 layers.
_TOLERANCE = 1e-3
# How far what a map writes may lie from what reaches the stream, as a share of it, whatever the number format:
# rounding of one factor stays below 2^-8, a norm between the two changes every token by another factor.
_DIRECT = 1e-2
_FIRST = "blocks.0.hook_resid_pre"


@contextmanager
def write_weights(
    model: TransformerBridge,
    *,
    basis: Float[Tensor, "k d_model"],
    alpha: float,
    layers: Sequence[int],
    writers: Sequence[str],
    keep_norms: bool,
    hooks: list[Target] | None,
) -> Iterator[None]:
    """W <- W - alpha B^T B W for the named writers, each column at its old length where ``keep_norms``.

    Raises :class:`MechsafetyError` unless what the maps write reaches the stream as it is. ``hooks`` are the
    same edit's, which the result is also compared with in float32 and float64; None where it has none.
    """
    found = writings_of(model, layers, writers, lambda: _probe_logits(model, None))
    _require_direct(model, found, embed="embed" in writers)
    whole = next(body_of(model).parameters()).dtype.itemsize >= 4
    expected = _probe_logits(model, hooks) if hooks is not None and whole else None

    def change(rows: Float[Tensor, "*input d_model"]) -> Float[Tensor, "*input d_model"]:
        new = project_out(rows, basis.to(rows.device), alpha)
        return _with_norms_of(rows, new) if keep_norms else new

    with in_one_thread(model, weights=True), _restored() as keep:
        if "embed" in writers:
            for owner in _embeddings(model):
                _replace_embedding(model, owner, change, keep)
        for writing in found:
            _change_map(writing.rows, change, keep)
        if expected is not None:
            _compare(model, expected)
        yield


def _probe_batch(model: TransformerBridge) -> TokenBatch:
    body = body_of(model)
    vocabulary = body.cfg.d_vocab if is_hooked_transformer(body) else body.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, int(vocabulary), (2, 12), generator=generator)
    return TokenBatch(rows=(0, 1), ids=ids, mask=torch.ones_like(ids)).to(device_of(model))


def probe(model: TransformerBridge) -> None:
    """Run the model once, on random tokens."""
    _probe_logits(model, None)


def _probe_logits(model: TransformerBridge, targets: list[Target] | None) -> Float[Tensor, "row vocabulary"]:
    if targets is not None:
        with attach(model, targets, positions="all", prompt_length=None, twin=None):
            return _probe_logits(model, None)
    batch, body = _probe_batch(model), body_of(model)
    if is_hooked_transformer(body):
        return last_logits(model, batch)
    # With its cache: without one TransformerLens mixes number formats in half precision in some models (OLMo 2).
    with torch.inference_mode(), evaluating(body):
        return body(input_ids=batch.ids, attention_mask=batch.mask).logits[:, -1].float()


def _compare(model: TransformerBridge, hooked: Float[Tensor, "row vocabulary"]) -> None:
    weights = _probe_logits(model, None)
    apart = float((weights - hooked).abs().max() / hooked.std().clamp(min=1e-6))
    if not apart <= _TOLERANCE:
        raise MechsafetyError(
            f"the weight edit is not the hook edit on {architecture(model)}: logits lie "
            f"{apart:.2g} of their spread apart (allowed {_TOLERANCE:g}); {as_hooks()}"
        )


def _require_direct(model: TransformerBridge, found: Sequence[Writing], *, embed: bool) -> None:
    """Raise unless the stream gets what the maps write, up to one factor: only then is projecting W projecting it.

    Measured on a probe in the model's own number format: a norm between the two gives each token another factor.
    """
    written, reached = _probe_writes(model, found, embed=embed)
    for site, parts in written.items():
        if not parts:
            raise MechsafetyError(
                f"the weight edit is not the hook edit on {architecture(model)}: the model does not run the map that "
                f"writes at {site} but a copy of its own, as TransformerLens' compatibility mode makes; {as_hooks()}"
            )
        stream = reached[site].float()
        out = torch.stack([_shaped_as(stream, part) for part in parts]).sum(0)
        factor = (stream * out).sum() / (out * out).sum().clamp(min=1e-30)
        if not float((stream - factor * out).norm()) <= _DIRECT * float(stream.norm()):
            raise MechsafetyError(_not_direct(model, f"what the weights write at {site}"))


def _shaped_as(stream: Tensor, part: Tensor) -> Tensor:
    """``part`` row for row: some maps see the tokens of all rows in a line (OPT), some write the same to every row."""
    return part.reshape(stream.shape) if part.numel() == stream.numel() else part.expand_as(stream)


def _probe_writes(
    model: TransformerBridge, found: Sequence[Writing], *, embed: bool
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """What the maps put out on the probe, and what reaches the stream there, by hook point."""
    sources: dict[str, list[nn.Module]] = {writing.hook: [writing.module] for writing in found}
    written: dict[str, list[Tensor]] = {site: [] for site in sources}
    reached: dict[str, Tensor] = {}
    if embed and is_hooked_transformer(model):
        written[_FIRST] = _looked_up(model)  # an embedding module may end in a norm of its own
    elif embed:
        sources[_FIRST] = [getattr(model, owner).original_component for owner in _embeddings(model)]
        written[_FIRST] = []
    with ExitStack() as stack:
        for site, modules in sources.items():
            for module in modules:
                stack.callback(module.register_forward_hook(_recorder(written[site])).remove)
        readers = [(site, partial(reached.__setitem__, site)) for site in written]
        stack.enter_context(_maps_run_whole(model))
        stack.enter_context(observed(model, readers, twin=None))
        _probe_logits(model, None)
    return written, reached


def _looked_up(model: Any) -> list[Tensor]:
    """The rows of a HookedTransformer's embedding tables that the probe reads."""
    ids = _probe_batch(model).ids
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    tables = {"embed": (model.W_E, ids), "pos_embed": (getattr(model, "W_pos", None), places)}
    found = [tables[owner] for owner in _embeddings(model)]
    return [table.detach()[index].float() for table, index in found if table is not None]


@contextmanager
def _maps_run_whole(model: Any) -> Iterator[None]:
    """A bridge that gives every head's result of its own does not call the output map: it does so while this lasts."""
    apart = getattr(model.cfg, "use_attn_result", False)
    if apart:
        model.cfg.use_attn_result = False
    try:
        yield
    finally:
        if apart:
            model.cfg.use_attn_result = apart


def _recorder(outputs: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).float())

    return record


def _not_direct(model: TransformerBridge, what: str) -> str:
    return (
        f"the weight edit is not the hook edit on {architecture(model)}: {what} does not reach the residual stream "
        f"as it is, a norm lies between; {as_hooks()}"
    )


@contextmanager
def _restored() -> Iterator[list[Callable[[], None]]]:
    undo: list[Callable[[], None]] = []
    try:
        yield undo
    finally:
        for action in reversed(undo):
            action()


def _embeddings(model: TransformerBridge) -> list[str]:
    """The tables whose rows are added to the residual stream."""
    cfg: Any = model.cfg
    added = not is_hooked_transformer(model) or cfg.positional_embedding_type == "standard"
    return ["embed", "pos_embed"] if added and hasattr(model, "pos_embed") else ["embed"]


def _replace_embedding(
    model: TransformerBridge, owner: str, change: Callable[[Tensor], Tensor], keep: list[Callable[[], None]]
) -> None:
    """Give the embedding a projected table of its own; a tied unembedding keeps the old one."""
    part = getattr(model, owner)
    if is_hooked_transformer(model):
        places = [(part, "W_E" if owner == "embed" else "W_pos")]
    else:
        places = [(part.original_component, "weight")]
    original = getattr(*places[0], None)
    if not isinstance(original, nn.Parameter):
        raise MechsafetyError(f"{architecture(model)}: no embedding table at {owner!r}")
    twin: Any = model.__dict__.get("_mechsafety_twin")
    if twin is not None:
        places += [
            (m, "weight") for m in twin.modules() if isinstance(m, nn.Embedding) and m.weight is original
        ]
    table = nn.Parameter(change(original.detach()), requires_grad=False)
    for module, name in places:
        keep.append(lambda module=module, name=name: setattr(module, name, original))
        setattr(module, name, table)


def _with_norms_of(old: Float[Tensor, "*input d_model"], new: Tensor) -> Float[Tensor, "*input d_model"]:
    """``new`` stretched row by row to the lengths in ``old``; rows that became (nearly) zero are left."""
    before, after = old.float().norm(dim=-1, keepdim=True), new.float().norm(dim=-1, keepdim=True)
    scale = torch.where(after > 1e-3 * before, before / after.clamp(min=1e-30), torch.ones_like(after))
    return (new.float() * scale).to(old.dtype)


def _change_map(
    written: Sequence[Float[Tensor, "... d_model"]],
    change: Callable[[Tensor], Tensor],
    keep: list[Callable[[], None]],
) -> None:
    for rows in written:
        saved = rows.clone()
        keep.append(lambda rows=rows, saved=saved: _assign(rows, saved))
        _assign(rows, change(saved))


def _assign(rows: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        rows.copy_(value)
