"""The tasks of a regions run: own answers, tables on the scores, each state of the model; what follows is one task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mechsafety.engines.tasks import Name, Task
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.regions.config import RegionsConfig, State, planned_states
from mechsafety.experiments.regions.work import KINDS, SCORED, RegionWork
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    from mechsafety.experiments.session import Session


class RegionTasks(Parallel):
    """How a regions run is worked on in tasks. Scores are too large to be sent: each worker makes those it needs."""

    config: RegionsConfig
    _kept: RegionWork | None = None

    @abstractmethod
    def begun(self, session: Session) -> RegionWork:
        """The work on a model that is loaded for it."""

    def tasks(self, run: RunFolder) -> list[Task]:
        return _Tasks(self.config, run).every()

    @classmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        stored = run.manifest["config"]
        fields = {name: stored[name] for name in RegionsConfig.model_fields if name in stored}
        return _Tasks(RegionsConfig.model_validate(fields), run).every()

    def held(self) -> list[str]:
        return [] if self._kept is None else [self.config.model]

    def kept(self, session: Session) -> RegionWork:
        """The work of this process, with its model."""
        if self._kept is None or self._kept.session is not session:
            self._kept = self.begun(session)
        return self._kept

    def do(self, task: Task, session: Session) -> None:
        work, (stage, *key) = self.kept(session), task.name
        if stage == "examples":
            for kind in KINDS:
                work.examples(kind, int(key[0]))
        elif stage == "scored":
            work.scored(key[0])
        elif stage == "heads":
            _ = work.heads
        else:
            (state,) = [state for state in planned_states(self.config) if state.key == key[0]]
            work.row(state)


class _Tasks:
    """The tasks of one configuration, as a folder has them."""

    def __init__(self, config: RegionsConfig, run: RunFolder) -> None:
        self.config, self.run = config, run

    def every(self) -> list[Task]:
        parts, states = self.config.parts, planned_states(self.config)
        tables = SCORED if "structure" in parts else ()
        draws = {0} if tables else set[int]()
        draws |= {_draw(state) for state in states if _scored(state)}
        found = [self._examples(draw) for draw in sorted(draws)]
        found += [
            self._task("scored", name, done=self.run.has_part("tables", name), needs=(("examples", "0"),))
            for name in tables
        ]
        if "heads" in parts:
            found.append(self._task("heads", done=self.run.has_part("tables", "heads")))
        return found + ([self._state(state) for state in states] if {"sweep", "heads"} & {*parts} else [])

    def _examples(self, draw: int) -> Task:
        done = all(self.run.has_part("examples", f"{kind}-{draw}") for kind in KINDS)
        return self._task("examples", str(draw), done=done)

    def _state(self, state: State) -> Task:
        needs: tuple[Name, ...] = (("heads",),) if state.removal == "heads" else ()
        if _scored(state):
            needs = (("examples", str(_draw(state))),)
        return self._task(
            "state", state.key, done=self.run.has_part("states", state.key, suffix="json"), needs=needs
        )

    def _task(self, *name: str, done: bool, needs: Sequence[Name] = ()) -> Task:
        ships = (("examples",), ("tables", "heads"))
        return Task(name=name, done=done, needs=tuple(needs), ships=ships, model=self.config.model)


def _scored(state: State) -> bool:
    """Whether what is taken out of the model is found by scores of its weights."""
    return state.removal not in ("none", "heads")


def _draw(state: State) -> int:
    """The calibration draw whose scores a state needs: a control is like the first one's removal."""
    return state.draw if state.control == "removed" else 0
