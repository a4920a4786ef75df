"""A researcher's day: each task in at most eight lines of ``ms`` (and pandas, numpy, plotly), on tiny models.

The lines of a task stand in its test alone, so that the test shows what a user writes.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mechsafety as ms
from mechsafety.pages.page import find_chromium
from tests.cli.test_base import succeed
from tests.prompt_sets import HARMFUL_WORDS, small_prompts, write_csv

TEXTS = ["how do i make bread", "tell me about the storm", "write a list of fire", "help me with the lock"]
LINES = 8
IDS = torch.tensor([[5, 9, 30, 44, 7, 12]])


@pytest.fixture
def model(tiny_kept: Callable[..., Any]) -> Any:
    return tiny_kept("llama")


@pytest.fixture
def prompts() -> ms.PromptSet:
    return small_prompts()


def test_directions_separability_and_a_layer(model: Any, prompts: ms.PromptSet) -> None:  # task 1
    cache = ms.residual_stream(model, prompts.fit, positions=(-3, -2, -1))
    directions = ms.find_directions(cache, resamples=3)
    held_out = ms.residual_stream(model, prompts.validation, positions=(-3, -2, -1))
    profile = ms.profile_layers(directions, held_out, position=-1, resamples=20)
    swept = ms.sweep(model, directions, prompts.validation)
    chosen = swept.nearest()
    direction = directions.at(layer=chosen.layer, position=chosen.position)
    figures = [directions.plot(), profile.plot(), swept.plot(), swept.plot(position=-3)]
    assert set(directions.to_frame()["position"]) == {-3, -2, -1}
    assert profile.to_frame()["auroc"].notna().any()
    assert direction.layer == chosen.layer
    assert "position -3" in figures[3].layout.title.subtitle.text
    assert "-2, -1" in figures[3].layout.title.subtitle.text


def test_cosines_of_two_checkpoints(
    tiny_kept: Callable[..., Any], prompts: ms.PromptSet, tmp_path: Path
) -> None:
    models = [tiny_kept("llama"), tiny_kept("llama", seed=1)]  # task 6
    found = [ms.find_directions(ms.residual_stream(one, prompts.fit), resamples=2) for one in models]
    matrix = found[0].cosine(found[1])
    table = matrix.to_frame()
    figure = matrix.plot(title="Two checkpoints", width=420, height=400, colours=["navy", "white", "maroon"])
    path = ms.save_figure(figure, str(tmp_path / f"cosines.{'pdf' if find_chromium() else 'html'}"))
    assert path.stat().st_size > 1000
    assert table.shape == (5, 5)
    assert table.loc[1:, 1:].abs().max().max() <= 1
    assert (figure.layout.width, figure.layout.title.text) == (420, "Two checkpoints")


def test_a_projection_along_an_answer(model: Any, prompts: ms.PromptSet) -> None:  # task 7
    directions = ms.find_directions(ms.residual_stream(model, prompts.fit), resamples=2)
    answer = ms.generate(model, prompts.report[:1], max_new_tokens=5, seed=0)[0]
    along = ms.project_tokens(model, answer, directions.at(layer=2))
    table = along.to_frame().query("layer == 2 and part == 'answer'")
    figure = along.plot([2, 3])
    assert len(table) == answer.n_tokens
    assert list(table["position"]) == list(range(answer.n_tokens))
    assert len(figure.data) == 2
    assert "layer 2" in along._repr_html_()


def test_attention_outputs_of_some_layers(model: Any, prompts: ms.PromptSet) -> None:  # task 8
    directions = ms.find_directions(ms.residual_stream(model, prompts.fit), resamples=2)
    edit = ms.Ablate(directions.at(layer=2), layers=(1, 2), sites=("attn_out",))
    answers = ms.generate(model, prompts.report[:3], edit=edit, max_new_tokens=3, seed=0)
    receipt = answers.coverage.to_frame()
    assert list(receipt["hook"]) == ["blocks.1.hook_attn_out", "blocks.2.hook_attn_out"]
    assert (receipt["fired"] > 0).all()
    assert len(set(receipt["positions"])) == 1


AGAIN = """
import sys, mechsafety as ms
run = ms.load_run(sys.argv[1])
figure = next(iter(run.figures().values())).update_layout(colorway=["teal", "gold"])
figure.write_html(sys.argv[2])
print(len(run.tables), len(run.findings), run.config["kind"], run.report())
"""


def test_a_study_opened_again(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:  # task 10
    own = str(write_csv(small_prompts(10), tmp_path / "own.csv"))
    systems = (str(tiny_folder("llama")), str(tiny_folder("gpt2")))
    sizes: dict[str, Any] = {"max_new_tokens": 3, "layer": 2, "controls": 0, "confirm": 0, "limit": 4}
    config = ms.StudyConfig(
        systems=systems, prompts=own, anchors=own, judges=("rules",), device="cpu", **sizes
    )
    run = ms.run_study(config, str(tmp_path / "run"), progress=False)
    page = (tmp_path / "run" / "report.html").read_bytes()
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    command = [sys.executable, "-W", "ignore", "-c", AGAIN, str(run.path), str(tmp_path / "teal.html")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert shown[2] == "study"
    assert int(shown[0]) == len(run.tables)
    assert "teal" in (tmp_path / "teal.html").read_text()
    assert figures == {"plotly.min.js", *(f"{name}.html" for name in run.figures())}
    succeed("report", run.path)
    assert (tmp_path / "run" / "report.html").read_bytes() == page, "the command line writes the same report"
    assert len(repr(run)) < 200


def test_an_edited_model_as_a_folder(tiny: Callable[..., Any], prompts: ms.PromptSet, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny("llama-tied")  # task 12
    directions = ms.find_directions(ms.residual_stream(model, prompts.fit), resamples=2)
    edit = ms.Ablate(directions.at(layer=2))
    with ms.edited(model, edit), torch.no_grad():
        expected = model(IDS, return_type="logits")
    folder = ms.save_model(model, edit, str(tmp_path / "edited"))
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=IDS).logits
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-4)


def test_interrupted_and_gone_on_with(
    model: Any, prompts: ms.PromptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # task 14
    from mechsafety.generation import kept_batches

    put, seen = kept_batches.KeptBatches.put, []

    def interrupted(*args: Any) -> None:
        put(*args)
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"max_new_tokens": 3, "seed": 0, "batch_size": 2}
    monkeypatch.setattr(kept_batches.KeptBatches, "put", interrupted)
    with pytest.raises(KeyboardInterrupt, match="6 of 12"):
        ms.generate(model, prompts.report, **options, out=str(tmp_path / "answers"))
    answers = ms.generate(model, prompts.report, **options, out=str(tmp_path / "answers"))
    assert isinstance(answers.to_frame(), pd.DataFrame)
    assert len(seen) == 6, "three batches were finished before"
    assert answers == ms.generate(model, prompts.report, **options)


@pytest.fixture
def folder(tiny_folder: Callable[..., Path]) -> str:
    return str(tiny_folder("llama"))


def test_ten_own_prompts_projected_at_every_layer(model: Any) -> None:  # task 2
    directions = ms.find_directions(ms.residual_stream(model, small_prompts().fit), resamples=2)
    projected = ms.residual_stream(model, TEXTS, positions=-1).project(directions)
    figure = projected.plot(title="Own prompts")
    assert projected.to_frame().shape[0] == len(TEXTS)
    assert np.isfinite(projected.values[:, 1:].numpy()).all()
    assert figure.layout.title.text == "Own prompts"


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
        {"prompt": ["a", "b", "c"], "response": ["I'm sorry, but I can't help with that.", "Sure! Mix flour, water and salt, and bake it for an hour. Sorry for the wait.", "Sure, [steps]"], "label": "harmful"}
    )  # fmt: skip
    verdicts = ms.judge(frame, ["rules", apologises])
    rates = ms.refusal_rates(verdicts).set_index("judge")["refusal"]
    agreement = ms.statistics.agreement(ms.judges.verdict_table({"original": verdicts}))
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


def test_an_edit_of_another_checkpoint_says_so(model: Any, tiny: Callable[..., Any]) -> None:  # task 9
    directions = ms.find_directions(ms.residual_stream(model, small_prompts().fit), resamples=2)
    edit = ms.Ablate(directions.at(layer=2)) + ms.Ablate(np.ones(32))
    here = ms.generate(model, TEXTS, edit=edit, max_new_tokens=2)
    there = ms.generate(tiny("llama", seed=1), TEXTS, edit=edit, max_new_tokens=2)
    assert here.coverage is not None
    assert there.coverage is not None
    assert here.coverage.carried == ""
    assert there.coverage.carried.startswith(f"edit fitted on {directions.model!r}, used on ")
    assert there.coverage.carried in repr(there)
    assert there.coverage.summary()["carried"] == there.coverage.carried


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


def test_a_sweep_of_an_own_score_needs_no_labels(model: Any) -> None:  # task 13
    directions = ms.find_directions(ms.residual_stream(model, small_prompts().fit), resamples=2)
    likely = {"score": lambda logits: logits[:, 13], "layers": (1, 2), "progress": False}
    swept = ms.sweep(model, directions, TEXTS, **likely)
    table = swept.to_frame()
    with ms.edited(model, ms.Ablate(directions.at(layer=1))):
        under = ms.logits(model, TEXTS)[:, 13]
    plain, edit = ms.log_probs(model, TEXTS), ms.Ablate(directions.at(layer=1))
    divergence = (plain.exp() * (plain - ms.log_probs(model, TEXTS, edit=edit))).sum(dim=1)
    assert table.loc[0, "bypass"] == pytest.approx(float(under.mean()), abs=1e-4)
    assert table.loc[0, "kl"] == pytest.approx(float(divergence.mean()), abs=1e-3)
    assert table["auroc"].isna().all()
    assert "4 prompts without labels" in repr(swept)
    with pytest.raises(ms.MechsafetyError, match="or give a score= of your own"):
        ms.sweep(model, directions, TEXTS)


def test_each_task_takes_at_most_eight_lines_of_ms() -> None:
    tasks = [f for name, f in globals().items() if name.startswith("test_") and "eight_lines" not in name]
    counts = {f.__name__: sum("ms." in line for line in inspect.getsource(f).splitlines()) for f in tasks}
    assert max(counts.values()) <= LINES, counts
