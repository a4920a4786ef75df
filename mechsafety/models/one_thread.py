"""One thread at a time puts something on a model: what another one ran meanwhile would be changed by it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.booted import modules_of
from mechsafety.models.loading import body_of, plain_tree

_lock = threading.Lock()


def this_thread() -> int:
    return threading.get_ident()


def require_thread(owner: int) -> None:
    """Raise :class:`MechsafetyError` in any thread but ``owner``, whose hooks or weights are on the model."""
    if this_thread() != owner:
        raise MechsafetyError(
            "another thread has hooks or an edit on this model, which would act here too: use it in one thread after "
            "the other, or load_model() another for each"
        )


@dataclass
class _Holding:
    """Which thread has something on a model, in how many blocks, and in how many of them weights are changed."""

    thread: int
    depth: int = 0
    weights: int = 0


# Beside the models and not in them: a copy of a model that is held is not held.
_holding: WeakKeyDictionary[Any, _Holding] = WeakKeyDictionary()


@contextmanager
def in_one_thread(model: Any, *, weights: bool = False) -> Iterator[None]:
    """While the block runs no other thread puts anything on ``model``; where ``weights`` change, none runs it.

    A pass that another thread has begun before raises at the next module that it reaches.

    Raises :class:`MechsafetyError` where another thread has something on it already.
    """
    body: Any = body_of(model)
    with _lock:
        held = _holding.setdefault(body, _Holding(this_thread()))
        require_thread(held.thread)
        held.depth += 1
        held.weights += weights
    try:
        with _refusing(model, held.thread) if weights and held.weights == 1 else nullcontext():
            yield
    finally:
        with _lock:
            held.depth -= 1
            held.weights -= weights
            if not held.depth:
                del _holding[body]


@contextmanager
def _refusing(model: Any, owner: int) -> Iterator[None]:
    """While the block runs, every module of the model and of its plain twin raises in another thread than ``owner``."""
    trees = [tree for tree in (body_of(model), plain_tree(model)) if tree is not None]
    modules = dict.fromkeys(module for tree in trees for module in modules_of(tree))

    def check(module: Any, _args: Any) -> None:
        # Copies of a module have its hooks. What a backward pass runs again, on a GPU in a thread of torch's own,
        # belongs to a pass that was checked.
        if module in modules and not _is_in_backward():
            require_thread(owner)

    with ExitStack() as stack:
        stack.callback(modules.clear)  # which a copy's hooks would keep
        for module in modules:
            stack.callback(module.register_forward_pre_hook(check).remove)
        yield


def _is_in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
