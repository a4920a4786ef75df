"""A dry run says what each system is and takes, and names those of which nothing is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mechsafety.cli import main
from mechsafety.experiments.study.config import StudyConfig, load_config
from mechsafety.experiments.study.costs import Gpu
from mechsafety.experiments.study.plan import plan_study, plan_text
from tests.paper_systems import SYSTEMS, save_system

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(main, ["study", *arguments, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_papers_systems_each_have_a_row() -> None:
    found = invoke("safety-pretraining")
    assert [row["system"] for row in found["systems"]] == list(SYSTEMS)
    assert found["unknown"] == {}
    rows = {row["system"]: row for row in found["systems"]}
    assert [name for name, row in rows.items() if row["gated"]] == [LLAMA]
    assert rows["Qwen/Qwen3-14B"]["thinking"] == "enable_thinking=false"
    assert {row["architecture"] for row in rows.values()} == {
        *("LlamaForCausalLM", "GlmForCausalLM", "Qwen3ForCausalLM")
    }
    largest = rows[LLAMA]["estimate"]
    assert largest["bytes"]["weights"] == 2 * 70_553_706_496
    assert largest["gpus"] == 3 == found["estimated_gpus"]
    hours = [row["estimate"]["gpu_hours"] for row in found["systems"]]
    assert set(hours[0]) == {
        *("directions", "sweep", "confirmation", "original", "edited", "random", "self-judgement"),
        *("judges", "total"),
    }
    assert found["estimated_gpu_hours"] == pytest.approx(sum(h["total"] for h in hours))
    assert {row["thinking"] for row in invoke("safety-pretraining", "--thinking", "model")["systems"]} == {
        "left to the model"
    }
    # The other reading selects nothing.
    release = invoke("safety-pretraining", "--recipe", "granular-release")["systems"]
    assert all(row["estimate"]["gpu_hours"]["confirmation"] == 0 for row in release)


def test_larger_gpus_are_fewer_and_a_smaller_share_takes_longer() -> None:
    plain = invoke("safety-pretraining")
    large = invoke("safety-pretraining", "--gpu-memory", "141")
    assert (plain["estimated_gpus"], large["estimated_gpus"]) == (3, 2)
    slow = invoke("safety-pretraining", "--gpu-share", "0.15")
    assert slow["gpu"]["share"] == 0.15
    assert slow["estimated_gpu_hours"] > 1.5 * plain["estimated_gpu_hours"]


def test_what_is_not_known_does_not_stop_the_rest(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "no such thing"}')
    here = save_system(tmp_path, "Qwen/Qwen3-14B")
    config = StudyConfig(
        systems=("nobody/never-made", str(broken), str(here), "smollm2-135m"),
        judges=("rules", "logit:nobody/judge", "endpoint:m@http://localhost:8000/v1"),
        template=None,
    )
    plan = plan_study(config, Gpu())
    assert [row.unknown is None for row in plan.rows] == [False, False, True, True]
    text = plan_text(plan)
    assert "unknown: nobody/never-made: model 'nobody/never-made' is neither on this machine" in text
    assert "its files on this machine" in text
    assert plan.rows[2].facts is not None
    assert plan.rows[2].facts.thinking == "enable_thinking=false"
    assert any("logit:nobody/judge: not in the estimate" in note for note in plan.notes)
    assert "judge endpoint:m@http://localhost:8000/v1: " in text
    assert "cost: give prices per million tokens" in text
    assert plan.hours > 0
    nothing = plan_study(config.model_copy(update={"systems": ("nobody/never-made",)}), Gpu())
    assert (nothing.hours, nothing.devices) == (0, 0)
    assert "unknown: nobody/never-made" in plan_text(nothing)


def test_judges_behind_addresses_are_priced_without_being_asked() -> None:
    """Each question counts once, whatever panels it is in; the first judge reads the random arms too."""
    priced, plain = "endpoint:a@http://h/v1;price_in=2;price_out=8", "endpoint:b@http://g/v1"
    judges = f"majority:(rules,{priced},phrases:wei),{priced},{plain},rules"
    line = [
        "--systems",
        "smollm2-135m,smollm2-135m+refusals",
        "--judges",
        judges,
        "--limit",
        "5",
        "--controls",
        "2",
    ]
    result = CliRunner().invoke(main, ["study", "--dry-run", *line, "--json"])
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)["endpoint_judges"]
    assert (first["judge"], second["judge"]) == (priced, plain)
    arms, draws, known = 2 * 2 * 10, 2 * 2 * 5, 2 * 20
    assert (first["questions"], second["questions"]) == (arms + draws + known, arms + known)
    assert first["cost"] == pytest.approx((2 * first["prompt_tokens"] + 8 * first["completion_tokens"]) / 1e6)
    assert second["cost"] is None
    assert first["prompt_tokens"] > 100 * first["questions"]


@pytest.mark.parametrize("how", ["--dry-run", "--print-config"])
def test_an_unknown_judge_is_refused_on_the_command_line_and_in_a_file(tmp_path: Path, how: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("judges: [rules, ruls]\n")
    for given in (["--judges", "rules,ruls"], [str(path)]):
        result = CliRunner().invoke(main, ["study", *given, how])
        assert (result.exit_code, "did you mean 'rules'" in result.stderr) == (2, True)


def test_judges_that_stay_loaded_take_memory_beside_every_other_system() -> None:
    config = load_config("safety-pretraining", {"judges": ("rules", "logit:Qwen/Qwen3-14B")})
    rows = {row.system: row.estimate for row in plan_study(config, Gpu()).rows}
    kept = {name: e.memory.judges for name, e in rows.items() if e}
    assert kept.pop("Qwen/Qwen3-14B") == 0
    assert set(kept.values()) == {2 * 14_768_307_200}


@pytest.mark.parametrize("value", ["0", "-1", "1.5"])
def test_a_share_is_above_0_and_at_most_1(value: str) -> None:
    result = CliRunner().invoke(main, ["study", "--dry-run", "--gpu-share", value])
    assert result.exit_code == 2
