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
from mechsafety.regions.attribution import attribute
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.pruning import (
    count_of,
    prune,
    random_pruning,
    set_difference,
    top_entries,
    top_pruning,
    without,
)
from mechsafety.regions.removal import Pruning
from tests.regions.test_subspaces import examples


@pytest.fixture(scope="module")
def scored(tiny_folder: Callable[..., Any]) -> Callable[[str], Any]:
    from mechsafety.models.loading import load_model

    made: dict[str, Any] = {}

    def make(architecture: str) -> Any:
        if architecture not in made:
            model = load_model(str(tiny_folder(architecture)), dtype="float32", device="cpu")
            made[architecture] = (
                linear_maps(model),
                *(attribute(model, examples(seed, n=4)) for seed in (0, 1)),
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
