"""Batched = alone: whatever a prompt is batched with, its numbers are those of plain transformers on it alone.

The oracle is Hugging Face's model on one unpadded prompt, without a cache. It runs over every architecture of the
table, below and beyond the sliding window, with tokens that all prompts begin with and without.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.scoring import answer_nll, option_log_probs
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.hooking import plain_module_path, residual_hooks
from mechsafety.models.loading import body_of, generation_twin
from mechsafety.models.prefixes import all_last_logits, ignores_gaps
from mechsafety.models.weights import auto_class
from mechsafety.prompts.prompt_set import PromptSet, from_rows
from mechsafety.regions.heads import head_outputs
from mechsafety.regions.maps import linear_maps, running_body
from mechsafety.sweeps.refusal_scores import RefusalTokens, refusal_scores
from tests.architectures import (
    ARCHITECTURES,
    HEADLESS,
    KINDS,
    OF_IMAGES,
    SITELESS,
    UNFAITHFUL,
    UNPADDABLE,
    save_architecture,
)

SYSTEM = "Instructions: help me write an answer to the question with a list \n\n"
BARE = "{% for m in messages %}Question: {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
TEMPLATES = {"prefix": SYSTEM + BARE, "no prefix": BARE}
TEXTS = [
    "tell me how to make bread",
    "list the river garden storm fire gate lock key of a the write me about how do i make bread for the fire",
    "help me",
    "write a list of bread river garden storm fire gate lock key " * 3,
]
CLOSE = 1e-4
NO_PREFIX = ("llama", "gpt2", "gemma3", "mamba", "recurrent-gemma")
"""Tried without tokens that all prompts begin with on every run."""
SUBJECTS = [
    pytest.param(
        f"{name}; {kind}",
        marks=() if name in (KINDS if kind == "prefix" else NO_PREFIX) else pytest.mark.slow,
    )
    for name in (*ARCHITECTURES, *OF_IMAGES)
    if name not in UNFAITHFUL
    for kind in TEMPLATES
]


class Subject:
    """One loaded architecture, and Hugging Face's own model of the same weights."""

    def __init__(self, folder: Path, name: str, model: Any = None) -> None:
        from transformers import AutoConfig

        self.name = name
        self.batch_size = 1 if name in UNPADDABLE else 8
        self.model: Any = model or ms.load_model(str(folder), dtype="float32", device="cpu")
        kind = auto_class(AutoConfig.from_pretrained(folder))
        self.oracle: Any = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.sequences = tokenize_prompts(self.model, TEXTS)
        self.body = generation_twin(self.model) or body_of(self.model)
        self.rounded: list[Any] = []

    def alone(self, tokens: list[int], **options: Any) -> Any:
        with torch.no_grad():
            return self.oracle(input_ids=torch.tensor([tokens]), use_cache=False, **options)

    def streams(self, tokens: list[int]) -> torch.Tensor:
        """What enters each block of the oracle at the last token, and what leaves the last one."""
        names = residual_hooks(self.model.cfg.n_layers)
        places = [plain_module_path(self.model, name) for name in names]
        if None in places:  # no module boundary there: Hugging Face's own list, but for its end
            states = self.alone(tokens, output_hidden_states=True).hidden_states
            return torch.stack([s[0, -1] for s in states[:-1]])
        seen: list[torch.Tensor] = []
        handles = []
        for path, side in places:
            block = self.oracle.get_submodule(path)
            if side == "in":
                hook = block.register_forward_pre_hook(
                    lambda _m, args, kwargs: seen.append((args or (kwargs["hidden_states"],))[0][0, -1]),
                    with_kwargs=True,
                )
            else:
                hook = block.register_forward_hook(
                    lambda _m, _a, out: seen.append((out[0] if isinstance(out, tuple | list) else out)[0, -1])
                )
            handles.append(hook)
        self.alone(tokens)
        for handle in handles:
            handle.remove()
        return torch.stack(seen)

    def greedy(self, tokens: list[int], most: int) -> list[int]:
        """The likeliest tokens, one at a time from the whole sequence, up to the end of text."""
        whole = list(tokens)
        while len(whole) < len(tokens) + most:
            token = int(self.alone(whole).logits[0, -1].argmax())
            if token == 1:
                break
            whole.append(token)
        return whole[len(tokens) :]

    def log_prob(self, tokens: list[int], option: list[int], oracle: Any = None) -> float:
        """log P(option | tokens) of the oracle, in nats."""
        with torch.no_grad():
            ids = torch.tensor([[*tokens, *option]])
            logits = (oracle or self.oracle)(input_ids=ids, use_cache=False).logits[0].double()
        steps = logits.log_softmax(-1)[len(tokens) - 1 : -1]
        return float(steps.gather(-1, torch.tensor(option)[:, None]).sum())

    def rounding(self, tokens: list[int], option: list[int]) -> float:
        """How far the oracle's own number moves where the last binary digit of its weights is another.

        Linear attention norms what each head gives out, be it a difference of nearly equal numbers: in these random
        models down to a thousandth of the usual, so that rounding is a thousand times as large behind the norm.
        """
        if not self.rounded:
            generator = torch.Generator().manual_seed(0)
            for _ in range(4):
                other = copy.deepcopy(self.oracle)
                for p in other.parameters():
                    p.data *= 1 + (torch.rand(p.shape, generator=generator) - 0.5) * torch.finfo(p.dtype).eps
                self.rounded.append(other)
        there = self.log_prob(tokens, option)
        return max(abs(self.log_prob(tokens, option, other) - there) for other in self.rounded)

    def last_logits(self) -> torch.Tensor:
        return torch.cat([self.alone(s).logits[:, -1] for s in self.sequences])


@pytest.fixture(scope="module", params=SUBJECTS)
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    name, kind = request.param.split("; ")
    folder = save_architecture(tmp_path_factory.mktemp(name), name, template=TEMPLATES[kind])
    return Subject(folder, name)


def prompts() -> PromptSet:
    rows = [
        (str(i), {"id": f"p{i}", "text": t, "label": ("harmful", "harmless")[i % 2]})
        for i, t in enumerate(TEXTS)
    ]
    return from_rows(rows, where="test", name="test")


def test_last_logits_and_refusal_scores(one: Subject) -> None:
    want = one.last_logits()
    got = all_last_logits(one.model, one.body, one.sequences, batch_size=one.batch_size)
    torch.testing.assert_close(got, want, atol=CLOSE, rtol=CLOSE)
    ids = (5, 9, 30)
    torch.testing.assert_close(refusal_scores(got, ids), refusal_scores(want, ids), atol=CLOSE, rtol=CLOSE)


def test_residual_stream(one: Subject) -> None:
    got = ms.residual_stream(one.model, prompts(), batch_size=one.batch_size).activations[:, 0]
    for row, tokens in enumerate(one.sequences):
        want = one.streams(tokens)
        torch.testing.assert_close(
            got[row, : len(want)], want, atol=CLOSE * float(want.abs().max()), rtol=CLOSE
        )


def test_option_log_probs(one: Subject) -> None:
    options = [[7], [8, 9, 10, 11], [12, 13]]
    got = option_log_probs(one.model, one.sequences, options, batch_size=one.batch_size)
    answers = [options[i % 3] for i in range(len(one.sequences))]
    nll: Any = answer_nll(one.model, one.sequences, answers, batch_size=one.batch_size)
    for row, tokens in enumerate(one.sequences):
        for column, option in enumerate(options):
            want, close = one.log_prob(tokens, option), CLOSE * len(option)
            apart = abs(float(got[row, column]) - want)
            if column == row % 3:
                apart = max(apart, abs(nll[row] * len(option) + want))
            assert apart <= close or apart <= 2 * one.rounding(tokens, option), (row, column, apart)


@pytest.mark.parametrize("name", ["llama", pytest.param("qwen3_5-moe", marks=pytest.mark.slow)])
def test_control_what_rounding_allows_is_little(load: Any, name: str) -> None:
    """Less than what another token far before the answer does, and in most models less than the bound."""
    one = load(name)
    for tokens in one.sequences:
        option, other = [8, 9, 10, 11], [*tokens[:-5], 9, *tokens[-4:]]
        allowed = 2 * one.rounding(tokens, option)
        assert allowed < (CLOSE if name == "llama" else 1e-2)
        assert abs(one.log_prob(other, option) - one.log_prob(tokens, option)) > 10 * allowed


def swept(one: Subject) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of two layers, many candidates in a batch and one candidate and one prompt at a time.

    A first block of linear attention may forget all but the end of the template, which all prompts share: ranks of
    projections that differ by rounding alone are left out.
    """
    stream = ms.residual_stream(one.model, prompts(), batch_size=one.batch_size)
    directions = ms.find_directions(stream)
    tokens = RefusalTokens(ids=(5, 9, 30), texts=("a", "b", "c"), weight=(1.0, 1.0, 1.0), source="user")
    options = {"refusal_tokens": tokens, "layers": (1, 3)}
    fast = ms.sweep(one.model, directions, prompts(), batch_size=one.batch_size, **options).to_frame()
    plain = ms.sweep(one.model, directions, prompts(), batch_size=1, fast_path=False, **options).to_frame()
    sizes = stream.at(-1).activations.norm(dim=-1).amax(dim=(0, 1))
    told = [
        bool(directions.steering(layer=layer, position=-1).norm() > 1e-4 * sizes[layer])
        for layer in fast["layer"]
    ]
    assert told[-1]
    columns = ["auroc", "bypass", "induce", "kl"]
    return tuple(frame[columns].assign(auroc=frame["auroc"].where(told)) for frame in (fast, plain))


def test_sweep_scores(one: Subject) -> None:
    try:
        fast, plain = swept(one)
    except MechsafetyError:
        assert one.name in SITELESS
        return
    pd.testing.assert_frame_equal(fast, plain, atol=10 * CLOSE, rtol=10 * CLOSE)


def oracle_heads(one: Subject, tokens: list[int]) -> torch.Tensor:
    """What enters each output map of attention at the last token of one prompt alone."""
    outs = [m for m in linear_maps(one.model) if m.kind == "o"]
    seen: list[torch.Tensor] = []
    handles = [m.module.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0, -1])) for m in outs]
    with torch.no_grad():
        running_body(one.model)(input_ids=torch.tensor([tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(seen).reshape(len(outs), one.model.cfg.n_heads, -1)


def test_head_outputs(one: Subject) -> None:
    try:
        got = head_outputs(one.model, prompts(), batch_size=one.batch_size)
    except MechsafetyError:
        assert one.name in HEADLESS
        return
    for row, tokens in enumerate(one.sequences):
        want = oracle_heads(one, tokens)
        torch.testing.assert_close(got.outputs[row], want, atol=CLOSE * float(want.abs().max()), rtol=CLOSE)


def test_greedy_answers(one: Subject) -> None:
    done = ms.generate(one.model, prompts(), max_new_tokens=6, seed=0, batch_size=one.batch_size)
    assert [list(c.tokens) for c in done] == [one.greedy(tokens, 6) for tokens in one.sequences]


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Subject]:
    return lambda name: Subject(save_architecture(tmp_path, name, template=TEMPLATES["prefix"]), name)


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("llama", True),
        ("gpt2", True),
        *([] if "deepseek-v3" in UNFAITHFUL else [("deepseek-v3", True)]),
        ("bloom", True),  # its distances are counted from the mask
        ("mpt", False),  # its distances are columns
        ("gemma3", False),
        ("gpt-neo", False),  # a window that its cache does not show
        ("lfm2", False),
        ("falcon-h1", False),
        ("mamba", False),
    ],
)
def test_whether_a_prefix_is_shared_is_found_out(load: Any, name: str, shares: bool) -> None:
    one = load(name)
    assert ignores_gaps(one.body, 60, torch.device("cpu")) is shares


def test_a_window_wider_than_the_batch_shares(tmp_path: Path) -> None:
    folder = save_architecture(tmp_path, "mistral", sliding_window=200)
    body = generation_twin(ms.load_model(str(folder), dtype="float32"))
    assert ignores_gaps(body, 60, torch.device("cpu"))
    assert not ignores_gaps(body, 240, torch.device("cpu"))


@pytest.mark.parametrize("name", ["gemma3", "mpt", "gpt-neo"])
def test_control_a_prefix_shared_all_the_same_is_wrong(
    load: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = load(name)
    monkeypatch.setattr("mechsafety.models.prefixes.ignores_gaps", lambda *_: True)
    got = all_last_logits(one.model, one.body, one.sequences, batch_size=8)
    want = one.last_logits()
    assert float((got - want).norm() / want.norm()) > 100 * CLOSE


@pytest.mark.parametrize("name", UNPADDABLE)
def test_a_model_that_reads_padding_is_refused_in_padded_batches(load: Any, name: str) -> None:
    one = load(name)
    with pytest.raises(MechsafetyError, match="batch size of 1"):
        ms.residual_stream(one.model, prompts())
    with pytest.raises(MechsafetyError, match="batch size of 1"):
        ms.generate(one.model, prompts(), max_new_tokens=2, seed=0)


@pytest.mark.parametrize("name", UNFAITHFUL)
def test_a_model_that_the_bridge_computes_otherwise_is_refused(load: Any, name: str) -> None:
    with pytest.raises(MechsafetyError, match="other numbers"):
        load(name)
