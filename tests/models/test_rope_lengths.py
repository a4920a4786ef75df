"""Rotary frequencies that depend on the length: each prompt is read by its own length, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import mechsafety as ms
from mechsafety.generation.scoring import answer_nll
from mechsafety.models.chat import tokenize_prompts
from mechsafety.prompts.prompt_set import Prompt
from tests.conftest import save_tokenizer

LIMIT, STEPS = 32, 6


def loaded(folder: Path, kind: str) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

    common: dict[str, Any] = {
        "vocab_size": 160,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 1,
    }
    torch.manual_seed(0)
    if kind == "dynamic":
        rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
        config: Any = LlamaConfig(**common, max_position_embeddings=LIMIT, rope_parameters=rope)
    elif kind == "longrope":
        rope = {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": LIMIT,
        }
        config = Phi3Config(
            **common,
            max_position_embeddings=256,
            original_max_position_embeddings=LIMIT,
            rope_parameters=rope,
        )
    else:
        config = LlamaConfig(**common, max_position_embeddings=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)
    return ms.load_model(str(folder), dtype="float32", device="cpu")


def prompts(lengths: Sequence[int], model: Any) -> list[Prompt]:
    frame = len(tokenize_prompts(model, ["river"])[0]) - 1
    words = ["river", "garden", "storm", "fire"]
    return [
        Prompt(
            id=str(n),
            text=" ".join(words[(row + i) % 4] for i in range(n - frame)),
            label="harmful" if row % 2 else "harmless",
        )
        for row, n in enumerate(lengths)
    ]


def by_hand(model: Any, tokens: list[int], steps: int) -> tuple[int, ...]:
    """Greedy, alone, and without a cache."""
    whole = list(tokens)
    while len(whole) < len(tokens) + steps:
        with torch.inference_mode():
            token = int(
                model.original_model(input_ids=torch.tensor([whole]), use_cache=False).logits[0, -1].argmax()
            )
        if token == 1:
            break
        whole.append(token)
    return tuple(whole[len(tokens) :])


def streams(model: Any, asked: list[Prompt], batch_size: int) -> torch.Tensor:
    return ms.residual_stream(model, asked, batch_size=batch_size).activations


@pytest.mark.parametrize("kind", ["longrope", "plain"])
def test_answers_are_each_prompts_own_or_refused(tmp_path: Path, kind: str) -> None:
    model = loaded(tmp_path, kind)
    for lengths in ([12, 20], [30, 24], [40, 48], [20, 60]):
        asked = prompts(lengths, model)
        expected = [by_hand(model, s, STEPS) for s in tokenize_prompts(model, [p.text for p in asked])]
        singly = ms.generate(model, asked, max_new_tokens=STEPS, seed=0, batch_size=1)
        assert [c.tokens for c in singly] == expected, lengths
        if kind == "longrope" and min(lengths) <= LIMIT < max(lengths) + STEPS:
            with pytest.raises(ms.MechsafetyError, match="batch size of 1"):
                ms.generate(model, asked, max_new_tokens=STEPS, seed=0)
        else:
            assert [c.tokens for c in ms.generate(model, asked, max_new_tokens=STEPS, seed=0)] == expected, (
                lengths
            )


@pytest.mark.parametrize("kind", ["longrope", "plain"])
def test_streams_and_scores_are_each_prompts_own_or_refused(tmp_path: Path, kind: str) -> None:
    model = loaded(tmp_path, kind)
    asked = prompts([20, 60], model)
    alone = torch.cat([streams(model, [p], 1) for p in asked])
    torch.testing.assert_close(streams(model, asked, 1), alone, rtol=1e-4, atol=1e-4)
    contexts = tokenize_prompts(model, [p.text for p in asked])
    answers = [[8, 9, 10]] * 2
    singly = answer_nll(model, contexts, answers, batch_size=1)
    if kind == "plain":
        torch.testing.assert_close(streams(model, asked, 2), alone, rtol=1e-4, atol=1e-4)
        assert answer_nll(model, contexts, answers) == pytest.approx(singly, rel=1e-4)
        return
    for use in (lambda: streams(model, asked, 2), lambda: answer_nll(model, contexts, answers)):
        with pytest.raises(ms.MechsafetyError, match="batch size of 1"):
            use()


def test_dynamic_frequencies_are_used_up_to_the_models_window(tmp_path: Path) -> None:
    model = loaded(tmp_path, "dynamic")
    asked = prompts([12, 20], model)
    expected = [by_hand(model, s, STEPS) for s in tokenize_prompts(model, [p.text for p in asked])]
    for size in (1, 2):
        done = ms.generate(model, asked, max_new_tokens=STEPS, seed=0, batch_size=size)
        assert [c.tokens for c in done] == expected
    with pytest.raises(ms.MechsafetyError, match="window of 32"):
        ms.generate(model, prompts([20, 40], model), max_new_tokens=STEPS, seed=0, batch_size=1)
