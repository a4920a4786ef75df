"""What booting may do, and whether a bridge is still what was booted: the plain twin feels nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

BootedState = tuple[frozenset[int], frozenset[tuple[int, str]]]
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def nothing_installed() -> Iterator[None]:
    """While the block runs no package is installed.

    TransformerLens installs torchvision, and with it whatever other torch that wishes, when it boots a model that reads
    images too (Gemma 3 from 4B on), for a processor of images that is not used here.
    """
    real = subprocess.check_call

    def refusing(command: Any, *args: Any, **options: Any) -> int:
        if isinstance(command, list) and {"pip", "install"} <= set(command):
            raise OSError("no package is installed while a model is loaded")
        return real(command, *args, **options)

    subprocess.check_call = refusing
    try:
        yield
    finally:
        subprocess.check_call = real


def booted_state(body: nn.Module, twin: nn.Module) -> BootedState:
    """The parameters that one of the two has and the other has not, and the modules of ``body`` that do more than their
    class defines: torch hooks, and a ``forward`` put in its place.

    A table that this package unties for a while is in both.
    """
    modules = modules_of(body)
    apart = _parameters_of(modules) ^ _parameters_of(modules_of(twin))
    more = {(id(module), word) for module in modules for word in _additions(module)}
    return frozenset(apart), frozenset(more)


def modules_of(root: nn.Module) -> list[nn.Module]:
    """Every module once. This is asked before each batch, and ``modules()`` makes the names of all meanwhile."""
    found, left = {id(root): root}, [root]
    while left:
        for child in left.pop()._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                left.append(child)
    return list(found.values())


def _parameters_of(modules: list[nn.Module]) -> set[int]:
    return {id(p) for module in modules for p in module._parameters.values() if p is not None}


def _additions(module: nn.Module) -> list[str]:
    own = module.__dict__
    hooks = [f"{kind} {key}" for kind in _HOOKS for key, hook in own[kind].items() if _is_foreign(hook)]
    return [*hooks, *(["forward"] if "forward" in own else [])]


def _is_foreign(hook: Any) -> bool:
    # Transformers puts its own on at the first pass that asks for hidden states; TransformerLens's hook points, which
    # carry theirs as torch hooks, are asked elsewhere.
    return not str(getattr(hook, "__module__", "")).startswith(
        ("transformers.", "transformer_lens.", "mechsafety.")
    )
