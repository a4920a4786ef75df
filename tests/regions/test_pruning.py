"""Top sets have exact sizes, and what is removed is the difference it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.pruning import (
    count_of,
    magnitude_strata,
    matched_pruning,
    prune,
    random_pruning,
    set_difference,
    top_entries,
    top_pruning,
    without,
)
from mechsafety.regions.removal import Pruning
from tests.regions.test_subspaces import examples, fake


@pytest.fixture(scope="module")
def scored(tiny_folder: Callable[..., Any]) -> Callable[[str], Any]:
    from mechsafety.models.loading import load_model

    made: dict[str, Any] = {}

    def make(architecture: str) -> Any:
        if architecture not in made:
            model = load_model(str(tiny_folder(architecture)), dtype="float32", device="cpu")
            made[architecture] = (
                linear_maps(model),
                *(score_weights(model, examples(seed, n=4)) for seed in (0, 1)),
            )
        return made[architecture]

    return make


def plain_top(scores: np.ndarray, count: int) -> list[int]:
    """Places of the ``count`` largest, the earlier first among equals."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


matrices = st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(0, 10_000), st.booleans()).map(
    lambda t: (
        torch.randint(0, 4, (t[0], t[1]), generator=torch.Generator().manual_seed(t[2])).float()
        if t[3]  # many equal scores
        else torch.rand(t[0], t[1], generator=torch.Generator().manual_seed(t[2]))
    )
)


@settings(max_examples=80, deadline=None)
@given(scores=matrices, percent=st.one_of(st.integers(1, 100), st.floats(0.01, 100)))
def test_top_entries_are_a_full_sorts_with_ties_by_place(scores: torch.Tensor, percent: float) -> None:
    flat, width = scores.flatten().numpy(), scores.shape[1]
    found = top_entries(scores, percent, "matrix")
    assert found.tolist() == plain_top(flat, count_of(flat.size, percent))
    by_row = top_entries(scores, percent, "row")
    wanted = [
        i * width + j
        for i, row in enumerate(scores)
        for j in plain_top(row.numpy(), count_of(width, percent))
    ]
    assert by_row.tolist() == wanted


def test_shares_are_rounded_to_the_nearest_entry_halves_up() -> None:
    assert [count_of(576, 1), count_of(50, 1), count_of(49, 1), count_of(10, 100)] == [6, 1, 0, 10]
    assert len(top_entries(torch.rand(7, 7), 0.5, "matrix")) == 0
    assert top_entries(torch.rand(3, 4), 100, "row").tolist() == list(range(12))


@settings(max_examples=60, deadline=None)
@given(a=matrices, seed=st.integers(0, 1000), q=st.integers(1, 100))
def test_sparsity_at_equal_shares_equals_the_jaccard_index(a: torch.Tensor, seed: int, q: int) -> None:
    b = torch.rand(a.shape, generator=torch.Generator().manual_seed(seed))
    safe, useful = top_entries(a, q, "matrix"), top_entries(b, q, "matrix")
    if not len(safe):
        return
    common = len(set(safe.tolist()) & set(useful.tolist()))
    jaccard = common / (len(safe) + len(useful) - common)
    left = len(without(safe, useful, size=a.numel())) / a.numel()
    assert left == pytest.approx(len(safe) / a.numel() * (1 - 2 * jaccard / (1 + jaccard)), abs=1e-12)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["snip", "wanda"])
def test_the_identity_holds_for_every_map_of_a_model(scored: Any, architecture: str, method: Any) -> None:
    maps, safety, utility = scored(architecture)
    removal = set_difference(maps, safety, utility, method=method, p=5, q=5)
    for m in maps:
        safe, useful = (top_entries(x.scores(m, method), 5, "matrix") for x in (safety, utility))
        size = m.d_out * m.d_in
        assert len(safe) == len(useful) == int(size * 0.05 + 0.5)
        common = np.intersect1d(safe, useful).size
        jaccard = common / (2 * len(safe) - common)
        assert 0 < jaccard < 1
        share = removal.counts()[m.name] / size
        assert share == pytest.approx(len(safe) / size * (1 - 2 * jaccard / (1 + jaccard)))
        assert set(removal.entries[m.name].tolist()) == set(safe.tolist()) - set(useful.tolist())


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_pruning_takes_the_lowest_and_top_pruning_the_highest(scored: Any, group: Any) -> None:
    maps, safety, utility = scored("llama")
    low = prune(maps, utility, method="wanda", percent=25, group=group)
    high = top_pruning(maps, safety, method="wanda", q=25, group=group)
    for m in maps:
        for removal, scores, sign in ((low, utility, -1), (high, safety, 1)):
            values = (sign * scores.scores(m, "wanda")).numpy()
            gone = np.zeros(values.size, bool)
            gone[removal.entries[m.name].numpy()] = True
            gone = gone.reshape(values.shape)
            groups = zip(values, gone, strict=True) if group == "row" else [(values, gone)]
            for v, g in groups:
                assert g.sum() == v.size // 4
                assert v[g].min() >= v[~g].max()
    assert low.sparsity == high.sparsity == 0.25


def test_layers_and_kinds_restrict_what_is_removed(scored: Any) -> None:
    maps, safety, utility = scored("gpt2")
    some = set_difference(maps, safety, utility, method="snip", p=5, q=5, layers=[1, 3], kinds=["q", "down"])
    assert {n for n, c in some.counts().items() if c} == {
        "blocks.1.q",
        "blocks.3.q",
        "blocks.1.down",
        "blocks.3.down",
    }
    assert len(some.shapes) == len(maps)
    everything = set_difference(maps, safety, utility, method="snip", p=5, q=5)
    for name, places in some.entries.items():
        assert torch.equal(places, everything.entries[name])
    with pytest.raises(MechsafetyError, match=r"no kind 'gate': .* down, k, o, q, up, v"):
        prune(maps, utility, method="snip", percent=1, kinds=["gate"])
    with pytest.raises(MechsafetyError, match="no layer was named"):
        prune(maps, utility, method="snip", percent=1, layers=[])


@pytest.mark.parametrize("bad", [0, -1, 100.5, 101, float("nan")])
def test_shares_outside_0_to_100_are_refused(scored: Any, bad: float) -> None:
    maps, safety, utility = scored("llama")
    for p, q, name in ((bad, 1, "p"), (1, bad, "q")):
        with pytest.raises(MechsafetyError, match=rf"{name} is .* percentage, above 0 and at most 100"):
            set_difference(maps, safety, utility, method="snip", p=p, q=q)
    with pytest.raises(MechsafetyError, match="percent is"):
        prune(maps, utility, method="snip", percent=bad)
    with pytest.raises(MechsafetyError, match="q is"):
        top_pruning(maps, safety, method="snip", q=bad)
    with pytest.raises(MechsafetyError, match="share is"):
        top_entries(torch.rand(2, 2), bad, "row")


def test_an_empty_difference_names_its_shares(scored: Any) -> None:
    maps, safety, _ = scored("llama")
    with pytest.raises(MechsafetyError, match=r"set difference p=2 q=1 .* empty"):
        set_difference(maps, safety, safety, method="snip", p=2, q=1)
    with pytest.raises(MechsafetyError, match=r"set difference p=100 q=3.5 .* empty"):
        set_difference(maps, safety, scored("llama")[2], method="snip", p=100, q=3.5)


def test_scores_without_an_order_are_refused() -> None:
    scores = torch.rand(3, 3)
    scores[1, 1] = float("nan")
    with pytest.raises(MechsafetyError, match="NaN or infinite"):
        top_entries(scores, 10, "row")


def test_scores_of_another_model_are_refused(scored: Any) -> None:
    maps, safety, _ = scored("llama")
    with pytest.raises(MechsafetyError, match="made for another model"):
        set_difference(maps, safety, scored("gpt2")[2], method="snip", p=1, q=1)


def test_random_sets_match_in_number_and_nothing_else(scored: Any) -> None:
    maps, safety, utility = scored("llama")
    like = set_difference(maps, safety, utility, method="snip", p=10, q=10)
    drawn = random_pruning(like, seed=3)
    assert drawn.counts() == like.counts()
    assert all(torch.equal(drawn.entries[n], random_pruning(like, seed=3).entries[n]) for n in drawn.entries)
    assert any(
        not torch.equal(drawn.entries[n], random_pruning(like, seed=4).entries[n]) for n in drawn.entries
    )
    by_row = random_pruning(like, seed=3, group="row")
    rows_differ = False
    for m in maps:
        counts = [
            np.bincount(r.entries[m.name].numpy() // m.d_in, minlength=m.d_out) for r in (like, by_row, drawn)
        ]
        np.testing.assert_array_equal(counts[0], counts[1])
        rows_differ |= (counts[0] != counts[2]).any()
        for r in (drawn, by_row):
            assert (np.diff(r.entries[m.name].numpy()) > 0).all()
    assert rows_differ


@pytest.mark.parametrize("group", ["row", "matrix"])
def test_random_sets_are_uniform(group: Any) -> None:
    like = Pruning(label="x", entries={"m": torch.tensor([0, 1, 4, 5])}, shapes={"m": (4, 4)})
    hits = np.zeros(16)
    for seed in range(2000):
        hits[random_pruning(like, seed=seed, group=group).entries["m"].numpy()] += 1 / 2000
    wanted = np.repeat([0.5, 0.5, 0, 0], 4) if group == "row" else np.full(16, 0.25)
    np.testing.assert_allclose(hits, wanted, atol=0.05)


# -- random sets of as large weights ----------------------------------------------------------------


def heavy(*shape: int, seed: int = 0) -> torch.Tensor:
    """Weights with outliers: Student's t with three degrees of freedom."""
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, shape).astype(np.float32))


def of(weight: torch.Tensor, places: Any) -> tuple[Pruning, list[Any]]:
    """A removal of these places of one map, and the map."""
    linear, _ = fake(weight, torch.ones(weight.shape[1], 1))
    chosen = torch.as_tensor(np.sort(np.asarray(places)))
    return Pruning(label="x", entries={linear.name: chosen}, shapes={linear.name: tuple(weight.shape)}), [
        linear
    ]


def drawn_from(like: Pruning, maps: list[Any], *, seed: int = 0, strata: int = 20) -> np.ndarray:
    return matched_pruning(like, maps, seed=seed, strata=strata).entries[maps[0].name].numpy()


def kolmogorov(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance of two empirical distributions."""
    points = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def plain_strata(sizes: np.ndarray, removed: np.ndarray, strata: int) -> list[int]:
    """The stratum of every weight, one by one."""
    own = sorted(sizes[removed])
    number = max(1, min(strata, len(own) // 2))
    edges = [own[k * len(own) // number] for k in range(1, number)]
    return [-1 if not own[0] <= s <= own[-1] else sum(s >= edge for edge in edges) for s in sizes]


KINDS_OF_REMOVAL: dict[str, Any] = {
    "largest": lambda size, rng: np.argsort(size)[-50:],
    "smallest": lambda size, rng: np.argsort(size)[:60],
    "by chance": lambda size, rng: rng.choice(len(size), 333, replace=False),
    "large rather than small": lambda size, rng: np.argsort(size * rng.random(len(size)))[-200:],
    "five": lambda size, rng: np.argsort(size * rng.random(len(size)))[-5:],
    "one": lambda size, rng: np.array([7]),
}


@pytest.mark.parametrize("kind", KINDS_OF_REMOVAL)
@pytest.mark.parametrize("strata", [1, 20])
def test_matched_sets_have_the_removals_counts_in_each_stratum(kind: str, strata: int) -> None:
    weight = heavy(50, 100)
    sizes = weight.abs().flatten().numpy()
    like, maps = of(weight, KINDS_OF_REMOVAL[kind](sizes, np.random.default_rng(1)))
    removed = like.entries[maps[0].name].numpy()
    plain = np.array(plain_strata(sizes, removed, strata))
    np.testing.assert_array_equal(magnitude_strata(sizes, removed, strata), plain)
    counts = np.bincount(plain[removed])
    assert (counts >= min(2, len(removed))).all()
    for seed in range(3):
        drawn = drawn_from(like, maps, seed=seed, strata=strata)
        assert (np.diff(drawn) > 0).all()
        assert (plain[drawn] >= 0).all()
        np.testing.assert_array_equal(np.bincount(plain[drawn]), counts)
        np.testing.assert_array_equal(drawn, drawn_from(like, maps, seed=seed, strata=strata))


@pytest.mark.parametrize("method", ["snip", "wanda"])
def test_counts_of_every_map_of_a_model(scored: Any, method: Any) -> None:
    maps, safety, utility = scored("gpt2")
    like = set_difference(maps, safety, utility, method=method, p=10, q=10)
    drawn = matched_pruning(like, maps, seed=3)
    assert drawn.counts() == like.counts()
    assert drawn.shapes == like.shapes
    assert any(not torch.equal(drawn.entries[n], like.entries[n]) for n in like.entries)


@pytest.mark.parametrize("kind", ["largest", "smallest", "large rather than small", "by chance"])
def test_sizes_are_distributed_as_the_removed_ones(kind: str) -> None:
    weight = heavy(100, 200)
    sizes = weight.abs().flatten().numpy()
    like, maps = of(weight, KINDS_OF_REMOVAL[kind](sizes, np.random.default_rng(1)))
    removed = like.entries[maps[0].name].numpy()
    for seed in range(3):
        drawn = drawn_from(like, maps, seed=seed)
        # Both have the same share below every edge, and a stratum holds a twentieth, rounded up to whole weights.
        assert kolmogorov(sizes[removed], sizes[drawn]) <= 1 / 20 + 1 / len(removed)
        assert sizes[drawn].mean() == pytest.approx(sizes[removed].mean(), rel=0.05)
        # The control: a plain draw has another distribution, unless the removal is one itself.
        plain = random_pruning(like, seed=seed).entries[maps[0].name].numpy()
        assert (kolmogorov(sizes[removed], sizes[plain]) > 0.3) is (kind != "by chance")


def test_the_largest_weights_have_no_control_but_themselves() -> None:
    weight = heavy(50, 100)
    order = np.argsort(weight.abs().flatten().numpy())
    like, maps = of(weight, order[-50:])
    assert set(drawn_from(like, maps)) == set(order[-50:])
    # The control: every second of the largest has.
    like, maps = of(weight, order[-100::2])
    assert set(drawn_from(like, maps)) != set(order[-100::2])


def test_matched_sets_are_uniform_within_a_stratum() -> None:
    # Two strata of removed sizes, [2, 5] and [6, 9]: of four weights, and of eight.
    small, large = [2.0, 5.0, 3.0, -4.0], [6.0, 9.0, -7.0, 7.5, 8.0, -8.5, 6.5, 6.25]
    outside = [1.0, -1.5, 9.5, -20.0]
    weight = torch.tensor([*small, *large, *outside])[:, None]
    like, maps = of(weight, [0, 1, 4, 5])
    hits = np.zeros(len(weight))
    for seed in range(3000):
        hits[drawn_from(like, maps, seed=seed)] += 1 / 3000
    np.testing.assert_allclose(hits, np.repeat([0.5, 0.25, 0], [4, 8, 4]), atol=0.04)


@pytest.mark.parametrize("factor", [2.0**-20, 3.0, 1e4])
def test_scale_and_sign_of_the_weights_change_no_draw(factor: float) -> None:
    weight = heavy(40, 50)
    places = np.argsort(weight.abs().flatten().numpy() * np.random.default_rng(2).random(2000))[-150:]
    drawn = drawn_from(*of(weight, places))
    signs = torch.from_numpy(np.random.default_rng(3).choice([-1.0, 1.0], weight.shape))
    np.testing.assert_array_equal(drawn, drawn_from(*of(weight.double() * factor * signs, places)))
    # The control: another order of sizes changes it.
    assert set(drawn) != set(drawn_from(*of(weight.flip(0), places)))


def test_of_equal_weights_a_matched_draw_is_a_plain_one() -> None:
    like, maps = of(0.5 * torch.ones(20, 30), np.arange(45))
    for seed in range(3):
        plain = random_pruning(like, seed=seed).entries[maps[0].name].numpy()
        np.testing.assert_array_equal(drawn_from(like, maps, seed=seed), plain)


def test_maps_that_lose_nothing_and_maps_of_another_model(scored: Any) -> None:
    maps, safety, utility = scored("llama")
    like = set_difference(maps, safety, utility, method="snip", p=5, q=5, kinds=["q"])
    empty = Pruning(
        label="x",
        entries={**like.entries, "blocks.0.up": torch.zeros(0, dtype=torch.int32)},
        shapes=like.shapes,
    )
    assert matched_pruning(empty, maps, seed=0).counts() == like.counts()
    with pytest.raises(MechsafetyError, match="other linear maps"):
        matched_pruning(like, scored("gpt2")[0], seed=0)
