"""A user's own HookedTransformer computes, edits and answers as the bridge and as plain Hugging Face do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_means, residual_stream
from mechsafety.directions.direction import find_directions
from mechsafety.edits.interventions import Ablate, Add, Edit, Orthogonalise, baked, edited
from mechsafety.generation.completions import Sampling, generate, stop_tokens
from mechsafety.generation.scoring import answer_nll, option_log_probs
from mechsafety.models.chat import TokenBatch, pad_left, tokenize_prompts
from mechsafety.models.forward import forward, last_logits
from mechsafety.models.loading import PLAIN_TEMPLATE, body_of, is_hooked_transformer
from mechsafety.models.prefixes import all_last_logits, ignores_gaps
from mechsafety.models.turn_ends import end_of_turn
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.sweeps.layer_profile import _read_out, logit_lens
from mechsafety.sweeps.refusal_scores import RefusalTokens
from mechsafety.sweeps.sweep import sweep
from tests.prompt_sets import small_prompts
from tests.tokenizer_kinds import KINDS, TURNS, TURNS_WITH_BOS, save_kind

lens = pytest.importorskip(
    "transformer_lens.HookedTransformer",
    reason="transformer-lens 4.0 removed HookedTransformer; `make test-tl3` runs these tests under 3.9",
)

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")

ARCHITECTURES = ["llama", "gpt2", "qwen2"]
SEQUENCES = [[5, 9, 12, 30, 7, 21, 40, 8], [6, 11, 33], [14, 15, 16, 17, 18]]
LONG_TEMPLATE = "make a list of the river for me about gate key: " + PLAIN_TEMPLATE
PROMPTS = small_prompts(4)
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    return tokenizer


def configuration(hf: Any) -> dict[str, Any]:
    config = hf.config
    common = {
        "d_model": 32,
        "d_head": 8,
        "n_heads": 4,
        "n_layers": 4,
        "n_ctx": 256,
        "d_vocab": config.vocab_size,
        "original_architecture": type(hf).__name__,
        "init_weights": False,
        "dtype": hf.dtype,
        "device": "cpu",
    }
    if type(hf).__name__ == "GPT2LMHeadModel":
        return common | {
            "d_mlp": 128,
            "act_fn": config.activation_function,
            "eps": config.layer_norm_epsilon,
            "normalization_type": "LN",
        }
    return common | {
        "d_mlp": config.intermediate_size,
        "act_fn": config.hidden_act,
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "n_key_value_heads": config.num_key_value_heads,
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
        "rotary_base": config.rope_parameters["rope_theta"],
        "rotary_adjacent_pairs": False,
    }


def own(
    folder: Path,
    *,
    processed: bool = False,
    dtype: torch.dtype = torch.float32,
    tokenizer: Any = None,
    template: str | None = None,
) -> Any:
    """The folder's weights as a HookedTransformer that a user made."""
    from transformer_lens.config import HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    hf = plain(folder, dtype)
    converters = {
        "LlamaForCausalLM": weight_conversions.convert_llama_weights,
        "Qwen2ForCausalLM": weight_conversions.convert_qwen2_weights,
        "GPT2LMHeadModel": weight_conversions.convert_gpt2_weights,
    }
    config = HookedTransformerConfig(**configuration(hf))
    tokenizer = tokenizer or tokenizer_of(folder)
    model = lens.HookedTransformer(config, tokenizer, default_padding_side="left")
    state = {k: v.detach().clone() for k, v in converters[type(hf).__name__](hf, config).items()}
    model.load_and_process_state_dict(
        state,
        fold_ln=processed,
        center_writing_weights=processed,
        center_unembed=processed,
        fold_value_biases=processed,
    )
    if template is not None:
        model.tokenizer.chat_template = template
    return model


Maker = Callable[..., Any]


@pytest.fixture
def both(tiny_folder: Callable[..., Path], tiny: Maker) -> Callable[..., tuple[Any, Any]]:
    """The same weights as a user's HookedTransformer and as a bridge."""

    def make(architecture: str, *, template: str | None = None) -> tuple[Any, Any]:
        bridge = tiny(architecture)
        if template is not None:
            bridge.tokenizer.chat_template = template
        return own(tiny_folder(architecture), template=template), bridge

    return make


def padded() -> TokenBatch:
    return pad_left(SEQUENCES, pad=0)


def blocks_of(hf: Any) -> Any:
    return hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers


def streams(hf: Any, ids: list[int]) -> Tensor:
    """Every block's input and the last one's output [layer, token, d_model], read by plain hooks."""
    seen: list[Tensor] = []
    blocks = blocks_of(hf)
    handles = [
        block.register_forward_pre_hook(
            lambda _m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for block in blocks
    ]
    last = lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
    handles.append(blocks[-1].register_forward_hook(last))
    with torch.inference_mode():
        hf(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return torch.cat(seen)


@contextmanager
def plainly_added(hf: Any, vector: Tensor, *, layer: int, columns: slice) -> Iterator[None]:
    def add(_m: Any, args: Any, kwargs: Any) -> Any:
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        x[:, columns] += vector
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    handle = blocks_of(hf)[layer].register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


# -- logits and caches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "llama-tied"])
def test_padded_logits_equal_hugging_faces_single_ones(
    tiny_folder: Callable[..., Path], architecture: str
) -> None:
    model, hf = own(tiny_folder(architecture)), plain(tiny_folder(architecture))
    assert is_hooked_transformer(model)
    assert body_of(model) is model
    with torch.inference_mode():
        expected = [hf(input_ids=torch.tensor([s])).logits[0] for s in SEQUENCES]
    last = torch.stack([e[-1] for e in expected])
    torch.testing.assert_close(last_logits(model, padded()), last, rtol=1e-4, atol=1e-4)
    several = forward(model, padded(), logits=3).logits
    torch.testing.assert_close(several, torch.stack([e[-3:] for e in expected]), rtol=1e-4, atol=1e-4)
    # The control: without the mask padding is read as text.
    batch = padded()
    unmasked = TokenBatch(rows=batch.rows, ids=batch.ids, mask=torch.ones_like(batch.mask))
    assert (last_logits(model, unmasked)[1:] - last[1:]).abs().max() > 0.05


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("template", [None, LONG_TEMPLATE], ids=["short", "shared-prefix"])
def test_residual_streams_equal_hugging_faces(
    tiny_folder: Callable[..., Path],
    both: Callable[..., tuple[Any, Any]],
    architecture: str,
    template: str | None,
) -> None:
    model, bridge = both(architecture, template=template)
    hf, positions = plain(tiny_folder(architecture)), (-1, -2, -3)
    cache = residual_stream(model, PROMPTS.fit, positions=positions, batch_size=5)
    sequences = tokenize_prompts(bridge, [p.text for p in PROMPTS.fit])
    assert sequences == tokenize_prompts(model, [p.text for p in PROMPTS.fit])
    expected = torch.stack([streams(hf, s)[:, list(positions)].transpose(0, 1) for s in sequences])
    torch.testing.assert_close(cache.activations, expected, rtol=1e-4, atol=1e-4)
    singly = residual_stream(model, PROMPTS.fit, positions=positions, batch_size=1)
    torch.testing.assert_close(cache.activations, singly.activations, rtol=1e-4, atol=1e-4)
    same = residual_stream(bridge, PROMPTS.fit, positions=positions, batch_size=5)
    torch.testing.assert_close(cache.activations, same.activations, rtol=1e-4, atol=1e-4)
    means = residual_means(model, PROMPTS.fit, positions=positions, batch_size=5)
    harmful = cache.select("harmful").double().mean(0)
    torch.testing.assert_close(means.means[means.labels.index("harmful")], harmful, rtol=1e-5, atol=1e-5)
    assert cache.fingerprint not in ("", same.fingerprint)
    assert cache.model == f"custom-{cache.fingerprint[:8]}"


def test_shared_tokens_run_once(both: Callable[..., tuple[Any, Any]]) -> None:
    model, _ = both("llama", template=LONG_TEMPLATE)
    widths: list[int] = []
    sequences = tokenize_prompts(model, [p.text for p in PROMPTS.report])
    assert ignores_gaps(model, max(len(s) for s in sequences), torch.device("cpu"))
    handle = model.blocks[0].register_forward_pre_hook(lambda _m, args: widths.append(args[0].shape[1]))
    logits = all_last_logits(model, model, sequences, batch_size=64)
    handle.remove()
    assert widths[0] >= 8
    assert sum(widths) <= max(len(s) for s in sequences)
    alone = torch.cat([last_logits(model, pad_left([s], pad=0)) for s in sequences])
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


def test_processed_weights_give_the_same_distribution_from_other_streams(
    tiny_folder: Callable[..., Path],
) -> None:
    raw, folded = own(tiny_folder("gpt2")), own(tiny_folder("gpt2"), processed=True)
    a, b = (torch.log_softmax(last_logits(m, padded()), -1) for m in (raw, folded))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    first, second = (residual_stream(m, PROMPTS.fit).activations for m in (raw, folded))
    assert (first - second).abs().max() > 0.05
    # Edits and weights agree on them as well.
    edit = Ablate(VECTOR)
    with edited(folded, edit):
        hooks = last_logits(folded, padded())
    with baked(folded, edit):
        torch.testing.assert_close(last_logits(folded, padded()), hooks, rtol=1e-3, atol=1e-3)


def test_logit_lens_equals_the_bridges(both: Callable[..., tuple[Any, Any]]) -> None:
    model, bridge = both("gpt2")
    direction = find_directions(residual_stream(bridge, PROMPTS.fit), seed=0).at(layer=2, position=-1)
    a, b = logit_lens(model, direction), logit_lens(bridge, direction)
    assert a["token"].tolist() == b["token"].tolist()


# -- edits as hooks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("positions", "columns"),
    [("all", slice(None)), ("last_prompt", slice(-1, None)), ("prompt", slice(None))],
)
def test_added_vector_equals_a_plain_hook(
    tiny_folder: Callable[..., Path], architecture: str, positions: Any, columns: slice
) -> None:
    model, hf = own(tiny_folder(architecture)), plain(tiny_folder(architecture))
    before = last_logits(model, padded())
    with edited(model, Add(VECTOR, layer=1, coefficient=3.0, positions=positions)):
        ours = last_logits(model, padded())
    with plainly_added(hf, 3.0 * VECTOR, layer=1, columns=columns), torch.inference_mode():
        theirs = torch.cat([hf(input_ids=torch.tensor([s])).logits[:, -1] for s in SEQUENCES])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - before).abs().max() > 0.05
    assert torch.equal(last_logits(model, padded()), before)


EDITS: dict[str, Edit | None] = {
    "none": None,
    "ablate": Ablate(VECTOR),
    "prompt": Ablate(VECTOR, positions="prompt", sites=("attn_out", "resid_post")),
    "generated": Ablate(VECTOR, positions="generated"),
    "last_prompt": Add(VECTOR, layer=1, coefficient=2.0, positions="last_prompt"),
    "orthogonalise": Orthogonalise(VECTOR, layers=(1, 2)),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", [n for n in EDITS if n not in ("none", "generated")])
def test_edited_logits_and_receipts_equal_the_bridges(
    both: Callable[..., tuple[Any, Any]], architecture: str, name: str
) -> None:
    edit = EDITS[name]
    assert edit is not None
    found = []
    for model in both(architecture):
        with edited(model, edit) as receipt:
            found.append((last_logits(model, padded()), receipt))
        assert (last_logits(model, padded()) - found[-1][0]).abs().max() > 0.02
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)
    assert found[0][1] == found[1][1]


def touched(model: Any, edit: Edit, *, cuts: list[int], prompt: int) -> Tensor:
    """Which (row, column) an edit changed at block 1's input, over passes cut at ``cuts``."""
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    batch, changed, state = padded(), [], {}

    def before(x: Tensor, hook: Any) -> Tensor:
        state["x"] = x.clone()
        return x

    def after(x: Tensor, hook: Any) -> Tensor:
        changed.append((x != state["x"]).any(-1))
        return x

    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", len(batch.ids)) if cuts else None
    with (
        torch.inference_mode(),
        model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", before)]),
        edited(model, edit, prompt_length=prompt),
        model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", after)]),
    ):
        for start, end in zip([0, *cuts], [*cuts, batch.ids.shape[1]], strict=True):
            model(batch.ids[:, start:end], attention_mask=batch.mask[:, start:end], past_kv_cache=cache)
    return torch.cat(changed, dim=1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("positions", ["all", "prompt", "last_prompt", "generated"])
def test_positions_mean_the_same_cached_and_not(
    tiny_folder: Callable[..., Path], architecture: str, positions: Any
) -> None:
    model = own(tiny_folder(architecture))
    edit = Add(VECTOR, layer=1, coefficient=3.0, positions=positions)
    real = padded().mask.bool()
    columns = torch.arange(real.shape[1])
    expected = {
        "all": torch.ones_like(real),
        "prompt": real & (columns < 6),
        "last_prompt": real & (columns == 5),
        "generated": real & (columns >= 6),
    }[positions]
    assert torch.equal(touched(model, edit, cuts=[], prompt=6), expected)
    assert torch.equal(touched(model, edit, cuts=[6, 7], prompt=6), expected)
    assert torch.equal(touched(model, edit, cuts=[2, 5, 7], prompt=6), expected)


def test_edits_act_however_the_user_calls_the_model(tiny_folder: Callable[..., Path]) -> None:
    model = own(tiny_folder("llama"))
    ids = torch.tensor(SEQUENCES[2:])
    edit = Ablate(VECTOR, sites=("resid_pre",), layers=(2, 3), positions="last_prompt")
    with torch.inference_mode():
        middle = model(ids, stop_at_layer=2)
        with edited(model, edit) as receipt:
            whole = model(ids)
            resumed = model(middle, start_at_layer=2)
        assert receipt.summary() == {"hooks": 2, "fired": 4, "positions": 2}
        torch.testing.assert_close(whole, resumed)
        assert (whole - model(ids)).abs().max() > 0.02
        with edited(model, edit) as receipt:
            model("make a list", prepend_bos=False)
        assert receipt.summary()["positions"] == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_prompt_is_each_rows_own_on_either_side_of_the_padding(
    tiny_folder: Callable[..., Path], side: str
) -> None:
    model = own(tiny_folder("llama"))
    model.tokenizer.padding_side = side
    texts = ["make a list", "tell me about the river and the garden"]
    edit = Add(VECTOR, layer=1, coefficient=3.0, positions="last_prompt")
    with torch.inference_mode():
        n = model.to_tokens(texts[:1], prepend_bos=False).shape[1]
        place = n - 1 if side == "right" else -1
        plain = model(texts, prepend_bos=False)[0, place]
        with edited(model, edit) as receipt:
            together = model(texts, prepend_bos=False)[0, place]
        with edited(model, edit):
            alone = model(texts[:1], prepend_bos=False)[0, -1]
        assert receipt.summary()["positions"] == 2
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
        assert (together - plain).abs().max() > 0.05
        late = Add(VECTOR, layer=2, coefficient=3.0, positions="last_prompt")
        stream = model(texts, prepend_bos=False, stop_at_layer=2)
        with edited(model, late):
            model(texts, prepend_bos=False)
            with pytest.raises(MechsafetyError, match="attention_mask"):
                model(stream, start_at_layer=2)


@pytest.mark.parametrize("positions", ["prompt", "last_prompt", "generated"])
def test_the_models_own_generate_has_one_prompt_with_a_cache_and_without(
    tiny_folder: Callable[..., Path], positions: Any
) -> None:
    model = own(tiny_folder("llama"))
    edit = Add(VECTOR, layer=1, coefficient=3.0, positions=positions)
    found = []
    for cached in (True, False):
        with edited(model, edit) as receipt:
            out = model.generate(
                torch.tensor(SEQUENCES[:1]),
                max_new_tokens=6,
                do_sample=False,
                verbose=False,
                return_type="tokens",
                use_past_kv_cache=cached,
                stop_at_eos=False,
            )
        assert receipt.summary()["positions"] > 0
        found.append(out.tolist())
    assert found[0] == found[1]
    with edited(model, Add(VECTOR, layer=1, coefficient=3.0, positions="last_prompt")):
        model(torch.tensor([[5, 9]]))
        with pytest.raises(MechsafetyError, match="prompt_length"):
            model(torch.tensor([[5, 9, 12]]))


def test_missing_sites_and_untouched_models_are_errors(tiny_folder: Callable[..., Path]) -> None:
    model = own(tiny_folder("llama"))
    with pytest.raises(MechsafetyError, match="touched nothing"), edited(model, Ablate(VECTOR)):
        pass
    with pytest.raises(MechsafetyError, match="missed"), edited(model, Ablate(VECTOR)):
        model(torch.tensor([[5, 6]]), stop_at_layer=2)
    with pytest.raises(MechsafetyError, match="another model"), edited(model, Ablate(torch.ones(16))):
        pass


# -- edits as weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "llama-tied"])
@pytest.mark.parametrize(
    "edit",
    [
        Ablate(VECTOR),
        Ablate(torch.randn(3, 32, generator=torch.Generator().manual_seed(1))),
        Orthogonalise(VECTOR, alpha=0.4, layers=(1, 2)),
        Orthogonalise(VECTOR, writers=("mlp_out",)),
        Orthogonalise(VECTOR, norm_preserving=True),
    ],
    ids=["ablate", "subspace", "part", "mlp", "norms"],
)
def test_baked_equals_hooks_and_the_bridge(
    both: Callable[..., tuple[Any, Any]], architecture: str, edit: Any
) -> None:
    model, bridge = both(architecture)
    before = last_logits(model, padded())
    with baked(model, edit):
        ours = last_logits(model, padded())
        singly = torch.cat([last_logits(model, pad_left([s], pad=0)) for s in SEQUENCES])
    with baked(bridge, edit):
        theirs = last_logits(bridge, padded())
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, singly, rtol=1e-4, atol=1e-4)
    assert (ours - before).abs().max() > 0.02
    if not getattr(edit, "norm_preserving", False):
        with edited(model, edit):
            hooked = last_logits(model, padded())
        torch.testing.assert_close(ours, hooked, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_back_bit_for_bit(
    tiny_folder: Callable[..., Path], architecture: str, dtype: torch.dtype
) -> None:
    model = own(tiny_folder(architecture), dtype=dtype)
    before = {name: (p, p.clone()) for name, p in model.named_parameters()}

    def fail_inside() -> None:
        with baked(model, Ablate(VECTOR)):
            during = dict(model.named_parameters())
            changed = {n for n, (_, old) in before.items() if not torch.equal(old, during[n])}
            expected = {
                "embed.W_E",
                *(f"blocks.{i}.{n}" for i in range(4) for n in ("attn.W_O", "mlp.W_out")),
            }
            if architecture == "gpt2":
                biases = ("attn.b_O", "mlp.b_out")
                expected |= {"pos_embed.W_pos", *(f"blocks.{i}.{n}" for i in range(4) for n in biases)}
            assert changed == expected
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    after = dict(model.named_parameters())
    for name, (parameter, old) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, old)


# -- sweeps and scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("template", [None, LONG_TEMPLATE], ids=["short", "shared-prefix"])
def test_sweep_equals_the_bridges(
    both: Callable[..., tuple[Any, Any]], architecture: str, template: str | None
) -> None:
    refusals = RefusalTokens(ids=(20, 30), texts=("a", "b"), weight=(1.0, 1.0), source="user")
    tables = []
    for model in both(architecture, template=template):
        directions = find_directions(residual_stream(model, PROMPTS.fit, positions=(-1, -2)), seed=0)
        tables.append(sweep(model, directions, PROMPTS.validation, refusal_tokens=refusals).to_frame())
    ours, theirs = tables
    assert ours["kl"].max() > 0.01
    for column in ours.columns:
        a, b = (torch.tensor(t[column].to_numpy(dtype=float)) for t in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3, equal_nan=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", [None, "all", "prompt", "last_prompt", "generated"])
@pytest.mark.parametrize("prefix", [[], list(range(40, 52))], ids=["alone", "shared-prefix"])
def test_scores_of_answers_equal_the_bridges(
    both: Callable[..., tuple[Any, Any]], architecture: str, positions: Any, prefix: list[int]
) -> None:
    edit = None if positions is None else Ablate(VECTOR, positions=positions)
    contexts = [[*prefix, *s] for s in SEQUENCES]
    answers, options = [[7, 8, 9], [], [10]], [[7], [8, 9, 10], [11, 12]]
    pair = both(architecture)
    (first, nothing, last), theirs = (answer_nll(m, contexts, answers, edit=edit) for m in pair)
    assert nothing is None
    assert [first, last] == pytest.approx([theirs[0], theirs[2]], rel=1e-4)
    ours, theirs = (option_log_probs(m, contexts, options, edit=edit) for m in pair)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    alone = option_log_probs(pair[0], contexts, options, edit=edit, batch_size=1, share_prefix=False)
    torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-4)


# -- answers -------------------------------------------------------------------------------------------


def answers_of(model: Any, **options: Any) -> dict[str, tuple[int, ...]]:
    done = generate(model, PROMPTS.report, **{"max_new_tokens": 10, "seed": 0, **options})
    return {c.id: c.tokens for c in done}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", list(EDITS))
def test_answers_equal_the_bridges_on_both_paths(
    both: Callable[..., tuple[Any, Any]], architecture: str, name: str
) -> None:
    (model, bridge), edit = both(architecture), EDITS[name]
    options: dict[str, Any] = {"max_new_tokens": 10, "seed": 0, "edit": edit}
    fast = generate(model, PROMPTS.report, batch_size=4, **options)
    theirs = generate(bridge, PROMPTS.report, batch_size=4, **options)
    assert list(fast) == list(theirs)
    sites = [set(done.coverage.fired) if done.coverage else set() for done in (fast, theirs)]
    assert sites[0] == sites[1]  # how often they fired may differ: one of them may run shared tokens once
    tokens = {c.id: c.tokens for c in fast}
    slow = generate(model, PROMPTS.report, fast_path=False, **options)
    assert tokens == {c.id: c.tokens for c in slow}
    assert tokens == answers_of(model, edit=edit, batch_size=3)
    if edit is not None:
        assert tokens != answers_of(model)


def test_answers_equal_the_models_own_generate(tiny_folder: Callable[..., Path]) -> None:
    model = own(tiny_folder("llama"))
    texts = [p.text for p in PROMPTS.report]
    edit = Ablate(VECTOR, positions="generated")
    expected = answers_of(model, edit=edit)
    for prompt, ids in zip(PROMPTS.report, tokenize_prompts(model, texts), strict=True):
        with edited(model, edit, prompt_length=len(ids)):
            out = model.generate(
                torch.tensor([ids]), max_new_tokens=10, do_sample=False, prepend_bos=False, verbose=False
            )
        assert tuple(out[0, len(ids) :].tolist())[: len(expected[prompt.id])] == expected[prompt.id]


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_draws_equal_hugging_faces_from_the_same_seed(
    both: Callable[..., tuple[Any, Any]], top_p: float
) -> None:
    model, bridge = both("llama")
    sampling = Sampling(temperature=1.5, top_p=top_p)
    first = answers_of(model, sampling=sampling, seed=1, batch_size=4)
    assert first == answers_of(bridge, sampling=sampling, seed=1, batch_size=4)
    assert first == answers_of(model, sampling=sampling, seed=1, batch_size=4)
    assert first != answers_of(model, sampling=sampling, seed=2, batch_size=4)


def test_answers_stop_where_the_template_ends_a_turn(tiny_folder: Callable[..., Path]) -> None:
    model = own(tiny_folder("llama"))
    assert stop_tokens(model) == {1}
    ordinary = list(generate(model, PROMPTS.report, max_new_tokens=10, seed=0))
    stop = ordinary[0].tokens[3]
    word = model.tokenizer.convert_ids_to_tokens(stop)
    turns = "{% for m in messages %}Question: {{ m.content }} TURN {% endfor %}Answer:"
    model.tokenizer.chat_template = turns.replace("TURN", word)
    # An ordinary token after the answer is text, a special one is the end of the turn.
    assert stop_tokens(model) == {1}
    model.tokenizer.add_special_tokens({"additional_special_tokens": [word]})
    assert stop_tokens(model) == {1, stop}
    ordinary = list(generate(own(tiny_folder("llama")), PROMPTS.report, max_new_tokens=10, seed=0))
    model.tokenizer.chat_template = (
        PLAIN_TEMPLATE + "{% if not add_generation_prompt %}STOP{% endif %}".replace("STOP", word)
    )
    assert stop_tokens(model) == {1, stop}
    for before, after in zip(
        ordinary, generate(model, PROMPTS.report, max_new_tokens=10, seed=0), strict=True
    ):
        cut = before.tokens.index(stop) if stop in before.tokens else None
        assert after.tokens == before.tokens[:cut]
        assert after.finish == ("length" if cut is None else "stop")


def test_ends_that_are_special_and_not_among_the_special_ids_stop_answers(
    tiny_folder: Callable[..., Path],
) -> None:
    from tokenizers import AddedToken

    model = own(tiny_folder("llama"))
    ordinary = list(generate(model, PROMPTS.report, max_new_tokens=6, seed=0))
    model.tokenizer.add_tokens([AddedToken("<|end|>", special=True)])
    end = model.tokenizer.convert_tokens_to_ids("<|end|>")
    assert end not in model.tokenizer.all_special_ids
    model.tokenizer.chat_template = PLAIN_TEMPLATE.replace("\n\n", "<|end|>\n")
    assert (stop_tokens(model), end_of_turn(model)) == ({1, end}, end)
    model.unembed.b_U.data[end] = 8.0
    ended = list(generate(model, PROMPTS.report, max_new_tokens=6, seed=0))
    assert any(c.finish == "stop" for c in ended)
    assert not any(end in c.tokens for c in ended)
    assert all(c.finish == "length" for c in ordinary)


def test_logits_pass_the_models_own_head(tiny_folder: Callable[..., Path]) -> None:
    model = own(tiny_folder("gpt2"))
    before = last_logits(model, padded())
    model.cfg.output_logits_soft_cap = 3.0
    torch.testing.assert_close(last_logits(model, padded()), 3 * torch.tanh(before / 3))
    # Its own forward says the same, of each row alone; the lens too reads by the capped head.
    alone = torch.stack([model(torch.tensor([s]), prepend_bos=False)[0, -1] for s in SEQUENCES])
    torch.testing.assert_close(last_logits(model, padded()), alone, rtol=1e-4, atol=1e-4)
    streams = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    capped = _read_out(model, streams)
    model.cfg.output_logits_soft_cap = -1.0
    torch.testing.assert_close(capped, 3 * torch.tanh(_read_out(model, streams) / 3))
    assert (capped - _read_out(model, streams)).abs().max() > 0.05


def test_bfloat16_answers_under_an_edit(tiny_folder: Callable[..., Path]) -> None:
    model = own(tiny_folder("llama"), dtype=torch.bfloat16)
    before = answers_of(model)
    during = answers_of(model, edit=Ablate(VECTOR))
    assert during == answers_of(model, edit=Ablate(VECTOR))
    assert answers_of(model) == before != during


def test_user_hooks_act_in_every_part(tiny_folder: Callable[..., Path]) -> None:
    model = own(tiny_folder("llama"))
    plain_answers, plain_cache = answers_of(model), residual_stream(model, PROMPTS.fit)
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: x + 3 * VECTOR)
    with_hook = answers_of(model)
    assert with_hook != plain_answers
    assert with_hook == answers_of(model, fast_path=False)
    cache = residual_stream(model, PROMPTS.fit).activations
    assert torch.equal(cache[:, :, 0], plain_cache.activations[:, :, 0])
    assert (cache[:, :, 2:] - plain_cache.activations[:, :, 2:]).abs().amax() > 0.05
    answers_of(model, edit=Ablate(VECTOR))
    assert with_hook == answers_of(model)
    model.reset_hooks()
    assert answers_of(model) == plain_answers
    forward(body_of(model), padded(), logits=None)


# -- the tokenizer it brings ---------------------------------------------------------------------------


def test_nothing_is_added_to_the_template(tiny_folder: Callable[..., Path]) -> None:
    from transformers import AutoTokenizer

    folder = tiny_folder("llama")
    expected = tokenize_prompts(own(folder), ["make a list"])
    tokenizer = AutoTokenizer.from_pretrained(folder, bos_token="<eos>")
    model = own(folder, tokenizer=tokenizer, template=PLAIN_TEMPLATE)
    assert tokenize_prompts(model, ["make a list"]) == expected


@pytest.mark.parametrize("template", [TURNS, TURNS_WITH_BOS, PLAIN_TEMPLATE])
@pytest.mark.parametrize("kind", list(KINDS))
def test_texts_begin_as_the_tokenizer_begins_them(
    tiny_folder: Callable[..., Path], tmp_path: Path, kind: str, template: str
) -> None:
    tokenizer = save_kind(tmp_path, KINDS[kind], template=template)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "make a list"}], tokenize=False, add_generation_prompt=True
    )
    start = [tokenizer.convert_tokens_to_ids(KINDS[kind].start)] if KINDS[kind].start else []
    exact = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    bare = tokenizer("make a list", add_special_tokens=False)["input_ids"]
    model = own(tiny_folder("llama"), tokenizer=tokenizer)
    assert tokenize_prompts(model, ["make a list"]) == [(start if template == PLAIN_TEMPLATE else []) + exact]
    assert tokenize_prompts(model, ["make a list"], rendering="text") == [start + bare]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prompt_fits_in_its_window_or_is_an_error(
    tiny_folder: Callable[..., Path], architecture: str
) -> None:
    model = own(tiny_folder(architecture))
    room = 256 - len(tokenize_prompts(model, ["river"])[0]) + 1
    assert residual_stream(model, [long_prompt(room)]).activations.isfinite().all()
    with pytest.raises(MechsafetyError, match="256 tokens: the first is 'long', 257 tokens"):
        residual_stream(model, [long_prompt(room + 1)])
    cut = generate(model, [long_prompt(room + 1)], max_new_tokens=4, seed=0, truncate_prompts=True)[0]
    assert cut.n_prompt_tokens == 252


def long_prompt(n: int) -> Prompt:
    return Prompt(id="long", text=" ".join(["river"] * n), label="harmful")


def test_models_without_tokenizer_or_template_report_what_to_do(tiny_folder: Callable[..., Path]) -> None:
    model = own(tiny_folder("llama"))
    model.tokenizer.chat_template = None
    for use in (
        lambda: residual_stream(model, PROMPTS.fit),
        lambda: generate(model, PROMPTS.report, max_new_tokens=1, seed=0),
    ):
        with pytest.raises(MechsafetyError, match=r"no chat template .* set model\.tokenizer\.chat_template"):
            use()
    model.tokenizer = None
    with pytest.raises(MechsafetyError, match=r"no tokenizer.*model\.set_tokenizer\(tokenizer\)"):
        residual_stream(model, PROMPTS.fit)
