"""Models that tests share are watched: a test that leaves one changed is found, one that only reads is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechsafety.edits.interventions import Ablate, baked, edited
from mechsafety.generation.completions import generate
from mechsafety.models.loading import generation_twin
from tests.kept_models import changed, kept, state
from tests.prompt_sets import small_prompts

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))


def weight(model: Any) -> None:
    with torch.no_grad():
        model.original_model.get_output_embeddings().weight[0, 0] += 1e-6


CHANGES: dict[str, Callable[[Any], object]] = {
    "weight": weight,
    "hook": lambda model: model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: x),
    "hook of torch": lambda model: model.blocks[1].register_forward_hook(lambda *_: None),
    "twin": lambda model: model.__dict__.pop("_mechsafety_twin"),
    "forward": lambda model: setattr(generation_twin(model).lm_head, "forward", lambda x: x),
    "end of a turn": lambda model: setattr(model.original_model.generation_config, "eos_token_id", 7),
    "training": lambda model: model.train(),
    "gradients": lambda model: next(model.parameters()).requires_grad_(
        not next(model.parameters()).requires_grad
    ),
    "template": lambda model: setattr(model.tokenizer, "chat_template", "{{ messages }}"),
    "setting": lambda model: setattr(model.cfg, "use_attn_result", True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_a_test_leaves_changed_is_found_and_made_anew(change: Callable[[Any], object]) -> None:
    model = kept("llama")
    change(model)
    assert len(list(changed())) == 1
    assert kept("llama") is not model
    assert list(changed()) == []


def test_control_reading_changes_nothing() -> None:
    model, prompts = kept("llama"), small_prompts(2).fit
    before = state(model)
    generate(model, prompts, edit=Ablate(VECTOR), max_new_tokens=3, seed=0)
    with edited(model, Ablate(VECTOR)):
        assert state(model) != before
        model.original_model(input_ids=torch.tensor([[5, 6, 7]]))
    with baked(model, Ablate(VECTOR)):
        assert state(model) != before
    assert state(model) == before
    assert kept("llama") is model
