"""Edits as files: safetensors with a JSON record, bound to the model they were made for. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mechsafety.directions import Direction
from mechsafety.errors import MechsafetyError
from mechsafety.interventions import Ablate, Add, AffineAblate, Edit, Orthogonalise, digest
from mechsafety.models import load_record, model_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 1
_KEY = "mechsafety_edit"


def save_edit(edit: Edit, path: Path, *, model: TransformerBridge) -> None:
    """Write ``edit`` with a record of the model it was made for: name, weights, shape, hook points.

    Raises :class:`MechsafetyError` for a name that does not end in .safetensors, a folder that does not exist,
    and an edit that does not fit the model.
    """
    from safetensors.torch import save_file

    _require_suffix(path)
    if not path.parent.is_dir():
        raise MechsafetyError(f"folder {str(path.parent)!r} does not exist")
    kind, parameters, tensors = _parts(edit)
    record = load_record(model)
    facts = {
        "format": FORMAT,
        "kind": kind,
        "parameters": parameters,
        "description": edit.describe(),
        "sha256": digest(edit),
        "model": {
            "name": model_name(model),
            "fingerprint": record.fingerprint if record else "",
            "n_layers": model.cfg.n_layers,
            "d_model": model.cfg.d_model,
            "hooks": _hooks(edit, model.cfg.n_layers),
        },
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={_KEY: json.dumps(facts, sort_keys=True)})


def load_edit(
    path: Path, *, model: TransformerBridge | None = None, allow_other_weights: bool = False
) -> Edit:
    """Read what :func:`save_edit` wrote; with ``model`` given, refuse an edit made for another one.

    Another model is one of another shape, one that lacks a hook point, or one with other weights
    (``allow_other_weights`` passes over the last, to carry an edit from one checkpoint to the next). Raises
    :class:`MechsafetyError` for those, a missing or damaged file, and contents that do not match their hash.
    """
    from safetensors import SafetensorError, safe_open

    _require_suffix(path)
    if not path.is_file():
        raise MechsafetyError(f"edit file {str(path)!r} does not exist")
    try:
        with safe_open(path, framework="pt") as stored:
            facts = json.loads((stored.metadata() or {})[_KEY])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        if facts["format"] != FORMAT:
            raise MechsafetyError(
                f"edit file {str(path)!r} has format {facts['format']}; this version reads format {FORMAT}"
            )
        edit = _rebuilt(facts["kind"], facts["parameters"], tensors)
        recorded = str(facts["sha256"])
        made_for = dict(facts["model"])
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        raise MechsafetyError(f"{str(path)!r} holds no edit that mechsafety saved, or is damaged") from None
    if digest(edit) != recorded:
        raise MechsafetyError(
            f"edit file {str(path)!r} does not match its hash: it was changed after it was saved"
        )
    if model is not None:
        _require_model(path, made_for, model, allow_other_weights=allow_other_weights)
    return edit


def is_edit_file(path: Path) -> bool:
    """Whether a safetensors file holds an edit (and not, say, directions)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            return _KEY in (stored.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _require_suffix(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise MechsafetyError(f"edit file {str(path)!r}: the name must end in .safetensors")


def _hooks(edit: Edit, n_layers: int) -> list[str]:
    if isinstance(edit, Orthogonalise) and edit.norm_preserving:
        return []  # weights only
    return [target.hook for target in edit.targets(n_layers)]


def _parts(edit: Edit) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    if isinstance(edit, Ablate):
        parameters = {"alpha": edit.alpha, "layers": edit.layers, "sites": edit.sites}
        tensors = {"basis": edit.basis} | ({} if edit.read is None else {"read": edit.read})
        return "ablate", parameters | {"positions": edit.positions}, tensors
    if isinstance(edit, AffineAblate):
        parameters = {"alpha": edit.alpha, "layers": edit.layers, "sites": edit.sites}
        tensors = {"basis": edit.basis, "target": edit.target}
        return "affine", parameters | {"positions": edit.positions}, tensors
    if isinstance(edit, Add):
        parameters = {"coefficient": edit.coefficient, "layer": edit.layer, "positions": edit.positions}
        return "add", parameters, {"vector": edit.vector}
    if isinstance(edit, Orthogonalise):
        parameters = {
            "alpha": edit.alpha,
            "layers": edit.layers,
            "writers": edit.writers,
            "norm_preserving": edit.norm_preserving,
        }
        return "orthogonalise", parameters, {"basis": edit.basis}
    raise MechsafetyError(
        f"{type(edit).__name__} cannot be saved: only Ablate, AffineAblate, Add and Orthogonalise can"
    )


def _rebuilt(kind: str, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
    if kind == "ablate":
        basis = tensors["basis"]
        if "read" not in tensors:
            return Ablate(basis, **options)
        source = Direction(vector=basis[0], layer=0, position=-1, method="leace", covector=tensors["read"])
        return Ablate(source, **options)
    if kind == "affine":
        edit = AffineAblate(tensors["basis"], reference=tensors["target"] @ tensors["basis"], **options)
        object.__setattr__(edit, "target", tensors["target"])  # free of the rounding of that product
        return edit
    if kind == "add":
        return Add(tensors["vector"], **options)
    if kind == "orthogonalise":
        return Orthogonalise(tensors["basis"], **options)
    raise KeyError(kind)


def _require_model(
    path: Path, made_for: dict[str, Any], model: TransformerBridge, *, allow_other_weights: bool
) -> None:
    name = made_for.get("name")
    shape = (made_for.get("n_layers"), made_for.get("d_model"))
    if shape != (model.cfg.n_layers, model.cfg.d_model):
        raise MechsafetyError(
            f"edit {str(path)!r} was made for {name!r} ({shape[0]} layers, d_model {shape[1]}); "
            f"{model_name(model)!r} has {model.cfg.n_layers} layers and d_model {model.cfg.d_model}"
        )
    missing = [hook for hook in made_for.get("hooks", []) if hook not in model.hook_dict]
    if missing:
        raise MechsafetyError(
            f"edit {str(path)!r} was made for {name!r} and acts at {', '.join(missing[:3])}, a hook point that "
            f"{model_name(model)!r} does not have"
        )
    record = load_record(model)
    known = record.fingerprint if record else ""
    if known and made_for.get("fingerprint") and known != made_for["fingerprint"] and not allow_other_weights:
        raise MechsafetyError(
            f"edit {str(path)!r} was made for {name!r}, whose weights differ from {model_name(model)!r}'s; to carry "
            "it over all the same, say so: any_weights=true in an edit expression, allow_other_weights=True in Python"
        )
