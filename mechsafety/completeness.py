"""Whether an ablation everywhere leaves nothing: the places where some block writes to the stream past its hooks.

Projecting at every block's input, attention output and MLP output is complete where blocks write by these alone. A
second branch (the state-space one of Falcon-H1) or a later addition (Gemma 4's per-layer inputs) writes past them. What
each norm reads is measured once a model, under the ablation of a random direction; what is left there is projected as
well.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mechsafety.edits import EVERYWHERE, Ablate
from mechsafety.errors import MechsafetyError
from mechsafety.forward import forward
from mechsafety.hooking import Target, attach, observed, plain_module_path
from mechsafety.models import architecture, body_of, is_hooked_transformer, plain_tree
from mechsafety.tokens import TokenBatch, device_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Place = tuple[int, Literal["resid_mid", "resid_post"]]
_FOUND = "_mechsafety_written_past_hooks"
_TOKENS = 16


def written_past_hooks(model: TransformerBridge) -> tuple[Place, ...]:
    """Where an ablation at :data:`edits.EVERYWHERE` must act besides: (layer, site), mostly nowhere.

    Raises :class:`MechsafetyError` where something is left for a norm to read even so.
    """
    if is_hooked_transformer(model):  # its blocks write by attn_out and mlp_out, by construction
        return ()
    if _FOUND not in model.__dict__:
        leaking = _left(model, ())
        if leaking and (still := _left(model, leaking)):
            raise MechsafetyError(
                f"{architecture(model)} writes to the residual stream past every hook point that it has (a "
                f"direction that is projected out everywhere is back at {still[0][1]} of block {still[0][0]}): an "
                "ablation everywhere is not complete there, so it is refused; name sites or layers for a partial one"
            )
        model.__dict__[_FOUND] = leaking
    return model.__dict__[_FOUND]


def with_places(targets: Sequence[Target], places: Sequence[Place]) -> list[Target]:
    """``targets`` and the same map at ``places``."""
    by_layer = {t.layer: t for t in targets}
    return [*targets, *(replace(by_layer[layer], site=site) for layer, site in places)]


def _left(model: TransformerBridge, places: Sequence[Place]) -> tuple[Place, ...]:
    """Where a norm reads some of a direction that is projected out at every site and at ``places``."""
    n = model.cfg.n_layers
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(model.cfg.d_model, generator=generator, dtype=torch.float32)
    targets = Ablate(direction).targets(n)
    present = model.hook_dict
    if any(t.hook not in present for t in targets):
        return ()  # said by name where the edit is put on
    read: list[Place] = [(layer, "resid_mid") for layer in range(n)]
    read = [p for p in read if f"blocks.{p[0]}.hook_{p[1]}" in present] + [(n - 1, "resid_post")]
    names = [f"blocks.{layer}.hook_{site}" for layer, site in read]
    plain = all(plain_module_path(model, name) for name in [*(t.hook for t in targets), *names])
    twin = plain_tree(model) if plain else None  # hooks of the user's feel nothing of this where there is one
    body: Any = twin if twin is not None else body_of(model)
    vocabulary = body.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[(7919 * i) % vocabulary for i in range(1, _TOKENS + 1)]], device=device_of(model))
    batch = TokenBatch(rows=(0,), ids=ids, mask=torch.ones_like(ids))
    unit = (direction / direction.norm()).to(ids.device)

    def along(edit: Sequence[Target]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        readers = [
            (name, lambda x, name=name: seen.__setitem__(name, (x.float() @ unit).norm())) for name in names
        ]
        with ExitStack() as stack:
            if edit:
                stack.enter_context(attach(model, edit, positions="all", prompt_length=None, twin=twin))
            stack.enter_context(observed(model, readers, twin=twin))
            forward(body, batch, logits=None)
        return seen

    whole, left = along(()), along(with_places(targets, places))
    most = 0.05 if next(body.parameters()).dtype.itemsize < 4 else 1e-3
    return tuple(
        p for p, name in zip(read, names, strict=True) if float(left[name]) > most * float(whole[name])
    )


def is_complete(edit: Any, n_layers: int) -> bool:
    """Whether ``edit`` is meant to leave nothing: full strength at every site, layer and position."""
    return (
        getattr(edit, "alpha", None) == 1.0
        and getattr(edit, "positions", None) == "all"
        and set(EVERYWHERE) <= set(getattr(edit, "sites", ()))
        and (edit.layers is None or set(edit.layers) == set(range(n_layers)))
    )
