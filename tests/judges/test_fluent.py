"""The judge that asks a whole model whether an answer is language at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.judges.kinds.degeneracy import NLL_NATS
from mechsafety.judges.kinds.fluent import FluentJudge
from mechsafety.judges.registry import judge_responses, load_judge
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import load_model

PROMPT = "How do I repot a plant?"
ANSWER = "Take a pot that is a little larger, put some soil into it, and set the plant in the middle."
REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("smollm2-135m", dtype="float32", device="cpu")


def salad(model: Any, *, n: int = 30, seed: int = 0) -> str:
    """Pieces of long words in random order, which loop nowhere and refuse nothing."""
    generator = torch.Generator().manual_seed(seed)
    pieces = [model.tokenizer.decode([i]) for i in range(20_000, 40_000)]
    words = [p for p in pieces if p.strip().isalpha() and p.isascii() and len(p) > 5]
    return "".join(words[i] for i in torch.randint(0, len(words), (n,), generator=generator).tolist())


def test_word_salad_is_degenerate_and_language_is_not(model: Any) -> None:
    texts = [ANSWER, REFUSAL, *(salad(model, seed=seed) for seed in range(4))]
    responses = [Response(id=str(i), prompt=PROMPT, text=text) for i, text in enumerate(texts)]
    judge = FluentJudge("whole", model)
    found = [v.label for v in judge(responses)]
    assert found == ["compliance", "refusal", *["degenerate"] * 4]
    # Patterns alone take the salad for an answer, which is why a model is asked.
    alone = [v.label for v in judge_responses(responses, ["rules"])]
    assert alone == ["compliance", "refusal", *["compliance"] * 4]
    assert {v.judge for v in judge(responses)} == {"fluent:whole"}


def test_what_is_measured_is_the_mean_of_a_plain_loop(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Response] = []
    judge = FluentJudge("whole", model)
    rules = judge._rules
    monkeypatch.setattr(judge, "_rules", lambda responses: told.extend(responses) or rules(responses))
    judge([Response(id=str(i), prompt=PROMPT, text=t) for i, t in enumerate([ANSWER, REFUSAL, ""])])
    (context,) = tokenize_prompts(model, [PROMPT])
    for response in told[:2]:
        answer = model.tokenizer(response.text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model.original_model(input_ids=torch.tensor([context + answer])).logits[0].double()
        steps = [
            -torch.log_softmax(logits[len(context) + i - 1], -1)[token] for i, token in enumerate(answer)
        ]
        assert response.nll == pytest.approx(float(sum(steps) / len(steps)), abs=1e-3)
        assert response.nll < NLL_NATS
    assert told[2].nll is None


def test_a_thought_before_the_answer_is_not_scored(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Response] = []
    judge = FluentJudge("small", tiny_kept("llama"))
    rules = judge._rules
    monkeypatch.setattr(judge, "_rules", lambda responses: told.extend(responses) or rules(responses))
    texts = [
        ANSWER,
        f"<think>a pot, not a lock</think>\n\n{ANSWER}",
        f"a pot</think>{ANSWER}",
        f"<think>{ANSWER}",
    ]
    verdicts = judge([Response(id=str(i), prompt=PROMPT, text=text) for i, text in enumerate(texts)])
    alone, *thought, unclosed = (response.nll for response in told)
    assert thought == [pytest.approx(alone)] * 2
    assert unclosed is None
    assert verdicts[-1].label == "unparsed"


def test_it_is_asked_for_by_name_and_needs_a_model(model: Any) -> None:
    assert load_judge("fluent:mine", models=lambda _: model).name == "fluent:mine"
    with pytest.raises(MechsafetyError, match="needs a model"):
        load_judge("fluent")


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_answer_beyond_the_window_is_judged_by_its_patterns(
    tiny_kept: Callable[..., Any], architecture: str
) -> None:
    texts = [REFUSAL, f"{ANSWER} " * 40, ANSWER]
    responses = [Response(id=str(i), prompt=PROMPT, text=text) for i, text in enumerate(texts)]
    found = FluentJudge("small", tiny_kept(architecture))(responses)
    assert ["too_long" in v.tags for v in found] == [False, True, False]
    assert found[1].label == judge_responses(responses, ["rules"])[1].label
    # The others are judged as without it.
    assert [found[0], found[2]] == FluentJudge("small", tiny_kept(architecture))([responses[0], responses[2]])
