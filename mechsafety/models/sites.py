"""Which hook points a site of a block is: whatever its token mixers and its MLPs write, found from its modules.

``attn_out`` is what a block's token mixers write, be they attention, linear attention, a state space or a convolution,
and ``mlp_out`` what its MLPs write, mixtures of experts included. Blocks of one model may differ, may have two branches
of one sort (attention beside a state space), and may lack one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mechsafety.models.loading import is_hooked_transformer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WRITTEN = ("attn_out", "mlp_out")
"""The sites that are increments: everything a block adds to the stream."""
_BRANCHES = "_mechsafety_branches"
_USUAL = {"attn": "attn_out", "mlp": "mlp_out"}
"""The branches that TransformerLens has an alias for, behind a norm of the branch's own where there is one."""


def hook_points(model: TransformerBridge) -> frozenset[str]:
    """The hook points that a pass reaches: one without MLPs (``attn_only``) has names for what these would write."""
    present = frozenset(model.hook_dict)
    if not getattr(model.cfg, "attn_only", False):
        return present
    return frozenset(name for name in present if not name.endswith((".hook_mlp_out", ".hook_mlp_in")))


def places_of(
    model: TransformerBridge, layer: int, site: str, *, present: Collection[str] | None = None
) -> tuple[str, ...]:
    """The hook points of ``site`` in block ``layer``: none where the block has no such site.

    ``present`` are those of the whole model, which takes long to list, where they are known.
    """
    present = hook_points(model) if present is None else present
    branches = {} if is_hooked_transformer(model) else branches_of(model, layer, present=present)
    names = [name for name, (kind, _) in branches.items() if kind == site]
    return tuple(name for name in names or [f"blocks.{layer}.hook_{site}"] if name in present)


def lacks(model: TransformerBridge, layer: int, site: str) -> bool:
    """Whether nothing in the block writes at ``site``, but something at the other."""
    if is_hooked_transformer(model):
        return site == "mlp_out" and bool(getattr(model.cfg, "attn_only", False))
    kinds = {part.site for part in _parts(model, layer)}
    return site in WRITTEN and bool(kinds) and site not in kinds


def branches_of(
    model: TransformerBridge, layer: int, *, present: Collection[str] | None = None
) -> dict[str, tuple[str, Any]]:
    """By hook point: the site that a branch of the block is, and its bridge component."""
    present = hook_points(model) if present is None else present
    found: dict[str, tuple[str, Any]] = {}
    for part in _parts(model, layer):
        usual = f"blocks.{layer}.hook_{_USUAL.get(part.name, '')}"
        place = usual if usual in present else f"blocks.{layer}.{part.writes}.hook_out"
        found[place] = part.site, part.component
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """A branch of a block: its name, the site that it is, the name of the component whose output is added to the
    stream, and its own component."""

    name: str
    site: str
    writes: str
    component: Any


def _parts(model: Any, layer: int) -> list[_Part]:
    """The branches of a block, those with a usual name first."""
    # Every edit asks, and the parameters of many experts take long to count.
    known: dict[int, list[_Part]] = model.__dict__.setdefault(_BRANCHES, {})
    if layer not in known:
        known[layer] = sorted(_found_parts(model.blocks[layer]), key=lambda part: part.name not in _USUAL)
    return known[layer]


def _found_parts(block: Any) -> Iterator[_Part]:
    """A branch is a child that holds two weight matrices at least: norms hold none, and single maps are no branch.

    A block that this package has read itself says which they are (:mod:`mechsafety.models.layouts`).
    """
    from transformer_lens.model_bridge.generalized_components import MLPBridge, MoEBridge

    declared: dict[str, tuple[str, str]] | None = getattr(block, "mechsafety_branches", None)
    for name, child in block.named_children():
        inner = getattr(child, "original_component", None)
        if not hasattr(child, "hook_out") or not isinstance(inner, nn.Module):
            continue
        if declared is not None:
            if name in declared:
                site, writes = declared[name]
                yield _Part(name=name, site=site, writes=writes, component=child)
        elif sum(p.ndim > 1 for p in inner.parameters()) > 1:
            site = "mlp_out" if isinstance(child, MLPBridge | MoEBridge) else "attn_out"
            yield _Part(name=name, site=site, writes=name, component=child)
