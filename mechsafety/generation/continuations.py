"""Continuations of token sequences under an edit, each with its own length, stops and seed.

:func:`generate` answers prompts of one run, all by one setting. Evaluation packages ask for
one conversation at a time, with settings of its own, and self-judgement asks about a dialogue; here any such
requests share a batch, and what one gets does
not depend on which others it was batched with (but for rounding: in bfloat16 that can change a token). Greedy
continuations equal those of :func:`~mechsafety.generation.completions.generate`, which is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Edit
from mechsafety.generation.bodies import body_under
from mechsafety.generation.completions import Sampling
from mechsafety.models.chat import TokenBatch, batches, pad_token
from mechsafety.models.forward import NO_PREFIX, Prefix, continued, forward, keeps_keys
from mechsafety.models.thought_reading import ThoughtReader, reader_behind
from mechsafety.models.turn_ends import stop_tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Request:
    """Tokens to continue. ``sampling=None`` takes the likeliest token; ``seed`` is for drawing.

    ``max_new_tokens`` are those of the answer; a model that is left thinking has its ``max_thought_tokens`` before it.
    The answer ends before the first of the strings ``stop``. ``top_logprobs=k`` measures each token's
    log-probability (of the model's own distribution, before temperature) and the k likeliest; None nothing.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None
    seed: int = 0
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        if not self.tokens or self.max_new_tokens < 1 or "" in self.stop:
            raise MechsafetyError(
                f"a request of {len(self.tokens)} tokens for {self.max_new_tokens} more, stopping at {self.stop}: "
                "it needs a token at least, one more at least, and stops that are not empty"
            )


@dataclass(frozen=True, kw_only=True)
class TokenLogProb:
    """One token with its log-probability in nats, and the likeliest tokens in its place."""

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """``text`` is the answer without special tokens and stop strings, ``thought`` what was thought before it.

    ``tokens`` are all that were generated, stop strings included; the first ``n_thought_tokens`` of them belong to the
    thought, all of them where it never ended: the answer is then empty. ``finish`` is ``stop`` (end of turn, or a stop
    string) or ``length`` (the answer cut at max_new_tokens, or the thought at max_thought_tokens).
    """

    tokens: tuple[int, ...]
    text: str
    finish: Literal["stop", "length"]
    log_probs: tuple[TokenLogProb, ...] = ()
    thought: str = ""
    n_thought_tokens: int = 0


@contextmanager
def alone(model: TransformerBridge) -> Iterator[None]:
    """Keep other threads from running ``model`` meanwhile: the hooks of their edits would act here too."""
    with _locks.setdefault(model, Lock()):
        yield


def continuations(
    model: TransformerBridge,
    requests: Sequence[Request],
    *,
    edit: Edit | None = None,
    batch_size: int,
    on_batch: Callable[[int], object] = lambda _: None,
) -> list[Continuation]:
    """The continuation of each request under ``edit``, in their order; ``on_batch`` receives how many more are done."""
    if batch_size < 1:
        raise MechsafetyError(f"batch_size is {batch_size}; 1 at least")
    out: dict[int, Continuation] = {}
    with body_under(model, edit) as body:
        for batch in batches(model, [r.tokens for r in requests], batch_size=batch_size):
            found = continue_batch(model, body, batch, [requests[i] for i in batch.rows])
            out.update(zip(batch.rows, found, strict=True))
            on_batch(len(found))
    return [out[i] for i in range(len(requests))]


def continue_batch(
    model: TransformerBridge,
    body: Any,
    batch: TokenBatch,
    requests: Sequence[Request],
    *,
    before: Prefix = NO_PREFIX,
) -> list[Continuation]:
    """The continuation of each row of ``batch``, which stands behind the tokens of ``before``, by its request."""
    ends = stop_tokens(model)
    rows = [
        _Row(request, reader_behind(model, request.tokens, n_answer=request.max_new_tokens), ends)
        for request in requests
    ]
    with torch.inference_mode():
        _run(body, batch, rows, pad_token(model), before)
    return [row.done() for row in rows]


def _run(body: Any, batch: TokenBatch, rows: Sequence[_Row], pad: int, before: Prefix) -> None:
    """Token by token from the cache; with a model whose cache is not only keys, all of the sequence at each step."""
    each = torch.arange(len(rows), device=batch.ids.device)
    out = forward(body, batch, logits=1, before=before, keep_cache=True)
    before = continued(batch, out, before=before)
    on = keeps_keys(before.cache, before.n_tokens)
    whole = batch
    while True:
        logits = out.logits[:, -1].float()
        likeliest = logits.argmax(-1).tolist()
        taken = [
            pad if row.finish else row.take(row_logits, token)
            for row, row_logits, token in zip(rows, logits, likeliest, strict=True)
        ]
        if all(row.finish for row in rows):
            return
        ids = torch.tensor(taken, device=batch.ids.device)[:, None]
        step = TokenBatch(rows=batch.rows, ids=ids, mask=torch.ones_like(ids))
        if on:
            out = forward(body, step, logits=1, before=before, rows=each, keep_cache=True)
            before = continued(step, out, before=before)
        else:
            whole = whole.followed_by(step)
            out = forward(body, whole, logits=1, prompt_columns=batch.ids.shape[1])


@dataclass
class _Row:
    """One request while it is being continued."""

    request: Request
    reader: ThoughtReader
    ends: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    log_probs: list[TokenLogProb] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.request.seed)

    def take(self, logits: Float[Tensor, " vocabulary"], likeliest: int) -> int:
        """Choose the next token, and note whether it is the last."""
        sampling = self.request.sampling
        token = likeliest if sampling is None else _drawn(logits, sampling, self.generator)
        if token in self.ends:
            self.finish = "stop"
            return token
        self.tokens.append(token)
        if self.request.top_logprobs is not None:
            self.log_probs.append(_measured(logits, token, self.request.top_logprobs))
        if self.request.stop and first_stop(self._unfinished(), self.request.stop) is not None:
            self.finish = "stop"
        elif self.reader.end(self.tokens) is not None:
            self.finish = "length"
        return token

    def _unfinished(self) -> str:
        """The answer so far, with special tokens, which may be what it stops at."""
        n = self.reader.thought_tokens(self.tokens)
        return str(self.reader.tokenizer.decode(self.tokens[n:]))

    def done(self) -> Continuation:
        assert self.finish is not None
        text = self.reader.answer(self.tokens)
        return Continuation(
            tokens=tuple(self.tokens),
            text=text[: first_stop(text, self.request.stop)],
            finish=self.finish,
            log_probs=tuple(self.log_probs),
            thought=self.reader.thought(self.tokens),
            n_thought_tokens=self.reader.thought_tokens(self.tokens),
        )


def first_stop(text: str, stops: Sequence[str], *, start: int = 0) -> int | None:
    """Where the first of the strings ``stops`` begins behind ``start``; None where none is."""
    return min((place for stop in stops if (place := text.find(stop, start)) >= 0), default=None)


def _drawn(logits: Float[Tensor, " vocabulary"], sampling: Sampling, generator: torch.Generator) -> int:
    """A token drawn as Hugging Face's ``generate`` draws it, by the request's own generator."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    scores: Any = TemperatureLogitsWarper(float(sampling.temperature))(None, logits[None].cpu())  # pyright: ignore
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)  # pyright: ignore
    return int(torch.multinomial(torch.softmax(scores[0], dim=-1), 1, generator=generator))


def _measured(logits: Float[Tensor, " vocabulary"], token: int, top: int) -> TokenLogProb:
    log_probs = torch.log_softmax(logits, dim=-1)
    best = torch.topk(log_probs, min(top, len(log_probs)))
    likeliest = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogProb(token=token, log_prob=float(log_probs[token]), top=likeliest)
