"""Batched = alone on a user's own HookedTransformer (transformer-lens 3.9), with plain transformers as the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mechsafety as ms
from mechsafety.generation.scoring import option_log_probs
from mechsafety.models.prefixes import all_last_logits, ignores_gaps
from tests.architectures import save_architecture
from tests.hooked_architectures import HOOKED, hooked_architecture
from tests.models.test_batched_alone import CLOSE, TEMPLATES, Subject, prompts

pytest.importorskip(
    "transformer_lens.HookedTransformer",
    reason="transformer-lens 4.0 removed HookedTransformer; `make test-tl3` runs these tests under 3.9",
)
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer:DeprecationWarning")

WIDER = {
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3": {"query_pre_attn_scalar": 8},
    "olmo2": {"num_key_value_heads": 4},
}


def made(folder: Path, name: str, template: str, **changes: Any) -> Subject:
    save_architecture(folder, name, template=TEMPLATES[template], **WIDER.get(name, {}))
    return Subject(folder, name, hooked_architecture(folder, name, **changes))


@pytest.fixture(scope="module", params=[f"{name}, {kind}" for name in HOOKED for kind in TEMPLATES])
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    name, kind = request.param.split(", ")
    return made(tmp_path_factory.mktemp(name), name, kind)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def test_last_logits(one: Subject) -> None:
    got = all_last_logits(one.model, one.body, one.sequences, batch_size=8)
    assert relative(got.log_softmax(-1), one.last_logits().log_softmax(-1)) < CLOSE


def test_residual_stream(one: Subject) -> None:
    got = ms.residual_stream(one.model, prompts()).activations[:, 0]
    for row, tokens in enumerate(one.sequences):
        states = one.alone(tokens, output_hidden_states=True).hidden_states
        want = torch.stack([s[0, -1] for s in states[:-1]])
        assert relative(got[row, :-1], want) < CLOSE


def test_option_log_probs(one: Subject) -> None:
    options = [[7], [8, 9, 10, 11]]
    got = option_log_probs(one.model, one.sequences, options, batch_size=8)
    for row, tokens in enumerate(one.sequences):
        for column, option in enumerate(options):
            logits = one.alone([*tokens, *option]).logits[0].double().log_softmax(-1)
            want = sum(float(logits[len(tokens) - 1 + step, token]) for step, token in enumerate(option))
            assert float(got[row, column]) == pytest.approx(want, abs=CLOSE * 10)


def test_greedy_answers(one: Subject) -> None:
    done = ms.generate(one.model, prompts(), max_new_tokens=5, seed=0)
    assert [list(c.tokens) for c in done] == [one.greedy(tokens, 5) for tokens in one.sequences]


def test_ungrouped_heads_need_no_cache(tmp_path: Path) -> None:
    one = made(tmp_path, "llama", "prefix")
    want = one.last_logits()
    grouped = ms.generate(one.model, prompts(), max_new_tokens=5, seed=0)
    scores = option_log_probs(one.model, one.sequences, [[7], [8, 9, 10]], batch_size=8)
    one.model.set_ungroup_grouped_query_attention(True)
    assert relative(all_last_logits(one.model, one.body, one.sequences, batch_size=8), want) < CLOSE
    torch.testing.assert_close(
        option_log_probs(one.model, one.sequences, [[7], [8, 9, 10]], batch_size=8),
        scores,
        atol=CLOSE,
        rtol=CLOSE,
    )
    assert [c.tokens for c in ms.generate(one.model, prompts(), max_new_tokens=5, seed=0)] == [
        c.tokens for c in grouped
    ]


@pytest.mark.parametrize(
    ("name", "shares"), [("llama", True), ("gpt2", True), ("mistral", False), ("bloom", False)]
)
def test_whether_a_prefix_is_shared_is_found_out(tmp_path: Path, name: str, shares: bool) -> None:
    one = made(tmp_path, name, "prefix")
    assert ignores_gaps(one.model, 60, torch.device("cpu")) is shares
