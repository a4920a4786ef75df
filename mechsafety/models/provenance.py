"""Models and files identified without loading them: the sources that a run is bound to.

A model is identified by the bytes of its files, so that a finished run is opened again at the cost of reading them, and
its identity is the same whether or not the model gets loaded.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import quiet
from mechsafety.models.adapters import adapter_folder
from mechsafety.models.chat_settings import ChatSettings
from mechsafety.models.hardware import dtype_name, resolve_dtype
from mechsafety.models.placing import DeviceMap, Memory, as_text, resolve_placing
from mechsafety.models.rendering import OWN_OR
from mechsafety.models.specs import ModelSpec, load_error, locate, parse_spec
from mechsafety.models.templates import template_text
from mechsafety.runs.folder import Provenance

WHOLE = 2**31
"""Bytes of a file up to which all of it is hashed; of a larger one, small tensors and a sample of each large one."""
_BLOCK = 4096
_BLOCKS = 256  # of a large tensor
_COUNT = 8  # bytes that hold how long a safetensors file's header is
_LONGEST_HEADER = 10**8
_KINDS = {
    "weights": r"model.*\.safetensors|pytorch_model.*\.bin|model.*\.index\.json|pytorch_model.*\.index\.json",
    "adapter": r"adapter_.*\.(json|safetensors|bin)",
    "template": r"chat_template.*",
    "tokenizer": r"(tokenizer|tokenization|vocab|merges|special_tokens|added_tokens|spiece|sentencepiece).*|.*\.model"
    r"|.*\.tiktoken",
    "config": r"config\.json|generation_config\.json|.*\.py",
}
"""The files at the top of a checkpoint that loading reads, by their content; the first pattern that fits counts."""


def of_model(
    spec: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    device_map: DeviceMap | None = None,
    max_memory: Memory | str | None = None,
    template: str | None = None,
    chat: ChatSettings | None = None,
) -> Provenance:
    """What :func:`mechsafety.models.loading.load_model` would load for these arguments.

    Identity: weights, tokenizer, template and configuration of a folder (for a hub id the commit), the adapter, the
    template that is put on it, and chat settings other than the default ones. Circumstance: dtype and device as
    resolved. Raises :class:`MechsafetyError` as loading does where the model is not found.
    """
    parsed = parse_spec(spec)
    where, _ = resolve_placing(device, device_map, max_memory)
    folder, source = locate(parsed)
    identity: dict[str, str | None] = (
        {"commit": _commit(spec, parsed)} if source == "hub" else {**_folder_kinds(Path(folder))}
    )
    if parsed.adapter is not None:
        identity["adapter"] = _folder_kinds(adapter_folder(parsed.adapter)).get("adapter")
    if template is not None:
        # Whether a model needs the named one is among its own files.
        key = "template where it has none" if template.startswith(OWN_OR) else "template"
        identity[key] = _template(template.removeprefix(OWN_OR))
    if chat is not None and not chat.is_default:
        identity["chat"] = chat.as_text()
    circumstance = {"dtype": dtype_name(resolve_dtype(dtype, where)), "device": str(where)}
    if (divided := as_text(device_map, max_memory)) is not None:
        circumstance["device"] = f"{where}, divided: {divided}"
    return Provenance(identity=identity, circumstance=circumstance)


def of_models(*specs: str, **loading: Any) -> dict[str, Provenance]:
    """Several models, as sources of a run: ``model SPEC``; ``loading`` is as in :func:`of_model`."""
    return {f"model {spec}": of_model(spec, **loading) for spec in specs}


def of_classifier(spec: str) -> Provenance:
    """A judge's model as it comes: one that :func:`of_model` knows, or an adapter alone, with the base it names."""
    folder = Path(spec).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base = of_model(_base_named_in(folder / "adapter_config.json"))
        return Provenance(identity={**base.identity, **_folder_kinds(folder)}, circumstance=base.circumstance)
    found = of_model(spec)
    settings = _adapter_on_hub(spec) if "commit" in found.identity else None
    if settings is None:
        return found
    base = of_model(_base_named_in(settings))
    parts = {f"base {kind}": value for kind, value in base.identity.items()}
    return Provenance(identity={**parts, **found.identity}, circumstance=found.circumstance)


def _base_named_in(settings: Path) -> str:
    return str(json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path"))


def _adapter_on_hub(spec: str) -> Path | None:
    """The settings of the adapter that a hub id is; None for a whole model."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    parsed = parse_spec(spec)
    try:
        with quiet():
            return Path(hf_hub_download(parsed.base, "adapter_config.json", revision=parsed.revision))
    except EntryNotFoundError:  # also where the hub cannot be reached and the cache has none
        return None
    except Exception as error:
        raise load_error(spec, parsed, error) from error


def of_files(*paths: Path) -> Provenance:
    """Files, or all files in folders, by name and content."""
    return Provenance(identity={str(path): _content(path) for path in paths})


def _template(template: str) -> str:
    return hashlib.sha256(template_text(template).encode()).hexdigest()


def _commit(spec: str, parsed: ModelSpec) -> str:
    """The commit that the hub, or without it the local cache, has for a revision."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def of(name: str) -> str:
        return Path(hf_hub_download(parsed.base, name, revision=parsed.revision)).parent.name

    try:
        with quiet():
            try:
                return of("config.json")
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:  # an adapter alone
                return of("adapter_config.json")
    except Exception as error:
        raise load_error(spec, parsed, error) from error


def _folder_kinds(folder: Path) -> dict[str, str]:
    """A hash of the files of each kind in ``folder``; where no weights go by a usual name, all that could be some."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    kinds = {path: _kind(path.name) for path in files}
    if "weights" not in kinds.values():
        kinds |= {p: "weights" for p in files if kinds[p] is None and p.suffix in (".safetensors", ".bin")}
    found: dict[str, str] = {}
    for kind in _KINDS:
        lines = [f"{path.name} {_hashed(path)}" for path in files if kinds[path] == kind]
        if lines:
            found[kind] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return found


def _kind(name: str) -> str | None:
    return next((kind for kind, pattern in _KINDS.items() if re.fullmatch(pattern, name)), None)


def _content(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    lines = [f"{p.relative_to(path)} {_hashed(p)}" for p in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _hashed(path: Path) -> str:
    """SHA-256 of a file's content, of a sample of it above :data:`WHOLE` bytes."""
    try:
        now = path.stat()
        return _hashed_once(path.resolve(), now.st_size, now.st_mtime_ns, now.st_ino)
    except FileNotFoundError:
        raise MechsafetyError(f"file {str(path)!r} does not exist") from None
    except OSError as error:
        raise MechsafetyError(f"cannot read {str(path)!r}: {error.strerror}") from None


@functools.lru_cache(maxsize=1024)
def _hashed_once(path: Path, size: int, _changed: int, _inode: int) -> str:
    with path.open("rb") as stream:
        if size <= WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        return _sampled(stream, size)


def _sampled(stream: BinaryIO, size: int) -> str:
    """Size, header and every tensor's evenly spaced blocks, the first and the last among them."""
    digest = hashlib.sha256(str(size).encode())
    for begin, end in _ranges(stream, size):
        blocks = min(_BLOCKS, -(-(end - begin) // _BLOCK))
        for number in range(blocks):
            last = max(begin, end - _BLOCK)
            at = begin + (last - begin) * number // max(1, blocks - 1)
            stream.seek(at)
            digest.update(stream.read(min(_BLOCK, end - at)))
    return digest.hexdigest()


def _ranges(stream: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Where the header and each tensor of a safetensors file lie; any other file in equal pieces."""
    stream.seek(0)
    length = int.from_bytes(stream.read(_COUNT), "little")
    try:
        header = json.loads(stream.read(length)) if length <= _LONGEST_HEADER else None
        offsets = sorted(one["data_offsets"] for name, one in header.items() if name != "__metadata__")  # type: ignore[union-attr]
    except (ValueError, AttributeError, KeyError, TypeError):
        step = _BLOCKS * _BLOCK
        yield from ((at, min(at + step, size)) for at in range(0, size, step))
        return
    start = _COUNT + length
    yield from ((at, min(at + _BLOCK, start)) for at in range(0, start, _BLOCK))
    yield from ((start + begin, start + end) for begin, end in offsets)
