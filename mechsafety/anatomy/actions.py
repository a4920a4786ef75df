"""How strongly dW acts on what its map reads, ||dW a|| / ||a||, on unsafe prompts against safe ones.

After Jain et al., NeurIPS 2024, arXiv 2407.10264, section 5.2. A random dW of the same norm acts on both alike, so
its ratio shows the effect of the activations' own shape on any change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mechsafety.anatomy.readings import SAFE, UNSAFE
from mechsafety.anatomy.weight_changes import Inputs, WeightChange, by_comparison
from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics.resampling import cluster_weights, percentiles

if TYPE_CHECKING:
    import pandas as pd

ACTION_COLUMNS = ("model", "layer", "kind", "group", "n", "action", "low", "high")
RATIO_COLUMNS = ("model", "layer", "kind", "ratio", "low", "high")
RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class ActionTables:
    """``action``: one row per model, matrix and group (:data:`ACTION_COLUMNS`); ``ratios``: unsafe over safe."""

    action: pd.DataFrame
    ratios: pd.DataFrame


def action_tables(
    changes: Sequence[WeightChange],
    *,
    control: Sequence[WeightChange] | None = None,
    inputs: Mapping[str, Inputs],
    groups: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
) -> ActionTables:
    """The mean of ||dW a|| / ||a|| over the prompts of each group, and that of unsafe over that of safe prompts.

    a is what the map reads in its own model (``inputs`` by model, :func:`map_inputs`);
    ``random`` is a random dW on what the tuned model reads. ``groups`` names each prompt's group, in the inputs' order.
    Intervals are 95 % bootstraps over prompts, within groups; NaN of fewer than two. Ratios are there where both
    groups are. Raises :class:`MechsafetyError` for a model without inputs, and for inputs of other prompts.
    """
    import pandas as pd

    names = list(dict.fromkeys(groups))
    places = {name: np.flatnonzero(np.array([g == name for g in groups])) for name in names}
    drawn = _drawn(places, seed=seed, resamples=resamples)
    rows: list[dict[str, object]] = []
    lines: list[dict[str, object]] = []
    for change, models in by_comparison(changes, control, "action"):
        for model, pair in models.items():
            a = _read(inputs, "tuned" if model == "random" else model, change.site, len(groups))
            matrix = pair.drawn(model, seed=seed)
            acted = (a.to(matrix) @ matrix.T).norm(dim=-1) / a.to(matrix).norm(dim=-1)
            values = acted.double().cpu().numpy()
            key = {"model": model, "layer": change.layer, "kind": change.kind}
            means = {name: float(values[place].mean()) for name, place in places.items()}
            resampled = {name: drawn[name] @ values[place] / len(place) for name, place in places.items()}
            for name, place in places.items():
                low, high = percentiles(means[name], [resampled[name]], 0.95)
                row = {"group": name, "n": len(place), "action": means[name], "low": low, "high": high}
                rows.append({**key, **row})
            if SAFE in means and UNSAFE in means:
                with np.errstate(invalid="ignore", divide="ignore"):
                    ratio = float(np.divide(means[UNSAFE], means[SAFE]))
                    ratios = resampled[UNSAFE] / resampled[SAFE]
                low, high = percentiles(ratio, [ratios], 0.95)
                lines.append({**key, "ratio": ratio, "low": low, "high": high})
    return ActionTables(
        action=pd.DataFrame(rows, columns=list(ACTION_COLUMNS)),
        ratios=pd.DataFrame(lines, columns=list(RATIO_COLUMNS)),
    )


def _drawn(places: Mapping[str, np.ndarray], *, seed: int, resamples: int) -> dict[str, np.ndarray]:
    """[resample, prompt]: how often each prompt of a group is drawn; NaN where it has but one."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, place in places.items():
        blocks = cluster_weights(rng, len(place), resamples, width=len(place))
        found[name] = np.concatenate(blocks) if blocks else np.full((resamples, len(place)), np.nan)
    return found


def _read(inputs: Mapping[str, Inputs], model: str, site: str, n: int) -> Float[Tensor, "prompt d_in"]:
    if model not in inputs:
        raise MechsafetyError(f"no inputs of the {model} model; there are {', '.join(inputs) or 'none'}")
    if site not in inputs[model] or len(inputs[model][site]) != n:
        found = len(inputs[model][site]) if site in inputs[model] else "none"
        raise MechsafetyError(
            f"{site} of the {model} model has inputs of {found} prompts, and {n} have a group"
        )
    return inputs[model][site]
