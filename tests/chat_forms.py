"""Chat templates of the forms of well-known models (``chat_forms.toml``), on the tiny tokenizer."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

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
