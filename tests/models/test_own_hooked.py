"""A user's own HookedTransformer of any make, compiled or not, under any default number format of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mechsafety as ms
from mechsafety.anatomy.sensitivity import gradient_norms
from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Add, Orthogonalise, baked, edited
from mechsafety.models.chat import pad_left
from mechsafety.models.forward import last_logits
from mechsafety.regions.maps import linear_maps
from mechsafety.sweeps.refusal_scores import RefusalTokens
from tests.conftest import save_tokenizer
from tests.prompt_sets import small_prompts

lens = pytest.importorskip(
    "transformer_lens.HookedTransformer",
    reason="transformer-lens 4.0 removed HookedTransformer; `make test-tl3` runs these tests under 3.9",
)
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer:DeprecationWarning")

PROMPTS = small_prompts(4)
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))
REFUSALS = RefusalTokens(ids=(20, 30), texts=("a", "b"), weight=(1.0, 1.0), source="user")
BATCH = pad_left([[5, 9, 12, 30, 7, 21], [6, 11, 33]], pad=0)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention alone": {"attn_only": True, "d_mlp": None, "act_fn": None},
    "no norms": {"normalization_type": None},
    "shortformer": {"positional_embedding_type": "shortformer"},
}


def own(folder: Path, kind: str = "plain") -> Any:
    from transformer_lens.config import HookedTransformerConfig
    from transformers import AutoTokenizer

    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes: dict[str, Any] = {
        "n_layers": 4,
        "d_model": 32,
        "d_head": 8,
        "n_heads": 4,
        "d_mlp": 48,
        "n_ctx": 256,
    }
    common = {"act_fn": "gelu", "d_vocab": 160, "normalization_type": "LN", "seed": 0, "device": "cpu"}
    config = HookedTransformerConfig(**(sizes | common | KINDS[kind]))
    return lens.HookedTransformer(config, tokenizer, default_padding_side="left")


def everything(model: Any) -> dict[str, Any]:
    """One result of each part that takes a model."""
    cache = ms.residual_stream(model, PROMPTS.fit)
    directions = ms.find_directions(cache, seed=0)
    found = directions.at(layer=2, position=-1)
    with baked(model, Ablate(VECTOR)):
        weights = last_logits(model, BATCH)
    edit = Add(9 * VECTOR, layer=1)
    return {
        "stream": cache.activations,
        "weights": weights,
        "lens": ms.logit_lens(model, found)["logit"].tolist(),
        "sweep": ms.sweep(model, directions, PROMPTS.validation, refusal_tokens=REFUSALS)
        .to_frame()["kl"]
        .tolist(),
        "answers": [c.tokens for c in ms.generate(model, PROMPTS.fit, edit=edit, max_new_tokens=3, seed=0)],
    }


def left(model: Any) -> Tensor:
    """The most that any block's output holds along the direction."""
    _, cache = model.run_with_cache(BATCH.ids, prepend_bos=False)
    return torch.stack([cache["resid_post", k] @ (VECTOR / VECTOR.norm()) for k in range(4)]).abs().max()


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("edit", [Ablate(VECTOR), Orthogonalise(VECTOR)], ids=["ablate", "orthogonalise"])
def test_an_edit_of_all_writers_is_complete_in_every_kind(tmp_path: Path, kind: str, edit: Any) -> None:
    model = own(tmp_path, kind)
    bare = left(model)
    assert bare > 0.01
    with edited(model, edit) as receipt:
        assert left(model) < 1e-4 * bare
        hooked = last_logits(model, BATCH)
    assert all(receipt.fired.values())
    with baked(model, edit):
        assert left(model) < 1e-4 * bare
        torch.testing.assert_close(last_logits(model, BATCH), hooked, rtol=1e-4, atol=1e-4)
    assert left(model) == bare


def test_sites_are_what_the_model_has(tmp_path: Path) -> None:
    model = own(tmp_path, "attention alone")
    for edit in (Ablate(VECTOR, sites=("mlp_out",)), Orthogonalise(VECTOR, writers=("mlp_out",))):
        with (
            pytest.raises(MechsafetyError, match=r"block 0 .* resid_pre, attn_out, resid_post$"),
            edited(model, edit),
        ):
            pass
    with pytest.raises(MechsafetyError), baked(model, Orthogonalise(VECTOR, writers=("mlp_out",))):
        pass


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_part_takes_every_kind(tmp_path: Path, kind: str) -> None:
    found = everything(own(tmp_path, kind))
    assert found["stream"].shape[2:] == (5, 32)
    assert torch.isfinite(torch.tensor(found["lens"])).all()


def test_a_compiled_model_gives_what_it_was_compiled_from(tmp_path: Path) -> None:
    model = own(tmp_path)
    plain, compiled = everything(model), everything(torch.compile(model, backend="eager"))
    torch.testing.assert_close(compiled, plain, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_users_default_number_format_changes_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    model = own(tmp_path)
    plain = everything(model)
    torch.set_default_dtype(dtype)
    try:
        found = everything(model)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_regions_and_anatomy_refuse_it_by_name(tmp_path: Path) -> None:
    model = own(tmp_path)
    for use in (lambda: linear_maps(model), lambda: gradient_norms(model, PROMPTS.fit)):
        with pytest.raises(MechsafetyError, match=r"a HookedTransformer has none: load .* with load_model"):
            use()
