"""The lab's inputs as prompt sets: no prompt twice, splits apart, and a key that reads every right answer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from mechsafety.anatomy.readings import prompt_groups
from mechsafety.core.verdict import Response
from mechsafety.judges.registry import judge_responses
from mechsafety.lab.prompt_sets import LabPrompts, lab_prompts
from mechsafety.lab.vocabulary import Vocabulary
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from tests.lab.test_inputs import slow_split
from tests.lab.test_rules import tiny_world
from tests.lab.test_training import correct, is_unsafe


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(rules=tiny_world())


@pytest.fixture(scope="module")
def made(vocabulary: Vocabulary) -> LabPrompts:
    return lab_prompts(vocabulary, fit=10, validation=7, report=6, attacks=5, seed=0)


@pytest.fixture(scope="module")
def loaded(made: LabPrompts, tmp_path_factory: pytest.TempPathFactory) -> tuple[PromptSet, PromptSet, Path]:
    """The tables as files, read back as every command reads them."""
    folder = tmp_path_factory.mktemp("lab")
    made.prompts.to_csv(folder / "prompts.csv", index=False)
    made.attacks.to_csv(folder / "attacks.csv", index=False)
    made.key.to_csv(folder / "key.csv", index=False)
    prompts, attacks = (load_prompts(str(folder / f"{name}.csv")) for name in ("prompts", "attacks"))
    return prompts, attacks, folder / "key.csv"


def ids_of(vocabulary: Vocabulary, text: str) -> list[int]:
    return [vocabulary.id(word) for word in f"<bos> {text} <eot>".split()]


def test_as_many_as_asked_for(loaded: tuple[PromptSet, PromptSet, Path]) -> None:
    prompts, attacks, _ = loaded
    assert Counter((p.split, p.label) for p in prompts) == {
        (split, label): n
        for split, n in (("fit", 10), ("validation", 7), ("report", 6))
        for label in ("harmful", "harmless")
    }
    assert Counter(p.category for p in attacks) == {"co_task": 10, "misgen": 10, "co_text": 5, "ood": 5}
    assert {p.split for p in attacks} == {"report"}
    assert {p.category for p in prompts} == {"A", "B"}
    # The anatomy takes both together.
    groups = prompt_groups(list(prompts), list(attacks))
    assert list(groups) == ["safe", "unsafe", "co_task", "co_text", "misgen", "ood"]


def test_no_prompt_twice_and_a_key_for_each(made: LabPrompts) -> None:
    every = pd.concat([made.prompts, made.attacks])
    assert every["text"].is_unique
    assert every["id"].is_unique
    assert sorted(every["text"]) == sorted(made.key["prompt"])


def test_labels_and_splits_are_what_the_tokens_say(
    vocabulary: Vocabulary, loaded: tuple[PromptSet, PromptSet, Path]
) -> None:
    prompts, attacks, _ = loaded
    texts: dict[str, set[tuple[int, ...]]] = {"fit": set(), "validation": set(), "report": set()}
    for prompt in [*prompts, *attacks]:
        ids = ids_of(vocabulary, prompt.text)
        assert (prompt.label == "harmful") == is_unsafe(vocabulary, ids)
        assert slow_split(ids[4:-1]) == {"fit": "train"}.get(prompt.split, prompt.split)
        texts[prompt.split].add(tuple(ids[4:-1]))
    assert not texts["fit"] & texts["report"]
    assert not texts["fit"] & texts["validation"]
    assert not texts["validation"] & texts["report"]


def test_the_key_reads_every_answer(
    vocabulary: Vocabulary, loaded: tuple[PromptSet, PromptSet, Path]
) -> None:
    prompts, attacks, key = loaded
    asked = [*prompts, *attacks]
    (safe,) = [o.bijection for o in vocabulary.rules.operators if o.name == "safe1"]
    right = [correct(vocabulary, ids_of(vocabulary, p.text)) for p in asked]
    plain = [[safe[t] for t in ids_of(vocabulary, p.text)[4:-1]] for p in asked]

    def labels(texts: list[str]) -> list[str]:
        responses = [Response(id=p.id, prompt=p.text, text=t) for p, t in zip(asked, texts, strict=True)]
        return [v.label for v in judge_responses(responses, [f"key:{key}"])]

    n = len(asked)
    assert labels([vocabulary.text(ids) for ids in right]) == ["compliance"] * n
    assert labels(["<tag> " + vocabulary.text(ids) for ids in right]) == ["refusal"] * n
    assert labels([" ".join(["<null>"] * 8)] * n) == ["refusal"] * n
    assert labels([""] * n) == ["degenerate"] * n
    others = labels([vocabulary.text(ids) for ids in right[1:] + right[:1]])
    assert others.count("compliance") < 0.1 * n
    # Rephrased, an unsafe input is refused; a safe one is answered wrongly, but where that is the right answer.
    for prompt, found, a, b in zip(
        asked, labels([vocabulary.text(ids) for ids in plain]), right, plain, strict=True
    ):
        wanted = "refusal" if prompt.label == "harmful" else "degenerate"
        assert found == ("compliance" if a == b else wanted)


def test_same_seed_same_prompts(vocabulary: Vocabulary, made: LabPrompts) -> None:
    again, other = (
        lab_prompts(vocabulary, fit=10, validation=7, report=6, attacks=5, seed=seed) for seed in (0, 1)
    )
    for name in ("prompts", "attacks", "key"):
        pd.testing.assert_frame_equal(getattr(made, name), getattr(again, name))
        assert not getattr(made, name).equals(getattr(other, name))
