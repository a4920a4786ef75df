"""The tokens that a lab model is trained on are those that every other command feeds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.generation.completions import generate, stop_tokens
from mechsafety.lab.inputs import KINDS, draw_inputs, joined
from mechsafety.lab.mixtures import RUNGS, answer_batch, pretraining_pairs
from mechsafety.lab.networks import new_network, save_network
from mechsafety.lab.outcomes import free_running
from mechsafety.lab.presets import PRESETS
from mechsafety.lab.prompt_sets import prompt_text
from mechsafety.lab.rules import Rules
from mechsafety.lab.soft_tokens import N_TOKENS
from mechsafety.lab.vocabulary import SPECIAL, Vocabulary
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import load_model
from mechsafety.prompts.prompt_set import Prompt
from tests.lab.test_rules import tiny_world


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(rules=tiny_world())


@pytest.fixture(scope="module")
def folder(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = new_network(PRESETS["quick"].network, vocabulary, seed=0)
    return save_network(model, vocabulary, tmp_path_factory.mktemp("lab"))


def some_inputs(vocabulary: Vocabulary, n: int = 6) -> Any:
    generator = torch.Generator().manual_seed(0)
    return joined(
        [draw_inputs(vocabulary.rules, kind, n, split="train", generator=generator) for kind in KINDS]
    )


def test_words_are_distinct_and_terminals_come_first(vocabulary: Vocabulary) -> None:
    words = vocabulary.words
    assert len(set(words)) == len(words) == len(vocabulary)
    assert words[:16] == tuple(f"t{i}" for i in range(16))
    assert words[16 : -len(SPECIAL)] == tuple(t.name for t in vocabulary.rules.tasks)
    assert vocabulary.first_task == 16
    assert [vocabulary.id(word) for word in words] == list(range(len(words)))


def test_layouts_by_hand(vocabulary: Vocabulary) -> None:
    inputs = some_inputs(vocabulary)
    rules = vocabulary.rules
    (safe,) = [o.bijection for o in rules.operators if o.name == "safe1"]
    outputs = {
        "prompts": vocabulary.prompts(inputs),
        "answers": vocabulary.answers(inputs),
        "refusals": vocabulary.refusals(inputs),
        "rephrased": vocabulary.rephrased(inputs),
    }
    for i in range(len(inputs)):
        text = [f"t{token}" for token in inputs.texts[i].tolist()]
        tasks = [rules.tasks[t].name for t in inputs.tasks[i].tolist()]
        expected = {
            "prompts": ["<bos>", *tasks, "<sot>", *text, "<eot>"],
            "answers": [*(f"t{token}" for token in inputs.outputs[i].tolist()), "<end>"],
            "refusals": ["<null>"] * 8 + ["<end>"],
            "rephrased": [*(f"t{safe[token]}" for token in inputs.texts[i].tolist()), "<end>"],
        }
        for name, ids in outputs.items():
            assert vocabulary.text(ids[i].tolist()).split() == expected[name]


def test_the_tokenizer_goes_there_and_back(vocabulary: Vocabulary) -> None:
    tokenizer = vocabulary.tokenizer()
    whole = list(range(len(vocabulary)))
    assert tokenizer(vocabulary.text(whole), add_special_tokens=False)["input_ids"] == whole
    assert tokenizer.decode(whole) == vocabulary.text(whole)
    assert tokenizer.convert_ids_to_tokens(whole) == list(vocabulary.words)
    # Refusals and tags are part of an answer, and stay when special tokens are left out.
    answer = [vocabulary.id(w) for w in ("<tag>", "t3", "<null>", "<end>")]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "<tag> t3 <null>"


def test_the_chat_template_makes_the_prompts_of_training(vocabulary: Vocabulary, folder: Path) -> None:
    inputs = some_inputs(vocabulary)
    prompts = vocabulary.prompts(inputs).tolist()
    texts = prompt_text(vocabulary, inputs)
    model = load_model(str(folder), dtype="float32", device="cpu")
    assert tokenize_prompts(model, texts) == prompts
    assert tokenize_prompts(model, texts[1:]) != prompts[:-1]
    # With the answer it is what training saw, whole.
    answers = vocabulary.answers(inputs)
    trained = answer_batch(vocabulary.prompts(inputs), answers).ids.tolist()
    for text, answer, ids in zip(texts, answers.tolist(), trained, strict=True):
        turns = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": " " + vocabulary.text(answer[:-1])},
        ]
        before = model.tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        rendered = before + turns[1]["content"] + " <end>"
        assert model.tokenizer(rendered, add_special_tokens=False)["input_ids"] == ids
    assert stop_tokens(model) == {vocabulary.id("<end>")}


def test_other_commands_generate_what_the_lab_does(vocabulary: Vocabulary, folder: Path) -> None:
    inputs = some_inputs(vocabulary, 3)
    model = load_model(str(folder), dtype="float32", device="cpu")
    network = new_network(PRESETS["quick"].network, vocabulary, seed=0)
    answers = free_running(network, vocabulary, vocabulary.prompts(inputs))
    asked = [
        Prompt(id=str(i), text=text, label="harmful", category="")
        for i, text in enumerate(prompt_text(vocabulary, inputs))
    ]
    done = generate(model, asked, max_new_tokens=10, seed=0)
    assert [list(c.tokens) for c in done] == answers
    kept = [[t for t in answer if vocabulary.words[t] not in ("<bos>", "<end>")] for answer in answers]
    assert [c.text for c in done] == [vocabulary.text(tokens) for tokens in kept]
    assert len({tuple(a) for a in answers}) > 3


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_everything_fits_the_context(preset: str) -> None:
    vocabulary = Vocabulary(rules=Rules(size=PRESETS[preset].rules, seed=0))
    longest = PRESETS[preset].rules.grammar.length[1]
    for rung in RUNGS:
        prompts, answers = pretraining_pairs(vocabulary, rung, 4, generator=torch.Generator().manual_seed(0))
        trained = prompts.shape[1] + answers.shape[1]
        assert trained == 2 * longest + 7
        # Two soft tokens more; the last token of an answer is never fed.
        assert trained - 1 + N_TOKENS == vocabulary.context
    assert vocabulary.tokenizer().model_max_length == vocabulary.context


def test_two_worlds_have_the_same_words() -> None:
    one, other = (Vocabulary(rules=tiny_world(seed)) for seed in (0, 1))
    assert one.words == other.words
    assert one != other
