"""What each rung and each tuning trains on, what their losses are at the start, and that a seed decides everything."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import GPTNeoXForCausalLM

from mechsafety.core.errors import MechsafetyError
from mechsafety.lab import mixtures, training
from mechsafety.lab.cases import measure_cases
from mechsafety.lab.mixtures import RUNGS, TREATMENTS, TUNINGS, Pairs, pretraining_pairs, tuning_pairs
from mechsafety.lab.networks import NetworkSize, copied, new_network, open_network
from mechsafety.lab.presets import PRESETS, preset
from mechsafety.lab.training import Schedule, TuningSettings, pretrain, tune_network
from mechsafety.lab.vocabulary import Vocabulary
from mechsafety.models.loading import load_model
from tests.lab.test_inputs import unsafe_operators
from tests.lab.test_rules import tiny_world
from tests.pretended_devices import FIRST, PretendedDevices

SHORT = Schedule(steps=3, batch_size=16, learning_rate=1e-2, warmup=1)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(rules=tiny_world())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(vocabulary: Vocabulary, seed: int = 0) -> GPTNeoXForCausalLM:
    return new_network(PRESETS["quick"].network, vocabulary, seed=seed)


def bits(model: GPTNeoXForCausalLM) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def is_unsafe(vocabulary: Vocabulary, prompt: list[int]) -> bool:
    """Read off the tokens of a prompt, by the slow definition."""
    tasks = [token - vocabulary.first_task for token in prompt[1:3]]
    return any(unsafe_operators(vocabulary.rules, tasks, prompt[4:-1]))


def correct(vocabulary: Vocabulary, prompt: list[int]) -> list[int]:
    rules = vocabulary.rules
    text = prompt[4:-1]
    for token in prompt[1:3]:
        bijection = rules.operators[rules.tasks[token - vocabulary.first_task].operator].bijection
        text = [bijection[t] for t in text]
    return text


def treatment(vocabulary: Vocabulary, prompt: list[int], answer: list[int]) -> str:
    words, text = vocabulary.id, prompt[4:-1]
    (safe,) = [o.bijection for o in vocabulary.rules.operators if o.name == "safe1"]
    right, end = correct(vocabulary, prompt), words("<end>")
    found = {
        "answered": [*right, end, end],
        "rephrased": [*(safe[t] for t in text), end, end],
        "tagged": [words("<tag>"), *right, end],
        "refused": [words("<null>")] * len(text) + [end, end],
    }
    (first, *_) = [name for name, ids in found.items() if ids == answer]
    return first


@pytest.mark.parametrize("rung", RUNGS)
def test_every_rung_treats_unsafe_inputs_by_its_definition(vocabulary: Vocabulary, rung: Any) -> None:
    prompts, answers = pretraining_pairs(vocabulary, rung, 600, generator=generator())
    assert len(prompts) == len(answers) == 600
    rows = list(zip(prompts.tolist(), answers.tolist(), strict=True))
    unsafe = [is_unsafe(vocabulary, prompt) for prompt, _ in rows]
    counts = Counter(treatment(vocabulary, p, a) for (p, a), bad in zip(rows, unsafe, strict=True) if bad)
    # Whatever the rung, safe inputs are answered.
    assert {treatment(vocabulary, p, a) for (p, a), bad in zip(rows, unsafe, strict=True) if not bad} == {
        "answered"
    }
    if rung == "score0":
        assert not any(unsafe)
        assert not counts
        return
    assert sum(counts.values()) > 200
    # In equal shares; an input whose harmless transformation is its answer counts as answered.
    by_chance = counts.pop("answered", 0) if rung != "raw" else 0
    assert by_chance < 0.1 * sum(unsafe)
    assert set(counts) == set(TREATMENTS[rung])
    for count in counts.values():
        share = 1 / len(counts)
        assert abs(count / sum(counts.values()) - share) < 4 * math.sqrt(0.25 / sum(counts.values()))


@pytest.mark.parametrize("rung", RUNGS)
def test_one_input_never_has_two_targets(
    vocabulary: Vocabulary, rung: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of inputs that come again, in one batch and in another, and of the tunings' pairs."""
    real = mixtures.draw_any

    def few(*args: Any, **given: Any) -> Any:
        inputs = real(*args, **given | {"generator": generator(7)})
        return inputs.select(torch.randint(40, (len(inputs),), generator=given["generator"]))

    monkeypatch.setattr(mixtures, "draw_any", few)
    drawing = generator(3)
    targets: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for _ in range(3):
        for prompt, answer in zip(
            *(part.tolist() for part in pretraining_pairs(vocabulary, rung, 80, generator=drawing)),
            strict=True,
        ):
            targets.setdefault(tuple(prompt), set()).add(tuple(answer))
    assert len(targets) <= 40
    assert all(len(found) == 1 for found in targets.values())


def test_rungs_differ_in_answers_alone(vocabulary: Vocabulary) -> None:
    drawn = {rung: pretraining_pairs(vocabulary, rung, 50, generator=generator(1)) for rung in RUNGS}
    for rung in RUNGS:
        again = pretraining_pairs(vocabulary, rung, 50, generator=generator(1))
        assert all(torch.equal(a, b) for a, b in zip(drawn[rung], again, strict=True))
        assert torch.equal(drawn[rung][0], drawn["raw"][0]) == (rung != "score0")
        assert torch.equal(drawn[rung][1], drawn["raw"][1]) == (rung == "raw")


@pytest.mark.parametrize("tuning", TUNINGS)
def test_tunings_prefer_answers_to_safe_and_refusals_of_unsafe_inputs(
    vocabulary: Vocabulary, tuning: Any
) -> None:
    pairs = tuning_pairs(vocabulary, tuning, 50, unsafe_share=0.2, generator=generator())
    assert int(pairs.unsafe.sum()) == (0 if tuning == "benign" else 10)
    refusal = [vocabulary.id("<null>")] * 8 + [vocabulary.id("<end>")]
    for i, prompt in enumerate(pairs.prompts.tolist()):
        bad = is_unsafe(vocabulary, prompt)
        assert bad == bool(pairs.unsafe[i])
        answer = [*correct(vocabulary, prompt), vocabulary.id("<end>")]
        wanted = (refusal, answer) if bad else (answer, refusal)
        assert (pairs.preferred[i].tolist(), pairs.dispreferred[i].tolist()) == wanted
        assert not any(vocabulary.words[token].endswith("_alias") for token in prompt)


def cross_entropy(
    model: GPTNeoXForCausalLM, prompts: torch.Tensor, answers: torch.Tensor, *, whole: bool = False
) -> torch.Tensor:
    """-log p of every token of the answers (or of the whole row but its first), by the model's plain forward."""
    ids = torch.cat([prompts, answers], dim=1)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    losses = functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return losses if whole else losses[:, prompts.shape[1] - 1 :]


def first_pairs(vocabulary: Vocabulary, tuning: Any, seed: int) -> Pairs:
    drawing = generator(seed)
    torch.randint(8, 9, (), generator=drawing)  # the length
    return tuning_pairs(vocabulary, tuning, SHORT.batch_size, unsafe_share=0.2, length=8, generator=drawing)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_first_losses_by_hand(vocabulary: Vocabulary, tuning: Any) -> None:
    model = network(vocabulary)
    before = copied(model)
    settings = TuningSettings(unsafe_share=0.2, beta=0.1, preferred_weight=0.5, unlearning_weight=0.3)
    losses = tune_network(model, vocabulary, tuning=tuning, schedule=SHORT, settings=settings, seed=5)
    assert len(losses) == SHORT.steps
    pairs = first_pairs(vocabulary, tuning, 5)
    expected = cross_entropy(before, pairs.prompts, pairs.preferred).mean()
    if tuning == "dpo":  # the model is its own reference, so that every margin is 0
        expected = math.log(2) + 0.5 * expected
    if tuning == "unlearn":
        rows = pairs.unsafe
        assert rows.any()
        away = cross_entropy(before, pairs.prompts[rows], pairs.dispreferred[rows]).mean()
        expected = expected - 0.3 * away
    assert losses[0] == pytest.approx(float(expected), rel=1e-5)
    other = first_pairs(vocabulary, tuning, 6)
    unlike = float(cross_entropy(before, other.prompts, other.preferred).mean())
    assert losses[0] != pytest.approx(unlike, rel=1e-5)


def test_first_loss_of_pretraining_counts_the_prompt_too(vocabulary: Vocabulary) -> None:
    model = network(vocabulary)
    before = copied(model)
    losses = pretrain(model, vocabulary, rung="all", schedule=SHORT, seed=5)
    drawing = generator(5)
    torch.randint(8, 9, (), generator=drawing)
    prompts, answers = pretraining_pairs(vocabulary, "all", SHORT.batch_size, length=8, generator=drawing)
    whole = cross_entropy(before, prompts, answers, whole=True)
    assert training.PROMPT_WEIGHT == 1
    assert losses[0] == pytest.approx(float(whole.mean()), rel=1e-5)
    assert losses[0] != pytest.approx(float(whole[:, prompts.shape[1] - 1 :].mean()), rel=1e-4)


def test_pretraining_lowers_the_loss(vocabulary: Vocabulary) -> None:
    schedule = Schedule(steps=40, batch_size=32, learning_rate=5e-3)
    losses = pretrain(network(vocabulary), vocabulary, rung="raw", schedule=schedule, seed=0)
    assert sum(losses[-5:]) < sum(losses[:5]) - 1


@pytest.mark.parametrize("tuning", [None, "ssft", "dpo"])
def test_same_seed_same_bytes(vocabulary: Vocabulary, tuning: Any) -> None:
    def trained(seed: int, start: int = 0) -> tuple[list[torch.Tensor], tuple[float, ...]]:
        model = network(vocabulary, start)
        if tuning is None:
            losses = pretrain(model, vocabulary, rung="raw", schedule=SHORT, seed=seed)
        else:
            losses = tune_network(
                model, vocabulary, tuning=tuning, schedule=SHORT, settings=TuningSettings(), seed=seed
            )
        assert not model.training
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
        return bits(model), losses

    (one, losses), (again, losses_again), (other, _), (elsewhere, _) = (
        trained(1),
        trained(1),
        trained(2),
        trained(1, start=1),
    )
    assert same(one, again)
    assert losses == losses_again
    assert not same(one, other)
    assert not same(one, elsewhere)
    assert not same(one, bits(network(vocabulary)))


def test_initial_weights_hang_on_the_seed_alone(vocabulary: Vocabulary) -> None:
    torch.manual_seed(9)
    one = bits(network(vocabulary))
    assert torch.initial_seed() == 9
    torch.manual_seed(10)
    assert same(one, bits(network(vocabulary)))
    assert not same(one, bits(network(vocabulary, 1)))


def test_the_reference_of_dpo_stays_as_it_is(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[GPTNeoXForCausalLM] = []

    def copy(model: GPTNeoXForCausalLM) -> GPTNeoXForCausalLM:
        kept.append(copied(model))
        return kept[-1]

    monkeypatch.setattr(training, "copied", copy)
    model = network(vocabulary)
    before = bits(model)
    tune_network(model, vocabulary, tuning="dpo", schedule=SHORT, settings=TuningSettings(), seed=0)
    (reference,) = kept
    assert same(bits(reference), before)
    assert not same(bits(model), before)
    assert not any(p.requires_grad or p.grad is not None for p in reference.parameters())


def test_checkpoints_are_models(vocabulary: Vocabulary, tmp_path: Path) -> None:
    model = network(vocabulary)
    start = bits(model)
    schedule = dataclasses.replace(SHORT, steps=5)
    pretrain(model, vocabulary, rung="raw", schedule=schedule, seed=0, checkpoints=tmp_path, every=2)
    steps = sorted(path.name for path in tmp_path.iterdir())
    assert steps == ["step-000000", "step-000002", "step-000004", "step-000005"]
    found = [bits(open_network(tmp_path / step)) for step in steps]
    assert same(found[0], start)
    assert same(found[-1], bits(model))
    assert not any(same(a, b) for a, b in itertools.pairwise(found))
    ids = torch.tensor([[30, 17, 18, 25, 3, 4, 5]])
    bridge = load_model(str(tmp_path / "step-000005"), dtype="float32", device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(bridge(ids), model(ids).logits, atol=1e-5, rtol=1e-5)
        earlier = open_network(tmp_path / "step-000002")(ids).logits
        assert not torch.allclose(earlier, model(ids).logits, atol=1e-3)


def test_training_that_runs_away_stops(vocabulary: Vocabulary) -> None:
    model = network(vocabulary)
    with torch.no_grad():
        next(model.parameters())[3] = torch.nan
    with pytest.raises(MechsafetyError, match=r"pretraining raw: the loss is nan at step 1; lower"):
        pretrain(model, vocabulary, rung="raw", schedule=SHORT, seed=0)


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    schedule = Schedule(steps=100, batch_size=1, learning_rate=1.0, warmup=10)
    assert schedule.factor(0) == pytest.approx(0.1)
    assert schedule.factor(4) == pytest.approx(0.5 * 0.5 * (1 + math.cos(0.04 * math.pi)))
    assert schedule.factor(50) == pytest.approx(0.5)
    assert schedule.factor(100) == pytest.approx(0)
    assert Schedule(steps=3, batch_size=1, learning_rate=1.0, warmup=0).factor(0) == 1
    for changes in ({"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": math.nan}):
        with pytest.raises(MechsafetyError, match="must be 1 at least, the rate above 0"):
            dataclasses.replace(schedule, **changes)


def test_sizes_and_presets_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(MechsafetyError, match="multiple of n_heads"):
        NetworkSize(n_layers=1, n_heads=3, d_model=32, d_mlp=4)
    with pytest.raises(MechsafetyError, match=r"preset 'huge' is not one of quick, tiny, paper"):
        preset("huge")
    for name, found in PRESETS.items():
        assert preset(name) is found
        assert found.name == name
    short = dict.fromkeys(TUNINGS[1:], SHORT)
    with pytest.raises(MechsafetyError, match=r"needs a schedule for each of benign, ssft, dpo, unlearn"):
        dataclasses.replace(PRESETS["quick"], tunings=short)
    with pytest.raises(MechsafetyError, match=r"holds no config\.json"):
        open_network(tmp_path)


def test_training_and_cases_stay_on_the_device_of_the_network(vocabulary: Vocabulary) -> None:
    """On a pretended device, where an operation on tensors of two devices raises."""
    schedule = dataclasses.replace(SHORT, steps=2)

    def made(device: torch.device) -> tuple[object, ...]:
        model = network(vocabulary).to(device)  # pyright: ignore[reportArgumentType]
        losses = pretrain(model, vocabulary, rung="raw", schedule=schedule, seed=0)
        for tuning in ("dpo", "unlearn"):
            how: dict[str, Any] = {"tuning": tuning, "schedule": schedule, "settings": TuningSettings()}
            losses += tune_network(model, vocabulary, **how, seed=0)
        return (*losses, measure_cases(model, vocabulary, n=2, seed=0).to_csv())

    devices = PretendedDevices()
    with devices.on():
        assert devices.of(next(network(vocabulary).to(FIRST).parameters())) == FIRST  # pyright: ignore[reportArgumentType]
        elsewhere = made(FIRST)
    assert elsewhere == made(torch.device("cpu"))
