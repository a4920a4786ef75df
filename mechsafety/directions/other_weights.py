"""One rule for directions and the model they are used on: other weights are an error that names what allows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.chat_settings import chat_text
from mechsafety.models.loading import known_fingerprint, model_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from mechsafety.directions.direction import Directions


def other_weights(model: TransformerBridge, directions: Directions) -> bool:
    """Whether the directions were found on a model with other weights."""
    return bool(directions.fingerprint) and known_fingerprint(model) != directions.fingerprint


def require_same_model(
    model: TransformerBridge, directions: Directions, *, allow_other_weights: bool = False
) -> None:
    """Raise :class:`MechsafetyError` for a model of another shape, with other weights or under other chat settings.

    ``allow_other_weights`` passes over the weights, to carry directions from one checkpoint to the next.
    """
    if directions.vectors.shape[-1] != model.cfg.d_model or directions.n_layers != model.cfg.n_layers + 1:
        raise MechsafetyError(
            f"directions of shape {list(directions.vectors.shape)} do not fit a model of {model.cfg.n_layers} "
            f"layers and d_model {model.cfg.d_model}"
        )
    if not allow_other_weights and other_weights(model, directions):
        raise MechsafetyError(
            f"these directions were found on {directions.model!r}, whose weights differ from {model_name(model)!r}'s; "
            "to use them all the same give allow_other_weights=True, which is recorded"
        )
    if directions.chat != chat_text(model):
        raise MechsafetyError(
            f"these directions were found under other chat settings ({directions.chat or 'the default ones'}) than the "
            f"model's ({chat_text(model) or 'the default ones'}): load the model with theirs, or find them again"
        )
