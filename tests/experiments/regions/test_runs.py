"""A regions run from its configuration to its tables: every part, resumed to the same tables, wrong input told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.regions import followups as region_followups
from mechsafety.experiments.regions import work as region_work
from mechsafety.experiments.regions.config import PARTS, RegionsConfig, State, planned_states
from mechsafety.experiments.regions.experiment import run_regions
from mechsafety.experiments.regions.tasks import RegionTasks
from mechsafety.experiments.status import run_status
from mechsafety.prompts.columns import SPLITS
from mechsafety.regions import own_examples as region_examples
from mechsafety.robustness.outcomes import OUTCOME_COLUMNS
from mechsafety.robustness.utility import UTILITY_COLUMNS
from mechsafety.runs.folder import open_run, read_run
from tests import in_process_ray
from tests.cli.test_base import judged_anew
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
        "matched_controls": 1,
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
@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
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
        *("structure", "subspaces", "heads", "tradeoff", "attacks", "links", "link_effects", "freezing"),
        "verdicts",
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
    weights = same.drop(index="orthogonal_projection", level="removal")
    assert weights["removed"].to_numpy() == pytest.approx(weights["matched"].to_numpy())
    # Matched controls are as large as the removal too, plain ones are not.
    sizes = tradeoff[tradeoff["removal"].isin(["set_difference", "top_safety"])].pivot(
        index=["removal", "setting"], columns="control", values="mean_weight"
    )
    assert sizes["matched"].to_numpy() == pytest.approx(sizes["removed"].to_numpy(), rel=0.02)
    assert (sizes["random"] < 0.9 * sizes["removed"]).all()
    assert tradeoff["energy"].iloc[0] == 0
    assert (tradeoff["energy"].iloc[1:] > 0).all()

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
    links = region_followups.measure_links

    def interrupted(*_: Any) -> pd.DataFrame:
        raise KeyboardInterrupt

    # States and tables are then tasks of two workers, what follows is one.
    monkeypatch.setattr(region_followups, "measure_links", interrupted)
    in_process_ray.put_in(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_regions(config.model_copy(update={"engine": "ray"}), tmp_path / "cut")
    stages = run_status(tmp_path / "cut")["stages"]
    assert {name: (one["done"], one["known"]) for name, one in stages.items() if name != "tables"} == {
        **{"examples": (1, 1), "scored": (2, 2), "heads": (1, 1)},
        "state": (len(planned_states(config)), len(planned_states(config))),
    }
    done = len(calls)
    assert done == len(planned_states(config)) + 1  # the one that was cut was done again, no other
    monkeypatch.setattr(region_followups, "measure_links", links)
    run_regions(config, tmp_path / "cut")
    assert len(calls) == done
    for name in whole.tables:
        file = whole.experiment.tables[name]
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), name
    assert read_run(tmp_path / "cut").manifest["sweet_spot"]["explanation"]
    assert whole.manifest["sweet_spot"]["explanation"]
    assert "Regions" in whole._repr_html_()

    # The verdict on every report prompt in every state that was judged, and the table's shares are theirs.
    verdicts = whole.tables["verdicts"]
    assert not verdicts.duplicated([*region_work.ANSWER_KEYS, "id"]).any()
    of_model = verdicts[(verdicts["control"] == "model") & (verdicts["part"] == "outcomes")]
    refused = (of_model[of_model["label"] == "harmful"]["verdict"] == "refusal").mean()
    assert refused == pytest.approx(tradeoff["refused"].iloc[0], nan_ok=True)

    # Every answer is kept once, however the run was made, and another judge reads them all.
    kept = whole.responses()
    assert list(kept.columns) == [*region_work.ANSWER_KEYS, "id", "label", "prompt", "response"]
    assert not kept.duplicated([*region_work.ANSWER_KEYS, "id"]).any()
    asked = kept.groupby("part")["id"].size().to_dict()
    report = 6  # three prompts of each label
    assert asked["outcomes"] == report * len(tradeoff)
    assert asked["links"] == report * 8
    assert asked["freezing"] == report * len(whole.tables["freezing"])
    assert (asked["attack vanilla"], asked["attack decoding"]) == (3 * 4, 3 * 5 * 4)
    region = list(dict.fromkeys(whole.tables["attacks"]["system"]))[1]
    assert list(dict.fromkeys(whole.tables["attacks"]["system"])) == [
        *("model", region, f"{region}, random weights of the same number"),
        f"{region}, random weights of the same number and size",
    ]
    # Each set that is kept in fine-tuning stands beside one of its number, and one of its sizes too.
    kept_sets = whole.tables["freezing"].groupby("frozen", sort=False)["frozen_share"].first()
    assert len({name.split()[0] for name in kept_sets.index} & {"random", "matched"}) == 2
    top = next(name for name in kept_sets.index if name.startswith("top "))
    shares = [kept_sets[top.replace("top", kind)] for kind in ("top", "random", "matched")]
    assert shares == pytest.approx(shares[:1] * 3)
    effects = whole.tables["link_effects"].set_index("state")
    assert {"matched removed", "matched removed then ablated"} <= set(effects.index)
    name = "responses.parquet"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("generated again")

    for module in ("judges.outcomes", "robustness.attacks", "robustness.decoding"):
        monkeypatch.setattr(f"mechsafety.{module}.generate", fail)
    rates = judged_anew(tmp_path / "cut")
    assert rates["n"].sum() == 2 * len(kept)


@pytest.mark.usefixtures("all_kept")
def test_weights_are_scored_on_fit_prompts_and_links_are_read_on_report_prompts(
    tiny_folder: Callable[..., Path], prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[str]] = {}
    effects = region_followups.link_effects

    def watched(*arguments: Any, fit: Any, held_out: Any, **options: Any) -> pd.DataFrame:
        asked["fit"], asked["held_out"] = ({p.text for p in some} for some in (fit, held_out))
        return effects(*arguments, fit=fit, held_out=held_out, **options)

    monkeypatch.setattr(region_followups, "link_effects", watched)
    config = small(str(tiny_folder("llama")), prompts_file, parts=("links",), examples=6, limit=None)
    run = run_regions(config, tmp_path / "run")
    parts = [pd.read_parquet(p) for p in (run.path / "parts" / "examples").glob("*.parquet")]
    calibrated = {json.loads(prompt) for part in parts for prompt in part["prompt"]}
    split = {name: {p.text for p in small_prompts(6).where(split=name)} for name in SPLITS}
    assert calibrated == split["fit"]  # six of each label: all of them, and no other
    assert asked == {"fit": split["fit"], "held_out": split["report"]}
    assert not calibrated & asked["held_out"]
    effects_table = run.tables["link_effects"].dropna(subset=["auroc_n"])
    assert set(effects_table["auroc_n"]) == {float(len(split["report"]))}


def test_a_sweet_spot_that_is_chosen_on_report_prompts_reports_it(
    tiny_folder: Callable[..., Path], prompts_file: Path, tmp_path: Path
) -> None:
    config = small(str(tiny_folder("llama")), prompts_file, parts=("sweep",), projections=(), top_safety=())
    model, removed = planned_states(config)[:2]
    columns = {"draw": 0, "harmful_n": 50, "degenerate": 0.0, "harmless_degenerate": 0.0, "accuracy": 0.5}
    rows = [
        {"removal": s.removal, "setting": s.setting, "control": s.control, "share": share, "refused": refused}
        | {"refused_low": refused, "complied": 1 - refused, **columns}
        for s, share, refused in ((model, 0.0, 0.9), (removed, 0.1, 0.1))
    ]
    with open_run(tmp_path / "run", config={}) as run:
        work = object.__new__(region_work.RegionWork)  # no model is needed to choose
        work.run, work.config = run, config
        assert region_followups.chosen_state(work, pd.DataFrame(rows)) == removed
        assert "chosen on the report prompts" in run.manifest["sweet_spot"]["explanation"]
        none = pd.DataFrame(rows).assign(refused=0.9)
        region_followups.chosen_state(work, none)
        assert "chosen on the report prompts" not in run.manifest["sweet_spot"]["explanation"]


def test_states_are_planned_with_draws_and_matched_controls() -> None:
    config = RegionsConfig(
        model="m",
        parts=("sweep",),
        set_differences=((1, 2),),
        projections=(),
        top_safety=(),
        draws=2,
        controls=3,
        matched_controls=2,
    )
    states = planned_states(config)
    assert [(s.control, s.draw) for s in states] == [
        ("model", 0),
        *[("removed", draw) for draw in (0, 1)],
        *[("random", seed) for seed in (0, 1, 2)],
        *[("matched", seed) for seed in (0, 1)],
    ]
    assert {s.setting for s in states[1:]} == {"p=1 q=2"}
    assert len({s.key for s in states}) == len(states)
    none = planned_states(config.model_copy(update={"matched_controls": 0}))
    assert none == [s for s in states if s.control != "matched"]


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
    with pytest.raises(MechsafetyError, match=said):
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
    with pytest.raises(MechsafetyError, match="splits must not overlap"):
        run_regions(small(folder, overlapping), tmp_path / "b")
    too_many = small(folder, prompts_file, examples=40)
    with pytest.raises(MechsafetyError, match="40 safety examples need as many harmful prompts"):
        run_regions(too_many, tmp_path / "c")


def test_tasks_of_a_stored_run_are_known_where_its_model_is_not(tmp_path: Path) -> None:
    here = "smollm2-135"  # a folder where the run was made
    with pytest.raises(MechsafetyError, match=f"unknown model '{here}'"):
        RegionsConfig(model=here)
    with open_run(tmp_path, config={"model": here}) as run:
        tasks = RegionTasks.stored_tasks(run)
    assert {task.model for task in tasks} == {here}
