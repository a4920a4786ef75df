"""The files of the model that is needed next, fetched while another one works: from the hub, then from the disk.

Nothing depends on it: what goes wrong here goes wrong again, and is said, where the model is loaded.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

from mechsafety.models.adapters import adapter_folder
from mechsafety.models.gguf import PACKAGED
from mechsafety.models.hardware import free_bytes
from mechsafety.models.specs import ModelSpec, locate, parse_spec

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Weights as transformers looks for them, each with an index where it is in several files."""
_FREE_SHARE = 0.5
"""Of the memory that is free: more is not read ahead, since it would push out what is in use."""


def fetch_ahead(spec: str) -> threading.Thread:
    """Begin to fetch what :func:`load_model` will read of ``spec``, in a thread that ends with the process."""
    thread = threading.Thread(target=_fetch, args=(spec,), name=f"fetching {spec}", daemon=True)
    thread.start()
    return thread


def _fetch(spec: str) -> None:
    with suppress(Exception):
        _read_ahead(list(_files(parse_spec(spec))))


def _files(parsed: ModelSpec) -> Iterator[Path]:
    """The files of weights on this machine, downloaded first where they are on the hub."""
    if parsed.adapter is not None:
        yield from _weights_in(adapter_folder(parsed.adapter))
    if parsed.base == PACKAGED or parsed.base.endswith(".gguf"):  # converted first, which takes the processor
        return
    place, kind = locate(parsed)
    if kind == "hub":
        yield from _downloaded(parsed)
    else:
        yield from _weights_in(Path(place))


def _weights_in(folder: Path) -> Iterator[Path]:
    for kind in ("*.safetensors", "*.bin"):
        if found := sorted(folder.glob(kind)):
            yield from found
            return


def _downloaded(parsed: ModelSpec) -> Iterator[Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def of(name: str) -> Path:
        return Path(hf_hub_download(parsed.base, name, revision=parsed.revision))

    for name in _WEIGHTS:
        try:
            index = json.loads(of(f"{name}.index.json").read_text(encoding="utf-8"))
            yield from (of(shard) for shard in sorted(set(index["weight_map"].values())))
            return
        except EntryNotFoundError:
            with suppress(EntryNotFoundError):
                yield of(name)
                return


def _read_ahead(paths: list[Path]) -> None:
    """Ask the system to have the files in memory, as far as there is room."""
    advise: Callable[..., None] | None = getattr(os, "posix_fadvise", None)  # Linux has it
    size = sum(path.stat().st_size for path in paths)
    if advise is None or size > _FREE_SHARE * free_bytes(torch.device("cpu")):
        return
    for path in paths:
        with path.open("rb") as stream:
            advise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
