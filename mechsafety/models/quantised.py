"""Weights of 4 or 8 bits: such models are read and hooked as any other, and their weights are not written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mechsafety.core.errors import MechsafetyError

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32)


def quantisation(config: Any) -> str | None:
    """The method that a configuration names for its weights; None for plain ones."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, Mapping) else settings.quant_method
    return str(getattr(method, "value", method) or "unknown")


def bytes_per_weight(config: Any, dtype: torch.dtype) -> float:
    """What a weight of a model takes in memory, as far as its configuration shows."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return float(dtype.itemsize)
    given = settings if isinstance(settings, Mapping) else settings.to_dict()
    bits = 4 if given.get("load_in_4bit") else 8 if given.get("load_in_8bit") else given.get("bits")
    return min(float(dtype.itemsize), bits / 8) if bits else float(dtype.itemsize)


def packed_modules(model: nn.Module) -> list[nn.Module]:
    """The modules at the ends of the tree that hold their weights as whole numbers, one byte or less for each."""
    return [m for m in model.modules() if not any(True for _ in m.children()) and _is_packed(m)]


def _is_packed(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(t.dtype in _WHOLE or (t.dtype.itemsize == 1 and t.dtype.is_floating_point) for t in own)


def require_plain(body: Any, what: str) -> None:
    """Raise :class:`MechsafetyError` where ``body`` has quantised weights; ``what`` is what needs them plain."""
    method = quantisation(getattr(body, "config", None))
    packed = packed_modules(body) if method is None else []
    if method is not None or packed:
        name = str(getattr(body, "mechsafety_name", "") or type(body).__name__)
        kind = method or type(packed[0]).__name__
        raise MechsafetyError(
            f"{name}: {what}, and its weights are quantised ({kind}): take edits by hooks (edited), or load the same "
            "model in bfloat16"
        )
