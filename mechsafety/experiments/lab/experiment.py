"""The lab as an experiment: what ``mechsafety lab run`` runs.

For each seed: rules of a world -> a pretrained model -> three safety tunings and a benign one -> what each answers to
every kind of input -> the anatomy of each safety tuning, the benign one as its control -> nine claims, whether they
held, and whether beyond their controls. Models, outcomes and anatomies are kept when they are done; an interrupted run
goes on.

A folder ``seed-N`` holds the models (``models/base`` with its checkpoints, ``models/ssft``, ...), the inputs as prompt
sets (``prompts.csv``, ``attacks.csv``), the answers as a key for the judge ``key`` (``answer_key.csv``), and a run of
``mechsafety anatomy`` for each tuning (``anatomy/ssft``, ...), so that every other command works on them too. Beside
every claim stand networks that were never trained and shuffled labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pandas as pd

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.engines.tasks import Task
from mechsafety.experiments.anatomy.config import AnatomyConfig
from mechsafety.experiments.anatomy.experiment import read_anatomy, run_anatomy
from mechsafety.experiments.base import Experiment
from mechsafety.experiments.lab.config import BASE, CONTROL, SAFETY_TUNINGS, LabConfig
from mechsafety.experiments.lab.figures import lab_figures
from mechsafety.experiments.lab.findings import lab_findings
from mechsafety.experiments.lab.models import pretrained, tuned
from mechsafety.experiments.lab.seeds import ATTACKS, LabSeed, seed_folder, seed_key
from mechsafety.experiments.lab.thresholds import controls_over_seeds, held_over_seeds, threshold_table
from mechsafety.experiments.lab.untrained import control_table
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.result import Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.lab.mixtures import TUNINGS, Tuning
from mechsafety.models.hardware import resolve_device
from mechsafety.runs.folder import RunFolder, read_run

if TYPE_CHECKING:
    import plotly.graph_objects as go


MODELS = (BASE, *TUNINGS)
"""A seed's models, in the order in which they are trained."""


class LabResult(Result):
    """A run of the lab: what every model answers (``cases``), and the claims' numbers by seed (``thresholds``) beside
    their controls (``controls``)."""

    def models(self, seed: int) -> dict[str, str]:
        """The folders of a seed's models, by name: what :func:`load_model` takes."""
        folder = seed_folder(self.path, seed) / "models"
        return {name: str(folder / name) for name in MODELS}

    def anatomy(self, seed: int, tuning: str) -> Path:
        """The folder of a tuning's anatomy, for :func:`read_anatomy`."""
        return seed_folder(self.path, seed) / "anatomy" / tuning

    def held(self) -> pd.DataFrame:
        """How often each bound was met over the seeds."""
        return held_over_seeds(self.tables["thresholds"])

    def beyond(self) -> pd.DataFrame:
        """In how many seeds each reading of a claim holds beyond its controls."""
        return controls_over_seeds(self.tables["controls"])

    def publish(self) -> Path:
        """Write the figures and pages of every anatomy and of the run, whose page's path is returned."""
        for seed in self.config["seeds"]:
            for tuning in SAFETY_TUNINGS:
                read_anatomy(self.anatomy(seed, tuning)).publish()
        return super().publish()

    def _repr_html_(self) -> str:
        held = self.held().round(3).to_html(index=False, border=0, na_rep="reported")
        beyond = self.beyond().to_html(index=False, border=0)
        return f"{super()._repr_html_()}<h4>bounds over seeds</h4>{held}<h4>controls over seeds</h4>{beyond}"


class Lab(Experiment[LabConfig], Parallel):
    """Models of a small synthetic world, tuned for safety, attacked and taken apart."""

    kind = "lab"
    tables: ClassVar[Mapping[str, str]] = {
        name: f"{name}.csv" for name in ("cases", "thresholds", "controls")
    }
    long = frozenset({"cases"})
    result_type = LabResult

    def prepare(self, day: str, say: Progress) -> None:  # noqa: ARG002
        resolve_device(self.config.device)

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        for seed in LabSeed.each(session, self.config):
            seed.say("models")
            for name in MODELS:
                _train(seed, name)
            for name in MODELS:
                _cases(seed, name)
            for name in SAFETY_TUNINGS:
                _anatomy(seed, name)
            _controls(seed)
        return self.finish(session)

    def tasks(self, run: RunFolder) -> list[Task]:
        return [task for seed in self.config.seeds for task in _tasks(run, seed)]

    @classmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        return [task for seed in run.manifest["config"]["seeds"] for task in _tasks(run, int(seed))]

    def do(self, task: Task, session: Session) -> None:
        stage, key, *names = task.name
        (seed,) = [seed for seed in LabSeed.each(session, self.config) if seed.key == key]
        if stage == "train":
            _train(seed, names[0])
            _cases(seed, names[0])
        elif stage == "anatomy":
            _anatomy(seed, names[0])
        else:
            _controls(seed)

    def finish(self, session: Session) -> Mapping[str, pd.DataFrame]:
        found: dict[str, list[pd.DataFrame]] = {name: [] for name in self.tables}
        for seed in LabSeed.each(session, self.config):
            cases = _all_cases(seed)
            found["cases"].append(cases)
            thresholds = threshold_table(cases, _anatomies(seed))
            for name, table in (("thresholds", thresholds), ("controls", _controls(seed))):
                found[name].append(table.assign(seed=seed.seed)[["seed", *table.columns]])
        return {name: pd.concat(several, ignore_index=True) for name, several in found.items()}

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        return lab_figures(*(result.tables[name] for name in ("cases", "thresholds", "controls")))

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        run = as_lab(result)
        found = lab_findings(result.tables["cases"], run.held(), run.beyond())
        return [sentence for several in found.values() for sentence in several]

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        run = as_lab(result)
        return {"thresholds": run.held(), "controls": run.beyond(), "cases": result.tables["cases"]}

    @classmethod
    def text(cls, result: Result) -> str:
        return as_lab(result).held().to_string(index=False, na_rep="-", float_format="%.3g")


@with_progress
def run_lab(
    config: LabConfig,
    out: str | Path,
    *,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> LabResult:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    Raises :class:`MechsafetyError` for a folder of another configuration, and when a training's loss is not finite.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> run = ms.lab.run_lab(ms.lab.LabConfig(preset="quick"), "runs/lab", progress=False)
        >>> sorted(run.tables)
        ['cases', 'controls', 'thresholds']
    """
    return as_lab(run_experiment(Lab(config), out, say=say, allow_other_versions=allow_other_versions))


def read_lab(path: str | Path) -> LabResult:
    """A finished run of the lab. Raises :class:`MechsafetyError` for a folder that is none.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> run = ms.lab.read_lab("runs/lab")
        >>> run.held()["number"].nunique()
        9
    """
    if read_run(as_path(path)).manifest["config"].get("kind") != Lab.kind:
        raise MechsafetyError(f"{str(path)!r} is not a run of the lab")
    return as_lab(load_run(path))


def as_lab(result: Result) -> LabResult:
    assert isinstance(result, LabResult)
    return result


def _tasks(run: RunFolder, seed: int) -> list[Task]:
    """The tasks of one seed: a model each, an anatomy each, and the controls, which read all of them."""
    key = seed_key(seed)

    def trained(name: str) -> Task:
        needs = () if name == BASE else (("train", key, BASE),)
        return Task(name=("train", key, name), done=run.has_part(key, "cases", name), needs=needs)

    def taken_apart(name: str) -> Task:
        needs = tuple(("train", key, one) for one in (name, CONTROL))
        done = run.has_part(key, "anatomy", name, suffix="json")
        return Task(name=("anatomy", key, name), done=done, needs=needs)

    found = [*map(trained, MODELS), *map(taken_apart, SAFETY_TUNINGS)]
    needs = tuple(task.name for task in found)
    done = run.has_part(key, "controls")
    return [*found, Task(name=("controls", key), done=done, needs=needs, ships=((key, "cases"),))]


def _train(seed: LabSeed, name: str) -> None:
    """Train a model of a seed if it is not there yet; with the first one, the seed's prompt sets are written."""
    chosen, folder, base = seed.chosen, seed.model(name), seed.model(BASE)
    with seed.session.timed(f"seed {seed.seed}: {name}"):
        if name == BASE:
            pretrained(chosen, seed.vocabulary, folder, rung="raw", checkpoints=True, **seed.training)
            seed.write_prompt_sets()
        else:
            tuning = cast("Tuning", name)
            how = {"tuning": tuning, "schedule": chosen.tunings[tuning]}
            tuned(chosen, seed.vocabulary, base, folder, **how, **seed.training)


def _cases(seed: LabSeed, name: str) -> pd.DataFrame:
    return seed.cases(seed.model(name), name).assign(model=name)


def _all_cases(seed: LabSeed) -> pd.DataFrame:
    """What each of a seed's models answers."""
    return pd.concat([_cases(seed, name) for name in MODELS], ignore_index=True)


def _anatomy(seed: LabSeed, name: str) -> None:
    """One tuning's anatomy, with the benign tuning as its control."""
    seed.say(f"anatomy of {name}")
    config = AnatomyConfig(
        base=str(seed.model(BASE)),
        tuned=str(seed.model(name)),
        control=str(seed.model(CONTROL)),
        attacks=str(seed.folder / ATTACKS),
        **seed.reading,
    )
    session = seed.session
    with session.timed(f"seed {seed.seed}: anatomy of {name}"):
        run_anatomy(
            config,
            seed.folder / "anatomy" / name,
            say=session.say,
            allow_other_versions=session.allow_other_versions,
        )
    session.run.write_json_part(True, seed.key, "anatomy", name)


def _anatomies(seed: LabSeed) -> dict[str, Mapping[str, pd.DataFrame]]:
    return {name: read_anatomy(seed.folder / "anatomy" / name).tables for name in SAFETY_TUNINGS}


def _controls(seed: LabSeed) -> pd.DataFrame:
    """Every reading of a seed beside its controls."""

    def made() -> pd.DataFrame:
        seed.say("controls")
        return control_table(seed, _all_cases(seed), _anatomies(seed))

    with seed.session.timed(f"seed {seed.seed}: controls"):
        return seed.session.part(seed.key, "controls", make=made)
