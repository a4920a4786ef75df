"""A worker: the code of the local engine, on a run folder of its own that holds what its tasks need."""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mechsafety.core.errors import MechsafetyError, NotFiniteError, StoppedError, on_the_command_line
from mechsafety.engines.tasks import Task
from mechsafety.experiments.remote.made import Facts, Failure, Files, Made, shared_files
from mechsafety.runs.folder import MANIFEST, RunFolder, computing_versions
from mechsafety.runs.memory import peak_memory_mb

T = TypeVar("T")
_LAST_LINES = 1500
_ENDED = "the run is ended"


@dataclass
class _Task:
    """What the run's manifest was when a task began, and the files that the driver has of it."""

    given: Mapping[str, Any]
    sent: Mapping[str, tuple[int, int]]


class Worker:
    """One process that makes parts. Models stay loaded between tasks.

    ``pickled`` is the experiment, which is read when the versions are known to be the driver's; ``home`` is the run's
    folder. Its copy of the run lies in ``scratch``, by default the machine's own folder for temporary files. Its errors
    propose options of the ``command_line`` where the driver's do.
    """

    def __init__(
        self,
        pickled: bytes,
        *,
        home: str,
        day: str,
        threads: int,
        allow_other_versions: bool,
        versions: Mapping[str, str],
        scratch: str | None = None,
        command_line: bool = False,
    ) -> None:
        self._pickled, self._home, self._day, self._threads = pickled, home, day, threads
        self._allow, self._versions, self._scratch = allow_other_versions, versions, scratch
        self._spelling = on_the_command_line if command_line else nullcontext
        self._lines: list[str] = []
        self._task: _Task | None = None
        self._busy = self._left = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def prepare(self) -> Facts | Failure:
        """Check what a run checks before its folder is made, and say what it is bound to."""
        with self._spelling():
            return _caught(self._prepare)

    def _prepare(self) -> Facts:
        require_same_versions(self._versions, computing_versions())
        import torch

        torch.set_num_threads(self._threads)
        self._experiment = experiment = pickle.loads(self._pickled)
        if experiment.loads_early:
            experiment.require_fit(self._day)
        experiment.prepare(self._day, self._lines.append)
        if not experiment.loads_early:
            experiment.require_fit(self._day)
        return Facts(bound=dict(experiment.bound()), sources=dict(experiment.sources()))

    def _begin(self) -> None:
        """Make this worker's copy of the run, at its first task: one that is refused has none."""
        if self._left:
            raise StoppedError(_ENDED)
        if self._folder is not None:
            return
        from mechsafety.experiments.session import Session

        self._folder = tempfile.TemporaryDirectory(
            prefix="mechsafety-worker-", dir=self._scratch, ignore_cleanup_errors=True
        )
        self._session = Session(
            run=RunFolder(Path(self._folder.name), allow_other_versions=self._allow),
            day=self._day,
            say=self._lines.append,
            loading=self._experiment.loading,
            allow_other_versions=self._allow,
            home=Path(self._home),
        )

    def do(
        self, task: Task, files: Files, manifest: Mapping[str, Any], *, whole: bool, ahead: str | None = None
    ) -> Made:
        """Make the parts of ``task``; where it is the ``whole`` work, its tables too.

        ``ahead`` is a model that this worker may be asked for next, whose files are fetched meanwhile.
        """
        self._busy = True
        try:
            with self._spelling():
                return self._made(task, files, manifest, whole=whole, ahead=ahead)
        finally:
            self._busy = False
            if self._left:
                self._remove()

    def _made(
        self, task: Task, files: Files, manifest: Mapping[str, Any], *, whole: bool, ahead: str | None
    ) -> Made:
        import torch

        from mechsafety.models.ahead import fetch_ahead

        if ahead is not None:
            fetch_ahead(ahead)
        torch.set_num_threads(self._threads)  # holds for the thread that says so
        if isinstance(put := _caught(lambda: self._put(task, files, manifest)), Failure):
            return Made(failure=put, held=self._held(whole=whole))
        before = self._files()
        self._task = _Task(given=manifest, sent=before)
        found = _caught(lambda: self._work(task, whole=whole))
        self._task = None
        if not (self._session.run.path / MANIFEST).is_file():  # the run is ended
            return Made(failure=found if isinstance(found, Failure) else None)
        return Made(
            files=self._changed(before, self._files()),
            manifest=self._recorded(manifest),
            lines=self._heard(),
            held=self._held(whole=whole),
            tables=None if isinstance(found, Failure) else found,
            failure=found if isinstance(found, Failure) else None,
            peak_memory_mb=peak_memory_mb(),
        )

    def _held(self, *, whole: bool) -> tuple[str, ...]:
        return () if whole else tuple(self._experiment.held())

    def _put(self, task: Task, files: Files, manifest: Mapping[str, Any]) -> None:
        """Put what a task reads into this worker's copy of the run."""
        self._begin()
        run = self._session.run
        run.write_text(MANIFEST, json.dumps(manifest))
        for name, content in files.items():
            run.save(name, lambda path, content=content: path.write_bytes(content))
        if task.batch is not None:
            run.write_json_part([list(task.batch.ids)], "plans", *task.batch.key)
            run.part_path("speed", *task.batch.key, suffix="json").unlink(missing_ok=True)

    def so_far(self) -> Made:
        """What the task under way has made since this was last asked; from another thread."""
        task = self._task
        if task is None:
            return Made()
        now = self._files()
        files, task.sent = self._changed(task.sent, now), now
        # Read after the files: a part that is there is not made again, nor what is recorded of it.
        recorded = {name: value for name, value in self._recorded(task.given).items() if name != "timings"}
        return Made(files=files, manifest=recorded, lines=self._heard())

    def leave(self, *, at_once: bool = False) -> None:
        """Remove this worker's copy of the run, before its process is ended.

        Where it is at a task, when that ends; ``at_once`` also now.
        """
        self._left = True
        if at_once or not self._busy:
            self._remove()
        if self._scratch is not None and at_once:
            with suppress(OSError):  # others are still in it
                Path(self._scratch).rmdir()

    def _remove(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def _files(self) -> dict[str, tuple[int, int]]:
        return shared_files(self._session.run, self._experiment.stay)

    def _changed(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> Files:
        found = {}
        for name, stamp in now.items():
            with suppress(FileNotFoundError):
                if before.get(name) != stamp:
                    found[name] = (self._session.run.path / name).read_bytes()
        return found

    def _recorded(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest has beyond ``given``: of a section, the items alone that changed, which others may have."""
        found = {}
        for name, value in self._session.run.manifest.items():
            before, new = given.get(name), value
            if isinstance(value, dict) and isinstance(before, dict):
                new = {key: item for key, item in value.items() if before.get(key) != item}
            if value != before:
                found[name] = new
        return found

    def _heard(self) -> tuple[str, ...]:
        lines = tuple(self._lines)
        del self._lines[: len(lines)]
        return lines

    def _work(self, task: Task, *, whole: bool) -> Mapping[str, Any] | None:
        try:
            if whole:
                return self._experiment.work(self._session)
            return self._experiment.do(task, self._session)
        except Exception:
            if self._left:  # it may miss its files, which is no fault to be shown
                raise StoppedError(_ENDED) from None
            raise


def _caught(work: Callable[[], T]) -> T | Failure:
    try:
        return work()
    except NotFiniteError as error:
        return Failure(kind="not finite", why=str(error))
    except StoppedError as error:
        return Failure(kind="stopped", why=str(error))
    except MechsafetyError as error:
        return Failure(kind="mend", why=str(error))
    except Exception as error:
        name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        print(traceback.format_exc()[-_LAST_LINES:], file=sys.stderr)  # noqa: T201 - on ray its log of this worker
        return Failure(kind="other", why=" ".join(name.split())[:300])


def require_same_versions(mine: Mapping[str, str], workers: Mapping[str, str]) -> None:
    """Raise :class:`MechsafetyError` where a worker has other packages than the process that asks it to work."""
    other = [
        f"{name} {workers.get(name)}, not {mine[name]}" for name in mine if workers.get(name) != mine[name]
    ]
    if other:
        import platform

        raise MechsafetyError(
            f"the worker on {platform.node()} has {'; '.join(other)}: install the same versions on every machine"
        )
