"""The preset of the granular study runs whole on tiny models of its systems, in both readings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechsafety.experiments.study.config import StudyConfig, load_config
from mechsafety.experiments.study.experiment import StudyResult, run_study
from tests.paper_systems import SYSTEMS, save_system
from tests.prompt_sets import small_prompts, write_csv

pytestmark = pytest.mark.usefixtures("unpublished")

SMOLLM2 = "HuggingFaceTB/SmolLM2-1.7B-Instruct"
ONE_OF_EACH = [*list(SYSTEMS)[5:]]
"""The last rung, whose form the other five share, and the four baselines."""


def _run(tmp_path: Path, systems: list[str], **changes: Any) -> tuple[StudyConfig, StudyResult]:
    """The preset on fewer prompts and tokens; everything else is as it stands there."""
    made = {name: str(save_system(tmp_path, name, seed=seed)) for seed, name in enumerate(systems)}
    prompts = str(write_csv(small_prompts(4), tmp_path / "small.csv"))
    preset = load_config("safety-pretraining")
    judges = [judge.replace(SMOLLM2, made[SMOLLM2]) for judge in preset.judges]
    small = {
        "limit": 2,
        "max_new_tokens": 4,
        "confirm": 1,
        "controls": 1,
        "dtype": "float32",
        "device": "cpu",
    }
    given = {"systems": list(made.values()), "prompts": prompts, "anchors": prompts, "judges": judges}
    config = load_config("safety-pretraining", {**small, **given, **changes})
    return config, run_study(config, tmp_path / "run")


def _require_whole(config: StudyConfig, result: StudyResult) -> None:
    assert result.failed == {}
    rates = result.to_frame("rates")
    cells = pd.MultiIndex.from_product(
        [config.systems, ["original", "edited"], ["harmful", "harmless"], config.judges]
    )
    assert set(rates.set_index(["system", "arm", "label", "judge"]).index) == set(cells)
    assert (rates["n"] == 2).all()


def _chat(result: StudyResult, system: str) -> dict[str, Any]:
    (record,) = (
        m for spec, m in result.manifest["models"].items() if spec.endswith(system.rpartition("/")[2])
    )
    return record["chat"]


@pytest.mark.slow
def test_the_paper_as_its_text_describes_it(tmp_path: Path) -> None:
    config, result = _run(tmp_path, list(SYSTEMS))
    assert len(config.systems) == 10
    _require_whole(config, result)
    sites = {facts["edit"]["description"] for facts in result.manifest["systems"].values()}
    assert all("sites=resid_post" in site for site in sites)
    assert _chat(result, "Qwen/Qwen3-14B")["thinking"] == "off: enable_thinking=false"
    for name in SYSTEMS:
        if not name.startswith("Qwen"):
            assert "does not think" in _chat(result, name)["thinking"]


def test_the_paper_as_its_released_commands_run(tmp_path: Path) -> None:
    config, result = _run(tmp_path, ONE_OF_EACH, recipe="granular-release")
    _require_whole(config, result)
    for facts in result.manifest["systems"].values():
        assert facts["selection"]["layer"] == 4
        assert facts["fit_prompts_used"] == {"harmful": 8, "harmless": 8}
