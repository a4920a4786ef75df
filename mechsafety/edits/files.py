"""Edits as files: safetensors with a JSON record, bound to the model they were made for. No pickle."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.directions.direction import Direction
from mechsafety.edits.interventions import (
    Ablate,
    Add,
    AffineAblate,
    Edit,
    Orthogonalise,
    digest,
    require_fits,
    targets_on,
)
from mechsafety.edits.sums import EditLike, EditSum, as_edit, parts_of
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.bound_files import FileKind, made_for, metadata_of, require_chat
from mechsafety.models.loading import model_name
from mechsafety.models.projection import VectorLike

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_KEY = "mechsafety_edit"
_FILES = FileKind(noun="edit", key=_KEY, holds="edit")


def save_edit(edit: EditLike, path: Path | str, *, model: ModelLike) -> None:
    """Write ``edit`` with a record of the model it was made for: name, weights, shape, hook points.

    Raises :class:`MechsafetyError` for a name that does not end in .safetensors, a folder that does not exist or
    cannot be written to, and an edit that does not fit the model.

    Example:
        >>> ms.save_edit(ms.Ablate(direction), "ablation.safetensors", model=model)
        >>> ms.load_edit("ablation.safetensors", model=model) == ms.Ablate(direction)
        True
    """
    model = as_model(model)
    path = require_edit_path(path)
    edit = as_edit(edit, model)
    kind, parameters, tensors = _parts(edit)
    require_fits(model, edit, weights=_only_weights(edit))
    facts = {
        "kind": kind,
        "parameters": parameters,
        "description": edit.describe(),
        "sha256": digest(edit),
        "model": {
            **made_for(model),
            "n_layers": model.cfg.n_layers,
            "d_model": model.cfg.d_model,
            "hooks": [] if _only_weights(edit) else [target.hook for target in targets_on(model, edit)],
        },
    }
    _FILES.write(path, tensors, facts)


def load_edit(
    path: Path | str,
    *,
    model: ModelLike | None = None,
    allow_other_weights: bool = False,
    allow_other_chat: bool = False,
) -> Edit:
    """Read what :func:`save_edit` wrote; with ``model`` given, refuse an edit made for another one.

    Another model is one of another shape, one that lacks a hook point, or one with other weights
    (``allow_other_weights`` passes over the last, to carry an edit from one checkpoint to the next), or with other
    chat settings (``allow_other_chat`` passes over these). Weights are compared by
    :func:`mechsafety.models.loading.known_fingerprint`. Raises :class:`MechsafetyError` for those, a missing or
    damaged file, and contents that do not match their hash.

    Returns:
        The edit, equal to the one that was saved.

    Example:
        >>> ms.save_edit(ms.Ablate(direction), "edit.safetensors", model=model)
        >>> try:
        ...     ms.load_edit("edit.safetensors", model=other)
        ... except ms.MechsafetyError:
        ...     print("other weights")
        other weights
        >>> edit = ms.load_edit("edit.safetensors", model=other, allow_other_weights=True)
    """
    model = None if model is None else as_model(model)
    path = _FILES.existing(path)
    if "mechsafety" in (found := metadata_of(path)) and _KEY not in found:
        how = way(f"ablate({path}, layer=L)", "ms.Ablate(ms.load_directions(path).at(layer))")
        raise MechsafetyError(f"{str(path)!r} holds directions, not an edit: write {how}")
    edit, made = _FILES.read(path, _rebuilt, digest=digest)
    if model is not None:
        _require_model(path, made, model)
    if model is not None and not allow_other_weights:
        hint = f"write saved({path}, any_weights=true), in Python allow_other_weights=True"
        _FILES.require_weights(path, made, model, hint=hint)
    if model is not None and not allow_other_chat:
        hint = f"write saved({path}, any_chat=true), in Python allow_other_chat=True"
        require_chat(str(made.get("chat", "")), model, what=f"edit {str(path)!r}", hint=hint)
    return edit


def is_edit_file(path: str | Path) -> bool:
    """Whether a safetensors file holds an edit (and not, for example, directions)."""
    return _KEY in metadata_of(as_path(path))


def require_edit_path(path: Path | str) -> Path:
    """``path`` as one that an edit can be saved at, which can be asked before the work begins."""
    return _FILES.writable(path)


def _only_weights(edit: Edit) -> bool:
    return any(isinstance(part, Orthogonalise) and part.norm_preserving for part in parts_of(edit))


def _parts(edit: Edit) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    if isinstance(edit, Ablate):
        parameters = {"alpha": edit.alpha, "layers": edit.layers, "sites": edit.sites}
        tensors = {"basis": edit.basis} | ({} if edit.read is None else {"read": edit.read})
        return "ablate", parameters | {"positions": edit.positions}, tensors
    if isinstance(edit, AffineAblate):
        parameters = {"alpha": edit.alpha, "layers": edit.layers, "sites": edit.sites}
        tensors = {"basis": edit.basis, "target": edit.target}
        tensors |= {} if edit.read is None else {"read": edit.read}
        return "affine", parameters | {"positions": edit.positions}, tensors
    if isinstance(edit, Add):
        parameters = {"coefficient": edit.coefficient, "layer": edit.layer, "site": edit.site}
        return "add", parameters | {"positions": edit.positions}, {"vector": edit.vector}
    if isinstance(edit, Orthogonalise):
        parameters = {
            "alpha": edit.alpha,
            "layers": edit.layers,
            "writers": edit.writers,
            "norm_preserving": edit.norm_preserving,
        }
        return "orthogonalise", parameters, {"basis": edit.basis}
    if isinstance(edit, EditSum):
        parts = [_parts(part) for part in edit.edits]
        tensors = {f"{k}.{name}": tensor for k, part in enumerate(parts) for name, tensor in part[2].items()}
        return "sum", {"edits": [{"kind": kind, "parameters": given} for kind, given, _ in parts]}, tensors
    raise MechsafetyError(
        f"{type(edit).__name__} cannot be saved: only Ablate, AffineAblate, Add, Orthogonalise and sums of these can"
    )


def _rebuilt(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    model = facts["model"]
    model["n_layers"], model["d_model"] = int(model["n_layers"]), int(model["d_model"])
    model["hooks"] = [str(hook) for hook in model["hooks"]]
    return _edit_of(facts, tensors)


_KINDS = {"ablate": Ablate, "affine": AffineAblate, "add": Add, "orthogonalise": Orthogonalise}


def _edit_of(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    kind = facts["kind"]
    if kind == "sum":
        each = [
            {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{k}.")}
            for k in range(len(facts["parameters"]["edits"]))
        ]
        return EditSum(tuple(map(_edit_of, facts["parameters"]["edits"], each)))
    options: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in facts["parameters"].items()
    }
    if options.keys() - signature(_KINDS[kind]).parameters.keys():
        raise KeyError("parameters")
    if kind in ("ablate", "affine"):
        source: VectorLike = tensors["basis"]
        if "read" in tensors:
            unit, read = tensors["basis"][0], tensors["read"]
            source = Direction(vector=unit, layer=0, position=-1, method="leace", covector=read)
        if kind == "ablate":
            return Ablate(source, **options)
        edit = AffineAblate(source, reference=tensors["target"] @ tensors["basis"], **options)
        object.__setattr__(edit, "target", tensors["target"])  # free of the rounding of that product
        return edit
    if kind == "add":
        return Add(tensors["vector"], **options)
    return Orthogonalise(tensors["basis"], **options)


def _require_model(path: Path | str, made: dict[str, Any], model: TransformerBridge) -> None:
    if (made["n_layers"], made["d_model"]) != (model.cfg.n_layers, model.cfg.d_model):
        raise MechsafetyError(
            f"edit {str(path)!r} was made for {made['name']!r} ({made['n_layers']} layers, d_model {made['d_model']}); "
            f"{model_name(model)!r} has {model.cfg.n_layers} layers and d_model {model.cfg.d_model}"
        )
    present = model.hook_dict
    missing = [hook for hook in made["hooks"] if hook not in present]
    if missing:
        raise MechsafetyError(
            f"edit {str(path)!r} was made for {made['name']!r} and acts at {', '.join(missing[:3])}, a hook point that "
            f"{model_name(model)!r} does not have"
        )
