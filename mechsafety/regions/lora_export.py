"""A low-rank removal as a LoRA adapter that peft and ``load_model("BASE+FOLDER")`` read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.models.loading import generation_twin, load_record, model_name
from mechsafety.regions.maps import LinearMap, linear_maps
from mechsafety.regions.removal import LowRank, Pruning, Removal, require_made_for

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def export_lora(model: TransformerBridge, removal: Removal, folder: Path | str) -> Path:
    """Write ``removal`` as an adapter in a new or empty ``folder``: W + (-B) A for every map it changes.

    A module's rank is that of its map, with alpha equal to it, so that nothing is scaled; a joint module (query, key
    and value in one) gets the ranks of its parts together, each writing to its own rows. Factors are float32: in
    float32 the reloaded model has the logits that :func:`removed` gives, in bfloat16 it
    may round a weight to the neighbouring number. Distributing such an adapter distributes the removal.

    Raises :class:`MechsafetyError` for a pruning, which has no low rank, a removal made for other maps, a model that
    ``load_model`` did not load, and a folder that holds something.
    """
    if isinstance(removal, Pruning):
        raise MechsafetyError(
            f"{removal.label}: a pruning has no low rank, so that no LoRA adapter can hold it; save_removal keeps it"
        )
    twin = generation_twin(model)
    if twin is None:
        raise MechsafetyError(
            "an adapter names modules of a model that load_model loaded, without hooks or changed modules on it"
        )
    maps = linear_maps(model)
    require_made_for(removal, maps, model_name(model))
    if any(removal.ranks()[m.name] for m in maps if m.expert is not None):
        raise MechsafetyError(
            f"{removal.label} takes ranks from experts, which have no modules that a LoRA adapter could name; "
            "save_removal keeps it"
        )
    paths = {id(module): path for path, module in twin.named_modules()}
    adapted = {
        paths[id(members[0].module)]: (members[0].module, *_factors(members, removal))
        for members in _by_module(maps, removal)
    }
    folder = _new_folder(Path(folder))
    try:
        _write(folder, adapted, model)
    except OSError as error:
        raise MechsafetyError(f"cannot write adapter {str(folder)!r}: {first_lines(error)}") from None
    return folder


def _by_module(maps: list[LinearMap], removal: LowRank) -> list[list[LinearMap]]:
    """The maps that lose rank, those of one module together."""
    ranks = removal.ranks()
    found: dict[int, list[LinearMap]] = {}
    for m in maps:
        if ranks[m.name]:
            found.setdefault(id(m.module), []).append(m)
    return list(found.values())


def _factors(members: list[LinearMap], removal: LowRank) -> tuple[Tensor, Tensor]:
    """-B [outputs of the module, r] and A [r, d_in], r being the members' ranks together."""
    a = torch.cat([removal.factors[m.name][1] for m in members])
    parts = []
    for m in members:
        b = -removal.factors[m.name][0]
        if m.rows is not None:
            whole = torch.zeros(_outputs(m), b.shape[1], dtype=torch.float32)
            whole[m.rows.cpu()] = b
            b = whole
        parts.append(b)
    return torch.cat(parts, dim=1).contiguous(), a.contiguous()


def _outputs(m: LinearMap) -> int:
    """How many outputs the map's module has."""
    return m.places[0].parameter.numel() // m.d_in


def _write(
    folder: Path, adapted: dict[str, tuple[torch.nn.Module, Tensor, Tensor]], model: TransformerBridge
) -> None:
    from peft import LoraConfig
    from safetensors.torch import save_file

    ranks = {path: a.shape[0] for path, (_, _, a) in adapted.items()}
    record = load_record(model)
    highest = max(ranks.values())
    config = LoraConfig(
        r=highest,
        lora_alpha=highest,
        rank_pattern=ranks,
        alpha_pattern=ranks,
        target_modules=sorted(ranks),
        fan_in_fan_out=all(isinstance(module, Conv1D) for module, _, _ in adapted.values()),
        task_type="CAUSAL_LM",
        base_model_name_or_path=record.spec if record else None,
        inference_mode=True,
    )
    config.target_modules = sorted(ranks)  # peft makes it a set, which would be saved in any order
    config.save_pretrained(str(folder))
    tensors = {}
    for path, (_, b, a) in adapted.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _new_folder(folder: Path) -> Path:
    try:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise MechsafetyError(f"{str(folder)!r} is not empty: name a new folder for the adapter")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MechsafetyError(f"cannot make folder {str(folder)!r}: {first_lines(error)}") from None
    return folder
