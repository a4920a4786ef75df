"""How thinking is switched off, in templates of the forms of well-known models."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechsafety.judges.normalise import normalise
from mechsafety.models import rendering
from mechsafety.models.chat_settings import ChatSettings, template_input
from mechsafety.models.thinking import opened, thinking_off, thought_marks
from mechsafety.models.thought_reading import ThoughtReader
from tests.chat_forms import FORMS, set_form, template_of

DAY = "2025-03-01"
ASKED = [{"role": "user", "content": "How do rivers form?"}]


def byte_tokenizer(name: str) -> Any:
    """A tokenizer of single bytes, which loses no text, with the control tokens and the template of a form."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")
    for kind, special in (("specials", True), ("added", False)):
        tokenizer.add_tokens(
            [AddedToken(t, special=special, normalized=False) for t in FORMS[name].get(kind, ())]
        )
    tokenizer.chat_template = template_of(name)
    return tokenizer


def reader_of(tokenizer: Any, *, begun: bool = False) -> ThoughtReader:
    marks = thought_marks(tokenizer)
    return ThoughtReader(
        tokenizer=tokenizer, marks=marks, begun=marks[0] if begun else None, n_answer=3, n_thought=9
    )


@pytest.mark.parametrize(
    ("name", "begun", "thought", "written", "recorded"),
    [
        ("qwen3", False, "<think>\na b\n</think>\n\n", "c d", "<think>a b</think>c d"),
        ("qwen3", False, "", "c d", "c d"),
        ("qwen3", False, "", "c <think>a</think> d", "c <think>a</think> d"),
        ("qwen3", False, "<think>a", "", "<think>a"),
        ("deepseek_r1", True, "a</think>", "c", "<think>a</think>c"),
        ("deepseek_r1", True, "a b", "", "<think>a b"),
        ("deepseek_r1", True, "</think>\n\n", "c", "c"),
        ("magistral", False, "[THINK]a[/THINK]", "c", "<think>a</think>c"),
        ("gemma4", False, "<|channel>thought\na<channel|>", "c", "<think>a</think>c"),
        (
            "gpt_oss",
            False,
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>",
            "c",
            "<think>a</think>c",
        ),
        ("gpt_oss", False, "<|channel|>analysis<|message|>a", "", "<think>a"),
        ("gpt_oss", False, "<|channel|>final<|message|>", "c", "c"),
        ("gpt_oss", False, "", "c", "c"),
    ],
)
def test_thoughts_are_recorded_whatever_their_marks(
    name: str, begun: bool, thought: str, written: str, recorded: str
) -> None:
    tokenizer = byte_tokenizer(name)
    before = rendering.exact_tokens(tokenizer, thought)
    tokens = [*before, *rendering.exact_tokens(tokenizer, written)]
    reader = reader_of(tokenizer, begun=begun)
    text, unclosed = reader.text(tokens), bool(thought) and not written
    assert normalise(text).unclosed == unclosed
    # Blank lines behind a thought are not the answer's.
    assert "".join(text.split("\n")) == recorded
    assert reader.thought_tokens(tokens) == len(before)
    # Where the budgets end a response does not depend on what follows.
    ends = [reader.end(tokens[:n]) for n in range(len(tokens) + 1)]
    assert all(end is None or end == ends[-1] for end in ends)


def test_a_thought_that_names_a_tag_does_not_end_there() -> None:
    tokenizer = byte_tokenizer("magistral")
    tokens = rendering.exact_tokens(tokenizer, "[THINK]the tag </think> is no end[/THINK]c")
    prepared = normalise(reader_of(tokenizer).text(tokens))
    assert prepared.answer == "c"
    assert prepared.thought == "the tag < /think> is no end"


@pytest.mark.parametrize("name", list(FORMS))
def test_thinking_is_switched_off_in_every_form(name: str, tmp_path: Path) -> None:
    tokenizer, form = set_form(tmp_path, name), FORMS[name]
    off = thinking_off(tokenizer, day=DAY)
    assert (dict(off.arguments), off.prefix) == (form["arguments"], form["prefix"])
    assert off.certain == form.get("certain", True)
    text = rendering.rendered(
        tokenizer, ASKED, day=DAY, given=template_input(ChatSettings(), tokenizer, day=DAY)
    )
    before, _, begins = text.rpartition("rivers form?")
    assert begins == form["begins"]
    assert before
    assert opened(begins, thought_marks(tokenizer)) is None
