"""Ranks are those of W X, whichever side is decomposed, and taking them out does what the theorems say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answers import Example
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.maps import LinearMap, linear_maps
from mechsafety.regions.removal import LowRank
from mechsafety.regions.score_files import Attribution
from mechsafety.regions.subspaces import (
    left_subspaces,
    orthogonal_projection,
    orthogonal_projections,
    random_low_rank,
    rank_count,
    remove_bottom_ranks,
    remove_top_ranks,
)
from tests.conftest import WORDS
from tests.reference.plain_subspaces import left_singular, projected_out, raw_inputs


def examples(seed: int, n: int = 10, words: int = 14) -> list[Example]:
    draw = np.random.default_rng(seed).choice
    return [
        Example(prompt=" ".join(draw(WORDS, 4)), answer=" ".join(draw(WORDS, words)), whole=False)
        for _ in range(n)
    ]


@pytest.fixture(scope="module")
def scored(
    tiny_folder: Callable[..., Any],
) -> Callable[[str], tuple[Any, list[LinearMap], Attribution, Attribution]]:
    """A tiny model with its maps, a safety and a utility attribution; made once an architecture."""
    from mechsafety.models.loading import load_model

    made: dict[str, Any] = {}

    def make(architecture: str) -> Any:
        if architecture not in made:
            model = load_model(str(tiny_folder(architecture)), dtype="float32", device="cpu")
            scores = [score_weights(model, examples(seed)) for seed in (0, 1)]
            made[architecture] = (model, linear_maps(model), *scores)
        return made[architecture]

    return make


def fake(
    weight: torch.Tensor, x: torch.Tensor, *, n_tokens: int | None = None
) -> tuple[LinearMap, Attribution]:
    """One map with these weights, and the attribution of inputs ``x`` [d_in, token]."""
    from torch import nn

    from mechsafety.regions.map_places import Place

    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight
    name, shape = "blocks.0.up", (weight.shape[0], weight.shape[1])
    linear = LinearMap(
        name=name,
        layer=0,
        kind="up",
        site=f"{name}.in",
        module=module,
        rows=None,
        places=(Place(parameter=module.weight, rows=None, transposed=False),),
        d_out=shape[0],
        d_in=shape[1],
    )
    scores = Attribution(
        shapes={name: shape},
        sites={name: f"{name}.in"},
        n_examples=1,
        n_tokens=n_tokens or x.shape[1],
        loss="mean",
        positions="paper",
        tensors={f"gram/{name}.in": (x.double() @ x.double().T).float()},
    )
    return linear, scores


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(removal: LowRank, name: str) -> torch.Tensor:
    b, a = removal.factors[name]
    return b.double() @ a.double()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_streamed_subspaces_equal_the_svd_of_raw_activations(scored: Any, architecture: str) -> None:
    model, maps, safety, _ = scored(architecture)
    raw = raw_inputs(model, maps, examples(0))
    assert {m.d_out > m.d_in for m in maps} == {True, False}
    for m in maps:
        assert raw[m.name].shape == (m.d_in, safety.n_tokens)
        found = left_subspaces(m, safety)
        u, s = left_singular(m.weight(), raw[m.name])
        np.testing.assert_allclose(found.values.numpy(), s[: m.rank], rtol=0, atol=2e-4 * s[0])
        # The subspace is determined where the next singular value is smaller.
        for r in (1, 4, m.rank // 2):
            if s[r - 1] - s[r] < 0.01 * s[r]:
                continue
            mine = (found.top(r) @ found.top(r).T).numpy()
            np.testing.assert_allclose(mine, u[:, :r] @ u[:, :r].T, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_orthogonal_projection_equals_dense_projectors_on_raw_activations(
    scored: Any, architecture: str
) -> None:
    model, maps, safety, utility = scored(architecture)
    x_s, x_u = (raw_inputs(model, maps, examples(seed)) for seed in (0, 1))
    removal = orthogonal_projection(maps, safety, utility, r_u=0.75, r_s=0.875)
    for m in maps:
        r_u, r_s = m.rank * 3 // 4, m.rank * 7 // 8
        wanted = projected_out(m.weight(), x_s[m.name], x_u[m.name], r_s=r_s, r_u=r_u)
        assert removal.ranks()[m.name] == m.rank - r_s
        np.testing.assert_allclose(dense(removal, m.name).numpy(), wanted, atol=2e-4 * np.abs(wanted).max())


@settings(max_examples=25, deadline=None)
@given(
    d_out=st.integers(2, 14),
    d_in=st.integers(2, 14),
    data=st.data(),
)
def test_projectors_are_idempotent_and_removal_is_the_best_approximation(
    d_out: int, d_in: int, data: Any
) -> None:
    full = min(d_out, d_in)
    rank = data.draw(st.integers(1, full))
    seed = data.draw(st.integers(0, 1000))
    weight, x = noise(d_out, d_in, seed=seed), noise(d_in, 40, seed=seed + 1)
    linear, scores = fake(weight, x)
    found = left_subspaces(linear, scores)
    u = found.top(rank)
    p = u @ u.T
    torch.testing.assert_close(p @ p, p, atol=1e-9, rtol=0)
    assert int(torch.linalg.matrix_rank(p)) == rank
    # Eckart-Young: what U U^T keeps of W X misses the smallest possible part, the other singular values.
    outputs = weight.double() @ x.double()
    s = torch.linalg.svdvals(outputs)
    missed = float((outputs - p @ outputs).norm())
    assert missed == pytest.approx(float(s[rank:].norm()), abs=1e-3 * float(s[0]))
    q = torch.linalg.qr(noise(d_out, rank, seed=seed + 2).double()).Q
    other = float((outputs - q @ (q.T @ outputs)).norm())
    assert other >= missed - 1e-4 * float(s[0])
    # What is kept and the rest are the whole of W.
    rest = found.rest(rank)
    assert rest.shape[1] == full - rank
    whole = p @ found.weight + rest @ (rest.T @ found.weight)
    torch.testing.assert_close(whole, found.weight, atol=1e-7, rtol=0)


def test_a_random_subspace_misses_more_of_the_output() -> None:
    weight, x = noise(40, 16), noise(16, 200, seed=1) * torch.logspace(0, -3, 16)[:, None]
    linear, scores = fake(weight, x)
    bottom = remove_bottom_ranks([linear], scores, rank=8)
    chance = random_low_rank([linear], bottom, seed=0)
    assert chance.ranks() == bottom.ranks() == {linear.name: 8}
    losses = [float((dense(r, linear.name) @ x.double()).norm()) for r in (bottom, chance)]
    s = torch.linalg.svdvals(weight.double() @ x.double())
    assert losses[0] == pytest.approx(float(s[8:].norm()), rel=1e-2)
    assert losses[1] > 5 * losses[0]


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_top_and_bottom_ranks_make_up_the_whole(shape: tuple[int, int]) -> None:
    weight = noise(*shape)
    linear, scores = fake(weight, noise(shape[1], 300, seed=1))
    top = remove_top_ranks([linear], scores, rank=5)
    bottom = remove_bottom_ranks([linear], scores, rank=7)
    assert (top.ranks(), bottom.ranks()) == ({linear.name: 5}, {linear.name: 7})
    torch.testing.assert_close(
        dense(top, linear.name) + dense(bottom, linear.name), weight.double(), atol=1e-5, rtol=0
    )
    halves = remove_top_ranks([linear], scores, rank=0.5)
    assert halves.ranks() == {linear.name: 6}


def test_few_tokens_are_enough_for_what_they_determine() -> None:
    weight, x = noise(20, 12), noise(12, 6, seed=1)
    linear, scores = fake(weight, x)
    assert left_subspaces(linear, scores).determined == 6
    # Keeping the 4 best: 8 ranks go, exactly the rest of W, though 6 directions are arbitrary.
    bottom = remove_bottom_ranks([linear], scores, rank=8)
    u = left_singular(weight, x.double().numpy())[0][:, :4]
    wanted = weight.double().numpy() - u @ (u.T @ weight.double().numpy())
    assert bottom.ranks() == {linear.name: 8}
    np.testing.assert_allclose(dense(bottom, linear.name).numpy(), wanted, atol=1e-4)
    with pytest.raises(
        MechsafetyError, match=r"rank above tokens seen: blocks.0.up .* top 7 .* 6 calibration"
    ):
        remove_top_ranks([linear], scores, rank=7)
    with pytest.raises(MechsafetyError, match="rank above tokens seen"):
        remove_bottom_ranks([linear], scores, rank=5)
    with pytest.raises(MechsafetyError, match="rank above tokens seen"):
        orthogonal_projection([linear], scores, scores, r_u=11, r_s=5)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_bottom_ranks_of_inputs_of_lower_rank_are_undefined_beyond_it(shape: tuple[int, int]) -> None:
    """300 tokens in 5 dimensions determine 5 directions; which others would go first is arbitrary."""
    inputs = noise(shape[1], 5, seed=1) @ noise(5, 300, seed=2)
    linear, scores = fake(noise(*shape), inputs)
    with pytest.raises(
        MechsafetyError, match=r"undefined: 6 directions .* no more than 5 of 12: remove at least 7"
    ):
        remove_bottom_ranks([linear], scores, rank=6)
    # Up to there they are defined, and what is left answers the inputs as the whole does.
    bottom = remove_bottom_ranks([linear], scores, rank=7)
    lost = dense(bottom, linear.name) @ inputs.double()
    assert float(lost.norm()) < 1e-3 * float((linear.weight().double() @ inputs.double()).norm())


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_orthogonal_projection_leaves_what_utility_spans(shape: tuple[int, int]) -> None:
    weight = noise(*shape)
    linear, safety = fake(weight, noise(shape[1], 100, seed=1) * torch.linspace(0.1, 3, shape[1])[:, None])
    _, utility = fake(weight, noise(shape[1], 100, seed=2) * torch.linspace(3, 0.1, shape[1])[:, None])
    removal = orthogonal_projection([linear], safety, utility, r_u=8, r_s=9)
    taken = dense(removal, linear.name)
    needed = left_subspaces(linear, utility).top(4)
    assert float((needed.T @ taken).norm()) < 1e-5 * float(taken.norm())
    # Control: taking the safety directions out whole does touch it.
    whole = remove_top_ranks([linear], safety, rank=3)
    assert float((needed.T @ dense(whole, linear.name)).norm()) > 1e-2 * float(taken.norm())


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_nothing_is_left_to_take_when_utility_needs_all_that_safety_does(shape: tuple[int, int]) -> None:
    linear, scores = fake(noise(*shape), noise(shape[1], 100, seed=1))
    size = float(linear.weight().norm())
    for r_u, r_s in ((6, 6), (2, 9)):
        same = orthogonal_projection([linear], scores, scores, r_u=r_u, r_s=r_s)
        assert float(dense(same, linear.name).norm()) < 1e-6 * size
    other = orthogonal_projection([linear], scores, scores, r_u=9, r_s=6)
    assert float(dense(other, linear.name).norm()) > 0.1 * size


def test_several_settings_are_the_single_ones(scored: Any) -> None:
    _, maps, safety, utility = scored("llama")
    settings = [(0.5, 0.75), (0.9, 0.9)]
    several = orthogonal_projections(maps, safety, utility, ranks=settings, layers=[1, 2], kinds=["v", "up"])
    for (r_u, r_s), one in zip(settings, several, strict=True):
        single = orthogonal_projection(
            maps, safety, utility, r_u=r_u, r_s=r_s, layers=[1, 2], kinds=["v", "up"]
        )
        assert one.label == single.label
        assert set(one.factors) == {f"blocks.{i}.{k}" for i in (1, 2) for k in ("v", "up")}
        for name, (b, a) in one.factors.items():
            assert torch.equal(b, single.factors[name][0])
            assert torch.equal(a, single.factors[name][1])
        assert len(one.shapes) == len(maps)


def test_counts_above_a_small_matrix_ask_for_fractions(scored: Any) -> None:
    _, maps, safety, utility = scored("llama")  # keys and values have 16 outputs, the others rank 32
    with pytest.raises(
        MechsafetyError, match=r"r_u of blocks.0.k is 30, .* rank 16 at most.*give a fraction"
    ):
        orthogonal_projection(maps, safety, utility, r_u=30, r_s=15)
    fractions = orthogonal_projection(maps, safety, utility, r_u=0.9, r_s=0.95)
    assert set(fractions.ranks().values()) == {1, 2}


@pytest.mark.parametrize(
    ("rank", "told"),
    [
        (0, "at least 1"),
        (-3, "at least 1"),
        (0.0, "between 0 and 1"),
        (1.0, "between 0 and 1"),
        (33, "rank 32"),
    ],
)
def test_bad_ranks_are_reported(rank: Any, told: str) -> None:
    with pytest.raises(MechsafetyError, match=told):
        rank_count(rank, full=32, what="rank")
    assert [rank_count(r, full=32, what="rank") for r in (1, 32, 0.5, 0.01)] == [1, 32, 16, 0]


def test_random_subspaces_match_rank_or_energy(scored: Any) -> None:
    _, maps, safety, utility = scored("gpt2")
    removal = orthogonal_projection(maps, safety, utility, r_u=0.9, r_s=0.5)
    by_rank = random_low_rank(maps, removal, seed=0)
    again = random_low_rank(maps, removal, seed=0)
    other = random_low_rank(maps, removal, seed=1)
    assert by_rank.ranks() == removal.ranks()
    name = maps[0].name
    assert torch.equal(by_rank.factors[name][0], again.factors[name][0])
    assert not torch.allclose(by_rank.factors[name][0], other.factors[name][0])
    for m in maps:
        b, a = by_rank.factors[m.name]
        torch.testing.assert_close(b.T @ b, torch.eye(b.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(a, b.T @ m.weight(), atol=1e-4, rtol=0)

    def energies(r: LowRank) -> np.ndarray:
        return np.array([float(dense(r, m.name).norm() ** 2 / m.weight().norm() ** 2) for m in maps])

    by_energy = random_low_rank(maps, removal, seed=0, match="energy")
    gap = np.abs(energies(by_energy) - energies(removal))
    assert gap.max() < 0.15
    assert gap.mean() < np.abs(energies(by_rank) - energies(removal)).mean()


def test_haar_subspaces_lie_evenly() -> None:
    linear, scores = fake(noise(6, 8), noise(8, 50, seed=1))
    like = remove_top_ranks([linear], scores, rank=2)
    mean = torch.zeros(6, 6)
    for seed in range(600):
        b, _ = random_low_rank([linear], like, seed=seed).factors[linear.name]
        mean += b @ b.T / 600
    torch.testing.assert_close(mean, torch.eye(6) / 3, atol=0.06, rtol=0)


def test_scores_of_another_model_are_refused(scored: Any) -> None:
    _, maps, _, _ = scored("llama")
    _, _, safety, _ = scored("gpt2")
    with pytest.raises(MechsafetyError, match="made for another model"):
        remove_top_ranks(maps, safety, rank=1)
    with pytest.raises(MechsafetyError, match=r"no layer 9: .* 0, 1, 2, 3"):
        remove_top_ranks(maps, safety, rank=1, layers=[9])
