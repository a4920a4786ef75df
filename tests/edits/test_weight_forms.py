"""Which models take an edit as weights is decided by how they are built, in every number format alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Add, Orthogonalise, baked, edited
from mechsafety.generation.completions import generate
from mechsafety.models.loading import body_of, load_model
from tests.architectures import save_architecture
from tests.kept_models import kept
from tests.prompt_sets import small_prompts

IDS = torch.tensor([[5, 9, 12, 30, 7, 21, 40, 8], [6, 11, 33, 14, 15, 16, 17, 18]])
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))
UNIT = VECTOR / VECTOR.norm()
MAPS = Orthogonalise(VECTOR, writers=("attn_out", "mlp_out"))
FORMATS = ("float32", "bfloat16", "float16")

WHOLE = ("llama", "gpt2", "opt", "gpt-neox", "phi")
"""Nothing lies between a map and the stream."""
AFTER_EMBEDDING = ("bloom",)
"""A norm follows the embedding only."""
AFTER_MAPS = ("gemma2", "gemma3", "glm4", "olmo2", "olmo3")
"""A norm follows attention and MLP."""
EVERY_FORMAT = ("llama", "bloom", "gemma3")


def loaded(folder: Path, name: str, dtype: str) -> Any:
    return load_model(str(save_architecture(folder, name)), dtype=dtype, device="cpu")


def written(model: Any, edit: Any = None) -> Tensor:
    """The most that the sites which ``edit`` empties hold along the direction, in any block."""
    seen: list[Tensor] = []
    sites = [f"blocks.{layer}.hook_{site}" for layer in range(4) for site in sites_of(edit)]
    hooks = [(site, lambda x, hook: seen.append(x)) for site in sites]
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        body_of(model)(input_ids=IDS)
    return torch.stack([x.float().reshape(-1, 32) @ UNIT for x in seen]).abs().max()


def sites_of(edit: Any) -> tuple[str, ...]:
    return ("attn_out", "mlp_out") if edit is MAPS else ("attn_out", "mlp_out", "resid_post")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name, dtype, marks=() if dtype == "float32" or name in EVERY_FORMAT else pytest.mark.slow
        )
        for name in (*WHOLE, *AFTER_EMBEDDING, *AFTER_MAPS)
        for dtype in FORMATS
    ],
)
def test_a_weight_form_exists_in_every_number_format_or_in_none(name: str, dtype: str) -> None:
    model = kept(name, dtype=dtype)
    before = {key: p.clone() for key, p in model.original_model.named_parameters()}
    for edit, refused in ((MAPS, AFTER_MAPS), (Ablate(VECTOR), AFTER_MAPS + AFTER_EMBEDDING)):
        if name in refused:
            with pytest.raises(MechsafetyError, match="a norm lies between"), baked(model, edit):
                pass
            continue
        bare = written(model, edit)
        with baked(model, edit):
            # The control is what the same sites hold unedited.
            assert written(model, edit) < bare / (1e4 if dtype == "float32" else 20)
    after = dict(model.original_model.named_parameters())
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_by_head_leave_the_weight_form_as_it_is(tmp_path: Path, name: str, dtype: str) -> None:
    model = loaded(tmp_path, name, dtype)
    model.set_use_attn_result(True)
    bare = written(model)
    with baked(model, Ablate(VECTOR)):
        assert model.cfg.use_attn_result
        assert written(model) < bare / (1e4 if dtype == "float32" else 20)


def test_a_model_that_runs_copies_of_its_weights_is_refused_for_that(tmp_path: Path) -> None:
    model = loaded(tmp_path, "llama", "float32")
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(MechsafetyError, match="a copy of its own"), baked(model, Ablate(VECTOR)):
        pass


@pytest.mark.parametrize("name", ["bloom", "opt"])
@pytest.mark.parametrize(
    "edit", [Ablate(VECTOR), Add(9 * VECTOR, layer=1), MAPS], ids=["ablate", "add", "maps"]
)
def test_edits_by_hooks_reach_answers(name: str, edit: Any) -> None:
    model, prompts = kept(name), small_prompts(2).fit
    bare = [c.tokens for c in generate(model, prompts, max_new_tokens=6, seed=0)]
    during = generate(model, prompts, edit=edit, max_new_tokens=6, seed=0)
    assert [c.tokens for c in during] != bare
    slow = generate(model, prompts, edit=edit, max_new_tokens=6, seed=0, fast_path=False)
    assert [c.tokens for c in during] == [c.tokens for c in slow]
    with edited(model, edit) as receipt:
        body_of(model)(input_ids=IDS)
    assert set(receipt.fired) == {t.hook for t in edit.targets(4)}
