"""Workers as processes on this machine."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from tqdm import tqdm

from mechsafety.engines.hosts import Host, WorkerDiedError

_PATIENCE_S = 2.0
"""How long an ended process may take to be gone."""


class Process:
    """One worker: a new interpreter, so that neither threads nor a GPU's state are inherited half.

    ``line`` carries one call at a time, ``aside`` those that do not wait for it.
    """

    def __init__(self, kind: type, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        (self.line, one), (self.aside, other) = context.Pipe(), context.Pipe()
        self.process = context.Process(
            target=_serve, args=(one, other, kind, arguments, options), daemon=True
        )
        self.process.start()
        one.close()
        other.close()

    def end(self) -> None:
        """Let it end on its own, whereby it gives back what it shares with the system; at once where it is busy."""
        self.line.close()
        self.aside.close()
        self.process.join(_PATIENCE_S)
        self.process.kill()
        self.process.join(_PATIENCE_S)


class Call:
    """What a worker was asked; its answer comes on ``line``."""

    def __init__(
        self, worker: Process, line: Any, method: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self.worker, self.line = worker, line
        with suppress(OSError):  # it is gone: the end of the line is found where its answer is waited for
            line.send((method, arguments, options))


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

    def call(self, worker: Process, method: str, *arguments: Any, **options: Any) -> Call:
        return Call(worker, worker.line, method, arguments, options)

    def aside(self, worker: Process, method: str) -> Call:
        return Call(worker, worker.aside, method, (), {})

    def finished(self, calls: Iterable[Call], seconds: float, *, every: bool = False) -> list[Call]:
        left, found, until = [*calls], [], time.monotonic() + seconds
        while left:
            speaking = wait([call.line for call in left], timeout=max(0.0, until - time.monotonic()))
            found += [call for call in left if call.line in speaking]
            left = [call for call in left if call.line not in speaking]
            if not speaking or not every:
                break
        return found

    def result(self, call: Call) -> Any:
        try:
            return call.line.recv()
        except (EOFError, OSError):
            call.worker.process.join(_PATIENCE_S)
            raise WorkerDiedError(f"the process ended with code {call.worker.process.exitcode}") from None

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


def _serve(
    line: Connection, aside: Connection, kind: type, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """Answer calls until the other end is closed."""
    # Ctrl-C reaches every process of a terminal; the one that was started decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Bars of one process need no lock between processes, which one that is killed would leave to the system.
    tqdm.set_lock(threading.RLock())
    try:
        worker = kind(*arguments, **options)
        threading.Thread(target=_answer, args=(aside, worker), daemon=True).start()
        _answer(line, worker)
    except Exception:
        # What a worker can explain, it returns: this is a fault, and the driver starts another one.
        traceback.print_exc()
        raise SystemExit(1) from None


def _answer(line: Connection, worker: Any) -> None:
    with suppress(EOFError, OSError):  # the other end is closed
        while True:
            method, given, named = line.recv()
            line.send(getattr(worker, method)(*given, **named))
