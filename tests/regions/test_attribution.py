"""Scores of linear maps: equal to plain autograd, one pass, resumed to the same bytes, damaged files told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answers import Example, encode
from mechsafety.models.loading import load_model
from mechsafety.regions import attribution as attribution_module
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.maps import LinearMap, linear_maps, running_body
from mechsafety.regions.memory_plan import memory_plan, plan_of
from mechsafety.regions.removal import Pruning, removed
from mechsafety.regions.score_files import Attribution
from mechsafety.regions.sums import Sums
from tests.conftest import save_tokenizer
from tests.reference.plain_regions import plain_gram, plain_inputs, plain_snip, plain_wanda

EXAMPLES = (
    Example(prompt="tell me about bread", answer="sorry i can not help with that", whole=True),
    Example(prompt="how do i make a garden gate of fire", answer="here is", whole=False),
    Example(prompt="a", answer="yes sure the answer is bread", whole=True),
    Example(prompt="list of the river", answer="no", whole=True),
)
ARCHITECTURES = ("llama", "gpt2", "gemma2", "neox", "phi3")
CLOSE = 1e-5


@pytest.fixture
def booted(tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """Tiny models, those with interleaved or joint projections too."""

    def folder(architecture: str) -> Path:
        if architecture not in ("neox", "phi3"):
            return tiny_folder(architecture)
        from transformers import AutoModelForCausalLM, GPTNeoXConfig, Phi3Config

        common: dict[str, Any] = {
            "vocab_size": 160,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 1,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 256,
            "initializer_range": 0.3,
        }
        config = (
            GPTNeoXConfig(**common)
            if architecture == "neox"
            else Phi3Config(**common, num_key_value_heads=2, original_max_position_embeddings=256)
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / architecture)
        save_tokenizer(tmp_path / architecture)
        return tmp_path / architecture

    def load(architecture: str, *, dtype: str = "float32") -> Any:
        return load_model(str(folder(architecture)), dtype=dtype, device="cpu")

    return load


def own(linear: LinearMap, stored: Tensor) -> Tensor:
    """A map's part [d_out, d_in] of what belongs to its module's weight as stored."""
    matrix = stored.T if linear.places[0].transposed else stored
    return matrix if linear.rows is None else matrix[linear.rows]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


def plain(model: Any, *, loss: str, positions: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The oracle's SNIP scores and inputs of every map."""
    maps = {m.name: m for m in linear_maps(model)}
    modules = {name: m.module for name, m in maps.items()}
    hf, examples = running_body(model), encode(model, EXAMPLES)
    snip = plain_snip(hf, modules, examples, loss=loss)
    inputs = plain_inputs(hf, modules, examples, positions=positions)
    return {name: own(m, snip[name]) for name, m in maps.items()}, inputs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("loss", "positions", "batch"), [("mean", "paper", 3), ("sum", "predictive", 1)])
def test_one_pass_gives_what_autograd_and_raw_activations_give(
    booted: Callable[..., Any], architecture: str, loss: Any, positions: Any, batch: int
) -> None:
    model = booted(architecture)
    found = score_weights(model, EXAMPLES, loss=loss, positions=positions, batch_size=batch)
    snip, inputs = plain(model, loss=loss, positions=positions)
    maps = linear_maps(model)
    assert len(maps) == len(found.shapes) > 0
    for linear in maps:
        assert error(found.snip(linear.name), snip[linear.name]) < CLOSE
        assert error(found.gram(linear.name), plain_gram(inputs[linear.name])) < CLOSE
        assert error(found.wanda(linear), plain_wanda(linear.weight(), inputs[linear.name])) < CLOSE
        assert found.scores(linear, "snip").equal(found.snip(linear.name))
        assert found.scores(linear, "wanda").equal(found.wanda(linear))
    assert found.n_tokens == len(inputs[maps[0].name])
    assert found.n_examples == len(EXAMPLES)


def test_losses_and_positions_differ_from_each_other(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    name = "blocks.1.q"
    base = score_weights(model, EXAMPLES)
    summed = score_weights(model, EXAMPLES, loss="sum")
    shifted = score_weights(model, EXAMPLES, positions="predictive")
    assert error(summed.snip(name), base.snip(name)) > 0.1
    assert error(shifted.gram(name), base.gram(name)) > 1e-3
    assert error(shifted.snip(name), base.snip(name)) < CLOSE


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_bfloat16_scores_are_near_those_of_float32(booted: Callable[..., Any], architecture: str) -> None:
    """Tolerances, in norm of a map's scores: 15 % of float32's, as errors of 8 bits add up over four layers; 1 % of
    autograd's in bfloat16, which rounds each example's gradient of W once where the sums here do not."""
    precise, coarse = booted(architecture), booted(architecture, dtype="bfloat16")
    found = score_weights(coarse, EXAMPLES, batch_size=1)
    for model, tolerance in ((precise, 0.15), (coarse, 0.01)):
        snip, inputs = plain(model, loss="mean", positions="paper")
        for linear in linear_maps(coarse):
            wanted = snip[linear.name]
            assert found.snip(linear.name).dtype == found.gram(linear.name).dtype == torch.float32
            assert float((found.snip(linear.name) - wanted).norm() / wanted.norm()) < tolerance
            gram = plain_gram(inputs[linear.name])
            assert float((found.gram(linear.name) - gram).norm() / gram.norm()) < tolerance


def test_diagonal_of_the_gram_matrix_is_the_squared_norms_and_sites_share_it(
    tiny_kept: Callable[..., Any],
) -> None:
    model = tiny_kept("llama")
    found = score_weights(model, EXAMPLES)
    assert error(found.norms("blocks.0.q") ** 2, found.gram("blocks.0.q").diagonal()) < CLOSE
    assert found.gram("blocks.0.q") is found.gram("blocks.0.v")
    assert found.gram("blocks.0.gate") is found.gram("blocks.0.up")
    assert not found.gram("blocks.0.q").equal(found.gram("blocks.0.gate"))
    grams = {name for name in found.tensors if name.startswith("gram/")}
    assert len(grams) == 4 * model.cfg.n_layers


def test_absolute_values_come_before_the_mean(tiny: Callable[..., Any]) -> None:
    """|mean of gradients| is another thing, and less: a control that shows what the order of the two does."""
    model = tiny("llama")
    found = score_weights(model, EXAMPLES)
    linear = linear_maps(model)[0]
    weight: Any = linear.module.weight
    weight.requires_grad_(True)
    total = torch.zeros(())
    for prompt, answer in encode(model, EXAMPLES):
        logits = running_body(model)(torch.tensor([prompt + answer])).logits[0]
        predicted = logits[len(prompt) - 1 : -1].log_softmax(-1)
        total = total - predicted[range(len(answer)), answer].mean()
    total.backward()
    averaged = (weight * weight.grad).abs().detach() / len(EXAMPLES)
    assert bool((averaged <= found.snip(linear.name) + 1e-6).all())
    assert error(averaged, found.snip(linear.name)) > 0.05


def test_shifted_positions_differ_at_exactly_two_tokens(tiny_kept: Callable[..., Any]) -> None:
    """The last prompt token comes in, the last answer token goes out."""
    model = tiny_kept("llama")
    one = EXAMPLES[:1]
    paper, predictive = (score_weights(model, one, positions=p) for p in ("paper", "predictive"))
    prompt, answer = encode(model, one)[0]
    seen: list[Tensor] = []
    linear = linear_maps(model)[-1]
    handle = linear.module.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    with torch.no_grad():
        running_body(model)(torch.tensor([prompt + answer]))
    handle.remove()
    into, out = seen[0][len(prompt) - 1], seen[0][-1]
    difference = predictive.gram(linear.name) - paper.gram(linear.name)
    wanted = torch.outer(into, into) - torch.outer(out, out)
    assert error(difference, wanted) < 1e-4
    assert int(torch.linalg.matrix_rank(difference.double(), rtol=1e-4)) == 2
    assert paper.n_tokens == predictive.n_tokens == len(answer)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_bridge_without_a_twin_gives_the_same(tiny_folder: Callable[..., Path], architecture: str) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_folder(architecture)
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    bare = TransformerBridge.boot_transformers(
        str(folder), hf_model=hf, tokenizer=AutoTokenizer.from_pretrained(folder)
    )
    learning = [p.requires_grad for p in bare.parameters()]
    assert any(learning)
    found = score_weights(bare, EXAMPLES, batch_size=3)
    wanted = score_weights(load_model(str(folder), dtype="float32", device="cpu"), EXAMPLES, batch_size=3)
    assert dict(found.shapes) == dict(wanted.shapes)
    for name in wanted.shapes:
        assert error(found.snip(name), wanted.snip(name)) < CLOSE
        assert error(found.gram(name), wanted.gram(name)) < CLOSE
    assert [p.requires_grad for p in bare.parameters()] == learning
    assert all(p.grad is None for p in bare.parameters())


def test_gradients_at_padding_are_exactly_zero_and_the_model_is_left_as_it_was(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_kept("llama")
    before = {name: p.clone() for name, p in model.named_parameters()}
    beyond: list[float] = []
    add = Sums._add

    def look(self: Any, name: str, g: Tensor, x: Tensor) -> None:
        beyond.extend(float(g[row, length:].abs().sum()) for row, length in enumerate(self.running.lengths))
        add(self, name, g, x)

    monkeypatch.setattr(Sums, "_add", look)
    score_weights(model, EXAMPLES, batch_size=4)
    assert len(beyond) == 4 * len(linear_maps(model))
    assert set(beyond) == {0.0}
    assert all(p.equal(before[name]) and not p.requires_grad for name, p in model.named_parameters())
    body = running_body(model)
    assert not any(m._forward_hooks for m in (linear.module for linear in linear_maps(model)))
    assert not body.get_input_embeddings()._forward_hooks


def test_scores_are_of_the_weights_as_they_are(tiny_kept: Callable[..., Any]) -> None:
    """Weights set to zero score nothing, inside removed() and there alone: block-wise pruning computes anew."""
    model = tiny_kept("gpt2")
    maps = linear_maps(model)
    shapes = {m.name: (m.d_out, m.d_in) for m in maps}
    cut = Pruning(
        label="first row", entries={"blocks.0.k": torch.arange(shapes["blocks.0.k"][1])}, shapes=shapes
    )
    before = score_weights(model, EXAMPLES)
    with removed(model, cut):
        inside = score_weights(model, EXAMPLES)
        assert float(inside.scores(maps[1], "wanda")[0].abs().sum()) == 0
    assert float(inside.snip("blocks.0.k")[0].abs().sum()) == 0
    assert float(before.snip("blocks.0.k")[0].abs().sum()) > 0
    assert error(score_weights(model, EXAMPLES).snip("blocks.0.k"), before.snip("blocks.0.k")) == 0


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    tiny_kept: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    monkeypatch.setattr(attribution_module, "CHECKPOINT_SHARE", 1e9)
    model = tiny_kept(architecture)
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    score_weights(model, EXAMPLES, batch_size=1, store=whole)
    batches = 0
    begin = Sums.begin

    def counted(self: Any, *args: Any) -> None:
        nonlocal batches
        batches += 1
        begin(self, *args)

    def dies(self: Any, *args: Any) -> None:
        counted(self, *args)
        if batches == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Sums, "begin", dies)
    with pytest.raises(KeyboardInterrupt):
        score_weights(model, EXAMPLES, batch_size=1, store=killed)
    assert not killed.exists()
    monkeypatch.setattr(Sums, "begin", counted)
    batches = 0
    resumed = score_weights(model, EXAMPLES, batch_size=4, store=killed)
    assert batches == 2, "the two finished batches are not run again, the plan is that of the first session"
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.safetensors", "whole.safetensors"]
    batches = 0
    again = score_weights(model, EXAMPLES, store=killed)
    assert batches == 0
    assert again.snip("blocks.0.q").equal(resumed.snip("blocks.0.q"))


def test_scores_of_a_model_that_the_user_booted_are_known_by_its_weights(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    store = tmp_path / "scores.safetensors"
    models = [tiny("llama"), tiny("llama"), tiny("llama", seed=1)]
    for model in models:
        object.__setattr__(model, "load_record", None)
    first = score_weights(models[0], EXAMPLES, store=store)
    assert first.fingerprint
    assert score_weights(models[1], EXAMPLES, store=store).fingerprint == first.fingerprint
    with pytest.raises(MechsafetyError, match="fingerprint"):
        score_weights(models[2], EXAMPLES, store=store)


def test_a_stored_attribution_reads_map_by_map_what_memory_holds(
    tiny_kept: Callable[..., Any], tmp_path: Path
) -> None:
    model = tiny_kept("llama")
    held = score_weights(model, EXAMPLES)
    stored = score_weights(model, EXAMPLES, store=tmp_path / "scores.safetensors")
    opened = Attribution.open(tmp_path / "scores.safetensors")
    for linear in linear_maps(model):
        for found in (stored, opened):
            assert found.snip(linear.name).equal(held.snip(linear.name))
            assert found.gram(linear.name).equal(held.gram(linear.name))
            assert found.wanda(linear).equal(held.wanda(linear))
    for name in ("shapes", "sites", "n_examples", "n_tokens", "loss", "positions", "model", "fingerprint"):
        assert getattr(opened, name) == getattr(held, name)
    assert len(opened.examples_sha256) == 64
    assert set(opened.tensors) == set(held.tensors)
    assert len(opened.tensors) == len(held.tensors)
    assert "28 linear maps" in repr(opened)


def test_files_of_other_kinds_are_reported(tiny_kept: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = tiny_kept("llama")
    path = tmp_path / "scores.safetensors"
    score_weights(model, EXAMPLES, store=path)
    with pytest.raises(
        MechsafetyError, match=r"other scores \(n_examples, n_tokens, examples_sha256 differ\)"
    ):
        score_weights(model, EXAMPLES[:2], store=path)
    with pytest.raises(MechsafetyError, match="loss differ"):
        score_weights(model, EXAMPLES, loss="sum", store=path)
    with pytest.raises(MechsafetyError, match="fingerprint"):
        score_weights(tiny_kept("llama", seed=1), EXAMPLES, store=path)
    with pytest.raises(MechsafetyError, match="does not exist"):
        Attribution.open(tmp_path / "none.safetensors")
    with pytest.raises(MechsafetyError, match=r"must end in \.safetensors"):
        score_weights(model, EXAMPLES, store=tmp_path / "scores.pt")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(2)}, foreign)
    with pytest.raises(MechsafetyError, match="holds no scores"):
        Attribution.open(foreign)
    for name, record in (
        ("format", {"format": 99, "kind": "scores"}),
        ("unfinished", {"format": 1, "kind": "unfinished scores"}),
    ):
        save_file({"x": torch.zeros(2)}, foreign, metadata={"mechsafety_attribution": json.dumps(record)})
        with pytest.raises(MechsafetyError, match=name):
            Attribution.open(foreign)
    short = tmp_path / "short.safetensors"
    short.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MechsafetyError, match="damaged"):
        Attribution.open(short)
    opened = Attribution.open(path)
    path.write_bytes(b"nothing")
    with pytest.raises(MechsafetyError, match="damaged"):
        opened.snip("blocks.0.q")


def test_a_checkpoint_of_other_work_is_reported(
    tiny_kept: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution_module, "CHECKPOINT_SHARE", 1e9)
    model = tiny_kept("llama")
    monkeypatch.setattr(attribution_module._Checkpoint, "remove", lambda self: None)
    store = tmp_path / "scores.safetensors"
    score_weights(model, EXAMPLES, batch_size=2, store=store)
    store.unlink()
    with pytest.raises(MechsafetyError, match=r"scores\.part\.safetensors.*other examples"):
        score_weights(model, EXAMPLES[:3], store=store)


# -- bad input ------------------------------------------------------------------------------------


def test_bad_input_is_reported(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    with pytest.raises(MechsafetyError, match="no examples"):
        score_weights(model, ())
    with pytest.raises(MechsafetyError, match=r"example 1 \('tell'\) has an empty answer"):
        score_weights(model, (EXAMPLES[0], Example(prompt="tell", answer=" ", whole=True)))
    with pytest.raises(MechsafetyError, match=r"has \d+ tokens; the model's context holds 256"):
        score_weights(model, (Example(prompt="tell", answer="no " * 300, whole=True),))
    with pytest.raises(MechsafetyError, match="batch_size is 0"):
        score_weights(model, EXAMPLES, batch_size=0)
    with pytest.raises(MechsafetyError, match="underflow in float16"):
        score_weights(tiny_kept("llama", dtype="float16"), EXAMPLES)
    found = score_weights(model, EXAMPLES)
    with pytest.raises(MechsafetyError, match=r"no scores of linear map 'blocks\.9\.q'"):
        found.snip("blocks.9.q")
    with pytest.raises(MechsafetyError, match=r"blocks\.0\.k is 32 x 32, its scores are 16 x 32"):
        found.scores(next(m for m in linear_maps(tiny_kept("gpt2")) if m.name == "blocks.0.k"), "wanda")


def test_numbers_that_are_none_are_reported_with_their_map(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    maps = {m.name: m for m in linear_maps(model)}
    maps["blocks.2.up"].write(torch.full((48, 32), torch.nan))
    with pytest.raises(MechsafetyError, match=r"llama.*: the input of blocks\.2\.down is NaN or infinite"):
        score_weights(model, EXAMPLES)


def test_a_map_that_not_every_batch_runs_is_reported(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    mlp = running_body(model).get_submodule("model.layers.1.mlp")
    run, calls = mlp.forward, 0

    def sometimes(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return run(x) if calls < 3 else x

    mlp.forward = sometimes  # the probe and the first batch run it
    with pytest.raises(MechsafetyError, match=r"blocks\.1\.gate did not run for a batch"):
        score_weights(model, EXAMPLES, batch_size=1)


def test_a_map_that_runs_twice_is_reported(tiny: Callable[..., Any]) -> None:
    """Its gradient is one sum over both calls, and no call alone has its absolute value."""
    model = tiny("llama")
    mlp = running_body(model).get_submodule("model.layers.1.mlp")
    run = mlp.forward
    mlp.forward = lambda x: run(run(x))
    with pytest.raises(MechsafetyError, match=r"blocks\.1\.gate ran 2 times for a batch"):
        score_weights(model, EXAMPLES)


def test_a_map_of_some_tokens_is_reported(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    mlp = running_body(model).get_submodule("model.layers.1.mlp")
    run = mlp.forward
    mlp.forward = lambda x: torch.cat([run(x[:, :2]), x[:, 2:]], dim=1)
    with pytest.raises(MechsafetyError, match=r"blocks\.1\.gate runs on \[2, 2, 32\] for 2 x 16 tokens: "):
        score_weights(model, EXAMPLES, batch_size=2)


@pytest.mark.parametrize("fails", [1, 99])
def test_when_memory_runs_out_the_first_batch_is_halved(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    model = tiny_kept("llama")
    wanted = score_weights(model, EXAMPLES, batch_size=2)
    sizes: list[int] = []
    loss = attribution_module._loss

    def scarce(body: Any, batch: Any, kind: Any) -> Tensor:
        sizes.append(len(batch.ids))
        total = loss(body, batch, kind)
        if len(sizes) <= fails:
            raise torch.OutOfMemoryError("no memory")
        return total

    monkeypatch.setattr(attribution_module, "_loss", scarce)
    if fails == 1:
        found = score_weights(model, EXAMPLES, batch_size=4)
        assert sizes == [4, 2, 2]
        assert all(found.snip(name).equal(wanted.snip(name)) for name in wanted.shapes)
        assert all(found.gram(name).equal(wanted.gram(name)) for name in wanted.shapes)
    else:
        with pytest.raises(MechsafetyError, match="memory ran out at batch size 1"):
            score_weights(model, EXAMPLES, batch_size=4)
        assert sizes == [4, 2, 1]


# -- memory plan ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_plan_counts_what_attribute_holds(
    tiny_folder: Callable[..., Path], tiny: Callable[..., Any], architecture: str
) -> None:
    plan = memory_plan(str(tiny_folder(architecture)), dtype="float32", device="cpu")
    model = tiny(architecture)
    found = score_weights(model, EXAMPLES)

    def held(kind: str) -> int:
        return sum(t.numel() * t.element_size() for name, t in found.tensors.items() if name.startswith(kind))

    assert plan.scores == held("snip/")
    assert plan.grams == held("gram/")
    assert plan.weights == 4 * sum(p.numel() for p in running_body(model).parameters())
    assert plan.n_sites == sum(name.startswith("gram/") for name in found.tensors)
    assert plan.sites_seen
    assert plan.total == plan.weights + plan.scores + plan.grams + plan.batch


def test_seven_billion_weights_fit_eighty_gigabytes() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
    )
    plan = plan_of(config, name="llama-2-7b", dtype=torch.bfloat16)
    assert plan.n_parameters == 6_738_415_616
    assert (plan.n_maps, plan.n_sites) == (224, 128)
    assert plan.grams == 4 * 32 * (3 * 4096**2 + 11008**2)
    assert plan.total < 80e9
    assert "fits in the 80.00 GB" in plan.describe(free=80_000_000_000)
    assert "does not fit in the 40.00 GB" in plan.describe(free=40_000_000_000)
    assert "<table>" in plan._repr_html_()
    longer = plan_of(config, name="llama-2-7b", dtype=torch.bfloat16, tokens=2048)
    assert longer.batch > 3 * plan.batch
    assert longer.total - longer.batch == plan.total - plan.batch


def test_bad_plans_are_reported() -> None:
    from transformers import LlamaConfig, MambaConfig

    with pytest.raises(MechsafetyError, match="tokens is 0"):
        plan_of(LlamaConfig(), name="x", dtype=torch.float32, tokens=0)
    with pytest.raises(MechsafetyError, match="unknown model"):
        memory_plan("nothing-such")
    small = MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=16)
    assert plan_of(small, name="x", dtype=torch.float32).n_maps > 0
