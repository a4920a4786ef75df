"""Which systems keep refusing when directions are removed, as an experiment: what ``mechsafety ladder`` runs.

For each system, which is loaded alone: fit prompts -> refusal subspace of the layer that validation prompts choose ->
1, 2, 4, 8 of its directions projected out everywhere, and as many random ones -> greedy answers to report prompts ->
verdicts, paired tests, what the removal costs. Then all systems are compared. Every state is kept when it is done; an
interrupted run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, NotFiniteError, RefusedRunError, way
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.engines.tasks import Task
from mechsafety.experiments.base import Experiment, Read
from mechsafety.experiments.comparison.experiment import read_comparison, run_comparison
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.ladder.figures import ladder_figures
from mechsafety.experiments.ladder.findings import summary
from mechsafety.experiments.ladder.links import files_read, read_regions
from mechsafety.experiments.ladder.subspaces import FIT, Splits
from mechsafety.experiments.ladder.systems import PARTS, LadderSetting, LadderSystem, RungAware
from mechsafety.experiments.ladder.tables import COMPARE, TABLES, refused_table
from mechsafety.experiments.ladder.work import LadderWork
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.result import Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.judges.registry import judge_sources, load_judge
from mechsafety.models.adapters import adapter_folder
from mechsafety.models.loading import load_model
from mechsafety.models.provenance import of_files, of_models
from mechsafety.models.specs import locate, parse_spec
from mechsafety.prompts.columns import PURPOSES
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.prompts.splits import require_splits
from mechsafety.runs.folder import Provenance, RunFolder, read_run
from mechsafety.sweeps.openings import ANSWER_TOKENS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


_RECORD = "ladder"
_SUBSPACE = 3
"""Directions of the subspaces whose angles are compared, where the prompts suffice."""


class LadderResult(Result):
    """A ladder on disk. Its tables are those of the run and of the comparison: cosines, angles, cka, transfer."""

    @property
    def record(self) -> dict[str, Any]:
        """The manifest's section: the systems' layers, and what was left out. Raises where the run is not finished."""
        found = self.manifest.get(_RECORD)
        if found is None:
            raise MechsafetyError(
                f"the ladder {str(self.path)!r} is not finished: run the same command again"
            )
        return found

    @property
    def notes(self) -> list[str]:
        """What was left out, and why."""
        return list(self.record["notes"])

    @property
    def layer(self) -> int | None:
        """The layer at which the comparison shows matrices; None where nothing was compared by layer."""
        by_layer = {"cosines", "angles"} & set(self.tables)
        return read_comparison(self.path / COMPARE).layer if by_layer else None


class Ladder(Experiment[LadderConfig], Parallel):
    """Directions of the fit prompts, of the layer that validation prompts choose, evaluated on report prompts."""

    kind = "ladder"
    tables: ClassVar[Mapping[str, str]] = TABLES
    long = frozenset({"verdicts"})
    answer_keys = ("system", "kind", "directions", "draw")
    result_type = LadderResult
    may_change = ("beside",)

    def __init__(self, config: LadderConfig) -> None:
        super().__init__(config)
        self.prompts = load_prompts(config.prompts)
        _check_prompts(self.prompts, config)
        for spec in (*config.systems, *self._base):
            _require_model(spec)
        for other in config.beside:
            read_ladder(other)
        self.regions = None if config.regions is None else read_regions(Path(config.regions), config.systems)

    @property
    def _base(self) -> list[str]:
        return [] if self.config.base is None else [self.config.base]

    def prepare(self, day: str, say: Progress) -> None:  # noqa: ARG002
        def models(spec: str, /) -> object:
            return load_model(spec, **self.config.placing, date=day)

        self.judge = RungAware(load_judge(self.config.judge, models=models))

    def prompt_sets(self) -> Sequence[PromptSet]:
        return [self.prompts]

    def bound(self) -> Mapping[str, Any]:
        return {"prompts_sha256": self.prompts.sha256()}

    def models(self) -> Sequence[str]:
        return self.config.systems

    def sources(self) -> Mapping[str, Provenance]:
        return {
            **of_models(*self.config.systems, *self._base, **self.loading),
            **judge_sources(self.config.judge, loading=self.config.placing),
            **({} if self.regions is None else {"regions run": of_files(*files_read(self.regions))}),
        }

    def reads(self) -> Sequence[Read]:
        prompts, more = Splits.of(self.prompts, self.config), self.config.max_new_tokens
        chosen = max(more, ANSWER_TOKENS if self.config.fit_on == "behaviour" else 0)
        return [(prompts.fit, 0), (prompts.validation, 0), (prompts.choice, chosen), (prompts.report, more)]

    def tasks(self, run: RunFolder) -> list[Task]:
        return _tasks(run, self.config.systems)

    @classmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        return _tasks(run, run.manifest["config"]["systems"])

    def do(self, task: Task, session: Session) -> None:
        """Every state of one system."""
        setting = self._setting(session)
        LadderWork(setting=setting).measure([LadderSystem(setting, task.name[1])])

    def _setting(self, session: Session) -> LadderSetting:
        return LadderSetting(
            **{"config": self.config, "session": session, "judge": self.judge, "regions": self.regions},
            prompts=Splits.of(self.prompts, self.config),
        )

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        work = LadderWork(setting=self._setting(session))
        tables = work.tables()
        compared, left_out = self._compare(session)
        notes = [*work.notes, *left_out]
        session.run.record(_RECORD, {"systems": work.facts, "compared": compared, "notes": notes})
        return tables

    def _compare(self, session: Session) -> tuple[bool, list[str]]:
        """Cosines, angles, CKA and transfer between all systems, in a run of its own.

        Returns whether there is such a comparison, and what could not be had.
        """
        config, fit = self.config, self.prompts.to_estimate
        if len(config.systems) < 2:
            return False, ["One system alone: there is nothing to compare it with."]
        if not config.compare_limit:
            return False, ["The systems were not compared, as asked."]
        session.say(f"comparing {len(config.systems)} systems")
        # Halves of a class must span the compared subspaces, their mean taken off.
        half = min(config.compare_limit, len(fit.harmful), len(fit.harmless)) // 2
        try:
            found = run_comparison(
                config.systems,
                self.prompts,
                out=session.run.path / COMPARE,
                seed=config.seed,
                limit=config.compare_limit,
                k=max(1, min(_SUBSPACE, half - 1)),
                **config.loading,
                date=session.day,
                say=session.say,
                allow_other_versions=session.allow_other_versions,
            )
        except (NotFiniteError, RefusedRunError):
            raise  # numbers that are none, or parts of something else: nothing to note and pass over
        except MechsafetyError as error:
            return False, [f"The systems were not compared: {error}."]
        return True, list(found.notes)

    @classmethod
    def read_tables(cls, run: RunFolder) -> dict[str, pd.DataFrame]:
        """The run's tables and those of its comparison. Raises :class:`MechsafetyError` where it is not finished."""
        compared = LadderResult(run.path, cls).record["compared"]
        return super().read_tables(run) | (read_comparison(run.path / COMPARE).tables if compared else {})

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        """The ladder's own figures, and those of the ladders beside it after their names."""
        return {
            f"{prefix}{key}": figure
            for prefix, ladder in zip(prefixes(result), ladders(result), strict=True)
            for key, figure in ladder_figures(ladder.tables, layer=ladder.layer).items()
        }

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        return summary(result.tables)

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        record = as_ladder(result).record
        return {"systems": record["systems"], "notes": record["notes"]}

    @classmethod
    def text(cls, result: Result) -> str:
        """Shares of harmful prompts refused by directions removed, and what was left out."""
        return "\n".join([refused_table(result.tables["survival"]), "", *as_ladder(result).notes]).strip()


@with_progress
def run_ladder(
    config: LadderConfig,
    out: str | Path,
    *,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> LadderResult:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    ``config.beside`` may change from one call to the next: it concerns the report alone. Raises
    :class:`MechsafetyError` for a prompt set without fit, validation or report prompts of both labels, more directions
    than fit prompts or dimensions, a model, judge or adapter that does not exist, ``beside`` folders that hold no
    finished ladder, a regions run of another model, and whatever loading a model raises.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> config = ms.anatomy.LadderConfig(
        ...     systems=("smollm2-135m",), prompts="own.csv", counts=(1,), fit_on="labels", controls=0,
        ...     limit=4, compare_limit=4, max_new_tokens=3,
        ... )
        >>> run = ms.anatomy.run_ladder(config, "runs/ladder", progress=False)
        >>> sorted(run.tables["survival"]["directions"].unique().tolist())
        [0, 1]
    """
    found = run_experiment(Ladder(config), out, say=say, allow_other_versions=allow_other_versions)
    return as_ladder(found)


def read_ladder(path: str | Path) -> LadderResult:
    """A finished ladder from its folder. Raises :class:`MechsafetyError` for anything else.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> ms.anatomy.read_ladder("runs/ladder").config["systems"]
        ['smollm2-135m']
    """
    kind = read_run(as_path(path)).manifest["config"].get("kind", "study")
    if kind != Ladder.kind:
        maker = way("mechsafety ladder", "ms.anatomy.run_ladder")
        raise MechsafetyError(f"{str(path)!r} is a run of kind {kind!r}: a ladder is what {maker} made")
    found = as_ladder(load_run(path))
    _ = found.record  # which only a finished one has
    return found


def as_ladder(result: Result) -> LadderResult:
    assert isinstance(result, LadderResult)
    return result


def ladders(result: Result) -> list[LadderResult]:
    """The ladder itself, then those beside it."""
    return [as_ladder(result), *(read_ladder(path) for path in result.config.get("beside", ()))]


def ladder_names(result: Result) -> list[str]:
    """What each of :func:`ladders` is called: its folder, with the parent where that is not enough; empty for one."""
    paths = [path.resolve() for path in (result.path, *map(Path, result.config.get("beside", ())))]
    names = [path.name for path in paths]
    if len(paths) == 1:
        return [""]
    return names if len(set(names)) == len(names) else [f"{path.parent.name}/{path.name}" for path in paths]


def prefixes(result: Result) -> list[str]:
    """What stands before the names of each ladder's figures: nothing for the first."""
    return ["", *(f"{name.replace('/', '-')}-" for name in ladder_names(result)[1:])]


def _tasks(run: RunFolder, systems: Sequence[str]) -> list[Task]:
    """A task for each system; its links are the last that is made of it."""
    return [
        Task(
            name=("system", spec),
            done=run.has_part("links", spec),
            ships=tuple((name, spec) for name in PARTS),
            model=spec,
        )
        for spec in systems
    ]


def _check_prompts(prompts: PromptSet, config: LadderConfig) -> None:
    require_splits(prompts, PURPOSES, name=config.prompts)
    most = min(FIT, len(prompts.to_estimate.harmful))
    if max(config.counts) > most:
        raise MechsafetyError(
            f"{max(config.counts)} directions of {most} harmful fit prompts: these span no more than {most}"
        )


def _require_model(spec: str) -> None:
    """What can be known of a model without loading it: an unknown one must not stop a run that is half done."""
    parsed = parse_spec(spec)
    locate(parsed)
    if parsed.adapter is not None:
        adapter_folder(parsed.adapter)
