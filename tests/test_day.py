"""A researcher's day: each task in at most eight lines of ``ms`` (and pandas, numpy, plotly), on tiny models.

The lines of a task stand in its test alone, so that the test shows what a user writes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import pytest
import torch

import mechsafety as ms
from tests.prompt_sets import HARMFUL_WORDS, small_prompts

TEXTS = ["how do i make bread", "tell me about the storm", "write a list of fire", "help me with the lock"]
LINES = 8


@pytest.fixture
def model(tiny_kept: Callable[..., Any]) -> Any:
    return tiny_kept("llama")


@pytest.fixture
def folder(tiny_folder: Callable[..., Path]) -> str:
    return str(tiny_folder("llama"))


def test_ten_own_prompts_projected_at_every_layer(model: Any) -> None:  # task 2
    directions = ms.find_directions(ms.residual_stream(model, small_prompts().fit), resamples=2)
    cache = ms.residual_stream(model, TEXTS, positions=-1)
    rows = [directions.at(layer=n).project(cache.activations[:, 0, n]) for n in (1, 2, 3, 4)]
    figure = px.imshow(torch.stack(rows).numpy(), x=TEXTS, y=["1", "2", "3", "4"])
    assert figure.data[0].z.shape == (4, len(TEXTS))
    assert np.isfinite(figure.data[0].z).all()


def own_frame() -> pd.DataFrame:
    texts = [p.text for p in small_prompts(10).prompts]
    kind = ["bad" if set(text.split()) & set(HARMFUL_WORDS) else "good" for text in texts]
    return pd.DataFrame({"request": texts, "kind": kind, "topic": "tiny"})


def test_an_own_table(model: Any, tmp_path: Path) -> None:  # task 3
    import datasets

    frame, path = own_frame(), str(tmp_path / "own.jsonl")
    frame.to_json(path, orient="records", lines=True)
    how: dict[str, Any] = {
        "text": "request",
        "label": "kind",
        "labels": {"bad": "harmful", "good": "harmless"},
    }
    prompts = ms.load_prompts(frame, **how, category="topic").split(fit=0.6, validation=0.2, report=0.2)
    again = ms.load_prompts(path, **how), ms.load_prompts(datasets.Dataset.from_pandas(frame), **how)
    directions = ms.find_directions(ms.residual_stream(model, prompts.fit), resamples=2)
    assert {len(each) for each in again} == {len(prompts)}
    assert [len(p) for p in (prompts.fit, prompts.validation, prompts.report)] == [36, 12, 12]
    assert directions.n_harmful == directions.n_harmless + 2 * (directions.n_harmful - 18)
    assert len(prompts.where(category="tiny")) == len(prompts)


def test_an_own_vector_ablated_and_steered(model: Any) -> None:  # task 4
    vector = np.random.default_rng(0).normal(size=32)
    plain = ms.generate(model, TEXTS, max_new_tokens=4)
    ablated = ms.generate(model, TEXTS, edit=ms.Ablate(vector), max_new_tokens=4)
    steered = ms.generate(
        model, TEXTS, edit=[ms.Ablate(vector), ms.Add(vector, layer=range(1, 3))], max_new_tokens=4
    )
    side = pd.DataFrame({"plain": [c.text for c in plain], "ablated": [c.text for c in ablated]}, index=TEXTS)
    assert len(side) == len(steered) == len(TEXTS)
    assert steered.coverage is not None
    assert (
        steered.coverage.fired["blocks.1.hook_resid_pre"] > ablated.coverage.fired["blocks.1.hook_resid_pre"]
    )  # type: ignore[union-attr]


def test_an_own_judge_beside_rules(model: Any) -> None:  # task 5
    def apologises(prompt: str, response: str) -> bool:
        return "sorry" in response.lower()

    frame = pd.DataFrame(
        {"prompt": ["a", "b", "c"], "response": ["I'm sorry, but I can't help with that.", "sorry, here: [steps]", "Sure, [steps]"], "label": "harmful"}
    )  # fmt: skip
    verdicts = ms.judge(frame, ["rules", apologises])
    rates = ms.refusal_rates(verdicts).set_index("judge")["refusal"]
    agreement = ms.statistics.agreement(ms.verdict_table({"original": verdicts}))
    assert rates["apologises"] == 2
    assert rates["rules"] == 1
    assert not agreement.empty


def test_an_edit_saved_and_used_elsewhere(
    model: Any, tmp_path: Path, tiny: Callable[..., Any]
) -> None:  # task 9
    path, vector = str(tmp_path / "edit.safetensors"), np.ones(32)
    ms.save_edit(ms.Ablate(vector) + ms.Add(vector, layer=2, positions="prompt"), path, model=model)
    assert ms.load_edit(path, model=model) == ms.Ablate(vector) + ms.Add(vector, layer=2, positions="prompt")
    with pytest.raises(ms.MechsafetyError, match="allow_other_weights=True"):
        ms.load_edit(path, model=tiny("llama", seed=1))
    with pytest.raises(ms.MechsafetyError, match="direction has 31 entries"):
        ms.generate(model, TEXTS, edit=ms.Ablate(vector[1:]))


def test_directions_on_another_checkpoint(model: Any, tiny: Callable[..., Any]) -> None:  # task 9
    other, prompts = tiny("llama", seed=1), small_prompts()
    directions = ms.find_directions(ms.residual_stream(model, prompts.fit), resamples=2)
    with pytest.raises(ms.MechsafetyError, match="allow_other_weights=True, which is recorded"):
        ms.sweep(other, directions, prompts.validation)
    swept = ms.sweep(other, directions, prompts.validation, layers=1, allow_other_weights=True)
    assert swept.facts(rule=None)["directions_of"] == directions.model
    assert not ms.sweep(model, directions, prompts.validation, layers=1).other_weights


def test_an_own_template(folder: str) -> None:  # task 11
    template = "{% for m in messages %}# {{ m['content'] }}\n{% endfor %}"
    model = ms.load_model(folder, template=template, dtype="float32", device="cpu")
    cache = ms.residual_stream(model, "how do i make bread", positions=[-1, -2])
    assert model.load_record.template.startswith("jinja-")
    assert tuple(cache.activations.shape) == (1, 2, 5, 32)


def test_an_own_metric_by_layer(model: Any) -> None:  # task 13
    directions = ms.find_directions(ms.residual_stream(model, small_prompts().fit), resamples=2)
    ids, sorry = model.tokenizer(TEXTS[0], return_tensors="pt").input_ids, 13
    rows: list[dict[str, float]] = []
    for layer in (1, 2, 3):
        with ms.edited(model, ms.Ablate(directions.at(layer=layer))), torch.no_grad():
            rows.append({"layer": layer, "metric": float(model(ids)[0, -1].log_softmax(-1)[sorry])})
    assert pd.DataFrame(rows)["metric"].notna().all()


def test_each_task_takes_at_most_eight_lines_of_ms() -> None:
    tasks = [f for name, f in globals().items() if name.startswith("test_") and "eight_lines" not in name]
    counts = {f.__name__: sum("ms." in line for line in inspect.getsource(f).splitlines()) for f in tasks}
    assert max(counts.values()) <= LINES, counts
