"""Whether a bridge is still what was booted: the plain twin that shares its parameters feels nothing else."""

from __future__ import annotations

from typing import Any

from torch import nn

BootedState = tuple[frozenset[int], frozenset[tuple[int, str]]]
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def booted_state(body: nn.Module, twin: nn.Module) -> BootedState:
    """The parameters that one of the two has and the other has not, and the modules of ``body`` that do more than their
    class defines: torch hooks, and a ``forward`` put in its place.

    A table that this package unties for a while is in both.
    """
    apart = {id(p) for p in body.parameters()} ^ {id(p) for p in twin.parameters()}
    more = {(id(module), word) for module in body.modules() for word in _additions(module)}
    return frozenset(apart), frozenset(more)


def _additions(module: nn.Module) -> list[str]:
    hooks = [
        f"{kind} {key}" for kind in _HOOKS for key, hook in getattr(module, kind).items() if _is_foreign(hook)
    ]
    return [*hooks, *(["forward"] if "forward" in module.__dict__ else [])]


def _is_foreign(hook: Any) -> bool:
    # Transformers puts its own on at the first pass that asks for hidden states; TransformerLens's hook points, which
    # carry theirs as torch hooks, are asked elsewhere.
    return not str(getattr(hook, "__module__", "")).startswith(
        ("transformers.", "transformer_lens.", "mechsafety.")
    )
