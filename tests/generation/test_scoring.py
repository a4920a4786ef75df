"""Log-probabilities of whole strings equal the plain chain rule, shared prefix or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Add, Edit, edited
from mechsafety.generation.scoring import answer_nll, option_log_probs

PREFIX = [5, 9, 12, 30, 7, 21, 40, 8, 17, 33]
OPTIONS = [[14], [15, 22, 31], [15, 18]]
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
EDITS = [
    None,
    Ablate(VECTOR),
    Ablate(VECTOR, positions="prompt"),
    Add(VECTOR, layer=1, coefficient=3.0, positions="last_prompt"),
    Ablate(VECTOR, positions="generated"),
]


def contexts() -> list[list[int]]:
    generator = random.Random(0)
    return [PREFIX + [generator.randrange(5, 100) for _ in range(1 + n % 5)] for n in range(7)]


def plain(model: Any, context: list[int], option: list[int], edit: Edit | None = None) -> float:
    """Chain rule over one unbatched, uncached pass of the bridge."""
    on = edited(model, edit, prompt_length=len(context)) if edit is not None else nullcontext()
    with torch.inference_mode(), on:
        logits = model.original_model(input_ids=torch.tensor([context + option]), use_cache=False).logits[0]
    table = torch.log_softmax(logits.double(), -1)
    return sum(float(table[len(context) - 1 + i, token]) for i, token in enumerate(option))


def all_plain(model: Any, edit: Edit | None) -> torch.Tensor:
    rows = [[plain(model, c, o, edit) for o in OPTIONS] for c in contexts()]
    return torch.tensor(rows, dtype=torch.float64)


@cache
def all_unedited(model: Any) -> torch.Tensor:
    return all_plain(model, None)


@pytest.mark.parametrize(
    ("architecture", "share_prefix"),
    [
        *(("llama", True), ("llama", False), ("gpt2", True), ("gemma2", True)),
        pytest.param("gpt2", False, marks=pytest.mark.slow),
        pytest.param("gemma2", False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: "none" if edit is None else edit.positions)
def test_scores_equal_the_chain_rule(
    tiny_kept: Callable[..., Any], architecture: str, share_prefix: bool, edit: Any
) -> None:
    model = tiny_kept(architecture)
    got = option_log_probs(model, contexts(), OPTIONS, edit=edit, batch_size=3, share_prefix=share_prefix)

    expected = all_plain(model, edit)
    if edit is not None:
        assert (expected - all_unedited(model)).abs().max() > 0.05
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)


def test_bfloat16_agrees_roughly(tiny_kept: Callable[..., Any]) -> None:
    exact = option_log_probs(tiny_kept("llama"), contexts(), OPTIONS)
    rough = option_log_probs(tiny_kept("llama", dtype="bfloat16"), contexts(), OPTIONS)
    torch.testing.assert_close(exact, rough, rtol=0.1, atol=0.5)


def test_identical_contexts_share_all_but_the_last_token(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    scores = option_log_probs(model, [PREFIX, PREFIX], OPTIONS)
    assert scores[0, 1] == pytest.approx(plain(model, PREFIX, OPTIONS[1]), abs=2e-4)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_answer_nll_is_the_mean_over_answer_tokens(tiny_kept: Callable[..., Any], share_prefix: bool) -> None:
    model = tiny_kept("llama")
    answers = [[14, 15, 16], [], [22], [31, 18, 40, 41, 42]]
    found = answer_nll(model, contexts()[:4], answers, batch_size=2, share_prefix=share_prefix)
    for context, answer, value in zip(contexts(), answers, found, strict=False):
        if not answer:
            assert value is None
        else:
            assert value == pytest.approx(-plain(model, context, answer) / len(answer), abs=1e-4)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
def test_a_thought_is_read_and_not_scored(tiny_kept: Callable[..., Any], positions: Any) -> None:
    model = tiny_kept("llama")
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    edit = Ablate(vector, positions=positions)
    answers, n_thought = [[14, 15, 16], [9, 8], [22], [31, 18, 40, 41, 42]], [1, 2, 0, 3]

    def total(tokens: list[list[int]]) -> list[float]:
        found = answer_nll(model, contexts()[:4], tokens, edit=edit)
        return [(value or 0.0) * len(t) for value, t in zip(found, tokens, strict=True)]

    found = answer_nll(model, contexts()[:4], answers, edit=edit, n_thought=n_thought, batch_size=3)
    thoughts = [answer[:n] for answer, n in zip(answers, n_thought, strict=True)]
    # What answer and thought add up to, less the thought alone.
    rest = [a - b for a, b in zip(total(answers), total(thoughts), strict=True)]
    assert found[1] is None
    for row in (0, 2, 3):
        assert found[row] == pytest.approx(rest[row] / (len(answers[row]) - n_thought[row]), abs=1e-4)
    # The control: scored with its thought an answer has another likelihood.
    assert found[3] != pytest.approx(total(answers)[3] / 5, abs=1e-3)


def test_empty_questions_are_refused(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    for bad in (([], OPTIONS), (contexts(), []), (contexts(), [[]]), ([[]], OPTIONS)):
        with pytest.raises(MechsafetyError, match="none of them empty"):
            option_log_probs(model, *bad)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_context_fits_with_its_options_or_is_an_error(
    tiny_kept: Callable[..., Any], architecture: str
) -> None:
    model = tiny_kept(architecture)
    assert option_log_probs(model, [[5] * 255], [[7], [8, 9]]).isfinite().all()
    with pytest.raises(MechsafetyError, match=r"1 of 2 .* 256 tokens: the first is 'scoring 2', 256 tokens"):
        option_log_probs(model, [[5] * 9, [5] * 256], [[7], [8, 9]])


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_an_answer_fits_with_its_context_or_is_an_error(
    tiny_kept: Callable[..., Any], architecture: str
) -> None:
    model = tiny_kept(architecture)
    (most,) = answer_nll(model, [[5] * 250], [[7] * 6])
    assert most is not None
    assert most > 0
    with pytest.raises(MechsafetyError, match=r"1 of 2 .* 256 .*'long', 257 tokens"):
        answer_nll(model, [[5], [5] * 250], [[7], [7] * 7], ids=["short", "long"])
