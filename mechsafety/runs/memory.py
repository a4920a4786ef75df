"""The memory that a run took, as its manifest has it."""

from __future__ import annotations

import resource

from mechsafety.runs.folder import RunFolder

_TIMINGS, _PEAK = "timings", "peak_memory_mb"


def peak_memory_mb() -> int:
    """The most memory that this process has held since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def record_peak_memory(run: RunFolder, megabytes: int) -> None:
    """Record what a process of the run held; the largest one stands."""
    if megabytes > run.manifest.get(_TIMINGS, {}).get(_PEAK, 0):
        run.record_item(_TIMINGS, _PEAK, megabytes)
