"""The end of the model's own thought, as a position."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import find_directions
from mechsafety.directions.files import load_directions, read_directions
from mechsafety.experiments.comparison.experiment import run_comparison
from mechsafety.experiments.config import ChatConfig
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.experiments.sweep.config import SweepConfig
from mechsafety.experiments.sweep.experiment import run_sweep
from mechsafety.generation.completions import generate
from mechsafety.generation.scoring import answer_nll
from mechsafety.generation.thought_ends import own_thoughts
from mechsafety.models.chat import after_thoughts, tokenize_prompts
from mechsafety.models.loading import load_model
from mechsafety.prompts.prompt_set import PromptSet
from tests.chat_forms import save_thinking
from tests.cli.test_base import call, succeed
from tests.conftest import save_tiny
from tests.prompt_sets import small_prompts, write_csv

pytestmark = pytest.mark.usefixtures("unpublished")

PROMPTS = small_prompts(12)
CHAT: dict[str, Any] = {"thinking": "model", "max_thought_tokens": 40}
SETTINGS: dict[str, Any] = {"fit": 2, "validation": 2, "fit_on": "labels", "confirm": 0, "resamples": 5}
SETTINGS |= {"dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [p.text for p in PROMPTS if p.split != "report"]
    return save_thinking(tmp_path_factory.mktemp("thinks"), "qwen3_thinking", texts, closes="</think>")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(str(folder), dtype="float32", device="cpu", chat=CHAT)


@pytest.fixture(scope="module")
def thought_about(model: Any) -> PromptSet:
    """The fit and validation prompts about which the model ends its thought."""
    asked = [p for p in PROMPTS if p.split != "report"]
    done = {c.id: c for c in generate(model, asked, max_new_tokens=4, seed=0)}
    return PromptSet(
        tuple(p for p in asked if 0 < done[p.id].n_thought_tokens < done[p.id].n_tokens), "thought about"
    )


def test_the_last_position_is_the_end_of_each_prompts_own_thought(
    model: Any, thought_about: PromptSet
) -> None:
    prompts = list(thought_about)[:6]
    thoughts = own_thoughts(model, prompts)
    close = model.tokenizer.convert_tokens_to_ids("</think>")
    assert len({len(t) for t in thoughts.values()}) > 1
    before = residual_stream(model, prompts)
    with after_thoughts(model, thoughts):
        found = residual_stream(model, prompts)
        # Answers are thought about anew, whatever stands behind the prompts meanwhile.
        again = generate(model, prompts, max_new_tokens=4, seed=0)
    assert [c.tokens for c in again] == [c.tokens for c in generate(model, prompts, max_new_tokens=4, seed=0)]
    assert tokenize_prompts(model, [prompts[0].text])[0][-1] != close
    for row, asked in enumerate(tokenize_prompts(model, [p.text for p in prompts])):
        assert close in thoughts[tuple(asked)]
        ids = [*asked, *thoughts[tuple(asked)]]
        with torch.inference_mode():
            hidden = model.original_model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(found.activations[row, 0, 1], hidden[1][0, -1], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found.activations[row, 0, 1], before.activations[row, 0, 1], atol=1e-2)


def test_a_sweep_at_the_end_of_the_thought(
    folder: Path, model: Any, thought_about: PromptSet, tmp_path: Path
) -> None:
    both = [p for p in thought_about if p.split in ("fit", "validation")]
    config = SweepConfig(
        **SETTINGS,
        model=str(folder),
        prompts=str(write_csv(replace(thought_about, prompts=tuple(both)), tmp_path / "prompts.csv")),
        positions="thought-end",
        chat=ChatConfig(**CHAT),
        refusal_tokens=("lock", "key"),
        layers=(1, 2),
    )
    result = run_sweep(config, tmp_path / "run")
    assert set(result.tables["sweep"]["position"]) == {-1}
    stored = json.loads((result.path / "parts/thoughts.json").read_text())
    asked = {p.id: tuple(tokenize_prompts(model, [p.text])[0]) for p in both}
    assert len(stored) == 8
    assert stored == {i: list(own_thoughts(model, both)[asked[i]]) for i in stored}
    # The sweep's directions are those of the residual streams behind the thoughts, not behind the prompts.
    found = load_directions(result.path / "parts/directions/mean_difference.safetensors")
    fit = [p for p in both if p.split == "fit" and p.id in stored]
    behind = find_directions(residual_stream(model, fit), method="mean_difference", seed=0)
    with after_thoughts(model, {asked[p.id]: stored[p.id] for p in fit}):
        expected = find_directions(residual_stream(model, fit), method="mean_difference", seed=0)
    torch.testing.assert_close(found.vectors[0, 1:], expected.vectors[0, 1:], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(found.vectors[0, 1:], behind.vectors[0, 1:], atol=1e-2)


def test_a_study_at_the_end_of_the_thought(
    folder: Path, model: Any, thought_about: PromptSet, tmp_path: Path
) -> None:
    csv = str(write_csv(thought_about, tmp_path / "prompts.csv"))
    config = StudyConfig(
        **{k: v for k, v in SETTINGS.items() if k != "resamples"},
        systems=(str(folder),),
        prompts=str(write_csv(small_prompts(2), tmp_path / "report.csv")),
        anchors=csv,
        positions="thought-end",
        chat=ChatConfig(**CHAT),
        layer=1,
        controls=1,
        judges=("rules",),
        selfjudge=False,
        max_new_tokens=4,
    )
    path = run_study(config, tmp_path / "run").path
    found = load_directions(next((path / "parts/directions").glob("*.safetensors")))
    stored = json.loads(next((path / "parts/thoughts").glob("*.json")).read_text())
    fit = [p for p in thought_about if p.split == "fit" and p.id in stored]
    with after_thoughts(model, own_thoughts(model, fit)):
        expected = find_directions(residual_stream(model, fit), method="mean_difference", seed=0)
    assert found.positions == (-1,)
    torch.testing.assert_close(found.vectors[0, 1:], expected.vectors[0, 1:], atol=1e-4, rtol=1e-3)
    with pytest.raises(MechsafetyError, match=r"position 'thought-end' .* kept from thinking"):
        run_study(config.model_copy(update={"chat": ChatConfig()}), tmp_path / "kept")
    # The likelihood of the answers is that behind the thought.
    table = pd.read_parquet(path / "responses.parquet").set_index("arm").loc["original"]
    done = {c.id: c for c in generate(model, small_prompts(2).report, max_new_tokens=4, seed=0)}
    for row in table.itertuples():
        (asked,) = tokenize_prompts(model, [row.prompt])
        c = done[str(row.id)]
        read = [*asked, *c.tokens[: c.n_thought_tokens]]
        (nll,) = answer_nll(model, [read], [c.answer_tokens])
        assert (nll is None) == np.isnan(row.nll)
        assert nll is None or row.nll == pytest.approx(nll, abs=1e-3)


def test_checkpoints_compared_at_the_end_of_the_thought(
    folder: Path, model: Any, thought_about: PromptSet, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "copy")
    given: dict[str, Any] = {"measures": ["cosine"], "position": "thought-end", "resamples": 20, "k": 2}
    both = [str(folder), str(other)]
    path = run_comparison(
        both, thought_about, out=tmp_path / "run", chat=CHAT, dtype="float32", device="cpu", **given
    ).path
    with after_thoughts(model, own_thoughts(model, thought_about.fit)):
        expected = find_directions(residual_stream(model, thought_about.fit), seed=0)
    found = read_directions(path / "directions.safetensors")[str(folder)]
    torch.testing.assert_close(found.vectors[0, 1:], expected.vectors[0, 1:], atol=1e-4, rtol=1e-3)
    cosines = pd.read_parquet(path / "cosines.parquet").set_index("layer")["cosine"]
    assert cosines[1:].to_numpy() == pytest.approx(1)
    with pytest.raises(MechsafetyError, match="kept from thinking"):
        run_comparison(both, thought_about, out=tmp_path / "off", dtype="float32", device="cpu", **given)


def test_directions_at_the_end_of_the_thought_on_the_command_line(
    folder: Path, model: Any, thought_about: PromptSet, tmp_path: Path
) -> None:
    out, csv = tmp_path / "found.safetensors", write_csv(thought_about, tmp_path / "prompts.csv")
    asking = ("direction", folder, "--prompts", csv, "--dtype", "float32", "--fit-on", "labels", "--out", out)
    asking = (*asking, "--positions", "thought-end")
    succeed(*asking, "--thinking", "model", "--max-thought-tokens", 40)
    with after_thoughts(model, own_thoughts(model, thought_about.fit)):
        expected = find_directions(residual_stream(model, thought_about.fit), seed=0)
    torch.testing.assert_close(load_directions(out).vectors, expected.vectors, atol=1e-4, rtol=1e-3)
    refused = call(*asking)
    assert (refused.exit_code, "--thinking model" in refused.stderr) == (2, True)


def test_a_model_without_a_thought_has_no_such_position(folder: Path, model: Any, tmp_path: Path) -> None:
    asked = [p for p in PROMPTS if p.split != "report"]
    with pytest.raises(MechsafetyError, match="does not end in 40 tokens"):
        own_thoughts(model, asked)
    kept = load_model(str(folder), dtype="float32", device="cpu")
    with pytest.raises(MechsafetyError, match="'thinking': 'model'"):
        own_thoughts(kept, asked)
    plain = load_model(str(save_tiny(tmp_path)), dtype="float32", device="cpu", chat={"thinking": "model"})
    with pytest.raises(MechsafetyError, match="know of thoughts"):
        own_thoughts(plain, asked)
