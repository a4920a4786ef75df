"""What to call for a forward pass, with an edit on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from mechsafety.edits.interventions import Edit, edited, targets_on
from mechsafety.models.forward import evaluating
from mechsafety.models.hooking import plain_twin_at
from mechsafety.models.loading import body_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def body_under(model: TransformerBridge, edit: Edit | None) -> Iterator[Any]:
    """The module to call while the block runs: the plain twin where it can carry ``edit``, else the model's own."""
    hooks = [target.hook for target in targets_on(model, edit)] if edit is not None else []
    twin = plain_twin_at(model, hooks)
    body = twin if twin is not None else body_of(model)
    with evaluating(body), edited(model, edit, twin=twin) if edit is not None else nullcontext():
        yield body
