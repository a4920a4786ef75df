"""Edits as files: safetensors with a JSON record, bound to the model they were made for. No pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.directions.direction import Direction
from mechsafety.edits.interventions import (
    Ablate,
    Add,
    AffineAblate,
    Edit,
    Orthogonalise,
    digest,
    require_fits,
)
from mechsafety.models.loading import known_fingerprint, model_name
from mechsafety.models.projection import VectorLike

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 1
_KEY = "mechsafety_edit"


def save_edit(edit: Edit, path: Path | str, *, model: TransformerBridge) -> None:
    """Write ``edit`` with a record of the model it was made for: name, weights, shape, hook points.

    Raises :class:`MechsafetyError` for a name that does not end in .safetensors, a folder that does not exist or
    cannot be written to, and an edit that does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = require_edit_path(path)
    kind, parameters, tensors = _parts(edit)
    require_fits(model, edit, weights=_only_weights(edit))
    facts = {
        "format": FORMAT,
        "kind": kind,
        "parameters": parameters,
        "description": edit.describe(),
        "sha256": digest(edit),
        "model": {
            "name": model_name(model),
            "fingerprint": known_fingerprint(model),
            "n_layers": model.cfg.n_layers,
            "d_model": model.cfg.d_model,
            "hooks": _hooks(edit, model.cfg.n_layers),
        },
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={_KEY: json.dumps(facts, sort_keys=True)})
    except (SafetensorError, OSError) as error:
        raise MechsafetyError(f"cannot write edit file {str(path)!r}: {first_lines(error)}") from None


def load_edit(
    path: Path | str, *, model: TransformerBridge | None = None, allow_other_weights: bool = False
) -> Edit:
    """Read what :func:`save_edit` wrote; with ``model`` given, refuse an edit made for another one.

    Another model is one of another shape, one that lacks a hook point, or one with other weights
    (``allow_other_weights`` passes over the last, to carry an edit from one checkpoint to the next). Weights are
    compared by :func:`mechsafety.models.loading.known_fingerprint`. Raises
    :class:`MechsafetyError` for those, a missing or damaged file, and contents that do not match their hash.
    """
    from safetensors import safe_open

    path = _named(path)
    if not is_file(path):
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
        made_for = _made_for(**facts["model"])
    except MechsafetyError:
        raise
    except Exception:  # whatever a file of unknown contents brings about in torch, json or safetensors
        raise MechsafetyError(_no_edit(path)) from None
    if digest(edit) != recorded:
        raise MechsafetyError(
            f"edit file {str(path)!r} does not match its hash: it was changed after it was saved"
        )
    if model is not None:
        _require_model(path, made_for, model, allow_other_weights=allow_other_weights)
    return edit


def is_edit_file(path: Path) -> bool:
    """Whether a safetensors file holds an edit (and not, for example, directions)."""
    return _KEY in _metadata(path)


def require_edit_path(path: Path | str) -> Path:
    """``path`` as one that an edit can be saved at, which can be asked before the work begins."""
    path = _named(path)
    if not _holds(path.parent.is_dir):
        raise MechsafetyError(f"folder {str(path.parent)!r} does not exist")
    if _holds(path.is_dir):
        raise MechsafetyError(f"edit file {str(path)!r} is a folder: name a file")
    return path


def _named(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise MechsafetyError(
            f"edit file {str(path)!r}: the name must end in .safetensors, e.g. {path.stem or 'edit'}.safetensors"
        )
    return path


def is_file(path: Path) -> bool:
    """Whether there is such a file; False too for names that the file system refuses."""
    return _holds(path.is_file)


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (OSError, ValueError):  # too long, a zero byte, a folder that may not be read
        return False


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            return stored.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _no_edit(path: Path) -> str:
    found = _metadata(path)
    if "mechsafety" in found and _KEY not in found:
        return f"{str(path)!r} holds directions, not an edit: write ablate({path}, layer=L)"
    return f"{str(path)!r} holds no edit that mechsafety saved, or is damaged"


def _made_for(
    *, name: str, fingerprint: str, n_layers: int, d_model: int, hooks: list[str]
) -> dict[str, Any]:
    """The record of the model, with exactly these entries."""
    return {
        "name": str(name),
        "fingerprint": str(fingerprint),
        "n_layers": int(n_layers),
        "d_model": int(d_model),
        "hooks": [str(hook) for hook in hooks],
    }


def _only_weights(edit: Edit) -> bool:
    return isinstance(edit, Orthogonalise) and edit.norm_preserving


def _hooks(edit: Edit, n_layers: int) -> list[str]:
    return [] if _only_weights(edit) else [target.hook for target in edit.targets(n_layers)]


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
    raise MechsafetyError(
        f"{type(edit).__name__} cannot be saved: only Ablate, AffineAblate, Add and Orthogonalise can"
    )


def _rebuilt(kind: str, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.items()}
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
    if kind == "orthogonalise":
        return Orthogonalise(tensors["basis"], **options)
    raise KeyError(kind)


def _require_model(
    path: Path, made_for: dict[str, Any], model: TransformerBridge, *, allow_other_weights: bool
) -> None:
    name = made_for["name"]
    shape = (made_for["n_layers"], made_for["d_model"])
    if shape != (model.cfg.n_layers, model.cfg.d_model):
        raise MechsafetyError(
            f"edit {str(path)!r} was made for {name!r} ({shape[0]} layers, d_model {shape[1]}); "
            f"{model_name(model)!r} has {model.cfg.n_layers} layers and d_model {model.cfg.d_model}"
        )
    present = model.hook_dict
    missing = [hook for hook in made_for["hooks"] if hook not in present]
    if missing:
        raise MechsafetyError(
            f"edit {str(path)!r} was made for {name!r} and acts at {', '.join(missing[:3])}, a hook point that "
            f"{model_name(model)!r} does not have"
        )
    known = known_fingerprint(model)
    if known and made_for["fingerprint"] and known != made_for["fingerprint"] and not allow_other_weights:
        raise MechsafetyError(
            f"edit {str(path)!r} was made for {name!r}, whose weights differ from {model_name(model)!r}'s; to carry "
            f"it over all the same write saved({path}, any_weights=true), in Python allow_other_weights=True"
        )
