"""A regions run from its configuration to its tables: every part, resumed to the same tables, wrong input told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from mechsafety import region_examples, region_followups, region_work
from mechsafety.errors import MechsafetyError
from mechsafety.region_config import PARTS, RegionsConfig, State, planned_states
from mechsafety.region_runs import run_regions
from mechsafety.robustness.outcomes import OUTCOME_COLUMNS
from mechsafety.robustness.utility import UTILITY_COLUMNS
from mechsafety.runs import read_run
from tests.prompt_sets import small_prompts, write_csv


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    return write_csv(small_prompts(6), tmp_path / "prompts.csv")


@pytest.fixture
def all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model refuses nothing: let every answer count as what was wanted."""
    monkeypatch.setattr(region_examples, "judged_as", lambda completions, _: {c.id for c in completions})
    few = region_work.benign_passages()[:3]
    monkeypatch.setattr(region_work, "benign_passages", lambda: few)
    questions = region_work.benign_choices()[:4]
    monkeypatch.setattr(region_work, "benign_choices", lambda: questions)


def small(model: str, prompts: Path, **changed: Any) -> RegionsConfig:
    fields: dict[str, Any] = {
        "model": model,
        "prompts": str(prompts),
        "parts": PARTS,
        "examples": 4,
        "set_differences": ((20.0, 20.0),),
        "projections": ((0.5, 0.7),),
        "top_safety": (10.0,),
        "heads": 2,
        "rank": 4,
        "draws": 1,
        "controls": 1,
        "finetuning": (2,),
        "frozen": (50.0,),
        "limit": 3,
        "max_new_tokens": 3,
        "answer_tokens": 6,
        "dtype": "float32",
        "device": "cpu",
    }
    return RegionsConfig(**fields | changed)


@pytest.mark.usefixtures("all_kept")
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_part_and_the_same_tables_after_an_interruption(
    tiny_folder: Callable[..., Path],
    prompts_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
) -> None:
    config = small(str(tiny_folder(architecture)), prompts_file)
    whole = run_regions(config, tmp_path / "whole")
    assert set(whole.tables) == {
        *("structure", "subspaces", "heads", "tradeoff", "attacks", "links", "link_effects", "freezing")
    }
    tradeoff = whole.tables["tradeoff"]
    assert [(r.removal, r.setting, r.control) for r in tradeoff.itertuples()] == [
        (s.removal, s.setting, s.control) for s in planned_states(config)
    ]
    assert set(OUTCOME_COLUMNS) | set(UTILITY_COLUMNS) <= set(tradeoff.columns)
    assert tradeoff["share"].iloc[0] == 0
    assert (tradeoff["share"].iloc[1:] > 0).all()
    pairs = tradeoff[tradeoff["control"] != "model"].pivot(
        index=["removal", "setting"], columns="control", values="share"
    )
    same = pairs[pairs.index.get_level_values("removal") != "heads"]
    assert same["removed"].to_numpy() == pytest.approx(same["random"].to_numpy())

    # Killed at the third state and again among what follows the sweep.
    measured = region_work.RegionWork._measured_state
    calls: list[State] = []

    def dying(work: Any, state: State) -> dict[str, Any]:
        calls.append(state)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(work, state)

    monkeypatch.setattr(region_work.RegionWork, "_measured_state", dying)
    with pytest.raises(KeyboardInterrupt):
        run_regions(config, tmp_path / "cut")
    links = region_followups.links

    def interrupted(*_: Any) -> pd.DataFrame:
        raise KeyboardInterrupt

    monkeypatch.setattr(region_followups, "links", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_regions(config, tmp_path / "cut")
    done = len(calls)
    assert done == len(planned_states(config)) + 1  # the one that was cut was done again, no other
    monkeypatch.setattr(region_followups, "links", links)
    run_regions(config, tmp_path / "cut")
    assert len(calls) == done
    for name in whole.tables:
        assert (tmp_path / "cut" / f"{name}.csv").read_bytes() == (
            tmp_path / "whole" / f"{name}.csv"
        ).read_bytes(), name
    assert read_run(tmp_path / "cut").manifest["sweet_spot"]["explanation"]
    assert whole.sweet_spot
    assert "Regions" in whole._repr_html_()


def test_states_are_planned_with_draws_and_matched_controls() -> None:
    config = RegionsConfig(
        model="m",
        parts=("sweep",),
        set_differences=((1, 2),),
        projections=(),
        top_safety=(),
        draws=2,
        controls=3,
    )
    states = planned_states(config)
    assert [(s.control, s.draw) for s in states] == [
        ("model", 0),
        *[("removed", draw) for draw in (0, 1)],
        *[("random", seed) for seed in (0, 1, 2)],
    ]
    assert {s.setting for s in states[1:]} == {"p=1 q=2"}
    assert len({s.key for s in states}) == len(states)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"set_differences": ((0, 1),)}, "percent, above 0"),
        ({"set_differences": ((1, 101),)}, "at most 100"),
        ({"top_safety": (0.0,)}, "no percent above 0"),
        ({"parts": ("regions",)}, "structure"),
        ({"examples": 1}, "greater than or equal to 2"),
    ],
)
def test_wrong_configurations(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RegionsConfig(**{"model": "m"} | fields)


@pytest.mark.usefixtures("all_kept")
def test_overlapping_prompts_and_missing_splits(
    tiny_folder: Callable[..., Path], prompts_file: Path, tmp_path: Path
) -> None:
    folder = str(tiny_folder("llama"))
    table = pd.read_csv(prompts_file)
    no_report = tmp_path / "no_report.csv"
    table[table["split"] != "report"].to_csv(no_report, index=False)
    with pytest.raises(MechsafetyError, match="no harmful prompts in split 'report'"):
        run_regions(small(folder, no_report), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    overlapping = tmp_path / "overlapping.csv"
    fit = table[table["split"] == "fit"]
    shouted = fit.assign(split="report", id="r-" + fit["id"], text=fit["text"].str.upper() + "!")
    pd.concat([table[table["split"] != "report"], shouted]).to_csv(overlapping, index=False)
    with pytest.raises(MechsafetyError, match="are evaluation prompts too"):
        run_regions(small(folder, overlapping), tmp_path / "b")
    too_many = small(folder, prompts_file, examples=40)
    with pytest.raises(MechsafetyError, match="40 safety examples need as many harmful prompts"):
        run_regions(too_many, tmp_path / "c")
