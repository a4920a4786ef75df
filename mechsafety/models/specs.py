"""A model's spec: its parts, where they lie, and what is said where they cannot be loaded.

A spec is ``BASE[@REVISION][+ADAPTER]``. BASE is ``smollm2-135m`` (the packaged model), a hub id, a
folder, or a ``.gguf`` file; ADAPTER is a packaged adapter's name or a folder that peft can read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mechsafety.core.arguments import nearest
from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.models.gguf import PACKAGED, converted, packaged_gguf


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model's spec in its parts: ``BASE@REVISION+ADAPTER``."""

    base: str
    revision: str | None
    adapter: str | None


def parse_spec(spec: str) -> ModelSpec:
    """The parts of ``spec``; :class:`MechsafetyError` where one that is announced is missing."""
    # Paths may hold '+' and '@': the longest part that exists is the base, else the first '+' divides.
    pluses = [i for i, character in enumerate(spec) if character == "+"]
    cut = next((i for i in [len(spec), *reversed(pluses)] if _exists(spec[:i])), None)
    if cut is None:
        cut = pluses[0] if pluses else len(spec)
    base, plus, adapter = spec[:cut], spec[cut : cut + 1], spec[cut + 1 :]
    if plus and not adapter:
        raise MechsafetyError(
            f"model {spec!r} ends in '+': name an adapter after it, e.g. {PACKAGED}+refusals"
        )
    base, at, revision = base.partition("@") if not _exists(base) else (base, "", "")
    if not base:
        raise MechsafetyError(f"model {spec!r} names no base model; try {PACKAGED} or a hub id")
    if at and not revision:
        raise MechsafetyError(f"model {spec!r} names no revision after '@'; leave the '@' out, or name one")
    if at and (base == PACKAGED or _exists(base)):
        raise MechsafetyError(f"model {spec!r}: only hub ids have revisions; leave '@{revision}' out")
    return ModelSpec(base=base, revision=revision or None, adapter=adapter or None)


def _exists(name: str) -> bool:
    return bool(name) and Path(name).expanduser().exists()


def locate(spec: ModelSpec) -> tuple[str, str]:
    """The folder or hub id to load from, and a word for the record."""
    if spec.base == PACKAGED:
        return str(converted(packaged_gguf(), exact=True)), "packaged"
    path = Path(spec.base).expanduser()
    if spec.base.endswith(".gguf"):
        if not path.is_file():
            raise MechsafetyError(f"model file {spec.base!r} does not exist")
        return str(converted(path)), "gguf"
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MechsafetyError(f"folder {spec.base!r} holds no config.json: it is not a saved model")
        return str(path), "folder"
    if spec.base.startswith((".", "/", "~")) or spec.base.count("/") > 1:
        raise MechsafetyError(f"model folder {spec.base!r} does not exist")
    if "/" not in spec.base:
        raise MechsafetyError(
            f"unknown model {spec.base!r}{nearest(spec.base, [PACKAGED], alike=0.75)}: "
            f"use {PACKAGED!r}, a hub id such as 'Qwen/Qwen2.5-0.5B-Instruct', "
            "a folder, or a .gguf file"
        )
    return spec.base, "hub"


def load_error(spec: str, parsed: ModelSpec, error: BaseException) -> MechsafetyError:
    """One line for whatever the hub, transformers or the disk reported."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    if any(isinstance(e, GatedRepoError) for e in chain):
        return MechsafetyError(
            f"model {parsed.base!r} is gated: accept its licence on its hub page, then run "
            "'hf auth login' or set HF_TOKEN"
        )
    if any(isinstance(e, RevisionNotFoundError) for e in chain):
        return MechsafetyError(f"model {parsed.base!r} has no revision {parsed.revision!r}")
    if any(isinstance(e, RepositoryNotFoundError) for e in chain):
        return MechsafetyError(
            f"model {parsed.base!r} was not found on the hub: check the spelling, or, if it is private, "
            "set HF_TOKEN"
        )
    if any(isinstance(e, LocalEntryNotFoundError | ConnectionError) for e in chain):
        return MechsafetyError(
            f"model {parsed.base!r} is not in the local cache and the hub cannot be reached: go online, or "
            "name a folder"
        )
    return MechsafetyError(f"cannot load {spec!r}: {first_lines(error)}")
