"""A low-rank removal or edit as a LoRA adapter that peft and ``load_model("BASE+FOLDER")`` read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.edits.interventions import Edit, Orthogonalise, layers_of
from mechsafety.edits.sums import EditLike, as_edit
from mechsafety.edits.weights import probe
from mechsafety.edits.writing_maps import writings_of
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.loading import generation_twin, load_record, model_name
from mechsafety.regions.maps import LinearMap, linear_maps
from mechsafety.regions.removal import LowRank, Pruning, Removal, require_made_for
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def export_lora(model: ModelLike, removal: Removal | EditLike, folder: Path | str) -> Path:
    """Write a removal or an edit as an adapter in a new or empty ``folder``: W + (-B) A for every map it changes.

    A module's rank is that of its map, with alpha equal to it, so that nothing is scaled; a joint module (query, key
    and value in one) gets the ranks of its parts together, each writing to its own rows. Factors are float32: in
    float32 the reloaded model has the logits that :func:`removed` gives, in bfloat16 it
    may round a weight to the neighbouring number. Distributing such an adapter distributes the removal.

    An edit takes k directions from what attention and MLP write, W - alpha B^T (B W): :class:`Orthogonalise` with the
    writers ``attn_out`` and ``mlp_out``. The embedding is no module that an adapter could change with a tied head left
    as it is; :func:`save_model` writes edits of it.

    Raises :class:`MechsafetyError` for a pruning, which has no low rank, an edit with no such form, a removal made for
    other maps, a model that ``load_model`` did not load, and a folder that holds something.

    Arguments:
        removal: What is written: a removal, an edit, or several.

    Returns:
        The folder.

    Example:
        >>> edit = ms.Orthogonalise(direction, writers=("attn_out", "mlp_out"))
        >>> ms.regions.export_lora(model, edit, "adapter").name
        'adapter'
    """
    model = as_model(model)
    if not isinstance(removal, Pruning | LowRank):
        removal = _of_edit(model, as_edit(removal, model))
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
    folder = _new_folder(as_path(folder))
    try:
        _write(folder, adapted, model)
    except OSError as error:
        raise MechsafetyError(f"cannot write adapter {str(folder)!r}: {first_lines(error)}") from None
    return folder


def _of_edit(model: TransformerBridge, edit: Edit) -> LowRank:
    """What ``edit`` takes from the maps that write to the stream, as a removal."""
    if not isinstance(edit, Orthogonalise) or edit.norm_preserving or "embed" in edit.writers:
        raise MechsafetyError(
            f"{edit.describe()} has no form as a LoRA adapter: Orthogonalise(direction, writers=('attn_out', "
            "'mlp_out')) has one, and save_model() writes any edit that has a weight form"
        )
    maps = {id(m.places[0].parameter): m for m in linear_maps(model) if m.expert is None}
    factors = {}
    layers = layers_of(edit.layers, model.cfg.n_layers)
    for writing in writings_of(model, layers, edit.writers, lambda: probe(model)):
        found = maps.get(id(getattr(writing.module, "weight", None)))
        if found is None or getattr(writing.module, "bias", None) is not None:
            raise MechsafetyError(
                f"what writes at {writing.hook} is no linear map without bias, and an adapter changes no bias: "
                "save_model() writes the edit"
            )
        taken = edit.basis @ found.weight().detach().float().cpu()
        factors[found.name] = ((edit.alpha * edit.basis.T).contiguous(), taken)
    shapes = {m.name: (m.d_out, m.d_in) for m in linear_maps(model)}
    return LowRank(label=edit.describe(), factors=factors, shapes=shapes)


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
    RunFolder(folder).save(
        "adapter_model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"})
    )


def _new_folder(folder: Path) -> Path:
    try:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise MechsafetyError(f"{str(folder)!r} is not empty: name a new folder for the adapter")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MechsafetyError(f"cannot make folder {str(folder)!r}: {first_lines(error)}") from None
    return folder
