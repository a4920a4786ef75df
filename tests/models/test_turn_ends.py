"""A turn ends as the model's chat template ends it, whatever else the model may stop at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechsafety.anatomy.outputs import greedy_answers
from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answers import Example, encode
from mechsafety.generation.completions import generate
from mechsafety.models.loading import load_model
from mechsafety.models.turn_ends import end_of_turn, stop_tokens
from tests.prompt_sets import small_prompts
from tests.turn_templates import STYLES, save_turns

Speaker = Callable[[str], Any]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    made: dict[str, Any] = {}

    def get(style: str) -> Any:
        if style not in made:
            folder = save_turns(tmp_path_factory.mktemp("turns"), style)
            made[style] = load_model(str(folder), dtype="float32", device="cpu")
        return made[style]

    return get


def tokens(model: Any, *texts: str) -> list[int]:
    return model.tokenizer.convert_tokens_to_ids(list(texts))


@pytest.mark.parametrize("style", list(STYLES))
def test_a_whole_answer_ends_as_the_template_ends_it(speaker: Speaker, style: str) -> None:
    model, turns = speaker(style), STYLES[style]
    (end,) = tokens(model, turns.end)
    assert end_of_turn(model) == end
    example = Example(prompt="tell me about the river", answer="sorry can not help", whole=True)
    ((prompt, answer),) = encode(model, [example])
    assert answer[-1] == end
    assert encode(model, [Example(prompt="a", answer="sorry", whole=False)])[0][1][-1] != end
    if style == "plain":
        return
    # What is trained on is what the template writes: such a dialogue, up to where the next question begins.
    dialogue = [
        {"role": "user", "content": example.prompt},
        {"role": "assistant", "content": example.answer},
        {"role": "user", "content": "how"},
    ]
    rendered = model.tokenizer.apply_chat_template(dialogue, tokenize=False)
    written = model.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert written[: len(prompt) + len(answer)] == [*prompt, *answer]
    # The control: the smallest stop token is another one where there are several.
    if style in ("qwen", "llama3", "gemma", "phi3"):
        assert min(stop_tokens(model)) != end


@pytest.mark.parametrize("style", list(STYLES))
def test_stop_tokens_are_what_is_named_and_what_closes_an_answer(speaker: Speaker, style: str) -> None:
    model, turns = speaker(style), STYLES[style]
    assert stop_tokens(model) == set(tokens(model, *turns.named, turns.eos, turns.end))
    assert not stop_tokens(model) & set(tokens(model, *turns.ordinary, "river")) - {end_of_turn(model)}


def test_the_ends_that_were_missed_are_special_and_yet_not_among_the_special_ids(speaker: Speaker) -> None:
    for style in ("gemma, its end not named", "phi3"):
        model = speaker(style)
        assert end_of_turn(model) not in model.tokenizer.all_special_ids
        assert model.tokenizer.added_tokens_decoder[end_of_turn(model)].special


def test_generation_stops_there(tmp_path: Path) -> None:
    model = load_model(str(save_turns(tmp_path, "phi3")), dtype="float32", device="cpu")
    prompts = small_prompts(2).report
    end = end_of_turn(model)
    assert all(c.finish == "length" for c in generate(model, prompts, max_new_tokens=4, seed=0))
    said = generate(model, prompts, max_new_tokens=4, seed=0)[0].tokens[2]
    weight = model.original_model.get_output_embeddings().weight
    weight[end] = 1.5 * weight[said]  # likelier than a token that is said
    ended = generate(model, prompts, max_new_tokens=16, seed=0)
    assert any(c.finish == "stop" for c in ended)
    assert not any(end in c.tokens for c in ended)
    answers = greedy_answers(model, prompts, max_new_tokens=16, seed=0)
    assert {ids[-1] for (_, ids), c in zip(answers.encoded, ended, strict=True) if c.finish == "stop"} == {
        end
    }


def test_templates_that_show_no_answers_name_no_end(speaker: Speaker) -> None:
    model = speaker("qwen")
    template, named = model.tokenizer.chat_template, stop_tokens(model)
    try:
        for other in (
            None,
            "<|im_start|> {{ messages[0]['content'] }} <|im_start|>",
            "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}",
        ):
            model.tokenizer.chat_template = other
            assert stop_tokens(model) == named
            assert end_of_turn(model) == model.tokenizer.eos_token_id
    finally:
        model.tokenizer.chat_template = template


def test_a_model_without_any_end_is_an_error(tmp_path: Path) -> None:
    model = load_model(str(save_turns(tmp_path, "plain")), dtype="float32", device="cpu")
    model.tokenizer.eos_token = None
    assert end_of_turn(model) == tokens(model, "<|other|>")[0]
    model.original_model.generation_config.eos_token_id = None
    with pytest.raises(MechsafetyError, match="no token that ends a turn"):
        end_of_turn(model)
