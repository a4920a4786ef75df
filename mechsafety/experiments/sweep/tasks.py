"""The tasks of a sweep with dose curves: the selection, then each curve; the tables are made when all are there."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mechsafety.engines.tasks import Task
from mechsafety.experiments.base import Read
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.session import Session
from mechsafety.experiments.sweep.config import SweepConfig
from mechsafety.experiments.sweep.work import MEASURED, SELECTED, SweepWork, curves
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd


class SweepTasks(Parallel):
    """How a sweep is worked on in tasks. One without dose curves is worked on as a whole."""

    config: SweepConfig
    _kept: SweepWork | None = None

    @abstractmethod
    def reads(self) -> Sequence[Read]:
        """What the model reads."""

    def divides(self) -> bool:
        return bool(self.config.doses)

    def tasks(self, run: RunFolder) -> list[Task]:
        return _tasks(self.config, run)

    @classmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        stored = run.manifest["config"]
        fields = {name: stored[name] for name in SweepConfig.model_fields if name in stored}
        return _tasks(SweepConfig.model_validate(fields), run)

    def held(self) -> list[str]:
        return [] if self._kept is None else [self.config.model]

    def swept(self, session: Session) -> SweepWork:
        """The work of this process, with its model."""
        if self._kept is None or self._kept.session is not session:
            model = session.load(self.config.model)
            self._kept = SweepWork(config=self.config, session=session, model=model, reads=self.reads())
        return self._kept

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        work, self._kept = self.swept(session), None
        return work.tables()

    def do(self, task: Task, session: Session) -> None:
        work = self.swept(session)
        if task.stage == "select":
            _ = work.chosen
        else:
            work.measure_doses(task.name[1])


def _tasks(config: SweepConfig, run: RunFolder) -> list[Task]:
    if not config.doses:
        return []
    selected = Task(
        name=("select",), done=run.has_part(SELECTED, suffix="json"), ships=((),), model=config.model
    )
    return [
        selected,
        *(
            Task(
                name=("doses", curve),
                done=run.has_part(MEASURED, curve, suffix="json"),
                needs=(selected.name,),
                ships=((),),
                model=config.model,
            )
            for curve in curves(config)
        ),
    ]
