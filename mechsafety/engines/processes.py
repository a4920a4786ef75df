"""Workers as processes on this machine."""

from __future__ import annotations

import itertools
import multiprocessing
import os
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

_GUARD = "; a script that asks for workers keeps its own work under if __name__ == '__main__':"
_PATIENCE_S = 2.0
"""How long an ended process may take to be gone."""


class Line:
    """One end of a pipe to a worker. Calls are numbered: the answer to one that nobody waits for is passed over."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.closed, self.heard = connection, False, False
        self._numbers = itertools.count(1)
        self._answer: tuple[int, Any] | None = None

    def ask(self, *asked: Any) -> int:
        number = next(self._numbers)
        with suppress(OSError):  # it is gone: the end of the line is found where its answer is waited for
            self.connection.send((number, *asked))
        return number

    def read(self) -> None:
        """Take the next answer, which is there or begun."""
        try:
            self._answer = self.connection.recv()
            self.heard = True
        except (EOFError, OSError):
            self.close()
        except BaseException:  # Ctrl-C in the midst of an answer, whose rest no one can tell from the next
            self.close()
            raise

    def has(self, number: int) -> bool:
        """Whether that call is through."""
        return self.closed or (self._answer is not None and self._answer[0] == number)

    def take(self) -> Any:
        assert self._answer is not None
        (_, found), self._answer = self._answer, None
        return found

    def close(self) -> None:
        self.closed = True
        self.connection.close()


class Process:
    """One worker: a new interpreter, so that neither threads nor a GPU's state are inherited half.

    ``line`` carries one call at a time, ``aside`` those that do not wait for it.
    """

    def __init__(self, kind: type, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        (line, one), (aside, other) = context.Pipe(), context.Pipe()
        self.line, self.aside = Line(line), Line(aside)
        self.process = context.Process(target=_serve, args=(one, other), daemon=True)
        self.process.start()
        one.close()
        other.close()
        # Not among the arguments of the process: one that dies before it has read them would be waited for.
        self.line.ask(kind, arguments, options)

    def hang_up(self) -> None:
        """Let it end on its own, whereby it gives back what it shares with the system."""
        self.line.close()
        self.aside.close()

    def end(self, until: float) -> None:
        """Wait for it ``until`` then (a reading of the monotonic clock), and end it where it is busy."""
        self.process.join(max(0.0, until - time.monotonic()))
        self.process.kill()
        self.process.join(_PATIENCE_S)


class Call:
    """What a worker was asked; its answer comes on ``line``."""

    def __init__(self, worker: Process, line: Line, *asked: Any) -> None:
        self.worker, self.line = worker, line
        self.number = line.ask(*asked)

    @property
    def through(self) -> bool:
        return self.line.has(self.number)


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

    def aside(self, worker: Process, method: str, **options: Any) -> Call:
        return Call(worker, worker.aside, method, (), options)

    def finished(self, calls: Iterable[Call], seconds: float, *, every: bool = False) -> list[Call]:
        calls, until = [*calls], time.monotonic() + seconds
        while True:
            left = [call for call in calls if not call.through]
            if not left or (not every and len(left) < len(calls)):
                break
            lines = {call.line.connection: call.line for call in left}
            speaking = wait([*lines], timeout=max(0.0, until - time.monotonic()))
            if not speaking:
                break
            for connection in speaking:
                lines[connection].read()
        return [call for call in calls if call.through]

    def result(self, call: Call) -> Any:
        while not call.through:
            call.line.read()
        if call.line.closed:
            call.worker.process.join(_PATIENCE_S)
            raise WorkerDiedError(_how_it_ended(call.worker))
        return call.line.take()

    def kill(self, *workers: Process) -> None:
        ending = [worker for worker in workers if worker in self._living]
        for worker in ending:
            self._living.remove(worker)
            worker.hang_up()
        until = time.monotonic() + _PATIENCE_S
        for worker in ending:
            worker.end(until)

    def close(self) -> None:
        self.kill(*self._living)


def _how_it_ended(worker: Process) -> str:
    code = worker.process.exitcode
    if code is not None and code < 0:
        return f"the process was ended by signal {-code}, perhaps because memory ran out"
    return f"the process ended with code {code}{'' if worker.line.heard else _GUARD}"


@contextmanager
def processes(most: int) -> Iterator[Processes]:
    """Room for so many workers while the block runs."""
    host = Processes(most)
    try:
        yield host
    finally:
        host.close()


def _serve(line: Connection, aside: Connection) -> None:
    """Make the worker that is asked for first, and answer calls until the other end is closed."""
    # Ctrl-C reaches every process of a terminal; the one that was started decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Bars of one process need no lock between processes, which one that is killed would leave to the system.
    tqdm.set_lock(threading.RLock())
    try:
        _, kind, arguments, options = line.recv()
        worker = kind(*arguments, **options)
        threading.Thread(target=_beside, args=(aside, worker), daemon=True).start()
        _answer(line, worker)
    except EOFError:
        return
    except Exception:
        # What a worker can explain, it returns: this is a fault, and the driver starts another one.
        traceback.print_exc()
        raise SystemExit(1) from None


def _beside(aside: Connection, worker: Any) -> None:
    """Answer beside what the worker is at, and end it where the process that asked is gone while it is busy."""
    _answer(aside, worker)
    time.sleep(_PATIENCE_S)
    with suppress(Exception):
        worker.leave(at_once=True)
    os._exit(1)


def _answer(line: Connection, worker: Any) -> None:
    while True:
        try:
            number, method, given, named = line.recv()
        except (EOFError, OSError):  # the other end is closed
            return
        try:
            found = getattr(worker, method)(*given, **named)
        except Exception:
            line.close()  # a fault on either line ends it for the driver
            raise
        with suppress(BrokenPipeError):
            line.send((number, found))
