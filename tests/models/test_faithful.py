"""What TransformerLens computes otherwise than transformers is refused, in every number format; the rest is not."""

from __future__ import annotations

from pathlib import Path

import pytest

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from tests.architectures import ARCHITECTURES, UNFAITHFUL, kinds_first, save_architecture
from tests.models.test_batched_alone import TEMPLATES, prompts

HALF_REFUSED = ("codegen",)
"""TransformerLens mixes number formats in these."""


@pytest.mark.parametrize("name", kinds_first(n for n in ARCHITECTURES if n not in UNFAITHFUL))
def test_half_precision_is_no_other_model(tmp_path: Path, name: str) -> None:
    """Rounding flips the choice of experts, which moves single tokens by half their size."""
    folder = str(save_architecture(tmp_path, name))
    if name in HALF_REFUSED:
        with pytest.raises(MechsafetyError, match="float32"):
            ms.load_model(folder, dtype="bfloat16", device="cpu")
    else:
        ms.load_model(folder, dtype="bfloat16", device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", UNFAITHFUL)
def test_other_numbers_are_refused(tmp_path: Path, name: str, seed: int, dtype: str) -> None:
    folder = str(save_architecture(tmp_path, name, seed=seed))
    with pytest.raises(MechsafetyError, match="other numbers"):
        ms.load_model(folder, dtype=dtype, device="cpu")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["lfm2", "bamba", "falcon-h1", "jamba", "mamba2", "nemotron-h", "qwen3-next"]
)
def test_half_precision_makes_no_text_of_padding(tmp_path: Path, name: str, seed: int) -> None:
    """Models that keep a state are tried for this; ``tests/models/test_batched_alone.py`` has one that fails."""
    folder = str(save_architecture(tmp_path, name, seed=seed, template=TEMPLATES["no prefix"]))
    model = ms.load_model(folder, dtype="bfloat16", device="cpu")
    assert len(ms.residual_stream(model, prompts()).ids) == len(prompts())
