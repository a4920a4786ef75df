"""A removal as a LoRA adapter gives the same model; removals come back from files as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.loading import load_model
from mechsafety.regions.lora_export import export_lora
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.pruning import shapes_of
from mechsafety.regions.removal import LowRank, Pruning, removed
from mechsafety.regions.removal_files import load_removal, removal_digest, save_removal
from tests.regions.test_maps import IDS, both_logits, folders
from tests.regions.test_removal import bits, low_rank, pruning

__all__ = ["folders"]


def uneven(maps: Any, seed: int = 0) -> LowRank:
    """Ranks from 0 to 3 that differ from map to map, some maps left out."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for number, m in enumerate(maps):
        if number % 5 == 4:
            continue
        rank = number % 4
        factors[m.name] = (
            0.3 * torch.randn(m.d_out, rank, generator=generator),
            0.3 * torch.randn(rank, m.d_in, generator=generator),
        )
    return LowRank(label="uneven", factors=factors, shapes=shapes_of(maps))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "neox", "phi3", "falcon", "bloom"])
def test_the_adapter_reloads_to_the_same_logits(
    folders: Callable[[str], Path], tmp_path: Path, architecture: str
) -> None:
    base = str(folders(architecture))
    model = load_model(base, dtype="float32", device="cpu")
    removal = uneven(linear_maps(model))
    folder = export_lora(model, removal, tmp_path / "a")
    with removed(model, removal):
        wanted = both_logits(model)[2]
    reloaded = load_model(f"{base}+{folder}", dtype="float32", device="cpu")
    for logits in both_logits(reloaded)[1:]:
        torch.testing.assert_close(logits, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-4)
    plain = both_logits(model)[2]
    assert float((plain - wanted).abs().max()) > 0.1
    changed = {k.split(".lora_")[0] for k in load_file(folder / "adapter_model.safetensors")}
    modules = {id(m.module) for m in linear_maps(model) if removal.ranks()[m.name]}
    assert len(changed) == len(modules)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_in_bfloat16_weights_differ_by_rounding_alone(
    folders: Callable[[str], Path], tmp_path: Path, architecture: str
) -> None:
    base = str(folders(architecture))
    model = load_model(base, dtype="bfloat16", device="cpu")
    maps = linear_maps(model)
    removal = uneven(maps)
    folder = export_lora(model, removal, tmp_path / "a")
    again = {m.name: m for m in linear_maps(load_model(f"{base}+{folder}", dtype="bfloat16", device="cpu"))}
    with removed(model, removal):
        for m in maps:
            ours, theirs = m.weight().float(), again[m.name].weight().float()
            # Rounded twice, the product and the difference, against once.
            torch.testing.assert_close(ours, theirs, atol=2**-7 * float(ours.abs().max()), rtol=2**-7)
            if not removal.ranks()[m.name]:
                assert torch.equal(ours, theirs)


def test_the_same_removal_is_the_same_adapter(folders: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(str(folders("phi3")), dtype="float32", device="cpu")
    removal = uneven(linear_maps(model))
    a, b = (export_lora(model, removal, tmp_path / name) for name in "ab")
    assert sorted(p.name for p in a.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    for file in a.iterdir():
        assert file.read_bytes() == (b / file.name).read_bytes()
    settings = json.loads((a / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folders("phi3"))
    # q, k, v of block 0 have ranks 0, 1, 2: the joint module has 3.
    assert settings["rank_pattern"]["model.layers.0.self_attn.qkv_proj"] == 3
    assert settings["rank_pattern"] == settings["alpha_pattern"]


def test_what_cannot_be_an_adapter_is_reported(folders: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(str(folders("llama")), dtype="float32", device="cpu")
    maps = linear_maps(model)
    with pytest.raises(MechsafetyError, match=r"some 0: a pruning has no low rank.*save_removal"):
        export_lora(model, pruning(maps), tmp_path / "p")
    other = linear_maps(load_model(str(folders("gpt2")), dtype="float32", device="cpu"))
    with pytest.raises(MechsafetyError, match="made for other linear maps"):
        export_lora(model, low_rank(other), tmp_path / "p")
    assert not (tmp_path / "p").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for taken in (tmp_path / "full", tmp_path / "full" / "x"):
        with pytest.raises(MechsafetyError, match="is not empty: name a new folder"):
            export_lora(model, low_rank(maps), taken)
    with pytest.raises(MechsafetyError, match="cannot make folder"):
        export_lora(model, low_rank(maps), tmp_path / "full" / "x" / "y")
    del model.__dict__["_mechsafety_twin"]
    with pytest.raises(MechsafetyError, match="that load_model loaded"):
        export_lora(model, low_rank(maps), tmp_path / "p")


# -- removal files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("make", [pruning, low_rank, uneven])
def test_removals_come_back_bit_for_bit(
    folders: Callable[[str], Path], tmp_path: Path, architecture: str, make: Any
) -> None:
    model = load_model(str(folders(architecture)), dtype="float32", device="cpu")
    removal = make(linear_maps(model))
    path = save_removal(removal, tmp_path / "r.safetensors", model=model)
    back = load_removal(path, model=model)
    assert (type(back), back.describe(), removal_digest(back)) == (
        type(removal),
        removal.describe(),
        removal_digest(removal),
    )
    assert list(back.shapes.items()) == list(removal.shapes.items())
    if isinstance(removal, Pruning):
        assert isinstance(back, Pruning)
        assert back.entries.keys() == removal.entries.keys()
        for name, places in removal.entries.items():
            assert (back.entries[name].dtype, back.entries[name].tolist()) == (places.dtype, places.tolist())
    else:
        assert isinstance(back, LowRank)
        for name, pair in removal.factors.items():
            for a, b in zip(pair, back.factors[name], strict=True):
                assert torch.equal(bits(a), bits(b))
    with removed(model, back):
        inside = both_logits(model, IDS)[2]
    with removed(model, removal):
        assert torch.equal(both_logits(model, IDS)[2], inside)
    first = path.read_bytes()
    assert save_removal(back, path, model=model).read_bytes() == first
    assert removal_digest(make(linear_maps(model), seed=1)) != removal_digest(removal)


def test_a_removal_made_for_another_model_is_refused(tiny_kept: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_kept("llama")
    path = save_removal(pruning(linear_maps(model)), tmp_path / "r.safetensors", model=model)
    with pytest.raises(MechsafetyError, match=r"whose weights differ from .*allow_other_weights=True"):
        load_removal(path, model=tiny_kept("llama", seed=1))
    carried = load_removal(path, model=tiny_kept("llama", seed=1), allow_other_weights=True)
    assert removal_digest(carried) == removal_digest(
        load_removal(path, model=tiny_kept("llama", dtype="bfloat16"))
    )
    with pytest.raises(MechsafetyError, match="made for other linear maps"):
        load_removal(path, model=tiny_kept("gpt2"), allow_other_weights=True)
    with pytest.raises(MechsafetyError, match="made for other linear maps"):
        save_removal(load_removal(path), tmp_path / "s.safetensors", model=tiny_kept("gpt2"))


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    with safe_open(path, framework="pt") as stored:
        facts = json.loads(stored.metadata()["mechsafety_removal"])
        tensors = {k: stored.get_tensor(k) for k in stored.keys()}  # noqa: SIM118
    change(facts, tensors)
    changed = path.with_name("changed.safetensors")
    save_file(tensors, changed, metadata={"mechsafety_removal": json.dumps(facts)})
    return changed


def test_damaged_and_changed_files_are_reported(tiny_kept: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_kept("llama")
    path = save_removal(low_rank(linear_maps(model)), tmp_path / "r.safetensors", model=model)
    assert load_removal(rewritten(path, lambda f, t: None)).label == "low rank 0"
    with pytest.raises(MechsafetyError, match="does not match its hash"):
        load_removal(rewritten(path, lambda f, t: t["b/blocks.0.q"].add_(1)))
    with pytest.raises(MechsafetyError, match="does not match its hash"):
        load_removal(rewritten(path, lambda f, t: f.update(label="another")))
    with pytest.raises(MechsafetyError, match="has format 2; this version reads format 1"):
        load_removal(rewritten(path, lambda f, t: f.update(format=2)))
    for change in (
        lambda f, t: f.update(kind="other"),
        lambda f, t: t.pop("a/blocks.0.q"),
        lambda f, t: f.pop("model"),
        lambda f, t: f.update(shapes=3),
    ):
        with pytest.raises(MechsafetyError, match="no removal that mechsafety saved, or is damaged"):
            load_removal(rewritten(path, change))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-7])
    bare = tmp_path / "bare.safetensors"
    save_file({"x": torch.zeros(1)}, bare)
    for bad in (cut, bare):
        with pytest.raises(MechsafetyError, match="or is damaged"):
            load_removal(bad)
    with pytest.raises(MechsafetyError, match="does not exist"):
        load_removal(tmp_path / "none.safetensors")
    with pytest.raises(MechsafetyError, match=r"must end in .safetensors, e.g. r.safetensors"):
        load_removal(tmp_path / "r.pt")
    with pytest.raises(MechsafetyError, match=r"folder .* does not exist"):
        save_removal(load_removal(path), tmp_path / "no" / "r.safetensors", model=model)
