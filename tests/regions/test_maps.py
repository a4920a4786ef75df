"""The maps that are found are those that run, whatever the architecture stores them as."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.models.loading import body_of, generation_twin, load_model
from mechsafety.regions.maps import LinearMap, linear_maps, running_body, uncovered, unseen_share
from tests.conftest import save_tokenizer, tiny_config
from tests.kept_models import shared

PLAIN = ("llama", "llama-tied", "qwen2", "gemma2", "gpt2")
FUSED = ("neox", "phi3", "falcon", "bloom")
GATED = {"llama", "llama-tied", "qwen2", "gemma2", "phi3"}
JOINT = {"gpt2": "qkv", "neox": "qkv", "phi3": "qkv gate up", "falcon": "qkv", "bloom": "qkv"}
IDS = torch.tensor([[5, 17, 33, 8, 60, 41, 12], [9, 9, 71, 28, 6, 50, 3]])


def fused_config(architecture: str) -> Any:
    from transformers import BloomConfig, FalconConfig, GPTNeoXConfig, MixtralConfig, Phi3Config

    common: dict[str, Any] = {"vocab_size": 160, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    common |= {"hidden_size": 32, "num_attention_heads": 4, "initializer_range": 0.3}
    sized = {"num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 256}
    if architecture == "neox":
        return GPTNeoXConfig(**common, **sized)
    if architecture == "phi3":
        return Phi3Config(**common, **sized, num_key_value_heads=2, original_max_position_embeddings=256)
    if architecture == "falcon":  # one key and value head for all
        return FalconConfig(**common, num_hidden_layers=2, new_decoder_architecture=False, multi_query=True)
    if architecture == "bloom":
        return BloomConfig(**common, n_layer=2)
    return MixtralConfig(**common, **sized, num_key_value_heads=2, num_local_experts=4)


def save_fused(folder: Path, architecture: str) -> Path:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = tiny_config(architecture) if architecture in PLAIN else fused_config(architecture)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = save_fused(tmp_path_factory.mktemp(architecture), architecture)
        return made[architecture]

    return folder


@pytest.fixture
def load(folders: Callable[[str], Path]) -> Callable[..., Any]:
    def loaded(architecture: str, dtype: str = "float32") -> Any:
        folder = str(folders(architecture))
        return shared((folder, dtype), lambda: load_model(folder, dtype=dtype, device="cpu"))

    return loaded


def both_logits(model: Any, ids: torch.Tensor = IDS) -> list[torch.Tensor]:
    """Logits of the bridge as a user calls it, of its Hugging Face module, and of the plain twin."""
    twin = generation_twin(model)
    assert twin is not None
    with torch.inference_mode():
        return [model(ids), body_of(model)(ids).logits, twin(ids).logits]


def io(linear: LinearMap, body: Any, ids: torch.Tensor = IDS) -> tuple[torch.Tensor, torch.Tensor]:
    """What the map's module reads and what it gives, only the map's own entries of it."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = linear.module.register_forward_hook(  # copies, because falcon adds to an output in place
        lambda _m, args, out: seen.append((args[0].clone(), out.clone()))
    )
    with torch.no_grad():
        body(ids)
    handle.remove()
    ((x, y),) = seen
    return x, y if linear.rows is None else y[..., linear.rows]


def test_each_architecture_has_its_maps_in_running_order(load: Any) -> None:
    for architecture in (*PLAIN, *FUSED):
        model = load(architecture)
        maps = linear_maps(model)
        kinds = ["q", "k", "v", "o", *(["gate"] if architecture in GATED else []), "up", "down"]
        assert [m.name for m in maps] == [f"blocks.{i}.{k}" for i in range(model.cfg.n_layers) for k in kinds]
        assert [(m.layer, m.kind) for m in maps] == [(i, k) for i in range(model.cfg.n_layers) for k in kinds]
        assert all(m.weight().shape == (m.d_out, m.d_in) and m.rank == min(m.d_out, m.d_in) for m in maps)
        assert uncovered(model, maps) == []
        # Every weight of the blocks with two axes is in one map and no more.
        block = running_body(model).base_model
        blocks = [p for n, p in block.named_parameters() if p.ndim == 2 and ".0." in f".{n}"]
        assert sum(m.d_out * m.d_in for m in maps if m.layer == 0) == sum(p.numel() for p in blocks)


def test_maps_share_a_site_when_they_read_the_same(load: Any) -> None:
    for architecture in (*PLAIN, *FUSED):
        model = load(architecture)
        maps = [m for m in linear_maps(model) if m.layer == 1]
        inputs = {m.name: io(m, running_body(model))[0] for m in maps}
        for a in maps:
            for b in maps:
                same = a.d_in == b.d_in and torch.equal(inputs[a.name], inputs[b.name])
                assert (a.site == b.site) == same, (architecture, a.name, b.name)


@pytest.mark.parametrize("architecture", [*PLAIN, *FUSED])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_map_is_what_its_module_computes(load: Any, architecture: str, dtype: str) -> None:
    model = load(architecture, dtype)
    body = running_body(model)
    for m in linear_maps(model):
        x, y = io(m, body)
        assert (x.shape[-1], y.shape[-1]) == (m.d_in, m.d_out)
        bias = getattr(m.module, "bias", None)
        shift = 0 if bias is None else (bias if m.rows is None else bias[m.rows]).float()
        wanted = x.float() @ m.weight().float().T + shift
        close = {"atol": 1e-4, "rtol": 1e-4} if dtype == "float32" else {"atol": 0.02, "rtol": 0.02}
        torch.testing.assert_close(y.float(), wanted, **close)
        # Control: the rows of another order would not do.
        if m.d_out > 1:
            assert not torch.allclose(y.float(), (wanted - shift).flip(-1) + shift, **close)


@pytest.mark.parametrize("architecture", [*PLAIN, *FUSED])
def test_query_key_and_value_are_the_bridges_own(load: Any, architecture: str) -> None:
    model = load(architecture)
    names = {f"blocks.1.attn.{k}.hook_out": k for k in "qkv"}
    seen: dict[str, torch.Tensor] = {}

    def keep(x: torch.Tensor, hook: Any) -> None:
        seen[names[hook.name]] = x.detach().flatten(2) if x.ndim == 4 else x.detach()

    with torch.inference_mode(), model.hooks(fwd_hooks=[(name, keep) for name in names]):
        model(IDS)
    by_kind = {m.kind: m for m in linear_maps(model) if m.layer == 1}
    for kind in "qkv":
        m = by_kind[kind]
        _, y = io(m, running_body(model))
        torch.testing.assert_close(seen[kind].reshape(y.shape), y, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(seen["k"], seen["v"])


@pytest.mark.parametrize("architecture", [*PLAIN, *FUSED])
def test_writing_reaches_bridge_and_twin_alike(load: Any, architecture: str) -> None:
    model = load(architecture)
    maps = linear_maps(model)
    first = both_logits(model)
    for m in [m for m in maps if m.layer == 1]:
        before = m.weight().clone()
        others = {o.name: o.weight().clone() for o in maps if o is not m}
        new = before + 0.3 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
        m.write(new)
        assert torch.equal(m.weight(), new)
        assert all(torch.equal(place.read(), new) for place in m.places)
        # A part of a joint matrix changes alone.
        for other in maps:
            if other is not m:
                assert torch.equal(other.weight(), others[other.name]), (m.name, other.name)
        after = both_logits(model)
        for logits in after:
            torch.testing.assert_close(logits, after[0], atol=2e-4, rtol=1e-4)
        assert not torch.allclose(after[2], first[2], atol=1e-3), m.name
        m.write(before)
        assert all(torch.equal(a, b) for a, b in zip(both_logits(model), first, strict=True))


def test_joint_matrices_are_split_without_remainder(load: Any) -> None:
    for architecture, parts in JOINT.items():
        maps = [m for m in linear_maps(load(architecture)) if m.layer == 0]
        joint = [m for m in maps if m.rows is not None]
        assert {m.kind for m in joint} == set("qkv") | ({"gate", "up"} if "gate" in parts else set())
        for module in {id(m.module): m.module for m in joint}.values():
            members = [m for m in joint if m.module is module]
            rows = torch.cat([m.rows for m in members if m.rows is not None])
            assert rows.sort().values.tolist() == list(range(len(rows)))
            assert len(rows) * members[0].d_in == module.weight.numel()


def test_finding_maps_changes_nothing(load: Any) -> None:
    model = load("gpt2", "bfloat16")
    before = [p.clone() for p in model.parameters()]
    hooks = [len(m._forward_pre_hooks) for m in running_body(model).modules()]
    linear_maps(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert hooks == [len(m._forward_pre_hooks) for m in running_body(model).modules()]


def test_what_no_map_covers_is_named_and_counted(load: Any) -> None:
    model = load("mixtral")
    maps = linear_maps(model)
    assert [m.name for m in maps if m.layer == 0 and m.expert == 3] == [
        f"blocks.0.experts.3.{kind}" for kind in ("gate", "up", "down")
    ]
    missing = uncovered(model, maps)
    assert missing == [f"blocks.{layer}.mlp.gate.weight" for layer in (0, 1)]
    named = dict(running_body(model).named_parameters())
    routers = sum(p.numel() for n, p in named.items() if n.endswith("gate.weight"))
    whole = sum(p.numel() for n, p in named.items() if "layers." in n and p.ndim > 1)
    assert unseen_share(model, maps) == pytest.approx(routers / whole)
    assert len(uncovered(model, [m for m in maps if m.expert is None])) == 6  # the control


def test_a_hooked_transformer_gets_advice_on_loading(load: Any) -> None:
    class HookedTransformer:
        pass

    with pytest.raises(MechsafetyError, match=r"HookedTransformer.*load_model"):
        linear_maps(HookedTransformer())  # type: ignore[arg-type]


def test_a_model_without_linear_maps_is_reported(folders: Any) -> None:
    model = load_model(str(folders("gpt2")), dtype="float32", device="cpu")
    from transformers.pytorch_utils import Conv1D

    class Other(torch.nn.Module):  # the same map, but no module that is known to be one
        def __init__(self, conv: Any) -> None:
            super().__init__()
            self.weight, self.bias = conv.weight, conv.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight + self.bias

    twin = generation_twin(model)
    for parent in list(twin.base_model.modules()):  # type: ignore[union-attr]
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                setattr(parent, name, Other(child))
    with pytest.raises(MechsafetyError, match="no linear module runs in the blocks of GPT2"):
        linear_maps(model)


def test_a_bridge_without_a_twin_has_the_same_maps(folders: Any, load: Any) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for architecture in ("llama", "gpt2", "phi3"):
        folder = folders(architecture)
        hf = AutoModelForCausalLM.from_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            booted = TransformerBridge.boot_transformers(
                str(folder), hf_model=hf, tokenizer=AutoTokenizer.from_pretrained(folder)
            )
        own, ours = linear_maps(booted), linear_maps(load(architecture))
        assert [(m.name, m.site, m.d_out, m.d_in) for m in own] == [
            (m.name, m.site, m.d_out, m.d_in) for m in ours
        ]
        for a, b in zip(own, ours, strict=True):
            assert torch.equal(a.weight(), b.weight())
        with torch.inference_mode():
            before = booted(IDS)
            own[-1].write(torch.zeros_like(own[-1].weight()))
            assert not torch.allclose(booted(IDS), before)
