"""Facts of a model without its weights: those of its own files, or those of the table, which add up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import packaged_words
from mechsafety.experiments.study.config import load_config
from mechsafety.models.facts import count_parameters, model_facts
from tests.architectures import random_model, save_architecture

TABLE = packaged_words("mechsafety.models", "facts.toml")["model"]


@pytest.mark.parametrize("entry", TABLE, ids=[e["names"][0] for e in TABLE])
def test_the_tables_parameters_are_those_of_its_shapes(entry: dict[str, Any]) -> None:
    from transformers import AutoConfig

    fields = {
        "hidden_size": entry["width"],
        "intermediate_size": entry["mlp"],
        "num_hidden_layers": entry["layers"],
        "num_attention_heads": entry["heads"],
        "num_key_value_heads": entry["kv_heads"],
        "head_dim": entry["head_dim"],
        "vocab_size": entry["vocabulary"],
        "tie_word_embeddings": entry["tied"],
        "attention_bias": entry.get("attention_bias", False),
    }
    config = AutoConfig.for_model(entry["kind"], pad_token_id=0, **fields)
    assert count_parameters(config) == entry["parameters"]


def test_the_table_has_every_system_of_the_paper() -> None:
    facts = {system: model_facts(system) for system in load_config("safety-pretraining").systems}
    assert [name for name, f in facts.items() if f.gated] == ["meta-llama/Llama-3.3-70B-Instruct"]
    assert all("table of 2026" in f.source for f in facts.values())
    # 2 x 80 layers x 8 heads x 128
    assert facts["meta-llama/Llama-3.3-70B-Instruct"].cache_values == 163_840


@pytest.mark.parametrize("name", ["llama-tied", "glm", "qwen3", "gpt2"])
def test_a_folders_facts_are_its_own(tmp_path: Path, name: str) -> None:
    facts = model_facts(str(save_architecture(tmp_path / "model", name)))
    assert facts.n_parameters == sum(p.numel() for p in random_model(name).parameters())
    assert (facts.n_layers, facts.d_model, facts.head_dim) == (4, 32, 8)
    assert facts.n_kv_heads == (4 if name == "gpt2" else 2)
    assert (facts.gated, facts.template, facts.source) == (False, "its own", "its files on this machine")


def test_a_missing_template_is_named(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    from transformers import AutoConfig, AutoTokenizer

    source = tiny_folder("llama")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    AutoConfig.from_pretrained(source).save_pretrained(tmp_path)
    assert model_facts(str(tmp_path)).template.startswith("missing")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nobody/never-made", "neither on this machine nor in the packaged table"),
        ("nobody/never-made+nothing", "adapter 'nothing' not found"),
        ("model.gguf", "a GGUF file is not read"),
    ],
)
def test_what_is_not_known_is_said(spec: str, said: str) -> None:
    with pytest.raises(MechsafetyError, match=said):
        model_facts(spec)
