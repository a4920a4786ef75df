"""Workers on ray: the cluster that is joined or started, room on it, and one clear line for what is wrong with it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from mechsafety.core.errors import MechsafetyError, first_lines, needs, way
from mechsafety.engines.hosts import Host, Share, WorkerDiedError

_PATIENCE_S = 5.0
"""How long an address may take to answer."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing out
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # ray's own advice on what it will do with GPUs
    "RAY_DEDUP_LOGS": "0",
}
_ASIDE = "aside"
"""The group of ray's threads that answers beside what a worker is at."""
_STORE_BYTES = 200 * 2**20
"""What workers on one machine share; parts of a run are small, and what does not fit goes to the disk."""


class OnRay(Host):
    """Workers as actors of the cluster that this process has joined."""

    name = "ray"

    def __init__(self, share: Share) -> None:
        import ray

        self._ray, self._share = ray, share

    def room(self) -> int:
        return room(self._share)

    def start(self, kind: type, *arguments: Any, **options: Any) -> Any:
        has = {"num_cpus": self._share.cpus, "num_gpus": self._share.gpus or None}
        actor: Any = self._ray.remote(concurrency_groups={_ASIDE: 1})  # pyright: ignore[reportCallIssue] - stubs lack it
        return actor(kind).options(**has).remote(*arguments, **options)

    def call(self, worker: Any, method: str, *arguments: Any, **options: Any) -> Any:
        return getattr(worker, method).remote(*arguments, **options)

    def aside(self, worker: Any, method: str, **options: Any) -> Any:
        return getattr(worker, method).options(concurrency_group=_ASIDE).remote(**options)

    def finished(self, calls: Iterable[Any], seconds: float, *, every: bool = False) -> list[Any]:
        waiting = [*calls]
        if not waiting:
            return []
        done, _ = self._ray.wait(waiting, num_returns=len(waiting) if every else 1, timeout=seconds)
        return done

    def result(self, call: Any) -> Any:
        try:
            return self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            raise WorkerDiedError(_last_line(error)) from None

    def kill(self, *workers: Any) -> None:
        for worker in workers:
            with suppress(Exception):
                self._ray.kill(worker)


def _last_line(error: Exception) -> str:
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return lines[-1][:300] if lines else first_lines(error)


@contextmanager
def cluster(address: str | None, share: Share, workers: int | None) -> Iterator[OnRay]:
    """Join the cluster at ``address``, or start one on this machine for so many workers, while the block runs.

    A cluster that this process has joined already is used as it is, and left as it was. Raises
    :class:`MechsafetyError` for ray that is not installed, an address that does not answer, and more than there is.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with needs("ray"):
        import ray
    joined = ray.is_initialized()
    if not joined:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
        if address is None:
            _start(quiet, share, workers)
        else:
            _join(address, {name: value for name, value in quiet.items() if name != "include_dashboard"})
    try:
        _require_room(share)
        yield OnRay(share)
    finally:
        if not joined:
            ray.shutdown()


def room(share: Share) -> int:
    """How many workers with ``share`` the cluster has room for, were it empty."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(_fit(node, share) for node in nodes)


def _fit(node: Mapping[str, float], share: Share) -> int:
    by_cpu = int(node.get("CPU", 0) // share.cpus)
    return by_cpu if not share.gpus else min(by_cpu, int(node.get("GPU", 0) / share.gpus + 1e-9))


def _require_room(share: Share) -> None:
    import ray

    if room(share):
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in ("GPU", "CPU")}
    asked = (f"{share.gpus:g} GPUs", way("--gpus-per-task"), most["GPU"], share.gpus)
    if share.gpus <= most["GPU"]:
        asked = (f"{share.cpus} CPUs", way("--cpus-per-task"), most["CPU"], share.cpus)
    what, option, largest, _ = asked
    kind = what.split()[1]
    raise MechsafetyError(
        f"a worker with {what} fits on no machine of the cluster: the largest has {largest:g} {kind} ({option})"
    )


def require_gpus_named(share: Share, device: str) -> None:
    """Raise :class:`MechsafetyError` for workers without GPUs of their own where there are some: all would take one."""
    import ray

    if share.gpus or device == "cpu" or not ray.cluster_resources().get("GPU"):
        return
    raise MechsafetyError(
        f"the cluster has GPUs: say how many each worker has ({way('--gpus-per-task 1', 'gpus_per_task=1')}), or give "
        f"{way('--device cpu', 'device=')}"
    )


def _start(quiet: Mapping[str, Any], share: Share, workers: int | None) -> None:
    import ray

    cpus = None if workers is None else workers * share.cpus
    try:
        ray.init(address="local", num_cpus=cpus, object_store_memory=_STORE_BYTES, **quiet)
    except (RuntimeError, OSError, ValueError, ConnectionError) as error:
        raise MechsafetyError(f"ray could not be started here: {first_lines(error)}") from None


def _join(address: str, quiet: Mapping[str, Any]) -> None:
    import ray

    if "://" in address:
        raise MechsafetyError(
            f"{way('--address', 'address')} {address!r}: HOST:PORT or auto is expected; on a machine of the cluster "
            "itself, not through ray's client"
        )
    if address != "auto":
        _require_answer(address)
    try:
        ray.init(address=address, **quiet)
    except (RuntimeError, OSError, ValueError, ConnectionError) as error:
        raise MechsafetyError(f"no ray cluster at {address!r}: {first_lines(error)}") from None


def _require_answer(address: str) -> None:
    """Ray itself tries a silent address for a minute and more."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise MechsafetyError(
            f"{way('--address', 'address')} {address!r}: HOST:PORT or auto is expected, e.g. 10.0.0.1:6379"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise MechsafetyError(
            f"no ray cluster answers at {address!r} ({first_lines(error)}): start one with ray start --head, or leave "
            f"{way('--address', 'address')} out"
        ) from None
