"""Removals as files: safetensors with a JSON record, bound to the weights they were made for. No pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.bound_files import FileKind, made_for
from mechsafety.models.loading import model_name
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.removal import LowRank, Pruning, Removal, Shapes, require_made_for

if TYPE_CHECKING:
    pass

_FILES = FileKind(noun="removal", key="mechsafety_removal", holds="removal")


def save_removal(removal: Removal, path: Path | str, *, model: ModelLike) -> Path:
    """Write ``removal`` with the name and fingerprint of the model it was made for; whole or not there.

    The file holds places or factors, no weights: of a low-rank removal A = U^T W is a part of W seen from its
    outputs. Raises :class:`MechsafetyError` for a name that does not end in .safetensors, a folder that does not
    exist or cannot be written to, and a removal that does not fit the model.

    Returns:
        The path of the file.

    Example:
        >>> top = ms.regions.top_pruning(maps, safety, method="snip", q=5)
        >>> ms.regions.save_removal(top, "top.safetensors", model=model).name
        'top.safetensors'
    """
    model = as_model(model)
    path = _FILES.writable(path)
    require_made_for(removal, linear_maps(model), model_name(model))
    facts = {
        "kind": "pruning" if isinstance(removal, Pruning) else "low rank",
        "label": removal.label,
        "shapes": [[name, *shape] for name, shape in removal.shapes.items()],  # a list keeps their order
        "sha256": removal_digest(removal),
        "model": made_for(model),
    }
    return _FILES.write(path, _tensors(removal), facts)


def load_removal(
    path: Path | str, *, model: ModelLike | None = None, allow_other_weights: bool = False
) -> Removal:
    """Read what :func:`save_removal` wrote; with ``model`` given, refuse a removal made for another one.

    Another model is one with other linear maps, or with other weights (``allow_other_weights`` passes over the
    latter, to carry a removal from one checkpoint to the next). Raises :class:`MechsafetyError` for those, a missing
    or damaged file, and contents that do not match their hash.

    Returns:
        The removal, as it was saved.

    Example:
        >>> top = ms.regions.top_pruning(maps, safety, method="snip", q=5)
        >>> _ = ms.regions.save_removal(top, "region.safetensors", model=model)
        >>> ms.regions.load_removal("region.safetensors", model=model).n_removed == top.n_removed
        True
    """
    model = None if model is None else as_model(model)
    removal, made = _FILES.read(path, _rebuilt, digest=removal_digest)
    if model is not None:
        require_made_for(removal, linear_maps(model), model_name(model))
    if model is not None and not allow_other_weights:
        _FILES.require_weights(path, made, model, hint="give allow_other_weights=True")
    return removal


def removal_digest(removal: Removal) -> str:
    """SHA-256 of a removal's label, shapes and tensors, number formats included."""
    hasher = hashlib.sha256(json.dumps([removal.label, list(removal.shapes.items())]).encode())
    for name, tensor in sorted(_tensors(removal).items()):
        hasher.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        hasher.update(tensor.numpy().tobytes())
    return hasher.hexdigest()


def _tensors(removal: Removal) -> dict[str, Tensor]:
    if isinstance(removal, Pruning):
        tensors = {f"entries/{name}": places for name, places in removal.entries.items()}
    else:
        tensors = {
            f"{side}/{name}": factor
            for name, pair in removal.factors.items()
            for side, factor in zip("ba", pair, strict=True)
        }
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _rebuilt(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Removal:
    shapes: Shapes = {str(name): (int(d_out), int(d_in)) for name, d_out, d_in in facts["shapes"]}
    label, kind = str(facts["label"]), facts["kind"]
    if kind == "pruning":
        entries = {key.removeprefix("entries/"): places for key, places in tensors.items()}
        return Pruning(label=label, entries={n: entries[n] for n in shapes if n in entries}, shapes=shapes)
    if kind == "low rank":
        factors = {n: (tensors[f"b/{n}"], tensors[f"a/{n}"]) for n in shapes if f"b/{n}" in tensors}
        return LowRank(label=label, factors=factors, shapes=shapes)
    raise KeyError(kind)
