"""A layer-by-layer analysis of one model as an experiment: what ``mechsafety sweep`` runs.

Fit prompts -> residual streams at the named positions -> directions of every method -> validation prompts -> scores of
every (method, position, layer) -> selection and its stability -> profile, lens and, where asked, dose curves of the
selected direction on report prompts -> tables. Every candidate and every dose is kept when it is done; an interrupted
run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import SELECTION_RULES
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.experiments.base import Experiment, Read
from mechsafety.experiments.result import Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.sweep.config import SweepConfig
from mechsafety.experiments.sweep.figures import sweep_figures
from mechsafety.experiments.sweep.findings import drawn_again, sweep_findings
from mechsafety.experiments.sweep.tasks import SweepTasks
from mechsafety.experiments.sweep.work import VERDICTS
from mechsafety.prompts.columns import Purpose
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.prompts.splits import require_splits
from mechsafety.runs.folder import RunFolder
from mechsafety.sweeps.openings import ANSWER_TOKENS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


_LOWEST = 12


class LayerSweep(SweepTasks, Experiment[SweepConfig]):
    """Directions of the fit prompts, scored on the validation prompts; dose curves on the report prompts."""

    kind = "sweep"
    tables: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "sweep": "sweep.parquet",
            "profile": "profile.csv",
            "lens": "lens.parquet",  # tokens as they are; a CSV cell may not begin with "="
            "stability": "stability.csv",
            "doses": "doses.csv",
            VERDICTS: f"{VERDICTS}.parquet",
        }
    )
    long = frozenset({VERDICTS})
    answer_keys = ("family", "dose", "direction")

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config)
        if config.rule not in SELECTION_RULES:
            raise MechsafetyError(f"rule {config.rule!r} is not one of {', '.join(SELECTION_RULES)}")
        self.prompts = load_prompts(config.prompts)
        purposes: list[Purpose] = ["estimate", "choose", *(["judge"] if config.doses else [])]
        require_splits(self.prompts, purposes, name=config.prompts)

    def prompt_sets(self) -> Sequence[PromptSet]:
        return [self.prompts]

    def bound(self) -> Mapping[str, Any]:
        return {"prompts_sha256": self.prompts.sha256()}

    def models(self) -> Sequence[str]:
        return [self.config.model]

    def reads(self) -> Sequence[Read]:
        """Fit, validation and, for dose curves, report prompts."""
        config, prompts = self.config, self.prompts
        read = [
            (
                prompts.to_estimate.sample(config.fit, seed=config.seed),
                ANSWER_TOKENS if config.fit_on == "behaviour" else 0,
            ),
            (
                prompts.to_choose.sample(config.validation, seed=config.seed),
                max(ANSWER_TOKENS, config.max_new_tokens if config.confirm else 0),
            ),
        ]
        if config.doses:
            report = prompts.to_judge.sample(config.dose_prompts, seed=config.seed)
            read.append((report, config.max_new_tokens))
        return read

    @classmethod
    def read_tables(cls, run: RunFolder) -> dict[str, pd.DataFrame]:
        tables = super().read_tables(run)
        if "stability" in tables:
            tables["stability"] = tables["stability"].astype({"position": "Int64", "layer": "Int64"})
        return tables

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        return sweep_figures(result.tables, result.manifest["selected"])

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        return sweep_findings(result.tables, result.manifest)

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        selected = result.manifest["selected"]
        return {
            "selected": {name: selected[name] for name in ("selection", "explanation", "method")},
            "stability": result.tables["stability"],
            "scores": result.tables["sweep"],
        }

    @classmethod
    def text(cls, result: Result) -> str:
        best = result.tables["sweep"].sort_values("bypass").head(_LOWEST).round(3).to_string(index=False)
        return f"lowest bypass:\n{best}\n\n{drawn_again(result.tables['stability'])}"

    @classmethod
    def next_steps(cls, result: Result) -> list[str]:
        edit = result.path / "edit.safetensors"
        again = f"mechsafety generate {result.config['model']} --edit {edit} --limit 10"
        return [again, *super().next_steps(result)]


@with_progress
def run_sweep(
    config: SweepConfig,
    out: str | Path,
    *,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> Result:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    Raises :class:`MechsafetyError` for an unknown rule, a prompt set without fit or validation prompts of both
    labels, positions or layers that do not exist, and whatever loading the model raises.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> config = ms.SweepConfig(
        ...     model="smollm2-135m", prompts="own.csv", positions=(-1,), layers=(1, 2), fit=8, fit_on="labels",
        ...     validation=4, confirm=0, doses=("alpha",), dose_prompts=2, controls=1, max_new_tokens=3, resamples=5,
        ... )
        >>> ms.run_sweep(config, "runs/sweep", progress=False).tables["sweep"]["layer"].tolist()
        [1, 2]
    """
    return run_experiment(LayerSweep(config), out, say=say, allow_other_versions=allow_other_versions)
