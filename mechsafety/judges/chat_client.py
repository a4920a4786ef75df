"""The HTTP client of an endpoint judge: its own key and nothing else of the environment goes out, and to one host."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mechsafety.core.errors import MechsafetyError
from mechsafety.judges.failures import UnusableError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

KEY = "MECHSAFETY_ENDPOINT_KEY"
"""Where the key of a judge that names no variable is looked for at the time of the call. It is kept nowhere else."""
_SENT = frozenset(
    {
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "content-type",
        "content-length",
        "x-stainless-raw-response",  # by which the library knows that the body is wanted as it is
    }
)
_PORTS = {"http": 80, "https": 443}


class Elsewhere(Exception):
    """A redirect to another host, which it names, or one that would lose the question."""


def read_key(variable: str) -> str:
    """The key in the environment; empty where there is none. Raises MechsafetyError for one that cannot be sent."""
    key = os.environ.get(variable, "")
    if not re.fullmatch(r"[!-~]*", key):
        raise MechsafetyError(
            f"the key in {variable} holds a blank, a line break or a character that is not ASCII: copy it again"
        )
    return key


def require_key(variable: str) -> None:
    """Raise UnusableError where a variable that a judge names is not set."""
    if variable != KEY and not os.environ.get(variable):  # which is not repeated: it may be a key itself
        raise UnusableError("the api_key_env of a judge 'endpoint' names a variable that is not set: set it")


def scrubbed(text: str, *variables: str) -> str:
    """``text`` without the keys in ``variables``: an endpoint may repeat one in its messages."""
    for name in (KEY, *variables):
        if key := os.environ.get(name):
            text = text.replace(key, "***")
    return text


def make_client(url: str, *, key_variable: str, timeout: float, at_once: int) -> AsyncOpenAI:
    """A client that tries once, sends the key in ``key_variable`` to the host of ``url`` and follows no other host.

    The library would add organisation, project and headers of the environment; they are taken off again.
    """
    import httpx
    import openai

    require_key(key_variable)
    key = read_key(key_variable) or "none"
    own, limits = _origin(str(httpx.URL(url))), type(openai.DEFAULT_CONNECTION_LIMITS)

    async def guard(request: Any) -> None:
        if (to := _origin(str(request.url))) != own and not _is_upgrade(own, to):
            raise Elsewhere(f"leads to another host ({to[1]}:{to[2]}), where nothing is sent")
        for name in [name for name in request.headers if name.lower() not in _SENT]:
            del request.headers[name]
        request.headers["authorization"] = f"Bearer {key}"
        request.headers["user-agent"] = "mechsafety"

    async def keep(response: Any) -> None:
        # The next request would be a GET, without the question.
        if response.status_code in (301, 302, 303) and (location := response.headers.get("location")):
            to = (
                httpx.URL(str(response.url)).join(location).copy_with(query=None, fragment=None, userinfo=b"")
            )
            where = str(to).removesuffix("/chat/completions")
            raise Elsewhere(f"has moved (status {response.status_code}) to {where}")

    try:
        http = openai.DefaultAsyncHttpxClient(
            timeout=timeout,
            event_hooks={"request": [guard], "response": [keep]},
            max_redirects=5,
            limits=limits(max_connections=at_once, max_keepalive_connections=at_once),
        )
    except ImportError:
        raise MechsafetyError(
            "a SOCKS proxy in the environment (ALL_PROXY, HTTPS_PROXY) needs the package socksio: install it, or unset "
            "the variable"
        ) from None
    except OSError:  # of certificates and of a log of keys
        raise MechsafetyError(
            "a file that SSL_CERT_FILE, SSL_CERT_DIR or SSLKEYLOGFILE in the environment names cannot be used: correct "
            "the variable, or unset it"
        ) from None
    except Exception:  # the message may hold the proxy's password
        raise MechsafetyError(
            "a proxy in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) is no http://, https:// or socks5:// "
            "address that can be used: correct it, or unset it"
        ) from None
    return openai.AsyncOpenAI(
        api_key=key,
        organization="",  # neither is looked for in the environment then
        project="",
        base_url=url,
        timeout=timeout,
        max_retries=0,
        http_client=http,
    )


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)


def _is_upgrade(own: tuple[str, str, int], to: tuple[str, str, int]) -> bool:
    return own[1] == to[1] and (own[0], own[2]) == ("http", 80) and (to[0], to[2]) == ("https", 443)
