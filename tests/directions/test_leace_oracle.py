"""LEACE and the edit that it makes equal concept-erasure, the implementation by the method's own authors."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from mechsafety.directions.direction import Direction
from mechsafety.directions.estimators import estimate
from mechsafety.edits.interventions import Ablate, AffineAblate
from tests.directions.test_estimators import classes, erased

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which it imports
    from concept_erasure import LeaceEraser, LeaceFitter


def data(n: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two classes [prompt, width] with unequal variances along the axes, and which row is of the first."""
    a, b = classes(n=n, width=width)
    return torch.cat([a, b])[:, 0, 0].to(dtype), torch.arange(2 * n).lt(n).to(dtype)


def oracle(x: Tensor, z: Tensor, *, shrunk: bool = True, **options: Any) -> LeaceEraser:
    """concept-erasure's eraser, on the covariance that Ledoit and Wolf shrink where ``shrunk``."""
    fitter = LeaceFitter.fit(x, z, shrinkage=False, constrain_cov_trace=False, **options)
    if shrunk:
        covariance = LedoitWolf().fit(x.double().numpy()).covariance_
        fitter.sigma_xx_ = torch.from_numpy(covariance).to(x) * (len(x) - 1)
    return fitter.eraser


def ours(x: Tensor, z: Tensor) -> Direction:
    first, second = (x[z == k].double()[:, None, None] for k in (1, 0))
    found = estimate("leace", first, second)
    assert found.covectors is not None
    vector, covector = found.vectors[0, 0], found.covectors[0, 0]
    return Direction(vector=vector, layer=1, position=-1, method="leace", covector=covector)


def applied(edit: Any, x: Tensor) -> Tensor:
    target = edit.targets(4)[0]
    return target.apply(x, target.constant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "width"), [(12, 40), (200, 10)])
def test_leace_erases_what_concept_erasure_erases(n: int, width: int, dtype: torch.dtype) -> None:
    x, z = data(n, width, dtype)
    found = ours(x, z)
    assert found.covector is not None
    close = {"rtol": 0, "atol": 1e-4 if dtype == torch.float32 else 1e-5}
    want = oracle(x, z, affine=False)(x)
    torch.testing.assert_close(erased(x, found.vector.to(x), found.covector.to(x)), want, **close)
    torch.testing.assert_close(applied(Ablate(found), x), want, **close)
    # The affine eraser leaves the mean where it is.
    affine = AffineAblate(found, reference=x.mean(0))
    torch.testing.assert_close(applied(affine, x), oracle(x, z)(x), **close)
    # The control: the orthogonal projection of both is another map, and one map too.
    straight = applied(Ablate(found.vector), x)
    assert float((straight - want).abs().max()) > 0.1
    torch.testing.assert_close(straight, oracle(x, z, shrunk=False, method="orth", affine=False)(x), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_many_prompts_little_depends_on_how_the_covariance_is_shrunk(dtype: torch.dtype) -> None:
    apart = []
    for n in (12, 150, 1500):
        x, z = data(n, 8, dtype)
        want = oracle(x, z, shrunk=False, affine=False)(x)
        apart.append(float((applied(Ablate(ours(x, z)), x) - want).norm() / (x - want).norm()))
    # The control: with few prompts the shrinkage decides.
    assert apart[0] > apart[1] > apart[2], apart
    assert apart[0] > 0.3 > 0.05 > apart[2], apart
