"""Estimates of a study's cost are those that are worked out by hand."""

from __future__ import annotations

import pytest

from mechsafety.edits.recipes import recipe
from mechsafety.experiments.config import ChatConfig
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.costs import Answers, Gpu, Sizes, Work, judging, memory, seconds, stages
from mechsafety.models.facts import ModelFacts

GPU = Gpu(memory_gb=10.0, tflops=100.0, bandwidth_tb=1.0, share=0.5)  # 5e13 operations, 5e11 bytes a second
FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    n_parameters=1_000_000_000,
    n_layers=10,
    d_model=1000,
    n_heads=10,
    n_kv_heads=5,
    head_dim=100,
    vocabulary=1000,
    gated=None,
    template="its own",
    thinking="does not think",
    source="here",
)
SIZES = Sizes(
    harmful=30, harmless=20, fit=100, validation_harmful=16, validation_harmless=8, prompt_tokens=50.0
)
HOW = {"batch": 40, "dtype": "auto"}


def test_reading_takes_two_operations_a_parameter_and_token() -> None:
    # 2 x 1e9 x 1e5 / 5e13
    assert seconds(Work(read=1e5), FACTS, GPU, **HOW) == pytest.approx(4.0)


def test_writing_reads_weights_and_keys_at_every_token() -> None:
    # A value of each token: 2 x 10 layers x 5 heads x 100 = 1e4. 80 rows in 2 batches of 40, 1000 tokens each.
    work = Work(written=(Answers(rows=80, prompt=100.0, new=1000),))
    prompts = 2 * 1e9 * 8000 / 5e13
    # A step reads (1e9 + 40 x 600 x 1e4) x 2 bytes.
    step = (1e9 + 2.4e8) * 2 / 5e11
    launches = 10 * 0.8e-3
    assert step < launches
    assert seconds(work, FACTS, GPU, **HOW) == pytest.approx(prompts + 2 * 1000 * launches)
    slow = Gpu(memory_gb=10.0, tflops=100.0, bandwidth_tb=0.1, share=0.5)
    assert seconds(work, FACTS, slow, **HOW) == pytest.approx(prompts + 2 * 1000 * 10 * step)
    # float32 moves twice the bytes.
    assert seconds(work, FACTS, slow, batch=40, dtype="float32") == pytest.approx(
        prompts + 4 * 1000 * 10 * step
    )


def test_writing_takes_its_operations_where_they_are_longer() -> None:
    weak = Gpu(memory_gb=10.0, tflops=1.0, bandwidth_tb=1.0, share=0.5)
    found = seconds(Work(written=(Answers(rows=40, prompt=0.0, new=10),)), FACTS, weak, **HOW)
    assert found == pytest.approx(10 * 2 * 1e9 * 40 / 5e11)


def test_memory_is_weights_keys_and_judges() -> None:
    config = StudyConfig(batch_size=40, max_new_tokens=950)
    need = memory(FACTS, SIZES, config, dtype="auto", judges=1e9)
    assert (need.weights, need.cache, need.judges) == (2e9, 40 * 1000 * 1e4 * 2, 1e9)
    assert need.devices(GPU) == 1  # 3.8 of 9 usable GB
    assert need.devices(Gpu(memory_gb=2.0)) == 3  # of 1.8 each
    # No batch is larger than all random arms together: 3 x 30 rows.
    whole = memory(FACTS, SIZES, StudyConfig(batch_size=500, max_new_tokens=950), dtype="float32")
    assert (whole.weights, whole.cache) == (4e9, 90 * 1000 * 1e4 * 4)


def test_stages_of_a_selected_layer() -> None:
    config = StudyConfig(max_new_tokens=100, confirm=5, controls=2, nll=False)
    found = stages(config, recipe("default"), SIZES, n_layers=10)
    assert found["directions"] == Work(read=2 * 100 * 50.0)
    # 5 positions x int(0.8 x 10) layers, each 16 harmful prompts once and 8 harmless ones twice; 24 unedited, twice.
    assert found["sweep"].read == (2 * 24 + 5 * 8 * (16 + 2 * 8)) * 50
    assert found["sweep"].written == (Answers(rows=16, prompt=50.0, new=24),)
    assert found["confirmation"].written[1] == Answers(rows=5 * 16, prompt=50.0, new=100)
    assert found["original"] == found["edited"] == Work(written=(Answers(rows=50, prompt=50.0, new=100),))
    assert found["random"].written == (Answers(rows=60, prompt=50.0, new=100),)
    assert found["self-judgement"].read == 4 * 50 * 300
    every = stages(config.model_copy(update={"search": "exhaustive"}), recipe("arditi"), SIZES, n_layers=10)
    assert every["sweep"].read == (2 * 24 + 5 * 11 * 32) * 50
    assert every["confirmation"] == Work()


def test_thoughts_are_written_before_answers_and_kept() -> None:
    off = StudyConfig(max_new_tokens=100, confirm=5, controls=2, batch_size=40)
    on = off.model_copy(update={"chat": ChatConfig(thinking="model", max_thought_tokens=500)})
    # No other choice of a study makes what is written longer: as if answers had 600 tokens.
    long = off.model_copy(update={"max_new_tokens": 600})
    stage, longer = (stages(c, recipe("default"), SIZES, n_layers=10) for c in (on, long))
    assert [stage[n] for n in ("original", "edited", "random")] == [
        longer[n] for n in ("original", "edited", "random")
    ]
    assert memory(FACTS, SIZES, on, dtype="auto") == memory(FACTS, SIZES, long, dtype="auto")
    assert stage["sweep"].written == (Answers(rows=16, prompt=50.0, new=524),)
    assert [a.new for a in stage["confirmation"].written] == [
        longer["confirmation"].written[0].new + 500,
        600,
    ]


def test_stages_of_a_fixed_layer() -> None:
    config = StudyConfig(max_new_tokens=100, selfjudge=False, controls=0)
    found = stages(config, recipe("granular-release"), SIZES, n_layers=10)
    assert found["directions"] == Work(read=100 * 50.0)
    assert found["sweep"].read == (2 * 24 + 32) * 50
    assert found["confirmation"] == found["self-judgement"] == Work()
    assert found["random"].written[0].rows == 0
    assert found["original"].read == 50 * 150  # their likelihood
    assert seconds(found["random"], FACTS, GPU, **HOW) == 0


def test_judges_read_both_arms_and_the_primary_one_the_random_arm() -> None:
    config = StudyConfig(max_new_tokens=100, controls=2)
    assert judging("logit", config, SIZES, primary=False).read == 2 * 100 * 300
    assert judging("logit", config, SIZES, primary=True).read == 2 * 160 * 300
    assert judging("text", config, SIZES, primary=False).written == (Answers(rows=100, prompt=400.0, new=32),)
