"""Hours and cost of a study on many GPUs, from the estimates of its dry run. Everything here is an estimate too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.study.plan import Plan, PlanRow

READ_GB = 2.0
"""Gigabytes a second that a shared file system gives to all workers together. Assumed, not measured."""
STREAM_BYTES = 4
"""Of a number of a residual stream, which is kept in float32."""


@dataclass(frozen=True, kw_only=True)
class OnGpus:
    """A study on ``gpus`` GPUs with one worker for each system, longest first.

    ``hours`` pass until the last worker ends, ``least`` if all GPUs were busy throughout; ``gpu_hours`` are worked.
    ``too_large`` names the systems that need more GPUs than there are, which are left out of all numbers.
    ``loading`` are seconds in which the weights of all systems that begin at once are read.
    """

    gpus: int
    systems: int
    hours: float
    least: float
    gpu_hours: float
    loading: float
    too_large: tuple[str, ...]

    def rented(self, price: float) -> float:
        """What all GPUs cost while the study lasts, at ``price`` a GPU hour."""
        return self.gpus * self.hours * price


def on_gpus(plan: Plan, gpus: int) -> OnGpus:
    """The study of ``plan`` on ``gpus`` GPUs. Raises :class:`MechsafetyError` for none."""
    if gpus < 1:
        raise MechsafetyError(f"{gpus} GPUs: at least 1 is needed")
    known = [row for row in plan.rows if row.estimate is not None]
    fitting = sorted((row for row in known if _devices(row) <= gpus), key=_alone, reverse=True)
    free = [0.0] * gpus
    begun_at_once = 0.0
    for row in fitting:
        taken = sorted(range(gpus), key=free.__getitem__)[: _devices(row)]
        start = max(free[gpu] for gpu in taken)
        begun_at_once += 0.0 if start else _weights(row)
        for gpu in taken:
            free[gpu] = start + _alone(row)
    worked = sum(row.estimate.total for row in fitting if row.estimate)
    return OnGpus(
        gpus=gpus,
        systems=len(fitting),
        hours=max(free),
        least=worked / gpus,
        gpu_hours=worked,
        loading=begun_at_once / (READ_GB * 1e9),
        too_large=tuple(row.system for row in known if row not in fitting),
    )


def stream_bytes(plan: Plan, *, prompts: int, positions: int) -> float:
    """Bytes of the residual streams of ``prompts`` at ``positions`` and every layer, of the largest known system."""
    sizes = [row.facts.d_model * (row.facts.n_layers + 1) for row in plan.rows if row.facts is not None]
    return float(max(sizes, default=0) * prompts * positions * STREAM_BYTES)


def cluster_table(plan: Plan, counts: Sequence[int], *, price: int | float) -> str:
    """A Markdown table with a row for each number of GPUs; ``price`` is of one GPU hour."""
    head = ["GPUs", "systems", "hours, a worker a system", "hours, all GPUs busy", "GPU hours"]
    head += [f"cost of the work at {price:g} an hour", "cost of all GPUs meanwhile", "reading weights, s"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---:"] * len(head)) + " |"]
    known = sum(row.estimate is not None for row in plan.rows)
    for one in (on_gpus(plan, gpus) for gpus in counts):
        cells = [str(one.gpus), f"{one.systems} of {known}", f"{one.hours:.1f}", f"{one.least:.2f}"]
        cells += [f"{one.gpu_hours:.1f}", f"{one.gpu_hours * price:.0f}", f"{one.rented(float(price)):.0f}"]
        lines.append("| " + " | ".join([*cells, f"{one.loading:.0f}"]) + " |")
    return "\n".join(lines)


def _devices(row: PlanRow) -> int:
    assert row.estimate is not None
    return row.estimate.devices


def _alone(row: PlanRow) -> float:
    """Hours that a system takes on its own GPUs."""
    assert row.estimate is not None
    return row.estimate.total / row.estimate.devices


def _weights(row: PlanRow) -> float:
    assert row.estimate is not None
    return row.estimate.memory.weights
