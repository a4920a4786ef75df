"""Each way to find a direction equals an independent computation, and LEACE erases as its theorem says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf, ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mechsafety.core.names import METHODS
from mechsafety.directions.estimators import estimate, ledoit_wolf


def classes(*, n: int, width: int, shift: float = 1.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes [prompt, 1, 2, width] with unequal variances along the axes."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.3, 3.0, width, dtype=torch.float64)
    x = torch.randn(2 * n, 1, 2, width, generator=generator, dtype=torch.float64) * scale
    x[:n] += shift * torch.nn.functional.normalize(
        torch.randn(width, generator=generator, dtype=torch.float64), dim=0
    )
    return x[:n], x[n:]


def erased(x: Tensor, vector: Tensor, covector: Tensor) -> Tensor:
    return x - (x @ covector)[..., None] * vector / (covector @ vector)


@pytest.mark.parametrize(("n", "width"), [(12, 40), (200, 10)])
def test_shrinkage_equals_scikit_learn(n: int, width: int) -> None:
    a, b = classes(n=n, width=width)
    both = torch.cat([a, b])
    centred = (both - both.mean(0)).permute(1, 2, 0, 3)
    found = ledoit_wolf(centred @ centred.transpose(-1, -2), width)
    for layer in range(2):
        expected = ledoit_wolf_shrinkage(both[:, 0, layer].numpy())
        assert float(found[0, layer]) == pytest.approx(expected, rel=1e-9)
    assert 0 < float(found.min()) <= float(found.max()) < 1


@pytest.mark.parametrize(("n", "width"), [(12, 40), (200, 10)])
def test_leace_reads_the_inverse_covariance_times_the_difference(n: int, width: int) -> None:
    a, b = classes(n=n, width=width)
    found = estimate("leace", a, b)
    assert found.covectors is not None
    for layer in range(2):
        difference = (a.mean(0) - b.mean(0))[0, layer]
        torch.testing.assert_close(found.vectors[0, layer], difference)
        covariance = LedoitWolf().fit(torch.cat([a, b])[:, 0, layer].numpy()).covariance_
        oracle = torch.from_numpy(np.linalg.solve(covariance, difference.numpy()))
        cosine = torch.nn.functional.cosine_similarity(found.covectors[0, layer], oracle, dim=0)
        assert float(cosine) == pytest.approx(1.0, abs=1e-6)
        # The control: it is not the difference itself.
        assert float(torch.nn.functional.cosine_similarity(difference, oracle, dim=0)) < 0.98


def test_leace_leaves_nothing_to_a_linear_probe_and_moves_least() -> None:
    a, b = classes(n=2000, width=8)
    found = estimate("leace", a, b)
    vector, covector = found.vectors[0, 0], found.read[0, 0]
    both, truth = torch.cat([a, b])[:, 0, 0], [1] * len(a) + [0] * len(b)
    after = erased(both, vector, covector)
    assert float((after[:2000].mean(0) - after[2000:].mean(0)).norm()) < 1e-9
    # Not along the difference, which has variance left over: where it is nought the penalty keeps weights out.
    probe = LogisticRegression().fit(after.numpy(), truth)
    assert probe.score(after.numpy(), truth) < 0.53
    assert LogisticRegression().fit(both.numpy(), truth).score(both.numpy(), truth) > 0.65

    def moved(read: Tensor) -> float:
        centred = both - both.mean(0)
        return float((erased(centred, vector, read) - centred).square().sum(-1).mean())

    others = [vector, *torch.randn(20, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)]
    assert all(moved(covector) < moved(other) for other in others)


def test_probe_equals_logistic_regression_on_the_features_themselves() -> None:
    a, b = classes(n=15, width=40)
    found = estimate("probe", a, b).vectors
    both = torch.cat([a, b])
    for layer in range(2):
        x = both[:, 0, layer] - both[:, 0, layer].mean(0)
        fit = LogisticRegression(max_iter=2000, tol=1e-8).fit(
            (x / x.square().mean().sqrt()).numpy(), [1] * 15 + [0] * 15
        )
        oracle = torch.nn.functional.normalize(torch.from_numpy(fit.coef_[0]), dim=0)
        assert float(found[0, layer] @ oracle) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_directions_point_from_harmless_to_harmful(method: str) -> None:
    a, b = classes(n=60, width=10, shift=4.0)
    found = estimate(method, a, b).read  # type: ignore[arg-type]
    swapped = estimate(method, b, a).read  # type: ignore[arg-type]
    gap = ((a.mean(0) - b.mean(0)) * found).sum(-1)
    assert bool((gap > 0).all())
    torch.testing.assert_close(swapped, -found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_classes_that_do_not_differ_raise_no_error(method: str) -> None:
    same = torch.ones(4, 1, 2, 6, dtype=torch.float64)
    found = estimate(method, same, same)  # type: ignore[arg-type]
    assert float((found.vectors * (same[0])).sum().abs()) < 1e-6 or method == "pca"
    assert bool(torch.isfinite(found.read).all())
