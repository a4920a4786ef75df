"""The straight line from base to tuned, and beyond: W_base + alpha (W_tuned - W_base) over every parameter.

After Jain et al., NeurIPS 2024, arXiv 2407.10264. Parameters only: a mask or a rotary frequency is a buffer, and
interpolating -inf with -inf gives NaN. What TransformerLens keeps as a copy of its own (the parts of a joint
query-key-value map) is a parameter too and moves along, and the plain twin shares all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mechsafety.anatomy.readings import OUTCOME_COLUMNS, Groups, outcome_rows
from mechsafety.anatomy.weight_changes import require_pair
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Judge
from mechsafety.generation.completions import DEFAULT_BATCH

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
INTERPOLATION_COLUMNS = ("model", "alpha", "group", *OUTCOME_COLUMNS)


@contextmanager
def interpolated(base: TransformerBridge, tuned: TransformerBridge, alpha: float) -> Iterator[None]:
    """``base`` with W_base + ``alpha`` (W_tuned - W_base) in place of every parameter while the block runs.

    At 0 it is the base bit for bit and at 1 the tuned model; else the sum is made in float32 and rounded once. Its
    weights change in place, so that bridge, twin and generation all feel it, and are back bit for bit when the block
    ends, also by an exception. One copy of the base's parameters is held. ``tuned`` is only read.

    Raises :class:`MechsafetyError` for an alpha that is not finite, and for models that differ in anything but the
    values of their parameters.
    """
    require_pair(base, tuned)
    if not math.isfinite(alpha):
        raise MechsafetyError(
            f"alpha is {alpha}; it is a finite number, 0 for the base and 1 for the tuned model"
        )
    theirs = dict(tuned.named_parameters())
    with restored(base) as before:
        for name, parameter in base.named_parameters():
            # From the copy, not from the parameter: parts of joint maps may be views of one storage, and would
            # otherwise take the step twice.
            parameter.detach().copy_(
                _between(before[name], theirs[name].detach().to(parameter.device), alpha)
            )
        yield


@contextmanager
def restored(model: TransformerBridge) -> Iterator[dict[str, Tensor]]:
    """Give copies of all parameters by name, and put them back when the block ends."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    places: dict[str, nn.Parameter] = dict(model.named_parameters())
    try:
        yield kept
    finally:
        for name, value in kept.items():
            places[name].detach().copy_(value)


def _between(before: Tensor, after: Tensor, alpha: float) -> Tensor:
    if alpha == 0:
        return before
    if alpha == 1:
        return after
    start = before.float()
    return (start + alpha * (after.float() - start)).to(before.dtype)


def interpolation_rows(
    base: TransformerBridge,
    tuned: TransformerBridge,
    alpha: float,
    groups: Groups,
    *,
    judge: str | Judge,
    max_new_tokens: int,
    seed: int,
    batch_size: int = DEFAULT_BATCH,
) -> list[dict[str, str | int | float]]:
    """What the model at ``alpha`` answers to each group, judged: a row a group, with ``alpha``.

    A judge that asks a model needs a copy of its own: ``base`` is changed in place.
    """
    with interpolated(base, tuned, alpha):
        rows = outcome_rows(
            base, groups, judge=judge, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size
        )
    return [{"alpha": alpha, **row} for row in rows]
