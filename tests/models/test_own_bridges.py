"""A user's own bridge in whatever state it is: with dropout on, compiled, under another default number format."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mechsafety as ms
from mechsafety.anatomy.sensitivity import gradient_norms
from mechsafety.edits.interventions import Ablate, Add, baked
from mechsafety.generation.scoring import answer_nll
from mechsafety.models.chat import pad_left, tokenize_prompts
from mechsafety.models.forward import evaluating, last_logits
from mechsafety.models.loading import body_of, load_model
from mechsafety.sweeps.refusal_scores import RefusalTokens
from tests.prompt_sets import small_prompts

PROMPTS = small_prompts(4)
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))
REFUSALS = RefusalTokens(ids=(20, 30), texts=("a", "b"), weight=(1.0, 1.0), source="user")
BATCH = pad_left([[5, 9, 12, 30, 7, 21], [6, 11, 33]], pad=0)


def own(folder: Path, *, dropout: float = 0.0) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = dropout
    hf = AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="eager")
    return TransformerBridge.boot_transformers(
        "gpt2", hf_model=hf, tokenizer=AutoTokenizer.from_pretrained(folder)
    )


def everything(model: Any) -> dict[str, Any]:
    """One result of each part that takes a model."""
    cache = ms.residual_stream(model, PROMPTS.fit)
    directions = ms.find_directions(cache, seed=0)
    with baked(model, Ablate(VECTOR)):
        weights = last_logits(model, BATCH)
    edit = Add(9 * VECTOR, layer=1)
    found = directions.at(layer=2, position=-1)
    texts = tokenize_prompts(model, [p.text for p in PROMPTS.fit])
    answers = {
        "fast" if fast_path else "reference": [
            c.tokens
            for c in ms.generate(model, PROMPTS.fit, edit=edit, max_new_tokens=3, seed=0, fast_path=fast_path)
        ]
        for fast_path in (True, False)
    }
    return answers | {
        "stream": cache.activations,
        "weights": weights,
        "lens": ms.logit_lens(model, found)["logit"].tolist(),
        "sweep": ms.sweep(model, directions, PROMPTS.validation, refusal_tokens=REFUSALS)
        .to_frame()["kl"]
        .tolist(),
        "nll": torch.tensor(answer_nll(model, texts, [[7, 8]] * len(texts), edit=edit), dtype=torch.float64),
        "sensitivity": gradient_norms(model, PROMPTS.fit),
    }


def test_dropout_is_off_while_something_runs_and_on_again_then(tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder("gpt2")
    calm, model = everything(own(folder)), own(folder, dropout=0.5)
    model.original_model.train()
    modes = {name: m.training for name, m in model.original_model.named_modules()}
    # The control: left in this mode the model gives other logits every time.
    with torch.no_grad():
        one, other = (body_of(model)(input_ids=BATCH.ids[:1]).logits for _ in range(2))
    assert (one - other).abs().max() > 0.01
    torch.testing.assert_close(everything(model), calm, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert {name: m.training for name, m in model.original_model.named_modules()} == modes


def test_each_module_has_its_own_mode_again_after_an_error() -> None:
    tree = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    tree[1].eval()

    def fail_inside() -> None:
        with evaluating(tree):
            assert not any(m.training for m in tree.modules())
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail_inside()
    assert [m.training for m in tree.modules()] == [True, True, False, False]


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "own"])
def test_a_compiled_model_gives_what_it_was_compiled_from(
    tiny_folder: Callable[..., Path], loaded: bool
) -> None:
    folder = tiny_folder("gpt2")
    model = load_model(str(folder), dtype="float32", device="cpu") if loaded else own(folder)
    compiled: Any = torch.compile(model, backend="eager")
    torch.testing.assert_close(everything(compiled), everything(model), rtol=1e-4, atol=1e-4, equal_nan=True)
    assert (
        ms.residual_stream(compiled, PROMPTS.fit).fingerprint
        == ms.residual_stream(model, PROMPTS.fit).fingerprint
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_users_default_number_format_changes_nothing(
    tiny_folder: Callable[..., Path], dtype: torch.dtype
) -> None:
    model = own(tiny_folder("gpt2"))
    plain = everything(model)
    torch.set_default_dtype(dtype)
    try:
        found = everything(model)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4, equal_nan=True)


MAKERS = {"empty", "zeros", "ones", "rand", "randn", "eye", "linspace"}


def makers_without_a_format(source: str) -> list[int]:
    """Lines where a tensor is made from nothing and its number format is left to the user's default."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in MAKERS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and not {"dtype", "out"} & {keyword.arg for keyword in node.keywords}
    ]


def test_every_tensor_made_from_nothing_names_its_number_format() -> None:
    assert makers_without_a_format("a = torch.zeros(3)\nb = torch.zeros(3, dtype=torch.float32)") == [1]
    package = Path(ms.__file__).parent
    found = {
        str(p.relative_to(package)): makers_without_a_format(p.read_text()) for p in package.rglob("*.py")
    }
    assert {name: lines for name, lines in found.items() if lines} == {}
