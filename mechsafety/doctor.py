"""What this machine has, what would be used, and how to mend what is missing."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import cache_folder
from mechsafety.models.adapters import packaged_adapters
from mechsafety.models.chat import day_of
from mechsafety.models.chat_settings import ChatSettings, chat_settings, record_of
from mechsafety.models.gguf import packaged_gguf
from mechsafety.models.hardware import dtype_name, free_bytes, native_bfloat16, resolve_dtype
from mechsafety.models.loading import load_reader
from mechsafety.models.placing import Placing, resolve_placing
from mechsafety.models.weights import shape_of
from mechsafety.pages.page import find_chromium
from mechsafety.runs.folder import versions

_PATIENCE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was checked; ``fix`` names what to do where it is not well."""

    name: str
    value: str
    ok: bool = True
    fix: str = ""


def examine(
    models: Sequence[str] = (),
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    max_memory: str | None = None,
    **reading: Any,
) -> list[Check]:
    """Every check of the machine, then of each of ``models``, in the order they are shown.

    The options are those of :func:`load_model`; ``reading`` are template, date and chat settings. Raises
    :class:`MechsafetyError` for a device that is not there, and for template or chat settings of no model.
    """
    if not models and (reading.get("template") or chat_settings(reading.get("chat")) != ChatSettings()):
        raise MechsafetyError("template and chat settings are a model's: name the model too")
    where, placing = resolve_placing(device, device_map, max_memory)
    rooms = {where: free_bytes(where)} if placing is None else placing.room()
    number = resolve_dtype(dtype, where)
    checks = _machine(rooms, where, number)
    return checks + [check for spec in models for check in _model(spec, rooms, placing, number, reading)]


def _machine(rooms: Mapping[Any, int], device: torch.device, dtype: torch.dtype) -> list[Check]:
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
    free = sum(rooms.values()) / 1e9
    checks += [
        Check(name="device", value=", ".join(map(str, rooms))),
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
        _hub(),
        Check(
            name="Chromium for static figures",
            value=find_chromium() or "not found",
            ok=find_chromium() is not None,
            fix="apt-get install chromium, or set BROWSER_PATH; HTML figures work without it",
        ),
    ]
    return checks


def _model(
    spec: str,
    rooms: Mapping[Any, int],
    placing: Placing | None,
    dtype: torch.dtype,
    reading: Mapping[str, Any],
) -> list[Check]:
    """Where a model would lie and how it would be asked, found without its weights."""
    try:
        reader = load_reader(spec, **reading)
        shape, need = shape_of(reader.config, dtype)
        plan = placing.planned(spec, shape, dtype) if placing is not None else {}
    except MechsafetyError as error:
        return [Check(name=spec, value="cannot be loaded so", ok=False, fix=str(error))]
    devices = ", ".join(map(str, dict.fromkeys(plan.values() or rooms)))
    settings = chat_settings(reading.get("chat"))
    thinking = record_of(settings, reader.tokenizer, day=day_of(reader))["thinking"]
    given = settings.as_text()
    return [
        Check(
            name=spec,
            value=f"{type(shape).__name__}, {need / 1e9:.1f} GB in {dtype_name(dtype)} on {devices}",
            ok=need <= sum(rooms.values()),
            fix="take a smaller model, --dtype bfloat16, or another --device",
        ),
        Check(name=f"{spec}: thinking", value=thinking),
        *([Check(name=f"{spec}: chat settings", value=f"taken: {given}")] if given else []),
    ]


def _hub() -> Check:
    """Whether models and prompt sets can be fetched: asked of the hub itself, for two seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return Check(name="hub", value="offline (HF_HUB_OFFLINE is set)")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    token = f"token {'set' if os.environ.get('HF_TOKEN') else 'not set'}"
    if reachable(endpoint):
        return Check(name="hub", value=f"online; {token}")
    how = "set HF_HUB_OFFLINE=1 to use what is here without waiting"
    return Check(name="hub", value=f"{endpoint} cannot be reached ({how}); {token}")


def reachable(endpoint: str) -> bool:
    """Whether the server of a URL can be connected to, by the proxy that the environment names where it names one."""
    names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    proxy = next((os.environ[name] for name in names if os.environ.get(name)), None)
    where = urlsplit(proxy or endpoint)
    port = where.port or (80 if where.scheme == "http" else 443)
    try:
        with socket.create_connection((where.hostname or "", port), timeout=_PATIENCE_S):
            return True
    except OSError:
        return False


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
