"""``mechsafety tune``: a rung from the command line, its mistakes, and the preset of the ladder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mechsafety.experiments.study.config import load_config
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.tuning.rungs import RUNGS
from mechsafety.tuning.training import RECIPES
from tests.cli.test_base import call, succeed
from tests.tuning.test_rungs import scripted as scripted

pytestmark = pytest.mark.usefixtures("unpublished")

FIXED = ["--device", "cpu", "--dtype", "float32", "--epochs", "1", "--max-steps", "2", "--rank", "1"]


@pytest.mark.parametrize("rung", [None, "dpo"])
def test_a_rung_is_trained_and_the_next_command_is_named(
    tiny_folder: Callable[..., Path], tmp_path: Path, scripted: list[Prompt], rung: str | None
) -> None:
    out = tmp_path / "new" / "adapter"
    chosen = ["--rung", rung] if rung else []
    facts = succeed("tune", tiny_folder(), "--out", out, *chosen, *FIXED, "--seed", 3, "--json")
    assert (facts["rung"], facts["adapter"], facts["steps"]) == (rung or "refusals", str(out), 2)
    # Of 220 prompts of each label the script leaves out what is refused and what loops.
    assert facts["harmful"] > 100
    assert facts["harmless"] > 100
    assert (facts["dispreferred"] > 0) == (rung == "dpo")
    made = json.loads((out / "recipe.json").read_text())
    recipe = replace(RECIPES[rung or "refusals"], epochs=1, max_steps=2, rank=1, seed=3)
    assert made["recipe"] == asdict(recipe)
    shown = succeed("tune", tiny_folder(), "--out", tmp_path / "again", *chosen, *FIXED, "--seed", 3)
    assert f"2 steps, loss {facts['first_loss']:.3f} -> {facts['last_loss']:.3f}" in shown
    assert f"mechsafety study --systems {tiny_folder()}+{tmp_path / 'again'} --out runs/tuned" in shown
    names = ("adapter_model.safetensors", "recipe.json")
    assert all((out / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rung", "ppo"], "unknown rung 'ppo'; choose one of refusals, rephrase, metatags, all"),
        (["--rung", ""], "unknown rung ''"),
        (["--rung", "lab", "--out", "{full}"], "unknown rung 'lab'"),
        (["--out", "{full}"], "is not empty: name a new folder"),
        (["--out", "{file}"], "is not empty: name a new folder"),
        (["--max-steps", "0"], "max_steps is 0; 1 at least"),
        (["--learning-rate", "0"], "learning_rate is 0.0; it must be above 0"),
        (["--rung", "dpo", "--beta", "-1"], "beta is -1.0; it must be above 0"),
        (["--strength", "nan"], "strength is nan"),
        ([], "unknown model 'none'"),
    ],
)
def test_a_mistake_ends_in_one_line(tmp_path: Path, more: list[str], said: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    places = {"full": str(tmp_path / "full"), "file": str(tmp_path / "file")}
    arguments = ["tune", "none", "--out", str(tmp_path / "new"), *(m.format(**places) for m in more)]
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    with_json = call(*arguments, "--json")
    assert with_json.exit_code == 2
    assert said in json.loads(with_json.stdout)["error"]
    assert not (tmp_path / "new").exists()


def test_help_names_every_rung() -> None:
    shown = succeed("tune", "--help")
    assert all(f"\n  {rung} " in shown for rung in RUNGS)


def test_the_ladder_is_a_preset_of_the_base_and_every_rung() -> None:
    config: Any = load_config("ladder")
    assert list(config.systems) == ["smollm2-135m", *(f"smollm2-135m+{rung}" for rung in RUNGS)]
    assert config.judges == load_config(None).judges
    assert config.recipe == load_config(None).recipe
    assert "ladder" in succeed("models", "--json")["presets"]
