"""Safety regions and the refusal direction: how far removing the one is removing the other.

Two measures: what the removed weights wrote to the residual stream, and what is left to each edit after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import track
from mechsafety.directions.activations import residual_means, residual_stream
from mechsafety.directions.direction import Direction, cosine
from mechsafety.edits.interventions import Ablate, Edit
from mechsafety.geometry.similarity import ROUNDING
from mechsafety.models.projection import VectorLike, orthonormal
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.prompts.splits import require_disjoint
from mechsafety.regions.maps import WRITING_KINDS, LinearMap, linear_maps
from mechsafety.regions.pruning import matched_pruning, random_pruning, require_scored
from mechsafety.regions.removal import LowRank, Removal, removed
from mechsafety.regions.score_files import Attribution
from mechsafety.regions.subspaces import random_low_rank
from mechsafety.statistics.auroc import auroc_interval

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

LinkMethod = Literal["snip", "wanda", "actsvd"]
Measure = Callable[["TransformerBridge", Edit | None], Mapping[str, object]]
"""What a model does under an edit, as columns of a row, such as refusals with interval and denominator."""

LINK_COLUMNS = (
    *("removal", "method", "layer", "kind"),
    *("share_removed_on_direction", "chance", "random", "matched", "whole", "n"),
)
_PLACE_COLUMNS = ("auroc", "auroc_low", "auroc_high", "auroc_n", "cosine", "relative_norm")


def direction_share(
    removal: Removal,
    maps: Sequence[LinearMap],
    attribution: Attribution,
    direction: VectorLike,
    *,
    method: LinkMethod,
    seed: int = 0,
    draws: int = 3,
) -> pd.DataFrame:
    """How much of what the removed weights wrote to the residual stream lay on ``direction``, one row per writing map.

    dW are the weights taken out of an output map of attention (o) or MLP (down), C = sum x x^T over the calibration
    tokens of ``attribution`` and u the unit direction: the share is u^T dW C dW^T u / tr(dW C dW^T), energy along u
    over all energy. Nothing is centred: what is the same for all tokens counts too.

    Columns: removal, method, layer, kind, ``share_removed_on_direction`` (NaN where a map loses nothing), ``chance`` =
    1 / d_model, ``random`` (the mean share of ``draws`` random removals of as many weights), ``matched`` (that of as
    many and as large ones), ``whole`` (the share of W itself, which shows how far the map writes there anyway) and
    ``n`` calibration tokens. Where a norm stands between map and
    stream (Gemma 2) it is what enters the norm.

    Raises :class:`MechsafetyError` for scores or a direction of another model, and where no map writes.

    Arguments:
        removal: What was removed.

    Returns:
        One row per map that writes to the stream.

    Example:
        >>> removal = ms.regions.remove_top_ranks(maps, safety, rank=2)
        >>> shares = ms.regions.direction_share(removal, maps, safety, direction, method="snip")
        >>> sorted(shares["kind"].unique())
        ['down', 'o']
    """
    import pandas as pd

    writing = [m for m in maps if m.kind in WRITING_KINDS]
    if not writing:
        raise MechsafetyError(f"no map of kind {' or '.join(WRITING_KINDS)} among these: nothing is written")
    if draws < 1:
        raise MechsafetyError(f"draws is {draws}; the control needs 1 at least")
    require_scored(writing, attribution)
    basis = orthonormal(direction)
    d_model = basis.shape[1]
    if wrong := [m for m in writing if m.d_out != d_model]:
        raise MechsafetyError(
            f"the direction has {d_model} entries, {wrong[0].name} writes {wrong[0].d_out}: it is of another model"
        )
    controls = [
        random_like(removal, maps, seed=seed + draw, in_size=in_size)
        for in_size in (False, True)
        for draw in range(draws)
    ]
    rows = []
    for linear in track(writing, "links", total=len(writing), unit="map"):
        gram = attribution.gram(linear.name)
        shares = [energy_share(removed_weight(linear, r), gram, basis) for r in (removal, *controls)]
        rows.append(
            {
                "removal": removal.label,
                "method": method,
                "layer": linear.layer,
                "kind": linear.kind,
                "share_removed_on_direction": shares[0],
                "chance": len(basis) / d_model,
                "random": sum(shares[1 : draws + 1]) / draws,
                "matched": sum(shares[draws + 1 :]) / draws,
                "whole": energy_share(linear.weight().float(), gram, basis),
                "n": attribution.n_tokens,
            }
        )
    return pd.DataFrame(rows, columns=list(LINK_COLUMNS))


def energy_share(
    weight: Float[Tensor, "d_out d_in"], gram: Float[Tensor, "d_in d_in"], basis: Float[Tensor, "k d_out"]
) -> float:
    """tr(B M B^T) / tr(M) of the outputs' M = W C W^T for orthonormal rows B; NaN where nothing is put out."""
    gram = gram.to(weight)
    whole = float(((weight @ gram) * weight).sum())
    along = basis.to(weight) @ weight
    return float(((along @ gram) * along).sum()) / whole if whole > 0 else math.nan


def removed_weight(linear: LinearMap, removal: Removal) -> Float[Tensor, "d_out d_in"]:
    """What ``removal`` takes out of a map, W minus what is left; float32, zeros where it takes nothing."""
    weight = linear.weight().float()
    if isinstance(removal, LowRank):
        if linear.name not in removal.factors:
            return torch.zeros_like(weight)
        b, a = removal.factors[linear.name]
        return b.to(weight) @ a.to(weight)
    taken = torch.zeros(weight.numel(), device=weight.device, dtype=torch.float32)
    if linear.name in removal.entries:
        places = removal.entries[linear.name].to(weight.device, torch.long)
        taken[places] = weight.reshape(-1)[places]
    return taken.view(weight.shape)


def random_like(removal: Removal, maps: Sequence[LinearMap], *, seed: int, in_size: bool = False) -> Removal:
    """The random control: as many weights of each map, or as many ranks.

    ``in_size``: weights as large as the removed ones too, or ranks that hold as much of ||W||_F^2, however many.
    """
    if isinstance(removal, LowRank):
        return random_low_rank(maps, removal, seed=seed, match="energy" if in_size else "rank")
    return matched_pruning(removal, maps, seed=seed) if in_size else random_pruning(removal, seed=seed)


LINK_STATES = (
    *("model", "ablated", "removed", "removed then ablated"),
    *("random removed", "random removed then ablated"),
    *("matched removed", "matched removed then ablated"),
)
"""``random`` and ``matched`` are removals by :func:`random_like`: as many weights, and as many and as large ones; of a
removal of low rank as many ranks, and as many as hold the same energy."""


def link_effects(
    model: TransformerBridge,
    removal: Removal,
    direction: Direction,
    *,
    fit: Sequence[Prompt],
    held_out: Sequence[Prompt],
    measure: Measure,
    seed: int,
) -> pd.DataFrame:
    """What removal leaves to ablation and ablation to removal, each beside random removals; one row per state.

    States: :data:`LINK_STATES`, measured in this order. "Ablated" is :class:`Ablate` with ``direction`` at every place.
    Columns: state, what ``measure`` gives for the model in that state, and at the direction's layer and position

    ``auroc`` with its 95 % score interval over ``auroc_n`` prompts: how well the projection on ``direction``
    separates harmful from harmless ``held_out`` prompts; ``cosine`` of the mean difference of the ``fit`` prompts with
    that of the unedited model (NaN where no difference is left), and ``relative_norm``, its length over that
    one's. All NaN in ablated states, where
    nothing lies on the direction by construction.

    Raises :class:`MechsafetyError` when a prompt is both fitted and held out, or a label is missing.
    """
    import pandas as pd

    require_disjoint(fitted=fit, held_out=held_out)
    maps = linear_maps(model)
    controls = [random_like(removal, maps, seed=seed, in_size=in_size) for in_size in (False, True)]
    ablate = Ablate(direction)
    before = _difference(model, direction, fit)
    if not float(before.norm()):
        raise MechsafetyError(
            f"harmful and harmless prompts do not differ at layer {direction.layer}, position {direction.position}: "
            "there is no direction to follow"
        )
    rows: list[dict[str, object]] = []
    pairs = zip((None, removal, *controls), LINK_STATES[::2], LINK_STATES[1::2], strict=True)
    for what, plain, ablated in track(list(pairs), "links", total=4, unit="model"):
        with _without(model, what, maps):
            place = _place(model, direction, fit, held_out, before, seed)
            rows.append({"state": plain, **measure(model, None), **place})
            rows.append(
                {"state": ablated, **measure(model, ablate), **dict.fromkeys(_PLACE_COLUMNS, math.nan)}
            )
    return pd.DataFrame(rows)


@contextmanager
def _without(model: TransformerBridge, removal: Removal | None, maps: Sequence[LinearMap]) -> Iterator[None]:
    if removal is None:
        yield
        return
    with removed(model, removal, maps=maps):
        yield


def _difference(
    model: TransformerBridge, direction: Direction, prompts: Sequence[Prompt]
) -> Float[Tensor, " d_model"]:
    means = residual_means(model, prompts, positions=(direction.position,))
    return means.difference()[0, direction.layer]


def _place(
    model: TransformerBridge,
    direction: Direction,
    fit: Sequence[Prompt],
    held_out: Sequence[Prompt],
    before: Float[Tensor, " d_model"],
    seed: int,
) -> dict[str, object]:
    cache = residual_stream(model, held_out, positions=(direction.position,))
    scores = direction.project(cache.activations[:, 0, direction.layer]).numpy()
    found = auroc_interval(scores, [label == "harmful" for label in cache.labels], seed=seed)
    now = _difference(model, direction, fit)
    length = float(now.norm() / before.norm())
    angle = float(cosine(now, before)) if length > ROUNDING else math.nan
    values = (found.value, found.low, found.high, float(found.n), angle, length)
    return dict(zip(_PLACE_COLUMNS, values, strict=True))
