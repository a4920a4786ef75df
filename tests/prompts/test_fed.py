"""Every experiment says that a prompt does not fit in the window of one of its systems before it loads any weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.anatomy.config import AnatomyConfig
from mechsafety.experiments.anatomy.experiment import run_anatomy
from mechsafety.experiments.comparison.experiment import run_comparison
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.ladder.experiment import run_ladder
from mechsafety.experiments.regions.config import RegionsConfig
from mechsafety.experiments.regions.experiment import run_regions
from mechsafety.experiments.robustness.config import RobustnessConfig
from mechsafety.experiments.robustness.experiment import run_robustness
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.experiments.sweep.config import SweepConfig
from mechsafety.experiments.sweep.experiment import run_sweep
from mechsafety.models import loading as models
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.runs.folder import read_run
from tests.architectures import save_architecture
from tests.prompt_sets import small_prompts, write_csv

pytestmark = pytest.mark.usefixtures("unpublished")

Start = Callable[[str, str, str, Path], object]
ON: dict[str, Any] = {"dtype": "float32", "device": "cpu"}

STARTS: dict[str, Start] = {
    "study": lambda a, b, p, out: run_study(
        StudyConfig(systems=(a, b), prompts=p, anchors=p, judges=("rules",), max_new_tokens=4, **ON), out
    ),
    "compare": lambda a, b, p, out: run_comparison([a, b], load_prompts(p), out=out, seed=0, **ON),
    "ladder": lambda a, b, p, out: run_ladder(
        LadderConfig(systems=(a, b), prompts=p, counts=(1,), max_new_tokens=4, **ON), out
    ),
    "anatomy": lambda a, b, p, out: run_anatomy(AnatomyConfig(base=a, tuned=b, prompts=p, **ON), out),
    "regions": lambda _, b, p, out: run_regions(
        RegionsConfig(model=b, prompts=p, max_new_tokens=4, **ON), out
    ),
    "robustness": lambda _, b, p, out: run_robustness(
        RobustnessConfig(model=b, prompts=p, max_new_tokens=4, **ON), out
    ),
    "sweep": lambda _, b, p, out: run_sweep(SweepConfig(model=b, prompts=p, **ON), out),
}
WITH_OPTION = {"study", "sweep"}


class Loading(Exception):
    """Weights are about to be loaded."""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], object]:
    def loading(*_: object, **__: object) -> None:
        raise Loading

    def run(experiment: str, window: int) -> object:
        large = save_architecture(tmp_path / "large", "gpt2", n_positions=256)
        small = save_architecture(tmp_path / "small", "gpt2", n_positions=window)
        prompts = write_csv(small_prompts(6), tmp_path / "prompts.csv")
        monkeypatch.setattr(models, "load_weights", loading)
        return STARTS[experiment](str(large), str(small), str(prompts), tmp_path / "run")

    return run


@pytest.mark.parametrize("experiment", STARTS)
def test_what_does_not_fit_is_reported_before_any_weights_are_loaded(
    start: Callable[[str, int], object], experiment: str
) -> None:
    with pytest.raises(MechsafetyError, match=r"small: .*window of 6 tokens") as raised:
        start(experiment, 6)
    # Cutting is offered by the experiments that can.
    assert ("truncate_prompts=True" in str(raised.value)) == (experiment in WITH_OPTION)


@pytest.mark.parametrize("experiment", STARTS)
def test_control_what_fits_goes_on_to_the_weights(
    start: Callable[[str, int], object], experiment: str
) -> None:
    with pytest.raises(Loading):
        start(experiment, 256)


RECORDED = {
    "rendered",
    "truncated_prompts",
    "control_tokens",
    "overridden_generation_defaults",
    "shared_tokens",
}


@pytest.mark.parametrize("experiment", ["compare", "ladder", "robustness"])
def test_every_experiment_records_the_same_of_what_was_read(experiment: str, tmp_path: Path) -> None:
    begins = "tell me about the river and write a list of the garden : "
    template = f"{{% for m in messages %}}{begins}{{{{ m['content'] }}}} \n{{% endfor %}}answer :"
    large, other = (
        save_architecture(tmp_path / f"m{seed}", "gpt2", seed=seed, template=template, n_positions=1024)
        for seed in (0, 1)
    )
    told = small_prompts(12)
    breaking = next(iter(told.report.harmful))
    marked = PromptSet(tuple(replace(p, text=f"{p.text} <eos>") if p is breaking else p for p in told))
    prompts = write_csv(marked, tmp_path / "prompts.csv")
    STARTS[experiment](str(large), str(other), str(prompts), tmp_path / "run")
    records = read_run(tmp_path / "run").manifest["fed"]
    assert records
    for record in records.values():
        assert set(record) == RECORDED
        assert record["control_tokens"] == {"n_prompts": 1, "first": breaking.id, "escaped": False}
        assert record["shared_tokens"] == "run once"
