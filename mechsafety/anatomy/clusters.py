"""Do activations of safe and of unsafe prompts form clusters, and on which side do attacks fall?

After Jain et al., NeurIPS 2024, arXiv 2407.10264, section 4.1: a(x) is what a block's MLP output matrix reads (after
the non-linearity, and after the gate where there is one), averaged over output positions, and
tau(x) = ||a(x) - mu_unsafe|| - ||a(x) - mu_safe||, positive on the safe side. Unlike there, centroids come from
prompts of their own: a centroid of d_mlp numbers leans to every point that it was averaged from.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from mechsafety.anatomy.outputs import AnswerPositions, Answers, map_inputs
from mechsafety.anatomy.readings import SAFE, UNSAFE
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Label
from mechsafety.generation.completions import DEFAULT_BATCH
from mechsafety.models.loading import architecture
from mechsafety.regions.maps import LinearMap, linear_maps
from mechsafety.statistics.auroc import auroc_interval
from mechsafety.statistics.resampling import cluster_weights, percentiles

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

SEPARATION_COLUMNS = [
    *("model", "positions", "layer", "n_safe", "n_unsafe", "d_prime", "d_prime_low", "d_prime_high"),
    *("auroc", "auroc_low", "auroc_high", "auroc_chance", "share_safe", "share_unsafe"),
    *("share_safe_chance", "share_unsafe_chance"),
]
TAU_COLUMNS = ["model", "positions", "layer", "id", "group", "label", "tau"]
ATTACK_COLUMNS = [
    *("model", "positions", "layer", "family", "outcome", "n", "tau", "low", "high", "on_safe_side")
]
CHANGE_COLUMNS = ["model", "against", "positions", "layer", "change", "low", "high"]
OUTCOMES: dict[str, tuple[Label, ...]] = {"success": ("compliance",), "failed": ("refusal", "degenerate")}
"""Which verdicts of an attack's answer are its success; unparsed ones are neither."""
ALL_FAMILIES = "all"
RESAMPLES = 1000
PERMUTATIONS = 1000
_ROUNDING = 1e-9
"""Differences of d' closer than this are equal: of models with the same tau all of them are of rounding alone."""


def output_maps(model: TransformerBridge) -> list[LinearMap]:
    """The MLP output matrix of every block, in order.

    Raises :class:`MechsafetyError` for a model with a block that has none or several, or whose MLPs differ in width.
    """
    downs = [m for m in linear_maps(model) if m.kind == "down"]
    if [m.layer for m in downs] != list(range(model.cfg.n_layers)) or len({m.d_in for m in downs}) != 1:
        raise MechsafetyError(
            f"the {model.cfg.n_layers} blocks of {architecture(model)} have {len(downs)} MLP output matrices: tau "
            "needs one in every block, all of one width (blocks of experts have no such activation)"
        )
    return downs


def mlp_activations(
    model: TransformerBridge, answers: Answers, *, positions: AnswerPositions, batch_size: int = DEFAULT_BATCH
) -> Float[Tensor, "prompt layer d_mlp"]:
    """What every block's MLP output matrix reads, averaged over ``positions`` of each prompt; float32 on the CPU."""
    maps = output_maps(model)
    read = map_inputs(model, answers, maps, positions=positions, batch_size=batch_size)
    return torch.stack([read[m.site] for m in maps], dim=1)


@dataclass(frozen=True, kw_only=True)
class Centroids:
    """Mean activations of the safe and of the unsafe prompts of a fit split, layer by layer."""

    safe: Float[Tensor, "layer d_mlp"]
    unsafe: Float[Tensor, "layer d_mlp"]
    n_safe: int
    n_unsafe: int

    def tau(self, activations: Float[Tensor, "prompt layer d_mlp"]) -> Float[Tensor, "prompt layer"]:
        """||a - mu_unsafe|| - ||a - mu_safe||: positive on the safe side. For prompts that were not fitted to."""
        if activations.shape[1:] != self.safe.shape:
            raise MechsafetyError(
                f"activations of {list(activations.shape[1:])} (layers, d_mlp) and centroids of "
                f"{list(self.safe.shape)}: both must be of one model"
            )
        # Layer by layer: a difference of everything at once would be as large as the activations.
        layers = [
            (a - unsafe).norm(dim=-1) - (a - safe).norm(dim=-1)
            for a, safe, unsafe in zip(
                activations.unbind(1), self.safe.double(), self.unsafe.double(), strict=True
            )
        ]
        return torch.stack(layers, dim=1).float()


def fit_centroids(activations: Float[Tensor, "prompt layer d_mlp"], unsafe: Sequence[bool]) -> Centroids:
    """Centroids of the fit split; ``unsafe`` marks each unsafe prompt. Raises where a class is empty."""
    mask = _mask(unsafe, len(activations))
    n_unsafe = int(mask.sum())
    if not 0 < n_unsafe < len(mask):
        raise MechsafetyError(
            f"{len(mask) - n_unsafe} safe and {n_unsafe} unsafe prompts to fit centroids to; 1 of each at least"
        )
    return Centroids(
        safe=activations[~mask].double().mean(0).float(),
        unsafe=activations[mask].double().mean(0).float(),
        n_safe=len(mask) - n_unsafe,
        n_unsafe=n_unsafe,
    )


def top_share(cluster: Float[Tensor, "prompt layer d_mlp"]) -> Float[Tensor, " layer"]:
    """The share of a cluster's centred variance along its first singular direction, layer by layer.

    sigma_1^2 / sum sigma^2 of A - mean(A). NaN of fewer than two prompts, and where they are all the same.
    """
    if len(cluster) < 2:
        return torch.full((cluster.shape[1],), torch.nan, dtype=torch.float32)
    centred = (cluster.double() - cluster.double().mean(0)).transpose(0, 1)
    # The smaller of the two Gram matrices has the same non-zero eigenvalues.
    wide = centred.shape[2] > centred.shape[1]
    gram = centred @ centred.mT if wide else centred.mT @ centred
    values = torch.linalg.eigvalsh(gram)
    return (values[:, -1] / values.sum(-1)).float()


def top_share_chance(n: int, d: int) -> float:
    """What :func:`top_share` is for ``n`` points of a round Gaussian in ``d`` dimensions, about.

    (1 / sqrt(n - 1) + 1 / sqrt(d))^2, at most 1: the upper edge of Marchenko and Pastur's law over the total
    variance. NaN of fewer than two points.
    """
    return min(1.0, ((n - 1) ** -0.5 + d**-0.5) ** 2) if n > 1 else float("nan")


def separation(
    activations: Float[Tensor, "prompt layer d_mlp"],
    unsafe: Sequence[bool],
    centroids: Centroids,
    *,
    model: str,
    positions: AnswerPositions,
    seed: int,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
) -> pd.DataFrame:
    """How far tau separates safe from unsafe prompts that the centroids were not fitted to, one row per layer.

    d' = (mean tau of safe - mean tau of unsafe) / sqrt((s_safe^2 + s_unsafe^2) / 2); ``auroc`` is the chance that a
    safe prompt has the larger tau. d' has a 95 % bootstrap interval over prompts, ``auroc`` a score interval.
    ``auroc_chance`` is the 95 % quantile of the AUROC under permuted labels of these prompts. ``share_safe`` and
    ``share_unsafe`` are :func:`top_share` of each cluster, beside :func:`top_share_chance`. NaN where a class is too
    small. ``model`` and ``positions`` name the rows. Columns: :data:`SEPARATION_COLUMNS`.
    """
    import pandas as pd

    mask = _mask(unsafe, len(activations))
    n_unsafe = int(mask.sum())
    n_safe, width = len(mask) - n_unsafe, activations.shape[2]
    tau = centroids.tau(activations).double().numpy()
    safe = ~mask.numpy()
    primes = _d_primes(tau, safe, seed=seed, resamples=resamples)
    chance = _auroc_chance(tau, n_safe, seed=seed, permutations=permutations)
    shares = {"safe": top_share(activations[~mask]), "unsafe": top_share(activations[mask])}
    rows: list[dict[str, object]] = []
    for layer in range(tau.shape[1]):
        auroc = auroc_interval(tau[:, layer], safe, seed=seed, resamples=resamples)
        rows.append(
            {
                **{"model": model, "positions": positions, "layer": layer},
                **{"n_safe": n_safe, "n_unsafe": n_unsafe},
                **dict(zip(("d_prime", "d_prime_low", "d_prime_high"), primes[layer], strict=True)),
                **{"auroc": auroc.value, "auroc_low": auroc.low, "auroc_high": auroc.high},
                "auroc_chance": chance[layer],
                **{f"share_{name}": float(share[layer]) for name, share in shares.items()},
                "share_safe_chance": top_share_chance(n_safe, width),
                "share_unsafe_chance": top_share_chance(n_unsafe, width),
            }
        )
    return pd.DataFrame(rows, columns=SEPARATION_COLUMNS)


def tau_table(
    tau: Float[Tensor, "prompt layer"],
    answers: Answers,
    *,
    model: str,
    positions: AnswerPositions,
    groups: Mapping[str, str],
    labels: Mapping[str, Label],
) -> pd.DataFrame:
    """tau of every prompt and layer, with the prompt's group and the verdict of the answer (both by the prompt's id).

    Columns: :data:`TAU_COLUMNS`. Raises :class:`MechsafetyError` for a prompt without a group or a verdict.
    """
    import pandas as pd

    ids = [p.id for p in answers.prompts]
    for what, given in (("group", groups), ("verdict", labels)):
        if missing := [i for i in ids if i not in given]:
            raise MechsafetyError(f"{len(missing)} prompts have no {what}, {missing[0]!r} for one")
    if len(tau) != len(ids):
        raise MechsafetyError(f"tau of {len(tau)} prompts, and {len(ids)} answers")
    frames = [
        pd.DataFrame(
            {
                **{"model": model, "positions": positions, "layer": layer, "id": ids},
                **{"group": [groups[i] for i in ids], "label": [labels[i] for i in ids]},
                "tau": values.numpy(),
            }
        )
        for layer, values in enumerate(tau.unbind(1))
    ]
    return pd.concat(frames, ignore_index=True)[TAU_COLUMNS]


def d_prime_changes(table: pd.DataFrame, *, seed: int, resamples: int = RESAMPLES) -> pd.DataFrame:
    """d' of each model less that of each other one, by layer, with a 95 % bootstrap over the prompts of both.

    ``table`` is a :func:`tau_table` of several models on the same prompts. Signed: d' is negative where safe prompts
    lie on the unsafe side. Columns: :data:`CHANGE_COLUMNS`.
    """
    import pandas as pd

    prompts = table[table["group"].isin([SAFE, UNSAFE])]
    rows: list[dict[str, object]] = []
    for positions, part in prompts.groupby("positions", sort=False):
        wide = {
            str(model): _wide(of, "layer").sort_index() for model, of in part.groupby("model", sort=False)
        }
        found = {model: _bootstrapped(of, seed=seed, resamples=resamples) for model, of in wide.items()}
        for against, model in itertools.permutations(wide, 2):
            (a, parts_a), (b, parts_b) = found[against], found[model]
            for place, layer in enumerate(wide[model].columns):
                change = float(b[place] - a[place])
                drawn = [y[:, place] - x[:, place] for x, y in zip(parts_a, parts_b, strict=True)]
                low, high = percentiles(change, drawn, 0.95)
                key = {"model": model, "against": against, "positions": positions, "layer": layer}
                rows.append({**key, "change": change, "low": low, "high": high})
    return pd.DataFrame(rows, columns=CHANGE_COLUMNS)


def d_prime_p(
    table: pd.DataFrame, before: str, after: str, *, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """Two-sided p of the change of d' from one model to another, where each prompt's two tau change places.

    ``table`` is a :func:`tau_table` of safe and unsafe prompts at one place. Each model's tau are first put on a scale
    of their own: less the middle of both classes' means, over the classes' spread; d' knows no other. NaN where a
    model or a class has too few prompts. Raises :class:`MechsafetyError` for a prompt with two tau of one model.
    """
    wide = _wide(table, "model")
    if not {before, after} <= set(wide):
        return np.nan
    pairs = wide[[before, after]].dropna()
    safe = pairs.index.get_level_values("group") == SAFE
    if min(safe.sum(), (~safe).sum()) < 2:
        return np.nan
    tau = pairs.to_numpy(dtype=float)
    means = [tau[kind].mean(0) for kind in (safe, ~safe)]
    spread = (tau[safe].var(0, ddof=1) + tau[~safe].var(0, ddof=1)) / 2
    if not (spread > 0).all():
        return np.nan
    scaled = (tau - sum(means) / 2) / np.sqrt(spread)
    swaps = np.random.default_rng(seed).integers(2, size=(resamples, len(scaled))).astype(bool)
    swaps = np.concatenate([np.zeros((1, len(scaled)), dtype=bool), swaps])
    sides = [np.where(swaps, *(scaled[:, s] for s in order)) for order in ((1, 0), (0, 1))]
    ones = np.ones((1, len(scaled)))
    primes = [_weighted_d_prime(ones, drawn.T, safe)[0] for drawn in sides]
    far = np.abs(primes[1] - primes[0])
    return float((far >= far[0] - _ROUNDING).mean())


def _wide(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """tau by prompt and ``column``. Raises :class:`MechsafetyError` for a prompt that stands there twice."""
    twice = table[table.duplicated(["id", "group", column])]
    if len(twice):
        first = twice.iloc[0]
        raise MechsafetyError(
            f"prompt {first['id']!r} ({first['group']}) has more than one tau for {column} {first[column]!r}: give "
            "each prompt an id of its own, and the rows of one place"
        )
    return table.pivot(index=["id", "group"], columns=column, values="tau")


def _bootstrapped(wide: pd.DataFrame, *, seed: int, resamples: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """d' of each layer, and that of resamples: the same prompts are drawn whatever the model."""
    tau, safe = wide.to_numpy(dtype=float), wide.index.get_level_values("group") == SAFE
    return _drawn_d_primes(tau, safe, seed=seed, resamples=resamples)


def attack_tau(table: pd.DataFrame, *, seed: int, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Mean tau of attacks that succeeded and of those that failed, by family and for ``all`` of them together.

    ``table`` is a :func:`tau_table`, or several; its groups other than ``safe`` and ``unsafe`` are families of attacks.
    Success is a coherent compliance. ``low`` and ``high`` bound the mean (95 % bootstrap over prompts; NaN of fewer
    than two), ``on_safe_side`` is the share with tau > 0. A family without such attacks has n = 0 and NaN.
    Columns: :data:`ATTACK_COLUMNS`; no rows without attacks.
    """
    import pandas as pd

    attacks = table[~table["group"].isin([SAFE, UNSAFE])]
    if ALL_FAMILIES in set(attacks["group"]):
        raise MechsafetyError(f"a family of attacks is called {ALL_FAMILIES!r}, the name of all: rename it")
    families = [*dict.fromkeys(attacks["group"]), *([ALL_FAMILIES] if len(attacks) else [])]
    rows: list[dict[str, object]] = []
    for (model, positions), part in attacks.groupby(["model", "positions"], sort=False):
        layers = sorted(set(part["layer"]))
        for family in families:
            for outcome, verdicts in OUTCOMES.items():
                kept = part[part["label"].isin(verdicts)]
                kept = kept if family == ALL_FAMILIES else kept[kept["group"] == family]
                values = kept.pivot(index="layer", columns="id", values="tau").reindex(layers)
                tau = values.to_numpy(dtype=float).T
                for layer, found in zip(layers, _means(tau, seed=seed, resamples=resamples), strict=True):
                    key = {"model": model, "positions": positions, "layer": layer, "family": family}
                    rows.append({**key, "outcome": outcome, **found})
    return pd.DataFrame(rows, columns=ATTACK_COLUMNS)


def _mask(unsafe: Sequence[bool], n: int) -> Tensor:
    if len(unsafe) != n:
        raise MechsafetyError(f"{len(unsafe)} marks of safe or unsafe for {n} prompts; one for each")
    return torch.tensor(list(unsafe), dtype=torch.bool)


def _d_primes(
    tau: np.ndarray, safe: np.ndarray, *, seed: int, resamples: int
) -> list[tuple[float, float, float]]:
    """d' of each layer with its bootstrap interval, from weighted moments of tau [prompt, layer]."""
    whole, parts = _drawn_d_primes(tau, safe, seed=seed, resamples=resamples)
    return [
        (float(whole[layer]), *percentiles(float(whole[layer]), [p[:, layer] for p in parts], 0.95))
        for layer in range(tau.shape[1])
    ]


def _drawn_d_primes(
    tau: np.ndarray, safe: np.ndarray, *, seed: int, resamples: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    drawn = cluster_weights(np.random.default_rng(seed), len(tau), resamples, width=max(tau.size, 1))
    # About each layer's mean, so that the difference of moments keeps its digits.
    centred = tau - tau.mean(0)
    whole, *parts = (_weighted_d_prime(w, centred, safe) for w in (np.ones((1, len(tau))), *drawn))
    return whole[0], parts


def _weighted_d_prime(weights: np.ndarray, tau: np.ndarray, safe: np.ndarray) -> np.ndarray:
    """[resample, layer]; NaN where a class has fewer than two prompts, or no spread at all."""
    means, variances = [], []
    with np.errstate(invalid="ignore", divide="ignore"):
        for kind in (safe, ~safe):
            w = weights[:, kind]
            total = w.sum(1, keepdims=True)
            mean = w @ tau[kind] / total
            variance = (w @ tau[kind] ** 2 / total - mean**2) * total / (total - 1)
            means.append(mean)
            variances.append(np.where(total > 1, variance, np.nan))
        spread = (variances[0] + variances[1]) / 2
        return (means[0] - means[1]) / np.sqrt(np.where(spread > 0, spread, np.nan))


def _auroc_chance(tau: np.ndarray, n_safe: int, *, seed: int, permutations: int) -> np.ndarray:
    """The 95 % quantile, by layer, of the AUROC under permuted labels: of the Mann-Whitney statistic over n m."""
    n_unsafe = len(tau) - n_safe
    if not n_safe or not n_unsafe:
        return np.full(tau.shape[1], np.nan)
    rng = np.random.default_rng(seed)
    labels = rng.permuted(np.tile(np.arange(len(tau)) < n_safe, (permutations, 1)), axis=1)
    above = labels.astype(float) @ rankdata(tau, axis=0) - n_safe * (n_safe + 1) / 2
    return np.quantile(above / (n_safe * n_unsafe), 0.95, axis=0)


def _means(tau: np.ndarray, *, seed: int, resamples: int) -> list[dict[str, int | float]]:
    """Mean of tau [prompt, layer] by layer, with its bootstrap interval."""
    n, n_layers = tau.shape
    if not n:
        unknown = dict.fromkeys(("tau", "low", "high", "on_safe_side"), float("nan"))
        return [{"n": 0, **unknown} for _ in range(n_layers)]
    drawn = cluster_weights(np.random.default_rng(seed), n, resamples, width=tau.size)
    parts = [w @ tau / n for w in drawn]
    rows: list[dict[str, int | float]] = []
    for layer, mean in enumerate(tau.mean(0)):
        low, high = percentiles(float(mean), [p[:, layer] for p in parts], 0.95)
        side = float((tau[:, layer] > 0).mean())
        rows.append({"n": n, "tau": float(mean), "low": low, "high": high, "on_safe_side": side})
    return rows
