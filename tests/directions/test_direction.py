"""Directions point where the classes differ, and survive being saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import METHODS
from mechsafety.directions.activations import ResidualCache
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.directions.files import load_directions, read_directions, save_directions

D, LAYERS = 12, 3


def planted(*, shift: float = 3.0, n: int = 40, seed: int = 0) -> tuple[ResidualCache, Tensor]:
    """A cache in which harmful prompts are shifted along one known direction at every layer."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * n, 1, LAYERS, D, generator=generator)
    v = torch.nn.functional.normalize(torch.randn(D, generator=generator), dim=0)
    x[:n] += shift * v
    cache = ResidualCache(
        activations=x,
        positions=(-1,),
        ids=tuple(map(str, range(2 * n))),
        labels=("harmful",) * n + ("harmless",) * n,
        model="planted",
        fingerprint="f",
    )
    return cache, v


def test_mean_difference_is_the_difference_of_means() -> None:
    cache, _ = planted()
    found = find_directions(cache, method="mean_difference", seed=0)
    x = cache.activations.double().numpy()
    np.testing.assert_allclose(found.vectors[0].numpy(), (x[:40] - x[40:]).mean(0)[0], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_planted_direction_is_found_and_noise_is_not_stable(method: str) -> None:
    # A probe and the covariance of LEACE need more prompts than a mean does.
    cache, v = planted(shift=4.0, n=40 if method in ("mean_difference", "pca") else 400)
    found = find_directions(cache, method=method, seed=0)  # type: ignore[arg-type]
    cosines = torch.nn.functional.cosine_similarity(found.vectors[0], v[None], dim=-1)
    assert float(cosines.min()) > 0.93
    assert float(found.split_half.min()) > 0.8
    nothing = find_directions(planted(shift=0.0)[0], method=method, seed=0)  # type: ignore[arg-type]
    assert float(nothing.split_half.abs().mean()) < 0.7


def test_pooled_component_equals_scikit_learn() -> None:
    cache, _ = planted()
    found = find_directions(cache, method="pca", centring="pooled", seed=0)
    for layer in range(LAYERS):
        oracle = PCA(1).fit(cache.activations[:, 0, layer].numpy()).components_[0]
        assert abs(float(found.vectors[0, layer].numpy() @ oracle)) == pytest.approx(1, abs=1e-5)
        gap = cache.activations[:40, 0, layer].mean(0) - cache.activations[40:, 0, layer].mean(0)
        assert float(found.vectors[0, layer] @ gap) > 0


def test_per_class_centring_loses_the_class_difference() -> None:
    cache, v = planted(shift=8.0)
    pooled = find_directions(cache, method="pca", centring="pooled", seed=0)
    within = find_directions(cache, method="pca", centring="per_class", seed=0)
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(pooled.vectors[0], v[None], dim=-1).min()) > 0.9
    assert float(cosine(within.vectors[0], v[None], dim=-1).abs().max()) < 0.9


def test_threshold_and_gap_lie_where_the_classes_do() -> None:
    cache, _ = planted()
    found = find_directions(cache, seed=0)
    direction = found.at(layer=1)
    harmful = direction.project(cache.select("harmful")[:, 0, 1]).mean()
    harmless = direction.project(cache.select("harmless")[:, 0, 1]).mean()
    assert float((harmful + harmless) / 2) == pytest.approx(direction.threshold, abs=1e-4)
    assert float(harmful - harmless) == pytest.approx(float(found.gaps[0, 1]), abs=1e-4)
    assert float(found.gaps[0, 1]) == pytest.approx(direction.norm, abs=1e-4)


def test_same_seed_same_bytes_other_seed_other_stability() -> None:
    cache, _ = planted()
    a, b, c = (find_directions(cache, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.stability, b.stability)
    assert torch.equal(a.vectors, c.vectors)
    assert not torch.equal(a.stability, c.stability)


def test_saved_directions_come_back(tmp_path: Path) -> None:
    cache, _ = planted()
    a, b = find_directions(cache, seed=0), find_directions(planted(seed=1)[0], method="pca", seed=0)
    b = Directions(**{**vars(b), "model": "other/model+x"})
    save_directions([a, b], tmp_path / "d.safetensors")
    back = read_directions(tmp_path / "d.safetensors")
    assert list(back) == ["planted", "other/model+x"]
    for before, after in ((a, back["planted"]), (b, back["other/model+x"])):
        assert torch.equal(before.vectors, after.vectors)
        assert (before.method, before.centring, before.positions) == (
            after.method,
            after.centring,
            after.positions,
        )
    a.save(tmp_path / "one.safetensors")
    assert torch.equal(load_directions(tmp_path / "one.safetensors").gaps, a.gaps)
    with pytest.raises(MechsafetyError, match="load_directions"):
        load_directions(tmp_path / "d.safetensors")
    assert load_directions(tmp_path / "d.safetensors", model="planted") == a
    with pytest.raises(MechsafetyError, match="no directions of"):
        load_directions(tmp_path / "d.safetensors", model="plantet")


def test_bad_files_and_places(tmp_path: Path) -> None:
    found = find_directions(planted()[0], seed=0)
    with pytest.raises(MechsafetyError, match="layers 0 to 2"):
        found.at(layer=3)
    with pytest.raises(MechsafetyError, match="positions are -1"):
        found.at(layer=0, position=-2)
    with pytest.raises(MechsafetyError, match="does not exist"):
        read_directions(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"no safetensors at all")
    with pytest.raises(MechsafetyError, match="holds no directions"):
        read_directions(tmp_path / "bad")


def test_zero_difference_is_no_direction() -> None:
    cache, _ = planted()
    same = ResidualCache(**{**vars(cache), "activations": torch.ones_like(cache.activations)})
    found = find_directions(same, seed=0)
    with pytest.raises(MechsafetyError, match="zero"):
        found.at(layer=0)


def test_too_few_prompts() -> None:
    cache, _ = planted(n=1)
    with pytest.raises(MechsafetyError, match="too few"):
        find_directions(cache, seed=0)
