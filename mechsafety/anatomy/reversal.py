"""Which part of a fine-tuning carries what it taught: models with some of dW only, or with all but some of it.

A causal question, asked of whole states of the model: the MLPs' matrices alone, everything but them, the strongest
singular directions of every matrix's dW alone, all but these, and a random dW of the same norm. After Jain et al.,
NeurIPS 2024, arXiv 2407.10264, who study MLPs; the truncations are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Unpack, get_args

from jaxtyping import Float
from torch import Tensor

from mechsafety.anatomy.decompositions import singular
from mechsafety.anatomy.interpolation import restored
from mechsafety.anatomy.readings import OUTCOME_COLUMNS, Groups, outcome_rows
from mechsafety.anatomy.weight_changes import MLP_KINDS, WeightChange, require_pair, weight_changes
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import TOP_RANKS
from mechsafety.core.progress import track
from mechsafety.judges.outcomes import Asking

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

What = Literal["base", "tuned", "matrices", "others", "mlp", "rest", "random", "kept", "removed"]
REVERSAL_COLUMNS = ("state", "r", "group", *OUTCOME_COLUMNS)
_TRUNCATED = ("kept", "removed")
_WITH_OTHERS = ("tuned", "others", "rest", "removed")

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""By map: U S [d_out, r] and V^T [r, d_in] of its dW, strongest directions first, in float32."""


@dataclass(frozen=True, kw_only=True)
class ReversalState:
    """A model between base and tuned.

    Made from the base: ``matrices`` has dW of every matrix of the blocks, ``mlp`` of the MLPs' ones, ``random`` a
    random dW of the same Frobenius norm for every matrix, ``kept`` the top ``r`` singular directions of every dW.
    Made from the tuned model: ``rest`` lacks dW of the MLPs' matrices, ``others`` of every matrix, ``removed`` the top
    ``r`` directions of every dW. Biases, norms and embeddings are those of the model that the state is made from. So
    ``kept`` with r = 0 is the base and ``removed`` the tuned model; with full rank they are ``matrices`` and
    ``others``, which are the tuned model and the base where only matrices were tuned.
    """

    what: What
    r: int | None = None

    def __post_init__(self) -> None:
        if self.what not in get_args(What):
            raise MechsafetyError(f"state {self.what!r} is not one of {', '.join(get_args(What))}")
        if (self.r is not None) != (self.what in _TRUNCATED) or (self.r is not None and self.r < 0):
            raise MechsafetyError(
                f"state {self.what!r} with r = {self.r}: {' and '.join(_TRUNCATED)} have a rank of 0 or more, the "
                "others none"
            )

    @property
    def label(self) -> str:
        return self.what if self.r is None else f"top {self.r} {self.what}"


def reversal_states(ranks: Sequence[int] = TOP_RANKS) -> list[ReversalState]:
    """Every state, the truncations at each of ``ranks``."""
    whole = [ReversalState(what=what) for what in get_args(What) if what not in _TRUNCATED]
    return whole + [ReversalState(what=what, r=r) for what in ("kept", "removed") for r in ranks]


def top_factors(changes: Sequence[WeightChange], *, rank: int) -> Factors:
    """The ``rank`` strongest singular directions of every dW (fewer where a matrix has fewer)."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for change in track(changes, "decomposing dW", total=len(changes), unit="map"):
        parts = singular(change.matrix(), top=min(rank, change.rank))
        scaled = parts.left * parts.values[: parts.left.shape[1]]
        found[change.name] = (scaled.float(), parts.right.float().contiguous())
    return found


@contextmanager
def in_state(
    base: TransformerBridge,
    tuned: TransformerBridge,
    state: ReversalState,
    *,
    seed: int,
    factors: Factors | None = None,
) -> Iterator[None]:
    """``base`` turned into ``state`` while the block runs; back bit for bit afterwards, also after an exception.

    ``seed`` draws the random dW. ``factors`` are :func:`top_factors` of at least ``state.r``, made here where they
    are not given. Raises :class:`MechsafetyError` for models that are no pair, and for too few factors.
    """
    require_pair(base, tuned)
    changes = weight_changes(base, tuned)
    if state.what in _TRUNCATED:
        factors = _enough(changes, factors, state.r or 0)
    matrices = {id(place.parameter) for change in changes for place in change.base.places}
    theirs = dict(tuned.named_parameters())
    with restored(base):
        if state.what in _WITH_OTHERS:
            for name, parameter in base.named_parameters():
                if id(parameter) not in matrices:
                    parameter.detach().copy_(theirs[name].detach())
        for change in changes:
            # Each map is written once, after its dW was read.
            value = _weight(change, state, factors, seed)
            if value is not None:
                change.base.write(value)
        yield


def _enough(changes: Sequence[WeightChange], factors: Factors | None, r: int) -> Factors:
    if factors is None:
        return top_factors(changes, rank=r)
    for change in changes:
        found = len(factors[change.name][1]) if change.name in factors else 0
        if found < min(r, change.rank):
            raise MechsafetyError(
                f"{change.name} has {found} singular directions given, and the state needs {min(r, change.rank)}"
            )
    return factors


def _weight(
    change: WeightChange, state: ReversalState, factors: Factors | None, seed: int
) -> Float[Tensor, "d_out d_in"] | None:
    """The map's W in ``state``; None where it is the base's."""
    before, after = change.base.weight(), change.tuned.weight().to(change.base.weight().device)
    if state.what in _TRUNCATED:
        assert factors is not None
        r = state.r or 0
        if r == 0 or r >= change.rank:  # not through the decomposition, so that the ends are exact
            return after if (r == 0) == (state.what == "removed") else None
        left, right = factors[change.name]
        part = left[:, :r] @ right[:r]
        whole = before.float() + part if state.what == "kept" else after.float() - part
        return whole.to(before.dtype)
    if state.what == "random":
        return (before.float() + change.random(seed=seed)).to(before.dtype)
    in_mlp = change.kind in MLP_KINDS
    takes = {
        "base": False,
        "tuned": True,
        "matrices": True,
        "others": False,
        "mlp": in_mlp,
        "rest": not in_mlp,
    }
    return after if takes[state.what] else None


def reversal_rows(
    base: TransformerBridge,
    tuned: TransformerBridge,
    state: ReversalState,
    groups: Groups,
    *,
    factors: Factors | None = None,
    **asking: Unpack[Asking],
) -> list[dict[str, str | int | float]]:
    """What the model in ``state`` answers to each group, judged: one row per group, with ``state`` and ``r``.

    ``r`` is NaN for states without a rank. A judge that asks a model needs a copy of its own: ``base`` is changed in
    place.
    """
    r = math.nan if state.r is None else state.r
    with in_state(base, tuned, state, seed=asking["seed"], factors=factors):
        return [{"state": state.what, "r": r, **row} for row in outcome_rows(base, groups, **asking)]
