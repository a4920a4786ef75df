"""May two models be compared by cosine? Only where they share a residual basis: one initialisation or run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError, way

LEAST_CORRELATION = 0.2
_SAMPLE = 1024
Verdict = Literal["shared", "unrelated", "other shape", "unknown"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingSample:
    """Rows of a model's token embedding, for tokens that any model with the same vocabulary samples too."""

    tokens: tuple[str, ...]
    rows: Float[Tensor, "token d_model"]
    n_layers: int

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.rows):
            raise ValueError("tokens and rows do not match")


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Whether checkpoints ``a`` and ``b`` share a residual basis, and why.

    ``correlation`` is that of their embeddings and ``threshold`` what it must reach; both NaN where it could
    not be computed. ``reason`` is a sentence.
    """

    a: str
    b: str
    verdict: Verdict
    correlation: float
    threshold: float
    reason: str

    @property
    def comparable(self) -> bool:
        """Whether cosines, angles and transfer mean anything: shared, or at least not known to differ."""
        return self.verdict in ("shared", "unknown")


def sample_embedding(
    vocabulary: Mapping[str, int], weight: Float[Tensor, "vocabulary d_model"], *, n_layers: int
) -> EmbeddingSample:
    """The rows of the 1024 tokens whose text has the lowest SHA-256: nearly the same for like vocabularies."""
    known = [token for token, row in vocabulary.items() if row < len(weight)]
    chosen = sorted(known, key=lambda t: hashlib.sha256(t.encode("utf-8", "surrogatepass")).digest())[
        :_SAMPLE
    ]
    rows = weight[[vocabulary[token] for token in chosen]].detach().cpu().float()
    return EmbeddingSample(tokens=tuple(chosen), rows=rows.contiguous(), n_layers=n_layers)


def check_basis(a: str, first: EmbeddingSample, b: str, second: EmbeddingSample) -> Basis:
    """Tell a shared basis by the correlation of the embeddings of the tokens that both models know.

    Pearson over all entries, each dimension's mean taken off. Fine-tunes of one model hardly move its embedding
    (LoRA not at all: r = 1), and checkpoints of one run keep its axes. For unrelated weights the axes are
    random to each other: even where a single direction rules both embeddings (token frequency, for example) r has a
    standard deviation of at most 1 / sqrt(d_model). So r must reach four of them, and at least 0.2, which
    matters above 400 dimensions. A model whose embedding was replaced will be judged by the new one.
    """

    def verdict(verdict: Verdict, reason: str, r: float = math.nan, threshold: float = math.nan) -> Basis:
        return Basis(a=a, b=b, verdict=verdict, correlation=r, threshold=threshold, reason=reason)

    shapes = [(s.n_layers, s.rows.shape[1]) for s in (first, second)]
    if shapes[0] != shapes[1]:
        return verdict(
            "other shape",
            f"{a} has {shapes[0][0]} layers of {shapes[0][1]} dimensions and {b} has {shapes[1][0]} of "
            f"{shapes[1][1]}: their residual streams share no basis",
        )
    places = {token: row for row, token in enumerate(second.tokens)}
    shared = [(row, places[token]) for row, token in enumerate(first.tokens) if token in places]
    if len(shared) < 16:
        return verdict(
            "unrelated", f"{a} and {b} have {len(shared)} sampled tokens in common: they are unrelated models"
        )
    rows = [list(side) for side in zip(*shared, strict=True)]
    x, y = (
        s.rows[r].double() - s.rows[r].double().mean(0) for s, r in zip((first, second), rows, strict=True)
    )
    r = float((x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-300))
    threshold = max(LEAST_CORRELATION, 4 / math.sqrt(shapes[0][1]))
    if r >= threshold:
        return verdict(
            "shared",
            f"{a} and {b} share a residual basis: their embeddings correlate at {r:.3f} (threshold {threshold:.2f})",
            r,
            threshold,
        )
    return verdict(
        "unrelated",
        f"{a} and {b} do not share a residual basis: their embeddings correlate at {r:.3f}, below "
        f"{threshold:.2f}, as those of separately initialised models do",
        r,
        threshold,
    )


def unchecked_basis(a: str, shape_a: tuple[int, int], b: str, shape_b: tuple[int, int]) -> Basis:
    """For saved directions: (layers, d_model) must agree; that the models share a basis must be known.

    Raises :class:`MechsafetyError` when the shapes differ.
    """
    if shape_a != shape_b:
        raise MechsafetyError(
            f"saved directions cannot be compared across shapes: {a} has {shape_a[0]} layers of {shape_a[1]} "
            f"dimensions, {b} has {shape_b[0]} of {shape_b[1]}; compare the models themselves with "
            + way("--measure cka", "measures='cka'")
        )
    return Basis(
        a=a,
        b=b,
        verdict="unknown",
        correlation=math.nan,
        threshold=math.nan,
        reason=f"{a} and {b}: saved directions hold no embeddings, so that the models share a residual basis "
        "(one initialisation or training run) must be known",
    )
