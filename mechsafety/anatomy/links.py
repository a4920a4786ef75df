"""dW beside the two other ways to find safety in a model: its refusal direction, and its safety-critical weights.

A direction is compared with what dW writes to the residual stream, against random directions through the same dW and
against what W_base writes there anyway; sets of weights by their share of ||dW||_F^2, against their size and against
the largest weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.anatomy.decompositions import singular
from mechsafety.anatomy.readings import OUTCOME_COLUMNS, UNSAFE, Groups, outcome_rows, prompt_groups
from mechsafety.anatomy.weight_changes import TOP, WeightChange
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import track
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Direction, Directions, find_directions
from mechsafety.edits.interventions import Ablate
from mechsafety.generation.completions import DEFAULT_BATCH
from mechsafety.judges.outcomes import Asking, KeepState
from mechsafety.models.chat_settings import chat_bound
from mechsafety.models.loading import current_fingerprint
from mechsafety.models.projection import VectorLike, orthonormal
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.regions.maps import WRITING_KINDS
from mechsafety.regions.pruning import Percent, require_percent, require_scored, top_entries
from mechsafety.regions.score_files import Attribution, Method
from mechsafety.runs.folder import finite
from mechsafety.runs.journal import Journal

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

LINK_COLUMNS = ("what", "layer", "kind", "value", "low", "high", "chance", "n")
ABLATION_COLUMNS = ("state", "layer", "group", *OUTCOME_COLUMNS)
DRAWS = 500


def choose_direction(
    tuned: TransformerBridge,
    fit: Sequence[Prompt],
    validation: Sequence[Prompt],
    *,
    layers: Sequence[int] | None = None,
    keep_state: KeepState = lambda *_: None,
    **asking: Unpack[Asking],
) -> Direction:
    """The mean difference of ``fit`` at the last prompt token, of the layer whose ablation sets most answers free.

    That is the layer with the largest share of coherent compliance among the harmful ``validation`` prompts once its
    direction is projected out everywhere; of equals the one with fewer refusals, then the earlier. Judged by answers,
    so that no opening words of a refusal need be known. ``layers`` restricts the search (each costs a generation);
    ``keep_state`` receives the answers of ``layer N``.

    Raises :class:`MechsafetyError` for no harmful validation prompts, an unknown layer, and where harmful and harmless
    prompts differ at no layer.
    """
    cache = residual_stream(tuned, fit, batch_size=asking.get("batch_size", DEFAULT_BATCH))
    found = find_directions(cache, method="mean_difference", seed=asking["seed"])
    shares = layer_outcomes(tuned, found, validation, layers=layers, keep_state=keep_state, **asking)
    scores = {layer: (_number(complied), -_number(refused)) for layer, (complied, refused) in shares.items()}
    return found.at(layer=max(scores, key=lambda layer: (*scores[layer], -layer)), position=-1)


def layer_outcomes(
    tuned: TransformerBridge,
    found: Directions,
    validation: Sequence[Prompt],
    *,
    layers: Sequence[int] | None = None,
    journal: Journal | None = None,
    keep_state: KeepState = lambda *_: None,
    **asking: Unpack[Asking],
) -> dict[int, tuple[float, float]]:
    """Shares of the harmful ``validation`` prompts that are complied with and refused, by the layer of the direction.

    The direction of ``found`` at the last prompt token is projected out everywhere. Layers without one are left out;
    NaN where no answer could be read. ``journal`` keeps the layers that are done, ``keep_state`` receives the answers
    of ``layer N``. Raises as :func:`choose_direction`.
    """
    groups = {name: group for name, group in prompt_groups(validation).items() if name == UNSAFE}
    if not groups:
        raise MechsafetyError("no harmful validation prompts to choose the layer of the refusal direction by")
    wanted = range(found.n_layers) if layers is None else layers
    if unknown := [layer for layer in wanted if not 0 <= layer < found.n_layers]:
        raise MechsafetyError(
            f"no layer {unknown[0]}: the residual stream has layers 0 to {found.n_layers - 1}"
        )
    at = found.positions.index(-1)
    usable = [layer for layer in wanted if float(found.vectors[at, layer].norm()) > 0]
    if not usable:
        raise MechsafetyError(
            "harmful and harmless prompts differ at none of these layers: there is no direction"
        )
    if journal is not None:
        prompts = PromptSet(tuple(p for group in groups.values() for p in group))
        settings = {name: asking[name] for name in ("max_new_tokens", "seed")}
        journal.bind(
            model=current_fingerprint(tuned), prompts=prompts.sha256(), **chat_bound(tuned), **settings
        )
    shares: dict[int, tuple[float, float]] = {}
    for layer in track(usable, "choosing the layer", total=len(usable), unit="layer"):
        stored = journal.get(str(layer)) if journal is not None else None
        if stored is None:
            edit = Ablate(found.at(layer=layer, position=-1))
            asking["keep"] = partial(keep_state, f"layer {layer}")
            (row,) = outcome_rows(tuned, groups, edit=edit, **asking)
            stored = finite({name: float(row[name]) for name in ("complied", "refused")})
            if journal is not None:
                journal.put(str(layer), stored)
        complied, refused = (math.nan if stored[n] is None else stored[n] for n in ("complied", "refused"))
        shares[layer] = (complied, refused)
    return shares


def direction_links(changes: Sequence[WeightChange], direction: VectorLike, *, seed: int) -> pd.DataFrame:
    """What each dW that writes to the residual stream has to do with the unit direction u, one row per map.

    By ``what``:

    - ``energy``: ||u^T dW||^2 / ||dW||_F^2, the share of dW along u; chance 1 / d_model.
    - ``energy_random``: the same of :data:`DRAWS` random directions, with the 2.5 and 97.5 % quantiles.
    - ``energy_base``: the same of W_base, which shows how far the map writes there anyway.
    - ``cosine_first``: |<u, u_1>| with the top left singular vector; chance sqrt(2 / (pi d_model)), about.
    - ``cosine_top``: the length of u within the span of the top ``n`` left singular vectors (at most :data:`TOP`,
      those above rounding); chance sqrt(n / d_model).

    NaN where a map did not change. ``n`` counts random draws, singular vectors or else inputs d_in. Columns:
    :data:`LINK_COLUMNS`. Raises :class:`MechsafetyError` where no map writes, and for a direction of another width.
    """
    import pandas as pd

    writing = [change for change in changes if change.kind in WRITING_KINDS]
    if not writing:
        raise MechsafetyError(f"no map of kind {' or '.join(WRITING_KINDS)} among these: nothing is written")
    basis = orthonormal(direction)
    width = basis.shape[1]
    if len(basis) > 1:
        raise MechsafetyError(f"{len(basis)} directions at once; links are of one")
    if wrong := [c for c in writing if c.base.d_out != width]:
        raise MechsafetyError(
            f"the direction has {width} entries, {wrong[0].name} writes {wrong[0].base.d_out}: it is of another model"
        )
    generator = torch.Generator().manual_seed(seed)
    random = torch.nn.functional.normalize(
        torch.randn(DRAWS, width, generator=generator, dtype=torch.float32), dim=-1
    )
    rows: list[tuple[object, ...]] = []
    for change in track(writing, "links to dW", total=len(writing), unit="map"):
        matrix = change.matrix()
        parts = singular(matrix, top=min(TOP, change.rank))
        kept = int((parts.values[: parts.left.shape[1]] > change.rounding()).sum())
        cosines = (basis.to(parts.left) @ parts.left[:, :kept])[0].abs()
        drawn = energy_along(matrix, random)
        low, high = (float(drawn.quantile(q)) for q in (0.025, 0.975))
        nothing = kept == 0
        found = {
            "energy": (
                float(energy_along(matrix, basis)[0]),
                math.nan,
                math.nan,
                1 / width,
                change.base.d_in,
            ),
            "energy_random": (float(drawn.mean()), low, high, 1 / width, DRAWS),
            "energy_base": (
                float(energy_along(change.base.weight().float(), basis)[0]),
                *(math.nan, math.nan, 1 / width, change.base.d_in),
            ),
            "cosine_first": (
                math.nan if nothing else float(cosines[0]),
                *(math.nan, math.nan, math.sqrt(2 / (math.pi * width)), min(kept, 1)),
            ),
            "cosine_top": (
                math.nan if nothing else float(cosines.norm()),
                *(math.nan, math.nan, math.sqrt(kept / width), kept),
            ),
        }
        rows += [(what, change.layer, change.kind, *values) for what, values in found.items()]
    return pd.DataFrame(rows, columns=list(LINK_COLUMNS))


def energy_along(
    matrix: Float[Tensor, "d_out d_in"], directions: Float[Tensor, "k d_out"]
) -> Float[Tensor, " k"]:
    """||u^T M||^2 / ||M||_F^2 of each unit row u; NaN of a zero matrix."""
    along = directions.to(matrix) @ matrix
    return along.square().sum(-1) / matrix.square().sum()


def set_links(
    changes: Sequence[WeightChange],
    attribution: Attribution,
    *,
    methods: Sequence[Method] = ("snip", "wanda"),
    q: Percent = 5,
) -> pd.DataFrame:
    """How much of dW lies in the safety-critical weights, one row per map.

    ``attribution`` are the tuned model's scores on its own refusals
    (:func:`mechsafety.regions.attribution.score_weights`). By ``what``:

    - ``snip`` and ``wanda``: the share of ||dW||_F^2 in the top ``q`` % entries of the map by that score.
    - ``magnitude``: the same of the largest |W_tuned|, to which both scores lean.

    ``chance`` is the share of entries chosen, ``n`` their number. NaN where a map did not change. Columns:
    :data:`LINK_COLUMNS`. Raises :class:`MechsafetyError` for ``q`` outside 0 < q <= 100 and scores of other maps.
    """
    import pandas as pd

    require_percent("q", q)
    require_scored([change.tuned for change in changes], attribution)
    rows: list[tuple[object, ...]] = []
    for change in track(changes, "dW in safety sets", total=len(changes), unit="map"):
        energy = change.matrix().square().reshape(-1)
        weight = change.tuned.weight().float()
        for what in (*methods, "magnitude"):
            scores = weight.abs() if what == "magnitude" else attribution.scores(change.tuned, what)
            places = top_entries(scores, q, "matrix")
            value, chance = share_in(energy, places), len(places) / energy.numel()
            rows.append((what, change.layer, change.kind, value, math.nan, math.nan, chance, len(places)))
    return pd.DataFrame(rows, columns=list(LINK_COLUMNS))


def share_in(energy: Float[Tensor, " entry"], places: Int[Tensor, " place"]) -> float:
    """The share of ``energy`` at ``places``; NaN where there is none at all."""
    total = float(energy.double().sum())
    return float(energy[places.to(energy.device).long()].double().sum()) / total if total > 0 else math.nan


def ablation_table(
    tuned: TransformerBridge,
    direction: Direction,
    groups: Groups,
    *,
    keep_state: KeepState = lambda *_: None,
    keep_labels_of: Callable[..., None] = lambda *_: None,
    **asking: Unpack[Asking],
) -> pd.DataFrame:
    """What the tuned model answers as it is, without ``direction``, and without a random one that ``seed`` draws.

    ``state`` is ``tuned``, ``ablated`` or ``random_ablated``, ``layer`` the direction's; ``keep_state`` receives the
    answers of each, ``keep_labels_of`` also their verdicts. Columns: :data:`ABLATION_COLUMNS`.
    """
    import pandas as pd

    generator = torch.Generator().manual_seed(asking["seed"])
    noise = torch.randn(direction.vector.shape, generator=generator, dtype=torch.float32)
    edits = {"tuned": None, "ablated": Ablate(direction), "random_ablated": Ablate(noise)}
    rows = []
    for state, edit in track(edits.items(), "ablation", total=len(edits), unit="state"):
        asking["keep"] = partial(keep_state, state)
        asking["keep_labels"] = partial(keep_labels_of, state)
        found = outcome_rows(tuned, groups, edit=edit, **asking)
        rows += [{"state": state, "layer": direction.layer, **row} for row in found]
    return pd.DataFrame(rows, columns=list(ABLATION_COLUMNS))


def _number(share: float) -> float:
    """A share, nothing measured counting lowest."""
    return -1.0 if math.isnan(share) else share
