"""The driver: hands tasks to workers, and alone writes the run folder."""

from __future__ import annotations

import itertools
import pickle
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechsafety.core.errors import MechsafetyError, StoppedError
from mechsafety.core.progress import Progress
from mechsafety.engines.cluster import cluster, require_gpus_named
from mechsafety.engines.hosts import Host, Share, WorkerDiedError
from mechsafety.engines.processes import processes
from mechsafety.engines.progress import Pace, by_stage, line, state
from mechsafety.engines.tasks import Schedule, Task, next_model, shown
from mechsafety.experiments.parallel import divided
from mechsafety.experiments.remote.made import (
    Facts,
    Failure,
    Made,
    keep,
    manifest_of,
    not_shared,
    shared_files,
    stamp,
)
from mechsafety.experiments.remote.worker import Worker
from mechsafety.runs.folder import Provenance, RunFolder, computing_versions
from mechsafety.runs.sources import differences, first_differences

if TYPE_CHECKING:
    import pandas as pd

    from mechsafety.experiments.base import Experiment
    from mechsafety.experiments.config import EngineConfig
    from mechsafety.experiments.session import Session

STATE = "engine"
"""The part that says how far the run is."""
_WHOLE = ("tables",)
_MOST_FAILED_STARTS = 5
_LOOK_EVERY_S = 10.0
"""How often the driver says how far the run is, and fetches what long tasks have made so far."""
_AT_THE_END_S = 5.0
"""How long it waits for that when it is interrupted, and for workers to tidy up."""


def _threads_of_workers(config: EngineConfig) -> int:
    """CPUs, and threads of torch, of each worker that ``config`` asks for.

    Where none are named, one on a cluster, whose machines are not known here; on this machine its threads are divided.
    """
    asked = getattr(config, "cpus_per_task", None)
    if asked is not None or config.engine == "ray":
        return asked or 1
    import torch

    return max(1, torch.get_num_threads() // (config.workers or 1))


@contextmanager
def with_workers(
    experiment: Experiment[Any], out: Path, day: str, *, allow_other_versions: bool
) -> Iterator[Any]:
    """``experiment`` with its preparation and its work on workers, on ray or on this machine, while the block runs."""
    config = experiment.config
    share = Share(cpus=_threads_of_workers(config), gpus=config.gpus_per_task or 0.0)
    with _host(config, share) as host, _scratch(config) as scratch:
        most = config.workers if divided(experiment) else 1
        options = {"home": str(out), "day": day, "threads": share.cpus}
        options |= {"allow_other_versions": allow_other_versions, "versions": computing_versions()}
        options |= {"scratch": scratch}
        pool = _Pool(experiment, host, most=most, options=options)
        try:
            yield _Remote(experiment, pool, threads=share.cpus)
        finally:
            pool.close()


@contextmanager
def _host(config: EngineConfig, share: Share) -> Iterator[Host]:
    if config.engine == "local":
        with processes(config.workers or 1) as host:
            yield host
        return
    with cluster(config.address, share, config.workers) as host:
        require_gpus_named(share, str(getattr(config, "device", "auto")))
        yield host


@contextmanager
def _scratch(config: EngineConfig) -> Iterator[str | None]:
    """Where workers on this machine copy parts of the run to, so that nothing is left of those that are killed."""
    if config.engine != "local":
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="mechsafety-workers-", ignore_cleanup_errors=True) as folder:
        yield folder


@dataclass(eq=False)
class _Member:
    """One worker as the driver knows it."""

    name: str
    handle: Any
    prepared: bool = False
    held: tuple[str, ...] = ()
    has: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The files of the run that it has, as they were."""
    began: float = 0.0


class _Pool:
    """The workers; one that died is replaced where there is room."""

    def __init__(
        self,
        experiment: Experiment[Any],
        host: Host,
        *,
        most: int | None,
        options: Mapping[str, Any],
    ) -> None:
        self.host, self.most = host, most
        self._given = pickle.dumps(experiment), options
        self._numbers = itertools.count(1)
        self.members: dict[str, _Member] = {}
        self.waiting: dict[Any, str] = {}
        """The worker by the call that it is at."""
        self.asked: dict[Any, str] = {}
        """The worker by the call about what it has made so far."""
        self.failed_starts = 0
        self.grow()

    def grow(self) -> None:
        """As many workers as there is room for, and were asked for."""
        wanted = max(1, self.host.room())
        wanted = wanted if self.most is None else min(self.most, wanted)
        while len(self.members) < wanted:
            name = f"worker {next(self._numbers)}"
            pickled, options = self._given
            member = self.members[name] = _Member(name, self.host.start(Worker, pickled, **options))
            self.begin(member, "prepare")

    def begin(self, member: _Member, method: str, *arguments: Any, **options: Any) -> None:
        self.waiting[self.host.call(member.handle, method, *arguments, **options)] = member.name

    def finished(self, seconds: float) -> list[tuple[_Member, Any]]:
        """The workers that are through with what they were at, and what came of it; a dead one with an exception."""
        found = []
        for call in self.host.finished(self.waiting, seconds):
            member = self.members[self.waiting.pop(call)]
            self.asked = {c: name for c, name in self.asked.items() if name != member.name}
            try:
                found.append((member, self.host.result(call)))
            except WorkerDiedError as error:
                self.drop(member)
                found.append((member, error))
        return found

    def ask(self, names: Collection[str]) -> None:
        """Ask workers what they have made so far, but for those that have not answered yet."""
        for name in set(names) - set(self.asked.values()):
            self.asked[self.host.aside(self.members[name].handle, "so_far")] = name

    def answers(self, seconds: float = 0.0) -> list[tuple[str, Made]]:
        """What workers have made so far, of those that have answered; a dead one does not."""
        found = []
        for call in self.host.finished(self.asked, seconds, every=True):
            name = self.asked.pop(call)
            with suppress(WorkerDiedError):
                found.append((name, self.host.result(call)))
        return found

    def drop(self, member: _Member) -> None:
        del self.members[member.name]
        self.host.kill(member.handle)

    def idle(self) -> dict[str, Sequence[str]]:
        busy = set(self.waiting.values())
        return {n: m.held for n, m in self.members.items() if m.prepared and n not in busy}

    def close(self) -> None:
        """End all workers; those that are still starting have nothing to tidy up, and would not answer."""
        members = [*self.members.values()]
        leaving = [self.host.aside(member.handle, "leave") for member in members if member.prepared]
        self.host.finished(leaving, _AT_THE_END_S, every=True)
        self.members.clear()
        self.host.kill(*(member.handle for member in members))


class _Remote:
    """What :func:`run_experiment` uses of an experiment, done by workers."""

    loads_early = False

    def __init__(self, experiment: Experiment[Any], pool: _Pool, *, threads: int) -> None:
        self.local, self.pool, self.threads = experiment, pool, threads
        self.engine = experiment.config.engine
        self.say: Progress = lambda _: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.local, name)

    def prepare(self, day: str, say: Progress) -> None:  # noqa: ARG002 - workers have the day
        """Wait for the first worker, which checks what the local engine checks."""
        self.say, self.facts = say, None
        say(f"{self.pool.host.name}: waiting for the first of {len(self.pool.members)}")
        while self.facts is None:
            for member, found in self.pool.finished(_LOOK_EVERY_S):
                self._prepared(member, found)

    def require_fit(self, day: str) -> None:
        """Workers have done so."""

    def bound(self) -> Mapping[str, Any]:
        return self._known.bound

    def sources(self) -> Mapping[str, Provenance]:
        return self._known.sources

    @property
    def _known(self) -> Facts:
        assert self.facts is not None
        return self.facts

    def _prepared(self, member: _Member, found: Facts | Failure | WorkerDiedError) -> None:
        """A worker is ready; raises :class:`MechsafetyError` for what it was refused, or another one is started."""
        if isinstance(found, WorkerDiedError):
            self.pool.failed_starts += 1
            if self.pool.failed_starts >= _MOST_FAILED_STARTS:
                raise MechsafetyError(f"no worker can be started: {found}") from None
            self.pool.grow()
            return
        if isinstance(found, Failure):
            raise MechsafetyError(found.why)
        self.facts = self.facts or found
        changed = differences(_as_dict(self.facts), _as_dict(found))
        if changed:
            raise MechsafetyError(f"two workers do not see the same: {first_differences(changed)}")
        self.pool.failed_starts = 0
        member.prepared = True

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        """Every task on the workers; the tables where they need no model here, else there."""
        return _Work(self, session).tables()


class _Work:
    """One session of a run's tasks."""

    def __init__(self, remote: _Remote, session: Session) -> None:
        self.remote, self.session, self.run = remote, session, session.run
        self.pool, self.say = remote.pool, session.say
        self.experiment = remote.local
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
        self._fetched = -_LOOK_EVERY_S
        self._fetch()
        self._fetch(_AT_THE_END_S)

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
            for member, found in self.pool.finished(_LOOK_EVERY_S):
                if member.prepared:
                    self._ended(member, found)
                else:
                    self.remote._prepared(member, found)
            self.pool.grow()
            self._fetch()
            self._report(known)

    def _fetch(self, seconds: float = 0.0) -> None:
        """Put into the run what long tasks have made so far, and ask for more. A batch is kept as a whole."""
        for name, made in self.pool.answers(seconds):
            if keep(self.run, self.schedule.running[name], made):
                self.schedule.advances(name)
            self._heard(made)
        if time.monotonic() - self._fetched >= _LOOK_EVERY_S:
            self._fetched = time.monotonic()
            self.pool.ask([name for name, task in self.schedule.running.items() if task.batch is None])

    def _ahead(self, known: Sequence[Task]) -> str | None:
        """The model that no worker has or loads now, and one may be asked for next; each is named once."""
        have = {model for member in self.pool.members.values() for model in member.held}
        have |= {task.model for task in self.schedule.running.values() if task.model is not None}
        found = next_model(known, have | self._named)
        self._named |= {found} if found is not None else set()
        return found

    def _begin(self, member: _Member, task: Task, ahead: str | None) -> None:
        files, whole = self._shipped(member, task), task.name == _WHOLE
        member.began = time.monotonic()
        self.pool.begin(member, "do", task, files, manifest_of(self.run), whole=whole, ahead=ahead)

    def _shipped(self, member: _Member, task: Task) -> dict[str, bytes]:
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

    def _ended(self, member: _Member, found: Made | WorkerDiedError) -> None:
        if isinstance(found, WorkerDiedError):
            task = self.schedule.dies(member.name)
            if task is not None:
                self._say(f"{member.name} died over {task.title}; another one goes on")
                if (why := self.schedule.failed.get(task.name)) is not None:
                    self._failed(task, Failure(kind="other", why=why))
            return
        task = self.schedule.running[member.name]
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
        if not now and time.monotonic() - self._said < _LOOK_EVERY_S:
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


def _as_dict(facts: Facts) -> dict[str, Any]:
    sources = {
        name: {"identity": dict(one.identity), "circumstance": dict(one.circumstance)}
        for name, one in facts.sources.items()
    }
    return {"bound": dict(facts.bound), "sources": sources}


def _in_order(run: RunFolder, models: Sequence[str]) -> None:
    """Models stand in the manifest in the order of the configuration, whichever was loaded first."""
    for section in ("models", "fed"):
        if isinstance(stored := run.manifest.get(section), dict):
            first = {name: stored[name] for name in models if name in stored}
            run.record(section, first | stored)
