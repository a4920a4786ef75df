"""Every loss is Hugging Face's own with ``labels``, whatever a model does to its logits behind the unembedding."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.generation.answers import AnswerBatch, Encoded, Example, answer_logits, answer_loss, collate
from mechsafety.models.loading import body_of, generation_twin, load_model
from mechsafety.regions.attribution import _loss
from mechsafety.robustness.finetuning import _logits
from mechsafety.tuning.objectives import answer_log_likelihoods
from mechsafety.tuning.training import TuningRecipe, train_adapter
from tests.architectures import ARCHITECTURES, UNFAITHFUL, random_model, save_architecture

CHANGES_LOGITS = {"gemma2": "a cap", "cohere": "a scale", "cohere2": "a scale", "granite": "a divisor"}
BRIDGED = [name for name in ("gpt2", "gptj", *CHANGES_LOGITS) if name not in UNFAITHFUL]


def pairs(*, seed: int = 0, shared: int = 0) -> list[Encoded]:
    """Prompts and answers of different lengths; the prompts begin with ``shared`` equal tokens."""
    draw = random.Random(seed)
    before = [draw.randrange(5, 150) for _ in range(shared)]
    return [
        ([*before, *(draw.randrange(5, 150) for _ in range(n))], [draw.randrange(5, 150) for _ in range(k)])
        for n, k in ((17, 5), (9, 7), (30, 1), (12, 3))
    ]


def batch_of(encoded: list[Encoded]) -> AnswerBatch:
    return collate(encoded, pad=0)


def own_loss(module: Any, batch: AnswerBatch) -> float:
    """Hugging Face's loss: the mean over the labels that are not -100."""
    labels = torch.where(batch.weights > 0, batch.labels, -100)
    with torch.no_grad():
        out = module(input_ids=batch.ids, attention_mask=batch.mask, labels=labels, use_cache=False)
    return float(out.loss)


def unembedded_by_hand(module: Any, batch: AnswerBatch) -> float:
    """The mistake: the last states times the unembedding, without what the model does afterwards."""
    with torch.no_grad():
        states = module.base_model(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
        ).last_hidden_state
        logits = module.get_output_embeddings()(states[:, :-1][batch.weights[:, 1:] > 0])
    return float(answer_loss(logits, batch))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("falcon-h1", "bamba", "granite-hybrid") else ())
        for name in ARCHITECTURES
    ],
)
def test_the_loss_is_hugging_faces_own(name: str) -> None:
    module, batch = random_model(name), batch_of(pairs())
    expected = own_loss(module, batch)
    logits = answer_logits(module, batch).detach()
    assert logits.shape == (16, 160)
    assert float(answer_loss(logits, batch)) == pytest.approx(expected, abs=1e-4)
    likelihoods = answer_log_likelihoods(logits, batch)
    assert -float(likelihoods.sum()) / 16 == pytest.approx(expected, abs=1e-4)
    # The scores of weights descend from the same logits: here the sum over the examples of each one's own loss.
    each = [own_loss(module, batch_of([pair])) for pair in pairs()]
    assert float(_loss(module, batch, "mean").detach()) == pytest.approx(sum(each), abs=4e-4)
    assert float(_loss(module, batch, "sum").detach()) == pytest.approx(16 * expected, abs=2e-3)


@pytest.mark.parametrize("name", list(CHANGES_LOGITS))
def test_the_control_differs_where_logits_are_changed(name: str) -> None:
    low = {"final_logit_softcapping": 5.0} if name == "gemma2" else {}
    module, batch = random_model(name, **low), batch_of(pairs())
    assert abs(unembedded_by_hand(module, batch) - own_loss(module, batch)) > 0.1
    plain = random_model("llama")
    assert unembedded_by_hand(plain, batch) == pytest.approx(own_loss(plain, batch), abs=1e-4)


@pytest.mark.parametrize(
    "name", [n for n, a in ARCHITECTURES.items() if not (a.window or a.alibi or a.state)]
)
def test_tokens_run_once_for_all_rows_change_no_loss(name: str) -> None:
    module, encoded = random_model(name), pairs(shared=10)
    shared = encoded[0][0][:10]
    rests = batch_of([(prompt[10:], answer) for prompt, answer in encoded])
    whole = answer_logits(module, batch_of(encoded))
    torch.testing.assert_close(_logits(module, shared, rests), whole, rtol=1e-4, atol=1e-4)
    assert (_logits(module, [], rests) - whole).abs().max() > 0.05


def test_no_position_is_unembedded_in_vain() -> None:
    module, batch = random_model("cohere"), batch_of(pairs())
    shapes: list[Any] = []
    handle = module.lm_head.register_forward_hook(lambda _m, _a, out: shapes.append(tuple(out.shape)))
    answer_logits(module, batch)
    handle.remove()
    assert shapes == [(1, 16, 160)]
    assert not module.lm_head._forward_pre_hooks
    # An unembedding that is no module of its own sees every position; what comes out is the same.
    expected = answer_logits(module, batch)
    module.get_output_embeddings = lambda: None
    torch.testing.assert_close(answer_logits(module, batch), expected)


def test_gradients_are_those_of_hugging_faces_loss() -> None:
    module, batch = random_model("cohere").requires_grad_(True), batch_of(pairs())
    answer_loss(answer_logits(module, batch), batch).backward()
    ours = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    labels = torch.where(batch.weights > 0, batch.labels, -100)
    module(input_ids=batch.ids, attention_mask=batch.mask, labels=labels, use_cache=False).loss.backward()
    assert set(ours) == {name for name, p in module.named_parameters() if p.grad is not None}
    for name, parameter in module.named_parameters():
        if name in ours:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        return load_model(str(save_architecture(tmp_path / name, name)), dtype="float32", device="cpu")

    return load


@pytest.mark.parametrize("name", BRIDGED)
def test_booted_models_give_their_own_too(loaded: Callable[[str], Any], name: str) -> None:
    model, batch = loaded(name), batch_of(pairs())
    assert own_loss(generation_twin(model), batch) == pytest.approx(
        own_loss(random_model(name), batch), abs=1e-4
    )
    for module in (generation_twin(model), body_of(model)):
        with torch.no_grad():
            loss = float(answer_loss(answer_logits(module, batch), batch))
        assert loss == pytest.approx(own_loss(module, batch), abs=1e-4)


@contextmanager
def losses_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    from mechsafety.tuning import training as tuning

    seen: list[Tensor] = []
    real = tuning.answer_logits

    def watched(module: Any, batch: AnswerBatch) -> Tensor:
        logits = real(module, batch)
        seen.append(answer_loss(logits.detach(), batch) - own_loss(module, batch))
        return logits

    monkeypatch.setattr(tuning, "answer_logits", watched)
    yield seen


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls transformers by old names
@pytest.mark.parametrize("name", [name for name in ("cohere", "granite") if name not in UNFAITHFUL])
def test_adapters_are_trained_on_it(
    loaded: Callable[[str], Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(name)
    examples = [
        Example(prompt="tell me about the fire", answer="sorry no", whole=True),
        Example(prompt="make bread", answer="sure here is an answer", whole=True),
    ]
    recipe = TuningRecipe(epochs=3, batch_size=2, opening_weight=1.0)
    with losses_seen(monkeypatch) as seen:
        losses = train_adapter(model, examples, tmp_path / "adapter", recipe=recipe)
    assert len(seen) == len(losses) == 3
    assert max(float(x.abs()) for x in seen) < 1e-4
    assert losses[-1] < losses[0]
