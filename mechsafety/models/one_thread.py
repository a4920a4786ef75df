"""One thread at a time puts something on a model: what another one ran meanwhile would be changed by it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.loading import body_of, plain_tree

_OWNER = "_mechsafety_thread"
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


@contextmanager
def in_one_thread(model: Any, *, weights: bool = False) -> Iterator[None]:
    """While the block runs no other thread puts anything on ``model``; where ``weights`` change, none runs it.

    Raises :class:`MechsafetyError` where another thread has something on it already.
    """
    body: Any = body_of(model)
    owner = this_thread()
    with _lock:
        held, depth = body.__dict__.get(_OWNER, (owner, 0))
        require_thread(held)
        body.__dict__[_OWNER] = (owner, depth + 1)
    try:
        with ExitStack() as stack:
            for module in _run(model) if weights else ():
                handle = module.register_forward_pre_hook(lambda _module, _args: require_thread(owner))
                stack.callback(handle.remove)
            yield
    finally:
        with _lock:
            held, depth = body.__dict__.pop(_OWNER)
            if depth > 1:
                body.__dict__[_OWNER] = (held, depth - 1)


def _run(model: Any) -> dict[Any, None]:
    """What may be called of a model: itself, its base, and those of its plain twin."""
    trees = [tree for tree in (body_of(model), plain_tree(model)) if tree is not None]
    return dict.fromkeys(one for tree in trees for one in (tree, getattr(tree, "base_model", tree)))
