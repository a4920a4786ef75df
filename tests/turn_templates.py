"""Chat formats of well-known model families, in the words that the tiny tokenizer knows: how a turn ends in each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import save_tiny, save_tokenizer


@dataclass(frozen=True, kw_only=True)
class Turns:
    """A template, its control tokens in the order of their ids, and what ends a turn.

    ``added`` are control tokens that are special and yet not among a tokenizer's ``all_special_ids``; ``ordinary``
    were added without being called special. ``named`` is what the generation config calls the end, ``end`` the token
    that closes an answer.
    """

    template: str
    eos: str
    specials: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    ordinary: tuple[str, ...] = ()
    named: tuple[str, ...]
    end: str


def _turns(opens: str, closes: str, after: str = "") -> str:
    return (
        "{% for m in messages %}" + opens + "{{ m['content'] }}" + closes + "{% endfor %}"
        "{% if add_generation_prompt %}"
        + opens.replace("{{ m['role'] }}", "assistant")
        + "{% else %}"
        + after
    ) + "{% endif %}"


_IM = _turns("<|im_start|> {{ m['role'] }}\n", "<|im_end|>\n")

STYLES: dict[str, Turns] = {
    "qwen": Turns(
        template=_IM,
        eos="<|im_end|>",
        specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        named=("<|im_end|>", "<|endoftext|>"),
        end="<|im_end|>",
    ),
    "llama3": Turns(
        template=_turns("<|start_header_id|> {{ m['role'] }} <|end_header_id|>\n\n", "<|eot_id|>"),
        eos="<|eot_id|>",
        specials=("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
        named=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        end="<|eot_id|>",
    ),
    "gemma": Turns(
        template=_turns("<start_of_turn> {{ m['role'] }}\n", "<end_of_turn>\n"),
        eos="<eos>",
        added=("<start_of_turn>", "<end_of_turn>"),
        named=("<eos>", "<end_of_turn>"),
        end="<end_of_turn>",
    ),
    "gemma, its end not named": Turns(
        template=_turns("<start_of_turn> {{ m['role'] }}\n", "<end_of_turn>\n"),
        eos="<eos>",
        added=("<start_of_turn>", "<end_of_turn>"),
        named=("<eos>",),
        end="<end_of_turn>",
    ),
    "phi3": Turns(
        template=_turns("<|{{ m['role'] }}|>\n", "<|end|>\n", after="<|endoftext|>"),
        eos="<|endoftext|>",
        specials=("<|endoftext|>",),
        added=("<|assistant|>", "<|user|>", "<|end|>"),
        named=("<|endoftext|>",),
        end="<|end|>",
    ),
    "fine-tuned chatml, its end not special": Turns(
        template=_IM, eos="<eos>", ordinary=("<|im_start|>", "<|im_end|>"), named=("<eos>",), end="<|im_end|>"
    ),
    "glm, ended by the next turn": Turns(
        template=_turns("<|{{ m['role'] }}|>\n", ""),
        eos="<|endoftext|>",
        specials=("<|endoftext|>", "<|assistant|>", "<|user|>"),
        named=("<|endoftext|>", "<|user|>"),
        end="<|user|>",
    ),
    "blank before the end": Turns(
        template=_turns("[INST] ", " <eos>"), eos="<eos>", specials=("[INST]",), named=("<eos>",), end="<eos>"
    ),
    "plain": Turns(
        template=_turns("Question: ", "\n\n"),
        eos="<eos>",
        specials=("<|other|>",),
        ordinary=("\n\n", "river"),
        named=("<|other|>",),
        end="<eos>",
    ),
}


def save_turns(folder: Path, style: str, *, architecture: str = "llama", seed: int = 0) -> Path:
    """A tiny random model that speaks in one of :data:`STYLES`."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    turns = STYLES[style]
    save_tiny(folder, architecture, seed=seed)
    save_tokenizer(folder, template=turns.template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in turns.ordinary])
    tokenizer.add_special_tokens({"additional_special_tokens": list(turns.specials)})
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in turns.added])
    tokenizer.eos_token = turns.eos
    tokenizer.save_pretrained(folder)
    named = tokenizer.convert_tokens_to_ids(list(turns.named))
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": named}))
    return folder
