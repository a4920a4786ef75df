"""A researcher's day: each task in at most eight lines of ``ms`` (and pandas, numpy, plotly), on tiny models.

The lines of a task stand in its test alone, so that the test shows what a user writes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import mechsafety as ms
from tests.prompt_sets import small_prompts, write_csv

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
    figure.write_html(tmp_path / "cosines.html")
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
    cli = [sys.executable, "-m", "mechsafety.cli", "report", str(run.path)]
    subprocess.run(cli, capture_output=True, check=True)
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
