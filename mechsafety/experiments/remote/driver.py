"""The driver: hands tasks to workers, and alone writes the run folder."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechsafety.core.errors import MechsafetyError, is_on_the_command_line
from mechsafety.core.progress import Progress
from mechsafety.engines.cluster import cluster, require_gpus_named
from mechsafety.engines.hosts import Host, Share, WorkerDiedError
from mechsafety.engines.processes import processes
from mechsafety.experiments.parallel import divided
from mechsafety.experiments.remote.made import (
    Facts,
    Failure,
)
from mechsafety.experiments.remote.pool import Member, Pool
from mechsafety.experiments.remote.work import LOOK_EVERY_S, RemoteWork
from mechsafety.runs.folder import Provenance, computing_versions
from mechsafety.runs.sources import differences, first_differences

if TYPE_CHECKING:
    import pandas as pd

    from mechsafety.experiments.base import Experiment
    from mechsafety.experiments.config import EngineConfig
    from mechsafety.experiments.session import Session

_MOST_FAILED_STARTS = 5


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
        options |= {"scratch": scratch, "command_line": is_on_the_command_line()}
        pool = Pool(experiment, host, most=most, options=options)
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


class _Remote:
    """What :func:`run_experiment` uses of an experiment, done by workers."""

    loads_early = False

    def __init__(self, experiment: Experiment[Any], pool: Pool, *, threads: int) -> None:
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
            for member, found in self.pool.finished(LOOK_EVERY_S):
                self._admit(member, found)

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

    def _admit(self, member: Member, found: Facts | Failure | WorkerDiedError) -> None:
        """A worker is ready; one that died is replaced, and one that is unlike the first is not used.

        Raises :class:`MechsafetyError` for what the first one was refused, and where none can be started.
        """
        if isinstance(found, WorkerDiedError):
            self.pool.failed_starts += 1
            if self.pool.failed_starts >= _MOST_FAILED_STARTS:
                raise MechsafetyError(f"no worker can be started: {found}") from None
            self.pool.grow()
            return
        if isinstance(found, Failure) and self.facts is None:
            raise MechsafetyError(found.why)
        if (why := self._unlike(found)) is not None:
            member.refused = f"{member.name} is not used: {why}"
            self.say(f"{self.pool.host.name}: {member.refused}")
            return  # it keeps its place, or another one would be started there
        self.pool.failed_starts = 0
        member.prepared = True

    def _unlike(self, found: Facts | Failure) -> str | None:
        """Why a worker does not work beside the first one."""
        if isinstance(found, Failure):
            return found.why
        self.facts = self.facts or found
        changed = differences(_as_dict(self.facts), _as_dict(found))
        return f"it does not see what the first one sees ({first_differences(changed)})" if changed else None

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        """Every task on the workers; the tables where they need no model here, else there."""
        return RemoteWork(self.local, self.pool, session, self._admit).tables()


def _as_dict(facts: Facts) -> dict[str, Any]:
    sources = {
        name: {"identity": dict(one.identity), "circumstance": dict(one.circumstance)}
        for name, one in facts.sources.items()
    }
    return {"bound": dict(facts.bound), "sources": sources}
