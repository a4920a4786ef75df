"""Directions as files: safetensors with a record of each model's; one file may hold those of several models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mechsafety.core.arguments import as_path, nearest
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.directions.direction import TENSORS, Directions
from mechsafety.models.bound_files import FileKind
from mechsafety.runs.folder import RunFolder

_FILES = FileKind(noun="directions", key="mechsafety", holds="directions")


def save_directions(several: Sequence[Directions], path: str | Path) -> None:
    """Write the directions of one or more models into one safetensors file, keyed by model.

    Raises :class:`MechsafetyError` where two are of one model: only one of them could be read back.
    """
    path = as_path(path)
    from safetensors.torch import save_file

    names = [found.model for found in several]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MechsafetyError(
            f"several directions of {', '.join(map(repr, twice))} do not go into one file, which holds one of each "
            "model: write a file for each"
        )

    tensors: dict[str, Tensor] = {}
    records: dict[str, dict[str, object]] = {}
    for number, found in enumerate(several):
        for name in (*TENSORS, *(() if found.covectors is None else ("covectors",))):
            tensors[f"{number}.{name}"] = getattr(found, name).contiguous()
        records[str(number)] = {
            "positions": list(found.positions),
            "method": found.method,
            "centring": found.centring,
            "model": found.model,
            "fingerprint": found.fingerprint,
            "n_harmful": found.n_harmful,
            "n_harmless": found.n_harmless,
            "seed": found.seed,
            "chat": found.chat,
            "final_norm": found.final_norm,
        }
    metadata = {"mechsafety": json.dumps(records, sort_keys=True)}
    RunFolder(path.parent).save(path.name, lambda scratch: save_file(tensors, scratch, metadata=metadata))


def save_one(found: Directions, path: str | Path) -> None:
    """Write the directions of one model under a name that ends in .safetensors; see :meth:`Directions.save`."""
    save_directions([found], _FILES.named(path))


def load_directions(path: str | Path, *, model: str | None = None) -> Directions:
    """Read what :meth:`Directions.save` wrote, or the directions of one ``model`` in a file of a run.

    Raises :class:`MechsafetyError` for a file that is missing, damaged, or holds no directions, for a model that is not
    in it, and for several models of which none is named.

    Arguments:
        model: Which model's, where the file holds those of several.

    Returns:
        The directions.

    Example:
        >>> directions.save("directions.safetensors")
        >>> ms.load_directions("directions.safetensors") == directions
        True
    """
    found = read_directions(path)
    if model is None and len(found) == 1:
        return next(iter(found.values()))
    if model is None:
        how = way("a file of one model is needed", f"load_directions(path, model={next(iter(found), '')!r})")
        raise MechsafetyError(f"{str(path)!r} holds directions of {', '.join(found)}: {how}")
    if model not in found:
        raise MechsafetyError(
            f"{str(path)!r} holds no directions of {model!r}{nearest(model, found)}; it has {', '.join(found)}"
        )
    return found[model]


def read_directions(path: str | Path) -> dict[str, Directions]:
    """What :func:`save_directions` wrote, by model name.

    Raises :class:`MechsafetyError` for a file that is missing, damaged, or holds no directions.
    """
    path = as_path(path)
    if not path.is_file():
        raise MechsafetyError(f"directions file {str(path)!r} does not exist")
    with _FILES.opened(path) as stored:
        records = json.loads((stored.metadata() or {})[_FILES.key])
        held = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        found = [
            Directions(
                **{name: held[f"{number}.{name}"] for name in TENSORS},
                covectors=held.get(f"{number}.covectors"),
                **{**record, "positions": tuple(record["positions"])},
            )
            for number, record in records.items()
        ]
    return {directions.model: directions for directions in found}
