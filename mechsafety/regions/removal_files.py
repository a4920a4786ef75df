"""Removals as files: safetensors with a JSON record, bound to the weights they were made for. No pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.models.loading import known_fingerprint, model_name
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.removal import LowRank, Pruning, Removal, Shapes, require_made_for
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 1
_KEY = "mechsafety_removal"


def save_removal(removal: Removal, path: Path | str, *, model: TransformerBridge) -> Path:
    """Write ``removal`` with the name and fingerprint of the model it was made for; whole or not there.

    The file holds places or factors, no weights: of a low-rank removal A = U^T W is a part of W seen from its
    outputs. Raises :class:`MechsafetyError` for a name that does not end in .safetensors, a folder that does not
    exist or cannot be written to, and a removal that does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = _named(path)
    require_made_for(removal, linear_maps(model), model_name(model))
    if not path.parent.is_dir():
        raise MechsafetyError(f"folder {str(path.parent)!r} does not exist")
    tensors = _tensors(removal)
    facts = {
        "format": FORMAT,
        "kind": "pruning" if isinstance(removal, Pruning) else "low rank",
        "label": removal.label,
        "shapes": [[name, *shape] for name, shape in removal.shapes.items()],  # a list keeps their order
        "sha256": removal_digest(removal),
        "model": {"name": model_name(model), "fingerprint": known_fingerprint(model)},
    }
    metadata = {_KEY: json.dumps(facts, sort_keys=True)}
    try:
        return RunFolder(path.parent).save(
            path.name, lambda file: save_file(tensors, file, metadata=metadata)
        )
    except (SafetensorError, OSError) as error:
        raise MechsafetyError(f"cannot write removal file {str(path)!r}: {first_lines(error)}") from None


def load_removal(
    path: Path | str, *, model: TransformerBridge | None = None, allow_other_weights: bool = False
) -> Removal:
    """Read what :func:`save_removal` wrote; with ``model`` given, refuse a removal made for another one.

    Another model is one with other linear maps, or with other weights (``allow_other_weights`` passes over the
    latter, to carry a removal from one checkpoint to the next). Raises :class:`MechsafetyError` for those, a missing
    or damaged file, and contents that do not match their hash.
    """
    from safetensors import safe_open

    path = _named(path)
    if not path.is_file():
        raise MechsafetyError(f"removal file {str(path)!r} does not exist")
    try:
        with safe_open(path, framework="pt") as stored:
            facts = json.loads((stored.metadata() or {})[_KEY])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        if facts["format"] != FORMAT:
            raise MechsafetyError(
                f"removal file {str(path)!r} has format {facts['format']}; this version reads format {FORMAT}"
            )
        removal = _rebuilt(facts, tensors)
        recorded, name, fingerprint = (
            str(x) for x in (facts["sha256"], facts["model"]["name"], facts["model"]["fingerprint"])
        )
    except MechsafetyError:
        raise
    except Exception:  # whatever a file of unknown contents brings about in torch, json or safetensors
        raise MechsafetyError(
            f"{str(path)!r} holds no removal that mechsafety saved, or is damaged"
        ) from None
    if removal_digest(removal) != recorded:
        raise MechsafetyError(
            f"removal file {str(path)!r} does not match its hash: it was changed after it was saved"
        )
    if model is not None:
        require_made_for(removal, linear_maps(model), model_name(model))
        known = known_fingerprint(model)
        if known and fingerprint and known != fingerprint and not allow_other_weights:
            raise MechsafetyError(
                f"removal {str(path)!r} was made for {name!r}, whose weights differ from {model_name(model)!r}'s; to "
                "carry it over all the same give allow_other_weights=True"
            )
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


def _named(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise MechsafetyError(
            f"removal file {str(path)!r}: the name must end in .safetensors, e.g. "
            f"{path.stem or 'removal'}.safetensors"
        )
    return path
