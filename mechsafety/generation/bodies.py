"""What to call for a forward pass, with an edit on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from mechsafety.edits.interventions import Edit, edited
from mechsafety.models.forward import evaluating
from mechsafety.models.hooking import plain_twin
from mechsafety.models.loading import body_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def body_under(model: TransformerBridge, edit: Edit | None) -> Iterator[Any]:
    """The module to call while the block runs: the plain twin where it can carry ``edit``, else the model's own."""
    twin = plain_twin(model, edit.targets(model.cfg.n_layers) if edit is not None else [])
    body = twin if twin is not None else body_of(model)
    with evaluating(body), edited(model, edit, twin=twin) if edit is not None else nullcontext():
        yield body
