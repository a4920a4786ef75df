"""Heads: what the probes read is hook_z, what pruning takes away is the head and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError, NotFiniteError
from mechsafety.models.chat import tokenize_prompts
from mechsafety.regions.head_probes import HEAD_COLUMNS, probe_heads
from mechsafety.regions.heads import (
    HeadOutputs,
    best_heads,
    head_outputs,
    head_scores,
    prune_heads,
    random_heads,
)
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.removal import Pruning, removed
from tests.prompt_sets import small_prompts
from tests.regions.test_subspaces import fake

TOKENS = torch.tensor([[5, 9, 13, 20, 31, 8]])
N_HEADS = 4


def logits_of(model: Any, silenced: dict[int, list[int]] | None = None) -> Tensor:
    """Logits on the bridge, heads set to zero at hook_z."""

    def zero(heads: list[int]) -> Callable[..., Tensor]:
        def call(z: Tensor, hook: Any) -> Tensor:
            z = z.clone()
            z[:, :, heads] = 0
            return z

        return call

    hooks = [(f"blocks.{layer}.attn.hook_z", zero(heads)) for layer, heads in (silenced or {}).items()]
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        return model(TOKENS).float()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "qwen2"])
def test_head_outputs_are_hook_z_at_the_last_token(tiny: Callable[..., Any], architecture: str) -> None:
    model, prompts = tiny(architecture), small_prompts(3).fit
    found = head_outputs(model, prompts, batch_size=4)
    assert found.layers == (0, 1, 2, 3)
    assert found.labels == tuple(p.label for p in prompts)
    for row, sequence in enumerate(tokenize_prompts(model, [p.text for p in prompts])):
        with torch.inference_mode():
            _, cache = model.run_with_cache(torch.tensor([sequence]))
        for layer in range(4):
            expected = cache[f"blocks.{layer}.attn.hook_z"][0, -1]
            torch.testing.assert_close(found.outputs[row, layer], expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_pruned_heads_are_silent_and_the_others_speak_as_before(
    tiny_kept: Callable[..., Any], architecture: str, dtype: str
) -> None:
    model = tiny_kept(architecture, dtype=dtype)
    maps = linear_maps(model)
    before = logits_of(model)
    # One head whose key-value head others still read, and both heads of a group.
    pruning = prune_heads(maps, [(1, 2), (2, 0), (2, 1)], n_heads=N_HEADS)
    expected = logits_of(model, {1: [2], 2: [0, 1]})
    with removed(model, pruning, maps=maps):
        found = logits_of(model)
    assert float((expected - before).abs().max()) > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_transposed_slices_do_not_silence_a_head(
    tiny_kept: Callable[..., Any], architecture: str
) -> None:
    model = tiny_kept(architecture)
    maps = linear_maps(model)
    o = next(m for m in maps if m.name == "blocks.1.o")
    rows = (torch.arange(16, 24)[:, None] * o.d_in + torch.arange(o.d_in)).flatten()
    transposed = Pruning(
        label="transposed", entries={o.name: rows}, shapes={m.name: (m.d_out, m.d_in) for m in maps}
    )
    pruned = prune_heads(maps, [(1, 2)], n_heads=N_HEADS)
    assert len(rows) == len(pruned.entries[o.name])
    for removal, silent in ((pruned, True), (transposed, False)):
        with removed(model, removal, maps=maps):
            # A silent head can say what it likes.
            moved = float((shifted_logits(model) - logits_of(model)).abs().max())
        assert (moved < 1e-5) is silent


def shifted_logits(model: Any) -> Tensor:
    """Logits when head 2 of layer 1 puts out something else."""

    def shift(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, 2] += 3.0
        return z

    with torch.inference_mode(), model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", shift)]):
        return model(TOKENS).float()


def test_shared_key_value_rows_go_with_their_last_query_head(tiny_kept: Callable[..., Any]) -> None:
    maps = linear_maps(tiny_kept("llama"))
    one = prune_heads(maps, [(1, 2)], n_heads=N_HEADS)
    assert sorted(one.entries) == ["blocks.1.o", "blocks.1.q"]
    both = prune_heads(maps, [(1, 3), (1, 2)], n_heads=N_HEADS)
    assert sorted(both.entries) == ["blocks.1.k", "blocks.1.o", "blocks.1.q", "blocks.1.v"]
    key = next(m for m in maps if m.name == "blocks.1.k")
    assert both.entries["blocks.1.k"].tolist() == list(range(8 * key.d_in, 16 * key.d_in))
    # Without shared heads each takes its own rows along.
    own = prune_heads(linear_maps(tiny_kept("gpt2")), [(1, 2)], n_heads=N_HEADS)
    assert {name: len(places) for name, places in own.entries.items()} == {
        f"blocks.1.{kind}": 8 * 32 for kind in "qkvo"
    }


def test_random_heads_are_others_and_as_many(tiny_kept: Callable[..., Any]) -> None:
    maps, heads = linear_maps(tiny_kept("llama")), [(0, 1), (3, 2), (3, 3)]
    drawn = random_heads(maps, heads, n_heads=N_HEADS, seed=3)
    assert len(set(drawn)) == 3
    assert not set(drawn) & set(heads)
    assert drawn == random_heads(maps, heads, n_heads=N_HEADS, seed=3)
    assert len({tuple(random_heads(maps, heads, n_heads=N_HEADS, seed=s)) for s in range(10)}) > 5
    most = [(layer, head) for layer in range(4) for head in range(3)]
    with pytest.raises(MechsafetyError, match="at most half"):
        random_heads(maps, most, n_heads=N_HEADS, seed=0)


def test_heads_of_like_size_have_output_weights_of_near_norms() -> None:
    sizes = np.random.default_rng(0).permutation(np.geomspace(0.1, 10, 48)).reshape(6, 8)
    maps = []
    for layer in range(6):
        columns = torch.from_numpy(np.repeat(sizes[layer], 4)).float()
        linear, _ = fake(columns * torch.ones(16, 1), torch.ones(32, 1))
        maps.append(replace(linear, name=f"blocks.{layer}.o", layer=layer, kind="o"))
    order = [(int(i // 8), int(i % 8)) for i in sizes.argsort(axis=None)]
    place = {head: i for i, head in enumerate(order)}
    heads = [order[i] for i in (3, 44, 45, 46, 47)]

    def ranks(seed: int, *, in_size: bool) -> list[int]:
        drawn = random_heads(maps, heads, n_heads=8, seed=seed, in_size=in_size)
        assert len(set(drawn)) == len(heads)
        assert not set(drawn) & set(heads)
        return sorted(place[head] for head in drawn)

    found = [ranks(seed, in_size=True) for seed in range(20)]
    assert ranks(3, in_size=True) == found[3]
    assert len({tuple(r) for r in found}) > 5
    # One near the small head, and four of the eight that are nearest below the four largest.
    assert all(r[0] <= 8 and r[1] >= 44 - 8 for r in found)
    # The control: of all heads at random they are seldom so.
    assert sum(r[0] <= 8 and r[1] >= 44 - 8 for r in (ranks(s, in_size=False) for s in range(20))) < 5


def planted(n: int, *, seed: int, prefix: str) -> HeadOutputs:
    """Head 1 of layer 2 shifts by the label; the others are noise."""
    outputs = torch.randn(2 * n, 3, 2, 5, generator=torch.Generator().manual_seed(seed))
    outputs[:n, 2, 1] += 2
    return HeadOutputs(
        outputs=outputs,
        layers=(0, 1, 2),
        ids=tuple(f"{prefix}{i}" for i in range(2 * n)),
        labels=("harmful",) * n + ("harmless",) * n,
    )


def test_the_planted_head_is_found_and_noise_is_not() -> None:
    held_out = planted(200, seed=1, prefix="held")
    scores = head_scores(planted(60, seed=0, prefix="fit"), held_out)
    share = torch.tensor(
        [
            [float((scores[:200, i, j, None] > scores[None, 200:, i, j]).float().mean()) for j in range(2)]
            for i in range(3)
        ]
    )
    assert float(share[2, 1]) > 0.95
    share[2, 1] = 0.5
    assert float((share - 0.5).abs().max()) < 0.12


def test_table_of_heads(tiny_kept: Callable[..., Any]) -> None:
    prompts = small_prompts(8)
    table = probe_heads(tiny_kept("llama"), prompts.fit, prompts.validation, seed=0, resamples=50)
    assert tuple(table.columns) == HEAD_COLUMNS
    assert list(zip(table["layer"], table["head"], strict=True)) == [
        (layer, head) for layer in range(4) for head in range(4)
    ]
    assert (table["n"] == 16).all()
    assert ((table["low"] <= table["auroc"]) & (table["auroc"] <= table["high"])).all()
    assert len(best_heads(table, n=3)) == 3


def test_best_heads_are_the_highest_and_never_those_not_measured() -> None:
    table = pd.DataFrame(
        [(0, 0, 0.6), (0, 1, float("nan")), (1, 0, 0.9), (1, 1, 0.9)], columns=["layer", "head", "auroc"]
    )
    assert best_heads(table, n=3) == [(1, 0), (1, 1), (0, 0)]
    with pytest.raises(MechsafetyError, match="choose 1 to 3"):
        best_heads(table, n=4)


def test_bad_input_is_named(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    maps, prompts = linear_maps(model), small_prompts(4)
    with pytest.raises(MechsafetyError, match="no head 4 in layer 1"):
        prune_heads(maps, [(1, 4)], n_heads=N_HEADS)
    with pytest.raises(MechsafetyError, match="no head 0 in layer 9"):
        prune_heads(maps, [(9, 0)], n_heads=N_HEADS)
    with pytest.raises(MechsafetyError, match="none twice"):
        prune_heads(maps, [(1, 0), (1, 0)], n_heads=N_HEADS)
    with pytest.raises(MechsafetyError, match="none twice"):
        prune_heads(maps, [], n_heads=N_HEADS)
    with pytest.raises(MechsafetyError, match="no map of kind o"):
        prune_heads([m for m in maps if m.kind != "o"], [(1, 0)], n_heads=N_HEADS)
    with pytest.raises(MechsafetyError, match="does not"):
        prune_heads(maps, [(1, 0)], n_heads=5)
    with pytest.raises(MechsafetyError, match="no prompts"):
        head_outputs(model, [])
    with pytest.raises(MechsafetyError, match="is also fitted prompt"):
        probe_heads(model, prompts.fit, prompts.fit, seed=0)
    with pytest.raises(MechsafetyError, match="harmless prompts are too few"):
        probe_heads(model, prompts.fit.harmful, prompts.validation, seed=0)
    with torch.no_grad():
        maps[0].write(torch.full((maps[0].d_out, maps[0].d_in), float("nan")))
    with pytest.raises(MechsafetyError, match="NaN"):
        head_outputs(model, prompts.fit)


def test_outputs_that_are_no_numbers_are_named_with_their_layer(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    with torch.inference_mode():
        model.original_model.model.layers[2].self_attn.v_proj.weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"llama.*: .* at layer 2 is NaN"):
        head_outputs(model, small_prompts(2).report)
