"""The same tokens by every path, in every batch, resumed or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Add, Edit, Orthogonalise
from mechsafety.experiments.generation.config import GenerationConfig
from mechsafety.experiments.generation.experiment import run_generation
from mechsafety.generation import completions as generation
from mechsafety.generation.answered import Completion
from mechsafety.generation.completions import Sampling, generate, generation_plan, overridden_defaults
from mechsafety.generation.continuations import Request, continuations
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import generation_twin, load_model
from tests.prompt_sets import small_prompts, write_csv

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))
EDITS: dict[str, Edit | None] = {
    "none": None,
    "ablate": Ablate(VECTOR),
    "generated": Ablate(VECTOR, positions="generated"),
    "last_prompt": Add(VECTOR, layer=1, coefficient=2.0, positions="last_prompt"),
    "orthogonalise": Orthogonalise(VECTOR, layers=(1, 2), writers=("attn_out", "mlp_out")),
}


def tokens(model: Any, **options: Any) -> dict[str, tuple[int, ...]]:
    prompts = small_prompts(4).report
    return {c.id: c.tokens for c in generate(model, prompts, max_new_tokens=10, seed=0, **options)}


ONCE = {
    "none": "gpt2",
    "ablate": "llama",
    "generated": "gpt2",
    "last_prompt": "gpt2",
    "orthogonalise": "llama",
}
"""The architecture on which an edit is tried on every run."""


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        pytest.param(name, architecture, marks=() if once == architecture else pytest.mark.slow)
        for name, once in ONCE.items()
        for architecture in ("llama", "gpt2")
    ],
)
def test_fast_path_equals_reference_path(tiny: Callable[..., Any], architecture: str, name: str) -> None:
    model, edit = tiny(architecture), EDITS[name]
    fast = tokens(model, edit=edit, batch_size=4)
    assert fast == tokens(model, edit=edit, fast_path=False)
    # Without the twin the bridge itself generates; with it the plain modules do.
    del model.__dict__["_mechsafety_twin"]
    assert generation_twin(model) is None
    assert fast == tokens(model, edit=edit, batch_size=4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_float32_tokens_do_not_depend_on_the_batch_size(
    tiny_kept: Callable[..., Any], architecture: str
) -> None:
    model = tiny_kept(architecture)
    whole = tokens(model, edit=Ablate(VECTOR), batch_size=64)
    assert whole == tokens(model, edit=Ablate(VECTOR), batch_size=3)
    assert whole == tokens(model, edit=Ablate(VECTOR), batch_size=1)
    assert whole != tokens(model, batch_size=64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_edit_is_off_afterwards(tiny_kept: Callable[..., Any], dtype: str) -> None:
    model = tiny_kept("llama", dtype=dtype)
    before = tokens(model)
    tokens(model, edit=Ablate(VECTOR))
    assert tokens(model) == before


def test_coverage_counts_every_step(tiny_kept: Callable[..., Any]) -> None:
    done = generate(
        tiny_kept("llama"),
        small_prompts(4).report,
        edit=Ablate(VECTOR),
        max_new_tokens=5,
        seed=0,
        batch_size=4,
    )
    assert done.coverage is not None
    assert done.coverage.summary()["hooks"] == 12
    assert min(done.coverage.fired.values()) == max(done.coverage.fired.values()) >= 2


def test_sampling_needs_its_seed_and_only_that(tiny_kept: Callable[..., Any]) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(4).report
    sampling = Sampling(temperature=1.5)

    def draw(seed: int) -> list[tuple[int, ...]]:
        done = generate(model, prompts, max_new_tokens=8, seed=seed, sampling=sampling, batch_size=4)
        return [c.tokens for c in done]

    torch.manual_seed(1)
    first, state = draw(0), torch.get_rng_state()
    torch.manual_seed(2)
    assert draw(0) == first
    assert draw(1) != first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_resumed_batches_draw_the_same(tiny_kept: Callable[..., Any]) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(4).report
    plan = generation_plan(model, prompts, batch_size=3)
    options: dict[str, Any] = {"max_new_tokens": 6, "seed": 0, "sampling": Sampling()}
    whole = {c.id: c.tokens for c in generate(model, prompts, plan=plan, **options)}
    rest = {c.id: c.tokens for c in generate(model, prompts, plan=plan[1:], **options)}
    assert rest
    assert all(whole[i] == rest[i] for i in rest)


def test_out_of_memory_halves_the_batch_and_reports_it(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(4).report
    expected = tokens(model, batch_size=8)
    real = generation.hf_answers

    def small_memory(module: Any, batch: Any, *rest: Any) -> Any:
        if len(batch.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(module, batch, *rest)

    monkeypatch.setattr(generation, "hf_answers", small_memory)
    halvings: list[tuple[list[int], list[list[int]]]] = []
    written: list[Completion] = []
    done = generate(
        model,
        prompts,
        max_new_tokens=10,
        seed=0,
        batch_size=8,
        on_batch=written.extend,
        on_halving=lambda batch, halves: halvings.append((batch, halves)),
    )
    assert {c.id: c.tokens for c in done} == expected
    assert [len(batch) for batch, _ in halvings] == [8, 4, 4]
    assert sorted(c.id for c in written) == sorted(expected)

    def no_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generation, "hf_answers", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        generate(model, prompts, max_new_tokens=2, seed=0, batch_size=2)


def test_answers_stop_at_the_end_of_turn(tiny: Callable[..., Any]) -> None:
    model, prompts = tiny("llama"), small_prompts(4).report
    ordinary = list(generate(model, prompts, max_new_tokens=10, seed=0))
    stop = ordinary[0].tokens[3]
    twin = generation_twin(model)
    assert twin is not None
    model.original_model.generation_config.eos_token_id = [1, stop]
    for before, after in zip(ordinary, generate(model, prompts, max_new_tokens=10, seed=0), strict=True):
        cut = before.tokens.index(stop) if stop in before.tokens else None
        assert after.tokens == before.tokens[:cut]
        assert after.finish == ("length" if cut is None else "stop")
    assert any(c.finish == "stop" for c in generate(model, prompts, max_new_tokens=10, seed=0))


def test_models_own_sampling_settings_are_ignored(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    greedy = tokens(model)
    twin = generation_twin(model)
    assert twin is not None
    twin.generation_config.do_sample = True
    twin.generation_config.temperature = 5.0
    assert tokens(model) == greedy
    assert twin.generation_config.do_sample is True


def test_bad_requests(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    with pytest.raises(MechsafetyError, match="1 at least"):
        generate(model, small_prompts(1).report, max_new_tokens=0, seed=0)
    with pytest.raises(MechsafetyError, match="no prompts"):
        generate(model, [], max_new_tokens=1, seed=0)
    with pytest.raises(MechsafetyError, match="temperature"):
        Sampling(temperature=0.0)


# -- the checkpoint's own defaults -----------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 20,
    "repetition_penalty": 1.8,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 12,
    "max_length": 14,
    "suppress_tokens": list(range(20, 60)),
    "begin_suppress_tokens": [30],
    "num_beams": 3,
}


def with_defaults(source: Path, folder: Path, **settings: Any) -> Path:
    """The model in ``source`` with a generation config of its own."""
    shutil.copytree(source, folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def greedy_by_hand(module: Any, ids: list[int], stops: set[int], n: int) -> tuple[int, ...]:
    """The likeliest token, one at a time, of one prompt alone and without a cache."""
    given: list[int] = []
    while len(given) < n:
        with torch.inference_mode():
            token = int(
                module(input_ids=torch.tensor([[*ids, *given]]), use_cache=False).logits[0, -1].argmax()
            )
        if token in stops:
            break
        given.append(token)
    return tuple(given)


@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_greedy_is_greedy_whatever_the_checkpoint_asks_for(
    tiny_folder: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    from transformers import AutoModelForCausalLM

    source, prompts = tiny_folder(architecture), small_prompts(4).report
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ordinary = load_model(str(source), dtype="float32", device="cpu")
    sequences = tokenize_prompts(ordinary, [p.text for p in prompts])
    third = greedy_by_hand(plain, sequences[0], {1}, 16)[2]
    named = [third, 1]
    folder = with_defaults(source, tmp_path / "model", eos_token_id=named, pad_token_id=0, **SETTINGS)
    model = load_model(str(folder), dtype="float32", device="cpu")
    expected = [greedy_by_hand(plain, ids, set(named), 16) for ids in sequences]
    assert min(map(len, expected)) < 12
    # Through the fast path, in batches and alone, through the bridge's own, and as continuations.
    for options in ({}, {"batch_size": 1}, {"fast_path": False}):
        done = generate(model, prompts, max_new_tokens=16, seed=0, **options)
        assert [c.tokens for c in done] == expected
    requests = [Request(tokens=tuple(ids), max_new_tokens=16) for ids in sequences]
    assert [c.tokens for c in continuations(model, requests, batch_size=8)] == expected
    # The control: left to itself, the checkpoint answers otherwise.
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.generation_config.max_length = None
    torch.manual_seed(0)
    longest = max(range(len(prompts)), key=lambda row: len(expected[row]))
    out = theirs.generate(torch.tensor([sequences[longest]]), max_new_tokens=16, num_beams=1)[0].tolist()
    assert tuple(out[len(sequences[longest]) :][: len(expected[longest])]) != expected[longest]


def test_what_is_not_followed_is_named(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = with_defaults(tiny_folder(), tmp_path / "a", eos_token_id=[1, 7], use_cache=True, **SETTINGS)
    model = load_model(str(folder), dtype="float32", device="cpu")
    assert overridden_defaults(model) == SETTINGS
    assert json.loads(json.dumps(overridden_defaults(model))) == SETTINGS
    # The control: what says the defaults, or which tokens end a turn, is followed.
    neutral = {"do_sample": False, "temperature": 1.0, "repetition_penalty": 1.0, "max_length": 20}
    same = with_defaults(tiny_folder(), tmp_path / "b", eos_token_id=[1, 7], pad_token_id=0, **neutral)
    assert overridden_defaults(load_model(str(same), dtype="float32", device="cpu")) == {}
    assert overridden_defaults(load_model(str(tiny_folder()), dtype="float32", device="cpu")) == {}


def test_the_record_of_a_run_reports_what_was_overridden(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    prompts = write_csv(small_prompts(2), tmp_path / "prompts.csv")
    for name, settings in (("asked", SETTINGS), ("nothing", {})):
        folder = with_defaults(tiny_folder(), tmp_path / name, eos_token_id=1, **settings)
        config = GenerationConfig(
            model=str(folder), prompts=str(prompts), max_new_tokens=2, dtype="float32", device="cpu"
        )
        run = run_generation(config, tmp_path / f"run {name}")
        manifest = json.loads((run.path / "manifest.json").read_text())
        assert manifest["fed"][str(folder)]["overridden_generation_defaults"] == settings
