"""Log-probabilities of whole answer strings: what the logit judge and the self-judge ask a model for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.edits.interventions import Edit
from mechsafety.generation.bodies import body_under
from mechsafety.models.chat import TokenBatch, batches, device_of, pad_token
from mechsafety.models.forward import NO_PREFIX, Prefix, continued, forward, keeps_keys, run_prefix
from mechsafety.models.prefixes import common_prefix
from mechsafety.models.room import require_room

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT_BATCH = 32

Asked = tuple[int, Sequence[int]]
"""A continuation, with the row of the batch whose context it follows."""


def option_log_probs(
    model: TransformerBridge,
    contexts: Sequence[Sequence[int]],
    options: Sequence[Sequence[int]],
    *,
    edit: Edit | None = None,
    batch_size: int = DEFAULT_BATCH,
    share_prefix: bool = True,
    label: str = "scoring",
) -> Float[Tensor, "context option"]:
    """log P(option | context), summed over the option's tokens, in nats (float64).

    The tokens that all contexts begin with run once, and their keys and values are shared; each context
    runs once for all options. Where the model does not allow that, all of it runs.
    ``share_prefix=False`` is the plain reference that shares no tokens between contexts. Raises
    :class:`MechsafetyError` where a context with an option does not fit in the model's window.
    """
    if not contexts or not options or any(not o for o in options) or any(len(c) < 1 for c in contexts):
        raise MechsafetyError("scoring needs contexts and options, none of them empty")
    require_room(
        model,
        contexts,
        [f"{label} {number}" for number in range(1, len(contexts) + 1)],
        new_tokens=max(map(len, options)) - 1,
    )
    out = torch.empty(len(contexts), len(options), dtype=torch.float64)
    longest = max(len(o) for o in options)
    with (
        torch.inference_mode(),
        body_under(model, edit) as module,
        bar(label, total=len(contexts), unit="item") as progress,
    ):
        device = device_of(model)
        prefix = common_prefix(module, contexts, device, more=longest) if share_prefix else []
        stored = run_prefix(module, prefix, device)
        rests = [list(c[len(prefix) :]) for c in contexts]
        for batch in batches(model, rests, batch_size=batch_size):
            asked = [(row, option) for option in options for row in range(len(batch.rows))]
            at_once = max(batch_size, len(batch.rows))
            scored = continuation_logits(
                module, batch, asked, before=stored, pad=pad_token(model), batch_size=at_once
            )
            # All of a batch come to the host at once: it waits for the device once.
            found = {number: log_probability(logits, asked[number][1]) for number, logits in scored}
            for number, value in zip(found, torch.stack(list(found.values())).tolist(), strict=True):
                out[batch.rows[asked[number][0]], number // len(batch.rows)] = value
            progress.update(len(batch.rows))
    return out


def log_probability(logits: Float[Tensor, "token vocabulary"], tokens: Sequence[int]) -> Float[Tensor, ""]:
    """log P of ``tokens`` by the logits that predict them, in nats (float64), where these are."""
    wide = logits.double()
    target = torch.tensor(list(tokens), device=logits.device)[:, None]
    return (wide.gather(-1, target)[:, 0] - wide.logsumexp(-1)).sum()


def continuation_logits(
    body: Any,
    batch: TokenBatch,
    asked: Sequence[Asked],
    *,
    before: Prefix = NO_PREFIX,
    rows: Int[Tensor, " row"] | None = None,
    pad: int,
    batch_size: int,
    entering: Callable[[Int[Tensor, " row"]], None] = lambda _: None,
) -> Iterator[tuple[int, Float[Tensor, "token vocabulary"]]]:
    """For each of ``asked`` its number and the logits that predict its tokens, in any order.

    The contexts, the rows of ``batch`` behind ``before``, run once, and every continuation goes on from their keys;
    ``batch_size`` continuations at a time. ``rows`` names the row of ``before`` that each row of the batch stands
    behind (default: its only one), and ``entering`` is told before each pass which rows of the batch it is about, for
    edits that differ from row to row. On a model whose state takes one token at a time each continuation runs whole,
    with its context.
    """
    longer = [n for n, (_, tokens) in enumerate(asked) if len(tokens) > 1]
    entering(torch.arange(len(batch.ids), device=batch.ids.device))
    first = forward(body, batch, logits=1, before=before, rows=rows, keep_cache=bool(longer))
    for number, (row, tokens) in enumerate(asked):
        if len(tokens) == 1:
            yield number, first.logits[row, -1:]
    if not longer:
        return
    after = continued(batch, first, before=before)
    # Alike in length, so that little is padding.
    longer.sort(key=lambda n: -len(asked[n][1]))
    chunks = [longer[begin : begin + batch_size] for begin in range(0, len(longer), batch_size)]
    whole = not keeps_keys(after.cache, after.n_tokens)
    for chunk in chunks:
        some = [asked[n] for n in chunk]
        entering(torch.tensor([row for row, _ in some], device=batch.ids.device))
        if whole:
            yield from zip(chunk, _run_whole(body, batch, some, pad), strict=True)
        else:
            yield from zip(chunk, _run_on(body, batch, some, first, after, pad), strict=True)


def _run_on(
    body: Any, batch: TokenBatch, asked: Sequence[Asked], first: Any, after: Prefix, pad: int
) -> Iterator[Float[Tensor, "token vocabulary"]]:
    """Continuations of two tokens or more from the keys of their contexts."""
    device = batch.ids.device
    rows = torch.tensor([row for row, _ in asked], device=device)
    assert after.mask is not None
    chosen = Prefix(n_tokens=after.n_tokens, cache=after.rows(rows), mask=after.mask[rows])
    rest = padded_right([tokens[:-1] for _, tokens in asked], pad).to(device)
    each = torch.arange(len(asked), device=device)
    later = forward(body, rest, logits=rest.ids.shape[1], before=chosen, rows=each).logits
    for place, (row, tokens) in enumerate(asked):
        yield torch.cat([first.logits[row, -1:], later[place, : len(tokens) - 1]])


def _run_whole(
    body: Any, batch: TokenBatch, asked: Sequence[Asked], pad: int
) -> Iterator[Float[Tensor, "token vocabulary"]]:
    """Continuations with their contexts before them, padded on both sides."""
    rows = torch.tensor([row for row, _ in asked], device=batch.ids.device)
    rest = padded_right([tokens[:-1] for _, tokens in asked], pad).to(batch.ids.device)
    contexts = TokenBatch(rows=rest.rows, ids=batch.ids[rows], mask=batch.mask[rows])
    whole = contexts.followed_by(rest)
    width = batch.ids.shape[1]
    logits = forward(body, whole, logits=rest.ids.shape[1] + 1, prompt_columns=width).logits
    for place, (_, tokens) in enumerate(asked):
        yield logits[place, : len(tokens)]


def padded_right(sequences: Sequence[Sequence[int]], pad: int) -> TokenBatch:
    # What follows a context stands next to it: the padding is at the end, where nothing comes after it.
    width = max(len(s) for s in sequences)
    ids = torch.tensor([[*s, *[pad] * (width - len(s))] for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])
    return TokenBatch(rows=tuple(range(len(sequences))), ids=ids, mask=mask)


def answer_nll(
    model: TransformerBridge,
    contexts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    edit: Edit | None = None,
    batch_size: int = DEFAULT_BATCH,
    n_thought: Sequence[int] | None = None,
    ids: Sequence[str] | None = None,
    share_prefix: bool = True,
) -> list[float | None]:
    """Mean negative log-likelihood per answer token after its context, in nats; None for an empty answer.

    The first ``n_thought`` tokens of an answer are the thought before it (default: none is): they are read, and not
    scored, so that a thought without an answer has None.

    Under the unedited model text that it finds very unlikely is a sign of damage; under an edit the unedited
    model's own answers are. The tokens that all contexts begin with run once; ``share_prefix=False`` is the plain
    reference. Raises :class:`MechsafetyError` where a context with its answer does not fit in the model's window;
    ``ids`` name them.
    """
    full = [[*c, *a] for c, a in zip(contexts, answers, strict=True)]
    names = ids or [f"answer {number}" for number in range(1, len(full) + 1)]
    require_room(model, full, names, new_tokens=0)
    out: list[float | None] = [None] * len(full)
    scored = [len(a) - n for a, n in zip(answers, n_thought or [0] * len(answers), strict=True)]
    longest = max(scored, default=0)
    if not longest:
        return out
    with body_under(model, edit) as body:
        if edit is not None and edit.positions != "all":
            _nll_behind_prompts(model, body, contexts, answers, scored, batch_size, out)
            return out
        device = device_of(model)
        prefix = common_prefix(body, contexts, device, more=longest) if share_prefix and len(full) > 1 else []
        stored = run_prefix(body, prefix, device)
        for batch in batches(model, [f[len(prefix) :] for f in full], batch_size=batch_size):
            logits = forward(body, batch, logits=longest + 1, before=stored).logits
            found: dict[int, Tensor] = {}
            for place, row in enumerate(batch.rows):
                if n := scored[row]:
                    predicted = torch.log_softmax(logits[place, -n - 1 : -1].float(), dim=-1)
                    found[row] = predicted.gather(-1, batch.ids[place, -n:, None]).mean()
            _negated(found, out)
    return out


def _negated(found: Mapping[int, Tensor], out: list[float | None]) -> None:
    """Bring the values of a batch to the host at once, with their signs turned."""
    if found:
        for row, value in zip(found, torch.stack(list(found.values())).tolist(), strict=True):
            out[row] = -value


def _nll_behind_prompts(
    model: TransformerBridge,
    body: Any,
    contexts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    scored: Sequence[int],
    batch_size: int,
    out: list[float | None],
) -> None:
    """:func:`answer_nll` under an edit that distinguishes prompt and answer: prompts first, answers after them."""
    asked = [row for row, n in enumerate(scored) if n]
    for batch in batches(model, [contexts[row] for row in asked], batch_size=batch_size):
        pairs = [(place, answers[asked[row]]) for place, row in enumerate(batch.rows)]
        found: dict[int, Tensor] = {}
        for place, logits in continuation_logits(
            body, batch, pairs, pad=pad_token(model), batch_size=batch_size
        ):
            row = asked[batch.rows[place]]
            target = torch.tensor(list(answers[row]), device=logits.device)[-scored[row] :, None]
            predicted = torch.log_softmax(logits[-scored[row] :].float(), dim=-1)
            found[row] = predicted.gather(-1, target).mean()
        _negated(found, out)
