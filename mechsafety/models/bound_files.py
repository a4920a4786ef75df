"""Tensors as files with a JSON record: safetensors, bound to the model that they were made for. No pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError
from mechsafety.models.chat_settings import chat_bound, chat_text
from mechsafety.models.loading import known_fingerprint, model_name
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
SUFFIX = ".safetensors"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """One kind of file: what its contents are called, and under which key of the metadata its record stands."""

    noun: str
    key: str
    holds: str

    def named(self, path: Path | str) -> Path:
        """``path``. Raises :class:`MechsafetyError` where it does not end in .safetensors."""
        path = as_path(path)
        if path.suffix != SUFFIX:
            raise MechsafetyError(
                f"{self.noun} file {str(path)!r}: the name must end in {SUFFIX}, e.g. {path.stem or self.noun}{SUFFIX}"
            )
        return path

    def writable(self, path: Path | str) -> Path:
        """``path`` as one that can be written to, which can be asked before the work begins."""
        path = self.named(path)
        if not _holds(path.parent.is_dir):
            raise MechsafetyError(f"folder {str(path.parent)!r} does not exist")
        if _holds(path.is_dir):
            raise MechsafetyError(f"{self.noun} file {str(path)!r} is a folder: name a file")
        return path

    def existing(self, path: Path | str) -> Path:
        path = self.named(path)
        if not is_file(path):
            raise MechsafetyError(f"{self.noun} file {str(path)!r} does not exist")
        return path

    def write(self, path: Path | str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
        """Write ``tensors`` with the record ``facts``; the file is whole or not there.

        Raises :class:`MechsafetyError` for a name that does not end in .safetensors, and a folder that cannot be
        written to.
        """
        from safetensors.torch import save_file

        path = self.named(path)
        # One entry, since the order of several is left to chance: equal contents shall be equal bytes.
        metadata = {self.key: json.dumps({"format": FORMAT, **facts}, sort_keys=True)}
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return RunFolder(path.parent).save(
            path.name, lambda scratch: save_file(whole, scratch, metadata=metadata)
        )

    @contextmanager
    def opened(self, path: Path) -> Iterator[Any]:
        """The open file. Whatever unknown contents bring about in torch, json or safetensors becomes one line."""
        from safetensors import safe_open

        try:
            with safe_open(path, framework="pt") as stored:
                yield stored
        except MechsafetyError:
            raise
        except Exception:
            raise MechsafetyError(
                f"{str(path)!r} holds no {self.holds} that mechsafety saved, or is damaged"
            ) from None

    def record(self, path: Path, stored: Any) -> dict[str, Any]:
        """The record of an open file. Raises :class:`MechsafetyError` for one of another format."""
        facts = json.loads((stored.metadata() or {})[self.key])
        if facts["format"] != FORMAT:
            raise MechsafetyError(
                f"{self.noun} file {str(path)!r} has format {facts['format']}; this version reads format {FORMAT}"
            )
        return facts

    def read(
        self,
        path: Path | str,
        rebuilt: Callable[[dict[str, Any], dict[str, Tensor]], T],
        *,
        digest: Callable[[T], str],
    ) -> tuple[T, dict[str, Any]]:
        """What ``rebuilt`` makes of a file's record and tensors, and the record of the model it was made for.

        Raises :class:`MechsafetyError` for a missing or damaged file, and contents that do not match their hash.
        """
        path = self.existing(path)
        with self.opened(path) as stored:
            facts = self.record(path, stored)
            found = rebuilt(facts, {name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
            recorded, made_for = str(facts["sha256"]), dict(facts["model"])
            made_for |= {name: str(made_for[name]) for name in ("name", "fingerprint")}
        if digest(found) != recorded:
            raise MechsafetyError(
                f"{self.noun} file {str(path)!r} does not match its hash: it was changed after it was saved"
            )
        return found, made_for

    def require_weights(
        self, path: Path | str, made_for: Mapping[str, Any], model: Any, *, hint: str
    ) -> None:
        """Raise :class:`MechsafetyError` for a model whose weights are not those that the file was made for."""
        known, made = known_fingerprint(model), made_for["fingerprint"]
        if known and made and known != made:
            raise MechsafetyError(
                f"{self.noun} {str(path)!r} was made for {made_for['name']!r}, whose weights differ from "
                f"{model_name(model)!r}'s; to carry it over all the same {hint}"
            )


def require_chat(found_under: str, model: Any, *, what: str, hint: str) -> None:
    """Raise :class:`MechsafetyError` for a model under other chat settings than those of ``what``, as JSON."""
    if found_under != (now := chat_text(model)):
        raise MechsafetyError(
            f"{what} was made under other chat settings ({found_under or 'the default ones'}) than "
            f"{model_name(model)!r} has ({now or 'the default ones'}); to use it all the same {hint}"
        )


def made_for(model: Any) -> dict[str, Any]:
    """The record of the model that a file is made for."""
    return {"name": model_name(model), "fingerprint": known_fingerprint(model), **chat_bound(model)}


def is_file(path: Path) -> bool:
    """Whether there is such a file; False too for names that the file system refuses."""
    return _holds(path.is_file)


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty where it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            return stored.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (OSError, ValueError):  # too long, a null byte, a folder that may not be looked into
        return False
