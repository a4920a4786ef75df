"""Cosines, angles and CKA equal slow plain oracles, and do what theory says, with controls that fail."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.geometry.cka import compare_cka, linear_cka
from mechsafety.geometry.shared_basis import EmbeddingSample, check_basis, sample_embedding, unchecked_basis
from mechsafety.geometry.similarity import (
    Contrasts,
    compare_cosines,
    compare_subspaces,
    draw_contrasts,
    random_angles,
    random_cosine,
    spearman_brown,
    subspaces,
)


def labels_of(n: int, m: int | None = None) -> list[str]:
    return ["harmful"] * n + ["harmless"] * (n if m is None else m)


def contrasts(n: int, m: int | None = None, *, resamples: int = 60, seed: int = 0) -> Contrasts:
    return draw_contrasts(labels_of(n, m), resamples=resamples, seed=seed)


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def streams(n: int, d: int, *, gap: float, seed: int, direction: int = 0, layers: int = 1) -> torch.Tensor:
    """n + n prompts, harmful ones moved by ``gap`` along one axis; noise of variance 1 elsewhere."""
    x = noise(2 * n, layers, d, seed=seed)
    x[:n, :, direction] += gap
    return x


def rotation(d: int, seed: int = 9) -> torch.Tensor:
    return torch.linalg.qr(noise(d, d, seed=seed)).Q


# -- contrasts --------------------------------------------------------------------------------------


def test_contrasts_are_differences_of_class_means() -> None:
    drawn = contrasts(5, 7, resamples=9)
    x = noise(12, 3, seed=1)
    torch.testing.assert_close(drawn.whole @ x, x[:5].mean(0) - x[5:].mean(0))
    for weights in (drawn.resamples, *drawn.halves):
        torch.testing.assert_close(weights[:, :5].sum(-1), torch.ones(len(weights), dtype=torch.float64))
        torch.testing.assert_close(weights[:, 5:].sum(-1), -torch.ones(len(weights), dtype=torch.float64))
        assert bool((weights[:, :5] >= 0).all())
        assert bool((weights[:, 5:] <= 0).all())
    # Halves share no prompt and leave none out; the harmless control touches no harmful prompt.
    used = drawn.halves != 0
    assert bool((used[0] ^ used[1]).all())
    assert not bool(drawn.harmless[:, :5].any())
    torch.testing.assert_close(drawn.harmless.sum(-1), torch.zeros(20, dtype=torch.float64))


def test_contrasts_depend_on_the_seed_alone() -> None:
    assert torch.equal(contrasts(5, seed=3).resamples, contrasts(5, seed=3).resamples)
    assert not torch.equal(contrasts(5, seed=3).resamples, contrasts(5, seed=4).resamples)


def test_too_few_prompts() -> None:
    with pytest.raises(MechsafetyError, match="3 harmful and 8 harmless prompts are too few"):
        contrasts(3, 8)


# -- cosines ----------------------------------------------------------------------------------------


def test_cosines_equal_plain_numpy() -> None:
    drawn = contrasts(6, 8)
    x, y = noise(14, 2, 5, seed=1), noise(14, 2, 5, seed=2)
    found = compare_cosines(x, y, drawn)

    def plain(weights: torch.Tensor, layer: int) -> list[float]:
        out = []
        for w in weights.numpy():
            a, b = w @ x[:, layer].numpy(), w @ y[:, layer].numpy()
            out.append(float(a @ b / math.sqrt((a @ a) * (b @ b))))
        return out

    for layer in range(2):
        value = plain(drawn.whole[None], layer)[0]
        assert float(found.cosine[layer]) == pytest.approx(value)
        error = float(np.std(np.arctanh(plain(drawn.resamples, layer)), ddof=1))
        assert float(found.low[layer]) == pytest.approx(
            math.tanh(math.atanh(value) - 1.959964 * error), abs=1e-6
        )
        assert float(found.harmless_floor[layer]) == pytest.approx(
            float(np.mean(plain(drawn.harmless, layer)))
        )
        assert float(found.high[layer]) > value > float(found.low[layer])


def test_a_common_rotation_changes_no_cosine_but_one_alone_does() -> None:
    drawn, q = contrasts(8), rotation(6)
    x, y = streams(8, 6, gap=2.0, seed=1), streams(8, 6, gap=2.0, seed=2)
    plain, turned = compare_cosines(x, y, drawn), compare_cosines(3 * x @ q, y @ q, drawn)
    for name in vars(plain):
        torch.testing.assert_close(getattr(plain, name), getattr(turned, name), equal_nan=True)
    assert abs(float(compare_cosines(x @ q, y, drawn).cosine - plain.cosine)) > 0.1


def test_without_a_difference_there_is_no_cosine() -> None:
    x = streams(8, 6, gap=2.0, seed=1)
    flat = torch.ones_like(x)
    found = compare_cosines(x, flat, contrasts(8))
    assert all(bool(torch.isnan(value).all()) for value in vars(found).values())
    assert not bool(torch.isnan(compare_cosines(x, x, contrasts(8)).cosine).any())


def corrected_by_all_halvings(x: np.ndarray, y: np.ndarray, n: int) -> float:
    """The correction by its meaning: inner products across halves, averaged over every halving."""

    def product(a: np.ndarray, b: np.ndarray) -> float:
        halves = list(itertools.combinations(range(n), n // 2))
        total = 0.0
        for up in halves:
            for down in halves:
                rest_up = [i for i in range(n) if i not in up]
                rest_down = [n + i for i in range(n) if i not in down]
                first = a[list(up)].mean(0) - a[[n + i for i in down]].mean(0)
                second = b[rest_up].mean(0) - b[rest_down].mean(0)
                total += float(first @ second)
        return total / len(halves) ** 2

    return product(x, y) / math.sqrt(product(x, x) * product(y, y))


def test_the_corrected_cosine_is_that_of_all_halvings() -> None:
    x, y = streams(4, 5, gap=4.0, seed=1), streams(4, 5, gap=4.0, seed=2)
    found = compare_cosines(x, y, contrasts(4))
    expected = corrected_by_all_halvings(x[:, 0].numpy(), y[:, 0].numpy(), 4)
    assert float(found.corrected) == pytest.approx(expected)


def test_correction_takes_noise_away_and_the_naive_one_overshoots_on_shared_prompts() -> None:
    n, d, plain, corrected, naive = 16, 200, [], [], []
    for seed in range(12):
        # One true direction; half of the noise is the prompts' own and shared by both checkpoints.
        shared = noise(2 * n, 1, d, seed=1000 + seed)
        x, y = (streams(n, d, gap=4.0, seed=2 * seed + i) + shared for i in (0, 1))
        found = compare_cosines(x, y, contrasts(n, resamples=2))
        plain.append(float(found.cosine))
        corrected.append(float(found.corrected))
        naive.append(float(found.cosine / found.ceiling))
    assert np.mean(plain) < 0.85
    assert np.mean(corrected) == pytest.approx(1, abs=0.06)
    assert np.mean(naive) > 1.15  # the control: dividing by ceilings as though errors were independent


def test_ceilings_step_up_to_the_full_sample() -> None:
    n, d, cosines, ceilings, halves = 16, 200, [], [], []
    for seed in range(12):
        x, y = (streams(n, d, gap=5.0, seed=2 * seed + i) for i in (0, 1))  # independent noise
        found = compare_cosines(x, y, contrasts(n, resamples=2))
        cosines.append(float(found.cosine))
        ceilings.append(float(found.ceiling))
        halves.append(float(found.ceiling_a))
    assert np.mean(ceilings) == pytest.approx(np.mean(cosines), abs=0.04)
    assert np.mean(halves) < np.mean(cosines) - 0.08  # the control: halves are noisier
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    assert math.isnan(spearman_brown(-0.1))


def test_the_interval_covers_and_percentiles_would_not() -> None:
    n, d, seeds = 16, 100, range(60)
    found = []
    for seed in seeds:
        x, y = (streams(n, d, gap=3.0, seed=2 * seed + i) for i in (0, 1))
        found.append((compare_cosines(x, y, contrasts(n, resamples=80)), x, y))
    truth = float(np.mean([float(f.cosine) for f, _, _ in found]))
    covered = [float(f.low) <= truth <= float(f.high) for f, _, _ in found]
    assert np.mean(covered) >= 0.85
    drawn = contrasts(n, resamples=80)
    above = []
    for f, x, y in found:
        again = torch.nn.functional.cosine_similarity(
            drawn.resamples @ x[:, 0], drawn.resamples @ y[:, 0], dim=-1
        )
        above.append(float(f.cosine) > float(again.quantile(0.975)))
    assert np.mean(above) > 0.5  # the control: the percentile interval lies below its own estimate


@pytest.mark.parametrize("d", [8, 64, 576])
def test_the_random_floor_is_that_of_drawn_directions(d: int) -> None:
    a, b = noise(20000, d, seed=1), noise(20000, d, seed=2)
    drawn = torch.nn.functional.cosine_similarity(a, b, dim=-1).abs()
    mean, high = random_cosine(d)
    assert mean == pytest.approx(float(drawn.mean()), rel=0.03)
    assert high == pytest.approx(float(drawn.quantile(0.95)), rel=0.03)


# -- angles -----------------------------------------------------------------------------------------


def plain_subspace(x: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """Columns spanning the mean difference and the components of the positively weighted prompts."""
    d = weights @ x
    d = d / np.linalg.norm(d)
    p = np.maximum(weights, 0)
    rows = np.sqrt(p)[:, None] * (x - p @ x)
    rows = rows - np.outer(rows @ d, d)
    return np.column_stack([d, np.linalg.svd(rows, full_matrices=False)[2][: k - 1].T])


@pytest.mark.parametrize("k", [1, 2, 4])
def test_angles_equal_scipy(k: int) -> None:
    drawn = contrasts(9, 8, resamples=5)
    x, y = noise(17, 2, 12, seed=1), noise(17, 2, 12, seed=2)
    a, b = (subspaces(z, drawn, k=k) for z in (x, y))
    found = compare_subspaces(x, y, a, b)

    def plain(first: Any, second: Any, w: torch.Tensor, v: torch.Tensor) -> np.ndarray:
        spans = [plain_subspace(z.numpy(), u.numpy(), k) for z, u in ((first, w), (second, v))]
        return np.sort(np.rad2deg(scipy.linalg.subspace_angles(*spans)))

    for layer in range(2):
        s, t = x[:, layer], y[:, layer]
        value = plain(s, t, drawn.whole, drawn.whole)
        np.testing.assert_allclose(found.angle[layer], value, atol=1e-5)
        again = np.std([plain(s, t, w, w) for w in drawn.resamples], axis=0, ddof=1)
        np.testing.assert_allclose(found.low[layer], np.clip(value - 1.959964 * again, 0, 90), atol=1e-4)
        own = np.mean([plain(s, s, w, v) for w, v in zip(*drawn.halves, strict=True)], axis=0)
        np.testing.assert_allclose(found.ceiling_a[layer], own, atol=1e-4)
        control = np.mean([plain(s, t, w, w) for w in drawn.harmless], axis=0)
        np.testing.assert_allclose(found.harmless_floor[layer], control, atol=1e-4)


def test_one_dimension_is_the_cosine_and_the_subspace_holds_the_mean_difference() -> None:
    drawn, x, y = contrasts(8), streams(8, 6, gap=2.0, seed=1), streams(8, 6, gap=2.0, seed=2)
    one = compare_subspaces(x, y, subspaces(x, drawn, k=1), subspaces(y, drawn, k=1))
    cosine = compare_cosines(x, y, drawn).cosine
    torch.testing.assert_close(torch.cos(torch.deg2rad(one.angle[:, 0])), cosine.abs())
    basis = subspaces(x, drawn, k=3).whole[0, 0] @ (x[:, 0] - x[:, 0].mean(0))
    torch.testing.assert_close(basis @ basis.T, torch.eye(3, dtype=torch.float64))
    d = drawn.whole @ x[:, 0]
    torch.testing.assert_close(basis.T @ (basis @ d), d)
    # The control: a direction of its own is not in it.
    other = noise(6, seed=5)
    assert float((basis.T @ (basis @ other) - other).norm()) > 0.1


def test_equal_checkpoints_have_no_angle_and_flat_ones_no_subspace() -> None:
    drawn, x = contrasts(8), streams(8, 6, gap=2.0, seed=1)
    own = subspaces(x, drawn, k=3)
    found = compare_subspaces(x, x, own, own)
    assert float(found.angle.abs().max()) < 1e-3
    assert float(found.ceiling_a.min()) > 1
    flat = torch.ones_like(x)
    assert bool(torch.isnan(compare_subspaces(x, flat, own, subspaces(flat, drawn, k=3)).angle).all())


@pytest.mark.parametrize("k", [0, 5])
def test_a_subspace_must_fit_the_halves(k: int) -> None:
    with pytest.raises(MechsafetyError, match=f"subspaces of {k} dimensions: k must be 1 to 4"):
        subspaces(streams(8, 6, gap=1.0, seed=1), contrasts(8), k=k)


def test_random_angles_equal_scipys() -> None:
    d, k = 20, 3
    rng = np.random.default_rng(0)
    drawn = [
        np.sort(np.rad2deg(scipy.linalg.subspace_angles(rng.normal(size=(d, k)), rng.normal(size=(d, k)))))
        for _ in range(400)
    ]
    mean, low = random_angles(d, k=k, seed=1, draws=400)
    np.testing.assert_allclose(mean, np.mean(drawn, axis=0), atol=1.5)
    np.testing.assert_allclose(low, np.quantile(drawn, 0.05, axis=0), atol=3)


# -- CKA --------------------------------------------------------------------------------------------


def plain_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased HSIC as a sum over quadruples of distinct prompts (Song et al. 2012, eq. 4)."""
    k, m = x @ x.T, y @ y.T
    total, n = 0.0, len(x)
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    return plain_hsic(x, y) / math.sqrt(plain_hsic(x, x) * plain_hsic(y, y))


def harmful(n: int) -> torch.Tensor:
    return torch.arange(2 * n) < n


def test_cka_equals_the_sum_over_quadruples_and_its_jackknife() -> None:
    x = noise(10, 4, seed=1)
    y = x[:, :3] + 0.3 * noise(10, 3, seed=2) + 5
    found = compare_cka(x, y, harmful(5), seed=0)
    value = plain_cka(x.numpy(), y.numpy())
    assert found.cka == pytest.approx(value)
    assert linear_cka(x, y) == pytest.approx(value)
    without = np.array([plain_cka(np.delete(x.numpy(), i, 0), np.delete(y.numpy(), i, 0)) for i in range(10)])
    squares = [float(((part - part.mean()) ** 2).sum()) for part in (without[:5], without[5:])]
    error = math.sqrt(0.8 * sum(squares))
    assert found.low == pytest.approx(value - 1.959964 * error, abs=1e-6)
    assert found.high == pytest.approx(min(1.0, value + 1.959964 * error), abs=1e-6)


def test_cka_sees_neither_rotation_nor_scale_nor_shift_but_sees_a_permutation() -> None:
    x = noise(40, 8, seed=1)
    y = x @ noise(8, 6, seed=2) + 0.2 * noise(40, 6, seed=3)
    value = linear_cka(x, y)
    assert linear_cka(7 * x @ rotation(8) + 3, y) == pytest.approx(value)
    assert linear_cka(x, x @ rotation(8)) == pytest.approx(1)
    # The controls: permuted prompts, and a map that is no rotation.
    assert abs(linear_cka(x[torch.randperm(40, generator=torch.Generator().manual_seed(0))], y)) < 0.3 * value
    stretched = x * torch.tensor([30.0, *[1.0] * 7], dtype=torch.float64)
    assert linear_cka(stretched, y) != pytest.approx(value, abs=0.05)


def test_debiasing_matters_with_few_prompts_and_many_dimensions() -> None:
    x, y = noise(24, 500, seed=1), noise(24, 500, seed=2)
    found = compare_cka(x, y, harmful(12), seed=0)
    assert abs(found.cka) < 0.1
    assert found.low < 0 < found.high
    a, b = (z - z.mean(0) for z in (x, y))
    biased = float((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))
    assert biased > 0.9  # the control: the plain estimate calls noise alike


def test_floors_separate_class_separation_from_likeness() -> None:
    x, y = streams(20, 10, gap=6.0, seed=1)[:, 0], streams(20, 10, gap=6.0, seed=2)[:, 0]
    found = compare_cka(x, y, harmful(20), seed=0)
    assert found.cka == pytest.approx(found.class_floor, abs=0.05)  # alike in the classes only
    assert abs(found.floor) < 0.1 < found.class_floor
    assert found.floor_high > found.floor
    same = compare_cka(x, x, harmful(20), seed=0)
    assert same.cka == pytest.approx(1)
    assert same.class_floor < 0.95


def test_cka_of_what_does_not_differ_is_undefined() -> None:
    x = noise(12, 4, seed=1)
    assert math.isnan(linear_cka(x, torch.ones(12, 3)))
    assert math.isnan(compare_cka(torch.ones(12, 3), x, harmful(6), seed=0).cka)


# -- shared basis -----------------------------------------------------------------------------------

WORDS = {f"token{i}": i for i in range(300)}


def sample(seed: int, *, d: int = 64, n_layers: int = 4, moved: float = 0.0) -> EmbeddingSample:
    weight = noise(300, d, seed=seed) + moved * noise(300, d, seed=seed + 100)
    return sample_embedding(WORDS, weight.float(), n_layers=n_layers)


def test_unrelated_weights_share_no_basis_and_fine_tunes_do() -> None:
    apart = check_basis("a", sample(0), "b", sample(1))
    assert (apart.verdict, apart.comparable) == ("unrelated", False)
    assert abs(apart.correlation) < 0.05
    assert "a and b do not share a residual basis: their embeddings correlate at" in apart.reason
    tuned = check_basis("a", sample(0), "b", sample(0, moved=0.5))
    assert (tuned.verdict, tuned.comparable) == ("shared", True)
    assert tuned.correlation == pytest.approx(1 / math.sqrt(1.25), abs=0.02)
    assert check_basis("a", sample(0), "b", sample(0)).correlation == pytest.approx(1)


def test_one_ruling_direction_does_not_make_a_shared_basis() -> None:
    frequency = noise(300, 1, seed=7)  # both models encode it, along axes of their own
    worst = [
        check_basis(
            "a",
            sample_embedding(WORDS, frequency @ noise(1, 64, seed=s), n_layers=4),
            "b",
            sample_embedding(WORDS, frequency @ noise(1, 64, seed=s + 500), n_layers=4),
        )
        for s in range(50)
    ]
    assert all(basis.verdict == "unrelated" for basis in worst)
    assert max(abs(basis.correlation) for basis in worst) > 0.2  # the control: a fixed 0.2 would be fooled
    assert worst[0].threshold == pytest.approx(0.5)


def test_tokens_are_matched_by_their_text() -> None:
    weight = noise(300, 64, seed=0).float()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    shuffled = {f"token{i}": int(row) for i, row in enumerate(order.argsort().tolist())}
    same = check_basis(
        "a",
        sample_embedding(WORDS, weight, n_layers=4),
        "b",
        sample_embedding(shuffled, weight[order], n_layers=4),
    )
    assert same.correlation == pytest.approx(1)
    wrong = sample_embedding(WORDS, weight[order], n_layers=4)
    assert check_basis("a", sample_embedding(WORDS, weight, n_layers=4), "b", wrong).verdict == "unrelated"
    foreign = sample_embedding({f"other{i}": i for i in range(300)}, weight, n_layers=4)
    assert "0 sampled tokens in common" in check_basis("a", sample(0), "b", foreign).reason


def test_other_shapes_share_no_basis() -> None:
    basis = check_basis("a", sample(0), "b", sample(0, n_layers=6))
    assert (basis.verdict, basis.comparable) == ("other shape", False)
    assert basis.reason.startswith("a has 4 layers of 64 dimensions and b has 6 of 64")
    known = unchecked_basis("a", (4, 64), "b", (4, 64))
    assert (known.verdict, known.comparable) == ("unknown", True)
    assert "must be known" in known.reason
    with pytest.raises(
        MechsafetyError, match="a has 4 layers of 64 dimensions, b has 6 of 64; compare the models"
    ):
        unchecked_basis("a", (4, 64), "b", (6, 64))


def test_a_sample_checks_itself() -> None:
    with pytest.raises(ValueError, match="do not match"):
        EmbeddingSample(tokens=("a",), rows=torch.zeros(2, 3), n_layers=1)
