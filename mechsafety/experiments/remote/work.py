"""The tasks of a run, handed to workers until none is left; what they make is put into the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mechsafety.core.errors import MechsafetyError, StoppedError
from mechsafety.engines.hosts import WorkerDiedError
from mechsafety.engines.progress import Pace, by_stage, line, state
from mechsafety.engines.tasks import Schedule, Task, next_model, shown
from mechsafety.experiments.parallel import divided
from mechsafety.experiments.remote.made import (
    Failure,
    Made,
    keep,
    manifest_of,
    not_shared,
    shared_files,
    stamp,
)
from mechsafety.experiments.remote.pool import AT_THE_END_S, Member, Pool
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

    from mechsafety.experiments.base import Experiment
    from mechsafety.experiments.session import Session

STATE = "engine"
"""The part that says how far the run is."""
LOOK_EVERY_S = 10.0
"""How often the driver says how far the run is, and fetches what long tasks have made so far."""
_WHOLE = ("tables",)


class RemoteWork:
    """One session of a run's tasks. ``admit`` is called with every worker that is ready later than the first."""

    def __init__(
        self,
        experiment: Experiment[Any],
        pool: Pool,
        session: Session,
        admit: Callable[[Member, Any], None],
    ) -> None:
        self.experiment, self.pool, self.admit = experiment, pool, admit
        self.session, self.run, self.say = session, session.run, session.say
        self.parallel = divided(self.experiment)
        self.schedule, self.pace = Schedule(), Pace()
        self.failures: dict[str, Failure] = {}
        self._whole: Mapping[str, pd.DataFrame] | None = None
        self._said, self._fetched = 0.0, time.monotonic()
        self._named: set[str] = set()
        """Models whose files were asked for ahead."""

    def _say(self, text: str) -> None:
        self.say(f"{self.pool.host.name}: {text}")

    def tables(self) -> Mapping[str, pd.DataFrame]:
        if self.parallel is None:
            self._say(f"{self.experiment.kind} has no tasks of its own, and runs as one on one worker")
        else:
            self.parallel.begin(self.session)
        try:
            return self._made()
        except KeyboardInterrupt:
            self._interrupted()
            raise

    def _made(self) -> Mapping[str, pd.DataFrame]:
        self._all(self._tasks)
        tables = None if self.parallel is None or self.failures else self.parallel.finish(self.session)
        if tables is None and not self.failures:
            self._all(self._last)
            tables = self._whole
        if self.failures or tables is None:
            self._stop()
        _in_order(self.run, self.experiment.models())
        return tables or {}

    def _interrupted(self) -> None:
        """Fetch what long tasks have made by now."""
        self._fetched = -LOOK_EVERY_S
        self._fetch()
        self._fetch(AT_THE_END_S)

    def _tasks(self) -> list[Task]:
        return [] if self.parallel is None else self.parallel.tasks(self.run)

    def _last(self) -> list[Task]:
        """The whole work, on all that is there."""
        model = next(iter(self.experiment.models()), None)
        return [*self._tasks(), Task(name=_WHOLE, done=self._whole is not None, ships=((),), model=model)]

    def _all(self, tasks: Any) -> None:
        """Work until no task is left that can begin."""
        while True:
            known = tasks()
            begun = self.schedule.next(known, self.pool.idle())
            ahead = self._ahead(known) if begun else None
            for name, task in begun.items():
                self._begin(self.pool.members[name], task, ahead)
            if not self.schedule.running and not self.schedule.ready(known):
                self._report(known, now=True)
                return
            for member, found in self.pool.finished(LOOK_EVERY_S):
                if member.prepared:
                    self._ended(member, found)
                else:
                    self.admit(member, found)
            self.pool.grow()
            self._fetch()
            self._report(known)
            if (why := self.pool.refused()) is not None:
                raise StoppedError(
                    f"no worker is left: {why}; what was made is kept, and the same command goes on"
                )

    def _fetch(self, seconds: float = 0.0) -> None:
        """Put into the run what long tasks have made so far, and ask for more. A batch is kept as a whole."""
        for name, made in self.pool.answers(seconds):
            if keep(self.run, self.schedule.running[name], made):
                self.schedule.advances(name)
            self._heard(made)
        if time.monotonic() - self._fetched >= LOOK_EVERY_S:
            self._fetched = time.monotonic()
            self.pool.ask([name for name, task in self.schedule.running.items() if task.batch is None])

    def _ahead(self, known: Sequence[Task]) -> str | None:
        """The model that no worker has or loads now, and one may be asked for next; each is named once."""
        have = {model for member in self.pool.members.values() for model in member.held}
        have |= {task.model for task in self.schedule.running.values() if task.model is not None}
        found = next_model(known, have | self._named)
        self._named |= {found} if found is not None else set()
        return found

    def _begin(self, member: Member, task: Task, ahead: str | None) -> None:
        files, whole = self._shipped(member, task), task.name == _WHOLE
        member.began = time.monotonic()
        self.pool.begin(member, "do", task, files, manifest_of(self.run), whole=whole, ahead=ahead)

    def _shipped(self, member: Member, task: Task) -> dict[str, bytes]:
        """The files that a task reads and a worker does not have as they are."""
        found = {}
        for path in self._files(task):
            name, now = path.relative_to(self.run.path).as_posix(), stamp(path.stat())
            if member.has.get(name) != now:
                found[name], member.has[name] = path.read_bytes(), now
        return found

    def _files(self, task: Task) -> list[Any]:
        if task.name == _WHOLE:
            return [self.run.path / name for name in shared_files(self.run, self.experiment.stay)]
        return [path for key in task.ships for path in self.run.part_files(*key)]

    def _ended(self, member: Member, found: Made | WorkerDiedError) -> None:
        if isinstance(found, WorkerDiedError):
            task = self.schedule.dies(member.name)
            if task is not None:
                self._say(f"{member.name} died over {task.title}; another one goes on")
                if (why := self.schedule.failed.get(task.name)) is not None:
                    self._failed(task, Failure(kind="other", why=why))
            return
        task = self.schedule.running[member.name]
        if found.failure is not None:
            member.has.clear()  # it may have failed before it had all that it was sent
        keep(self.run, task, found)
        member.held = found.held
        for name in found.files:
            if (path := self.run.path / name).is_file():
                member.has[name] = stamp(path.stat())
        for name in not_shared(self.run, task):
            member.has.pop(name, None)
        self._heard(found)
        if found.failure is not None:
            self.schedule.fails(member.name, found.failure.why)
            self._failed(task, found.failure)
            return
        self.schedule.finished(member.name)
        self.pace.add(task.stage, time.monotonic() - member.began)
        if task.name == _WHOLE:
            self._whole = found.tables

    def _heard(self, made: Made) -> None:
        for text in made.lines:
            self.say(text)

    def _failed(self, task: Task, failure: Failure) -> None:
        name = task.title
        self._say(f"{name} failed: {failure.why}")
        marked = self.parallel is not None and self.parallel.failed(
            self.session, task, failure.why, not_finite=failure.kind == "not finite"
        )
        if not marked:
            self.failures[name] = failure

    def _stop(self) -> None:
        """Raise what failed; the rest is kept."""
        (name, failure), *more = self.failures.items()
        if not more and failure.kind == "stopped":
            raise StoppedError(failure.why)
        others = f" (and {len(more)} more)" if more else ""
        if not more and failure.kind != "other":
            raise MechsafetyError(failure.why)
        raise StoppedError(
            f"{name} failed{others}: {failure.why}; all else that could be made is kept, and the same command goes on"
        )

    def _report(self, known: Sequence[Task], *, now: bool = False) -> None:
        """Write down how far the run is, and say so now and then."""
        if not now and time.monotonic() - self._said < LOOK_EVERY_S:
            return
        self._said = time.monotonic()
        running = {name: "" for name, member in self.pool.members.items() if member.prepared}
        running |= {name: task.title for name, task in self.schedule.running.items()}
        failed = {shown(name): why for name, why in self.schedule.failed.items()}
        found = state(by_stage(known), self.pace, workers=running, failed=failed)
        self.run.write_json_part(found, STATE)
        if not now and running:
            self._say(f"{line(found)}")
        elif not running:
            self._say("waiting for room for a worker")


def _in_order(run: RunFolder, models: Sequence[str]) -> None:
    """Models stand in the manifest in the order of the configuration, whichever was loaded first."""
    for section in ("models", "fed"):
        if isinstance(stored := run.manifest.get(section), dict):
            first = {name: stored[name] for name in models if name in stored}
            run.record(section, first | stored)
