"""What the spec of an endpoint judge says: ``MODEL@URL;OPTION=VALUE;OPTION=VALUE``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from mechsafety.core.errors import MechsafetyError
from mechsafety.judges.budget import Budget
from mechsafety.judges.call_options import CallOptions
from mechsafety.judges.chat_client import KEY, read_key

URL_VARIABLE = "MECHSAFETY_ENDPOINT_URL"
_PREFIX = "MECHSAFETY_ENDPOINT_"
_SPEC = re.compile(r"(?P<model>.+?)(?:@(?P<url>[A-Za-z][\w+.-]*://.*))?", re.DOTALL)
_VARIABLE = re.compile("[A-Z][A-Z0-9_]*")


def _switch(written: str) -> bool:
    if written not in ("on", "off"):
        raise ValueError
    return written == "on"


def _variable(written: str) -> str:
    if not _VARIABLE.fullmatch(written):  # perhaps it is the key itself
        raise ValueError
    return written


OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "api_key_env": (_variable, "the NAME of an environment variable, in capitals"),
    "answer_tokens": (int, "a whole number"),
    "tokens_name": (str, "max_tokens or max_completion_tokens"),
    "temperature": (lambda written: None if written == "default" else float(written), "a number or default"),
    "structured": (_switch, "on or off"),
    "concurrency": (int, "a whole number"),
    "timeout": (float, "a number of seconds"),
    "tries": (int, "a whole number"),
    "requests_per_minute": (float, "a number"),
    "tokens_per_minute": (float, "a number"),
    "price_in": (float, "a number"),
    "price_out": (float, "a number"),
}
"""What a spec can set, with how it is read and what is expected."""
_CAPS: dict[str, Callable[[str], int | float]] = {"calls": int, "tokens": int, "cost": float}
_DEFAULT = CallOptions()
_OF_PROCESS = Budget()
"""What endpoint judges without caps of their own have spent in this process, below the caps of the environment."""
_OF_ENVIRONMENT = ("concurrency", "timeout", "tries", "price_in", "price_out")


def parse(argument: str) -> tuple[str, str]:
    """Model and base URL of ``MODEL@URL``, or of ``MODEL`` with the URL in ``MECHSAFETY_ENDPOINT_URL``.

    Raises MechsafetyError for anything but an http(s) address with a host, and for one that carries a password or a
    query: names of judges are written into results, so no secret may stand in them.
    """
    found = _SPEC.fullmatch(argument.partition(";")[0].strip())
    url = (found and found["url"]) or os.environ.get(URL_VARIABLE, "")
    if not found or not url:
        raise MechsafetyError(
            f"judge 'endpoint' needs a model and an address; write endpoint:MODEL@http://localhost:8000/v1, or set "
            f"{URL_VARIABLE} and write endpoint:MODEL"
        )
    require_address(url)
    if not (found["model"] + url).isprintable():
        raise MechsafetyError(
            "the endpoint's model or address holds a character that cannot be sent: write it again"
        )
    return found["model"], url.rstrip("/")


def require_address(url: str) -> None:
    """Raise MechsafetyError for anything but an http(s) address with a host that holds no secret."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = None, None
    # Nothing of the address is repeated: it may hold the password.
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise MechsafetyError(
            "the endpoint's address is no http:// or https:// URL with a host; write one such"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise MechsafetyError(
            "the endpoint's address holds a password, a query or a fragment; write it without, and put the key "
            f"into {KEY}"
        )


def options_of(argument: str, options: CallOptions) -> CallOptions:
    """``options`` with those that the spec names behind a semicolon (:data:`OPTIONS`)."""
    written = [part.strip() for part in argument.split(";")[1:] if part.strip()]
    given = {}
    for part in written:
        name, _, value = part.partition("=")
        if name.strip() not in OPTIONS:  # which is not repeated: it may hold a key
            raise MechsafetyError(
                f"a judge 'endpoint' has an option that is none of {', '.join(OPTIONS)}: write ;NAME=VALUE"
            )
        given[name.strip()] = _read(name.strip(), value.strip(), shown=f"endpoint option {name.strip()}")
    changed = replace(options, **given)
    read_key(changed.api_key_env)
    return changed


def options_from_environment(default: CallOptions = _DEFAULT) -> CallOptions:
    """``default``, changed by ``MECHSAFETY_ENDPOINT_`` and CONCURRENCY, TIMEOUT, TRIES, PRICE_IN or PRICE_OUT."""
    given = {}
    for name in _OF_ENVIRONMENT:
        if written := os.environ.get(variable := _PREFIX + name.upper()):
            given[name] = _read(name, written, shown=f"{variable} is {written!r}; a number is expected")
    return replace(default, **given)


def budget_from_environment() -> Budget | None:
    """The caps in ``MECHSAFETY_ENDPOINT_MAX_CALLS``, ``_MAX_TOKENS`` and ``_MAX_COST``; None without any.

    They hold over all endpoint judges of this process that have no caps of their own, whenever they were spent.
    """
    if not (caps := caps_of_environment()):
        return None
    _OF_PROCESS.caps = Budget(**caps).caps  # type: ignore[arg-type]
    return _OF_PROCESS


def caps_of_environment() -> dict[str, int | float]:
    """The caps in the environment by name, as :class:`Budget` takes them."""
    caps: dict[str, int | float] = {}
    for cap, read in _CAPS.items():
        variable = f"{_PREFIX}MAX_{cap.upper()}"
        if not (value := os.environ.get(variable)):
            continue
        try:
            caps[cap] = read(value)
        except ValueError:
            raise MechsafetyError(f"{variable} is {value!r}; a number is expected") from None
    return caps


def require_own_keys(specs: Sequence[str]) -> None:
    """Raise MechsafetyError where the one key of the environment would go to several hosts."""
    named = [spec.partition(":")[2] for spec in specs if spec.strip().startswith("endpoint:")]
    sharing = [argument for argument in named if "api_key_env" not in argument]
    hosts = sorted({urlsplit(parse(argument)[1]).hostname or "" for argument in sharing})
    if len(hosts) > 1 and os.environ.get(KEY):
        raise MechsafetyError(
            f"{KEY} would be sent to {' and to '.join(hosts)}: name a variable for each judge with ;api_key_env=NAME "
            "behind its address"
        )


def _read(name: str, written: str, *, shown: str) -> Any:
    kind, expected = OPTIONS[name]
    try:
        return kind(written)
    except ValueError:
        raise MechsafetyError(f"{shown}: write {expected}") from None
