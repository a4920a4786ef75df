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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.experiments.anatomy.config import AnatomyConfig
from mechsafety.experiments.anatomy.experiment import read_anatomy, run_anatomy
from mechsafety.experiments.base import Experiment, Result, Session, load_run, run_experiment
from mechsafety.experiments.lab.config import BASE, CONTROL, SAFETY_TUNINGS, LabConfig
from mechsafety.experiments.lab.figures import lab_figures
from mechsafety.experiments.lab.findings import lab_findings
from mechsafety.experiments.lab.models import pretrained, tuned
from mechsafety.experiments.lab.seeds import ATTACKS, LabSeed, seed_folder
from mechsafety.experiments.lab.thresholds import controls_over_seeds, held_over_seeds, threshold_table
from mechsafety.experiments.lab.untrained import control_table
from mechsafety.lab.mixtures import TUNINGS
from mechsafety.runs.folder import read_run

if TYPE_CHECKING:
    import plotly.graph_objects as go


class LabResult(Result):
    """A run of the lab: what every model answers (``cases``), and the claims' numbers by seed (``thresholds``) beside
    their controls (``controls``)."""

    def models(self, seed: int) -> dict[str, str]:
        """The folders of a seed's models, by name: what :func:`load_model` takes."""
        folder = seed_folder(self.path, seed) / "models"
        return {name: str(folder / name) for name in (BASE, *TUNINGS)}

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


class Lab(Experiment[LabConfig]):
    """Models of a small synthetic world, tuned for safety, attacked and taken apart."""

    kind = "lab"
    tables: ClassVar[Mapping[str, str]] = {
        name: f"{name}.csv" for name in ("cases", "thresholds", "controls")
    }
    long = frozenset({"cases"})
    result_type = LabResult

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        found: dict[str, list[pd.DataFrame]] = {name: [] for name in self.tables}
        for seed in LabSeed.each(session, self.config):
            cases = _trained_and_measured(seed)
            anatomies = {name: _anatomy(seed, name) for name in SAFETY_TUNINGS}
            seed.say("controls")
            with session.timed(f"seed {seed.seed}: controls"):
                make = partial(control_table, seed, cases, anatomies)
                controls = session.part(f"seed-{seed.seed}", "controls", make=make)
            found["cases"].append(cases)
            for name, table in (("thresholds", threshold_table(cases, anatomies)), ("controls", controls)):
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


def _trained_and_measured(seed: LabSeed) -> pd.DataFrame:
    """Train the models of a seed that are not there yet; what each of them answers."""
    chosen, timed = seed.chosen, seed.session.timed
    models = {name: seed.folder / "models" / name for name in (BASE, *TUNINGS)}
    seed.say("models")
    given = {"seed": seed.seed}
    with timed(f"seed {seed.seed}: {BASE}"):
        pretrained(chosen, seed.vocabulary, models[BASE], rung="raw", checkpoints=True, **given)
    for name in TUNINGS:
        how = {"tuning": name, "schedule": chosen.tunings[name]}
        with timed(f"seed {seed.seed}: {name}"):
            tuned(chosen, seed.vocabulary, models[BASE], models[name], **how, **given)  # type: ignore[arg-type]
    seed.write_prompt_sets()
    return pd.concat(
        [seed.cases(path, name).assign(model=name) for name, path in models.items()], ignore_index=True
    )


def _anatomy(seed: LabSeed, name: str) -> Mapping[str, pd.DataFrame]:
    """The tables of one tuning's anatomy, with the benign tuning as its control."""
    seed.say(f"anatomy of {name}")
    models = seed.folder / "models"
    config = AnatomyConfig(
        base=str(models / BASE),
        tuned=str(models / name),
        control=str(models / CONTROL),
        attacks=str(seed.folder / ATTACKS),
        **seed.reading,
    )
    session = seed.session
    with session.timed(f"seed {seed.seed}: anatomy of {name}"):
        made = run_anatomy(
            config,
            seed.folder / "anatomy" / name,
            say=session.say,
            allow_other_versions=session.allow_other_versions,
        )
    return made.tables
