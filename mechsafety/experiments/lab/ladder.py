"""The safety-pretraining ladder in the lab as an experiment: what ``mechsafety lab ladder`` runs.

For each seed, six models from one initialisation are pretrained on the six mixtures of :data:`RUNGS`, each
gets the same short safety tuning, and ``mechsafety ladder`` then removes directions from all of them. A folder
``seed-N`` holds ``pretrained/RUNG``, ``rungs/RUNG``, the prompt sets and the answer key, and the ladder's run in
``ladder``; the first seed's report shows the other seeds too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pandas as pd

from mechsafety.core.arguments import as_path
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.engines.tasks import Task
from mechsafety.experiments.base import Experiment
from mechsafety.experiments.lab.config import LabConfig
from mechsafety.experiments.lab.models import pretrained, tuned
from mechsafety.experiments.lab.seeds import LabSeed, seed_folder, seed_key
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.ladder.experiment import Ladder, LadderResult, read_ladder, run_ladder
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.result import REPORT, Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.lab.mixtures import RUNGS, Rung
from mechsafety.models.hardware import resolve_device
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from mechsafety.pages.page import Page


class LabLadderResult(Result):
    """What every rung answers before and after its tuning (``cases``), and one ladder per seed."""

    @cached_property
    def ladders(self) -> dict[int, LadderResult]:
        """The ladders by seed; the first has the others beside it."""
        return {seed: read_ladder(ladder_folder(self.path, seed)) for seed in self.config["seeds"]}

    @property
    def first(self) -> LadderResult:
        return next(iter(self.ladders.values()))

    def publish(self) -> Path:
        """Write the figures and pages of every seed's ladder and of the run, whose page's path is returned."""
        for ladder in self.ladders.values():
            ladder.publish()
        return super().publish()


class LabLadder(Experiment[LabConfig], Parallel):
    """Six pretraining mixtures, the same safety tuning for each, then directions removed from all."""

    kind = "lab-ladder"
    tables: ClassVar[Mapping[str, str]] = {"cases": "cases.csv"}
    long = frozenset({"cases"})
    result_type = LabLadderResult

    def prepare(self, day: str, say: Progress) -> None:  # noqa: ARG002
        resolve_device(self.config.device)

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        seeds = LabSeed.each(session, self.config)
        for seed in seeds:
            for rung in RUNGS:
                _rung(seed, rung)
        # The first seed's last: its report shows the others, which must be there then.
        for seed in (*seeds[1:], seeds[0]):
            _ladder(seed, beside=seeds[1:] if seed is seeds[0] else ())
        return self.finish(session)

    def tasks(self, run: RunFolder) -> list[Task]:
        return _tasks(run, self.config.seeds)

    @classmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        return _tasks(run, [int(seed) for seed in run.manifest["config"]["seeds"]])

    def do(self, task: Task, session: Session) -> None:
        stage, key, *rungs = task.name
        seeds = LabSeed.each(session, self.config)
        (seed,) = [seed for seed in seeds if seed.key == key]
        if stage == "train":
            _rung(seed, cast("Rung", rungs[0]))
        else:
            _ladder(seed, beside=seeds[1:] if seed is seeds[0] else ())

    def finish(self, session: Session) -> Mapping[str, pd.DataFrame]:
        seeds = LabSeed.each(session, self.config)
        cases = [table for seed in seeds for rung in RUNGS for table in _cases(seed, rung)]
        return {"cases": pd.concat(cases, ignore_index=True)}

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        return as_lab_ladder(result).first.figures()

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        ladders = as_lab_ladder(result).ladders
        return [
            f"Seed {seed}: {sentence}" for seed, ladder in ladders.items() for sentence in ladder.findings
        ]

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        ladders = as_lab_ladder(result).ladders
        return {
            "reports": {seed: str(ladder.path / REPORT) for seed, ladder in ladders.items()},
            "breaking": {seed: ladder.tables["breaking"] for seed, ladder in ladders.items()},
            "cases": result.tables["cases"],
        }

    @classmethod
    def text(cls, result: Result) -> str:
        breaking = {s: ladder.tables["breaking"] for s, ladder in as_lab_ladder(result).ladders.items()}
        return "\n\n".join(
            f"seed {seed}\n{table.to_string(index=False, na_rep='-')}" for seed, table in breaking.items()
        )

    @classmethod
    def page(cls, result: Result, figures: Mapping[str, go.Figure]) -> Page:
        return Ladder.page(as_lab_ladder(result).first, figures)


@with_progress
def run_lab_ladder(
    config: LabConfig,
    out: str | Path,
    *,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> LabLadderResult:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> run = ms.lab.run_lab_ladder(ms.lab.LabConfig(preset="quick"), "runs/lab-ladder", progress=False)
        >>> sorted(run.tables)
        ['cases']
    """
    made = run_experiment(LabLadder(config), out, say=say, allow_other_versions=allow_other_versions)
    return as_lab_ladder(made)


def as_lab_ladder(result: Result) -> LabLadderResult:
    assert isinstance(result, LabLadderResult)
    return result


def ladder_folder(run: str | Path, seed: int) -> Path:
    """Where the ladder of a seed lies."""
    run = as_path(run)
    return seed_folder(run, seed) / "ladder"


_STAGES = {"pretrained": "pretrained", "tuned": "rungs"}


def _tasks(run: RunFolder, seeds: Sequence[int]) -> list[Task]:
    """The rungs of every seed, then its ladder; that of the first seed reads the others'."""
    found, first = [], seed_key(seeds[0])
    for key in map(seed_key, seeds):
        rungs = [
            Task(
                name=("train", key, rung),
                done=all(run.has_part(key, "cases", f"{rung}-{stage}") for stage in _STAGES),
            )
            for rung in RUNGS
        ]
        others = [("ladder", seed_key(seed)) for seed in seeds[1:]] if key == first else []
        needs = (*(task.name for task in rungs), *others)
        done = run.has_part(key, "ladder", suffix="json")
        found += [*rungs, Task(name=("ladder", key), done=done, needs=needs)]
    return found


def _rung(seed: LabSeed, rung: Rung) -> None:
    """Train a rung of a seed if it is not there yet; what it answers before and after its tuning."""
    seed.say(f"rung {rung}")
    before, after = _folders(seed, rung).values()
    pretrained(seed.chosen, seed.vocabulary, before, rung=rung, checkpoints=False, **seed.training)
    how = {"tuning": "ssft", "schedule": seed.chosen.instruct, **seed.training}
    tuned(seed.chosen, seed.vocabulary, before, after, **how)  # type: ignore[arg-type]
    _cases(seed, rung)


def _cases(seed: LabSeed, rung: Rung) -> list[pd.DataFrame]:
    return [
        seed.cases(path, f"{rung}-{stage}", rung=rung, stage=stage)
        for stage, path in _folders(seed, rung).items()
    ]


def _folders(seed: LabSeed, rung: Rung) -> dict[str, Path]:
    return {stage: seed.folder / folder / rung for stage, folder in _STAGES.items()}


def _ladder(seed: LabSeed, *, beside: Sequence[LabSeed]) -> None:
    """Directions removed from all rungs of a seed; its report shows the ladders of ``beside``."""
    session, root = seed.session, seed.session.shared_folder
    seed.say("ladder")
    seed.write_prompt_sets()
    config = LadderConfig(
        systems=tuple(str(seed.folder / "rungs" / rung) for rung in RUNGS),
        beside=tuple(str(ladder_folder(root, other.seed)) for other in beside),
        fit_on="labels",  # its models refuse in words of their own, and read 24 tokens
        **seed.reading,
    )
    versions = session.allow_other_versions
    run_ladder(config, ladder_folder(root, seed.seed), say=session.say, allow_other_versions=versions)
    session.run.write_json_part(True, seed.key, "ladder")
