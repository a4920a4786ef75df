"""What this machine has, what would be used, and how to mend what is missing."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import cache_folder
from mechsafety.models.adapters import packaged_adapters
from mechsafety.models.gguf import packaged_gguf
from mechsafety.models.hardware import dtype_name, free_bytes, native_bfloat16, resolve_device, resolve_dtype
from mechsafety.pages.page import find_chromium
from mechsafety.runs.folder import versions


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was checked; ``fix`` names what to do where it is not well."""

    name: str
    value: str
    ok: bool = True
    fix: str = ""


def examine() -> list[Check]:
    """Every check, in the order they are shown."""
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    found = versions()
    checks = [
        Check(
            name="python",
            value=found["python"],
            ok=sys.version_info >= (3, 11),
            fix="install Python 3.11 or newer",
        )
    ]
    checks += [
        Check(name=package, value=version, ok=version != "not installed", fix=f"pip install {package}")
        for package, version in found.items()
        if package not in ("python", "platform")
    ]
    free = free_bytes(device) / 1e9
    checks += [
        Check(name="device", value=str(device)),
        Check(name="dtype", value=dtype_name(dtype)),
        Check(
            name="native bfloat16",
            value="yes" if native_bfloat16(device) else "no: float32 will be used, about half as fast",
        ),
        Check(
            name="free memory",
            value=f"{free:.1f} GB",
            ok=free > 4,
            fix="the default study needs 4 GB: close other programs",
        ),
        _packaged(),
        Check(name="packaged adapters", value=", ".join(packaged_adapters()) or "none"),
        _writable("model cache", cache_folder(), "set MECHSAFETY_CACHE to a folder that can be written"),
        _writable("runs", Path("runs").resolve(), "change to a folder that can be written, or use --out"),
        Check(
            name="hub",
            value="offline (HF_HUB_OFFLINE is set)"
            if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
            else f"online; token {'set' if os.environ.get('HF_TOKEN') else 'not set'}",
        ),
        Check(
            name="Chromium for static figures",
            value=find_chromium() or "not found",
            ok=find_chromium() is not None,
            fix="apt-get install chromium, or set BROWSER_PATH; HTML figures work without it",
        ),
    ]
    return checks


def as_json(checks: list[Check]) -> dict[str, Any]:
    return {"ok": all(c.ok for c in checks), "checks": [vars(c) for c in checks]}


def _packaged() -> Check:
    try:
        path = packaged_gguf()
    except MechsafetyError as error:
        return Check(name="packaged model", value="missing", ok=False, fix=str(error))
    return Check(name="packaged model", value=f"{path.name}, {path.stat().st_size / 1e6:.0f} MB")


def _writable(name: str, folder: Path, fix: str) -> Check:
    parent = folder
    while not parent.exists():
        parent = parent.parent
    ok = parent.is_dir() and os.access(parent, os.W_OK)
    free = shutil.disk_usage(parent).free / 1e9
    return Check(name=name, value=f"{folder} ({free:.0f} GB free)", ok=ok and free > 1, fix=fix)
