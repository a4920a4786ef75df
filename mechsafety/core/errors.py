"""The one exception a user is meant to read, and what an optional package that is missing looks like."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Extra = Literal["inspect", "lm-eval", "attacks", "ray"]
_PACKAGES: dict[Extra, str] = {
    "inspect": "inspect_ai",
    "lm-eval": "lm_eval",
    "attacks": "nanogcg",
    "ray": "ray",
}

_on_command_line: ContextVar[bool] = ContextVar("errors are read on the command line", default=False)


class MechsafetyError(Exception):
    """A problem the user can mend.

    The message names what was got, what is allowed and what to do, in one or two lines. The command
    line prints it without a traceback and exits with code 2.

    Example:
        >>> try:
        ...     ms.load_model("no-such-model")
        ... except ms.MechsafetyError as error:
        ...     print(str(error).partition(":")[0])
        unknown model 'no-such-model'
    """


class NotFiniteError(MechsafetyError):
    """Activations, logits or a loss are NaN or infinite: a system that cannot be measured in this number format."""


class RefusedRunError(MechsafetyError):
    """A run folder, or a part of one, was made from something else or under other circumstances than asked for now."""


class StoppedError(MechsafetyError):
    """Work that something outside ended, such as a service that gives up: what was done is kept, the rest is missing.

    The command line exits with code 1, and the same command goes on.
    """


class IncompleteError(StoppedError):
    """Work of which single pieces are missing, and may come when they are asked for again."""


@contextmanager
def on_the_command_line() -> Iterator[None]:
    """While the block runs, what errors propose is spelt as an option."""
    token = _on_command_line.set(True)
    try:
        yield
    finally:
        _on_command_line.reset(token)


def is_on_the_command_line() -> bool:
    """Whether errors propose options; for another process that words some of them."""
    return _on_command_line.get()


def way(option: str, python: str | None = None) -> str:
    """What an error proposes: the ``option`` on the command line, elsewhere what ``python`` says.

    Without ``python`` it is the argument of the option's name: ``--dtype float32`` is ``dtype="float32"``.
    """
    if is_on_the_command_line():
        return option
    return python or _argument(option)


def _argument(option: str) -> str:
    name, _, value = option.removeprefix("--").partition(" ")
    return f"{name.replace('-', '_')}={json.dumps(value) if value else '...'}"


@contextmanager
def needs(extra: Extra) -> Iterator[None]:
    """Around the import of an extra's package: where it is not installed, name what installs it."""
    package = _PACKAGES[extra]
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MechsafetyError(
            f"{package} is not installed; for this do: pip install 'mechsafety[{extra}]'"
        ) from None


def first_lines(error: BaseException, count: int = 1) -> str:
    """The first lines of another library's message, joined and cut to 300 characters."""
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:count])
    return text[:300] or type(error).__name__
