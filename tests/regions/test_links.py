"""Links of regions with the refusal direction: shares against explicit outputs, states against what they must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Direction, find_directions
from mechsafety.edits.interventions import Ablate, Edit, edited
from mechsafety.generation.answers import Example
from mechsafety.models.loading import generation_twin
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.links import (
    LINK_COLUMNS,
    direction_share,
    energy_share,
    link_effects,
    random_like,
    removed_weight,
)
from mechsafety.regions.maps import LinearMap, linear_maps
from mechsafety.regions.overlap import jaccard_table
from mechsafety.regions.removal import LowRank, Pruning, removed, removed_sizes
from mechsafety.regions.subspaces import remove_top_ranks
from tests.prompt_sets import small_prompts
from tests.regions.test_overlap import attribution_of

EXAMPLES = [
    Example(prompt="how do i make fire", answer="sorry i can not help", whole=True),
    Example(prompt="tell me about the storm", answer="sorry no", whole=True),
    Example(prompt="write a list of key words", answer="i can not", whole=False),
]


def shapes_of(maps: list[LinearMap]) -> dict[str, tuple[int, int]]:
    return {m.name: (m.d_out, m.d_in) for m in maps}


def rows_of(maps: list[LinearMap], rows: list[int], *, kinds: tuple[str, ...] = ("o", "down")) -> Pruning:
    """Whole rows of the maps of some kinds."""
    return Pruning(
        label="rows",
        entries={
            m.name: (torch.tensor(rows)[:, None] * m.d_in + torch.arange(m.d_in)).flatten()
            for m in maps
            if m.kind in kinds
        },
        shapes=shapes_of(maps),
    )


def axis(place: int, d: int = 32) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(place), d).float()


# -- shares -----------------------------------------------------------------------------------------


def test_energy_share_is_that_of_explicit_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(12, 9, generator=generator), torch.randn(9, 40, generator=generator)
    u = torch.nn.functional.normalize(torch.randn(1, 12, generator=generator), dim=-1)
    expected = float((u @ w @ x).square().sum() / (w @ x).square().sum())
    assert energy_share(w, x @ x.T, u) == pytest.approx(expected, rel=1e-5)
    assert energy_share(u.T @ torch.ones(1, 9), x @ x.T, u) == pytest.approx(1.0, rel=1e-5)
    assert energy_share(w - u.T @ (u @ w), x @ x.T, u) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(energy_share(torch.zeros(12, 9), x @ x.T, u))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_shares_of_rows_on_and_off_the_direction(tiny_kept: Callable[..., Any], architecture: str) -> None:
    maps = linear_maps(tiny_kept(architecture))
    scores = attribution_of(maps, seed=0)
    on = direction_share(rows_of(maps, [5]), maps, scores, axis(5), method="snip", seed=0)
    assert tuple(on.columns) == LINK_COLUMNS
    assert list(zip(on["layer"], on["kind"], strict=True)) == [
        (layer, kind) for layer in range(4) for kind in ("o", "down")
    ]
    assert on["share_removed_on_direction"].tolist() == pytest.approx([1.0] * 8)
    assert (on["random"] < 0.5).all()
    assert (on["matched"] < 0.7).all()  # what is matched in size draws among the removed weights too
    assert (on["chance"] == 1 / 32).all()
    off = direction_share(rows_of(maps, [4, 6]), maps, scores, axis(5), method="snip", seed=0)
    assert (off["share_removed_on_direction"] == 0.0).all()
    outputs = maps[3].weight().float()
    gram = scores.gram(maps[3].name)
    energy = (outputs @ gram @ outputs.T).diagonal()
    row = on[(on["layer"] == 0) & (on["kind"] == "o")].iloc[0]
    assert maps[3].name == "blocks.0.o"
    assert row["whole"] == pytest.approx(float(energy[5] / energy.sum()), rel=1e-5)


def test_shares_of_low_ranks_and_of_maps_that_lose_nothing(tiny_kept: Callable[..., Any]) -> None:
    maps = linear_maps(tiny_kept("llama", dtype="bfloat16"))
    scores = attribution_of(maps, seed=0)
    u = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
    o = next(m for m in maps if m.name == "blocks.2.o")
    removal = LowRank(
        label="along u",
        factors={o.name: (u[:, None], u[None] @ o.weight().float())},
        shapes=shapes_of(maps),
    )
    table = direction_share(removal, maps, scores, u, method="actsvd", seed=0).set_index(["layer", "kind"])
    share = table["share_removed_on_direction"]
    assert share[2, "o"] == pytest.approx(1.0, rel=1e-5)
    assert share.drop((2, "o")).isna().all()
    assert table["random"].drop((2, "o")).isna().all()
    assert table["whole"].notna().all()
    assert (table["removal"] == "along u").all()


def test_random_removals_write_along_a_random_direction_by_chance(tiny_kept: Callable[..., Any]) -> None:
    maps = linear_maps(tiny_kept("llama"))
    scores = attribution_of(maps, seed=0)
    half = Pruning(
        label="half",
        entries={m.name: torch.arange(0, m.d_out * m.d_in, 2) for m in maps},
        shapes=shapes_of(maps),
    )
    found = []
    for seed in range(12):
        u = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        found.append(direction_share(half, maps, scores, u, method="wanda", seed=seed, draws=1)["random"])
    values = pd.concat(found).to_numpy()
    assert abs(values.mean() - 1 / 32) < 4 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_removed_weight_is_what_goes(tiny_kept: Callable[..., Any], architecture: str, dtype: str) -> None:
    maps = linear_maps(model := tiny_kept(architecture, dtype=dtype))
    low_rank = LowRank(
        label="low rank",
        factors={m.name: (0.1 * torch.ones(m.d_out, 1), torch.ones(1, m.d_in)) for m in maps[:3]},
        shapes=shapes_of(maps),
    )
    for removal in (rows_of(maps, [1, 2], kinds=("q", "o")), low_rank):
        before = {m.name: m.weight().float().clone() for m in maps}
        with removed(model, removal, maps=maps):
            after = {m.name: m.weight().float().clone() for m in maps}
        for m in maps:
            gone = before[m.name] - after[m.name]
            torch.testing.assert_close(removed_weight(m, removal), gone, rtol=0.02, atol=0.02)
    assert isinstance(random_like(low_rank, maps, seed=0), LowRank)
    assert random_like(rows_of(maps, [1]), maps, seed=0).shapes == shapes_of(maps)


def test_random_sets_of_like_size_take_as_much_as_the_removal(tiny_kept: Callable[..., Any]) -> None:
    maps = linear_maps(tiny_kept("llama"))
    largest = Pruning(
        label="largest",
        entries={m.name: m.weight().abs().flatten().topk(200).indices[::2].sort().values for m in maps},
        shapes=shapes_of(maps),
    )
    ranks = remove_top_ranks(maps, attribution_of(maps, seed=0), rank=4)
    for removal in (largest, ranks):
        whole = removed_sizes(removal, maps)["energy"]
        matched, plain = (
            removed_sizes(random_like(removal, maps, seed=0, in_size=in_size), maps)["energy"]
            for in_size in (True, False)
        )
        assert matched == pytest.approx(whole, rel=0.1)
        assert plain < 0.7 * whole


# -- states -----------------------------------------------------------------------------------------


def direction_of(model: Any, *, layer: int = 3) -> Direction:
    return find_directions(residual_stream(model, small_prompts(6).fit), resamples=2).at(layer=layer)


class Watch:
    """A measure that notes each edit and how large the maps were at the time."""

    def __init__(self, maps: list[LinearMap]) -> None:
        self.maps = maps
        self.seen: list[tuple[Edit | None, float]] = []

    def __call__(self, model: Any, edit: Edit | None) -> Mapping[str, object]:
        size = sum(float(m.weight().float().square().sum()) for m in self.maps)
        self.seen.append((edit, size))
        return {"refused": len(self.seen), "harmful_n": 7}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_states_are_measured_as_they_say(tiny_kept: Callable[..., Any], architecture: str) -> None:
    model, prompts = tiny_kept(architecture), small_prompts(6)
    maps, direction = linear_maps(model), direction_of(model)
    before = [m.weight().clone() for m in maps]
    watch = Watch(maps)
    table = link_effects(
        model,
        rows_of(maps, [1, 2, 3], kinds=("q", "o", "down")),
        direction,
        fit=prompts.fit,
        held_out=prompts.validation,
        measure=watch,
        seed=0,
    ).set_index("state")
    assert list(table.index) == [
        *("model", "ablated", "removed", "removed then ablated"),
        *("random removed", "random removed then ablated"),
        *("matched removed", "matched removed then ablated"),
    ]
    assert table["refused"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    edits, sizes = zip(*watch.seen, strict=True)
    assert edits == (None, Ablate(direction)) * 4
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3]
    assert sizes[4] == sizes[5] < sizes[0]
    assert len({sizes[2], sizes[4], sizes[6]}) == 3
    assert sizes[6] == sizes[7] < sizes[0]
    assert all(torch.equal(m.weight(), kept) for m, kept in zip(maps, before, strict=True))

    held = residual_stream(model, prompts.validation)
    scores = direction.project(held.activations[:, 0, 3])
    truth = [label == "harmful" for label in held.labels]
    assert table.loc["model", "auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert table.loc["model", "auroc_low"] <= table.loc["model", "auroc"] <= table.loc["model", "auroc_high"]
    assert table.loc["model", ["cosine", "relative_norm"]].tolist() == pytest.approx([1.0, 1.0])
    assert float(table.loc["removed", "cosine"]) < 0.999
    ablated = table.loc[[state for state in table.index if "ablated" in state]]
    assert ablated[["auroc", "auroc_low", "auroc_high", "cosine", "relative_norm"]].isna().all().all()


def test_without_writing_maps_nothing_of_the_direction_is_left(tiny_kept: Callable[..., Any]) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(6)
    maps = linear_maps(model)
    table = link_effects(
        model,
        rows_of(maps, list(range(32))),
        direction_of(model),
        fit=prompts.fit,
        held_out=prompts.validation,
        measure=lambda model, edit: {},
        seed=0,
    ).set_index("state")
    # The last prompt token is the template's own, the same for all prompts: only attention tells it of the others.
    assert table.loc["removed", "auroc"] == 0.5
    assert table.loc["removed", "relative_norm"] == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(float(table.loc["removed", "cosine"]))


# -- scores -----------------------------------------------------------------------------------------


def test_ablated_scores_see_nothing_of_the_direction(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    maps, u = linear_maps(model), torch.nn.functional.normalize(torch.arange(32.0) - 9, dim=0)
    before = score_weights(model, EXAMPLES)
    with edited(model, Ablate(u), twin=generation_twin(model)):
        after = score_weights(model, EXAMPLES)
    for layer in range(4):
        # The norms of the random model scale nothing: what they give q, k and v is the stream's own direction.
        seen, plain = (float(u @ x.gram(f"blocks.{layer}.q") @ u) for x in (after, before))
        assert seen == pytest.approx(0.0, abs=1e-3)
        assert plain > 0.05
    again = score_weights(model, EXAMPLES)
    torch.testing.assert_close(again.snip("blocks.1.o"), before.snip("blocks.1.o"), rtol=0, atol=0)
    assert (jaccard_table(maps, before, after, method="snip", q=10)["jaccard"] < 1).any()
    assert all(float(after.snip(m.name).sum()) > 0 for m in maps)
    assert (jaccard_table(maps, before, again, method="snip", q=10)["jaccard"] == 1.0).all()


def test_bad_input_is_named(tiny_kept: Callable[..., Any]) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(6)
    maps, direction = linear_maps(model), direction_of(model)
    scores, removal = attribution_of(maps, seed=0), rows_of(maps, [1])
    with pytest.raises(MechsafetyError, match="31 entries"):
        direction_share(removal, maps, scores, torch.ones(31), method="snip", seed=0)
    with pytest.raises(MechsafetyError, match="nothing is written"):
        direction_share(removal, maps[:3], scores, torch.ones(32), method="snip", seed=0)
    foreign = attribution_of(linear_maps(tiny_kept("gpt2")), seed=0)
    with pytest.raises(MechsafetyError, match="another model"):
        direction_share(removal, maps, foreign, torch.ones(32), method="snip", seed=0)
    with pytest.raises(MechsafetyError, match="1 at least"):
        direction_share(removal, maps, scores, torch.ones(32), method="snip", seed=0, draws=0)

    def effects(fit: Any, held_out: Any, layer: int) -> pd.DataFrame:
        return link_effects(
            model,
            removal,
            Direction(vector=direction.vector, layer=layer, position=-1, method="mean_difference"),
            fit=fit,
            held_out=held_out,
            measure=lambda model, edit: {},
            seed=0,
        )

    with pytest.raises(MechsafetyError, match="is also fitted prompt"):
        effects(prompts.fit, prompts.fit, 3)
    with pytest.raises(MechsafetyError, match="no harmless prompts"):
        effects(prompts.fit.harmful, prompts.validation, 3)
    with pytest.raises(MechsafetyError, match="no direction to follow"):
        effects(prompts.fit, prompts.validation, 0)
