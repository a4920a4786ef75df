"""The granular study as an experiment: systems x prompts x judges, what ``mechsafety study`` runs."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.core.wording import two_digits
from mechsafety.experiments.agreement.figures import judge_chapter_figures
from mechsafety.experiments.agreement.tables import (
    REFERENCE_TABLES,
    STUDY_TABLES,
    judge_tables,
    people_tables,
)
from mechsafety.experiments.agreement.work import own_labels
from mechsafety.experiments.backends import require_here
from mechsafety.experiments.base import Experiment, Read
from mechsafety.experiments.judging import reopened, require_new
from mechsafety.experiments.result import Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.experiments.study import page as pages
from mechsafety.experiments.study.answers import asks_an_address, separate_judges
from mechsafety.experiments.study.config import StudyConfig, stored_config
from mechsafety.experiments.study.controls import answered_draws
from mechsafety.experiments.study.figures import study_figures
from mechsafety.experiments.study.findings import (
    failed_systems,
    failure_lines,
    headline,
    measured_systems,
)
from mechsafety.experiments.study.systems import anchor_tokens, recipe_of
from mechsafety.experiments.study.tasks import StudyTasks
from mechsafety.experiments.study.work import StudyWork
from mechsafety.judges.registry import judge_sources
from mechsafety.models.provenance import of_models
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.prompts.splits import require_disjoint
from mechsafety.runs.folder import Provenance, RunFolder, pinned_date

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


_TABLES = (
    *("rates", "tests", "controls", "agreement", "selfjudge", "judge_checks", "label_order", "served"),
    *(*STUDY_TABLES, *REFERENCE_TABLES),
)
_LONG = (
    *("sweep", "scatter", "responses", "verdicts", "random_responses", "random_verdicts"),
    "confirmation_responses",
)


class StudyResult(Result):
    """A study on disk. Systems in ``failed`` could not be measured; where all failed there are no tables."""

    @property
    def failed(self) -> dict[str, str]:
        """Why each system that could not be measured could not."""
        return failed_systems(self.manifest)

    def _repr_html_(self) -> str:
        failed = "".join(f"<p>{escape(line)}</p>" for line in failure_lines(self.failed))
        measured = measured_systems(self.manifest)
        table = self.tables["rates"].round(3).to_html(index=False, border=0) if measured else ""
        return f"<b>Study</b> in {escape(str(self.path))}{failed}{table}"


class Study(StudyTasks, Experiment[StudyConfig]):
    """Every system, original and edited, on the report prompts; anchors find and select the direction."""

    kind = "study"
    tables: ClassVar[Mapping[str, str]] = MappingProxyType(
        {name: f"{name}.csv" for name in _TABLES}
        | {name: f"{name}.parquet" for name in _LONG}
        | {"selfjudgements": "selfjudge.parquet"}
    )
    long = frozenset({*_LONG, "selfjudgements"})
    answer_keys = ("system", "arm")
    result_type = StudyResult

    may_change = ("generation",)

    def __init__(self, config: StudyConfig) -> None:
        require_here(config, config.generation)
        super().__init__(config)
        self.report, self.anchors = study_prompts(config)

    def prompt_sets(self) -> Sequence[PromptSet]:
        return [self.report, self.anchors]

    def bound(self) -> Mapping[str, Any]:
        return {"prompts_sha256": self.report.sha256(), "anchors_sha256": self.anchors.sha256()}

    def models(self) -> Sequence[str]:
        return self.config.systems

    def sources(self) -> Mapping[str, Provenance]:
        of_judges = [judge_sources(judge, loading=self.loading) for judge in self.config.judges]
        return dict(ChainMap(of_models(*self.models(), **self.loading), *of_judges))

    def reads(self) -> Sequence[Read]:
        return [(self.report, self.config.max_new_tokens), (self.anchors, anchor_tokens(self.config))]

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        work = StudyWork(config=self.config, session=session, report=self.report, anchors=self.anchors)
        work.served.require_answers()
        for number, spec in enumerate(self.config.systems, start=1):
            work.try_system(spec, f"[{number}/{len(self.config.systems)}] {spec}")
        work.served.require_none_waiting()
        work.require_judged()
        return work.tables()

    @classmethod
    def read_tables(cls, run: RunFolder) -> dict[str, pd.DataFrame]:
        """The tables that the run has; those on judges are made from its verdicts and labels where it lacks them."""
        tables, config = super().read_tables(run), run.manifest["config"]
        if "verdicts" in tables and not tables.keys() >= {*STUDY_TABLES}:
            tables |= judge_tables(tables["verdicts"], primary=config["judges"][0], seed=int(config["seed"]))
        if "verdicts" in tables and "judge_errors" not in tables and (labels := own_labels(run)) is not None:
            tables |= people_tables(tables["verdicts"], labels, seed=int(config["seed"]))
        return tables

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        own = study_figures(result.tables, measured_systems(result.manifest))
        return own | judge_chapter_figures(result.tables)

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        return [
            *failure_lines(failed_systems(result.manifest)),
            *headline(result.tables, result.manifest),
        ]

    @classmethod
    def html(cls, result: Result) -> str:
        return pages.html(result)

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        manifest = result.manifest
        return {
            **{name: result.tables[name] for name in ("rates", "tests")},
            "timings": manifest.get("timings", {}),
            "failed": failed_systems(manifest),
        }

    @classmethod
    def text(cls, result: Result) -> str:
        rates, primary = result.tables["rates"], result.config["judges"][0]
        chosen = rates[rates["judge"] == primary].drop(columns="judge")
        shown = chosen.to_string(index=False, na_rep="-", float_format=two_digits)
        return f"judge {primary}\n{shown}"

    @classmethod
    def rates_by_judge(cls, result: Result) -> pd.DataFrame:
        return result.tables["rates"]

    @classmethod
    def with_judges(
        cls, result: Result, judges: Sequence[str], say: Progress, *, allow_other_versions: bool
    ) -> None:
        """Make ``judges`` members of the study: their verdicts on its responses go into every table.

        They read the random arm too. Nothing is generated, and no system is loaded, unless a judge asks it. Raises
        :class:`MechsafetyError` for a judge that has read all responses, and for a study without its parts.
        """
        known = [*dict.fromkeys(result.tables["verdicts"]["judge"])]
        # A member other than the primary judge has not read the random arm.
        of_draws = result.tables.get("random_verdicts")
        require_new(judges, known if of_draws is None else set(known) & {*of_draws["judge"]}, result)
        config = stored_config(result.config | {"judges": [*dict.fromkeys([*known, *judges])]})
        with reopened(
            result.run, judges, loading=config.loading, allow_other_versions=allow_other_versions
        ) as run:
            day = pinned_date(run.path, config.date)
            session = Session(run=run, day=day, say=say, loading=config.loading)
            work = StudyWork(config=config, session=session)
            hosted = [judge for judge in judges if asks_an_address(judge)]
            # Those of addresses are asked together; of the others, one model at a time is loaded.
            works = [
                StudyWork(config=config.model_copy(update={"judges": tuple(group)}), session=session)
                for group in filter(None, [hosted, *([judge] for judge in judges if judge not in hosted)])
            ]
            for one in works:
                judge_everything(one)
            for one in works:
                one.require_judged()
            run.record("config", result.config | {"judges": list(config.judges)})
            for name, table in work.tables().items():
                run.write_table(table, cls.tables[name])
        if "judge_errors" in result.tables:
            say("tables against people or a judge lack the new one: mechsafety agree makes them again")


def judge_everything(work: StudyWork) -> None:
    """The verdicts of the judges of ``work`` that are missing, on the random arm too."""
    work.judge_all()
    for spec, arm in answered_draws(work.run, work.config, work.specs()):
        work.judge(spec, arm, spec, judges=separate_judges(work.config.judges))


@with_progress
def run_study(
    config: StudyConfig,
    out: str | Path,
    *,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> StudyResult:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted, and write its figures and report.

    A system whose numbers are not finite is left out of all tables, also when the study goes on later. Raises
    :class:`MechsafetyError` for prompts that overlap, lack a split or a label, and for another configuration, other
    prompts or models than the folder's.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.

    Returns:
        The finished run: its tables, figures, findings and report.

    Example:
        >>> config = ms.StudyConfig(
        ...     systems=("smollm2-135m",), prompts="own.csv", anchors="own.csv", judges=("rules", "phrases:arditi"),
        ...     layer=2, controls=0, confirm=0, limit=4, max_new_tokens=3,
        ... )
        >>> study = ms.run_study(config, "runs/study", progress=False)
        >>> study.tables["rates"]["arm"].unique().tolist()
        ['original', 'edited']
        >>> study.path.joinpath("report.html").exists()
        True
    """
    run = run_experiment(Study(config), out, say=say, allow_other_versions=allow_other_versions)
    found = StudyResult(run.path, Study)
    if len(found.failed) < len(config.systems):
        say("figures and page")
        found.publish()
    return found


def study_prompts(config: StudyConfig) -> tuple[PromptSet, PromptSet]:
    """Report prompts and anchors (fit and validation), sampled as the configuration asks.

    Raises :class:`MechsafetyError` when a split or a label is missing, or when they overlap.
    """
    asked = load_prompts(config.prompts)
    report = asked.to_judge
    anchors = load_prompts(config.anchors)
    taken = (anchors.to_estimate, anchors.to_choose)
    if recipe_of(config).fit_on != "anchors":
        sizes = (config.fit, config.validation)
        taken = tuple(part.sample(n, seed=config.seed) for part, n in zip(taken, sizes, strict=True))
    chosen = PromptSet(
        (*taken[0], *taken[1]),
        anchors.name,
        anchors.repeated if config.anchors != config.prompts else 0,
    )
    for split in (chosen.to_estimate, chosen.to_choose):
        if not len(split.harmful) or not len(split.harmless):
            raise MechsafetyError(
                f"anchors {config.anchors!r} need harmful and harmless prompts in the splits fit and validation"
            )
    if not len(report):
        raise MechsafetyError(f"prompts {config.prompts!r} hold no report split")
    if config.limit is not None:
        report = report.sample(config.limit, seed=config.seed)
    require_disjoint(anchor=chosen, report=report)
    return replace(report, repeated=asked.repeated), chosen
