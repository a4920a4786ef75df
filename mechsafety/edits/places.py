"""The hook points at which the targets of an edit stand in a model whose blocks may differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.values import EVERYWHERE, SITES
from mechsafety.models.hooking import Target
from mechsafety.models.loading import architecture
from mechsafety.models.sites import WRITTEN, hook_points, lacks, places_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def at_places(model: TransformerBridge, targets: Sequence[Target], *, once: bool = False) -> list[Target]:
    """``targets`` at the hook points of their sites; ``once`` takes the first alone where a block has two for one site.

    Where an edit names all that a block writes, a block that has no MLP, or nothing but MLPs, lacks nothing: it takes
    what there is. Raises :class:`MechsafetyError` for any other site that a block lacks.
    """
    named: dict[int, set[str]] = {}
    for target in targets:
        named.setdefault(target.layer, set()).add(target.site)
    present = hook_points(model)
    found: list[Target] = []
    for target in targets:
        places = places_of(model, target.layer, target.site, present=present)
        whole = set(WRITTEN) <= named[target.layer]
        if not places and not (whole and lacks(model, target.layer, target.site)):
            _refuse(model, target)
        found += [replace(target, at=place) for place in (places[:1] if once else places)]
    return found


def written_places(model: TransformerBridge) -> list[list[str]]:
    """The hook points of each block where an ablation everywhere acts; none for a block that has not all of them."""
    present = hook_points(model)
    found: list[list[str]] = []
    for layer in range(model.cfg.n_layers):
        sites = [site for site in EVERYWHERE if not lacks(model, layer, site)]
        places = [places_of(model, layer, site, present=present) for site in sites]
        found.append([name for names in places for name in names] if all(places) else [])
    return found


def _refuse(model: TransformerBridge, target: Target) -> None:
    sites = [site for site in SITES if places_of(model, target.layer, site)]
    raise MechsafetyError(
        f"this model has no hook point blocks.{target.layer}.hook_{target.site}: the sites of block {target.layer} of "
        f"{architecture(model)} are {', '.join(sites) or 'none'}"
    )
