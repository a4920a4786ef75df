"""Models as people have them: loaded, of their own, or by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mechsafety.core.arguments import shown
from mechsafety.core.errors import MechsafetyError
from mechsafety.models.loading import is_hooked_transformer, load_model, load_record

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

    ModelLike: TypeAlias = TransformerBridge | HookedTransformer | str | Path
else:
    ModelLike = Any
"""A loaded model, one of the user's own, or the spec or folder of one, which is loaded with the default settings."""


SAVED_FIRST = (
    "of a model of transformers give its name or folder; one that is changed in memory is saved with its tokenizer, "
    "save_pretrained(folder), first"
)


def as_model(given: Any, *, by_name: bool = True) -> TransformerBridge:
    """``given`` as a model; one that is named is loaded.

    Raises :class:`MechsafetyError` for anything else, and for a name where the model must be the caller's
    (``by_name=False``): what is put on it would be lost with it.
    """
    if isinstance(given, str | Path):
        if by_name:
            return load_model(str(given))
        raise MechsafetyError(
            f"{given!r} is a name, and what is put on a model is lost with it: load it first, "
            f"model = ms.load_model({str(given)!r})"
        )
    if is_model(given):
        return given
    hint = ""
    if hasattr(given, "generation_config") or hasattr(given, "from_pretrained"):
        hint = f"; {SAVED_FIRST}"
    raise MechsafetyError(
        f"model is {shown(given)}: one of ms.load_model, a TransformerBridge, a HookedTransformer or a name is "
        f"needed{hint}"
    )


def is_model(given: Any) -> bool:
    """Whether ``given`` can be run here: a bridge, or a HookedTransformer of transformer-lens 3."""
    try:
        return hasattr(given, "cfg") and (hasattr(given, "original_model") or is_hooked_transformer(given))
    except AttributeError:
        return False


def named(given: Any) -> str:
    """The spec of a model: a name as it is, a loaded model by what it was loaded from.

    Raises :class:`MechsafetyError` for a model that :func:`load_model` did not load.
    """
    if isinstance(given, str | Path):
        return str(given)
    record = load_record(given) if is_model(given) else None
    if record is None:
        raise MechsafetyError(
            f"model is {shown(given)}: this loads models itself, so that it can be done again: give names, or models "
            "of ms.load_model"
        )
    return record.spec
