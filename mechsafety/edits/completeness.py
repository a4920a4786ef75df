"""Whether an ablation everywhere leaves nothing: the places where some block writes to the stream past its hooks.

Projecting at every block's input, attention output and MLP output is complete where blocks write by these alone. A
second branch (the state-space one of Falcon-H1) or a later addition (Gemma 4's per-layer inputs) writes past them. What
each norm reads is measured once per model, under the ablation of a random direction; what is left there is projected as
well.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.places import at_places, written_places
from mechsafety.edits.values import EVERYWHERE, Ablate, layers_of
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import TokenBatch, device_of
from mechsafety.models.faithful import made_up_tokens
from mechsafety.models.forward import forward
from mechsafety.models.hooking import Target, attach, observed, plain_module_path, plain_twin_at
from mechsafety.models.loading import architecture, body_of, is_hooked_transformer, plain_tree
from mechsafety.models.placing import Copies

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

Place = tuple[int, Literal["resid_mid", "resid_post"]]
_FOUND = "_mechsafety_written_past_hooks"
_TOKENS = 16


def written_past_hooks(model: TransformerBridge) -> tuple[Place, ...]:
    """Where an ablation at :data:`EVERYWHERE` must act besides: (layer, site), mostly nowhere.

    Raises :class:`MechsafetyError` where something is left for a norm to read even so.
    """
    if is_hooked_transformer(model):  # its blocks write by attn_out and mlp_out, by construction
        return ()
    leaking = _before_norms(model, _found(model, ()))
    if leaking and (still := _before_norms(model, _found(model, leaking))):
        raise MechsafetyError(
            f"{architecture(model)} writes to the residual stream past every hook point that it has (a "
            f"direction that is projected out everywhere is back at {still[0][1]} of block {still[0][0]}): an "
            "ablation everywhere is not complete there, so it is refused; name sites or layers for a partial one"
        )
    return leaking


def left_by_partial(model: TransformerBridge, edit: Any) -> tuple[str, ...]:
    """Hook points in the layers of a partial ablation where its blocks write past the sites that it acts on.

    It is not widened to them: what it names is what it does. The receipt of :func:`edited` carries them.
    """
    if is_hooked_transformer(model) or not set(EVERYWHERE) <= set(getattr(edit, "sites", ())):
        return ()  # an edit of single sites leaves what the others write, as it declares
    layers = set(layers_of(edit.layers, model.cfg.n_layers))
    # What stands after a block is cleaned at the next one's input.
    within = {(layer, "resid_post") for layer in layers if layer + 1 in layers}
    return tuple(
        f"blocks.{layer}.hook_{site}"
        for layer, site in _found(model, ())
        if layer in layers and (layer, site) not in within
    )


def component_left(model: ModelLike, edit: Ablate) -> dict[str, float]:
    """The share of an ablated direction that the stream still holds under ``edit``, within and after each block.

    Measured over 16 made-up tokens: the norm of the component with the edit over the norm without, 0 where nothing is
    left and 1 where the edit changes nothing. Of a subspace, its first direction is read.

    Returns:
        Shares, 0 where nothing is left and 1 where all is, by the name of the place in the stream.

    Example:
        >>> left = ms.anatomy.component_left(model, ms.Ablate(direction))  # everywhere, with alpha = 1
        >>> max(left.values()) < 1e-4
        True
    """
    model = as_model(model)
    targets, names = at_places(model, edit.targets(model.cfg.n_layers)), _stream(model)
    hooks = [*(t.hook for t in targets), *names]
    whole, left = _along(model, edit.basis[0], list(names), [(), targets], twin=plain_twin_at(model, hooks))
    return {name: float(left[name] / whole[name].clamp(min=1e-30)) for name in names}


def _before_norms(model: TransformerBridge, places: Sequence[Place]) -> tuple[Place, ...]:
    """Those that a norm reads: what stands after a block is projected once more at the input of the next."""
    return tuple(place for place in places if place[1] == "resid_mid" or place[0] == model.cfg.n_layers - 1)


def _found(model: TransformerBridge, places: tuple[Place, ...]) -> tuple[Place, ...]:
    """:func:`_left`, measured once for a model: every edit asks."""
    known: dict[tuple[Place, ...], tuple[Place, ...]] = model.__dict__.setdefault(_FOUND, {})
    if places not in known:
        known[places] = _left(model, places)
    return known[places]


def with_places(targets: Sequence[Target], places: Sequence[Place]) -> list[Target]:
    """``targets`` and the same map at ``places``."""
    by_layer = {t.layer: t for t in targets}
    return [*targets, *(replace(by_layer[layer], site=site, at="") for layer, site in places)]


def _left(model: TransformerBridge, places: Sequence[Place]) -> tuple[Place, ...]:
    """Where the stream holds some of a direction that is projected out at every site and at ``places``."""
    direction = torch.randn(
        model.cfg.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float32
    )
    if not all(written_places(model)):
        return ()  # reported by name where the edit is put on
    targets = at_places(model, Ablate(direction).targets(model.cfg.n_layers))
    read = _stream(model)
    edit = with_places(targets, places)
    plain = all(plain_module_path(model, name) for name in [*(t.hook for t in edit), *read])
    twin = plain_tree(model) if plain else None  # hooks of the user's feel nothing of this where there is one
    whole, left = _along(model, direction, list(read), [(), edit], twin=twin)
    most = 0.05 if next(body_of(model).parameters()).dtype.itemsize < 4 else 1e-3
    return tuple(place for name, place in read.items() if float(left[name]) > most * float(whole[name]))


def _stream(model: TransformerBridge) -> dict[str, Place]:
    """The hook points of the stream before each block's MLP and after each block."""
    sites: tuple[Literal["resid_mid", "resid_post"], ...] = ("resid_mid", "resid_post")
    places: list[Place] = [(layer, site) for layer in range(model.cfg.n_layers) for site in sites]
    names = {f"blocks.{place[0]}.hook_{place[1]}": place for place in places}
    present = model.hook_dict
    return {name: place for name, place in names.items() if name in present}


def _along(
    model: TransformerBridge,
    direction: Tensor,
    names: Sequence[str],
    edits: Sequence[Sequence[Target]],
    *,
    twin: PreTrainedModel | None,
) -> list[dict[str, Tensor]]:
    """The norm of the component along ``direction`` at each of ``names`` under each of ``edits``."""
    body: Any = twin if twin is not None else body_of(model)
    ids = made_up_tokens(model.cfg.d_vocab, _TOKENS, device_of(model))
    batch = TokenBatch(rows=(0,), ids=ids, mask=torch.ones_like(ids))
    unit = Copies(direction / direction.norm())

    def along(edit: Sequence[Target]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        readers = [
            (name, lambda x, name=name: seen.__setitem__(name, (x.float() @ unit.on(x.device)).norm()))
            for name in names
        ]
        with ExitStack() as stack:
            if edit:
                stack.enter_context(attach(model, edit, positions="all", prompt_length=None, twin=twin))
            stack.enter_context(observed(model, readers, twin=twin))
            forward(body, batch, logits=None)
        return seen

    return [along(edit) for edit in edits]


def is_complete(edit: Any, n_layers: int) -> bool:
    """Whether ``edit`` is meant to leave nothing: full strength at every site, layer and position."""
    return (
        getattr(edit, "alpha", None) == 1.0
        and getattr(edit, "positions", None) == "all"
        and set(EVERYWHERE) <= set(getattr(edit, "sites", ()))
        and (edit.layers is None or set(edit.layers) == set(range(n_layers)))
    )
