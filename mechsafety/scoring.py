"""Log-probabilities of whole answer strings: what the logit judge and the self-judge ask a model for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.bodies import body_under
from mechsafety.errors import MechsafetyError
from mechsafety.forward import Prefix, continued, forward, run_prefix, shared_prefix
from mechsafety.interventions import Edit
from mechsafety.progress import bar
from mechsafety.tokens import TokenBatch, batches, device_of, require_room

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT_BATCH = 32


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
    runs once for all options. ``share_prefix=False`` is the plain reference that runs everything. Raises
    :class:`MechsafetyError` where a context with an option does not fit in the model's window.
    """
    if not contexts or not options or any(not o for o in options) or any(len(c) < 1 for c in contexts):
        raise MechsafetyError("scoring needs contexts and options, none of them empty")
    require_room(
        model,
        contexts,
        [f"{label} {number}" for number in range(1, len(contexts) + 1)],
        new_tokens=max(map(len, options)) - 1,
        mend="take a model that reads more",
    )
    prefix = shared_prefix(contexts) if share_prefix else []
    out = torch.empty(len(contexts), len(options), dtype=torch.float64)
    with (
        torch.inference_mode(),
        body_under(model, edit) as module,
        bar(label, total=len(contexts), unit="item") as progress,
    ):
        stored = run_prefix(module, prefix, device_of(model))
        rests = [list(c[len(prefix) :]) for c in contexts]
        for batch in batches(model, rests, batch_size=batch_size):
            out[list(batch.rows)] = _score(module, batch, options, stored).cpu()
            progress.update(len(batch.rows))
    return out


def _score(
    module: Any, batch: TokenBatch, options: Sequence[Sequence[int]], before: Prefix
) -> Float[Tensor, "row option"]:
    rows = len(batch.ids)
    first = forward(module, batch, logits=1, before=before, keep_cache=True)
    start = torch.log_softmax(first.logits[:, -1].double(), dim=-1)
    scores = torch.stack([start[:, option[0]] for option in options], dim=1)
    stored = continued(batch, first, before=before)
    each = torch.arange(rows, device=batch.ids.device)
    for column, option in enumerate(options):
        if len(option) == 1:
            continue
        more = torch.tensor([list(option[:-1])] * rows, device=batch.ids.device)
        begun = TokenBatch(rows=batch.rows, ids=more, mask=torch.ones_like(more))
        out = forward(module, begun, logits=more.shape[1], before=stored, rows=each)
        later = torch.log_softmax(out.logits.double(), dim=-1)
        targets = torch.tensor(list(option[1:]), device=batch.ids.device).expand(rows, -1)[..., None]
        scores[:, column] += later.gather(-1, targets).sum((1, 2))
    return scores


def answer_nll(
    model: TransformerBridge,
    contexts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    edit: Edit | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> list[float | None]:
    """Mean negative log-likelihood per answer token after its context, in nats; None for an empty answer.

    Under the unedited model text that it finds very unlikely is a sign of damage; under an edit the unedited
    model's own answers are.
    """
    full = [[*c, *a] for c, a in zip(contexts, answers, strict=True)]
    out: list[float | None] = [None] * len(full)
    longest = max((len(a) for a in answers), default=0)
    if not longest:
        return out
    with body_under(model, edit) as body:
        for batch in batches(model, full, batch_size=batch_size):
            logits = forward(body, batch, logits=longest + 1).logits
            for place, row in enumerate(batch.rows):
                if n := len(answers[row]):
                    predicted = torch.log_softmax(logits[place, -n - 1 : -1].float(), dim=-1)
                    target = batch.ids[place, -n:, None]
                    out[row] = -float(predicted.gather(-1, target).mean())
    return out
