"""Block by block as the plain way has it: the whole model again for every block, with the earlier ones pruned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.loading import load_model
from mechsafety.regions import blockwise
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.blockwise import prune_blockwise, set_difference_blockwise
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.pruning import prune, set_difference
from mechsafety.regions.removal import Pruning, removed
from tests.regions.test_maps import folders
from tests.regions.test_removal import same, weights
from tests.regions.test_subspaces import examples

__all__ = ["folders"]


def plainly(
    model: Any, sets: list[Any], choose: Callable[..., Pruning], **options: Any
) -> dict[str, list[int]]:
    """``choose(maps, *scores, layers=[layer])`` for each block, everything measured anew each time."""
    maps = linear_maps(model)
    entries: dict[str, list[int]] = {}
    with ExitStack() as stack:
        for layer in range(model.cfg.n_layers):
            block = choose(maps, *(score_weights(model, s, **options) for s in sets), layers=[layer])
            entries |= {name: places.tolist() for name, places in block.entries.items()}
            stack.enter_context(removed(model, block, maps=maps))
    return entries


def listed(removal: Pruning) -> dict[str, list[int]]:
    return {name: places.tolist() for name, places in removal.entries.items()}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "neox", "phi3", "falcon", "bloom"])
def test_streamed_wanda_equals_running_the_model_again(
    folders: Callable[[str], Path], architecture: str
) -> None:
    model = load_model(str(folders(architecture)), dtype="float32", device="cpu")
    before, data = weights(model), examples(0, n=6)
    for positions in ("paper", "predictive"):
        found = prune_blockwise(model, data, method="wanda", percent=30, positions=positions)
        assert same(before, weights(model))
        wanted = plainly(
            model,
            [data],
            lambda maps, scores, layers: prune(maps, scores, method="wanda", percent=30, layers=layers),
            positions=positions,
        )
        assert listed(found) == wanted
    # Control: choosing all at once gives the first block the same and later ones others.
    dense = prune(
        linear_maps(model), score_weights(model, data, positions="predictive"), method="wanda", percent=30
    )
    equal = {name: places == listed(dense)[name] for name, places in wanted.items()}
    assert all(kept for name, kept in equal.items() if name.startswith("blocks.0."))
    assert not all(kept for name, kept in equal.items() if name.startswith("blocks.1."))


@pytest.mark.parametrize("method", ["wanda", "snip"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_set_difference_block_by_block(
    folders: Callable[[str], Path], architecture: str, method: Any
) -> None:
    model = load_model(str(folders(architecture)), dtype="float32", device="cpu")
    before, sets = weights(model), [examples(0, n=4), examples(1, n=5)]
    found = set_difference_blockwise(model, *sets, method=method, p=4, q=6)
    assert same(before, weights(model))
    wanted = plainly(
        model,
        sets,
        lambda maps, a, b, layers: set_difference(maps, a, b, method=method, p=4, q=6, layers=layers),
    )
    assert listed(found) == wanted
    assert found.describe().startswith(f"block-wise set difference p=4 q=6 by {method} per matrix: ")


def test_bfloat16_runs_and_restores(folders: Callable[[str], Path]) -> None:
    model = load_model(str(folders("llama")), dtype="bfloat16", device="cpu")
    before = weights(model)
    found = prune_blockwise(model, examples(0), method="wanda", percent=50)
    assert found.sparsity == 0.5
    assert same(before, weights(model))
    with removed(model, found):
        assert not same(before, weights(model))


def test_a_bridge_without_a_twin_gives_the_same(folders: Callable[[str], Path]) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for architecture in ("llama", "gpt2"):
        folder = folders(architecture)
        hf = AutoModelForCausalLM.from_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(folder)
            booted = TransformerBridge.boot_transformers(str(folder), hf_model=hf, tokenizer=tokenizer)
        booted.requires_grad_(False)
        found = prune_blockwise(booted, examples(0, n=4), method="wanda", percent=30)
        ours = load_model(str(folder), dtype="float32", device="cpu")
        assert listed(found) == listed(prune_blockwise(ours, examples(0, n=4), method="wanda", percent=30))


def test_an_error_on_the_way_restores_the_model(folders: Callable[[str], Path], monkeypatch: Any) -> None:
    model = load_model(str(folders("llama")), dtype="float32", device="cpu")
    before, calls, choose = weights(model), [0], blockwise.lowest_places

    def failing(*args: Any, **options: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 20:  # in the third block
            raise RuntimeError("stop")
        return choose(*args, **options)

    monkeypatch.setattr(blockwise, "lowest_places", failing)
    with pytest.raises(RuntimeError, match="stop"):
        prune_blockwise(model, examples(0, n=2), method="wanda", percent=30)
    assert calls[0] == 20
    assert same(before, weights(model))
    assert all(not m._forward_pre_hooks for m in [lm.module for lm in linear_maps(model)])


def test_bad_input_is_reported(folders: Callable[[str], Path]) -> None:
    model = load_model(str(folders("llama")), dtype="float32", device="cpu")
    data = examples(0, n=2)
    with pytest.raises(MechsafetyError, match="percent is 0"):
        prune_blockwise(model, data, method="wanda", percent=0)
    with pytest.raises(MechsafetyError, match="q is 101"):
        set_difference_blockwise(model, data, data, method="wanda", p=1, q=101)
    with pytest.raises(MechsafetyError, match=r"p=3 q=3 .* the set is empty"):
        set_difference_blockwise(model, data, data, method="wanda", p=3, q=3)
    for method in ("wanda", "snip"):
        with pytest.raises(MechsafetyError, match="no examples"):
            prune_blockwise(model, [], method=method, percent=10)
