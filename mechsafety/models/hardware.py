"""What this machine computes with: device, number format, free memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from mechsafety.core.errors import MechsafetyError, way

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def native_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices in hardware (GPU, AMX or avx512_bf16)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "amx_bf16" in flags or "avx512_bf16" in flags


def resolve_device(device: str) -> torch.device:
    """``auto`` is the first CUDA device, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise MechsafetyError(
            f"device {device!r} is not one torch knows; use auto, cpu, cuda, cuda:1 or mps"
        ) from None
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise MechsafetyError(
            f"device {device!r} was asked for, but torch finds no CUDA device; use {way('--device cpu')}"
        )
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise MechsafetyError(
            f"device {device!r} was asked for, but torch finds {torch.cuda.device_count()} CUDA devices, from cuda:0"
        )
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise MechsafetyError(f"device 'mps' was asked for, but torch finds none; use {way('--device cpu')}")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the device computes it natively, float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if native_bfloat16(device) else torch.float32
    if dtype not in _DTYPES:
        raise MechsafetyError(f"dtype {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def free_bytes(device: torch.device) -> int:
    """Memory that a new model could take on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
