"""A vLLM server as a source of answers, and the command that starts one on an edited checkpoint.

vLLM pins its own torch and runs no hooks, so it lives in an environment of its own and reads a checkpoint that
:func:`mechsafety.regions.saved_models.save_model` wrote. Nothing of it is imported here.
"""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.edits.sums import EditLike, as_edit
from mechsafety.generation.served import COMPARED, LEAST_AGREEMENT, Asked, UnlikeServerError, served_name
from mechsafety.judges.asking import Ledger
from mechsafety.judges.call_options import CallOptions
from mechsafety.judges.endpoint_calls import NoAnswer
from mechsafety.judges.endpoint_spec import options_from_environment, require_address
from mechsafety.judges.threads import in_a_thread
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.hardware import dtype_name
from mechsafety.serving.calls import CompletionCalls, Continued, Prompt

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_PATIENT = CallOptions(timeout=600.0, concurrency=64)


@checked_construction
class VllmServer:
    """A vLLM server at ``address`` (``http://127.0.0.1:8000/v1``), as :func:`mechsafety.generate` takes it.

    ``model`` is the name under which it has the checkpoint, by default that of :func:`serve_command`, which differs for
    every model and edit. ``compared`` prompts are answered by it and by us, greedily; where less than
    ``least_agreement`` of their tokens stand before the first difference, it is not used. Retries, waits and the key
    are those of the judge ``endpoint``; ``options`` may change them (a call waits for 600 s by default). Raises
    :class:`MechsafetyError` for an address that is none.

    Example:
        >>> server = ms.VllmServer("http://127.0.0.1:8000/v1", compared=8)  # generate(..., server=server) asks it
        >>> server.address, server.compared
        ('http://127.0.0.1:8000/v1', 8)
    """

    def __init__(
        self,
        address: str,
        *,
        model: str | None = None,
        compared: int = COMPARED,
        least_agreement: int | float = LEAST_AGREEMENT,
        options: CallOptions | None = None,
    ) -> None:
        require_address(address)
        if compared < 1 or not 0 <= least_agreement <= 1:
            raise MechsafetyError(
                f"compared is {compared} and least_agreement {least_agreement:g}: at least 1 prompt is compared, and a "
                "share between 0 and 1 asked for"
            )
        self.address, self.named, self.model, self.window = address.rstrip("/"), model, model, None
        self.compared, self.least_agreement = compared, float(least_agreement)
        self.options = options or options_from_environment(_PATIENT)

    def __repr__(self) -> str:
        return f"VllmServer({self.address!r}, model={self.named!r})"

    def require(self, name: str) -> None:
        """Raise :class:`UnlikeServerError` for one without the model ``name`` (or the one given), and another
        :class:`MechsafetyError` where it does not answer.
        """
        self.take(name, self.models())

    def take(self, name: str, found: Mapping[str, int | None]) -> None:
        """Let the model ``name`` (or the one given) answer, which is among those ``found`` here, with their windows.

        Raises :class:`UnlikeServerError` where it is not.
        """
        name = self.named or name
        if name not in found:
            has = ", ".join(map(repr, found)) or "no model"
            raise UnlikeServerError(
                f"server {self.address} has {has} and not {name!r}, which is this model under this edit: export it and "
                f"start vllm serve with --served-model-name {name}"
            )
        self.model, self.window = name, found[name]

    def models(self) -> Mapping[str, int | None]:
        """The names of the models that the server has, with their windows.

        Raises :class:`MechsafetyError` where it gives no answer.
        """
        return self._ask(self.named or "", [Prompt()], lambda _: None)[0].models or {}

    def complete(self, sequences: Sequence[Sequence[int]], how: Asked) -> list[list[int]]:
        """The tokens that follow each of ``sequences``, at most ``how.most``, a stop token with them.

        Raises :class:`MechsafetyError` where the server reads other tokens than it was sent, knows fewer or more, ends
        for a reason of its own, or does not answer.
        """
        longest = max(map(len, sequences)) + how.most
        if self.window is not None and longest > self.window:
            raise MechsafetyError(
                f"server {self.address} has a window of {self.window} tokens, a prompt and its answer {longest}: start "
                f"it with --max-model-len {longest} or more"
            )
        asked = [
            Prompt(tokens=tuple(tokens), fields=_fields(how, seed=(how.seed + n) % 2**63))
            for n, tokens in enumerate(sequences)
        ]
        with bar(self.address, total=len(asked), unit="response") as shown:
            found = self._ask(self.model or "", asked, lambda _: shown.update(1))
        return [self._checked(prompt, one, how) for prompt, one in zip(asked, found, strict=True)]

    def _checked(self, prompt: Prompt, found: Continued, how: Asked) -> list[int]:
        strange = [token for token in found.tokens if not 0 <= token < how.vocabulary]
        if strange or found.prompt not in (None, prompt.tokens):
            what = f"token {strange[0]} of {how.vocabulary}" if strange else "a prompt that it was not sent"
            raise UnlikeServerError(
                f"server {self.address} has another vocabulary ({what}): it runs another model than {self.model!r} says"
            )
        n = len(found.tokens)
        if n > how.most or not (found.finish == "stop" or (found.finish == "length" and n == how.most)):
            raise MechsafetyError(
                f"server {self.address} ended an answer after {n} of {how.most} tokens with the reason "
                f"{found.finish!r}: look at its log"
            )
        return list(found.tokens)

    def _ask(self, model: str, asked: Sequence[Prompt], took: Callable[[int], object]) -> list[Continued]:
        calls = CompletionCalls(model=model, url=self.address, options=self.options, ledger=Ledger())
        found: dict[int, Continued] = {}

        async def work(put: Callable[[int, Continued], Awaitable[None]]) -> None:
            import asyncio

            rows = iter(range(len(asked)))  # shared: each worker takes the next

            async def one(client: AsyncOpenAI) -> None:
                for row in rows:
                    await put(row, await calls.answer(client, asked[row]))

            try:
                async with calls.client() as client, asyncio.TaskGroup() as group:
                    for _ in range(min(self.options.concurrency, len(asked))):
                        group.create_task(one(client))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None

        def settle(row: int, one: Continued) -> None:
            found[row] = one
            took(row)

        try:
            in_a_thread(work, settle)
        except NoAnswer as error:
            raise MechsafetyError(
                f"server {self.address} gives no answer to a prompt ({error.detail.get('error', error.reason)})"
            ) from None
        return [found[row] for row in range(len(asked))]


def _fields(how: Asked, *, seed: int) -> dict[str, object]:
    drawn = how.sampling
    return {
        "max_tokens": how.most,
        "temperature": drawn.temperature if drawn else 0.0,
        "top_p": drawn.top_p if drawn else 1.0,
        "seed": seed,
        "stop_token_ids": sorted(how.stops),
    }


Listed = Mapping[VllmServer, Mapping[str, int | None] | MechsafetyError]
"""By server the models that it has, with their windows, or why it does not answer."""


def listed(servers: Sequence[VllmServer]) -> Listed:
    """What each server has; one that does not answer is waited for once."""
    found: dict[VllmServer, Mapping[str, int | None] | MechsafetyError] = {}
    for server in servers:
        try:
            found[server] = server.models()
        except MechsafetyError as error:
            found[server] = error
    return found


def server_with(servers: Listed, name: str) -> VllmServer:
    """The first of ``servers`` that has the model ``name``.

    Raises what the first raised that does not answer, and where all answer :class:`UnlikeServerError` that says what
    each has instead.
    """
    lacking: list[str] = []
    for server, found in servers.items():
        if isinstance(found, MechsafetyError):
            continue
        try:
            server.take(name, found)
        except UnlikeServerError as error:
            lacking.append(str(error))
        else:
            return server
    require_all_answer(servers)
    raise UnlikeServerError("; ".join(lacking))


def require_all_answer(servers: Listed) -> None:
    """Raise what the first raised that does not answer."""
    for found in servers.values():
        if isinstance(found, MechsafetyError):
            raise found


def serve_command(
    model: ModelLike, edit: EditLike | None, folder: str | Path, *, address: str = "http://127.0.0.1:8000/v1"
) -> str:
    """The command that serves the checkpoint which ``save_model(model, edit, folder)`` wrote, for a shell with vLLM.

    The name is checked when answers are asked for. Models of 70B and more need ``--tensor-parallel-size`` as well.

    Arguments:
        folder: The folder of the checkpoint.
        address: Where the server shall answer.

    Returns:
        One line for a shell.

    Example:
        >>> ms.serve_command(model, ms.Orthogonalise(direction), "edited").split()[:3]
        ['vllm', 'serve', 'edited']
    """
    model = as_model(model)
    given = None if edit is None else as_edit(edit, model)
    words = ["vllm", "serve", str(folder), "--served-model-name", served_name(model, given)]
    words += ["--dtype", dtype_name(next(model.parameters()).dtype), "--generation-config", "vllm"]
    return f"{shlex.join(words)} {_listening(address)}"


def _listening(address: str) -> str:
    """The options of ``vllm serve`` for an address; the port is that of http where none is named."""
    require_address(address)
    parts = urlsplit(address)
    return shlex.join(["--host", parts.hostname or "", "--port", str(parts.port or 80)])
