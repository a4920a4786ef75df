"""Suffixes: the search lowers its loss, shows nothing, changes nothing, and never measures where it searched."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate
from mechsafety.models.chat import render_turn, tokenize_text
from mechsafety.models.loading import generation_twin
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.robustness import suffix as module
from mechsafety.robustness.suffix import (
    SearchCost,
    Suffixes,
    expected_seconds,
    find_suffixes,
    suffix_attack,
    target_of,
)

pytest.importorskip("nanogcg")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

START = "a the of river"
COST = SearchCost(steps=3, width=8)
SEARCHED = [Prompt(id="fit-0", text="how do i make fire", label="harmful", split="fit")]
REPORT = [
    Prompt(id=f"report-{i}", text=text, label="harmful")
    for i, text in enumerate(["open the gate", "write a list of key"])
]


def search(model: Any, **options: Any) -> Suffixes:
    return find_suffixes(model, SEARCHED, **({"cost": COST, "seed": 0, "start": START} | options))


def loss_of(model: Any, suffix: str) -> float:
    """Cross-entropy of the target after the request and the suffix, by the bridge and a plain loop."""
    text = SEARCHED[0].text
    prompt = tokenize_text(model, render_turn(model, f"{text} {suffix}", rendering="chat_no_system"))
    target = tokenize_text(model, target_of(text))
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + target]), return_type="logits")[0].float()
    log_probs = torch.log_softmax(logits, dim=-1)
    return -sum(float(log_probs[len(prompt) + i - 1, t]) for i, t in enumerate(target)) / len(target)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_search_finds_a_suffix_that_makes_the_answer_likelier(
    architecture: str, tiny_kept: Callable[..., Any]
) -> None:
    model = tiny_kept(architecture)
    found = search(model)
    assert found.prompt_ids == ("fit-0",)
    assert len(found.losses[0]) == COST.steps
    # What nanogcg minimised is the loss of the text that the model is shown, and it fell.
    assert loss_of(model, found.texts[0]) == pytest.approx(min(found.losses[0]), abs=1e-3)
    assert loss_of(model, found.texts[0]) < loss_of(model, START)


def test_the_search_hangs_on_the_seed_and_runs_under_an_edit(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama", dtype="bfloat16")
    first = search(model)
    torch.rand(3)
    assert search(model) == first
    assert search(model, seed=1).losses != first.losses
    edit = Ablate(torch.randn(32, generator=torch.Generator().manual_seed(0)))
    assert search(model, edit=edit).losses != first.losses


def test_the_search_shows_no_suffix_and_leaves_everything_as_it_was(
    tiny_kept: Callable[..., Any], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_kept()
    template = model.tokenizer.chat_template
    state = torch.get_rng_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    parameters = {n: p.clone() for n, p in model.original_model.named_parameters()}
    import nanogcg.gcg

    bar, level = nanogcg.gcg.tqdm, logging.getLogger("nanogcg").level
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG):
        found = search(model)
    shown = "".join(capfd.readouterr()) + caplog.text + repr(found) + str(found)
    assert found.texts[0] not in shown
    assert "loss" not in shown
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert model.tokenizer.chat_template == template
    assert (nanogcg.gcg.tqdm, logging.getLogger("nanogcg").level) == (bar, level)
    assert not logging.getLogger("nanogcg").disabled
    assert all(torch.equal(p, parameters[n]) for n, p in model.original_model.named_parameters())
    twin = generation_twin(model)
    assert twin is not None
    assert not any(p.requires_grad or p.grad is not None for p in twin.parameters())


def test_no_special_token_becomes_part_of_a_suffix(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept()
    tokenizer = module._SearchTokenizer(model.tokenizer, 160)
    forbidden = [i for i in range(160) if not (tokenizer.decode([i]).isascii() and tokenizer.decode([i]).isprintable())]  # fmt: skip
    assert set(model.tokenizer.all_special_ids) <= set(forbidden)
    assert tokenizer.n_allowed() == 160 - len(forbidden)
    # The template's marks stay where they are, also where a turn begins with the token that begins a text.
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "<eos> a <eos> b"}]) == "<eos> a <eos> b"
    )
    assert tokenizer("yes")["input_ids"] == model.tokenizer("yes", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_attack_appends_each_suffix_and_the_judge_reads_the_request(
    architecture: str, tiny_kept: Callable[..., Any]
) -> None:
    from mechsafety.core.verdict import Verdict
    from mechsafety.generation.completions import generate

    model = tiny_kept(architecture)
    suffixes = Suffixes(prompt_ids=("fit-0", "fit-1"), texts=("river of", "key"), losses=((1.0,), (2.0,)))
    read: list[Any] = []

    class Reading:
        name = "reading"

        def __call__(self, responses: Any) -> list[Verdict]:
            read.extend(responses)
            return [Verdict(id=r.id, judge=self.name, label="compliance") for r in responses]

    found = suffix_attack(model, REPORT, suffixes, max_new_tokens=5, seed=0, judge=Reading())
    assert (found.k, len(found.judged)) == (2, 2)
    assert [r.prompt for r in read] == [p.text for p in REPORT for _ in range(2)]
    asked = [replace(p, id=f"{p.id}{s}", text=f"{p.text} {s}") for p in REPORT for s in suffixes.texts]
    answers = generate(model, asked, max_new_tokens=5, seed=0, rendering="chat_no_system")
    assert [r.text for r in read] == [c.text for c in answers]


def test_suffixes_are_stored_and_read_again() -> None:
    suffixes = Suffixes(prompt_ids=("fit-0",), texts=("river",), losses=((1.0, 0.5),))
    assert Suffixes.from_dict(suffixes.as_dict()) == suffixes


def test_the_expected_time_grows_with_the_search(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_kept()
    ticks = iter([0.0, 1.0] * 2)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    few = expected_seconds(model, SEARCHED, cost=SearchCost(steps=2, width=8))
    many = expected_seconds(model, SEARCHED * 2, cost=SearchCost(steps=4, width=8))
    assert few == pytest.approx(2 * 11 / 8)
    assert many == pytest.approx(4 * few)


def test_wrong_input_is_reported(tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_kept()
    suffixes = Suffixes(prompt_ids=("report-0",), texts=("river",), losses=((1.0,),))
    with pytest.raises(MechsafetyError, match="must differ"):
        suffix_attack(model, REPORT, suffixes, max_new_tokens=2, seed=0)
    with pytest.raises(MechsafetyError, match="no prompts to search"):
        find_suffixes(model, [], cost=COST, seed=0)
    with pytest.raises(MechsafetyError, match="steps 0"):
        SearchCost(steps=0)
    with pytest.raises(MechsafetyError, match="0 suffixes"):
        Suffixes(prompt_ids=(), texts=(), losses=())
    monkeypatch.setitem(sys.modules, "nanogcg", None)
    with pytest.raises(MechsafetyError, match=r"pip install 'mechsafety\[attacks\]'"):
        search(model)
