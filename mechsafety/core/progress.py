"""Progress: lines for the user, and bars on stderr, shown in terminals and notebooks only."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from tqdm import tqdm

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
Progress = Callable[[str], None]
"""Receives one line about the work in progress."""

_SOONEST = 1.0  # seconds: bars of what is done sooner are not shown
_IN_NOTEBOOK = "ipykernel" in sys.modules
if _IN_NOTEBOOK:
    with warnings.catch_warnings():  # the loaders' bars warn at their first import that ipywidgets is missing
        warnings.simplefilter("ignore")
        importlib.import_module("tqdm.auto")

_WANTED: ContextVar[bool] = ContextVar("progress", default=True)


def _watched() -> bool:
    return _WANTED.get() and (sys.stderr.isatty() or _IN_NOTEBOOK)


def with_progress(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose keyword ``progress=False`` turns off every bar and line within it."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _WANTED.set(_WANTED.get() and bool(kwargs.get("progress", True)))
        try:
            return function(*args, **kwargs)
        finally:
            _WANTED.reset(token)

    return call


def progress_line(line: str) -> None:
    """One line about the work in progress, in terminals and notebooks."""
    if _watched():
        tqdm.write(line, file=sys.stderr)


def bar(label: str, *, total: int, unit: str = "it") -> tqdm:
    """A bar with rate and time left; call ``update(n)`` and close it (it is a context manager)."""
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        disable=not _watched(),
        file=sys.stderr,
        leave=False,
        delay=_SOONEST,
        mininterval=1.0 if _IN_NOTEBOOK else 0.1,  # a saved notebook keeps every state of a bar
        dynamic_ncols=True,
    )


def track(items: Iterable[T], label: str, *, total: int, unit: str = "it") -> Iterator[T]:
    """Yield ``items`` under a bar that counts them."""
    with bar(label, total=total, unit=unit) as progress:
        for item in items:
            yield item
            progress.update(1)


class quiet:
    """Silence the loaders' own progress bars and advice; ours show what matters."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._logging, self._level = logging, logging.get_verbosity()
        self._bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        self._logging.set_verbosity(self._level)
        if self._bars:
            self._logging.enable_progress_bar()
