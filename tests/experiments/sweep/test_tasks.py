"""Dose curves that workers measure, one each, are those of the sequential run; what is there is not measured again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.remote import driver
from mechsafety.experiments.status import run_status
from mechsafety.experiments.sweep import work as sweep_work
from mechsafety.experiments.sweep.config import SweepConfig
from mechsafety.experiments.sweep.experiment import run_sweep
from mechsafety.sweeps import doses
from tests import in_process_ray
from tests.prompt_sets import small_prompts, write_csv

FIELDS = {
    **{"positions": (-1,), "layers": (1, 2), "fit": 40, "validation": 4, "confirm": 0, "resamples": 2},
    **{"doses": ("alpha",), "dose_prompts": 2, "controls": 1, "max_new_tokens": 2},
    **{"device": "cpu", "dtype": "float32"},
}


def files(run: Path) -> dict[str, bytes]:
    kinds = ("csv", "parquet", "safetensors", "jsonl")
    paths = [path for kind in kinds for path in run.rglob(f"*.{kind}")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def test_curves_of_workers_are_those_of_the_sequential_run(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process_ray.put_in(monkeypatch)
    csv = write_csv(small_prompts(40), tmp_path / "small.csv")
    config = SweepConfig(model=str(tiny_folder("llama")), prompts=str(csv), **FIELDS)
    elsewhere = config.model_copy(update={"engine": "ray"})
    whole = run_sweep(config, tmp_path / "whole").path
    measure, measured = doses._Baseline.measure, list[str]()

    def breaks(self: doses._Baseline, edit: object, keep: object, name: str) -> doses.Measures:
        if name == "alpha|1|control-1" and len(measured) < 11:
            raise MechsafetyError("pretended")
        measured.append(name)
        return measure(self, edit, keep, name)  # type: ignore[arg-type]

    monkeypatch.setattr(doses._Baseline, "measure", breaks)
    choose, asked = sweep_work.treated_as_labelled, list[str]()

    def counted(*given: Any, **how: Any) -> Any:
        asked.append("fit prompts")
        return choose(*given, **how)

    monkeypatch.setattr(sweep_work, "treated_as_labelled", counted)
    with pytest.raises(MechsafetyError, match="pretended"):
        run_sweep(elsewhere, tmp_path / "run")
    done = {name: (one["done"], one["known"]) for name, one in run_status(tmp_path / "run")["stages"].items()}
    assert done["select"] == (1, 1)
    assert done["doses"] == (1, 2)
    assert measured[0] == "unedited"
    measured.append("")
    run = run_sweep(elsewhere, tmp_path / "run")
    assert files(run.path) == files(whole)
    assert len(asked) == 1
    assert [(one["done"], one["known"]) for one in run_status(whole)["stages"].values()] == [(1, 1), (2, 2)]
    named = [name for name in measured if name]
    assert len(named) == len(set(named)) == len(run.to_frame("doses"))


def test_a_sweep_without_dose_curves_runs_in_this_process_with_all_its_threads(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "processes", None)
    csv = write_csv(small_prompts(4), tmp_path / "small.csv")
    fields = FIELDS | {"doses": (), "fit": 2, "validation": 2, "workers": 4, "fit_on": "labels"}
    heard = list[str]()
    config = SweepConfig(model=str(tiny_folder("llama")), prompts=str(csv), **fields)
    run = run_sweep(config, tmp_path / "run", say=heard.append)
    assert "sweep has no tasks of its own, and runs in this process" in heard
    assert run.manifest["engine"] == [{"engine": "local", "threads": torch.get_num_threads()}]
