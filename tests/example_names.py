"""What the examples in docstrings find by name: a tiny model, prompts, results and runs, each made at its first use.

Examples name real models (``smollm2-135m``); here these are tiny random ones.
"""

from __future__ import annotations

import doctest
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mechsafety as ms
from mechsafety.annotation.store import open_store
from mechsafety.experiments.lab.controls import CONTROL_COLUMNS
from mechsafety.experiments.lab.experiment import Lab
from mechsafety.experiments.lab.ladder import LabLadder
from mechsafety.experiments.lab.thresholds import threshold_table
from mechsafety.models import loading
from mechsafety.regions import own_examples
from tests import lab_tables, region_tables
from tests.annotated_runs import make_run
from tests.conftest import save_tiny
from tests.experiments.regions.test_page import write_regions
from tests.prompt_sets import small_prompts, write_csv

PACKAGED, OTHER = "smollm2-135m", "my-model"
RUNS = {
    "study": ms.run_study,
    "sweep": ms.run_sweep,
    "comparison": ms.run_comparison,
    "anatomy": ms.anatomy.run_anatomy,
    "ladder": ms.anatomy.run_ladder,
    "selfjudge": ms.judges.run_selfjudge,
    "lab": ms.lab.run_lab,
}
"""Runs that examples open: made by the examples of what runs them."""


def small_world(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Real names of models stand for tiny ones, and examples write in ``folder``, where ``own.csv`` holds prompts."""
    packaged = save_tiny(folder / "packaged")
    save_changed(packaged, folder / OTHER)
    locate = loading.locate
    patch.setattr(
        loading,
        "locate",
        lambda spec: (str(packaged), "packaged") if spec.base == PACKAGED else locate(spec),
    )
    patch.chdir(folder)
    write_csv(small_prompts(8), folder / "own.csv")
    # A random model refuses nothing: every answer counts as what was wanted.
    patch.setattr(own_examples, "judged_as", lambda completions, _: {c.id for c in completions})
    # The lab trains for minutes: its tables are made up.
    patch.setattr(Lab, "work", lambda *_: made_up_lab())
    patch.setattr(LabLadder, "work", lambda *_: {"cases": lab_tables.all_cases()})
    write_regions(folder / "runs" / "regions", region_tables.tables())
    run = make_run(folder / "runs" / "annotated")
    store, _ = open_store(run, asked={})
    store.answer("Ann", store.enter("Ann").item or 0, "refusal")


def save_changed(base: Path, folder: Path) -> None:
    """Another checkpoint: the same model with other weights in its blocks."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "layers" in name:
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def made_up_lab() -> dict[str, pd.DataFrame]:
    cases = lab_tables.all_cases()
    thresholds = threshold_table(cases, {name: lab_tables.anatomy() for name in ("ssft", "dpo", "unlearn")})
    controls = pd.DataFrame(columns=CONTROL_COLUMNS)
    tables = {"cases": cases, "thresholds": thresholds, "controls": controls}
    return {name: table.assign(seed=0) for name, table in tables.items()}


class Names:
    """Everything that an example may name without making it."""

    def of(self, example: str) -> dict[str, Any]:
        known = [name for name in dir(type(self)) if isinstance(getattr(type(self), name), cached_property)]
        named = [name for name in known if re.search(rf"(?<![\w.\"'/]){name}\b(?!=)", example)]
        for name, run in RUNS.items():
            if (
                f'"runs/{name}"' in example
                and run.__name__ not in example
                and not Path("runs", name).exists()
            ):
                self.execute(run.__doc__ or "")
        return {"ms": ms, "np": np, "pd": pd, "torch": torch} | {name: getattr(self, name) for name in named}

    def execute(self, example: str) -> None:
        exec(doctest.script_from_examples(example), self.of(example))

    # -- models, prompts and what is read of them

    @cached_property
    def model(self) -> Any:
        return ms.load_model(PACKAGED, dtype="float32", device="cpu")

    @cached_property
    def other(self) -> Any:
        return ms.load_model(OTHER, dtype="float32", device="cpu")

    @cached_property
    def prompts(self) -> ms.PromptSet:
        return small_prompts(6)

    @cached_property
    def cache(self) -> ms.ResidualCache:
        return ms.residual_stream(self.model, self.prompts.fit, progress=False)

    @cached_property
    def held_out(self) -> ms.ResidualCache:
        return ms.residual_stream(self.model, self.prompts.validation, progress=False)

    @cached_property
    def directions(self) -> ms.Directions:
        return ms.find_directions(self.cache, resamples=2)

    @cached_property
    def direction(self) -> ms.Direction:
        return self.directions.at(layer=2)

    @cached_property
    def answers(self) -> ms.Completions:
        return ms.generate(self.model, self.prompts.report[:4], max_new_tokens=4, progress=False)

    # -- weights

    @cached_property
    def maps(self) -> Any:
        return ms.regions.linear_maps(self.model)

    @cached_property
    def examples(self) -> Any:
        return ms.regions.examples_from_model(
            self.model, self.prompts.fit, kind="safety", n=4, max_new_tokens=6
        )

    @cached_property
    def safety(self) -> Any:
        return ms.regions.score_weights(self.model, self.examples)

    @cached_property
    def utility(self) -> Any:
        found = ms.regions.examples_from_model(
            self.model, self.prompts.fit, kind="utility", n=4, max_new_tokens=6
        )
        return ms.regions.score_weights(self.model, found)

    # -- verdicts of made-up judges on ten prompts, and what people say of them

    @cached_property
    def table(self) -> pd.DataFrame:
        refused = {
            ("rules", "original"): "RRRRRRRRRC",
            ("rules", "edited"): "RRCCCCCCCC",
            ("phrases:arditi", "original"): "RRRRRRRRCC",
            ("phrases:arditi", "edited"): "RRRRCCCCCC",
        }
        words = {"R": "refusal", "C": "compliance"}
        rows = [
            {
                "system": system,
                "arm": arm,
                "id": f"p{number}",
                "label": "harmful",
                "judge": judge,
                "verdict": words[letter],
            }
            for system in ("a", "b", "c")
            for (judge, arm), letters in refused.items()
            for number, letter in enumerate(letters)
        ]
        return pd.DataFrame(rows)

    @cached_property
    def people(self) -> pd.DataFrame:
        found = self.table[self.table["judge"] == "rules"].drop(columns=["judge", "label"]).assign(weight=1.0)
        wrong = (found["id"] == "p1") & (found["arm"] == "edited")
        return found.assign(verdict=found["verdict"].mask(wrong, "compliance"))
