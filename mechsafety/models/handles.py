"""Hooks of torch that stay for one block of code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def attached(handles: Iterable[Any]) -> Iterator[None]:
    """Remove the hooks behind ``handles``, which torch gave when it attached them, as the block ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
