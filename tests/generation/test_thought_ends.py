"""The end of the model's own thought, as a position."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.experiments.config import ChatConfig
from mechsafety.experiments.sweep.config import SweepConfig
from mechsafety.experiments.sweep.experiment import run_sweep
from mechsafety.generation.completions import generate
from mechsafety.generation.thought_ends import own_thoughts
from mechsafety.models.chat import after_thoughts, tokenize_prompts
from mechsafety.models.loading import load_model
from mechsafety.prompts.prompt_set import PromptSet
from tests.chat_forms import save_thinking
from tests.conftest import save_tiny
from tests.prompt_sets import small_prompts, write_csv

PROMPTS = small_prompts(12)
CHAT = {"thinking": "model", "max_thought_tokens": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [p.text for p in PROMPTS if p.split != "report"]
    return save_thinking(tmp_path_factory.mktemp("thinks"), "qwen3_thinking", texts, closes="</think>")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(str(folder), dtype="float32", device="cpu", chat=CHAT)


@pytest.fixture(scope="module")
def thought_about(model: Any) -> PromptSet:
    """The fit and validation prompts about which the model ends its thought."""
    asked = [p for p in PROMPTS if p.split != "report"]
    done = {c.id: c for c in generate(model, asked, max_new_tokens=4, seed=0)}
    return PromptSet(
        tuple(p for p in asked if 0 < done[p.id].n_thought_tokens < done[p.id].n_tokens), "thought about"
    )


def test_the_last_position_is_the_end_of_each_prompts_own_thought(
    model: Any, thought_about: PromptSet
) -> None:
    prompts = list(thought_about)[:6]
    thoughts = own_thoughts(model, prompts)
    close = model.tokenizer.convert_tokens_to_ids("</think>")
    assert len({len(t) for t in thoughts.values()}) > 1
    before = residual_stream(model, prompts)
    with after_thoughts(model, thoughts):
        found = residual_stream(model, prompts)
        # Answers are thought about anew, whatever stands behind the prompts meanwhile.
        again = generate(model, prompts, max_new_tokens=4, seed=0)
    assert [c.tokens for c in again] == [c.tokens for c in generate(model, prompts, max_new_tokens=4, seed=0)]
    assert tokenize_prompts(model, [prompts[0].text])[0][-1] != close
    for row, asked in enumerate(tokenize_prompts(model, [p.text for p in prompts])):
        assert close in thoughts[tuple(asked)]
        ids = [*asked, *thoughts[tuple(asked)]]
        with torch.inference_mode():
            hidden = model.original_model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(found.activations[row, 0, 1], hidden[1][0, -1], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found.activations[row, 0, 1], before.activations[row, 0, 1], atol=1e-2)


def test_a_sweep_at_the_end_of_the_thought(
    folder: Path, model: Any, thought_about: PromptSet, tmp_path: Path
) -> None:
    both = [p for p in thought_about if p.split in ("fit", "validation")]
    config = SweepConfig(
        model=str(folder),
        prompts=str(write_csv(replace(thought_about, prompts=tuple(both)), tmp_path / "prompts.csv")),
        positions="thought-end",
        chat=ChatConfig(thinking="model", max_thought_tokens=40),
        fit=2,
        validation=2,
        fit_on="labels",
        refusal_tokens=("lock", "key"),
        layers=(1, 2),
        confirm=0,
        resamples=5,
        dtype="float32",
        device="cpu",
    )
    result = run_sweep(config, tmp_path / "run")
    assert set(result.tables["sweep"]["position"]) == {-1}
    stored = json.loads((result.path / "parts/thoughts.json").read_text())
    asked = {p.id: tuple(tokenize_prompts(model, [p.text])[0]) for p in both}
    assert len(stored) == 8
    assert stored == {i: list(own_thoughts(model, both)[asked[i]]) for i in stored}
    # The sweep's directions are those of the residual streams behind the thoughts, not behind the prompts.
    found = Directions.load(result.path / "parts/directions/mean_difference.safetensors")
    fit = [p for p in both if p.split == "fit" and p.id in stored]
    behind = find_directions(residual_stream(model, fit), method="mean_difference", seed=0)
    with after_thoughts(model, {asked[p.id]: stored[p.id] for p in fit}):
        expected = find_directions(residual_stream(model, fit), method="mean_difference", seed=0)
    torch.testing.assert_close(found.vectors[0, 1:], expected.vectors[0, 1:], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(found.vectors[0, 1:], behind.vectors[0, 1:], atol=1e-2)


def test_a_model_without_a_thought_has_no_such_position(folder: Path, model: Any, tmp_path: Path) -> None:
    asked = [p for p in PROMPTS if p.split != "report"]
    with pytest.raises(MechsafetyError, match="does not end in 40 tokens"):
        own_thoughts(model, asked)
    kept = load_model(str(folder), dtype="float32", device="cpu")
    with pytest.raises(MechsafetyError, match="'thinking': 'model'"):
        own_thoughts(kept, asked)
    plain = load_model(str(save_tiny(tmp_path)), dtype="float32", device="cpu", chat={"thinking": "model"})
    with pytest.raises(MechsafetyError, match="know of thoughts"):
        own_thoughts(plain, asked)
