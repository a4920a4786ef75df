"""Which experiments there are, and the run of any of them opened again."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.base import Experiment
from mechsafety.experiments.result import Result
from mechsafety.runs.folder import RunFolder, read_run

EXPERIMENTS: Mapping[str, str] = MappingProxyType(
    {
        "audit": "audit.experiment:PublishedAudit",
        "compare": "comparison.experiment:CheckpointComparison",
        "evaluate": ".integrations.harness_runs:LmEvaluation",
        "generate": "generation.experiment:Generation",
        "robustness": "robustness.experiment:Robustness",
        "anatomy": "anatomy.experiment:Anatomy",
        "lab": "lab.experiment:Lab",
        "lab-ladder": "lab.ladder:LabLadder",
        "ladder": "ladder.experiment:Ladder",
        "regions": "regions.experiment:Regions",
        "selfjudge": "selfjudgement.experiment:SelfJudging",
        "study": "study.experiment:Study",
        "sweep": "sweep.experiment:LayerSweep",
    }
)
"""By the kind in a run's configuration, where its experiment stands, from this package on."""


def experiment_of(run: RunFolder) -> type[Experiment[Any]]:
    """The experiment that made ``run``. Raises :class:`MechsafetyError` for a kind that has none."""
    kind = str(run.manifest["config"].get("kind", "study"))
    if kind not in EXPERIMENTS:
        raise MechsafetyError(f"run {str(run.path)!r} is of kind {kind!r}, which load_run does not open")
    module, _, name = EXPERIMENTS[kind].partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def load_run(path: str | Path | RunFolder) -> Result:
    """Open the run of any experiment, finished or not.

    Raises :class:`MechsafetyError` for a folder that is none, and for a kind that this version does not know.

    Returns:
        The run: its tables, figures, findings and report.

    Example:
        >>> run = ms.load_run("runs/study")
        >>> run.config["kind"]
        'study'
        >>> sorted(run.figures())[:2]
        ['judge-agreement', 'judge-effects']
    """
    run = path if isinstance(path, RunFolder) else read_run(as_path(path))
    experiment = experiment_of(run)
    return experiment.result_type(run.path, experiment)
