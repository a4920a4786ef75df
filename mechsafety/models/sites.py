"""Which hook points a site of a block is: whatever its token mixers and its MLPs write, found from its modules.

``attn_out`` is what a block's token mixers write, be they attention, linear attention, a state space or a convolution,
and ``mlp_out`` what its MLPs write, mixtures of experts included. Blocks of one model may differ, may have two branches
of one sort (attention beside a state space), and may lack one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from mechsafety.models.loading import is_hooked_transformer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WRITTEN = ("attn_out", "mlp_out")
"""The sites that are increments: everything a block adds to the stream."""
_PLACES = "_mechsafety_places"
_USUAL = {"attn": "attn_out", "mlp": "mlp_out"}
"""The branches that TransformerLens has an alias for, behind a norm of the branch's own where there is one."""


def hook_points(model: TransformerBridge) -> frozenset[str]:
    """The hook points that a pass reaches: one without MLPs (``attn_only``) has names for what these would write."""
    present = frozenset(model.hook_dict)
    if not getattr(model.cfg, "attn_only", False):
        return present
    return frozenset(name for name in present if not name.endswith((".hook_mlp_out", ".hook_mlp_in")))


def places_of(model: TransformerBridge, layer: int, site: str) -> tuple[str, ...]:
    """The hook points of ``site`` in block ``layer``: none where the block has no such site."""
    known: dict[tuple[int, str], tuple[str, ...]] = model.__dict__.setdefault(_PLACES, {})
    if not known:
        present = hook_points(model)
        for block in range(model.cfg.n_layers):
            branches = {} if is_hooked_transformer(model) else branches_of(model, block)
            for each in ("resid_pre", "resid_mid", "resid_post", *WRITTEN):
                names = [name for name, (kind, _) in branches.items() if kind == each]
                names = names or [f"blocks.{block}.hook_{each}"]
                known[block, each] = tuple(name for name in names if name in present)
    return known.get((layer, site), ())


def branches_of(model: Any, layer: int) -> dict[str, tuple[str, Any]]:
    """By hook point: the site that a branch of the block is, and its bridge component.

    A branch is a child that holds two weight matrices at least: norms hold none, and single maps are no branch.
    """
    from transformer_lens.model_bridge.generalized_components import MLPBridge, MoEBridge

    present = model.hook_dict
    found: dict[str, tuple[str, Any]] = {}
    children = [(n, c) for n, c in model.blocks[layer].named_children() if hasattr(c, "hook_out")]
    for name, child in sorted(children, key=lambda each: each[0] not in _USUAL):
        inner = getattr(child, "original_component", None)
        if not isinstance(inner, nn.Module) or sum(p.ndim > 1 for p in inner.parameters()) < 2:
            continue
        site = "mlp_out" if isinstance(child, MLPBridge | MoEBridge) else "attn_out"
        usual = f"blocks.{layer}.hook_{_USUAL.get(name, '')}"
        found[usual if usual in present else f"blocks.{layer}.{name}.hook_out"] = site, child
    return found
