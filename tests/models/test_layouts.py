"""Models that TransformerLens has no adapter for: right where they are laid out as Llama is, else refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from tests.architecture_measures import EDIT, MEASURES, outcome
from tests.architectures import save_architecture
from tests.models import test_batched_alone
from tests.models.test_batched_alone import TEMPLATES, Subject
from tests.models.test_refused_models import SMALL

factory = pytest.importorskip("transformer_lens.factories.architecture_adapter_factory")


@pytest.mark.parametrize("name", ["ministral", "minimax"])
def test_a_layout_like_llamas_is_right(tmp_path: Path, name: str) -> None:
    """Attention with windows; linear attention whose state stands beside the layers of its cache."""
    known = set(factory.SUPPORTED_ARCHITECTURES)
    one = Subject(save_architecture(tmp_path, name, template=TEMPLATES["no prefix"]), name)
    assert type(one.model.original_model).__name__ not in known
    assert set(factory.SUPPORTED_ARCHITECTURES) == known
    for measure in MEASURES.values():
        assert outcome(measure, one).startswith("right"), measure
    test_batched_alone.test_option_log_probs(one)


def test_a_text_model_within_another_is_written_with_an_edit(tmp_path: Path) -> None:
    """Its configuration does not say whether embedding and unembedding are one."""
    folder = save_architecture(tmp_path / "own", "qwen2-vl, images", template=TEMPLATES["no prefix"])
    one = Subject(folder, "qwen2-vl, images")
    for name, measure in MEASURES.items():
        assert outcome(measure, one).startswith("right"), name
    written = ms.save_model(one.model, ms.Orthogonalise(EDIT.basis[0]), tmp_path / "edited")
    again = ms.load_model(str(written), dtype="float32", device="cpu")
    ids = torch.tensor([one.sequences[0]])
    with ms.edited(one.model, EDIT):
        expected = one.model.original_model(input_ids=ids).logits
    torch.testing.assert_close(again.original_model(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_control_another_layout_is_refused(tmp_path: Path) -> None:
    from transformers import GPTNeoXJapaneseConfig, GPTNeoXJapaneseForCausalLM

    from tests.conftest import save_tokenizer

    torch.manual_seed(0)
    GPTNeoXJapaneseForCausalLM(GPTNeoXJapaneseConfig(**SMALL)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(
        MechsafetyError, match=r"TransformerLens cannot boot .*GPTNeoXJapaneseForCausalLM"
    ) as refused:
        ms.load_model(str(tmp_path), dtype="float32", device="cpu")
    assert "\n" not in str(refused.value)
