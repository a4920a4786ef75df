"""An edit's positions mean the same however a model's cache counts: with it, without it, and where it has no length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mechsafety as ms
from mechsafety.interventions import edited
from mechsafety.scoring import answer_nll, option_log_probs
from mechsafety.tokens import tokenize_prompts
from tests.architectures import save_architecture
from tests.test_batched_alone import TEMPLATES, prompts

NAMES = [
    "llama",
    "opt",
    "bloom",
    "mpt",
    "gemma3",
    "llama4",
    "lfm2",
    "falcon-h1",
    "jamba",
    "mamba",
    "mamba2",
    "falcon-mamba",
]
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(5))
STEPS = 4


def loaded(folder: Path, name: str) -> Any:
    path = save_architecture(folder, name, template=TEMPLATES["no prefix"])
    return ms.load_model(str(path), dtype="float32", device="cpu")


def by_hand(model: Any, tokens: list[int], edit: Any) -> list[int]:
    """Greedy steps of one prompt, the whole sequence at each: which columns are prompt is told once."""
    whole = list(tokens)
    while len(whole) < len(tokens) + STEPS:
        with torch.inference_mode(), edited(model, edit, prompt_length=len(tokens)):
            logits = model.original_model(input_ids=torch.tensor([whole]), use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token == 1:
            break
        whole.append(token)
    return whole[len(tokens) :]


@pytest.mark.parametrize("name", NAMES)
def test_answers_under_an_edit_at_some_positions(tmp_path: Path, name: str) -> None:
    model = loaded(tmp_path, name)
    sequences = tokenize_prompts(model, [p.text for p in prompts()])
    plain = [c.tokens for c in ms.generate(model, prompts(), max_new_tokens=STEPS, seed=0)]
    moved = 0
    for positions in ("prompt", "last_prompt", "generated"):
        edit = ms.Add(4 * VECTOR, layer=1, positions=positions)
        done = [c.tokens for c in ms.generate(model, prompts(), edit=edit, max_new_tokens=STEPS, seed=0)]
        moved += done != plain
        if (
            positions == "generated"
        ):  # by hand the edit would reach no first pass: it is complete from the second on
            with pytest.raises(ms.MechsafetyError, match="touched nothing"), edited(model, edit):
                pass
        assert done == [tuple(by_hand(model, tokens, edit)) for tokens in sequences], positions
    assert moved  # the edits do something


@pytest.mark.parametrize("positions", ["all", "prompt", "last_prompt", "generated"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mamba2", "falcon-h1"])
def test_likelihood_of_an_answer_is_that_of_the_option(tmp_path: Path, name: str, positions: Any) -> None:
    model = loaded(tmp_path, name)
    contexts = tokenize_prompts(model, [p.text for p in prompts()])
    answer = [8, 9, 10]
    edit = ms.Add(4 * VECTOR, layer=1, positions=positions)
    options = option_log_probs(model, contexts, [answer], edit=edit)[:, 0]
    nll = answer_nll(model, contexts, [answer] * len(contexts), edit=edit)
    torch.testing.assert_close(
        torch.tensor(nll, dtype=torch.float64) * -len(answer), options, atol=1e-3, rtol=1e-4
    )
