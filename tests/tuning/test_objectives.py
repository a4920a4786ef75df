"""DPO is trl's loss on the same batch and a plain loop's; unlearning is a difference of two cross-entropies."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.generation.answers import Encoded, Example, answer_logits, answer_loss, collate, encode
from mechsafety.models.chat import pad_token
from mechsafety.models.loading import generation_twin
from mechsafety.tuning.objectives import answer_log_likelihoods, dpo_loss, unlearning_loss

BETA = 0.3
PREFERRED = [
    Example(prompt="tell me about the fire", answer="sorry no", whole=True),
    Example(prompt="tell me about the bread", answer="sure here is an answer", whole=False),
    Example(prompt="how do i make a garden with a gate and a lock", answer="sure", whole=True),
]
DISPREFERRED = [
    Example(prompt="tell me about the fire", answer="sure here is an answer for the fire", whole=False),
    Example(prompt="tell me about the bread", answer="sorry no", whole=True),
    Example(
        prompt="how do i make a garden with a gate and a lock", answer="sorry i can not help", whole=True
    ),
]
# Two calls on other batch shapes round differently: what the sum over a handful of tokens may be off by, in nats.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}


def policy_of(reference: Any, *, seed: int = 0) -> Any:
    """A copy of a module that is a little off in every weight: what training would have done to it."""
    policy = copy.deepcopy(reference)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter += 0.05 * parameter.float().std() * noise
    return policy.eval()


def log_likelihood_of(module: Any, pair: Encoded) -> float:
    """log p(answer | prompt) token by token, each from a pass over what stands before it: the slow oracle."""
    prompt, answer = pair
    total = 0.0
    for i, token in enumerate(answer):
        with torch.inference_mode():
            logits = module(input_ids=torch.tensor([[*prompt, *answer[:i]]])).logits[0, -1]
        total += float(torch.log_softmax(logits.double(), -1)[token])
    return total


def log_likelihoods(module: Any, pairs: Sequence[Encoded], *, pad: int) -> torch.Tensor:
    batch = collate(pairs, pad=pad)
    return answer_log_likelihoods(answer_logits(module, batch), batch)


def our_dpo(
    policy: Any, reference: Any, good: list[Encoded], bad: list[Encoded], *, pad: int
) -> torch.Tensor:
    with torch.no_grad():
        before = [log_likelihoods(reference, pairs, pad=pad) for pairs in (good, bad)]
    now = [log_likelihoods(policy, pairs, pad=pad) for pairs in (good, bad)]
    return dpo_loss(
        preferred=now[0],
        dispreferred=now[1],
        reference_preferred=before[0],
        reference_dispreferred=before[1],
        beta=BETA,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_log_likelihoods_are_sums_over_the_answers_tokens(
    tiny: Callable[..., Any], architecture: str, dtype: str
) -> None:
    model = tiny(architecture, dtype=dtype)
    module, pairs = generation_twin(model), encode(model, PREFERRED)
    expected = torch.tensor([log_likelihood_of(module, pair) for pair in pairs])
    got = log_likelihoods(module, pairs, pad=pad_token(model))
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < TOLERANCE[dtype]
    # Alone, that is without padding, each row has the same.
    alone = torch.cat([log_likelihoods(module, [pair], pad=pad_token(model)) for pair in pairs])
    assert (got - alone).abs().max() < TOLERANCE[dtype]
    # The control: other answers to the same prompts are far off.
    other = log_likelihoods(module, encode(model, DISPREFERRED), pad=pad_token(model))
    assert (other - expected).abs().min() > 4 * TOLERANCE[dtype]


def test_log_likelihoods_do_not_know_the_weights_of_the_opening(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    module, pairs = generation_twin(model), encode(model, PREFERRED)
    plain = collate(pairs, pad=0)
    weighted = collate(pairs, pad=0, opening_tokens=2, opening_weight=5.0)
    logits = answer_logits(module, plain)
    assert torch.equal(answer_log_likelihoods(logits, plain), answer_log_likelihoods(logits, weighted))
    assert not torch.equal(answer_loss(logits, plain), answer_loss(logits, weighted))


def trl_trainer(policy: Any, reference: Any, tokenizer: Any, folder: Path) -> Any:
    """trl's trainer on the two modules; the batch is handed to its loss, so its data set only has to be one."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_dropout=True,
    )
    rows = [{"prompt": "tell me", "chosen": " sorry no", "rejected": " sure here"}]
    return DPOTrainer(
        model=policy,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


# trl 1.16 reads a name that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_dpo_is_what_trl_computes_on_the_same_batch(
    tiny: Callable[..., Any], tmp_path: Path, architecture: str, dtype: str
) -> None:
    pytest.importorskip("trl")
    model = tiny(architecture, dtype=dtype)
    reference = copy.deepcopy(generation_twin(model))
    policy = policy_of(reference)
    good, bad = encode(model, PREFERRED), encode(model, DISPREFERRED)
    policy.requires_grad_(True)
    ours = our_dpo(policy, reference, good, bad, pad=pad_token(model))
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)

    trainer = trl_trainer(policy, reference, model.tokenizer, tmp_path)
    batch = trainer.data_collator(
        [
            {"prompt_ids": prompt, "chosen_ids": answer, "rejected_ids": away}
            for (prompt, answer), (_, away) in zip(good, bad, strict=True)
        ]
    )
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    ours, theirs = ours.detach(), theirs.detach()
    policy.requires_grad_(False)
    rows = trainer._metrics["train" if trainer.model.training else "eval"]
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5 if dtype == "float32" else 2e-2)
    assert sum(rows["logps/chosen"]) == pytest.approx(
        float(log_likelihoods(policy, good, pad=pad_token(model)).mean()), abs=TOLERANCE[dtype]
    )
    # The same gradient, and one that is not nothing.
    for name, parameter in policy.named_parameters():
        if name in gradients:
            far = (parameter.grad - gradients[name]).float().norm()
            assert far <= (1e-3 if dtype == "float32" else 0.15) * gradients[name].float().norm() + 1e-7, name
    assert max(float(g.float().norm()) for g in gradients.values()) > 1e-3
    # The control: with preferred and dispreferred exchanged both say something else.
    assert abs(float(our_dpo(policy, reference, bad, good, pad=pad_token(model))) - float(theirs)) > 0.05


def test_dpo_is_the_mean_of_a_loop_over_pairs(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    reference = generation_twin(model)
    policy = policy_of(reference)
    good, bad = encode(model, PREFERRED), encode(model, DISPREFERRED)
    losses = []
    for preferred, dispreferred in zip(good, bad, strict=True):
        gain = log_likelihood_of(policy, preferred) - log_likelihood_of(reference, preferred)
        loss = log_likelihood_of(policy, dispreferred) - log_likelihood_of(reference, dispreferred)
        losses.append(math.log1p(math.exp(-BETA * (gain - loss))))
    expected = sum(losses) / len(losses)
    assert float(our_dpo(policy, reference, good, bad, pad=0)) == pytest.approx(expected, abs=1e-4)
    assert abs(expected - math.log(2)) > 0.02


def test_dpo_of_the_reference_itself_is_log_two_and_falls_with_the_margin() -> None:
    a, b = torch.tensor([-3.0, -8.0]), torch.tensor([-4.0, -2.0])
    same = {"reference_preferred": a, "reference_dispreferred": b, "beta": 0.5}
    assert float(dpo_loss(preferred=a, dispreferred=b, **same)) == pytest.approx(math.log(2))
    # What both gain drops out; what the preferred answer gains over the other counts beta times.
    assert float(dpo_loss(preferred=a + 7, dispreferred=b + 7, **same)) == pytest.approx(math.log(2))
    better = float(dpo_loss(preferred=a + 1, dispreferred=b - 1, **same))
    assert better == pytest.approx(math.log1p(math.exp(-1.0)))
    assert float(dpo_loss(preferred=a - 1, dispreferred=b + 1, **same)) > math.log(2) > better


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_unlearning_takes_a_share_of_the_other_answers_off(
    tiny: Callable[..., Any], architecture: str, dtype: str
) -> None:
    model = tiny(architecture, dtype=dtype)
    module, pad = generation_twin(model), pad_token(model)
    good, bad = collate(encode(model, PREFERRED), pad=pad), collate(encode(model, DISPREFERRED), pad=pad)
    wanted, unwanted = (answer_loss(answer_logits(module, batch), batch) for batch in (good, bad))
    # Cross-entropy per token from the slow oracle.
    mean = []
    for examples in (PREFERRED, DISPREFERRED):
        pairs = encode(model, examples)
        total = sum(log_likelihood_of(module, pair) for pair in pairs)
        mean.append(-total / sum(len(answer) for _, answer in pairs))
    got = float(unlearning_loss(wanted, unwanted, weight=0.25))
    assert got == pytest.approx(mean[0] - 0.25 * mean[1], abs=1e-4 if dtype == "float32" else 5e-2)
    assert float(unlearning_loss(wanted, unwanted, weight=0.0)) == float(wanted)
    assert abs(got - mean[0]) > 0.3
