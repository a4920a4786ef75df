"""Workers as processes on this machine."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from mechsafety.engines.hosts import Host, WorkerDiedError

_PATIENCE_S = 5.0
"""How long an ended process may take to be gone."""


class Process:
    """One worker: a new interpreter, so that neither threads nor a GPU's state are inherited half."""

    def __init__(self, kind: type, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, kind, arguments, options), daemon=True)
        self.process.start()
        theirs.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join(_PATIENCE_S)
        self.line.close()


class Processes(Host):
    """As many workers as were asked for."""

    name = "workers"

    def __init__(self, most: int) -> None:
        self._most = most
        self._living: list[Process] = []

    def room(self) -> int:
        return self._most

    def start(self, kind: type, *arguments: Any, **options: Any) -> Process:
        self._living.append(worker := Process(kind, arguments, options))
        return worker

    def call(self, worker: Process, method: str, *arguments: Any, **options: Any) -> Process:
        """The worker itself is what is waited for: it is at one call at a time."""
        with suppress(OSError):  # it is gone: the end of the line is found where its answer is waited for
            worker.line.send((method, arguments, options))
        return worker

    def finished(self, calls: Iterable[Process], seconds: float) -> list[Process]:
        workers = [*calls]
        speaking = wait([worker.line for worker in workers], timeout=seconds)
        return [worker for worker in workers if worker.line in speaking]

    def result(self, call: Process) -> Any:
        try:
            return call.line.recv()
        except (EOFError, OSError):
            call.process.join(_PATIENCE_S)
            raise WorkerDiedError(f"the process ended with code {call.process.exitcode}") from None

    def kill(self, worker: Process) -> None:
        if worker in self._living:
            self._living.remove(worker)
            worker.end()

    def close(self) -> None:
        for worker in [*self._living]:
            self.kill(worker)


@contextmanager
def processes(most: int) -> Iterator[Processes]:
    """Room for so many workers while the block runs."""
    host = Processes(most)
    try:
        yield host
    finally:
        host.close()


def _serve(line: Connection, kind: type, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Answer calls until the other end is closed."""
    # Ctrl-C reaches every process of a terminal; the one that was started decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        worker = kind(*arguments, **options)
        while True:
            method, given, named = line.recv()
            line.send(getattr(worker, method)(*given, **named))
    except EOFError:
        return
    except Exception:
        # What a worker can explain, it returns: this is a fault, and the driver starts another one.
        traceback.print_exc()
        raise SystemExit(1) from None
