"""Tokenizers of every kind, as to the token that begins a text: none, known but not added, added, the end's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import WORDS

SPECIAL = ("<pad>", "<eos>", "<unk>", "<bos>", "<|turn|>", "<|end|>")
TURNS = (
    "{% for m in messages %}<|turn|> {{ m['role'] }} \n {{ m['content'] }} <|end|> \n {% endfor %}"
    "{% if add_generation_prompt %}<|turn|> assistant \n {% endif %}"
)
TURNS_WITH_BOS = "{{ bos_token }} " + TURNS
DATED = "Today: {{ strftime_now('%-d %b %Y') }} \n " + TURNS  # the tokenizer knows single digits


@dataclass(frozen=True, kw_only=True)
class Kind:
    """``bos`` is the token that the tokenizer calls its beginning; it adds ``start`` and ``end`` around a text."""

    bos: str | None = None
    start: str | None = None
    end: str | None = None


KINDS = {
    "no BOS": Kind(),
    "BOS known, not added": Kind(bos="<bos>"),
    "BOS added": Kind(bos="<bos>", start="<bos>"),
    "BOS is EOS, not added": Kind(bos="<eos>"),
    "BOS is EOS, added": Kind(bos="<eos>", start="<eos>"),
    "EOS added": Kind(end="<eos>"),
    "both added": Kind(bos="<bos>", start="<bos>", end="<eos>"),
}


def save_kind(folder: Path, kind: Kind, *, template: str | None = TURNS) -> Any:
    """A word-level tokenizer of that kind in ``folder``, and itself as Hugging Face loads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    characters = [chr(c) for c in range(33, 127)]
    vocabulary = list(dict.fromkeys([*SPECIAL, "\n", *WORDS, "user", "assistant", "system", *characters]))[
        :160
    ]
    ids = {word: place for place, word in enumerate(vocabulary)}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation(),
        ]
    )
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    around = [token for token in (kind.start, kind.end) if token]
    if around:
        form = f"{kind.start or ''} $A {kind.end or ''}".strip()
        made.post_processor = processors.TemplateProcessing(
            single=form, special_tokens=[(token, ids[token]) for token in around]
        )
    names: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    if kind.bos:
        names["bos_token"] = kind.bos
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, additional_special_tokens=["<|turn|>", "<|end|>"], **names
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
