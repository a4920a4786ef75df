"""Tokenizers that put a blank before every text: an answer's tokens are those that it has behind its prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answers import Example, encode
from mechsafety.models.chat import tokenize_answer, tokenize_piece
from mechsafety.models.loading import load_reader
from mechsafety.models.rendering import PLAIN_TEMPLATE, exact_tokens
from mechsafety.sweeps.refusal_scores import named_refusal_tokens
from tests.conftest import WORDS, save_tiny

TURNS = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
AFTER_MARK = TURNS.replace("assistant\n", "assistant\n<|turn|>").replace(
    "{{ m.content }}", "{% if m.role == 'assistant' %}<|turn|>{% endif %}{{ m.content }}"
)
BLANK = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
)
TEMPLATES = {"behind a line break": TURNS, "behind a mark": AFTER_MARK, "behind a blank": BLANK}
ANSWER = "sure here is the key"
BYTES = ("bytes", "bytes, a blank before every text")


def save(folder: Path, scheme: str, template: str | None) -> str:
    """A tiny model with a unigram tokenizer, whose words exist with a blank before them alone."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    save_tiny(folder)
    (folder / "chat_template.jinja").unlink()
    if scheme in BYTES:
        return save_bytes(folder, template, prefix=scheme == BYTES[1])
    special = ["<pad>", "<eos>", "<unk>", "<|turn|>", "<|end|>"]
    pieces = [*special, "▁", "\n", *("▁" + word for word in WORDS), *map(chr, range(33, 127))]
    made = Tokenizer(models.Unigram([(p, -1.0 if p[1:] and p[0] == "▁" else -5.0) for p in pieces], unk_id=2))
    if scheme == "Llama 2":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<|turn|>", "<|end|>"],
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return str(folder)


def save_bytes(folder: Path, template: str | None, *, prefix: bool) -> str:
    """The same with a byte-level tokenizer, as GPT-2's or RoBERTa's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<|turn|>", "<|end|>"]
    letters = [*map(chr, range(33, 127)), "Ċ", "Ġ"]
    words = [word for word in WORDS if word.isalpha()]
    pieces = list(dict.fromkeys([*special, *letters, *(w[:n] for w in words for n in range(2, len(w) + 1))]))
    pieces += [f"Ġ{word[:n]}" for word in words for n in range(1, len(word) + 1)]
    ids = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("Ġ", word[0]) for word in words]
    merges += [
        (f"{blank}{w[: n - 1]}", w[n - 1]) for blank in ("Ġ", "") for w in words for n in range(2, len(w) + 1)
    ]
    made = Tokenizer(models.BPE(ids, list(dict.fromkeys(merges))))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=special[2:]
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(ids)}))
    return str(folder)


@pytest.mark.parametrize("scheme", ["first", "always", "Llama 2", *BYTES])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_an_answer_has_the_tokens_that_it_has_in_the_whole_chat(
    tmp_path: Path, scheme: str, kind: str
) -> None:
    model: Any = load_reader(save(tmp_path, scheme, TEMPLATES[kind]))
    turns = [{"role": "user", "content": "make a list"}, {"role": "assistant", "content": ANSWER}]
    whole = model.tokenizer.apply_chat_template(turns, return_dict=False)
    prompt = model.tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    found = tokenize_answer(model, ANSWER)
    assert whole[: len(prompt) + len(found)] == [*prompt, *found]
    if (scheme, kind) == ("first", "behind a line break"):  # control: by itself the text has others
        assert exact_tokens(model.tokenizer, ANSWER) != found


@pytest.mark.parametrize("scheme", ["first", "always", "Llama 2", *BYTES])
def test_a_piece_has_the_tokens_that_it_has_behind_other_text(tmp_path: Path, scheme: str) -> None:
    model: Any = load_reader(save(tmp_path, scheme, TURNS))
    for piece in (" key", "key", "\n", "<|end|>\n"):
        before, whole = (exact_tokens(model.tokenizer, text) for text in ("no:", f"no:{piece}"))
        assert whole == before + tokenize_piece(model, piece)


def test_scores_and_examples_take_these_tokens(tmp_path: Path) -> None:
    model = ms.load_model(save(tmp_path, "first", TURNS), dtype="float32", device="cpu")
    inside = tokenize_answer(model, ANSWER)
    ((_, answer),) = encode(model, [Example(prompt="make a list", answer=ANSWER, whole=False)])
    assert answer == inside
    assert named_refusal_tokens(model, ANSWER).ids == (inside[0],)


def test_a_template_that_is_no_jinja_is_one_line(tmp_path: Path) -> None:
    folder = save(tmp_path, "first", "{% for m in messages %}")
    with pytest.raises(MechsafetyError, match="line 1 of the chat template is no Jinja"):
        load_reader(folder)


def test_a_template_beside_the_tokenizer_is_taken(tmp_path: Path) -> None:
    """Models that read images too may have theirs in chat_template.json."""
    folder = save(tmp_path, "first", None)
    with pytest.raises(MechsafetyError, match="has no chat template"):
        load_reader(folder)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": TURNS}))
    assert load_reader(folder).tokenizer.chat_template == TURNS
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(MechsafetyError, match="holds no chat template"):
        load_reader(folder)


def test_a_template_that_could_not_be_looked_up_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a connection it is not known whether one lies beside the tokenizer: own-or-plain would be a guess."""
    folder = save(tmp_path, "first", None)

    def unreachable(*_args: Any, **_options: Any) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("transformers.utils.cached_file", unreachable)
    for template in (None, "own-or-plain"):
        with pytest.raises(
            MechsafetyError, match=r"is not known .We couldn't connect to the hub.: go online"
        ):
            load_reader(folder, template=template)
    assert load_reader(folder, template="plain").tokenizer.chat_template == PLAIN_TEMPLATE
