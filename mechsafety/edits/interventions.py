"""Putting an edit on a model, and taking it off again: as hooks, and as weights.

:func:`edited` hooks an edit on, :func:`baked` writes it into the weights. Both take it off again whatever
happens, and tests show that they are the same operation wherever both exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.direction import Direction
from mechsafety.edits.completeness import is_complete, left_by_partial, with_places, written_past_hooks
from mechsafety.edits.places import at_places
from mechsafety.edits.side_by_side import SideBySide, grouped
from mechsafety.edits.sums import EditLike, EditSum, as_edit, parts_of
from mechsafety.edits.values import (
    EVERYWHERE,
    POSITIONS,
    SITES,
    WRITERS,
    Ablate,
    Add,
    AffineAblate,
    Edit,
    Orthogonalise,
    Position,
    Site,
    Writer,
    as_hooks,
    digest,
    layers_of,
    writers_of,
)
from mechsafety.edits.weights import write_weights
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.hooking import Coverage, Target, attach
from mechsafety.models.loading import body_of, known_fingerprint, model_name
from mechsafety.models.quantised import require_plain

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

__all__ = [
    "EVERYWHERE",
    "POSITIONS",
    "SITES",
    "WRITERS",
    "Ablate",
    "Add",
    "AffineAblate",
    "Edit",
    "EditSum",
    "Orthogonalise",
    "Position",
    "SideBySide",
    "Site",
    "Writer",
    "baked",
    "digest",
    "edited",
    "require_fits",
]


@contextmanager
def edited(
    model: ModelLike,
    edit: EditLike,
    *,
    prompt_length: int | None = None,
    twin: PreTrainedModel | None = None,
) -> Iterator[Coverage]:
    """Hook ``edit`` on ``model``; it is off again when the block ends, whatever happens.

    ``edit`` may be several, as a list or ``a + b``: they act in that order, each on what those before it left, and a
    str is a saved edit or an expression (:func:`parse_edit`).

    Positions mean the same with and without a KV cache, padded on either side or not. ``prompt_length`` is the number
    of columns that are prompt (padding included). Without it the prompt is what the first pass of the model's own
    ``generate`` covers, and outside of that what an uncached pass covers; an uncached pass that repeats the one before
    and goes on is an error, because what of it is prompt cannot be known.
    ``twin`` takes the hooks instead of the bridge (``models.generation_twin``).

    An ablation everywhere acts also where some block writes to the stream past those sites (:mod:`completeness`); a
    partial one acts at its own sites, and its receipt names the sites past which something is written
    (``Coverage.past_hooks``; :func:`component_left` measures it).

    Yields the :class:`Coverage` receipt, which records where a direction was found on a model with other weights
    (``carried``). Raises :class:`MechsafetyError` when a site
    does not exist in the model, and, at the end, when a site was never reached by a forward pass.

    Returns:
        A context manager that gives the receipt: which hooks fired, and at which positions.

    Example:
        >>> with ms.edited(model, ms.Ablate(direction, layers=2)) as receipt:
        ...     under = ms.logits(model, prompts.report)
        >>> list(receipt.to_frame()["hook"])
        ['blocks.2.hook_resid_pre', 'blocks.2.hook_attn_out', 'blocks.2.hook_mlp_out']
        >>> bool((under == ms.logits(model, prompts.report)).all())
        False
    """
    model = as_model(model, by_name=False)
    edit = as_edit(edit, model)
    parts = [(targets_on(model, part), part.positions) for part in parts_of(edit)]
    # Found out before the edit is on: its receipt counts no pass that only observes.
    coverage = Coverage(past_hooks=_past_hooks(model, edit), carried=_carried(model, edit))
    with ExitStack() as stack:
        for targets, positions in parts:
            where: dict[str, Any] = {"positions": positions, "prompt_length": prompt_length, "twin": twin}
            stack.enter_context(attach(model, targets, **where, coverage=coverage))
        yield coverage
    coverage.require_complete()


def _carried(model: TransformerBridge, edit: Edit) -> str:
    """Where a direction was found on a model with other weights; of another width it has been refused before."""
    named = (getattr(part, "direction", None) for part in parts_of(edit))
    found = [direction for direction in named if isinstance(direction, Direction)]
    own = known_fingerprint(model) if any(one.fingerprint for one in found) else ""
    others = {one.model for one in found if own and one.fingerprint not in ("", own)}
    return (
        f"edit fitted on {', '.join(map(repr, sorted(others)))}, used on {model_name(model)!r}"
        if others
        else ""
    )


@contextmanager
def baked(model: ModelLike, edit: EditLike) -> Iterator[None]:
    """Write ``edit`` into the weights; they are restored bit for bit when the block ends.

    Exists for :class:`Orthogonalise` (the norm-preserving form exists only so: there it is the edit without
    the stretch that is compared), and for :class:`Ablate` at every
    site, layer and position with alpha = 1, which is the same operation. A short probe finds out in any number
    format whether the stream gets what the maps write, and refuses where it does not (a norm lies between, for
    example); in float32 and float64 it compares the logits of the baked model with the hooked one's as well. Tied
    embeddings are untied for the while. In bfloat16 the edited weights are rounded, so that a residue of about
    2^-8 of the component stays; the hooks leave none.

    Raises :class:`MechsafetyError` for an edit that has no weight form, and for a model whose stream does not
    get what its maps write.

    Returns:
        A context manager: within its block the weights are those of the edited model.

    Example:
        >>> edit = ms.Orthogonalise(direction)
        >>> with ms.edited(model, edit):
        ...     hooked = ms.logits(model, prompts.report)
        >>> with ms.baked(model, edit):
        ...     written = ms.logits(model, prompts.report)
        >>> torch.allclose(hooked, written, atol=1e-4)
        True
    """
    model = as_model(model, by_name=False)
    require_plain(body_of(model), "baked() writes an edit into the weights")
    edit = as_edit(edit, model)
    if isinstance(edit, EditSum):
        require_fits(model, edit, weights=True)
        with ExitStack() as stack:
            for part in edit.edits:
                stack.enter_context(baked(model, part))
            yield
        return
    require_fits(model, edit, weights=True)
    basis, alpha, layers, writers = _as_weights(edit, model.cfg.n_layers)
    keep_norms = isinstance(edit, Orthogonalise) and edit.norm_preserving
    if isinstance(edit, Orthogonalise) and keep_norms:
        try:
            with baked(model, replace(edit, norm_preserving=False)):
                pass  # no hooks do what the stretched weights do
        except MechsafetyError as error:
            raise MechsafetyError(f"{error} without norm_preserving, which has no other form") from None
    hooks = None if keep_norms else targets_on(model, edit)
    with write_weights(
        model, basis=basis, alpha=alpha, layers=layers, writers=writers, keep_norms=keep_norms, hooks=hooks
    ):
        yield


def require_fits(model: TransformerBridge, edit: Edit, *, weights: bool = False) -> None:
    """Raise :class:`MechsafetyError` unless ``edit`` can go on ``model``, as hooks or as weights.

    Said before long work begins: a direction of another length, a layer, a site or a weight form there is not.
    """
    if weights and isinstance(edit, EditSum):
        for part in edit.edits:
            require_fits(model, part, weights=True)
    elif weights:
        basis, *_ = _as_weights(edit, model.cfg.n_layers)
        _require_width(basis, model)
    else:
        targets_on(model, edit)


def _past_hooks(model: TransformerBridge, edit: Edit) -> tuple[str, ...]:
    if isinstance(edit, SideBySide | EditSum):
        return tuple(dict.fromkeys(name for each in edit.edits for name in _past_hooks(model, each)))
    return () if is_complete(edit, model.cfg.n_layers) else left_by_partial(model, edit)


def targets_on(model: TransformerBridge, edit: Edit) -> list[Target]:
    """The targets of ``edit`` at the hook points that each block of ``model`` has for its sites.

    Raises :class:`MechsafetyError` for a site that a block lacks, and for a direction of another length.
    """
    if isinstance(edit, EditSum):
        return [target for each in edit.edits for target in targets_on(model, each)]
    if isinstance(edit, SideBySide):
        return grouped([targets_on(model, each) for each in edit.edits])
    targets = edit.targets(model.cfg.n_layers)
    for target in targets:
        _require_width(target.constant, model)
    found = at_places(model, targets, once=isinstance(edit, Add))
    if is_complete(edit, model.cfg.n_layers):
        return with_places(found, written_past_hooks(model))
    return found


def _require_width(constant: Tensor, model: TransformerBridge) -> None:
    if constant.shape[-1] != model.cfg.d_model:
        raise MechsafetyError(
            f"the edit's direction has {constant.shape[-1]} entries, the model's residual stream "
            f"{model.cfg.d_model}: it was made for another model"
        )


def _as_weights(
    edit: Edit, n_layers: int
) -> tuple[Float[Tensor, "k d_model"], float, tuple[int, ...], tuple[Writer, ...]]:
    if isinstance(edit, Orthogonalise):
        return edit.basis, edit.alpha, layers_of(edit.layers, n_layers), writers_of(edit)
    if isinstance(edit, Ablate):
        whole = (
            edit.alpha == 1.0
            and edit.read is None
            and edit.positions == "all"
            and layers_of(edit.layers, n_layers) == tuple(range(n_layers))
            and set(EVERYWHERE) <= set(edit.sites)
        )
        if whole:
            return edit.basis, 1.0, tuple(range(n_layers)), WRITERS
    raise MechsafetyError(
        f"{edit.describe()} has no weight form: only Orthogonalise, and Ablate with alpha 1 at every site, "
        f"layer and position, have one; {as_hooks()}"
    )
