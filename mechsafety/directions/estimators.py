"""The ways to find one direction between two classes: mean difference, principal component, LEACE, probe.

Each takes harmful and harmless activations [prompt, position, layer, d_model] in float64 and answers for
every (position, layer) at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import Centring, Method

_LEAST_RIDGE = 1e-6  # of the mean variance: keeps the covariance invertible where nothing is shrunk


@dataclass(frozen=True, kw_only=True)
class DirectionEstimate:
    """What is written and, for an oblique eraser, what is read.

    ``vectors`` point from harmless to harmful. ``covectors`` is None where the direction itself is read.
    """

    vectors: Float[Tensor, "position layer d_model"]
    covectors: Float[Tensor, "position layer d_model"] | None = None

    @property
    def read(self) -> Float[Tensor, "position layer d_model"]:
        return self.vectors if self.covectors is None else self.covectors


def estimate(
    method: Method,
    harmful: Float[Tensor, "a position layer d_model"],
    harmless: Float[Tensor, "b position layer d_model"],
    *,
    centring: Centring = "pooled",
) -> DirectionEstimate:
    """One method's directions.

    ``mean_difference``: v = mean(harmful) - mean(harmless), unnormalised (Arditi et al. 2024, eq. 1).
    ``pca``: first principal component (unit norm), sign fixed so that harmful projects higher; centred
    at one mean (``pooled``) or at each class's own (``per_class``), which then carries the variance
    within classes, not their difference (the two readings of arXiv 2510.02768, section 3).
    ``leace``: writes the mean difference d and reads w = S^-1 d, S the covariance of all prompts: of the
    linear maps after which no linear probe sees the class, I - d w^T / (w.d) moves the activations least
    (Belrose et al. 2023, theorem 4.2 for one binary concept). S is shrunk as Ledoit and Wolf (2004) do,
    since there are fewer prompts than dimensions.
    ``probe``: weights (unit norm) of a logistic regression with an L2 penalty (C = 1) on activations
    scaled to unit root mean square.
    """
    difference = harmful.mean(0) - harmless.mean(0)
    if method == "mean_difference":
        return DirectionEstimate(vectors=difference)
    if method == "pca":
        return DirectionEstimate(vectors=_first_component(harmful, harmless, centring))
    if method == "leace":
        return DirectionEstimate(
            vectors=difference, covectors=_shrunk_whitening(harmful, harmless, difference)
        )
    return DirectionEstimate(vectors=_probe(harmful, harmless))


def refusal_subspace(
    harmful: Float[Tensor, "a d_model"], harmless: Float[Tensor, "b d_model"], *, k: int
) -> Float[Tensor, "k d_model"]:
    """Orthonormal rows: the mean difference, then where the harmful prompts spread most once it is out.

    The second row on are the leading principal components of the harmful activations, centred and with the
    mean difference projected out: what a model represents of a harmful request beyond that it is one.

    Raises :class:`MechsafetyError` for more rows than there are prompts or dimensions, and where the two
    classes have one mean.

    Arguments:
        harmful: Activations [prompt, d_model] of harmful prompts.
        harmless: The same of harmless ones.
        k: Number of rows.

    Returns:
        Orthonormal rows [k, d_model].

    Example:
        >>> harmful, harmless = cache.select("harmful")[:, 0, 2], cache.select("harmless")[:, 0, 2]
        >>> basis = ms.anatomy.refusal_subspace(harmful, harmless, k=3)
        >>> torch.allclose(basis @ basis.T, torch.eye(3, dtype=basis.dtype), atol=1e-5)
        True
    """
    most = min(len(harmful), harmful.shape[1])
    if not 1 <= k <= most:
        raise MechsafetyError(f"k is {k}: {len(harmful)} harmful prompts give 1 to {most} directions")
    first = torch.nn.functional.normalize(harmful.mean(0) - harmless.mean(0), dim=0).double()
    if not first.any():
        raise MechsafetyError("the harmful and the harmless activations have one mean: there is no direction")
    centred = (harmful - harmful.mean(0)).double()
    centred = centred - (centred @ first)[:, None] * first
    _, _, rest = torch.linalg.svd(centred, full_matrices=False)
    return torch.cat([first[None], rest[: k - 1]])


def _first_component(
    harmful: Float[Tensor, "a position layer d_model"],
    harmless: Float[Tensor, "b position layer d_model"],
    centring: Centring,
) -> Float[Tensor, "position layer d_model"]:
    if centring == "pooled":
        both = torch.cat([harmful, harmless])
        centred = both - both.mean(0)
    else:
        centred = torch.cat([harmful - harmful.mean(0), harmless - harmless.mean(0)])
    stacked = centred.permute(1, 2, 0, 3)
    # The smaller Gram matrix gives the same component: X^T u / sigma.
    gram = stacked @ stacked.transpose(-1, -2)
    _, vectors = torch.linalg.eigh(gram)
    component = torch.nn.functional.normalize(
        (stacked.transpose(-1, -2) @ vectors[..., -1:]).squeeze(-1), dim=-1
    )
    sign = torch.where(((harmful.mean(0) - harmless.mean(0)) * component).sum(-1) < 0, -1.0, 1.0)
    return component * sign[..., None]


def _shrunk_whitening(
    harmful: Float[Tensor, "a position layer d_model"],
    harmless: Float[Tensor, "b position layer d_model"],
    difference: Float[Tensor, "position layer d_model"],
) -> Float[Tensor, "position layer d_model"]:
    """S^-1 d for the shrunk covariance S = a I + b X^T X, by the n x n system of Woodbury's identity."""
    both = torch.cat([harmful, harmless])
    centred = (both - both.mean(0)).permute(1, 2, 0, 3)
    n, width = centred.shape[-2:]
    gram = centred @ centred.transpose(-1, -2)
    variance = gram.diagonal(dim1=-2, dim2=-1).sum(-1) / (n * width)
    shrinkage = ledoit_wolf(gram, width)
    ridge = (shrinkage * variance).clamp(min=0) + _LEAST_RIDGE * variance + torch.finfo(gram.dtype).tiny
    scale = (1 - shrinkage) / n
    eye = torch.eye(n, dtype=gram.dtype)
    # Divided by scale, not multiplied: (ridge / scale) I + X X^T stays well scaled.
    system = gram + (ridge / scale.clamp(min=1e-30))[..., None, None] * eye
    inner = torch.linalg.solve(system, centred @ difference[..., None])
    return (difference - (centred.transpose(-1, -2) @ inner).squeeze(-1)) / ridge[..., None]


def ledoit_wolf(
    gram: Float[Tensor, "position layer prompt prompt"], width: int
) -> Float[Tensor, "position layer"]:
    """The shrinkage intensity of Ledoit and Wolf (2004), from the Gram matrix of centred rows.

    The sums over the covariance that the formula asks for are sums over the Gram matrix: |X^T X| and
    |X X^T| are equal, and so the cost does not grow with the square of d_model.
    """
    n = gram.shape[-1]
    norms = gram.diagonal(dim1=-2, dim2=-1)
    mu = norms.sum(-1) / (n * width)
    squared = gram.square().sum((-2, -1)) / n**2
    beta = (norms.square().sum(-1) / n - squared) / (width * n)
    delta = (squared - width * mu.square()) / width
    return torch.where(
        delta > 0, (torch.minimum(beta, delta) / delta.clamp(min=1e-300)).clamp(0, 1), torch.zeros_like(delta)
    )


def _probe(
    harmful: Float[Tensor, "a position layer d_model"], harmless: Float[Tensor, "b position layer d_model"]
) -> Float[Tensor, "position layer d_model"]:
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    both = torch.cat([harmful, harmless])
    truth = np.array([1] * len(harmful) + [0] * len(harmless))
    out = torch.zeros(both.shape[1:], dtype=both.dtype)
    for position in range(both.shape[1]):
        for layer in range(both.shape[2]):
            rows = both[:, position, layer] - both[:, position, layer].mean(0)
            size = float(rows.square().mean().sqrt())
            if size == 0.0:
                continue
            # The penalty does not see rotations, so the fit may run in the span of the prompts.
            u, s, vt = torch.linalg.svd(rows / size, full_matrices=False)
            fit = LogisticRegression(max_iter=1000).fit((u * s).numpy(), truth)
            out[position, layer] = torch.from_numpy(fit.coef_[0]) @ vt
    return torch.nn.functional.normalize(out, dim=-1)
