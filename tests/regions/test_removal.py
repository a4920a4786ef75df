"""What is taken out is felt by everything that runs the model, and is back bit for bit afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate
from mechsafety.generation.completions import generate
from mechsafety.models.loading import load_model
from mechsafety.regions.links import removed_weight
from mechsafety.regions.maps import LinearMap, linear_maps
from mechsafety.regions.pruning import shapes_of
from mechsafety.regions.removal import LowRank, Pruning, Removal, removed, removed_sizes
from tests.kept_models import shared
from tests.prompt_sets import small_prompts
from tests.regions.test_maps import FUSED, IDS, both_logits, folders

__all__ = ["folders"]

ARCHITECTURES = ("llama", "gpt2", "gemma2", *FUSED)


@pytest.fixture
def load(folders: Callable[..., Any]) -> Callable[..., Any]:
    def loaded(architecture: str, dtype: str = "float32") -> Any:
        folder = str(folders(architecture))
        return shared((folder, dtype), lambda: load_model(folder, dtype=dtype, device="cpu"))

    return loaded


def pruning(maps: list[LinearMap], *, seed: int = 0, share: float = 0.2, names: Any = None) -> Pruning:
    generator = torch.Generator().manual_seed(seed)
    chosen = [m for m in maps if names is None or m.name in names]
    entries = {
        m.name: (torch.rand(m.d_out * m.d_in, generator=generator) < share).nonzero().flatten()
        for m in chosen
    }
    return Pruning(label=f"some {seed}", entries=entries, shapes=shapes_of(maps))


def low_rank(maps: list[LinearMap], *, seed: int = 0, rank: int = 2, names: Any = None) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    chosen = [m for m in maps if names is None or m.name in names]
    factors = {
        m.name: (
            0.3 * torch.randn(m.d_out, rank, generator=generator),
            0.3 * torch.randn(rank, m.d_in, generator=generator),
        )
        for m in chosen
    }
    return LowRank(label=f"low rank {seed}", factors=factors, shapes=shapes_of(maps))


MAKERS: dict[str, Callable[..., Removal]] = {"pruning": pruning, "low rank": low_rank}


def weights(model: Any) -> list[torch.Tensor]:
    """Every parameter of the bridge and of the twin, copied."""
    twin = model.__dict__["_mechsafety_twin"]
    return [p.detach().clone() for p in (*model.parameters(), *twin.parameters())]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1).contiguous().view(torch.uint8)


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_come_back_bit_for_bit(load: Any, architecture: str, kind: str, dtype: str) -> None:
    model = load(architecture, dtype)
    maps = linear_maps(model)
    before, removal = weights(model), MAKERS[kind](maps)
    with removed(model, removal):
        assert not same(before, weights(model))
    assert same(before, weights(model))
    with pytest.raises(RuntimeError, match="inside"), removed(model, removal, maps=maps):
        raise RuntimeError("inside")
    assert same(before, weights(model))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nested_removals_add_up_and_come_off_in_order(load: Any, architecture: str, dtype: str) -> None:
    model = load(architecture, dtype)
    maps = linear_maps(model)
    before = weights(model)
    a, b, c = pruning(maps), low_rank(maps, seed=1), pruning(maps, seed=2)
    with removed(model, a):
        one = weights(model)
        with removed(model, b):
            two = weights(model)
            with removed(model, c):
                assert not same(two, weights(model))
                for m in maps:  # what is zero from a is so only until b is subtracted
                    flat = m.weight().reshape(-1)
                    assert not flat[c.entries[m.name]].any()
            assert same(two, weights(model))
            with pytest.raises(ValueError, match="stop"), removed(model, a):
                raise ValueError("stop")
            assert same(two, weights(model))
        assert same(one, weights(model))
    assert same(before, weights(model))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_removal_is_what_it_declares(load: Any, architecture: str) -> None:
    model = load(architecture)
    maps = linear_maps(model)
    some = {m.name for m in maps if m.layer == 1 and m.kind in ("k", "up", "o")}
    old = {m.name: m.weight().clone(memory_format=torch.contiguous_format) for m in maps}
    zeros, ranks = pruning(maps, names=some), low_rank(maps, names=some)
    with removed(model, zeros):
        for m in maps:
            wanted = old[m.name].clone()
            if m.name in some:
                wanted.view(-1)[zeros.entries[m.name]] = 0
            assert torch.equal(m.weight(), wanted), m.name
    with removed(model, ranks):
        for m in maps:
            if m.name in some:
                b, a = ranks.factors[m.name]
                torch.testing.assert_close(m.weight(), old[m.name] - b @ a, atol=1e-6, rtol=0)
            else:
                assert torch.equal(m.weight(), old[m.name]), m.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", MAKERS)
def test_bridge_and_twin_feel_the_same(load: Any, architecture: str, kind: str) -> None:
    model = load(architecture)
    maps = linear_maps(model)
    first = both_logits(model)
    with removed(model, MAKERS[kind](maps)):
        inside = both_logits(model)
    for logits in inside:
        torch.testing.assert_close(logits, inside[0], atol=5e-4, rtol=1e-3)
        assert not torch.allclose(logits, first[0], atol=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(first, both_logits(model), strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_generation_feels_it(load: Any, architecture: str) -> None:
    model = load(architecture)
    maps = linear_maps(model)
    prompts = small_prompts(2).report

    def answers(**options: Any) -> dict[str, Any]:
        return {c.id: c.tokens for c in generate(model, prompts, max_new_tokens=10, seed=0, **options)}

    edit = Ablate(torch.randn(32, generator=torch.Generator().manual_seed(1)))
    before, edited = answers(), answers(edit=edit)
    with removed(model, pruning(maps, share=0.5)):
        inside, both = answers(), answers(edit=edit)
        assert inside == answers(fast_path=False)
        assert both == answers(edit=edit, fast_path=False)
    assert before != inside != both != edited
    assert (answers(), answers(edit=edit)) == (before, edited)


def test_another_models_removal_is_refused_and_changes_nothing(load: Any) -> None:
    model, other = load("llama"), load("gpt2")
    before = weights(model)
    for make in MAKERS.values():
        with (
            pytest.raises(MechsafetyError, match=r"made for other linear maps than those of .*28.*|24 maps"),
            removed(model, make(linear_maps(other))),
        ):
            pass
    maps = linear_maps(model)
    shapes = {**shapes_of(maps), "blocks.0.q": (32, 31)}
    odd = Pruning(label="odd", entries={"blocks.0.k": torch.tensor([0])}, shapes=shapes)
    with pytest.raises(MechsafetyError, match="or other shapes"), removed(model, odd):
        pass
    assert same(before, weights(model))


def test_a_pruning_counts_what_it_removes(load: Any) -> None:
    maps = linear_maps(load("llama"))
    shapes = shapes_of(maps)
    removal = Pruning(
        label="x",
        entries={"blocks.0.q": torch.tensor([0, 5]), "blocks.2.up": torch.tensor([7])},
        shapes=shapes,
    )
    assert removal.n_removed == 3
    assert removal.counts() == {name: {"blocks.0.q": 2, "blocks.2.up": 1}.get(name, 0) for name in shapes}
    assert removal.sparsity == 3 / sum(a * b for a, b in shapes.values())
    assert repr(removal).startswith("x: 3 weights (0.0")


def test_bad_removals_are_reported() -> None:
    shapes = {"a": (3, 4), "b": (2, 2)}
    none = torch.tensor([], dtype=torch.long)
    with pytest.raises(MechsafetyError, match="x: the set is empty"):
        Pruning(label="x", entries={"a": none}, shapes=shapes)
    with pytest.raises(MechsafetyError, match="no linear map 'c'; there are a, b"):
        Pruning(label="x", entries={"c": none}, shapes=shapes)
    for places in ([12], [-1, 3]):
        with pytest.raises(MechsafetyError, match="a has entries outside its 3 x 4 weights"):
            Pruning(label="x", entries={"a": torch.tensor(places)}, shapes=shapes)
    with pytest.raises(MechsafetyError, match="every rank is 0"):
        LowRank(label="x", factors={"a": (torch.zeros(3, 0), torch.zeros(0, 4))}, shapes=shapes)
    with pytest.raises(MechsafetyError, match=r"\[3, 1\] and \[1, 3\] do not make a, \[3, 4\]"):
        LowRank(label="x", factors={"a": (torch.zeros(3, 1), torch.zeros(1, 3))}, shapes=shapes)


def test_places_must_ascend() -> None:
    shapes = {"a": (3, 4)}
    for places in ([5, 2], [3, 3]):
        with pytest.raises(MechsafetyError, match="ascending"):
            Pruning(label="x", entries={"a": torch.tensor(places)}, shapes=shapes)


def test_everything_changed_is_restored_when_a_map_cannot_be(load: Any, monkeypatch: Any) -> None:
    """An error halfway through taking out puts the maps that were reached back."""
    model = load("llama")
    maps = linear_maps(model)
    before = weights(model)
    calls = [0]
    write = LinearMap.write

    def failing(self: LinearMap, value: torch.Tensor) -> None:
        calls[0] += 1
        if calls[0] == 5:
            raise RuntimeError("no memory")
        write(self, value)

    monkeypatch.setattr(LinearMap, "write", failing)
    with pytest.raises(RuntimeError, match="no memory"), removed(model, low_rank(maps), maps=maps):
        pass
    assert calls[0] == 9
    assert same(before, weights(model))


def test_logits_move_with_the_size_of_what_is_removed(load: Any) -> None:
    model = load("llama")
    maps = linear_maps(model)
    first = both_logits(model, IDS)[2]
    gaps = []
    for share in (0.001, 0.05, 0.5):
        with removed(model, pruning(maps, share=share)):
            gaps.append(float((both_logits(model, IDS)[2] - first).norm()))
    assert gaps == sorted(gaps)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", MAKERS)
def test_removed_sizes_are_those_of_what_goes(load: Callable[..., Any], architecture: str, kind: str) -> None:
    maps = linear_maps(load(architecture))
    removal = MAKERS[kind](maps, names=[m.name for m in maps[:5]])
    gone = torch.cat([removed_weight(m, removal).flatten() for m in maps])
    weights = torch.cat([m.weight().flatten() for m in maps])
    found = removed_sizes(removal, maps)
    assert found["energy"] == pytest.approx(float(gone.norm() ** 2 / weights.norm() ** 2), rel=1e-4)
    if isinstance(removal, Pruning):
        assert found["mean_weight"] == pytest.approx(float(gone[gone != 0].abs().mean()), rel=1e-4)
    else:
        assert math.isnan(found["mean_weight"])
