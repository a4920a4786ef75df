"""LoRA adapters: finding one, checking that it fits, and merging it into its base model."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from mechsafety.core.arguments import nearest
from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.core.places import data_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def adapter_folder(adapter: str) -> Path:
    """The folder of a packaged adapter or of one the user names."""
    for folder in (data_folder() / "adapters" / adapter, Path(adapter).expanduser()):
        if not (folder / "adapter_config.json").is_file():
            continue
        if not list(folder.glob("adapter_model.*")):
            raise MechsafetyError(f"adapter folder {str(folder)!r} holds no adapter_model.safetensors")
        return folder
    raise MechsafetyError(
        f"adapter {adapter!r} not found{nearest(adapter, packaged_adapters(), alike=0.75)}: "
        f"packaged ones are {', '.join(packaged_adapters()) or 'none'}; "
        "otherwise name a folder that holds adapter_config.json"
    )


def packaged_adapters() -> list[str]:
    return sorted(path.parent.name for path in (data_folder() / "adapters").glob("*/adapter_config.json"))


def weights_fingerprint(hf: torch.nn.Module) -> str:
    """SHA-256 over every parameter's name, shape and up to 4,096 evenly spaced entries in bfloat16.

    The same weights give the same fingerprint in float32 and in bfloat16. A model with an adapter has the
    fingerprint of the unmerged pair, because merging rounds differently in each.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(hf.named_parameters()):
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, -(-flat.numel() // 4096))].to("cpu", torch.bfloat16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def merge_adapter(hf: PreTrainedModel, folder: Path, spec: str) -> tuple[PreTrainedModel, str]:
    """The merged model, and the fingerprint of base and adapter."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft calls transformers by old names
            warnings.filterwarnings("error", message="Found missing adapter keys")
            wrapped = PeftModel.from_pretrained(cast("Any", hf), str(folder))
        _require_same_maps(folder, wrapped)
        fingerprint = _adapted_fingerprint(wrapped)
        merged = cast("Any", wrapped).merge_and_unload()
    except Exception as error:
        raise MechsafetyError(
            f"adapter of {spec!r} does not fit its base model ({type(hf).__name__}): {first_lines(error, 2)}"
        ) from error
    return cast("PreTrainedModel", merged.eval()), fingerprint


def _require_same_maps(folder: Path, wrapped: PeftModel) -> None:
    # peft drops the maps of modules that the base lacks without a word.
    from peft import get_peft_model_state_dict

    stored = _stored_names(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it looks for the base's config on the hub
        known = {*get_peft_model_state_dict(wrapped), *map(_plain_name, wrapped.state_dict())}
    if unused := sorted(key for key in stored if key not in known and _plain_name(key) not in known):
        raise ValueError(f"{len(unused)} of its {len(stored)} tensors have no place in it, e.g. {unused[0]}")


def _stored_names(folder: Path) -> set[str]:
    """The names of an adapter's tensors; the file that peft reads, where there are two."""
    from safetensors import safe_open

    if (file := folder / "adapter_model.safetensors").is_file():
        with safe_open(file, framework="pt") as stream:
            return set(stream.keys())
    if (file := folder / "adapter_model.bin").is_file():
        return set(torch.load(file, map_location="meta", weights_only=True))
    return set()


def _plain_name(key: str) -> str:
    """A tensor's name without what peft puts into it where it wraps a whole module."""
    wrapping = ("modules_to_save", "original_module", "base_layer", "default")
    return ".".join(part for part in key.split(".") if part not in wrapping)


def _adapted_fingerprint(wrapped: PeftModel) -> str:
    settings = cast("Any", wrapped).active_peft_config.to_dict()
    scale = {k: settings.get(k) for k in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")}
    return hashlib.sha256(f"{weights_fingerprint(wrapped)} {scale}".encode()).hexdigest()
