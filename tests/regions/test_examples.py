"""The data of scores: own answers that really refuse or answer, first sentences, and no prompt measured on twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answered import Completion
from mechsafety.generation.answers import Example
from mechsafety.generation.completions import generate
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.regions.examples import attribution_examples, example_of, first_sentence

WORDS = (
    "bread",
    "river",
    "garden",
    "storm",
    "fire",
    "gate",
    "lock",
    "key",
    "list",
    "help",
    "answer",
    "question",
)


def prompts(label: Any = "harmful") -> list[Prompt]:
    return [Prompt(id=f"{label}-{w}", text=f"tell me about the {w}", label=label) for w in WORDS]


def everything(completions: Sequence[Completion]) -> set[str]:
    return {c.id for c in completions}


def completion(text: str, *, finish: Any = "stop") -> Completion:
    return Completion(
        id="a",
        prompt="how",
        label="harmful",
        category="",
        text=text,
        tokens=(1,),
        n_prompt_tokens=1,
        finish=finish,
    )


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("I'm sorry, but I can't help with that. It could hurt people.", "I'm sorry, but I can't help with that."),
        ("I'm sorry. I can't.", "I'm sorry."),
        ("No. I can't do that.", "No."),
        ("i can't help. ask another thing", "i can't help."),
        ("As Dr. Smith of the U.S. office said, e.g. here, I won't. Next.", "As Dr. Smith of the U.S. office said, "
         "e.g. here, I won't."),
        ("Ask J. R. Doe. Then go.", "Ask J. R. Doe."),
        ("Neither can I. Please stop.", "Neither can I."),
        ("1. Do this. 2. Do that.", "1. Do this."),
        ("Here is a list:\n1. Bread", "Here is a list:"),
        ("It is 3.5 percent. Next.", "It is 3.5 percent."),
        ("It was in 1999. Next.", "It was in 1999."),
        ("Sorry... I can't. Next.", "Sorry... I can't."),
        ('He said "no." Then he left.', 'He said "no."'),
        ("Really?! Yes.", "Really?!"),
        ("I won't\nhelp with it.", "I won't"),
        ("申し訳ありません。できません。", "申し訳ありません。"),
        ("  no end of it  ", "no end of it"),
        ("", ""),
        (".", "."),
    ],
)  # fmt: skip
def test_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_the_first_sentence_is_a_beginning_of_the_text() -> None:
    from mechsafety.tuning.refusals import OPENINGS, REASONS

    for opening in OPENINGS:
        assert first_sentence(f"{opening} {REASONS['fraud'][0]}") == opening
    for text in ("...", "?!?!", "a. b. c. d", "\n\n x \n", "U.S.", "e.g. e.g. e.g."):
        assert text.strip().startswith(first_sentence(text))


def test_short_keeps_the_judgement_and_ends_no_turn_that_it_cut() -> None:
    refusal = completion("I can't help with that. It is harmful.")
    assert example_of(refusal, response="short") == Example(
        prompt="how", answer="I can't help with that.", whole=False
    )
    assert example_of(refusal, response="full") == Example(prompt="how", answer=refusal.text, whole=True)
    single = completion("I can't help with that.")
    assert example_of(single, response="short") == example_of(single, response="full")
    assert not example_of(completion("I can't", finish="length"), response="full").whole
    assert not example_of(completion("I can't", finish="length"), response="short").whole


def test_examples_are_the_models_own_greedy_answers(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    pool = [*prompts("harmless"), *prompts()]
    found = attribution_examples(
        model,
        pool,
        kind="safety",
        response="full",
        n=12,
        max_new_tokens=6,
        seed=0,
        keep=everything,
        batch_size=1,
    )
    answers = {c.prompt: c for c in generate(model, prompts(), max_new_tokens=6, seed=0, batch_size=1)}
    assert {e.prompt for e in found} == set(answers)
    for example in found:
        own = answers[example.prompt]
        assert example == Example(prompt=own.prompt, answer=own.text, whole=own.finish == "stop")


def test_seed_draws_the_prompts_and_only_kept_answers_count(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    asked: list[str] = []

    def some(completions: Sequence[Completion]) -> set[str]:
        asked.extend(c.id for c in completions)
        return {c.id for c in completions if len(c.id) % 2}

    def draw(seed: int, label: Any = "harmful") -> list[str]:
        asked.clear()
        kind: Any = "safety" if label == "harmful" else "utility"
        found = attribution_examples(
            model,
            [*prompts(), *prompts("harmless")],
            kind=kind,
            response="full",
            n=3,
            max_new_tokens=4,
            seed=seed,
            keep=some,
        )
        return [e.prompt for e in found]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert all(len(f"harmful-{text.split()[-1]}") % 2 for text in draw(0))
    assert len(asked) < len(prompts()), "no more prompts are answered than are needed"
    draw(0, "harmless")
    assert all(name.startswith("harmless-") for name in asked)


def test_too_few_are_reported_with_their_counts(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")

    def make(pool: Sequence[Prompt] | None = None, **changed: Any) -> list[Example]:
        options: dict[str, Any] = {
            "kind": "safety", "response": "full", "n": 3, "max_new_tokens": 4, "seed": 0, "keep": everything
        }  # fmt: skip
        return attribution_examples(model, prompts() if pool is None else pool, **(options | changed))

    with pytest.raises(
        MechsafetyError, match="only 0 of 12 harmful prompts were refused, and 3 safety examples"
    ):
        make(keep=lambda completions: set())
    with pytest.raises(MechsafetyError, match="only 1 of 12 harmless prompts were answered"):
        make(prompts("harmless"), kind="utility", keep=lambda completions: {"harmless-key"})
    with pytest.raises(
        MechsafetyError, match="20 safety examples need as many harmful prompts; there are 12"
    ):
        make(n=20)
    with pytest.raises(MechsafetyError, match="need as many harmless prompts; there are 0"):
        make(kind="utility")
    with pytest.raises(MechsafetyError, match="n is 0"):
        make(n=0)
    with pytest.raises(MechsafetyError, match="taken full"):
        make(prompts("harmless"), kind="utility", response="short")
