"""The user's own models are told apart by their weights: their directions, edits and names do not mix."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.directions.files import read_directions, save_directions
from mechsafety.edits.expressions import parse_edit
from mechsafety.edits.files import load_edit, save_edit
from mechsafety.edits.interventions import Ablate
from mechsafety.generation.completions import generate
from mechsafety.generation.scoring import answer_nll
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import known_fingerprint, load_record, model_name
from mechsafety.sweeps.layer_profile import profile_layers
from mechsafety.sweeps.refusal_scores import RefusalTokens
from mechsafety.sweeps.sweep import sweep
from tests.prompt_sets import small_prompts

PROMPTS = small_prompts(4)
REFUSALS = RefusalTokens(ids=(20, 30), texts=("a", "b"), weight=(1.0, 1.0), source="user")
HOOKED = importlib.util.find_spec("transformer_lens.HookedTransformer") is not None

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")


def bridged(folder: Path, *, processed: bool = False) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    hf = AutoModelForCausalLM.from_pretrained(folder)
    model = TransformerBridge.boot_transformers(str(folder), hf_model=hf, tokenizer=tokenizer, device="cpu")
    if processed:
        model.enable_compatibility_mode(disable_warnings=True)
    return model


def hooked(folder: Path, *, processed: bool = False) -> Any:
    from tests.models.test_hooked_transformer import own

    return own(folder, processed=processed)


OWN = [
    bridged,
    pytest.param(
        hooked, marks=pytest.mark.skipif(not HOOKED, reason="transformer-lens 4.0 has no HookedTransformer")
    ),
]


def found(model: Any) -> Directions:
    return find_directions(residual_stream(model, PROMPTS.fit), seed=0)


@pytest.mark.parametrize("make", OWN)
def test_two_checkpoints_of_one_architecture_keep_their_own_directions(
    tiny_folder: Callable[..., Path], tmp_path: Path, make: Callable[..., Any]
) -> None:
    models = [make(tiny_folder("gpt2", seed)) for seed in (0, 1)]
    assert all(load_record(model) is None for model in models)
    assert model_name(models[0]) != model_name(models[1])
    directions = [found(model) for model in models]
    file = tmp_path / "two.safetensors"
    save_directions(directions, file)
    assert list(read_directions(file)) == [model_name(model) for model in models]
    for model, own in zip(models, directions, strict=True):
        edit: Any = parse_edit(f"ablate({file}, layer=2)", model)
        torch.testing.assert_close(edit.basis[0], own.at(layer=2).unit)
    # The same weights once more are the same model.
    assert known_fingerprint(make(tiny_folder("gpt2", 0))) == directions[0].fingerprint != ""


@pytest.mark.parametrize("make", OWN)
def test_a_raw_models_directions_are_not_its_processed_twins(
    tiny_folder: Callable[..., Path], tmp_path: Path, make: Callable[..., Any]
) -> None:
    raw, processed = make(tiny_folder("gpt2")), make(tiny_folder("gpt2"), processed=True)
    directions, file = found(raw), tmp_path / "edit.safetensors"
    save_edit(Ablate(directions.at(layer=2)), file, model=raw)
    directions.save(tmp_path / "raw.safetensors")
    expression = f"ablate({tmp_path / 'raw.safetensors'}, layer=2{{}})"

    def uses(model: Any) -> list[Callable[[], Any]]:
        held_out = residual_stream(model, PROMPTS.validation)
        return [
            lambda: sweep(model, directions, PROMPTS.validation, refusal_tokens=REFUSALS),
            lambda: profile_layers(directions, held_out, seed=0),
            lambda: load_edit(file, model=model),
            lambda: parse_edit(expression.format(""), model),
        ]

    for use in uses(raw):
        use()
    for use in uses(processed):
        with pytest.raises(MechsafetyError):
            use()
    assert load_edit(file, model=processed, allow_other_weights=True)
    assert parse_edit(expression.format(", any_weights=true"), processed)


@pytest.mark.parametrize("make", OWN)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_streams_of_raw_and_processed_weights_are_the_same_under_rms_norms(
    tiny_folder: Callable[..., Path], make: Callable[..., Any], architecture: str
) -> None:
    raw, processed = make(tiny_folder(architecture)), make(tiny_folder(architecture), processed=True)
    assert known_fingerprint(raw) != known_fingerprint(processed)
    streams = [residual_stream(model, PROMPTS.fit).activations for model in (raw, processed)]
    apart = float((streams[0] - streams[1]).abs().max())
    assert apart < 1e-3 if architecture == "llama" else apart > 0.05


def test_a_loaded_model_has_its_files_fingerprint_until_it_is_processed(
    tiny: Callable[..., Any],
) -> None:
    model = tiny("llama")
    record = load_record(model)
    assert record is not None
    assert known_fingerprint(model) == record.fingerprint == residual_stream(model, PROMPTS.fit).fingerprint
    model.enable_compatibility_mode(disable_warnings=True)
    assert known_fingerprint(model) != record.fingerprint


def test_two_directions_of_one_model_do_not_go_into_one_file(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    cache = residual_stream(tiny("llama"), PROMPTS.fit)
    both = [find_directions(cache, method=method, seed=0) for method in ("mean_difference", "leace")]
    with pytest.raises(MechsafetyError, match="one of each"):
        save_directions(both, tmp_path / "both.safetensors")
    assert not (tmp_path / "both.safetensors").exists()


def test_a_bridge_without_a_tokenizer_or_a_template_reports_what_helps(
    tiny_folder: Callable[..., Path],
) -> None:
    model = bridged(tiny_folder("llama"))
    tokenizer = model.tokenizer
    contexts, asked = tokenize_prompts(model, [p.text for p in PROMPTS.report]), PROMPTS.report
    scores = answer_nll(model, contexts, [[7, 8]] * len(contexts))
    tokenizer.chat_template = None
    with pytest.raises(MechsafetyError, match=r"set model\.tokenizer\.chat_template"):
        generate(model, asked, max_new_tokens=2, seed=0)
    # Bare text needs no template, tokens need no tokenizer.
    assert len(generate(model, asked, max_new_tokens=2, seed=0, rendering="text")) == len(asked)
    model.tokenizer = None
    assert answer_nll(model, contexts, [[7, 8]] * len(contexts)) == scores
    for rendering in ("chat", "text"):
        with pytest.raises(MechsafetyError, match=r"model\.tokenizer = tokenizer"):
            generate(model, asked, max_new_tokens=2, seed=0, rendering=rendering)
    model.tokenizer = tokenizer  # the remedy that is named
    assert len(generate(model, asked, max_new_tokens=2, seed=0, rendering="text")) == len(asked)
