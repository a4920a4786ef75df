"""Which of a user's own HookedTransformers take an edit as weights, in every number format alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Orthogonalise, baked
from tests.architectures import save_architecture
from tests.hooked_architectures import hooked_architecture

pytest.importorskip(
    "transformer_lens.HookedTransformer",
    reason="transformer-lens 4.0 removed HookedTransformer; `make test-tl3` runs these tests under 3.9",
)
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer:DeprecationWarning")

IDS = torch.tensor([[5, 9, 12, 30, 7, 21, 40, 8]])
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))
FORMATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
AFTER_MAPS = ("gemma2", "gemma3", "olmo2")


def component(model: Any, *sites: str) -> Tensor:
    """The most that the named sites of any block hold along the direction."""
    with torch.inference_mode():
        _, cache = model.run_with_cache(IDS, prepend_bos=False)
    seen = [cache[site, layer].float() @ (VECTOR / VECTOR.norm()) for layer in range(4) for site in sites]
    return torch.stack(seen).abs().max()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", *AFTER_MAPS])
def test_a_weight_form_exists_in_every_number_format_or_in_none(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    save_architecture(tmp_path, name, **({"num_key_value_heads": 4} if name == "olmo2" else {}))
    model = hooked_architecture(tmp_path, name).to(dtype)
    model.cfg.dtype = dtype
    before = {key: p.clone() for key, p in model.named_parameters()}
    share = 1e-4 if dtype.itemsize >= 4 else 0.05
    maps = Orthogonalise(VECTOR, writers=("attn_out", "mlp_out"))
    for edit, sites, refused in (
        (maps, ("attn_out", "mlp_out"), AFTER_MAPS),
        (Ablate(VECTOR), ("attn_out", "mlp_out", "resid_post"), (*AFTER_MAPS, "bloom")),
    ):
        if name in refused:
            with pytest.raises(MechsafetyError, match="a norm lies between"), baked(model, edit):
                pass
            continue
        bare = component(model, *sites)
        with baked(model, edit):
            # The control is what the same sites hold unedited.
            assert component(model, *sites) < share * bare
    # A table that the model has and never reads may hold anything.
    torch.testing.assert_close(dict(model.named_parameters()), before, rtol=0, atol=0, equal_nan=True)
