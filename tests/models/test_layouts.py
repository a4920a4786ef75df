"""Models that TransformerLens has no adapter for: right where they are laid out as Llama is, else refused in one line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.completeness import component_left
from mechsafety.models.handles import attached
from mechsafety.models.layout_reading import OtherLayoutError, read_layout
from mechsafety.models.loading import body_of
from mechsafety.regions.heads import head_outputs, prune_heads
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.removal import removed
from tests.architecture_measures import EDIT, MEASURES, outcome
from tests.architectures import random_model, save_architecture
from tests.models import test_batched_alone
from tests.models.test_batched_alone import TEMPLATES, Subject
from tests.models.test_refused_models import SMALL

factory = pytest.importorskip("transformer_lens.factories.architecture_adapter_factory")


@pytest.mark.parametrize("name", ["ministral", "minimax"])
def test_a_layout_like_llamas_is_right(tmp_path: Path, name: str) -> None:
    """Attention with windows; linear attention whose state stands beside the layers of its cache."""
    known = set(factory.SUPPORTED_ARCHITECTURES)
    one = Subject(save_architecture(tmp_path, name, template=TEMPLATES["no prefix"]), name)
    assert type(one.model.original_model).__name__ not in known
    assert set(factory.SUPPORTED_ARCHITECTURES) == known
    for measure in MEASURES.values():
        assert outcome(measure, one).startswith("right"), measure
    test_batched_alone.test_option_log_probs(one)


def test_a_text_model_within_another_is_written_with_an_edit(tmp_path: Path) -> None:
    """Its configuration does not say whether embedding and unembedding are one."""
    folder = save_architecture(tmp_path / "own", "qwen2-vl, images", template=TEMPLATES["no prefix"])
    one = Subject(folder, "qwen2-vl, images")
    for name, measure in MEASURES.items():
        assert outcome(measure, one).startswith("right"), name
    written = ms.save_model(one.model, ms.Orthogonalise(EDIT.basis[0]), tmp_path / "edited")
    again = ms.load_model(str(written), dtype="float32", device="cpu")
    ids = torch.tensor([one.sequences[0]])
    with ms.edited(one.model, EDIT):
        expected = one.model.original_model(input_ids=ids).logits
    torch.testing.assert_close(again.original_model(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["cohere2-moe", "kolibri1", "lfm3"])
def test_other_layouts_are_read(tmp_path: Path, name: str) -> None:
    """Branches side by side; norms of what branches write; blocks of two kinds."""
    one = Subject(save_architecture(tmp_path, name, template=TEMPLATES["no prefix"]), name)
    refused = () if name == "cohere2-moe" else ("baked",)  # a norm lies between
    for word, measure in MEASURES.items():
        assert outcome(measure, one).split()[0] == ("refused" if word in refused else "right"), word
    written = component_left(one.model, EDIT)
    assert max(written.values()) < 1e-4
    assert any("resid_mid" in place for place in written) == (name != "cohere2-moe")


def test_branches_that_take_any_arguments_are_told_apart() -> None:
    """What a branch is shows in what it does: the names of its arguments say nothing here."""
    plain, wrapped = random_model("helium"), random_model("helium")
    for block in wrapped.model.layers:
        for branch in (block.self_attn, block.mlp):
            branch.forward = partial(_with_any, branch.forward)
    assert read_layout(wrapped) == read_layout(plain)
    assert [b.site for b in read_layout(plain).branches] == ["attn_out", "mlp_out"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_control_branches_that_are_not_to_be_told_apart(dtype: torch.dtype) -> None:
    """An MLP that is called with the arguments of attention is one; what reads keys from elsewhere is refused, and so is
    what gives out nothing or other numbers each time."""
    model = random_model("helium").to(dtype)
    mlp = model.model.layers[2].mlp
    forward = mlp.forward

    def named(x: torch.Tensor, attention_mask: None = None, past_key_values: None = None) -> torch.Tensor:
        return forward(x)

    mlp.forward = named
    assert [b.site for b in read_layout(model).branches] == ["attn_out", "mlp_out"]
    keys = torch.randn(1, 16, 32).to(dtype)

    def to_other_keys(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(forward(x), keys, keys, is_causal=True)

    for other in (to_other_keys, lambda x: 0 * forward(x), lambda x: forward(x) * torch.rand(1)[0].to(dtype)):
        mlp.forward = other
        with pytest.raises(OtherLayoutError, match="whether mlp of block 2 mixes tokens is not to be told"):
            read_layout(model)
    mlp.forward = _once(forward)
    with pytest.raises(OtherLayoutError, match="mlp of block 2 cannot be called again"):
        read_layout(model)


def _with_any(forward: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
    return forward(hidden_states, **kwargs)


def _once(forward: Any) -> Any:
    """``forward``, which may be called once."""
    left = [forward]
    return lambda x: left.pop()(x)


def test_a_recurrent_mixer_is_no_mlp() -> None:
    """xLSTM's takes a state and no argument with a name that attention has."""
    from transformers import xLSTMConfig, xLSTMForCausalLM

    torch.manual_seed(0)
    native: dict[str, Any] = {
        "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native",
    }
    config = xLSTMConfig(
        hidden_size=32,
        num_heads=4,
        num_hidden_layers=2,
        num_blocks=2,
        vocab_size=160,
        step_kernel="native",
        **native,
    )
    model = xLSTMForCausalLM(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    sites = {b.name: b.site for b in read_layout(model).branches}
    assert sites == {"mlstm_layer": "attn_out", "ffn": "mlp_out"}


@pytest.mark.parametrize("name", ["ministral", "lfm3", "kolibri1"])
def test_heads_are_those_that_attention_has(tmp_path: Path, name: str) -> None:
    """A head taken out of the weights is a head whose part of W_O's input is zero in plain transformers."""
    one = Subject(save_architecture(tmp_path, name, template=TEMPLATES["no prefix"]), name)
    test_batched_alone.test_head_outputs(one)
    maps = linear_maps(one.model)
    outs = {m.layer: m for m in maps if m.kind == "o"}
    layer, tokens = max(outs), one.sequences[0]
    attention = one.oracle.get_submodule(f"model.layers.{layer}.self_attn")
    size = outs[layer].d_in // one.model.cfg.n_heads

    def without(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = args[0].clone()
        x[..., size : 2 * size] = 0
        return (x,)

    out = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
    with removed(one.model, prune_heads(maps, [(layer, 1)], n_heads=one.model.cfg.n_heads)):
        got = body_of(one.model)(input_ids=torch.tensor([tokens])).logits
    whole = one.alone(tokens).logits
    with attached([out.register_forward_pre_hook(without)]):
        want = one.alone(tokens).logits
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert float((want - whole).abs().max()) > 1e-2
    both = prune_heads(maps, [(layer, 0), (layer, 1)], n_heads=one.model.cfg.n_heads)
    assert {name.rpartition(".")[2] for name in both.entries} == {"q", "k", "v", "o"}


def test_control_heads_that_are_subtracted_from_each_other_are_refused(tmp_path: Path) -> None:
    folder = save_architecture(tmp_path, "diffllama", template=TEMPLATES["no prefix"])
    model = ms.load_model(str(folder), dtype="float32", device="cpu")
    with pytest.raises(MechsafetyError, match="no map of kind o"):
        head_outputs(model, test_batched_alone.prompts())
    assert {m.kind for m in linear_maps(model)} >= {"gate", "up", "down"}


@pytest.mark.parametrize(("name", "declared"), [("llama", []), ("llama", ["OurLlama"]), ("helium", [])])
def test_a_configuration_that_names_no_known_class(tmp_path: Path, name: str, declared: list[str]) -> None:
    folder = save_architecture(tmp_path, name, template=TEMPLATES["no prefix"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": declared}))
    test_batched_alone.test_last_logits_and_refusal_scores(Subject(folder, name))


def test_control_another_layout_is_refused(tmp_path: Path) -> None:
    from transformers import GPTNeoXJapaneseConfig, GPTNeoXJapaneseForCausalLM

    from tests.conftest import save_tokenizer

    torch.manual_seed(0)
    model = GPTNeoXJapaneseForCausalLM(GPTNeoXJapaneseConfig(**SMALL))
    torch.nn.init.normal_(
        model.gpt_neox_japanese.layers[-1].attention.dense_bias
    )  # which the block adds itself
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(
        MechsafetyError, match=r"cannot boot .*GPTNeoXJapaneseForCausalLM.* what block \d gives out is no sum"
    ) as refused:
        ms.load_model(str(tmp_path), dtype="float32", device="cpu")
    assert "\n" not in str(refused.value)
