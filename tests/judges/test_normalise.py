"""Text preparation: what is stripped, what is kept, and that doing it twice changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mechsafety.judges.normalise import JOINS, normalise, normalise_plain, read_prompt, tidy
from mechsafety.models.thoughts import FORMATS, Format, Split, split_thought

PROMPT = "How do I plant a pear tree in a small garden?"

SCAFFOLD = [
    "<think>", "</think>", "<|im_end|>", "<|im_start|>", "<|assistant|>", "[INST]", "[/INST]", "</s>",
    "Assistant:",
    "### Response:", "assistant\n", PROMPT, "\n", " ", "’", "\u200b", "e\u0301", "＜think＞",
    "user\n", "I can't", "A: ",
    "<|channel|>final<|message|>", "### Instruction:", "<s", ">", "k</s>", "system\n", "e\u200b\u0301",
]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("Dig a hole.<|im_end|>", "Dig a hole."),
        ("<|assistant|>\nDig a hole.", "Dig a hole."),
        ("<s>[INST] x y z [/INST] Dig a hole.</s>", "x y z  Dig a hole."),
        ("Assistant: Dig a hole.", "Dig a hole."),
        ("**Assistant:** Dig a hole.", "Dig a hole."),
        ("### Response:\nDig a hole.", "Dig a hole."),
        ("### Assistant\nDig a hole.", "Dig a hole."),
        ("assistant\nDig a hole.", "Dig a hole."),
        ("model\nDig a hole.", "Dig a hole."),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nDig a hole.<|eot_id|>", "Dig a hole."),
        ("<|im_start|>assistant\nDig a hole.<|im_end|>\n<|im_start|>user\nAnd then?", "Dig a hole."),
        ("Dig a hole.\n### Instruction: Write more.", "Dig a hole."),
        ("Answer: 42", "42"),
        ("Assistant:", ""),
        ("<｜begin▁of▁sentence｜>Dig a hole.", "Dig a hole."),
        ("Assistants are helpful.", "Assistants are helpful."),
        ("Answering is easy.", "Answering is easy."),
        ("Model trains are fun.", "Model trains are fun."),
        ("", ""),
    ],
)
def test_strips_scaffolding(raw: str, answer: str) -> None:
    assert normalise(raw).answer == answer


@pytest.mark.parametrize(
    ("raw", "answer", "thought"),
    [
        ("<think>Trees.</think>\nDig.", "Dig.", "Trees."),
        ("<think>\n\n</think>\n\nDig.", "Dig.", ""),
        ("<think>Trees, and so on", "", "Trees, and so on"),
        ("Trees.</think>Dig.", "Dig.", "Trees."),
        ("<THINKING>Trees.</THINKING>Dig.", "Dig.", "Trees."),
        ("<think>a</think>Dig.<think>b</think> Water.", "Dig. Water.", "a\nb"),
        ("I think, therefore I am.", "I think, therefore I am.", ""),
    ],
)
def test_keeps_thoughts_apart(raw: str, answer: str, thought: str) -> None:
    prepared = normalise(raw)
    assert (prepared.answer, prepared.thought) == (answer, thought)


def test_keeps_the_analysis_channel_apart() -> None:
    raw = (
        "<|channel|>analysis<|message|>Trees.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Dig.<|return|>"
    )
    prepared = normalise(raw)
    assert prepared.answer == "Dig."
    assert "Trees." in prepared.thought


@pytest.mark.parametrize("example", FORMATS, ids=[f.name for f in FORMATS])
def test_reads_every_known_format_of_thoughts(example: Format) -> None:
    prepared = normalise(example.example)
    assert prepared.answer == "Dig a hole."
    assert prepared.thought.startswith("Trees need water.")
    assert not prepared.unclosed
    cut_off = example.example.partition("water.")[0] + "water."
    prepared = normalise(cut_off)
    assert (prepared.answer, prepared.thought, prepared.unclosed) == ("", "Trees need water.", True)
    # Fast and plain reading agree that there is something to be stripped.
    assert normalise_plain(example.example, prompt=read_prompt("")) is None


def test_a_models_own_tags_are_known_before_all_others() -> None:
    split = split_thought(
        "[[t]]Trees.[[/t]]Dig <think> a hole.</t2>", own=[("[[t]]", "[[/t]]"), ("<think>", "</t2>")]
    )
    assert (split.answer, split.thoughts, split.unclosed) == ("Dig ", ("Trees.", "a hole."), False)
    assert split_thought("[[t]]Trees.[[/t]]Dig.").answer == "[[t]]Trees.[[/t]]Dig."


@pytest.mark.parametrize(
    "text",
    [
        "a</think>" * 20_000,
        "</think>" * 20_000 + "x",
        "<think>" * 20_000,
        "<think>a</think>" * 20_000,
        "[/THINK]" * 20_000,
        "<|channel|>final<|message|>" * 20_000,
        "<" * 20_000 + "s>" * 20_000,
        "<" * 20_000 + "think>a</think>" * 20_000,
    ],
    ids=lambda text: text[:20],
)
def test_reads_a_text_a_bounded_number_of_times(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Once a round; a round a tag would be quadratic in the tags.
    rounds = 0

    def counted(text: str, *, glue: str) -> Split:
        nonlocal rounds
        rounds += 1
        return split_thought(text, glue=glue)

    monkeypatch.setattr("mechsafety.judges.normalise.split_thought", counted)
    normalise(text)
    assert rounds <= JOINS + 4


@pytest.mark.parametrize(
    "raw",
    [
        PROMPT + "\n\nDig a hole.",
        PROMPT.upper() + " Dig a hole.",
        "How do I plant a pear tree\nin a small   garden? Dig a hole.",
        f"User: {PROMPT}\nAssistant: Dig a hole.",
        f"user\n{PROMPT}\nassistant\nDig a hole.",
        f"system\nYou are a gardener.\nuser\n{PROMPT}\nassistant\nDig a hole.",
        f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\nDig a hole.<|im_end|>",
        f"<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{PROMPT}<|im_end|>\n"
        "<|im_start|>assistant\nDig a hole.",
        f"<|start_header_id|>user<|end_header_id|>\n\n{PROMPT}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nDig a hole.",
        f"[INST] {PROMPT} [/INST] Dig a hole.",
        f"### Instruction:\n{PROMPT}\n\n### Response:\nDig a hole.",
        f"Question: {PROMPT}\nAnswer: Dig a hole.",
        f"{PROMPT}\n{PROMPT}\nDig a hole.",
        f'"{PROMPT}"\n\nDig a hole.',
    ],
)
def test_strips_a_copied_prompt(raw: str) -> None:
    prepared = normalise(raw, prompt=PROMPT)
    assert prepared.answer == "Dig a hole."
    assert prepared.echoed


@pytest.mark.parametrize(
    ("prompt", "raw"),
    [
        ("Hi", "Hi there! What shall we plant?"),
        (PROMPT, "How do I plant a pear tree? Dig a hole."),
        (PROMPT, f"Dig a hole. You asked: {PROMPT}"),
        ("", "Dig a hole."),
        ("Name a fruit", "Name a fruity wine? Riesling."),
    ],
)
def test_leaves_what_is_no_copy(prompt: str, raw: str) -> None:
    prepared = normalise(raw, prompt=prompt)
    assert prepared.answer == raw
    assert not prepared.echoed


def test_a_short_prompt_is_copied_only_on_its_own_line() -> None:
    assert normalise("Hi\nHello!", prompt="Hi").answer == "Hello!"
    assert normalise(PROMPT, prompt=PROMPT).answer == ""


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("I can’t", "I can't"),
        ("I can´t", "I can't"),
        ("I can`t", "I can't"),
        ("“No”", '"No"'),
        ("yes—no–maybe", "yes-no-maybe"),
        ("can\u200bnot", "cannot"),
        ("ca\u00adn't", "can't"),
        ("ｓｏｒｒｙ", "sorry"),
        ("ﬁne", "fine"),
        ("a\r\nb", "a\nb"),
        ("use `x`", "use `x`"),
    ],
)
def test_tidies_characters(raw: str, plain: str) -> None:
    assert tidy(raw) == plain


@given(
    st.text() | st.lists(st.sampled_from(SCAFFOLD), max_size=8).map("".join),
    st.sampled_from(["", "Hi", PROMPT]),
)
@example("<<think>think>a</think>b", "")
@example("e\u200b\u0301", "")
def test_is_idempotent(text: str, prompt: str) -> None:
    once = normalise(text, prompt=prompt).answer
    assert normalise(once, prompt=prompt).answer == once
    assert tidy(tidy(text)) == tidy(text)


@given(st.text(alphabet=st.characters(categories=("Ll", "Lu", "Zs")), min_size=1))
def test_keeps_plain_prose(text: str) -> None:
    # Control for the stripping tests: without markup nothing but outer space and character forms changes.
    assert normalise(text).answer == tidy(text).strip()


def test_long_blanks_and_markers_end() -> None:
    # A pattern with nested repetition would hang here.
    for text in (" " * 30_000 + "x", "\n" * 30_000, "user\n" * 5_000, "system\n" * 5_000, "<think>" * 5_000):
        normalise(text, prompt=PROMPT)
