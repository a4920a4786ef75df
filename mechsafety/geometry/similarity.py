"""How alike two checkpoints hold refusal: cosines and principal angles, each with its ceiling and floor.

Everything here is a function of residual streams on the same prompts and of *contrasts*: signed prompt
weights w (harmful prompts sum to 1, harmless ones to -1), so that w @ x is a mean difference. Resamples and
halves are weights too, drawn once and used for every checkpoint and layer: comparisons are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError

LEAST_PROMPTS = 4
Z95 = 1.959963984540054
ROUNDING = 1e-6  # of the activations' norm: a difference this small is rounding


@dataclass(frozen=True, kw_only=True)
class Contrasts:
    """Signed prompt weights: the sample's own, resamples within class, random halves, and harmless halves.

    ``halves`` holds both halves of every split; ``harmless`` is one random half of the harmless prompts
    against the other: a contrast that is not about refusal.
    """

    harmful: Bool[Tensor, " prompt"]
    whole: Float[Tensor, " prompt"]
    resamples: Float[Tensor, "resample prompt"]
    halves: Float[Tensor, "2 split prompt"]
    harmless: Float[Tensor, "split prompt"]


def draw_contrasts(labels: Sequence[str], *, resamples: int, splits: int = 20, seed: int) -> Contrasts:
    """Contrasts of prompts with these labels. Raises :class:`MechsafetyError` for fewer than 4 of a class."""
    harmful = torch.tensor([label == "harmful" for label in labels], dtype=torch.bool)
    sizes = (int(harmful.sum()), int((~harmful).sum()))
    if min(sizes) < LEAST_PROMPTS:
        raise MechsafetyError(
            f"{sizes[0]} harmful and {sizes[1]} harmless prompts are too few to compare checkpoints: "
            f"{LEAST_PROMPTS} of each at least"
        )
    generator = torch.Generator().manual_seed(seed)
    classes = [harmful.nonzero().flatten(), (~harmful).nonzero().flatten()]

    def weights(a: Tensor, b: Tensor) -> Tensor:
        ones = torch.ones(len(labels), dtype=torch.float64)
        plus = torch.zeros_like(ones).index_add_(0, a, ones[: len(a)]) / len(a)
        return plus - torch.zeros_like(ones).index_add_(0, b, ones[: len(b)]) / len(b)

    def again(rows: Tensor) -> Tensor:
        return rows[torch.randint(len(rows), (len(rows),), generator=generator)]

    def halved(rows: Tensor) -> tuple[Tensor, Tensor]:
        order = rows[torch.randperm(len(rows), generator=generator)]
        return order[: len(rows) // 2], order[len(rows) // 2 :]

    drawn = [weights(again(classes[0]), again(classes[1])) for _ in range(resamples)]
    pairs = [(halved(classes[0]), halved(classes[1])) for _ in range(splits)]
    return Contrasts(
        harmful=harmful,
        whole=weights(*classes),
        resamples=torch.stack(drawn) if drawn else torch.zeros(0, len(labels), dtype=torch.float64),
        halves=torch.stack([torch.stack([weights(a[i], b[i]) for a, b in pairs]) for i in (0, 1)]),
        harmless=torch.stack([weights(*halved(classes[1])) for _ in range(splits)]),
    )


# -- cosines ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cosines:
    """Cosines between two checkpoints' mean differences, by layer; NaN where there is no difference.

    ``low`` and ``high``: 95 % interval, cosine +- 1.96 bootstrap standard errors on Fisher's z = artanh(cos).
    Not percentiles: a resample repeats prompts, is noisier than the sample, and its cosines lie lower.

    ``ceiling_a`` and ``ceiling_b``: mean cosine r between the directions of two random halves of the prompts
    in the same checkpoint. ``ceiling`` = sqrt(R_a R_b) with R = 2r / (1 + r) (Spearman-Brown): what two
    checkpoints with one true direction would show on separate samples of full size. On the same prompts the
    errors are shared, and the cosine may lie above it.

    ``corrected``: the cosine without sampling noise, u_ab / sqrt(u_aa u_bb), where u estimates the inner
    product of the two true differences without bias by pairs of distinct prompts only. It is what Spearman's
    correction, cos / sqrt(r_a r_b), gives with cosines across halves, averaged over all halvings; dividing
    the cosine on shared prompts by its ceilings would overshoot, because their errors are not independent.
    NaN where u_aa or u_bb is not positive; sampling may carry it past 1. Its interval is a jackknife's.

    ``harmless_floor`` and ``harmless_high``: mean and 95 % quantile of the cosine between directions of
    random halves of the harmless prompts, the same halves in both: where it is as high as the cosine, the
    checkpoints are alike in everything, not in refusal.
    """

    cosine: Float[Tensor, " layer"]
    low: Float[Tensor, " layer"]
    high: Float[Tensor, " layer"]
    ceiling_a: Float[Tensor, " layer"]
    ceiling_b: Float[Tensor, " layer"]
    ceiling: Float[Tensor, " layer"]
    corrected: Float[Tensor, " layer"]
    corrected_low: Float[Tensor, " layer"]
    corrected_high: Float[Tensor, " layer"]
    harmless_floor: Float[Tensor, " layer"]
    harmless_high: Float[Tensor, " layer"]


def compare_cosines(
    a: Float[Tensor, "prompt layer d_model"], b: Float[Tensor, "prompt layer d_model"], contrasts: Contrasts
) -> Cosines:
    """Cosines of the mean differences of two checkpoints, layer by layer; see :class:`Cosines`."""
    columns: dict[str, list[float]] = {name: [] for name in Cosines.__dataclass_fields__}
    for layer in range(a.shape[1]):
        found = _cosines_at(a[:, layer], b[:, layer], contrasts)
        for name, values in columns.items():
            values.append(found.get(name, math.nan))
    return Cosines(**{name: torch.tensor(v, dtype=torch.float64) for name, v in columns.items()})


def _cosines_at(a: Tensor, b: Tensor, contrasts: Contrasts) -> dict[str, float]:
    if not (differs(a, contrasts.whole) and differs(b, contrasts.whole)):
        return {}
    x, y = centred(a), centred(b)
    value = float(_cosine(contrasts.whole @ x, contrasts.whole @ y))
    again = _cosine(contrasts.resamples @ x, contrasts.resamples @ y)
    low, high = _fisher_interval(value, again)
    first, second = contrasts.halves
    ceilings = [float(_cosine(first @ z, second @ z).mean()) for z in (x, y)]
    control = _cosine(contrasts.harmless @ x, contrasts.harmless @ y)
    corrected, error = _corrected(x @ y.T, x @ x.T, y @ y.T, contrasts.harmful)
    return {
        "cosine": value,
        "low": low,
        "high": high,
        "ceiling_a": ceilings[0],
        "ceiling_b": ceilings[1],
        "ceiling": math.sqrt(spearman_brown(ceilings[0]) * spearman_brown(ceilings[1])),
        "corrected": corrected,
        "corrected_low": corrected - Z95 * error,
        "corrected_high": corrected + Z95 * error,
        "harmless_floor": float(control.mean()),
        "harmless_high": float(control.quantile(0.95)),
    }


def spearman_brown(half: float) -> float:
    """Reliability of the whole sample from that of its halves, 2r / (1 + r); NaN where r is not positive."""
    return 2 * half / (1 + half) if half > 0 else math.nan


def random_cosine(d_model: int) -> tuple[float, float]:
    """Mean and 95 % quantile of abs(cos) between independent random directions in ``d_model`` dimensions.

    cos^2 is Beta(1/2, (d-1)/2); the mean is Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)), near sqrt(2 / (pi d)).
    """
    from scipy.stats import beta

    mean = math.exp(math.lgamma(d_model / 2) - math.lgamma((d_model + 1) / 2)) / math.sqrt(math.pi)
    return mean, math.sqrt(float(beta.ppf(0.95, 0.5, (d_model - 1) / 2)))


def differs(x: Float[Tensor, "prompt d_model"], weights: Float[Tensor, " prompt"]) -> bool:
    """Whether the contrast is more than rounding (the template's own tokens at layer 0 do not differ)."""
    wide = x.double()
    return float((weights @ wide).norm()) > ROUNDING * float(wide.norm(dim=-1).mean())


def _corrected(ab: Tensor, aa: Tensor, bb: Tensor, harmful: Tensor) -> tuple[float, float]:
    """The corrected cosine and its jackknife standard error, from Gram matrices [prompt, prompt]."""
    n = len(harmful)
    keep = torch.cat([torch.ones(1, n, dtype=torch.float32), 1 - torch.eye(n, dtype=torch.float32)]).double()
    products = [_unbiased_product(gram, keep, harmful) for gram in (ab, aa, bb)]
    scale = products[1] * products[2]
    fits = (products[1] > 0) & (products[2] > 0)
    values = torch.where(fits, products[0] / scale.clamp(min=1e-300).sqrt(), torch.nan)
    return float(values[0]), jackknife_error(values[1:], harmful)


def _unbiased_product(gram: Tensor, keep: Tensor, harmful: Tensor) -> Tensor:
    """Unbiased <E[w x], E[w y]> for every row of kept prompts: products of distinct prompts only."""
    plus, minus = keep * harmful, keep * ~harmful
    n, m = plus.sum(-1), minus.sum(-1)

    def within(c: Tensor, size: Tensor) -> Tensor:
        return (((c @ gram) * c).sum(-1) - c @ gram.diagonal()) / (size * (size - 1))

    across = ((plus @ gram) * minus + (minus @ gram) * plus).sum(-1) / (n * m)
    return within(plus, n) + within(minus, m) - across


def jackknife_error(without: Float[Tensor, " prompt"], harmful: Tensor) -> float:
    """Standard error from delete-one values, classes as strata: sum over c of (n_c - 1) / n_c * SS_c."""
    parts = [without[harmful], without[~harmful]]
    return math.sqrt(sum((len(v) - 1) / len(v) * float((v - v.mean()).square().sum()) for v in parts))


def _fisher_interval(value: float, again: Tensor) -> tuple[float, float]:
    edge = 1 - 1e-15
    z = math.atanh(min(max(value, -edge), edge))
    error = float(torch.atanh(again.clamp(-edge, edge)).std()) if len(again) > 1 else math.nan
    return math.tanh(z - Z95 * error), math.tanh(z + Z95 * error)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(x, y, dim=-1, eps=1e-300)


def centred(x: Tensor) -> Tensor:
    """In float64 with the mean taken off: contrasts do not see it, and rounding does."""
    wide = x.double()
    return wide - wide.mean(0)


# -- principal angles -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Angles:
    """Principal angles in degrees between two refusal subspaces, smallest first; see :func:`subspaces`.

    ``low`` and ``high``: angle +- 1.96 bootstrap standard errors, cut to [0, 90]. ``ceiling_a`` and
    ``ceiling_b``: mean angles between the subspaces of random halves in the same checkpoint (of half the
    prompts, so the whole sample does better). ``harmless_floor``: mean angles between subspaces built from
    random halves of the harmless prompts, the same halves in both.
    """

    angle: Float[Tensor, "layer k"]
    low: Float[Tensor, "layer k"]
    high: Float[Tensor, "layer k"]
    ceiling_a: Float[Tensor, "layer k"]
    ceiling_b: Float[Tensor, "layer k"]
    harmless_floor: Float[Tensor, "layer k"]


@dataclass(frozen=True, kw_only=True)
class Subspaces:
    """Orthonormal bases as prompt weights: basis = weights @ x, for x centred, at every layer."""

    whole: Float[Tensor, "layer 1 k prompt"]
    resamples: Float[Tensor, "layer resample k prompt"]
    halves: Float[Tensor, "layer 2 split k prompt"]
    harmless: Float[Tensor, "layer split k prompt"]


def subspaces(
    x: Float[Tensor, "prompt layer d_model"], contrasts: Contrasts, *, k: int, resamples: int = 100
) -> Subspaces:
    """Refusal subspaces of one checkpoint: of the sample, its resamples and its halves.

    The k-dimensional refusal subspace is spanned by the mean difference d and the k - 1 leading principal
    components of the harmful activations about their mean, after d has been projected out. It contains d,
    and k = 1 gives back the cosine; the further components are what harmful prompts differ in most, which
    need not be refusal. At most ``resamples`` of the bootstrap are used (each needs an eigendecomposition).
    """
    if not 1 <= k <= subspace_limit(contrasts, x.shape[-1]):
        raise MechsafetyError(
            f"subspaces of {k} dimensions: k must be 1 to {subspace_limit(contrasts, x.shape[-1])} with these "
            "prompts (halves of a class must span it)"
        )
    found: dict[str, list[Tensor]] = {"whole": [], "resamples": [], "halves": [], "harmless": []}
    for layer in range(x.shape[1]):
        moved = centred(x[:, layer])
        gram = moved @ moved.T
        if not differs(x[:, layer], contrasts.whole):
            gram = torch.full_like(gram, math.nan)
        found["whole"].append(_bases(gram, contrasts.whole[None], k))
        found["resamples"].append(_bases(gram, contrasts.resamples[:resamples], k))
        found["halves"].append(torch.stack([_bases(gram, half, k) for half in contrasts.halves]))
        found["harmless"].append(_bases(gram, contrasts.harmless, k))
    return Subspaces(**{name: torch.stack(values) for name, values in found.items()})


def subspace_limit(contrasts: Contrasts, d_model: int) -> int:
    """The largest k that the halves of either class can span."""
    smallest = min(int(contrasts.harmful.sum()) // 2, int((~contrasts.harmful).sum()) // 2)
    return min(smallest, d_model)


def _bases(gram: Tensor, weights: Float[Tensor, "row prompt"], k: int) -> Float[Tensor, "row k prompt"]:
    chunks = [_bases_of(gram, chunk, k) for chunk in weights.split(32)] if len(weights) else []
    return torch.cat(chunks) if chunks else torch.zeros(0, k, gram.shape[0], dtype=gram.dtype)


def _bases_of(gram: Tensor, weights: Tensor, k: int) -> Tensor:
    """Bases for rows of contrasts, worked out in the span of the prompts.

    With p the positive weights, H = G - G w w^T G / (w^T G w) is the Gram matrix with d projected out, and
    that of the rows sqrt(p_i) (x_i - p @ x) follows from H by centring; its eigenvectors give the components.
    """
    out = torch.full((len(weights), k, gram.shape[0]), math.nan, dtype=gram.dtype)
    seen = weights @ gram
    size = (seen * weights).sum(-1)
    if not bool((size > 0).all()):  # NaN too: there is no difference here
        return out
    out[:, 0] = weights / size.sqrt()[:, None]
    if k == 1:
        return out
    positive = weights.clamp(min=0)
    rows = (positive > 0).any(0).nonzero().flatten()
    p = positive[:, rows]
    inner = gram[rows][:, rows] - seen[:, rows, None] * seen[:, None, rows] / size[:, None, None]
    mean = (inner @ p[..., None]).squeeze(-1)
    middle = inner - mean[:, :, None] - mean[:, None, :] + (mean * p).sum(-1)[:, None, None]
    root = p.sqrt()
    values, vectors = torch.linalg.eigh(root[:, :, None] * middle * root[:, None, :])
    top = values[:, -(k - 1) :].flip(-1)
    u = vectors[:, :, -(k - 1) :].flip(-1).transpose(-1, -2) * root[:, None]  # [row, k - 1, harmful]
    component = torch.zeros(len(weights), k - 1, gram.shape[0], dtype=gram.dtype)
    component[:, :, rows] = u
    component -= u.sum(-1, keepdim=True) * positive[:, None]
    along = (component @ seen[..., None]).squeeze(-1) / size[:, None]
    component -= along[..., None] * weights[:, None]
    # A component without variance is none.
    scale = torch.where(top > 1e-12 * values[:, -1:].abs(), top, torch.nan).sqrt()
    out[:, 1:] = component / scale[..., None]
    return out


def compare_subspaces(
    a: Float[Tensor, "prompt layer d_model"],
    b: Float[Tensor, "prompt layer d_model"],
    bases_a: Subspaces,
    bases_b: Subspaces,
) -> Angles:
    """Principal angles between two checkpoints' refusal subspaces, layer by layer; see :class:`Angles`."""
    columns: dict[str, list[Tensor]] = {name: [] for name in Angles.__dataclass_fields__}
    for layer in range(a.shape[1]):
        x, y = centred(a[:, layer]), centred(b[:, layer])
        across = x @ y.T
        angle = _angles(bases_a.whole[layer], across, bases_b.whole[layer])[0]
        error = _angles(bases_a.resamples[layer], across, bases_b.resamples[layer]).std(0)
        columns["angle"].append(angle)
        columns["low"].append((angle - Z95 * error).clamp(0, 90))
        columns["high"].append((angle + Z95 * error).clamp(0, 90))
        for name, own, gram in (("ceiling_a", bases_a, x @ x.T), ("ceiling_b", bases_b, y @ y.T)):
            columns[name].append(_angles(own.halves[layer, 0], gram, own.halves[layer, 1]).mean(0))
        control = _angles(bases_a.harmless[layer], across, bases_b.harmless[layer])
        columns["harmless_floor"].append(control.mean(0))
    return Angles(**{name: torch.stack(values) for name, values in columns.items()})


def _angles(a: Float[Tensor, "row k prompt"], gram: Tensor, b: Float[Tensor, "row k prompt"]) -> Tensor:
    inner = a @ gram @ b.transpose(-1, -2)
    known = torch.isfinite(inner).all(-1).all(-1)
    cosines = torch.linalg.svdvals(torch.where(known[:, None, None], inner, torch.zeros_like(inner)))
    angles = torch.rad2deg(torch.arccos(cosines.clamp(max=1)))
    return torch.where(known[:, None], angles, torch.nan)


def random_angles(
    d_model: int, *, k: int, seed: int, draws: int = 200
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Mean and 5 % quantile of each principal angle between random k-dimensional subspaces, in degrees."""
    drawn = torch.randn(draws, d_model, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # One of the two may be the span of the first k axes: only their relative position matters.
    cosines = torch.linalg.svdvals(torch.linalg.qr(drawn).Q[:, :k])
    angles = torch.rad2deg(torch.arccos(cosines.clamp(max=1)))
    return angles.mean(0), angles.quantile(0.05, dim=0)
