"""Attention heads as regions: what a linear probe reads from each, and taking heads out of the weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.directions.activations import DEFAULT_BATCH
from mechsafety.directions.estimators import estimate
from mechsafety.models.chat import batches, device_of
from mechsafety.models.finite import not_finite_at
from mechsafety.models.forward import forward, run_prefix
from mechsafety.models.handles import attached
from mechsafety.models.loading import model_name
from mechsafety.models.prefixes import common_prefix
from mechsafety.prompts.columns import LABELS
from mechsafety.prompts.fed import fitting
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.regions.maps import LinearMap, linear_maps, running_body
from mechsafety.regions.removal import Pruning

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

_NEAR = 5
"""Heads among which one of like size is drawn."""
Head = tuple[int, int]
"""(layer, head), both from 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadOutputs:
    """What each attention head puts out at the last prompt token, before W_O mixes the heads; float32, on the CPU.

    ``layers`` are the blocks that have attention.
    """

    outputs: Float[Tensor, "prompt layer head d_head"]
    layers: tuple[int, ...]
    ids: tuple[str, ...]
    labels: tuple[str, ...]

    def select(self, label: str) -> Float[Tensor, "prompt layer head d_head"]:
        rows = [row for row, value in enumerate(self.labels) if value == label]
        if len(rows) < 2:
            raise MechsafetyError(f"{len(rows)} {label} prompts are too few for a probe: 2 of each at least")
        return self.outputs[rows]


def head_outputs(
    model: TransformerBridge, prompts: Sequence[Prompt], *, batch_size: int = DEFAULT_BATCH
) -> HeadOutputs:
    """Every head's output (hook_z) at the last token of each prompt, in one pass over the prompts.

    It is the input of W_O, read where the map runs and cut into heads; with grouped-query attention too, since
    only keys and values are shared there. Raises :class:`MechsafetyError` for no prompts, for a model without
    attention, and for NaN.
    """
    if not prompts:
        raise MechsafetyError("no prompts to read the heads on")
    outs = _output_maps(linear_maps(model), n_heads=model.cfg.n_heads)
    n_heads, d_head = model.cfg.n_heads, outs[0].d_in // model.cfg.n_heads
    found = torch.empty(len(prompts), len(outs), n_heads, d_head, dtype=torch.float32)
    body: Any = running_body(model)
    _, sequences = fitting(model, prompts)
    shared = common_prefix(body, sequences, device_of(model))
    before = run_prefix(body, shared, device_of(model))
    rows: list[int] = []

    def reader(place: int) -> Any:
        def read(_module: Any, args: tuple[Any, ...]) -> None:
            found[rows, place] = args[0][:, -1].reshape(-1, n_heads, d_head).float().cpu()

        return read

    handles = [linear.module.register_forward_pre_hook(reader(place)) for place, linear in enumerate(outs)]
    with attached(handles), bar("attention heads", total=len(prompts), unit="prompt") as progress:
        rests = [s[len(shared) :] for s in sequences]
        for batch in batches(model, rests, batch_size=batch_size):
            rows[:] = batch.rows
            forward(body, batch, logits=None, before=before)
            progress.update(len(rows))
    for linear, outputs in zip(outs, found.unbind(1), strict=True):
        if not bool(torch.isfinite(outputs).all()):
            raise not_finite_at(model_name(model), f"a head's output at layer {linear.layer}")
    return HeadOutputs(
        outputs=found,
        layers=tuple(linear.layer for linear in outs),
        ids=tuple(p.id for p in prompts),
        labels=tuple(p.label for p in prompts),
    )


def head_scores(fit: HeadOutputs, held_out: HeadOutputs) -> Float[Tensor, "prompt layer head"]:
    """How harmful a linear probe of each head finds the held-out prompts; higher is more harmful.

    The probe is :func:`estimate`'s: logistic regression with an L2 penalty (C = 1) on outputs
    scaled to unit root mean square, one per head, fitted on ``fit`` alone. Its scale and offset are left out: they do
    not order prompts. Raises :class:`MechsafetyError` when a prompt is in both, or when the layers differ.
    """
    if shared := sorted(set(fit.ids) & set(held_out.ids)):
        raise MechsafetyError(
            f"{len(shared)} prompts are both fitted and held out, {shared[0]!r} for one: take two splits"
        )
    if fit.layers != held_out.layers or fit.outputs.shape[2:] != held_out.outputs.shape[2:]:
        raise MechsafetyError("the fitted and the held-out outputs are of models with other heads")
    harmful, harmless = (fit.select(label).double() for label in LABELS)
    probes = estimate("probe", harmful, harmless).vectors
    return torch.einsum("plhd,lhd->plh", held_out.outputs.double(), probes).float()


def best_heads(table: pd.DataFrame, *, n: int) -> list[Head]:
    """The ``n`` heads (layer, head) of the highest ``auroc`` in a table of heads; of equals the earlier.

    The best of many looks better on the prompts that chose it than it is: measure what pruning does on others.
    """
    measured = table.dropna(subset=["auroc"])
    if not 1 <= n <= len(measured):
        raise MechsafetyError(f"{n} best heads of {len(measured)} measured ones: choose 1 to {len(measured)}")
    order = measured.sort_values(["auroc", "layer", "head"], ascending=[False, True, True])
    return [(int(layer), int(head)) for layer, head in order[["layer", "head"]].head(n).to_numpy()]


def prune_heads(maps: Sequence[LinearMap], heads: Sequence[Head], *, n_heads: int) -> Pruning:
    """Set heads to zero: their columns of W_O and their rows of W_Q, W_K and W_V.

    The columns alone silence a head exactly, biases and all; its query rows are then idle. With grouped-query
    attention several query heads read one key-value head, whose rows of W_K and W_V go only when all of them
    do: nothing that a remaining head reads is touched. (The paper's released code zeroes rows of W_O and columns of
    the others, which is a slice of the residual stream and no head.)

    Raises :class:`MechsafetyError` for no heads, one named twice, one there is not, and maps that do not divide
    into heads.
    """
    outs = {linear.layer: linear for linear in _output_maps(maps, n_heads=n_heads)}
    _require_heads(heads, layers=outs, n_heads=n_heads)
    chosen: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        chosen.setdefault(layer, []).append(head)
    entries: dict[str, Tensor] = {}
    for linear in maps:
        gone = chosen.get(linear.layer)
        if gone is None or linear.kind not in ("q", "k", "v", "o"):
            continue
        d_head = outs[linear.layer].d_in // n_heads
        if linear.kind == "o":
            entries[linear.name] = _entries(linear, _slices(gone, d_head), columns=True)
            continue
        groups, rest = divmod(linear.d_out, d_head)
        if rest or n_heads % groups:
            raise MechsafetyError(
                f"{linear.name} has {linear.d_out} rows, which do not divide into heads of {d_head} that "
                f"{n_heads} query heads share evenly: heads of this architecture cannot be pruned by rows"
            )
        share = n_heads // groups
        whole = [g for g in range(groups) if set(range(g * share, (g + 1) * share)) <= set(gone)]
        if whole:
            entries[linear.name] = _entries(linear, _slices(whole, d_head), columns=False)
    return Pruning(
        label=f"{len(heads)} attention heads",
        entries=entries,
        shapes={linear.name: (linear.d_out, linear.d_in) for linear in maps},
    )


def random_heads(
    maps: Sequence[LinearMap], heads: Sequence[Head], *, n_heads: int, seed: int, in_size: bool = False
) -> list[Head]:
    """The random control of ``heads``: as many others, drawn from all heads of the model that are not among them.

    Heads are matched, not weights: with grouped-query attention the key and value rows that go along may differ.
    ``in_size`` draws for each head one of the few others whose columns of W_O have the norm nearest to its own.
    """
    outs = _output_maps(maps, n_heads=n_heads)
    layers = [linear.layer for linear in outs]
    _require_heads(heads, layers=layers, n_heads=n_heads)
    others = sorted({(layer, head) for layer in layers for head in range(n_heads)} - set(heads))
    if len(others) < len(heads):
        raise MechsafetyError(
            f"{len(heads)} heads leave {len(others)} others to draw as many from: choose at most half of them"
        )
    generator = random.Random(seed)
    if not in_size:
        return sorted(generator.sample(others, len(heads)))
    norms = {
        (linear.layer, head): float(columns.norm())
        for linear in outs
        for head, columns in enumerate(linear.weight().float().chunk(n_heads, dim=1))
    }
    drawn: list[Head] = []
    for head in generator.sample(list(heads), len(heads)):
        near = sorted(others, key=lambda other: abs(norms[other] - norms[head]))[:_NEAR]
        drawn.append(generator.choice(near))
        others.remove(drawn[-1])
    return sorted(drawn)


def _output_maps(maps: Sequence[LinearMap], *, n_heads: int) -> list[LinearMap]:
    """The maps that mix the heads (W_O), each with a d_in that divides into heads."""
    found = [linear for linear in maps if linear.kind == "o"]
    if routed := [linear.name for linear in found if linear.expert is not None]:
        raise MechsafetyError(
            f"{routed[0]} is an expert of an attention that is a mixture: which head is which depends on the token, "
            "and heads of this architecture cannot be removed"
        )
    uneven = [linear.name for linear in found if linear.d_in % n_heads]
    if not found or uneven:
        raise MechsafetyError(
            f"heads need an output map of attention whose inputs divide into {n_heads} heads: "
            + (f"{uneven[0]} does not" if uneven else "this model's blocks have no map of kind o")
        )
    return found


def _require_heads(heads: Sequence[Head], *, layers: Any, n_heads: int) -> None:
    if not heads or len(set(heads)) < len(heads):
        raise MechsafetyError(f"heads {list(heads)}: name one at least, and none twice")
    for layer, head in heads:
        if layer not in layers or not 0 <= head < n_heads:
            raise MechsafetyError(
                f"no head {head} in layer {layer}: layers {min(layers)} to {max(layers)} have heads 0 to {n_heads - 1}"
            )


def _slices(heads: Sequence[int], d_head: int) -> Int[Tensor, " place"]:
    return torch.cat([torch.arange(head * d_head, (head + 1) * d_head) for head in heads])


def _entries(linear: LinearMap, places: Int[Tensor, " place"], *, columns: bool) -> Int[Tensor, " entry"]:
    """Flat places of whole rows or whole columns, ascending."""
    if columns:
        return (torch.arange(linear.d_out)[:, None] * linear.d_in + places).flatten()
    return (places[:, None] * linear.d_in + torch.arange(linear.d_in)).flatten()
