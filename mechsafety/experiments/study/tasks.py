"""The tasks of a study: per system its direction, batches of answers, their likelihoods, verdicts, self-judgement."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from mechsafety.core.errors import StoppedError
from mechsafety.engines.tasks import Name, Task
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.study.answers import ALL_RANDOM, judges_of
from mechsafety.experiments.study.config import StudyConfig, stored_config
from mechsafety.experiments.study.controls import RANDOM
from mechsafety.experiments.study.work import StudyWork
from mechsafety.generation.resumable import batch_tasks
from mechsafety.judges.failures import UnusableError
from mechsafety.judges.registry import asks_a_model, redacted
from mechsafety.prompts.columns import LABELS
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import RunFolder
from mechsafety.statistics import ARMS

if TYPE_CHECKING:
    import pandas as pd

    from mechsafety.experiments.session import Session

_CHOOSING = (
    *("directions", "fit", "refusals", "scores", "swept", "sweep", "selection"),
    *("confirmation", "confirmed", "scatter", "thoughts"),
)
"""The parts of one system that its direction is made in."""
_EDIT = ("selection", "directions", "controls", "thoughts")
"""The parts that an edit is rebuilt from, and what random directions read."""


def study_tasks(config: StudyConfig, run: RunFolder, labels: Collection[str] = LABELS) -> list[Task]:
    """Every task of a study that is known so far; ``labels`` are those of its report prompts."""
    measured = [spec for spec in config.systems if not run.has_part("failed", spec, suffix="json")]
    return [
        *(task for spec in measured for task in _System(config, run, spec, labels).tasks()),
        *(_checking(run, judge) for judge in judges_of(config, "original") if asks_a_model(judge)),
    ]


def _checking(run: RunFolder, judge: str) -> Task:
    done = run.has_part("judge_check", judge, suffix="json")
    return Task(name=("check", judge), done=done, model=_asked(judge))


def _asked(judge: str) -> str | None:
    """The model that a judge loads, as far as its name tells."""
    kind, _, argument = judge.partition(":")
    return argument or None if asks_a_model(judge) and kind != "endpoint" else None


class _System:
    """The tasks on one system."""

    def __init__(self, config: StudyConfig, run: RunFolder, spec: str, labels: Collection[str]) -> None:
        self.config, self.run, self.spec, self.labels = config, run, spec, labels
        self.edit = tuple((name, spec) for name in _EDIT)
        self.random = [f"{RANDOM}{n}" for n in range(1, config.controls + 1)] if "harmful" in labels else []

    def tasks(self) -> list[Task]:
        found = [self._choosing()]
        for arm in ARMS:
            found += self._answers(arm, needs=() if arm == "original" else (("select", self.spec),))
        if self.random:
            found += self._random()
        for arm in [*ARMS, *self.random]:
            found += [self._verdicts(judge, arm) for judge in judges_of(self.config, arm)]
        return found + ([self._selfjudge(arm) for arm in ARMS] if self.config.selfjudge else [])

    def _task(
        self, stage: str, *key: str, done: bool, needs: tuple[Name, ...], ships: tuple[Name, ...]
    ) -> Task:
        name = (stage, self.spec, *key)
        return Task(name=name, done=done, needs=needs, ships=ships, model=self.spec, system=self.spec)

    def _choosing(self) -> Task:
        done = self.run.has_part("selection", self.spec, suffix="json")
        return self._task("select", done=done, needs=(), ships=tuple((name, self.spec) for name in _CHOOSING))

    def _answers(self, arm: str, *, needs: tuple[Name, ...]) -> list[Task]:
        """The batches of one arm, or of all random arms together, and their likelihoods."""
        key = (self.spec, arm)
        batches = batch_tasks(self.run, key, needs=needs, model=self.spec, ships=self.edit, system=self.spec)
        arms = self.random if arm == ALL_RANDOM else [arm]
        done = all(self.run.has_part("responses", self.spec, one) for one in arms)
        ships = (*self.edit, ("kl", self.spec), ("plans", *key), ("batches", *key))
        joined = (*needs, *(task.name for task in batches))
        return [*batches, self._task("responses", arm, done=done, needs=joined, ships=ships)]

    def _random(self) -> list[Task]:
        costs = [("kl", arm) for arm in ("edited", *self.random)] if "harmless" in self.labels else []
        done = self.run.has_part("controls", self.spec) and all(
            self.run.has_part(name, self.spec, arm, suffix="json") for name, arm in costs
        )
        drawing = self._task(
            "draws",
            done=done,
            needs=(("select", self.spec),),
            ships=(*self.edit, ("fit", self.spec), ("kl", self.spec)),
        )
        arms = self.random if self.config.sampling else [ALL_RANDOM]
        return [drawing, *(task for arm in arms for task in self._answers(arm, needs=(drawing.name,)))]

    def _verdicts(self, judge: str, arm: str) -> Task:
        shared = arm not in ARMS and not self.config.sampling
        needs = [("responses", self.spec, ALL_RANDOM if shared else arm)]
        needs += [("check", judge)] if asks_a_model(judge) else []
        return Task(
            name=("verdicts", judge, self.spec, arm),
            done=self.run.has_part("verdicts", judge, self.spec, arm),
            needs=tuple(needs),
            model=_asked(judge),
            ships=(("responses", self.spec, arm), ("judge_check", judge)),
        )

    def _selfjudge(self, arm: str) -> Task:
        return self._task(
            "selfjudge",
            arm,
            done=self.run.has_part("selfjudge", self.spec, arm),
            needs=(("select", self.spec), ("responses", self.spec, arm)),
            ships=(*self.edit, ("responses", self.spec, arm)),
        )


class StudyTasks(Parallel):
    """How a study is worked on in tasks."""

    config: StudyConfig
    report: PromptSet
    anchors: PromptSet
    _kept: StudyWork | None = None

    def tasks(self, run: RunFolder) -> list[Task]:
        return study_tasks(self.config, run, {prompt.label for prompt in self.report})

    @classmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        return study_tasks(stored_config(run.manifest["config"]), run)

    def _study(self, session: Session) -> StudyWork:
        """What this process keeps between tasks."""
        if self._kept is None:
            self._kept = StudyWork(
                config=self.config, session=session, report=self.report, anchors=self.anchors
            )
        return self._kept

    def held(self) -> list[str]:
        return [] if self._kept is None else self._kept.held()

    def do(self, task: Task, session: Session) -> None:
        do(self._study(session), task)

    def begin(self, session: Session) -> None:
        self._study(session).served.require_none_begun()
        for spec in self.config.systems:
            self._study(session).is_tried(spec, spec)

    def failed(self, session: Session, task: Task, why: str, *, not_finite: bool) -> bool:
        if task.system is not None and self._study(session).failure(task.system) is None:
            self._study(session).fail(task.system, task.system, why, for_good=not_finite)
        return task.system is not None

    def finish(self, session: Session) -> Mapping[str, pd.DataFrame]:
        return self._study(session).tables()


def do(work: StudyWork, task: Task) -> None:
    """One task, by the code of the local engine."""
    stage, *key = task.name
    session, spec = work.session, key[0]
    random = [f"{RANDOM}{n}" for n in range(1, work.config.controls + 1)]
    if stage == "select":
        work.choose(spec, spec)
    elif stage == "plan":
        work.plan(spec, key[1])
    elif stage == "draws":
        with session.timed(spec, "generate random"):
            work.draw(spec, random)
    elif stage in ("answers", "responses"):
        arm = key[1]
        with session.timed(spec, f"generate {arm if arm in ARMS else ALL_RANDOM}"):
            if arm == ALL_RANDOM:
                (work.random_answers if stage == "answers" else work.respond_randomly)(spec, random)
            else:
                (work.answers if stage == "answers" else work.respond)(spec, arm)
    elif stage in ("check", "verdicts"):
        try:
            _judge(work, task)
        except UnusableError as error:  # which ends this judge's work alone
            raise StoppedError(
                f"not complete: verdicts of judge {redacted(key[0])!r} are missing: {error}; all else is kept, and the "
                "same command goes on"
            ) from error
    else:
        with session.timed(spec, "self-judgement"):
            work.selfjudge(spec, key[1])


def _judge(work: StudyWork, task: Task) -> None:
    stage, judge, *answers = task.name
    if stage == "check":
        work.check(judge)
        return
    spec, arm = answers
    with work.session.timed(spec, f"judge {judge}"):
        work.verdicts(judge, spec, arm)
