"""Answers of a server that runs the same weights: compared with our own on a sample, and left where they differ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.progress import progress_line
from mechsafety.edits.interventions import Edit, baked, digest, require_fits
from mechsafety.generation.answered import Completion, Completions, Served
from mechsafety.generation.hugging_face import Sampling
from mechsafety.models.loading import current_fingerprint
from mechsafety.prompts.prompt_set import Prompt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

COMPARED = 8
"""Prompts of the sample that both answer, unless it is stated otherwise."""
COMPARED_TOKENS = 64
"""At most, of an answer in that sample."""
LEAST_AGREEMENT = 0.8
"""Share of the sample's tokens before the first difference, below which the server is not used."""


class UnlikeServerError(MechsafetyError):
    """A server answers, and has other models or another vocabulary than was asked for."""


@runtime_checkable
class Server(Protocol):
    """What runs a model elsewhere; at ``address``; ``mechsafety.serving.server`` has one for vLLM."""

    address: str
    compared: int
    least_agreement: float

    def require(self, name: str) -> None:
        """Raise :class:`MechsafetyError` unless the server answers and has the model ``name``."""

    def complete(self, sequences: Sequence[Sequence[int]], how: Asked) -> list[list[int]]:
        """The tokens that follow each of ``sequences``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a batch is answered: ``most`` tokens, up to one of ``stops``; row n draws by ``seed`` + n.

    ``vocabulary`` is the number of tokens that there are.
    """

    most: int
    stops: frozenset[int]
    sampling: Sampling | None
    seed: int
    vocabulary: int


@dataclass(frozen=True)
class Agreed:
    """A server whose answers were compared, and are taken."""

    server: Server


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Greedy answers of a server beside our own to the same ``prompts``.

    ``equal`` answers are the same token by token; ``common`` of ``tokens`` (the longer answer of each pair) stand
    before the first difference. ``least`` is the share of these that was asked for.
    """

    prompts: int
    equal: int
    tokens: int
    common: int
    least: float

    @property
    def share(self) -> float:
        return self.common / self.tokens if self.tokens else 1.0

    @property
    def holds(self) -> bool:
        return self.share >= self.least

    @property
    def reason(self) -> str:
        """Why the server is not used; empty where it is."""
        if self.holds:
            return ""
        return (
            f"its greedy answers to {self.prompts} prompts share {self.share:.2f} of their tokens with ours before the "
            f"first difference, and {self.least:g} was asked for"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"share": round(self.share, 4)}


def served_name(model: TransformerBridge, edit: Edit | None) -> str:
    """The name under which a server has ``model`` under ``edit``: another one for other weights or another edit."""
    made_from = f"{current_fingerprint(model)} {'none' if edit is None else digest(edit)}"
    return f"mechsafety-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"


def in_weights(model: TransformerBridge, edit: Edit | None) -> AbstractContextManager[None]:
    """``edit`` in the weights, as a server has it. Raises :class:`MechsafetyError` for one without a weight form."""
    if edit is None:
        return nullcontext()
    try:
        require_fits(model, edit, weights=True)
    except MechsafetyError as error:
        raise MechsafetyError(
            f"a server runs weights and no hooks: {error}, or generate here ({way('--backend own', 'no server')})"
        ) from None
    return baked(model, edit)


def spread(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """``n`` of the prompts, evenly spread over their order; all where there are fewer."""
    n = min(n, len(prompts))
    return [prompts[row * len(prompts) // n] for row in range(n)]


def compare(
    server: Server,
    prompts: Sequence[Prompt],
    answer: Callable[..., Completions],
    *,
    max_new_tokens: int,
) -> Agreement:
    """How far the server's greedy answers to a sample of ``prompts`` are ours; ``answer(prompts, ...)`` gives both."""
    sample = spread(prompts, server.compared)
    most = min(max_new_tokens, COMPARED_TOKENS)
    ours = answer(sample, max_new_tokens=most, label="comparing: here")
    theirs = answer(sample, max_new_tokens=most, label="comparing: server", server=Agreed(server))
    return agreement_of(ours, theirs, least=server.least_agreement)


def agreement_of(ours: Sequence[Completion], theirs: Sequence[Completion], *, least: float) -> Agreement:
    """The agreement of two answers to each of the same prompts."""
    pairs = list(zip(ours, theirs, strict=True))
    return Agreement(
        prompts=len(pairs),
        equal=sum((a.tokens, a.finish) == (b.tokens, b.finish) for a, b in pairs),
        tokens=sum(max(a.n_tokens, b.n_tokens) for a, b in pairs),
        common=sum(_common(a.tokens, b.tokens) for a, b in pairs),
        least=least,
    )


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def by_server(
    server: Server,
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    edit: Edit | None,
    answer: Callable[..., Completions],
    **how: Any,
) -> Completions:
    """Answers of ``server`` where it agrees with us, else our own under the edit in the weights, for which a line is
    shown; ``served`` of the answers records which. ``answer(prompts, **how)`` generates.
    """
    name = served_name(model, edit)
    with in_weights(model, edit):
        server.require(name)
        same = {k: how[k] for k in ("batch_size", "rendering", "truncate_prompts")}
        found = compare(
            server,
            prompts,
            lambda some, **more: answer(some, **same, **more),
            max_new_tokens=how["max_new_tokens"],
        )
        if found.holds:
            done = answer(prompts, **how, server=Agreed(server))
        else:
            progress_line(f"server {server.address} is not used: {found.reason}")
            done = answer(prompts, **how)
    record = Served(
        address=server.address, model=name, used=found.holds, reason=found.reason, agreement=found.as_dict()
    )
    return replace(done, served=record)
