"""A model that does not fit on one device: which of its parts lie where, decided before it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.models.hardware import dtype_name, free_bytes, resolve_device
from mechsafety.models.quantised import bytes_per_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DeviceMap = str | Mapping[str, str | int]
Memory = Mapping[str | int, str | int]
_UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)}}
_UNITS |= {f"{p}IB": 1024**n for n, p in enumerate("KMGT", 1)}
_NOT_RUN = ("cpu", "disk")
"""Where accelerate keeps weights that fit on no GPU, to be fetched at every pass."""
USABLE = 0.9
"""Of a GPU's memory; the rest is taken by activations and by what allocation wastes."""
_VALUES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


@dataclass(frozen=True, kw_only=True)
class Placing:
    """``map`` is ``auto``, or names a device for every module; ``memory`` is how many bytes each device may hold."""

    map: DeviceMap
    memory: dict[str | int, int] | None

    def planned(self, spec: str, shape: PreTrainedModel, dtype: torch.dtype) -> dict[str, Any]:
        """A device for every part of ``shape``, a model without weights: whole blocks, one device after another.

        Raises :class:`MechsafetyError` where they do not fit.
        """
        if not isinstance(self.map, str):
            return dict(self.map)
        from accelerate.utils import CustomDtype, get_balanced_memory, infer_auto_device_map

        room: Any = self.room()
        whole = shape._no_split_modules
        whole = sorted(whole) if whole else None
        shape.tie_weights()
        size = bytes_per_weight(shape.config, dtype)
        counted: Any = dtype if size == dtype.itemsize else torch.int8 if size >= 1 else CustomDtype.INT4
        share = get_balanced_memory(shape, room, no_split_module_classes=whole, dtype=counted)
        plan = infer_auto_device_map(shape, share, no_split_module_classes=whole, dtype=counted)
        outside = [name for name, device in plan.items() if device in _NOT_RUN and device not in room]
        if outside:
            need = sum(p.numel() for p in shape.parameters()) * size
            rooms = ", ".join(f"{device}: {size / 1e9:.1f} GB" for device, size in room.items())
            raise MechsafetyError(
                f"model {spec!r} needs {need / 1e9:.1f} GB in {dtype_name(dtype)} and is divided by whole blocks; "
                f"{outside[0]} and {len(outside) - 1} more parts fit on no device ({rooms}): give more devices or "
                f"{way('--max-memory')}, or take bfloat16 or a quantised model"
            )
        return plan

    def room(self) -> dict[str | int, int]:
        """Bytes that each device has for the model: of the GPUs, or else of the main memory."""
        free = free_by_device()
        if self.memory is None:
            return free
        if strange := [device for device in self.memory if device not in free]:
            raise MechsafetyError(
                f"{way('--max-memory', 'max_memory')} names {strange[0]!r}; a model is divided "
                f"among {', '.join(map(str, free))} here"
                + (" (weights in main memory beside GPUs are not supported)" if "cpu" in strange else "")
            )
        return {
            device: min(size, self.memory[device]) for device, size in free.items() if device in self.memory
        }


class Copies:
    """A tensor with a copy of it on each device that asks: moved once for a device, not at every pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._on = {tensor.device: tensor}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._on:
            self._on[device] = self.tensor.to(device)
        return self._on[device]


def value_bytes(dtype: str) -> float:
    """Bytes of a number; ``auto`` is bfloat16 on a GPU."""
    return _VALUES.get(dtype, 2.0)


def gpus_needed(
    n_parameters: int | float, *, dtype: str, memory_gb: int | float, beside: int | float = 0
) -> int:
    """How many GPUs of ``memory_gb`` (1e9 bytes) hold a model of ``n_parameters``, of which :data:`USABLE` is taken.

    ``beside`` are bytes of whatever else must lie there: keys and values of a batch, judges that stay loaded. At least
    1. A model is divided by whole blocks, so that one that fills its GPUs to the last gigabyte may need one more.
    Raises :class:`MechsafetyError` for a GPU without memory.

    Example: ``gpus_needed(70e9, dtype="bfloat16", memory_gb=80)`` is 2.
    """
    if not memory_gb > 0:
        raise MechsafetyError(f"the memory of a GPU is {memory_gb:g} GB: it must be above 0")
    return max(1, math.ceil((n_parameters * value_bytes(dtype) + beside) / (USABLE * memory_gb * 1e9)))


def free_by_device() -> dict[str | int, int]:
    """Free bytes of each GPU by its number; of the main memory where there is no GPU."""
    if torch.cuda.is_available():
        return {n: free_bytes(torch.device("cuda", n)) for n in range(torch.cuda.device_count())}
    return {"cpu": free_bytes(torch.device("cpu"))}


def resolve_placing(
    device: str, device_map: DeviceMap | None, max_memory: Memory | str | None
) -> tuple[torch.device, Placing | None]:
    """The device of inputs, and how a model is divided (None: it lies on that device whole).

    Raises :class:`MechsafetyError` for a device beside a map, a map that is none, and memory without a map.
    """
    if device_map is None:
        if max_memory is not None:
            raise MechsafetyError(
                f"{way('--max-memory', 'max_memory')} divides a model among devices: "
                f"give {way('--device-map auto')} with it"
            )
        return resolve_device(device), None
    if device != "auto":
        raise MechsafetyError(f"device {device!r} and a device map: give one of the two")
    if isinstance(device_map, str) and device_map != "auto":
        raise MechsafetyError(f"device map {device_map!r} is neither auto nor a device for each module")
    memory = memory_of(max_memory) if max_memory is not None else None
    return resolve_device("auto"), Placing(map=device_map, memory=memory)


def memory_of(given: Memory | str) -> dict[str | int, int]:
    """Bytes for each device, of ``0=20GiB,cpu=60GiB`` or the same as a mapping."""
    pairs = given.items() if isinstance(given, Mapping) else [_pair(part) for part in given.split(",")]
    return {_device(name): _bytes(size) for name, size in pairs}


def _pair(part: str) -> tuple[str, str]:
    name, equals, size = part.strip().partition("=")
    if not equals:
        raise MechsafetyError(
            f"{way('--max-memory', 'max_memory')} {part!r}: pairs such as 0=20GiB,1=20GiB are expected"
        )
    return name, size


def _device(name: str | int) -> str | int:
    text = str(name).strip().removeprefix("cuda:")
    return int(text) if text.isdigit() else text


def _bytes(size: str | int) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if found is None or found[2].upper() not in _UNITS:
        raise MechsafetyError(
            f"{way('--max-memory', 'max_memory')}: {size!r} is no size; GiB, MiB, GB and MB are known, e.g. 20GiB"
        )
    return int(float(found[1]) * _UNITS[found[2].upper()])


def blocks_by_device(model: Any) -> dict[str, str] | None:
    """The blocks of a bridge that lie on each device (``0-15``), where there are several devices."""
    places = [next(iter(block.parameters())).device for block in model.blocks]
    if len({str(p.device) for p in model.parameters()}) < 2:
        return None
    spans = {str(p): [n for n, place in enumerate(places) if place == p] for p in dict.fromkeys(places)}
    return {
        place: f"{numbers[0]}-{numbers[-1]}" if numbers[1:] else str(numbers[0])
        for place, numbers in spans.items()
    }


def as_text(device_map: DeviceMap | None, max_memory: Memory | str | None) -> str | None:
    """A map and its memory in a word, for records; None without a map."""
    if device_map is None:
        return None
    name = device_map if isinstance(device_map, str) else "given"
    if max_memory is None:
        return name
    return f"{name}, {', '.join(f'{k}={v}' for k, v in memory_of(max_memory).items())}"
