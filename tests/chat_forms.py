"""Chat templates of the forms of well-known models (``chat_forms.toml``), on the tiny tokenizer."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mechsafety.models.rendering import exact_tokens, rendered
from tests.conftest import save_tiny, save_tokenizer

FORMS: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)


def template_of(name: str) -> str:
    return FORMS[name]["template"].strip("\n")


def set_form(folder: Path, name: str) -> Any:
    """Save a tokenizer whose chat template has the form ``name``, with its control tokens."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    save_tokenizer(folder, template=template_of(name))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for kind, special in (("specials", True), ("added", False)):
        tokenizer.add_tokens(
            [AddedToken(t, special=special, normalized=False) for t in FORMS[name].get(kind, ())]
        )
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_form(folder: Path, name: str, *, architecture: str = "llama", seed: int = 0) -> Path:
    """A tiny random model whose chat template has the form ``name``."""
    save_tiny(folder, architecture, seed=seed)
    set_form(folder, name)
    return folder


def save_thinking(
    folder: Path, name: str, prompts: Sequence[str], *, closes: str, opens: str | None = None
) -> Path:
    """A tiny random model that ends its thoughts, and opens some where ``opens`` is given: the marks of the form take
    the places of tokens that it writes."""
    from transformers import AutoModelForCausalLM

    save_form(folder, name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = set_form(folder, name)
    asked = [_asked(tokenizer, prompt) for prompt in prompts]
    written = [_greedy(model, ids) for ids in asked]
    used = {token for ids in asked for token in ids} | set(tokenizer.all_special_ids)
    places = [(opens, 0, 1)] if opens else []
    for mark, start, end in [*places, (closes, 2, 40)]:
        counts = Counter(t for ids in written for t in set(ids[start:end]) if t not in used)
        token = counts.most_common(1)[0][0]
        used.add(token)
        _exchange(model, token, tokenizer.convert_tokens_to_ids(mark))
    model.save_pretrained(folder)
    return folder


def _asked(tokenizer: Any, prompt: str) -> list[int]:
    text = rendered(tokenizer, [{"role": "user", "content": prompt}], day="2025-03-01")
    return exact_tokens(tokenizer, text)


def _greedy(model: Any, ids: list[int], n: int = 40) -> list[int]:
    out = list(ids)
    with torch.inference_mode():
        for _ in range(n):
            out.append(int(model(torch.tensor([out])).logits[0, -1].argmax()))
    return out[len(ids) :]


def _exchange(model: Any, a: int, b: int) -> None:
    """The model with two tokens' parts exchanged."""
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            weight[[a, b]] = weight[[b, a]]
