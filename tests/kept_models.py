"""Tiny models that tests only read: each is made once per test process, and a test that changes one fails.

A test that changes its model loads its own (``tiny``, ``load_model``).
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from mechsafety.models.loading import load_model
from tests.architectures import save_architecture

_kept: dict[Hashable, tuple[Any, Hashable]] = {}
_taken: set[Hashable] = set()


def shared(key: Hashable, make: Callable[[], Any]) -> Any:
    """The model of this key, made at its first use; the guard looks at it when the test ends."""
    if key not in _kept:
        model = make()
        _kept[key] = model, state(model)
    _taken.add(key)
    return _kept[key][0]


def kept(name: str, *, dtype: str = "float32", template: str | None = None) -> Any:
    """An entry of the table of architectures, loaded: to be read only."""
    folder = kept_folder(name, template=template)
    return shared((folder, dtype), lambda: load_model(str(folder), dtype=dtype, device="cpu"))


@cache
def kept_folder(name: str, *, template: str | None = None) -> Path:
    """An entry of the table of architectures, saved: to be read only."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return save_architecture(folder, name, template=template)


def changed() -> Iterator[Hashable]:
    """The kept models that were taken since the last call and are no longer as they were made; they are dropped."""
    while _taken:
        key = _taken.pop()
        model, made = _kept[key]
        if state(model) != made:
            del _kept[key]
            yield key


def state(model: Any) -> Hashable:
    """All that a test may leave behind: weights, modules, hooks, settings, ends of texts, template, what was loaded."""
    twin = model.__dict__.get("_mechsafety_twin")
    modules = [*model.modules(), *(twin.modules() if twin is not None else ())]
    hooks = sum(
        len(getattr(m, kind, ()))
        for m in modules
        for kind in ("_forward_hooks", "_forward_pre_hooks", "fwd_hooks", "bwd_hooks")
    )
    weights = tuple(
        (name, p.dtype, p.requires_grad, crc32(p.detach().contiguous().view(torch.uint8).numpy()))
        for name, p in model.named_parameters()
    )
    tokenizer = model.tokenizer
    words = tokenizer.chat_template, tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side
    settings = tuple((k, v) for k, v in vars(model.cfg).items() if isinstance(v, bool | int | float | str))
    ends = tuple(str(getattr(model.original_model, n, None)) for n in ("generation_config", "config"))
    record = ends, id(twin), id(getattr(model, "load_record", None))
    kinds = tuple((type(m), m.training, "forward" in m.__dict__) for m in modules)
    return weights, hooks, kinds, settings, words, record
