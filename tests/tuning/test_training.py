"""A few steps of tuning lower the loss, leave the model alone, and save what they trained."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answers import Example, answer_logits, answer_loss, collate, encode
from mechsafety.models.chat import pad_left
from mechsafety.models.loading import generation_twin, load_model
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.tuning.objectives import OBJECTIVES, Objective, answer_log_likelihoods
from mechsafety.tuning.refusals import OPENINGS, REASONS, write_refusal
from mechsafety.tuning.rungs import OBJECTIVE, RUNGS, Rung
from mechsafety.tuning.training import RECIPES, TuningRecipe, train_adapter, tune
from tests.prompt_sets import small_prompts
from tests.tuning.test_rungs import scripted as scripted

EXAMPLES = [
    Example(prompt="tell me about the fire", answer="sorry no", whole=True),
    Example(prompt="tell me about the bread", answer="sure here is an answer", whole=True),
    Example(prompt="how do i make a garden", answer="sure here", whole=False),
    Example(prompt="how do i make a storm", answer="sorry can not help", whole=True),
]
RECIPE = TuningRecipe(strength=1.0, rank=2, epochs=12, batch_size=4, learning_rate=2e-2, from_depth=0.25)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_loss_falls_and_the_file_reloads_to_the_same_logits(
    tiny_folder: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    folder = tiny_folder(architecture)
    model = load_model(str(folder), dtype="float32", device="cpu")
    twin = generation_twin(model)
    assert twin is not None
    before = {name: p.clone() for name, p in twin.named_parameters()}
    losses = train_adapter(model, EXAMPLES, tmp_path / "adapter", recipe=RECIPE)
    assert len(losses) == 12
    assert losses[-1] < 0.75 * losses[0]
    # The model itself is as it was, its modules and its weights.
    after = dict(twin.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(before[n], after[n]) for n in before)

    tuned = load_model(f"{folder}+{tmp_path / 'adapter'}", dtype="float32", device="cpu")
    again = load_model(f"{folder}+{tmp_path / 'adapter'}", dtype="float32", device="cpu")
    ids = pad_left([[5, 6, 7, 8, 9], [10, 11, 12]], pad=0).ids
    with torch.inference_mode():
        got, repeated, base = (m.original_model(input_ids=ids).logits for m in (tuned, again, model))
    assert torch.equal(got, repeated)
    assert (got - base).abs().max() > 0.05
    # The reloaded model has the loss that training ended with (the file holds bfloat16).
    encoded = encode(model, EXAMPLES)
    batch = collate(
        encoded, pad=0, opening_tokens=RECIPE.opening_tokens, opening_weight=RECIPE.opening_weight
    )
    with torch.inference_mode():
        logits = answer_logits(tuned.original_model, batch)
        untuned = answer_logits(model.original_model, batch)
    assert float(answer_loss(logits, batch)) == pytest.approx(losses[-1], rel=0.3)
    assert float(answer_loss(untuned, batch)) == pytest.approx(losses[0], rel=0.1)


def test_same_seed_same_adapter_other_seed_other(tiny: Callable[..., Any], tmp_path: Path) -> None:
    recipe = {"rank": 2, "epochs": 2, "batch_size": 2}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_adapter(tiny("llama"), EXAMPLES, tmp_path / name, recipe=TuningRecipe(**recipe, seed=seed))
    a, b, c = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "abc")
    assert a == b
    assert a != c
    assert (tmp_path / "a" / "adapter_config.json").read_text() == (
        tmp_path / "b" / "adapter_config.json"
    ).read_text()


def test_only_upper_blocks_are_tuned(tiny: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    recipe = TuningRecipe(rank=2, epochs=1, from_depth=0.5)
    train_adapter(tiny("llama"), EXAMPLES, tmp_path / "a", recipe=recipe)
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in stored}
    assert layers == {2, 3}
    assert len(stored) == 2 * 7 * 2
    assert all(t.dtype == torch.bfloat16 for t in stored.values())


def test_strength_scales_the_finished_adapter(tiny: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name, strength in (("whole", 1.0), ("half", 0.5)):
        recipe = TuningRecipe(rank=2, epochs=1, strength=strength)
        train_adapter(tiny("llama"), EXAMPLES, tmp_path / name, recipe=recipe)
    whole, half = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "half"))
    for name, tensor in whole.items():
        factor = 0.5 if ".lora_B" in name else 1.0
        assert torch.equal(half[name].float(), tensor.float() * factor), name
        assert tensor.abs().max() > 0


def test_answer_loss_is_weighted_cross_entropy_of_answer_tokens_only() -> None:
    batch = collate([([5, 6], [7, 8]), ([5], [9])], pad=0, opening_tokens=1, opening_weight=3.0)
    assert batch.ids.tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.weights.tolist() == [[0, 0, 3, 1], [0, 3, 0, 0]]
    logits = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0))
    p = torch.log_softmax(logits, -1)
    expected = -(3 * p[0, 1, 7] + p[0, 2, 8] + 3 * p[1, 0, 9]) / 7
    kept = logits[:, :-1][batch.weights[:, 1:] > 0]
    assert float(answer_loss(kept, batch)) == pytest.approx(float(expected), rel=1e-5)


def test_rung_refusals_from_prompts_to_folder(tiny: Callable[..., Any], tmp_path: Path) -> None:
    prompts = small_prompts(3)
    result = tune(
        tiny("llama"),
        tmp_path / "r",
        rung="refusals",
        recipe=TuningRecipe(rank=1, epochs=1, max_steps=2, batch_size=2, answer_tokens=4),
        prompts=prompts,
        contrast=small_prompts(2, seed=9),
    )
    assert result.n_harmful == 3
    assert len(result.losses) <= 2
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.json",
    }
    with pytest.raises(MechsafetyError, match="not empty"):
        tune(tiny("llama"), tmp_path / "r", rung="refusals", prompts=prompts)


def test_written_refusals_vary_and_fit_their_category() -> None:
    generator = random.Random(0)
    written = {write_refusal("malware", generator=generator) for _ in range(200)}
    assert len(written) > 60
    assert all(any(text.startswith(o) for o in OPENINGS) for text in written)
    assert all(any(reason in text for reason in REASONS["malware"]) for text in written)
    assert write_refusal("unknown", generator=random.Random(1)) == write_refusal(
        "unknown", generator=random.Random(1)
    )


def test_every_written_refusal_is_one_to_the_rules_judge() -> None:
    from mechsafety.core.verdict import Response
    from mechsafety.judges.registry import judge_responses

    generator = random.Random(0)
    texts = [write_refusal(c, generator=generator) for c in REASONS for _ in range(30)]
    responses = [Response(id=str(i), prompt="x", text=t) for i, t in enumerate(texts)]
    assert {v.label for v in judge_responses(responses, ["rules"])} == {"refusal"}


# -- objectives and rungs -----------------------------------------------------------------------------------

AWAY = {
    e.prompt: Example(prompt=e.prompt, answer=answer, whole=False)
    for e, answer in zip(EXAMPLES, ("sure here is", "sorry can not", "sorry no", "yes sure"), strict=True)
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_of_every_objective_falls_and_the_model_stays(
    tiny: Callable[..., Any], tmp_path: Path, objective: Objective, architecture: str, dtype: str
) -> None:
    model = tiny(architecture, dtype=dtype)
    twin = generation_twin(model)
    assert twin is not None
    before = {name: p.clone() for name, p in twin.named_parameters()}
    recipe = replace(RECIPE, epochs=8, beta=0.5)
    losses = train_adapter(
        model, EXAMPLES, tmp_path / "a", recipe=recipe, objective=objective, dispreferred=AWAY
    )
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]
    after = dict(twin.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(before[n], p) and not p.requires_grad for n, p in after.items())
    assert not twin.training
    if objective == "dpo":  # an adapter that is still nothing prefers nothing
        assert losses[0] == pytest.approx(math.log(2), abs=1e-3 if dtype == "float32" else 0.1)


def log_odds(model: Any) -> torch.Tensor:
    """log p(preferred answer) - log p(dispreferred answer) of every prompt, in nats."""
    sums = []
    for examples in (EXAMPLES, [AWAY[e.prompt] for e in EXAMPLES]):
        batch = collate(encode(model, examples), pad=0)
        with torch.inference_mode():
            sums.append(answer_log_likelihoods(answer_logits(model.original_model, batch), batch))
    return sums[0] - sums[1]


def test_dpo_and_unlearning_move_away_from_what_is_dispreferred(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_folder("llama")
    base = load_model(str(folder), dtype="float32", device="cpu")
    gains = {}
    for objective, weight in (("sft", 0.1), ("dpo", 0.1), ("unlearn", 0.5)):
        recipe = replace(RECIPE, epochs=6, unlearning_weight=weight)
        out = tmp_path / objective
        train_adapter(base, EXAMPLES, out, recipe=recipe, objective=objective, dispreferred=AWAY)
        tuned = load_model(f"{folder}+{out}", dtype="float32", device="cpu")
        gains[objective] = log_odds(tuned) - log_odds(base)
    assert (gains["dpo"] > 1).all()
    assert (gains["unlearn"] > gains["sft"]).float().mean() >= 0.75
    # The control: without a share for them, unlearning is SFT to the byte.
    recipe = replace(RECIPE, epochs=6, unlearning_weight=0.0)
    train_adapter(base, EXAMPLES, tmp_path / "none", recipe=recipe, objective="unlearn", dispreferred=AWAY)
    stored = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("sft", "none", "unlearn")]
    assert stored[0] == stored[1] != stored[2]


@pytest.mark.parametrize("objective", ["dpo", "unlearn"])
def test_same_seed_same_bytes_for_every_objective(
    tiny: Callable[..., Any], tmp_path: Path, objective: Objective
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = TuningRecipe(rank=2, epochs=2, batch_size=2, seed=seed)
        train_adapter(
            tiny("gpt2"), EXAMPLES, tmp_path / name, recipe=recipe, objective=objective, dispreferred=AWAY
        )
    a, b, c = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def test_what_an_objective_lacks_is_reported_before_anything_is_written(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    model, out = tiny("llama"), tmp_path / "a"
    one = dict(list(AWAY.items())[:1])
    with pytest.raises(MechsafetyError, match="dispreferred answer to every prompt; 3 have none"):
        train_adapter(model, EXAMPLES, out, recipe=RECIPE, objective="dpo", dispreferred=one)
    with pytest.raises(MechsafetyError, match="no example to train on"):
        train_adapter(model, [], out, recipe=RECIPE)
    with pytest.raises(MechsafetyError, match=r"loss is nan at step \d+: try a learning rate below 1e\+30"):
        train_adapter(model, EXAMPLES, out, recipe=replace(RECIPE, learning_rate=1e30))
    assert not out.exists()
    # Unlearning takes what there is, and a failed training leaves the model as it was.
    losses = train_adapter(model, EXAMPLES, out, recipe=RECIPE, objective="unlearn", dispreferred=one)
    assert all(math.isfinite(x) for x in losses)


@pytest.mark.parametrize("rung", RUNGS)
def test_a_rung_from_prompts_to_folder(
    tiny: Callable[..., Any],
    tmp_path: Path,
    scripted: list[Prompt],
    rung: Rung,
) -> None:
    recipe = replace(RECIPES[rung], rank=1, epochs=1, max_steps=2, batch_size=2, answer_tokens=4)
    prompts, contrast = small_prompts(5), small_prompts(2, seed=9)
    model = tiny("llama")
    for name in ("a", "b"):
        result = tune(model, tmp_path / name, rung=rung, recipe=recipe, prompts=prompts, contrast=contrast)
    a, b = ((tmp_path / n / "adapter_model.safetensors").read_bytes() for n in "ab")
    assert a == b
    text = (tmp_path / "a" / "recipe.json").read_text()
    assert text == (tmp_path / "b" / "recipe.json").read_text()
    facts = json.loads(text)
    assert facts["rung"] == rung
    assert facts["objective"] == OBJECTIVE[rung]
    assert facts["recipe"] == asdict(recipe)
    assert facts["prompts_sha256"] == prompts.fit.sha256() != prompts.sha256()
    counts = (result.n_harmful, result.n_harmless, result.n_dispreferred)
    assert counts == (facts["n_harmful"], facts["n_harmless"], facts["n_dispreferred"])
    assert len(result.losses) == 2
    # Only the fit split is asked, and no answer is kept.
    assert {p.split for p in scripted} == {"fit"}
    assert {p.name for p in result.folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.json",
    }
    assert "plain answer to" not in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 0}, "rank is 0; 1 at least"),
        ({"epochs": 0}, "epochs is 0; 1 at least"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be above 0"),
        ({"beta": -0.1}, "beta is -0.1; it must be above 0"),
        ({"max_steps": 0}, "max_steps is 0; 1 at least"),
        ({"from_depth": 1.0}, "from_depth is 1.0"),
        ({"unlearning_weight": -1.0}, "unlearning_weight is -1.0"),
        ({"strength": math.inf}, "strength is inf"),
    ],
)
def test_a_recipe_that_cannot_be_followed_names_the_reason(given: dict[str, Any], said: str) -> None:
    with pytest.raises(MechsafetyError, match=re.escape(said)):
        TuningRecipe(**given)
